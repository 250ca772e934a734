//! Whether answers have what they state.

use std::sync::Arc;

use plc_testkit::telling::{ON_ITS_WAY, Telling};

use crate::clients::lookups::{ByStatus, Judge, Verdict};
use crate::clients::questions::{Expected, Question};
use crate::http::Answer;

/// Holds against each answer about an identity what the upstream had said of it.
pub struct ByPromise(pub Arc<Telling>);

impl Judge for ByPromise {
    fn judge(&self, question: &Question, answer: &Answer) -> Verdict {
        let Some(did) = &question.did else { return ByStatus.judge(question, answer) };
        let stated = &answer.stated;
        let sequence = stated.sequence.unwrap_or(0);
        let promised = || self.0.promised(did, sequence, stated.as_of, ON_ITS_WAY);
        let held = match (answer.status, question.expected) {
            (200, _) => {
                stated.etag.as_deref().and_then(head).and_then(|cid| self.0.held_with(did, cid))
            }
            // It is not there, and may not have to be.
            (404, Expected::Found) => Some(0),
            _ => return ByStatus.judge(question, answer),
        };
        let Some(held) = held else {
            return Verdict::Wrong(format!("nobody has said what {:?} names", stated.etag));
        };
        let promised = promised();
        if held >= promised {
            return Verdict::Right;
        }
        Verdict::Older(format!(
            "{held} operations of {promised} at {sequence}, {:?}",
            stated.as_of.map(|as_of| as_of.to_string())
        ))
    }
}

/// The CID of the newest operation of an identity, which its entity tags name: `W/"doc-bafy…"`.
fn head(etag: &str) -> Option<&str> {
    etag.split('-').nth(1).map(|cid| cid.trim_end_matches('"'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Stated;

    #[test]
    fn an_answer_that_lacks_what_it_states_is_found_out() {
        let told = Arc::new(Telling::default());
        told.note("alice", "bafy1", 1);
        told.note("bob", "bafy2", 2);
        told.note("alice", "bafy3", 3);
        let judge = ByPromise(told);
        let asked = |status, sequence, etag: Option<&str>| {
            let (path, did) = ("/alice".to_owned(), Some("alice".into()));
            let question = Question { path, expected: Expected::Found, did };
            let etag = etag.map(Box::from);
            let stated = Stated { sequence: Some(sequence), as_of: None, etag };
            judge.judge(&question, &Answer { status, length: 0, says_when: false, stated })
        };
        assert_eq!(asked(200, 2, Some("W/\"doc-bafy1\"")), Verdict::Right);
        assert_eq!(asked(200, 3, Some("W/\"audit-bafy3-2-2\"")), Verdict::Right);
        assert_eq!(asked(404, 0, None), Verdict::Right);
        for (status, sequence, etag) in [(200, 3, Some("W/\"doc-bafy1\"")), (404, 1, None)] {
            let verdict = asked(status, sequence, etag);
            assert!(matches!(verdict, Verdict::Older(_)), "{verdict:?}");
        }
        for (status, etag) in [(200, Some("W/\"doc-bafy2\"")), (200, None), (500, None)] {
            let verdict = asked(status, 1, etag);
            assert!(matches!(verdict, Verdict::Wrong(_)), "{verdict:?}");
        }
    }
}
