//! A history as programs read it: for every operation who signed it, what became of it, and what
//! it changed.

use serde::Serialize;

use super::history::{History, Step};
use did_plc::{Cid, Timestamp};

/// What is to be said of one operation of a history.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// The operation.
    pub cid: String,
    /// When the directory accepted it.
    pub created_at: String,
    /// The directory's sequence number.
    pub sequence: Option<i64>,
    /// When we received it.
    pub received_at: Option<String>,
    /// How long after `createdAt` that was, in seconds.
    pub received_after_seconds: Option<f64>,
    /// Who signed it; null when it is refused.
    pub signed_by: Option<SignedBy>,
    /// Until when a rotation key of higher authority can still overrule it, or what it builds on and
    /// with that it; null for a genesis, when no such key is there, when it was overruled, and when
    /// it is refused.
    pub contestable_until: Option<String>,
    /// Whether it was nullified.
    pub nullified: bool,
    /// By which operation.
    pub nullified_by: Option<String>,
    /// What it nullified.
    pub nullifies: Vec<String>,
    /// What it changed of what its `prev` left.
    pub changes: Vec<Changed>,
    /// Why it is refused, if it is.
    pub refused: Option<Refused>,
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
    /// In words.
    pub text: String,
}

/// Why an operation is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refused {
    /// The refusal's name.
    pub kind: &'static str,
    /// What was expected.
    pub expected: String,
}

impl Verdict {
    /// On a step of this history.
    pub fn on(history: &History, step: &Step) -> Verdict {
        let stated = &step.stated;
        let acceptance = step.verdict.as_ref().ok();
        let text = |cid: Cid| cid.to_string();
        let contestable_until = history.contestable_until(step);
        let after = |received: Timestamp| {
            (received.millis() - stated.created_at.millis()) as f64 / MILLIS_PER_SECOND
        };
        let changes = history.changes(step).into_iter();
        Verdict {
            cid: text(stated.cid),
            created_at: stated.created_at.to_string(),
            sequence: stated.sequence,
            received_at: stated.received_at.map(|at| at.to_string()),
            received_after_seconds: stated.received_at.map(after),
            signed_by: acceptance.map(|acceptance| SignedBy {
                key: acceptance.signer_key.to_string(),
                index: acceptance.signer,
            }),
            contestable_until: contestable_until.map(|until| until.to_string()),
            nullified: step.nullified_by.is_some(),
            nullified_by: step.nullified_by.map(text),
            nullifies: history.nullified_steps(step).into_iter().map(text).collect(),
            changes: changes
                .map(|change| Changed { what: change.kind(), text: change.to_string() })
                .collect(),
            refused: step
                .verdict
                .as_ref()
                .err()
                .map(|refusal| Refused { kind: refusal.kind(), expected: refusal.to_string() }),
        }
    }

    /// On every step, in order.
    pub fn all(history: &History) -> Vec<Verdict> {
        history.steps.iter().map(|step| Verdict::on(history, step)).collect()
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
        let verdicts = Verdict::all(&history);

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
    fn what_builds_on_something_contestable_is_contestable_with_it() {
        let mut story = Story::seeded(13);
        let alice = story.create().accepted();
        let update = story.update(&alice).handle("a.example").accepted();
        let recovery = story.recovery.clone();
        story.update(&alice).signed_by(&recovery).handle("b.example").accepted();
        let body = audit_log(story.accepted(&alice));
        let did = alice.did.parse().unwrap();
        let history = History::of_audit_log(did, body.as_bytes(), &PlainVerifier).unwrap();
        let until: Vec<_> =
            Verdict::all(&history).into_iter().map(|verdict| verdict.contestable_until).collect();
        let ends = (update.created_at + RECOVERY_WINDOW).to_string();
        assert_eq!(until, [None, Some(ends.clone()), Some(ends)]);
    }
}
