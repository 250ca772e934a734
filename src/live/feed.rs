//! The live feed: the latest operations as stream messages, encoded once for all clients.
//!
//! One ring in memory is shared by all subscribers, each of which only knows its own place in
//! it. A slow subscriber therefore costs nothing: it is found to lag once the ring has moved on,
//! and nobody waits for it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::extract::ws::Utf8Bytes;
use tokio::sync::{Notify, watch};

use crate::store::StoredOperation;
use did_plc::Cid;
use did_plc::operation::Malformed;

/// Bytes of messages that the ring holds unless told otherwise: at the size of a usual operation
/// some 25,000 messages, two minutes of 200 a second.
const CAPACITY: usize = 16 << 20;

/// One operation as `/export/stream` sends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The operation's sequence number. Not always above that of the message before: an
    /// operation that was accepted late has its own.
    pub sequence: i64,
    /// Its CID.
    pub cid: Cid,
    /// The JSON. Clones share it.
    pub text: Utf8Bytes,
}

impl Message {
    /// Encodes an operation; none when it has no sequence number.
    ///
    /// # Errors
    ///
    /// When its signed bytes are damaged.
    pub fn encode(operation: &StoredOperation) -> Result<Option<Message>, Malformed> {
        let Some(sequence) = operation.sequence else { return Ok(None) };
        let mut text = Vec::with_capacity(2 * operation.signed.len());
        let cid = operation.cid();
        operation.logged(&cid).write_stream(&mut text)?;
        let text = Utf8Bytes::try_from(text).map_err(|error| Malformed::new(error.to_string()))?;
        Ok(Some(Message { sequence, cid, text }))
    }
}

/// The subscriber was too slow: messages that it has not taken are gone from the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the subscriber is too slow for the feed")]
pub struct Lagged;

/// Tells subscribers of new operations. Shared as an `Arc`.
#[derive(Debug)]
pub struct Feed {
    ring: Mutex<Ring>,
    /// The ring's end, to wait for.
    end: watch::Sender<u64>,
    /// The last look that has ended, to wait for: all that it has found is published.
    ended: watch::Sender<u64>,
    /// Asks for a look.
    wanted: Notify,
    capacity: usize,
}

#[derive(Debug, Default)]
struct Ring {
    messages: VecDeque<Message>,
    /// Bytes of text in `messages`.
    bytes: usize,
    /// Messages that were dropped from the front since the start, which makes a message's place
    /// its index plus this.
    dropped: u64,
    subscribers: usize,
    /// The last look at the store that has begun.
    begun: u64,
}

impl Ring {
    fn end(&self) -> u64 {
        self.dropped + self.messages.len() as u64
    }
}

impl Feed {
    /// A feed that holds as many messages as most readers could ever lag.
    pub fn new() -> Feed {
        Feed::with_capacity(CAPACITY)
    }

    /// A feed that holds at most this many bytes of messages (and always the newest one).
    pub fn with_capacity(bytes: usize) -> Feed {
        Feed {
            ring: Mutex::default(),
            end: watch::Sender::new(0),
            ended: watch::Sender::new(0),
            wanted: Notify::new(),
            capacity: bytes,
        }
    }

    /// Asks for a look at the store: something was committed.
    pub fn wake(&self) {
        self.wanted.notify_one();
    }

    /// Waits until a look is asked for.
    pub(super) async fn woken(&self) {
        self.wanted.notified().await;
    }

    /// To be called before it is looked what was committed: everything that anybody has read from the store before is found by
    /// this look, or was by one before. One is under way at a time.
    pub fn looking(&self) -> Looking<'_> {
        let mut ring = self.lock();
        ring.begun += 1;
        Looking { feed: self, number: ring.begun }
    }

    /// Waits until everything that is in the store now is published.
    pub async fn settled(&self) {
        // What is under way may have begun too early.
        let next = self.lock().begun + 1;
        self.wake();
        // The sender is here: it cannot be gone.
        let _ = self.ended.subscribe().wait_for(|&ended| ended >= next).await;
    }

    /// Sends all operations of a commit, in the order of their sequence numbers: a client
    /// that goes away in between comes back with the last one. Those without a number are not for
    /// the stream.
    ///
    /// Only one task publishes, which keeps the order.
    pub fn publish<'a>(&self, operations: impl IntoIterator<Item = &'a StoredOperation>) {
        // Whoever subscribes from here on finds these operations in the store.
        if self.lock().subscribers == 0 {
            return;
        }
        let messages = operations.into_iter().filter_map(|operation| {
            Message::encode(operation).unwrap_or_else(|error| {
                tracing::error!(did = %operation.did, %error, "cannot be sent to stream clients");
                None
            })
        });
        let mut messages: Vec<Message> = messages.collect();
        if messages.is_empty() {
            return;
        }
        messages.sort_by_key(|message| message.sequence);
        let mut ring = self.lock();
        ring.bytes += messages.iter().map(|message| message.text.len()).sum::<usize>();
        ring.messages.extend(messages);
        while ring.bytes > self.capacity && ring.messages.len() > 1 {
            let Some(message) = ring.messages.pop_front() else { break };
            ring.bytes -= message.text.len();
            ring.dropped += 1;
        }
        let end = ring.end();
        drop(ring);
        self.end.send_replace(end);
    }

    /// Makes every subscriber lag: there is something that was committed and never published. Who
    /// comes back with the last number that it has finds it in the store.
    pub fn interrupt(&self) {
        let mut ring = self.lock();
        let end = ring.end() + 1;
        let Ring { subscribers, begun, .. } = *ring;
        *ring = Ring { dropped: end, subscribers, begun, ..Ring::default() };
        drop(ring);
        self.end.send_replace(end);
    }

    /// Subscribes to everything that is published from now on.
    pub fn subscribe(self: &Arc<Feed>) -> Subscription {
        let mut ring = self.lock();
        ring.subscribers += 1;
        let next = ring.end();
        drop(ring);
        Subscription { feed: Arc::clone(self), next, end: self.end.subscribe() }
    }

    /// Subscribers now.
    pub fn subscribers(&self) -> usize {
        self.lock().subscribers
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        // Nothing in this module can panic between two changes of the ring.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Feed {
    fn default() -> Feed {
        Feed::new()
    }
}

/// A look at the store that is under way.
#[derive(Debug)]
#[must_use]
pub struct Looking<'a> {
    feed: &'a Feed,
    number: u64,
}

impl Looking<'_> {
    /// All that it has found is published. One that is dropped has failed, and does not count.
    pub fn done(self) {
        self.feed.ended.send_replace(self.number);
    }
}

/// One subscriber's place in the feed.
#[derive(Debug)]
pub struct Subscription {
    feed: Arc<Feed>,
    next: u64,
    end: watch::Receiver<u64>,
}

impl Subscription {
    /// Waits until there is something to take (or to have missed). May be dropped and called
    /// again.
    pub async fn wait(&mut self) {
        let next = self.next;
        // The sender lives in the feed that this subscription holds: it cannot be gone.
        let _ = self.end.wait_for(|&end| end > next).await;
    }

    /// Takes what has been published since the last time, up to about `bytes` of text and at
    /// least one message when there is one.
    ///
    /// # Errors
    ///
    /// [`Lagged`] when some of it is gone.
    pub fn take(&mut self, bytes: usize) -> Result<Vec<Message>, Lagged> {
        let ring = self.feed.lock();
        let from = self.next.checked_sub(ring.dropped).ok_or(Lagged)?;
        let mut taken = Vec::new();
        let mut size = 0;
        for message in ring.messages.iter().skip(usize::try_from(from).map_err(|_| Lagged)?) {
            if size > 0 && size + message.text.len() > bytes {
                break;
            }
            size += message.text.len();
            taken.push(message.clone());
        }
        self.next += taken.len() as u64;
        Ok(taken)
    }

    /// Number of the look that finds, if none before it does, whatever was read from the store until now.
    pub fn next_look(&self) -> u64 {
        self.feed.lock().begun + 1
    }

    /// Number of the last look of which nothing will be taken any more; none while there is
    /// something to take.
    pub fn done(&self) -> Option<u64> {
        // In this order: what was published before a look ended is then in the ring.
        let ended = *self.feed.ended.borrow();
        (self.next == self.feed.lock().end()).then_some(ended)
    }

    /// Whether something that was not taken is gone already.
    pub fn lags(&self) -> bool {
        self.next < self.feed.lock().dropped
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut ring = self.feed.lock();
        ring.subscribers -= 1;
        // Nobody is left who could take what is in the ring.
        if ring.subscribers == 0 {
            ring.dropped = ring.end();
            ring.messages = VecDeque::new();
            ring.bytes = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use did_plc::{Did, Timestamp};

    /// Operations with these numbers; the signed bytes are a tombstone's.
    fn operations(sequences: &[i64]) -> Vec<StoredOperation> {
        let signed =
            did_plc::json::read_operation(r#"{"sig":"s","prev":"p","type":"plc_tombstone"}"#)
                .unwrap();
        let operation = |&sequence| StoredOperation {
            did: Did::from_bytes([7; 15]),
            created_at: Timestamp::from_millis(sequence),
            sequence: Some(sequence),
            signed: signed.clone().into(),
            signer: 0,
            nullified_by: None,
            received_at: Timestamp::from_millis(0),
        };
        sequences.iter().map(operation).collect()
    }

    fn numbers(messages: &[Message]) -> Vec<i64> {
        messages.iter().map(|message| message.sequence).collect()
    }

    #[tokio::test]
    async fn an_interruption_is_seen_by_who_was_there_and_nobody_else() {
        let feed = Arc::new(Feed::new());
        let mut waiting = feed.subscribe();
        feed.publish(&operations(&[1]));
        assert_eq!(numbers(&waiting.take(usize::MAX).unwrap()), [1]);
        feed.interrupt();
        waiting.wait().await;
        assert!(waiting.lags());
        assert_eq!(waiting.take(usize::MAX), Err(Lagged));
        let mut later = feed.subscribe();
        assert!(!later.lags());
        feed.publish(&operations(&[2]));
        assert_eq!(numbers(&later.take(usize::MAX).unwrap()), [2]);
    }

    #[tokio::test]
    async fn every_subscriber_takes_what_came_after_it() {
        let feed = Arc::new(Feed::new());
        feed.publish(&operations(&[1]));
        let mut first = feed.subscribe();
        feed.publish(&operations(&[3, 2]));
        let mut second = feed.subscribe();
        feed.publish(&operations(&[4]));
        first.wait().await;
        assert_eq!(numbers(&first.take(usize::MAX).unwrap()), [2, 3, 4]);
        assert_eq!(numbers(&second.take(usize::MAX).unwrap()), [4]);
        assert_eq!(numbers(&second.take(usize::MAX).unwrap()), [0; 0]);
    }

    #[tokio::test]
    async fn a_look_is_done_when_it_has_ended_and_all_of_it_was_taken() {
        let feed = Arc::new(Feed::new());
        let mut subscription = feed.subscribe();
        assert_eq!((subscription.next_look(), subscription.done()), (1, Some(0)));
        let mut settled = Box::pin(feed.settled());
        assert!(futures::FutureExt::now_or_never(&mut settled).is_none());
        feed.woken().await;
        let looking = feed.looking();
        // What is read now may be of a commit that comes after what this one sees.
        assert_eq!((subscription.next_look(), subscription.done()), (2, Some(0)));
        feed.publish(&operations(&[1, 2]));
        assert!(futures::FutureExt::now_or_never(&mut settled).is_none());
        looking.done();
        settled.await;
        subscription.take(1).unwrap();
        assert_eq!(subscription.done(), None);
        subscription.take(1).unwrap();
        assert_eq!(subscription.done(), Some(1));
        // One that fails does not count.
        drop(feed.looking());
        assert_eq!(subscription.done(), Some(1));
        feed.looking().done();
        assert_eq!(subscription.done(), Some(3));
    }

    #[tokio::test]
    async fn a_turn_is_bounded_and_never_empty() {
        let feed = Arc::new(Feed::new());
        let mut subscription = feed.subscribe();
        feed.publish(&operations(&[1, 2, 3]));
        assert_eq!(numbers(&subscription.take(1).unwrap()), [1]);
        subscription.wait().await;
        let two = subscription.feed.lock().messages[0].text.len() * 2;
        assert_eq!(numbers(&subscription.take(two).unwrap()), [2, 3]);
    }

    #[test]
    fn the_ring_is_bounded_and_tells_who_lags() {
        let feed = Arc::new(Feed::with_capacity(500));
        let mut subscription = feed.subscribe();
        for number in 1..100 {
            feed.publish(&operations(&[number]));
        }
        assert!(feed.lock().bytes <= 500);
        assert!(subscription.lags());
        assert_eq!(subscription.take(usize::MAX), Err(Lagged));
    }

    #[test]
    fn nothing_is_kept_for_nobody() {
        let feed = Arc::new(Feed::new());
        let subscription = feed.subscribe();
        feed.publish(&operations(&[1]));
        drop(subscription);
        feed.publish(&operations(&[2]));
        assert_eq!(feed.lock().messages.len(), 0);
        let mut next = feed.subscribe();
        feed.publish(&operations(&[3]));
        assert_eq!(numbers(&next.take(usize::MAX).unwrap()), [3]);
    }

    #[test]
    fn a_message_is_what_the_directory_sends() {
        let message = Message::encode(&operations(&[9])[0]).unwrap().unwrap();
        assert_eq!(
            message.text.as_str(),
            "{\"seq\":9,\"type\":\"sequenced_op\",\"did\":\"did:plc:a4dqobyha4dqobyha4dqobyh\",\
             \"operation\":{\"sig\":\"s\",\"prev\":\"p\",\"type\":\"plc_tombstone\"},\
             \"cid\":\"bafyreihwenkiha6rmtiyzaue5w73uefe5lq2rvm6r7wm3p7bnb5ybirt7y\",\
             \"createdAt\":\"1970-01-01T00:00:00.009Z\"}"
        );
    }
}
