//! What the index of identities has of a DID, and its entries.

use did_plc::Did;

/// Bytes of a DID that the index has.
const PREFIX_LENGTH: usize = 4;

/// What the index has of a DID: its first bytes as a number, in the order of DIDs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Prefix(i32);

/// The bit that makes a number negative.
const SIGN: u32 = 1 << 31;

impl Prefix {
    /// That of the lowest DIDs.
    pub(super) const FIRST: Prefix = Prefix(i32::MIN);

    pub(super) fn of(did: &Did) -> Prefix {
        let mut bytes = [0; PREFIX_LENGTH];
        bytes.copy_from_slice(&did.as_bytes()[..PREFIX_LENGTH]);
        // The lowest number for the lowest bytes, though numbers in SQLite have a sign.
        Prefix((u32::from_be_bytes(bytes) ^ SIGN) as i32)
    }

    /// Its first bits, as a number in the order of DIDs.
    pub(super) fn first_bits(self, bits: u32) -> usize {
        ((self.0 as u32 ^ SIGN) >> (u32::BITS - bits)) as usize
    }

    /// The one after this, if there is one.
    pub(super) fn next(self) -> Option<Prefix> {
        self.0.checked_add(1).map(Prefix)
    }

    /// The last DID that there can be under this prefix.
    pub(super) fn last_did(self) -> Did {
        let mut bytes = [0xff; 15];
        bytes[..PREFIX_LENGTH].copy_from_slice(&(self.0 as u32 ^ SIGN).to_be_bytes());
        Did::from_bytes(bytes)
    }
}

impl rusqlite::ToSql for Prefix {
    fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
        self.0.to_sql()
    }
}

impl rusqlite::types::FromSql for Prefix {
    fn column_result(value: rusqlite::types::ValueRef<'_>) -> rusqlite::types::FromSqlResult<Self> {
        i32::column_result(value).map(Prefix)
    }
}

/// An operation of the index.
pub(super) type Entry = (Prefix, i64);
