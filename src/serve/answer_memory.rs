//! The memory of answers that clients have not read yet: how much of it there is, and who goes when
//! it is too much.
//!
//! A client may be slow for as long as there is room. When there is none the connection goes whose
//! answer has waited for the longest: clients that read make room by themselves, so that those
//! that do not read cannot keep them out.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::HttpBody;
use axum::response::IntoResponse;
use bytes::Bytes;
use http_body_util::BodyExt;
use tokio_util::sync::CancellationToken;

use super::answer::Answer;
use super::error::ServeError;

/// Bytes of answers that are held for all clients together: some 300 full pages of the export.
const CAPACITY: usize = 256 << 20;
/// Answers up to this many bytes are not counted, which keeps this away from lookups: at the usual
/// limit of connections they are no more than the same again.
const SMALL: u64 = 16 << 10;

/// The answers that are held for clients.
#[derive(Debug)]
pub struct AnswerMemory {
    held: Mutex<Held>,
    capacity: usize,
}

#[derive(Debug, Default)]
struct Held {
    /// Bytes of `answers`.
    bytes: usize,
    /// Answers that were held since the start.
    count: u64,
    /// By number, the oldest first: the bytes, and how the connection is cut.
    answers: BTreeMap<u64, (usize, CancellationToken)>,
}

/// A body that is held for a client, until the last of it is written or the connection is gone.
struct HeldBody {
    bytes: Bytes,
    number: u64,
    memory: Arc<AnswerMemory>,
}

impl AnswerMemory {
    /// Room for what is held usually.
    pub fn new() -> AnswerMemory {
        AnswerMemory::with_capacity(CAPACITY)
    }

    fn with_capacity(bytes: usize) -> AnswerMemory {
        AnswerMemory { held: Mutex::default(), capacity: bytes }
    }

    /// Holds an answer for the client of a connection, and cuts those that have waited for the
    /// longest when that is too much.
    pub async fn hold(self: &Arc<AnswerMemory>, answer: Answer, cut: &CancellationToken) -> Answer {
        if answer.body().size_hint().upper().is_some_and(|bytes| bytes <= SMALL) {
            return answer;
        }
        let (parts, body) = answer.into_parts();
        match body.collect().await {
            Ok(body) => Answer::from_parts(parts, self.hold_body(body.to_bytes(), cut).into()),
            Err(error) => {
                tracing::error!(%error, "a body in memory could not be read");
                ServeError::Bug.into_response()
            }
        }
    }

    fn hold_body(self: &Arc<AnswerMemory>, bytes: Bytes, cut: &CancellationToken) -> Bytes {
        let mut held = self.lock();
        let number = held.count;
        held.count += 1;
        held.bytes += bytes.len();
        held.answers.insert(number, (bytes.len(), cut.clone()));
        // The newest is sent however large it is.
        while held.bytes > self.capacity && held.answers.len() > 1 {
            let Some((_, (bytes, cut))) = held.answers.pop_first() else { break };
            held.bytes -= bytes;
            cut.cancel();
            metrics::counter!("plc_http_refused_total", "limit" => "untaken").increment(1);
        }
        Bytes::from_owner(HeldBody { bytes, number, memory: Arc::clone(self) })
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        // Nothing in this module can panic between two changes of what is held.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsRef<[u8]> for HeldBody {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for HeldBody {
    fn drop(&mut self) {
        let mut held = self.memory.lock();
        // It is not there when the connection was cut.
        if let Some((bytes, _)) = held.answers.remove(&self.number) {
            held.bytes -= bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_waited_for_the_longest_goes() {
        let memory = Arc::new(AnswerMemory::with_capacity(250));
        let cuts: [CancellationToken; 5] = Default::default();
        let is_cut = || cuts.each_ref().map(CancellationToken::is_cancelled);
        let hold = |number: usize| memory.hold_body(vec![0; 100].into(), &cuts[number]);
        let first = hold(0);
        let second = hold(1);
        drop(second);
        let _third = hold(2);
        assert_eq!(is_cut(), [false; 5]);
        let fourth = hold(3);
        assert_eq!(is_cut(), [true, false, false, false, false]);
        // Gone with its connection: that makes no more room than there was.
        drop(first);
        assert_eq!(memory.lock().bytes, 200);
        drop(fourth);
        let _fifth = hold(4);
        assert_eq!(is_cut(), [true, false, false, false, false]);
        assert_eq!(memory.lock().bytes, 200);
    }
}
