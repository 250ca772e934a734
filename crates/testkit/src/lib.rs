//! Logs made to order: single stories for tests ([`builder`]) and millions of plausible operations
//! for measurements ([`profile`]). Everything is drawn from a seed, so that a log is the same
//! bytes wherever it is made.

pub mod builder;
mod draft;
pub mod fake_upstream;
pub mod file_server;
pub mod happenings;
pub mod keys;
pub mod nginx;
mod nonces;
pub mod plcbundle;
pub mod postgres;
pub mod profile;
pub mod set_model;
mod shape;
mod so_far;
pub mod spelling;
pub mod telling;
pub mod wire;

use wire::json_string;

/// What a validator has to decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// The operation is accepted.
    Accepted,
    /// The operation is refused, with this name of [`did_plc::Refusal`].
    Refused(&'static str),
}

/// One entry of a log: what the directory states, and what is to be made of it.
///
/// The fields are what is *stated*; `Generated { created_at: …, ..honest.clone() }` is a directory
/// that tells another story.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// The number in the log.
    pub seq: i64,
    /// The identity.
    pub did: String,
    /// The CID.
    pub cid: String,
    /// When the directory accepted it, `YYYY-MM-DDTHH:mm:ss.sssZ`.
    pub created_at: String,
    /// The operation as the directory prints it, or as a hostile one does.
    pub operation_json: String,
    /// The signed DAG-CBOR; for JSON that has none, that of the operation before it was spoilt.
    pub signed: Vec<u8>,
    /// Whether a later operation nullifies it.
    pub nullified_in_the_end: bool,
    /// What a validator has to decide.
    pub expected: Expected,
}

impl Generated {
    /// The line of `/export?after=SEQ`, without a newline.
    pub fn sequenced_line(&self) -> String {
        let Generated { seq, operation_json, .. } = self;
        let (did, cid, created_at) = self.stated();
        format!(
            r#"{{"did":{did},"cid":{cid},"seq":{seq},"createdAt":{created_at},"operation":{operation_json},"type":"sequenced_op"}}"#
        )
    }

    /// The line of `/export` by time, without a newline, as it is once the log has ended.
    pub fn timestamped_line(&self) -> String {
        let Generated { operation_json, nullified_in_the_end, .. } = self;
        let (did, cid, created_at) = self.stated();
        format!(
            r#"{{"did":{did},"cid":{cid},"createdAt":{created_at},"operation":{operation_json},"nullified":{nullified_in_the_end}}}"#
        )
    }

    /// The message of `/export/stream`.
    pub fn stream_message(&self) -> String {
        let Generated { seq, operation_json, .. } = self;
        let (did, cid, created_at) = self.stated();
        format!(
            r#"{{"seq":{seq},"type":"sequenced_op","did":{did},"operation":{operation_json},"cid":{cid},"createdAt":{created_at}}}"#
        )
    }

    /// The element of `/{did}/log/audit`, as it is once the log has ended.
    pub fn audit_entry(&self) -> String {
        let Generated { operation_json, nullified_in_the_end, .. } = self;
        let (did, cid, created_at) = self.stated();
        format!(
            r#"{{"did":{did},"operation":{operation_json},"cid":{cid},"nullified":{nullified_in_the_end},"createdAt":{created_at}}}"#
        )
    }

    fn stated(&self) -> (String, String, String) {
        (json_string(&self.did), json_string(&self.cid), json_string(&self.created_at))
    }
}

/// The audit log of one identity (all of the entries must be its own).
pub fn audit_log<'a>(entries: impl IntoIterator<Item = &'a Generated>) -> String {
    let entries: Vec<String> = entries.into_iter().map(Generated::audit_entry).collect();
    format!("[{}]", entries.join(","))
}

/// Lines of an export, joined by a newline as the directory joins them.
pub fn lines<'a>(
    entries: impl IntoIterator<Item = &'a Generated>,
    line: impl Fn(&Generated) -> String,
) -> String {
    entries.into_iter().map(line).collect::<Vec<_>>().join("\n")
}
