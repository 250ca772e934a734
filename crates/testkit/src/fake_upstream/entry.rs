//! Entries of a log in the four forms in which a directory states them.

use std::path::Path;

use crate::Generated;
use serde::Deserialize;
use serde_json::value::RawValue;

/// One entry of the log, as the directory states it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    pub did: String,
    pub cid: String,
    pub seq: i64,
    pub created_at: String,
    /// The operation's JSON.
    pub operation: String,
    pub nullified: bool,
}

impl From<&Generated> for LogEntry {
    fn from(generated: &Generated) -> LogEntry {
        LogEntry {
            did: generated.did.clone(),
            cid: generated.cid.clone(),
            seq: generated.seq,
            created_at: generated.created_at.clone(),
            operation: generated.operation_json.clone(),
            nullified: generated.nullified_in_the_end,
        }
    }
}

impl LogEntry {
    /// A line of `/export?after=SEQ`.
    pub fn sequenced(&self) -> String {
        let LogEntry { did, cid, seq, created_at, operation, .. } = self;
        format!(
            r#"{{"did":"{did}","cid":"{cid}","seq":{seq},"createdAt":"{created_at}","operation":{operation},"type":"sequenced_op"}}"#
        )
    }

    /// A line of `/export`.
    pub fn timestamped(&self) -> String {
        let LogEntry { did, cid, created_at, operation, nullified, .. } = self;
        format!(
            r#"{{"did":"{did}","cid":"{cid}","createdAt":"{created_at}","operation":{operation},"nullified":{nullified}}}"#
        )
    }

    /// An element of `/{did}/log/audit`.
    pub fn audited(&self) -> String {
        let LogEntry { did, cid, created_at, operation, nullified, .. } = self;
        format!(
            r#"{{"did":"{did}","operation":{operation},"cid":"{cid}","nullified":{nullified},"createdAt":"{created_at}"}}"#
        )
    }

    /// A message of `/export/stream`.
    pub fn streamed(&self) -> String {
        let LogEntry { did, cid, seq, created_at, operation, .. } = self;
        format!(
            r#"{{"seq":{seq},"type":"sequenced_op","did":"{did}","operation":{operation},"cid":"{cid}","createdAt":"{created_at}"}}"#
        )
    }
}

/// The entries of a file of sequenced export lines; none is marked as nullified.
pub fn load(path: &Path) -> Vec<LogEntry> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Line<'a> {
        did: String,
        cid: String,
        seq: i64,
        created_at: String,
        #[serde(borrow)]
        operation: &'a RawValue,
    }
    let text = std::fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| {
            let Line { did, cid, seq, created_at, operation } = serde_json::from_str(line).unwrap();
            let operation = operation.get().to_owned();
            LogEntry { did, cid, seq, created_at, operation, nullified: false }
        })
        .collect()
}
