//! A history as programs read it: for every operation who signed it, what became of it, and what
//! it changed.

use serde::Serialize;

use did_plc::history::Remark;
use did_plc::{History, Refusal, Timestamp};

/// What is to be said of one operation of a history.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OperationVerdict {
    /// The CID of the operation.
    pub cid: String,
    /// When the directory accepted it.
    pub created_at: String,
    /// The directory's sequence number.
    pub sequence: Option<i64>,
    /// When we received it.
    pub received_at: Option<String>,
    /// How long after `createdAt` that was, in seconds.
    pub received_after_seconds: Option<f64>,
    /// Who signed it; null when it is refused, or stood in the log before.
    pub signed_by: Option<SignedBy>,
    /// Until when a rotation key of higher authority can still overrule it, or what it builds on and
    /// with that it ([`History::contestable`]); null when no key ever could.
    pub contestable_until: Option<String>,
    /// Whether it was nullified.
    pub nullified: bool,
    /// By which operation.
    pub nullified_by: Option<String>,
    /// What it nullified.
    pub nullifies: Vec<String>,
    /// What it changed of what its `prev` left.
    pub changes: Vec<Changed>,
    /// In what it is not as the specification has it, though the directory accepts it; null when in
    /// nothing.
    pub remark: Option<VerdictRemark>,
    /// Why it is refused, if it is.
    pub refused: Option<VerdictRefusal>,
}

/// The rotation key that made a signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SignedBy {
    /// The key, a `did:key`.
    pub key: String,
    /// Its index in the list that was in force, from 0, which has the highest authority.
    pub index: u16,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Changed {
    /// What changed ([`did_plc::Change::kind`]).
    pub what: &'static str,
    /// The change in words, with the values of before and after.
    pub text: String,
}

/// What is remarked on an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VerdictRemark {
    /// The remark's name ([`did_plc::history::Remark::kind`]).
    pub kind: &'static str,
    /// The remark.
    pub text: String,
}

/// Why an operation is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VerdictRefusal {
    /// The refusal's name.
    pub kind: &'static str,
    /// What was expected.
    pub expected: String,
}

impl OperationVerdict {
    /// On the entry of a history with this index.
    pub fn on(history: &History, index: usize) -> OperationVerdict {
        let entry = &history.entries[index];
        let received = &entry.received;
        let cid_of = |index: usize| history.entries[index].received.cid.to_string();
        let after =
            |at: Timestamp| (at.millis() - received.created_at.millis()) as f64 / MILLIS_PER_SECOND;
        let changes = history.changes(index).into_iter();
        OperationVerdict {
            cid: received.cid.to_string(),
            created_at: received.created_at.to_string(),
            sequence: received.sequence,
            received_at: received.received_at.map(|at| at.to_string()),
            received_after_seconds: received.received_at.map(after),
            signed_by: SignedBy::of(history, index),
            contestable_until: history.contestable(index).map(|by| by.until.to_string()),
            nullified: entry.nullified_by.is_some(),
            nullified_by: entry.nullified_by.map(cid_of),
            nullifies: entry.nullifies.iter().map(|index| cid_of(*index)).collect(),
            changes: changes
                .map(|change| Changed { what: change.kind(), text: change.to_string() })
                .collect(),
            remark: entry.remark().as_ref().map(VerdictRemark::of),
            refused: entry.refusal().map(VerdictRefusal::for_reason),
        }
    }

    /// On every entry, in order.
    pub fn all(history: &History) -> Vec<OperationVerdict> {
        (0..history.entries.len()).map(|index| OperationVerdict::on(history, index)).collect()
    }
}

impl SignedBy {
    fn of(history: &History, index: usize) -> Option<SignedBy> {
        let signer = history.entries[index].signer()?;
        Some(SignedBy { key: history.signer_key(index)?.to_owned(), index: signer })
    }
}

impl VerdictRemark {
    fn of(remark: &Remark) -> VerdictRemark {
        VerdictRemark { kind: remark.kind(), text: remark.to_string() }
    }
}

impl VerdictRefusal {
    fn for_reason(refusal: &Refusal) -> VerdictRefusal {
        VerdictRefusal { kind: refusal.kind(), expected: refusal.to_string() }
    }
}

const MILLIS_PER_SECOND: f64 = 1000.0;

#[cfg(test)]
mod tests {
    use super::*;
    use did_plc::chain::RECOVERY_WINDOW;
    use did_plc::signature::PlainVerifier;
    use plc_testkit::audit_log;
    use plc_testkit::builder::Story;

    #[test]
    fn a_theft_and_its_recovery_in_verdicts() {
        let mut story = Story::seeded(12);
        let thief = story.k256();
        let alice = story.create().handle("alice.example").accepted();
        let stolen = story.update(&alice).rotation_keys([&thief]).accepted();
        let recovery = story.recovery.clone();
        let back = story.after(&alice).signed_by(&recovery).handle("back.example").accepted();
        let body = audit_log(story.accepted(&alice));
        let did = alice.did.parse().unwrap();
        let history = History::of_audit_log(did, body.as_bytes(), &PlainVerifier).unwrap();
        let verdicts = OperationVerdict::all(&history);

        let json = serde_json::to_value(&verdicts[1]).unwrap();
        assert_eq!(json["nullifiedBy"], back.cid);
        assert_eq!(json["nullified"], true);
        assert_eq!(json["signedBy"]["index"], 1);
        assert_eq!(json["signedBy"]["key"], story.signing.did_key());
        assert_eq!(json["contestableUntil"], serde_json::Value::Null);
        assert_eq!(json["changes"][0]["what"], "rotation-keys");

        assert_eq!(verdicts[2].nullifies, [stolen.cid]);
        assert_eq!(verdicts[2].signed_by.as_ref().unwrap().index, 0);
        let words: Vec<&str> = verdicts[2].changes.iter().map(|change| &*change.text).collect();
        assert_eq!(words, ["handle from alice.example to back.example"]);
        // Nothing overrules a genesis, and the highest key's operation nothing but what it builds on.
        assert_eq!(verdicts[0].contestable_until, None);
        assert_eq!(verdicts[2].contestable_until, None);
        assert_eq!(verdicts[0].received_at, None);
    }

    #[test]
    fn a_spelling_that_is_not_the_specifications_is_remarked_on() {
        let mut story = Story::seeded(14);
        let alice = story.create().accepted();
        story.update(&alice).prev(&format!("{}=", alice.cid)).accepted();
        let body = audit_log(story.accepted(&alice));
        let did = alice.did.parse().unwrap();
        let history = History::of_audit_log(did, body.as_bytes(), &PlainVerifier).unwrap();
        let json = serde_json::to_value(OperationVerdict::all(&history)).unwrap();
        assert_eq!(json[0]["remark"], serde_json::Value::Null);
        assert_eq!(json[1]["remark"]["kind"], "prev-spelling");
        let text = json[1]["remark"]["text"].as_str().unwrap();
        assert!(text.ends_with(&format!("{}=", alice.cid)), "{text}");
    }

    #[test]
    fn what_builds_on_something_contestable_is_contestable_with_it() {
        let mut story = Story::seeded(13);
        let alice = story.create().accepted();
        let update = story.update(&alice).handle("a.example").accepted();
        let recovery = story.recovery.clone();
        story.update(&alice).signed_by(&recovery).handle("b.example").accepted();
        let body = audit_log(story.accepted(&alice));
        let did = alice.did.parse().unwrap();
        let history = History::of_audit_log(did, body.as_bytes(), &PlainVerifier).unwrap();
        let until: Vec<_> = OperationVerdict::all(&history)
            .into_iter()
            .map(|verdict| verdict.contestable_until)
            .collect();
        let ends = (update.created_at + RECOVERY_WINDOW).to_string();
        assert_eq!(until, [None, Some(ends.clone()), Some(ends)]);
    }
}
