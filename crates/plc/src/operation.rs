//! An operation, read from its signed DAG-CBOR: the one form that is hashed, stored and judged.

use std::borrow::Cow;

use super::cbor::{Reader, key_order};
use super::cid::Cid;
pub use super::malformed::Malformed;
use super::signature::signing_digest;

/// Largest signed operation that is accepted, in bytes. The directory limits what is submitted
/// today to 4,000; its history holds larger ones, and nothing near this.
pub const MAX_OPERATION_LENGTH: usize = 1 << 20;

/// The three shapes of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperationKind {
    /// `plc_operation`.
    Regular,
    /// `plc_tombstone`.
    Tombstone,
    /// `create`, the deprecated form of the first operations.
    LegacyCreate,
}

/// A service of an identity, as the operation states it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service<'a> {
    /// Its `type`.
    pub kind: Cow<'a, str>,
    /// Its `endpoint`.
    pub endpoint: Cow<'a, str>,
}

/// A view of one operation's signed DAG-CBOR.
#[derive(Debug, Clone, Copy)]
pub struct Operation<'a> {
    entries: usize,
    sig: &'a str,
    /// The encoding after the `sig` entry: with a map head of one entry less, what was signed.
    unsigned: &'a [u8],
    prev: Option<&'a str>,
    body: Body<'a>,
}

/// What is particular to each shape. Maps and arrays are kept as readers that stand before them,
/// already known to be well-formed.
#[derive(Debug, Clone, Copy)]
enum Body<'a> {
    Regular {
        services: Reader<'a>,
        also_known_as: Reader<'a>,
        rotation_keys: Reader<'a>,
        verification_methods: Reader<'a>,
    },
    Tombstone,
    LegacyCreate {
        handle: &'a str,
        service: &'a str,
        signing_key: &'a str,
        recovery_key: &'a str,
    },
}

impl<'a> Operation<'a> {
    /// Reads the signed DAG-CBOR of one operation.
    ///
    /// # Errors
    ///
    /// [`Malformed`] unless the bytes are the canonical encoding of exactly one of the three
    /// shapes (specification, "Operation serialization").
    pub fn read(signed: &'a [u8]) -> Result<Operation<'a>, Malformed> {
        if signed.len() > MAX_OPERATION_LENGTH {
            return Err(Malformed::new(format!(
                "an operation of {} bytes, more than {MAX_OPERATION_LENGTH}",
                signed.len()
            )));
        }
        let mut reader = Reader::new(signed);
        let entries = reader.map()?;
        reader.key("sig")?;
        let sig = reader.text()?;
        let unsigned = reader.rest();
        reader.key("prev")?;
        let prev = reader.text_or_null()?;
        reader.key("type")?;
        let body = match (reader.text()?, entries) {
            ("plc_operation", 7) => Body::read_regular(&mut reader)?,
            ("plc_tombstone", 3) if prev.is_some() => Body::Tombstone,
            ("plc_tombstone", 3) => {
                return Err(Malformed::new("a tombstone whose `prev` is null"));
            }
            ("create", 7) if prev.is_none() => Body::read_legacy_create(&mut reader)?,
            ("create", 7) => return Err(Malformed::new("a `create` whose `prev` is not null")),
            (kind, _) => {
                let kind: String = kind.chars().take(64).collect();
                return Err(Malformed::new(format!("no operation of type `{kind}`")));
            }
        };
        if !reader.rest().is_empty() {
            return Err(Malformed::new("bytes after the operation"));
        }
        Ok(Operation { entries, sig, unsigned, prev, body })
    }

    /// Which of the three shapes it has.
    pub fn kind(&self) -> OperationKind {
        match self.body {
            Body::Regular { .. } => OperationKind::Regular,
            Body::Tombstone => OperationKind::Tombstone,
            Body::LegacyCreate { .. } => OperationKind::LegacyCreate,
        }
    }

    /// The signature's text, as it is.
    pub fn sig(&self) -> &'a str {
        self.sig
    }

    /// The text of `prev` as it was signed; none in a genesis operation.
    pub fn prev(&self) -> Option<&'a str> {
        self.prev
    }

    /// The operation that `prev` names, in whatever spelling.
    pub fn prev_cid(&self) -> Option<Cid> {
        Cid::of_any_spelling(self.prev?)
    }

    /// SHA-256 of the DAG-CBOR without the `sig` entry: what was signed.
    pub fn signing_digest(&self) -> [u8; 32] {
        // A map of at most 23 entries has a head of one byte, and `sig` is its first entry.
        let head = 0xa0 | (self.entries - 1) as u8;
        signing_digest(&[&[head], self.unsigned])
    }

    /// The keys that may sign what follows, in order of authority; none of a tombstone.
    pub fn rotation_keys(&self) -> Vec<&'a str> {
        match self.body {
            Body::Regular { rotation_keys, .. } => texts(rotation_keys).collect(),
            Body::Tombstone => Vec::new(),
            Body::LegacyCreate { signing_key, recovery_key, .. } => vec![recovery_key, signing_key],
        }
    }

    /// Aliases of the identity; a legacy handle as the directory shows it, with `at://`.
    pub fn also_known_as(&self) -> Vec<Cow<'a, str>> {
        match self.body {
            Body::Regular { also_known_as, .. } => {
                texts(also_known_as).map(Cow::Borrowed).collect()
            }
            Body::Tombstone => Vec::new(),
            Body::LegacyCreate { handle, .. } => vec![normalised_handle(handle)],
        }
    }

    /// Names and `did:key` texts, in the order in which the directory prints them.
    pub fn verification_methods(&self) -> Vec<(&'a str, &'a str)> {
        match self.body {
            Body::Regular { mut verification_methods, .. } => {
                let entries = verification_methods.map().unwrap_or(0);
                let pairs = (0..entries).map_while(|_| {
                    Some((verification_methods.text().ok()?, verification_methods.text().ok()?))
                });
                in_wire_order(pairs.collect())
            }
            Body::Tombstone => Vec::new(),
            Body::LegacyCreate { signing_key, .. } => vec![("atproto", signing_key)],
        }
    }

    /// Names and services, in the order in which the directory prints them.
    pub fn services(&self) -> Vec<(&'a str, Service<'a>)> {
        match self.body {
            Body::Regular { mut services, .. } => {
                let entries = services.map().unwrap_or(0);
                let pairs = (0..entries).map_while(|_| {
                    let name = services.text().ok()?;
                    let service = read_service(&mut services).ok()?;
                    Some((name, service))
                });
                in_wire_order(pairs.collect())
            }
            Body::Tombstone => Vec::new(),
            Body::LegacyCreate { service, .. } => vec![(
                "atproto_pds",
                Service {
                    kind: Cow::Borrowed("AtprotoPersonalDataServer"),
                    endpoint: normalised_endpoint(service),
                },
            )],
        }
    }
}

impl<'a> Body<'a> {
    fn read_regular(reader: &mut Reader<'a>) -> Result<Body<'a>, Malformed> {
        reader.key("services")?;
        let services = *reader;
        check_map(reader, |reader| read_service(reader).map(drop))?;
        reader.key("alsoKnownAs")?;
        let also_known_as = *reader;
        check_texts(reader)?;
        reader.key("rotationKeys")?;
        let rotation_keys = *reader;
        check_texts(reader)?;
        reader.key("verificationMethods")?;
        let verification_methods = *reader;
        check_map(reader, |reader| reader.text().map(drop))?;
        Ok(Body::Regular { services, also_known_as, rotation_keys, verification_methods })
    }

    fn read_legacy_create(reader: &mut Reader<'a>) -> Result<Body<'a>, Malformed> {
        reader.key("handle")?;
        let handle = reader.text()?;
        reader.key("service")?;
        let service = reader.text()?;
        reader.key("signingKey")?;
        let signing_key = reader.text()?;
        reader.key("recoveryKey")?;
        let recovery_key = reader.text()?;
        Ok(Body::LegacyCreate { handle, service, signing_key, recovery_key })
    }
}

fn read_service<'a>(reader: &mut Reader<'a>) -> Result<Service<'a>, Malformed> {
    if reader.map()? != 2 {
        return Err(Malformed::new("a service is exactly `type` and `endpoint`"));
    }
    reader.key("type")?;
    let kind = Cow::Borrowed(reader.text()?);
    reader.key("endpoint")?;
    let endpoint = Cow::Borrowed(reader.text()?);
    Ok(Service { kind, endpoint })
}

/// Reads past a map, checking each value and that the keys stand in canonical order, none twice.
fn check_map<'a>(
    reader: &mut Reader<'a>,
    value: impl Fn(&mut Reader<'a>) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    let entries = reader.map()?;
    let mut last: Option<&str> = None;
    for _ in 0..entries {
        let key = reader.text()?;
        if last.is_some_and(|last| key_order(last, key).is_ge()) {
            return Err(Malformed::new("keys of a map that are not in order"));
        }
        last = Some(key);
        value(reader)?;
    }
    Ok(())
}

fn check_texts(reader: &mut Reader<'_>) -> Result<(), Malformed> {
    let items = reader.array()?;
    for _ in 0..items {
        reader.text()?;
    }
    Ok(())
}

/// The texts of an array that was checked before.
fn texts<'a>(mut reader: Reader<'a>) -> impl Iterator<Item = &'a str> {
    let items = reader.array().unwrap_or(0);
    (0..items).map_while(move |_| reader.text().ok())
}

/// The order of a JavaScript object's keys: array indices first, ascending, then the others as
/// they were. Canonical order has shorter indices first and equal lengths bytewise, which is
/// ascending already.
fn in_wire_order<T>(pairs: Vec<(&str, T)>) -> Vec<(&str, T)> {
    let (indices, mut others): (Vec<_>, Vec<_>) =
        pairs.into_iter().partition(|(key, _)| is_array_index(key));
    if indices.is_empty() {
        return others;
    }
    let mut ordered = indices;
    ordered.append(&mut others);
    ordered
}

/// True of the canonical decimal text of a number below 2³² − 1 (ECMA-262, "array index").
pub(crate) fn is_array_index(key: &str) -> bool {
    let digits = key.as_bytes();
    match digits {
        [b'0'] => true,
        [b'1'..=b'9', rest @ ..] if digits.len() <= 10 => {
            rest.iter().all(u8::is_ascii_digit) && key.parse().is_ok_and(|n: u64| n < 0xffff_ffff)
        }
        _ => false,
    }
}

/// A legacy handle as an alias: unchanged with `at://`, else with the first `http://` and then
/// the first `https://` removed, and `at://` before it.
fn normalised_handle(handle: &str) -> Cow<'_, str> {
    if handle.starts_with("at://") {
        return Cow::Borrowed(handle);
    }
    let bare = handle.replacen("http://", "", 1).replacen("https://", "", 1);
    Cow::Owned(format!("at://{bare}"))
}

/// A legacy service as an endpoint: `https://` before it unless it names HTTP already.
fn normalised_endpoint(service: &str) -> Cow<'_, str> {
    if service.starts_with("http://") || service.starts_with("https://") {
        return Cow::Borrowed(service);
    }
    Cow::Owned(format!("https://{service}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn array_indices_are_those_of_javascript() {
        for key in ["0", "4", "33", "4294967294"] {
            assert!(is_array_index(key), "{key}");
        }
        for key in ["", "01", "-1", "1.0", "4294967295", "99999999999", "1e3", "a", "१"] {
            assert!(!is_array_index(key), "{key}");
        }
    }

    #[test]
    fn legacy_fields_are_shown_as_the_directory_shows_them() {
        for (handle, shown) in [
            ("alice.example", "at://alice.example"),
            ("at://alice.example", "at://alice.example"),
            ("https://alice.example", "at://alice.example"),
            ("http://https://alice", "at://alice"),
            ("hthttps://tp://alice", "at://http://alice"),
        ] {
            assert_eq!(normalised_handle(handle), shown);
        }
        assert_eq!(normalised_endpoint("ftp://h"), "https://ftp://h");
        assert_eq!(normalised_endpoint("http://h"), "http://h");
    }
}
