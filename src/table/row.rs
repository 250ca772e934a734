//! One row.

use did_plc::operation::{Malformed, OperationKind};
use did_plc::{Cid, Did, History, Operation, Timestamp};

/// An operation of the log, decoded. What a legacy `create` says is shown as the directory shows it at `/{did}/data`; a
/// tombstone says nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The identity that it belongs to.
    pub did: Did,
    /// Its CID.
    pub cid: Cid,
    /// The directory's sequence number; none of what only old dumps had.
    pub sequence: Option<i64>,
    /// When the directory accepted it.
    pub created_at: Timestamp,
    /// The `type` of the operation.
    pub kind: &'static str,
    /// The operation before it, as it was signed.
    pub prev: Option<String>,
    /// The aliases that begin with `at://`, without that, in their order: claims, which nobody has checked.
    pub handles: Vec<String>,
    /// The endpoint of the service `atproto_pds`.
    pub host: Option<String>,
    /// The keys that may sign what follows, the one of most authority first.
    pub rotation_keys: Vec<String>,
    /// The verification method `atproto`.
    pub signing_key: Option<String>,
    /// The rotation key that signed it.
    pub signer: String,
    /// The place of that key, from 0, in the list that was in force.
    pub signer_index: u16,
    /// Whether it was nullified later.
    pub nullified: bool,
    /// The operation that nullified it.
    pub nullified_by: Option<Cid>,
}

impl Row {
    /// The row of the entry with this index.
    ///
    /// # Errors
    ///
    /// [`Malformed`] when its bytes are no operation, or the key that has signed it is not in the list that was in
    /// force: that is not what was verified.
    pub(super) fn of(history: &History, index: usize) -> Result<Row, Malformed> {
        let entry = &history.entries[index];
        let received = &entry.received;
        let operation = Operation::read(&received.signed)?;
        let signer = history.signer_key(index).zip(entry.signer());
        let (signer, signer_index) =
            signer.ok_or_else(|| Malformed::new("there is no such key as has signed it"))?;
        let texts = |texts: Vec<&str>| texts.into_iter().map(str::to_owned).collect();
        let aliases = operation.also_known_as();
        let handles =
            aliases.iter().filter_map(|alias| Some(alias.strip_prefix("at://")?.to_owned()));
        let services = operation.services();
        let host = services.iter().find(|(name, _)| *name == "atproto_pds");
        let methods = operation.verification_methods();
        let signing_key = methods.iter().find(|(name, _)| *name == "atproto");
        Ok(Row {
            did: history.did,
            cid: received.cid,
            sequence: received.sequence,
            created_at: received.created_at,
            kind: match operation.kind() {
                OperationKind::Regular => "plc_operation",
                OperationKind::Tombstone => "plc_tombstone",
                OperationKind::LegacyCreate => "create",
            },
            prev: operation.prev().map(str::to_owned),
            handles: handles.collect(),
            host: host.map(|(_, service)| service.endpoint.clone().into_owned()),
            rotation_keys: texts(operation.rotation_keys()),
            signing_key: signing_key.map(|(_, key)| (*key).to_owned()),
            signer: signer.to_owned(),
            signer_index,
            nullified: received.nullified == Some(true),
            nullified_by: entry.nullified_by.map(|by| history.entries[by].received.cid),
        })
    }
}
