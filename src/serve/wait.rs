//! Read after write: a request that names an operation waits until it is in the log.

use std::time::Duration;

use http::HeaderMap;
use tokio::time::{Instant, timeout, timeout_at};

use did_plc::{Cid, Did};

use crate::reads::Picture;
use crate::store::StoredOperation;

use super::error::ServeError;
use super::extract::RequestHead;
use super::header_list::elements;
use super::query::{decimal, parameter};
use super::state::Server;

/// How long is waited when the client does not say: an operation is usually here within a
/// second of its acceptance.
const DEFAULT_WAIT: u64 = 5;
/// The longest wait, in seconds: less than what proxies usually allow an answer to take.
const LONGEST_WAIT: u64 = 30;
/// What has no number comes without a message: it is looked for so often while nothing else comes.
const LOOK: Duration = Duration::from_secs(1);
/// Bytes of messages that are looked at in one turn.
const TURN: usize = 1 << 20;

/// Waits for the operation that the parameter `cid` names, if it is given, for as long as the
/// header `Prefer: wait=SECONDS` allows. Where only a standby lacks it, the primary is read from then on.
///
/// # Errors
///
/// [`ServeError::NotYet`] when it has not come by then.
pub async fn for_operation(
    server: &Server,
    log: &Picture<'_>,
    head: &RequestHead,
    did: Did,
) -> Result<(), ServeError> {
    let Some(text) = parameter(&head.query, "cid")? else { return Ok(()) };
    let cid: Cid = text.parse().map_err(|_| ServeError::InvalidParameter("cid"))?;
    // Boxed, as what is seldom asked for: a request is moved about with all that it may keep.
    Box::pin(for_named(server, log, head, did, cid)).await
}

async fn for_named(
    server: &Server,
    log: &Picture<'_>,
    head: &RequestHead,
    did: Did,
    cid: Cid,
) -> Result<(), ServeError> {
    // Most operations that are asked for are here already: no place is needed to see that.
    if finds(log, did, cid).await? {
        return Ok(());
    }
    let seconds = patience(&head.headers).as_secs();
    let _own_place = server.limiter.wait(head.client).map_err(|_| ServeError::TooManyOwnWaiting)?;
    let Ok(_place) = server.waiting_places.try_acquire() else {
        return Err(ServeError::TooManyWaiting);
    };
    let deadline = Instant::now() + Duration::from_secs(seconds);
    let waited = tokio::select! {
        arrived = timeout_at(deadline, arrival(server, did, cid)) => match arrived {
            Ok(arrived) => arrived,
            Err(_) => Err(not_yet(server, did, cid, seconds)),
        },
        () = server.shutdown.cancelled() => Err(not_yet(server, did, cid, seconds)),
    };
    // What was committed meanwhile is there for sure.
    log.turn_to_primary();
    waited
}

fn not_yet(server: &Server, did: Did, cid: Cid, seconds: u64) -> ServeError {
    ServeError::NotYet { did, cid, seconds, sequence: server.state.status.sequence() }
}

/// Ends when the operation is in the store, which is the primary. It does not end by itself where that does not happen.
/// Woken by each commit, and asks the store when the operation was in it, and now and then.
pub async fn arrival(server: &Server, did: Did, cid: Cid) -> Result<(), ServeError> {
    let name = cid.to_ascii();
    let finder = memchr::memmem::Finder::new(&name);
    loop {
        // In this order: what is committed in between is in both.
        let mut subscription = server.state.feed.subscribe();
        if is_among(&server.state.store.history(&did).await?, cid) {
            return Ok(());
        }
        loop {
            if timeout(LOOK, subscription.wait()).await.is_err() {
                break;
            }
            match subscription.take(TURN) {
                Ok(messages) => {
                    if messages.iter().any(|new| finder.find(new.text.as_bytes()).is_some()) {
                        break;
                    }
                }
                // Too slow: what was missed may have been it.
                Err(_) => break,
            }
        }
    }
}

/// Whether the operation is in the log. What a standby lacks is looked for at the primary, which is read from then on.
pub async fn finds(log: &Picture<'_>, did: Did, cid: Cid) -> Result<bool, ServeError> {
    if is_among(&log.history(&did).await?, cid) {
        return Ok(true);
    }
    if !log.is_of_standby() {
        return Ok(false);
    }
    log.turn_to_primary();
    Ok(is_among(&log.history(&did).await?, cid))
}

fn is_among(history: &[StoredOperation], cid: Cid) -> bool {
    history.iter().any(|operation| operation.cid() == cid)
}

/// How long an operation is waited for: `Prefer: wait=SECONDS` (RFC 7240), within bounds.
pub fn patience(request: &HeaderMap) -> Duration {
    let wishes = request.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
    let wait = wishes.flat_map(|wishes| elements(wishes, ',')).find_map(|wish| {
        // Parameters may follow, of which this one has none.
        let (name, value) = elements(wish, ';').next()?.split_once('=')?;
        let is_wait = name.trim().eq_ignore_ascii_case("wait");
        decimal(value.trim().trim_matches('"')).filter(|_| is_wait)
    });
    let seconds = wait.map_or(DEFAULT_WAIT, i64::unsigned_abs).min(LONGEST_WAIT);
    Duration::from_secs(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_is_the_clients_within_bounds() {
        for (sent, seconds) in [
            (None, 5),
            (Some("wait=2"), 2),
            (Some("respond-async, wait=12"), 12),
            (Some("Wait = \"3\""), 3),
            (Some("wait=10; x=y"), 10),
            (Some("x=\"a, wait=3\"; y=z, wait=4;q"), 4),
            (Some("wait=100"), 30),
            (Some("wait=0"), 0),
            (Some("wait=soon"), 5),
            (Some("return=minimal"), 5),
        ] {
            let mut request = HeaderMap::new();
            if let Some(sent) = sent {
                request.insert("prefer", sent.parse().unwrap());
            }
            assert_eq!(patience(&request).as_secs(), seconds, "{sent:?}");
        }
    }
}
