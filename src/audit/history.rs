//! The log of one identity as somebody states it, judged from its first entry to its last.

use bytes::Bytes;
use serde_json::value::RawValue;

use crate::store::StoredOperation;
use did_plc::chain::{Acceptance, Proposed};
use did_plc::entry::{Received, Undecodable};
use did_plc::signature::Verifier;
use did_plc::{Chain, Change, Cid, Did, Operation, Refusal, Timestamp};

/// One entry of a log as it is stated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// The CID of the signed bytes.
    pub cid: Cid,
    /// The CID that was stated, when it is another.
    pub stated_cid: Option<String>,
    /// When the directory accepted it.
    pub created_at: Timestamp,
    /// The directory's sequence number, where it is stated.
    pub sequence: Option<i64>,
    /// The flag, where it is stated.
    pub nullified: Option<bool>,
    /// When it was received, where that is known.
    pub received_at: Option<Timestamp>,
    /// The signed DAG-CBOR.
    pub signed: Bytes,
}

impl From<Received> for Statement {
    fn from(received: Received) -> Statement {
        Statement {
            cid: received.cid,
            stated_cid: received.stated_cid,
            created_at: received.created_at,
            sequence: received.sequence,
            nullified: received.nullified,
            received_at: None,
            signed: received.signed.into(),
        }
    }
}

impl From<StoredOperation> for Statement {
    fn from(stored: StoredOperation) -> Statement {
        Statement {
            cid: stored.cid(),
            stated_cid: None,
            created_at: stored.created_at,
            sequence: stored.sequence,
            nullified: Some(stored.nullified_by.is_some()),
            // Zero is what read-through gives to what was never received.
            received_at: Some(stored.received_at).filter(|at| at.millis() > 0),
            signed: stored.signed,
        }
    }
}

/// A statement and what is to be made of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The entry as stated.
    pub stated: Statement,
    /// Who signed it and what follows from it, or why it is not accepted.
    pub verdict: Result<Acceptance, Refusal>,
    /// The accepted operation of this log that nullified it.
    pub nullified_by: Option<Cid>,
}

impl Step {
    /// Whether it is accepted and nothing in the log nullified it.
    pub fn is_in_force(&self) -> bool {
        self.verdict.is_ok() && self.nullified_by.is_none()
    }
}

/// An entry that could not be read at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// The CID as stated, if it was.
    pub cid: String,
    /// Why.
    pub refusal: Refusal,
}

/// A whole log of one identity, judged by the rules of did:plc alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    /// The identity.
    pub did: Did,
    /// Its entries in the order in which they were stated.
    pub steps: Vec<Step>,
    /// What could not be read.
    pub unreadable: Vec<Unreadable>,
}

/// The body is no audit log.
#[derive(Debug, thiserror::Error)]
#[error("not an audit log: {0}")]
pub struct NotALog(#[from] serde_json::Error);

impl History {
    /// Judges statements in their order.
    pub fn verify(
        did: Did,
        statements: impl IntoIterator<Item = Statement>,
        verifier: &dyn Verifier,
    ) -> History {
        let mut history = History { did, steps: Vec::new(), unreadable: Vec::new() };
        let mut chain = Chain::default();
        for stated in statements {
            let verdict = judge(did, &mut chain, &stated, verifier);
            if let Ok(acceptance) = &verdict {
                for step in &mut history.steps {
                    let at = step.stated.created_at;
                    if step.verdict.is_ok() && acceptance.nullifies.binary_search(&at).is_ok() {
                        step.nullified_by = Some(stated.cid);
                    }
                }
            }
            history.steps.push(Step { stated, verdict, nullified_by: None });
        }
        history
    }

    /// Judges lines or elements, whatever the envelope; those of other identities are left out.
    pub fn of_lines<'a>(
        did: Did,
        lines: impl IntoIterator<Item = &'a [u8]>,
        verifier: &dyn Verifier,
    ) -> History {
        let mut statements = Vec::new();
        let mut unreadable = Vec::new();
        for line in lines {
            match Received::decode(line) {
                Ok(received) if received.did == did => statements.push(Statement::from(received)),
                Ok(_) | Err(Undecodable::UnknownType { .. }) => {}
                Err(Undecodable::NotJson(reason)) => {
                    let refusal = Refusal::Malformed { reason };
                    unreadable.push(Unreadable { cid: String::new(), refusal });
                }
                Err(Undecodable::Refused { cid, refusal, .. }) => {
                    unreadable.push(Unreadable { cid, refusal });
                }
            }
        }
        History { unreadable, ..History::verify(did, statements, verifier) }
    }

    /// Judges the body of `/{did}/log/audit`.
    ///
    /// # Errors
    ///
    /// When it is not a JSON array.
    pub fn of_audit_log(
        did: Did,
        body: &[u8],
        verifier: &dyn Verifier,
    ) -> Result<History, NotALog> {
        let elements: Vec<&RawValue> = serde_json::from_slice(body)?;
        let lines = elements.iter().map(|element| element.get().as_bytes());
        Ok(History::of_lines(did, lines, verifier))
    }

    /// Judges what is stored of an identity.
    pub fn of_stored(did: Did, stored: Vec<StoredOperation>, verifier: &dyn Verifier) -> History {
        History::verify(did, stored.into_iter().map(Statement::from), verifier)
    }

    /// Whether nothing at all was stated.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.unreadable.is_empty()
    }

    /// The newest operation in force.
    pub fn head(&self) -> Option<&Step> {
        self.steps.iter().rev().find(|step| step.is_in_force())
    }

    /// The newest operation that is not stated to be nullified; where no flags are stated, the
    /// newest in force.
    pub fn stated_head(&self) -> Option<&Step> {
        let stands = |step: &&Step| step.stated.nullified.map_or(step.is_in_force(), |flag| !flag);
        self.steps.iter().rev().find(stands)
    }

    /// Until when an operation in force can be nullified, itself or with what it builds on.
    pub fn contestable_until(&self, step: &Step) -> Option<Timestamp> {
        let until = |step: &Step| step.verdict.as_ref().ok()?.contestable_until;
        let in_force = self.steps.iter().filter(|other| other.is_in_force());
        let up_to = in_force.filter(|other| other.stated.created_at <= step.stated.created_at);
        step.is_in_force().then(|| up_to.filter_map(until).max()).flatten()
    }

    /// The entry of this operation.
    pub fn find(&self, cid: &Cid) -> Option<&Step> {
        self.steps.iter().find(|step| step.stated.cid == *cid)
    }

    /// Whether everything was readable and accepted, and every stated flag is what it should be.
    pub fn is_clean(&self) -> bool {
        let agrees = |step: &Step| {
            let nullified = step.nullified_by.is_some();
            step.verdict.is_ok() && step.stated.nullified.is_none_or(|flag| flag == nullified)
        };
        self.unreadable.is_empty() && self.steps.iter().all(agrees)
    }

    /// What a step changed of what its `prev` left; empty when it cannot be read.
    pub fn changes(&self, step: &Step) -> Vec<Change> {
        let Ok(operation) = Operation::read(&step.stated.signed) else { return Vec::new() };
        let prev = operation.prev().and_then(|prev| prev.parse().ok());
        let prev = prev.and_then(|prev| self.find(&prev));
        let prev = prev.and_then(|prev| Operation::read(&prev.stated.signed).ok());
        Change::between(prev.as_ref(), &operation)
    }

    /// What a step nullified, in order.
    pub fn nullified_steps(&self, step: &Step) -> Vec<Cid> {
        let by_it = |other: &&Step| other.nullified_by == Some(step.stated.cid);
        self.steps.iter().filter(by_it).map(|other| other.stated.cid).collect()
    }
}

fn judge(
    did: Did,
    chain: &mut Chain,
    stated: &Statement,
    verifier: &dyn Verifier,
) -> Result<Acceptance, Refusal> {
    if let Some(other) = &stated.stated_cid {
        return Err(Refusal::CidMismatch { stated: other.clone(), computed: stated.cid });
    }
    let operation = Operation::read(&stated.signed)
        .map_err(|error| Refusal::Malformed { reason: error.to_string() })?;
    let proposed = Proposed {
        did,
        cid: stated.cid,
        created_at: stated.created_at,
        sequence: stated.sequence,
        operation,
    };
    let acceptance = chain.judge(&proposed, verifier)?;
    chain.append(&proposed, &acceptance);
    Ok(acceptance)
}

#[cfg(test)]
mod tests {
    use super::*;
    use did_plc::chain::RECOVERY_WINDOW;
    use did_plc::signature::PlainVerifier;
    use plc_testkit::audit_log;
    use plc_testkit::builder::Story;

    #[test]
    fn a_recovery_is_told_from_both_sides() {
        let mut story = Story::seeded(8);
        let thief = story.k256();
        let alice = story.create().accepted();
        let stolen = story.update(&alice).rotation_keys([&thief]).accepted();
        let recovery = story.recovery.clone();
        let recovered = story.after(&alice).signed_by(&recovery).accepted();

        let did = alice.did.parse().unwrap();
        let body = audit_log(story.accepted(&alice));
        let history = History::of_audit_log(did, body.as_bytes(), &PlainVerifier).unwrap();
        assert!(history.is_clean());
        assert_eq!(history.head().unwrap().stated.cid.to_string(), recovered.cid);
        let [_, theft, rescue] = &history.steps[..] else { panic!("three steps") };
        assert_eq!(theft.nullified_by, Some(recovered.cid.parse().unwrap()));
        assert_eq!(history.nullified_steps(rescue), [stolen.cid.parse().unwrap()]);
        let theft = theft.verdict.as_ref().unwrap();
        assert_eq!((theft.signer, &*theft.signer_key), (1, story.signing.did_key()));
        assert_eq!(theft.contestable_until, Some(stolen.created_at + RECOVERY_WINDOW));
        assert_eq!(rescue.verdict.as_ref().unwrap().contestable_until, None);
    }

    #[test]
    fn what_cannot_be_read_or_accepted_is_not_clean() {
        let mut story = Story::seeded(9);
        let alice = story.create().accepted();
        story.update(&alice).accepted();
        let did: Did = alice.did.parse().unwrap();
        let lines = plc_testkit::lines(story.log(), plc_testkit::Generated::sequenced_line);
        let lines: Vec<&[u8]> = lines.lines().map(str::as_bytes).collect();
        assert!(History::of_lines(did, lines.clone(), &PlainVerifier).is_clean());
        let orphan = History::of_lines(did, lines[1..].iter().copied(), &PlainVerifier);
        assert_eq!(orphan.steps[0].verdict.as_ref().unwrap_err().kind(), "unknown-did");
        let broken = History::of_lines(did, [lines[0], b"{\"did\""], &PlainVerifier);
        assert_eq!(broken.unreadable.len(), 1);
        assert!(History::of_audit_log(did, b"<html>", &PlainVerifier).is_err());
    }
}
