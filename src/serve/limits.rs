//! How much one client may ask for, how much all of them, and how much a request may be.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName};
use lru::LruCache;

use super::answer::{seconds, value};
use super::client_address::{Proxies, client_key};

/// Stream clients at a time, of all addresses: each costs some 30 kB and a file descriptor, and up to 200 kB (a turn,
/// what the WebSocket gathers, the numbers of what it was sent) while it catches up or is slow:
/// less than a gigabyte for all of them.
pub const MAX_STREAM_CLIENTS: usize = 4_096;
/// Requests that wait for an operation at a time. Each costs a look at every new operation.
pub const MAX_WAITING: usize = 1000;
/// Histories that are judged at a time. A long one keeps a core busy for a second, and whoever asks
/// for many is not to have all of them: the follower verifies too.
pub const MAX_JUDGED: usize = 2;
/// Clients that are remembered: some 100 bytes each. The one that was not heard of for the longest
/// is forgotten, which gives it its whole allowance again. The compiler sees that
/// it is not zero.
const MAX_CLIENTS: NonZeroUsize = NonZeroUsize::new(1 << 16).unwrap();
/// Requests of one client that wait for an operation at a time: one does not take all places, and few
/// of those behind one address have just written something.
pub const MAX_OWN_WAITING: NonZeroU32 = NonZeroU32::new(50).unwrap();
/// What the rate is counted in.
const WINDOW: Duration = Duration::from_secs(60);

/// The limits of the server; what is zero is not limited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Requests a minute of one client, on the average.
    pub requests_per_minute: u32,
    /// Requests that a client who was silent may send at once.
    pub burst: u32,
    /// Stream clients from one address.
    pub streams_per_address: u32,
    /// Connections at a time; beyond this new ones wait in the system's queue.
    pub connections: usize,
    /// Requests that are answered at a time, those that wait for something included; any more are refused at once.
    pub requests: usize,
    /// Bytes of a request's head; what has arrived by the same read is still taken.
    pub head_bytes: usize,
    /// Bytes of a request's path and query.
    pub url_bytes: usize,
    /// How long an answer may take.
    pub request_time: Duration,
    /// Whose word about a client's address is taken.
    pub proxies: Proxies,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            // Off: who is known to be behind one address is for the operator to say.
            requests_per_minute: 0,
            burst: 100,
            streams_per_address: 0,
            // One costs a few kilobytes while it is idle.
            connections: 16_384,
            // A fifth of a second of lookups, and some seconds of pages: whoever would wait for longer is told to come
            // back. Up to 1,000 that wait for an operation and as many that wait at the end of the log are among them.
            requests: 4_096,
            // A DID, a cursor and what proxies add fit many times.
            head_bytes: 32 << 10,
            // The longest address that means something is a search in the explorer.
            url_bytes: 8 << 10,
            // A page of the export from a cold disk takes seconds.
            request_time: Duration::from_secs(60),
            proxies: Proxies::default(),
        }
    }
}

/// What is left to a client after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    limit: u32,
    /// Requests that may follow at once.
    remaining: u32,
    /// When the whole allowance is there again.
    reset: Duration,
    /// How long to wait, when this request was one too many.
    pub retry_after: Option<Duration>,
}

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const STATE: HeaderName = HeaderName::from_static("ratelimit");

impl Allowance {
    /// States it as `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers).
    pub fn state(&self, headers: &mut HeaderMap) {
        let policy = format!("\"client\";q={};w={}", self.limit, WINDOW.as_secs());
        let state = format!("\"client\";r={};t={}", self.remaining, seconds(self.reset));
        headers.insert(POLICY, value(policy.as_bytes()));
        headers.insert(STATE, value(state.as_bytes()));
    }
}

/// Counts what clients ask for.
#[derive(Debug)]
pub struct Limiter {
    rate: Option<Rate>,
    streams: Option<NonZeroU32>,
    open_streams: ClientPlaces,
    waiting: ClientPlaces,
}

/// How many places each client has taken.
type ClientPlaces = Arc<Mutex<HashMap<IpAddr, u32>>>;

/// The generic cell rate algorithm: of each client only the time at which its allowance would be
/// whole again is kept.
#[derive(Debug)]
pub struct Rate {
    limit: u32,
    burst: u32,
    /// What one request costs.
    interval: Duration,
    whole_at: Mutex<LruCache<IpAddr, Instant>>,
}

impl Limiter {
    /// With these limits.
    pub fn new(limits: &Limits) -> Limiter {
        let rate = Rate::new(limits.requests_per_minute, limits.burst);
        let streams = NonZeroU32::new(limits.streams_per_address);
        Limiter {
            rate,
            streams,
            open_streams: ClientPlaces::default(),
            waiting: ClientPlaces::default(),
        }
    }

    /// Counts a request of this client; none while there is no limit.
    pub fn request(&self, client: IpAddr, now: Instant) -> Option<Allowance> {
        self.rate.as_ref().map(|rate| rate.request(client_key(client), now))
    }

    /// Takes the place of a stream client; `Err` when this client has as many as it may have.
    pub fn stream(&self, client: IpAddr) -> Result<Option<ClientPlace>, TooMany> {
        self.streams.map(|limit| ClientPlace::take(&self.open_streams, client, limit)).transpose()
    }

    /// Takes the place of a request that waits; `Err` when this client has [`MAX_OWN_WAITING`].
    pub fn wait(&self, client: IpAddr) -> Result<ClientPlace, TooMany> {
        ClientPlace::take(&self.waiting, client, MAX_OWN_WAITING)
    }
}

/// A client has as many places as it may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooMany;

impl Rate {
    /// So many a minute on the average, and so many at once of a client who was silent; none for a limit of 0.
    pub fn new(limit: u32, burst: u32) -> Option<Rate> {
        let limit = NonZeroU32::new(limit)?.get();
        Some(Rate {
            limit,
            burst: burst.max(1),
            interval: WINDOW / limit,
            whole_at: Mutex::new(LruCache::new(MAX_CLIENTS)),
        })
    }

    /// Counts one of this client; how long to wait, when it is one too many.
    pub fn take(&self, client: IpAddr, now: Instant) -> Option<Duration> {
        self.request(client_key(client), now).retry_after
    }

    fn request(&self, client: IpAddr, now: Instant) -> Allowance {
        let all = self.interval * self.burst;
        let mut clients = lock(&self.whole_at);
        let whole_at = clients.get_or_insert_mut(client, || now);
        let owed = whole_at.saturating_duration_since(now);
        let after = owed + self.interval;
        let allowed = after <= all;
        let owes = if allowed { after } else { owed };
        *whole_at = now + owes;
        let left = all.saturating_sub(owes).as_nanos() / self.interval.as_nanos().max(1);
        Allowance {
            limit: self.limit,
            remaining: u32::try_from(left).unwrap_or(u32::MAX),
            reset: owes,
            retry_after: (!allowed).then(|| after.saturating_sub(all)),
        }
    }
}

/// One client's place, given back when it is dropped.
#[derive(Debug)]
pub struct ClientPlace {
    client: IpAddr,
    among: ClientPlaces,
}

impl ClientPlace {
    fn take(
        among: &ClientPlaces,
        client: IpAddr,
        limit: NonZeroU32,
    ) -> Result<ClientPlace, TooMany> {
        let client = client_key(client);
        let mut taken = lock(among);
        let count = taken.entry(client).or_insert(0);
        if *count >= limit.get() {
            return Err(TooMany);
        }
        *count += 1;
        Ok(ClientPlace { client, among: Arc::clone(among) })
    }
}

impl Drop for ClientPlace {
    fn drop(&mut self) {
        let mut taken = lock(&self.among);
        if let Some(count) = taken.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.client);
            }
        }
    }
}

/// Numbers are whole whatever happened to whoever held them before.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    #[test]
    fn a_burst_and_then_the_rate() {
        let limits = Limits { requests_per_minute: 60, burst: 3, ..Limits::default() };
        let limiter = Limiter::new(&limits);
        let start = Instant::now();
        let ask = |client, after: u64| {
            limiter.request(client, start + Duration::from_millis(after)).unwrap()
        };
        assert_eq!(ask(A, 0).remaining, 2);
        assert_eq!(ask(A, 0).remaining, 1);
        assert_eq!(ask(A, 0).retry_after, None);
        let refused = ask(A, 0);
        assert_eq!((refused.remaining, refused.retry_after), (0, Some(Duration::from_secs(1))));
        // What is refused costs nothing, and others are not meant.
        assert_eq!(ask(A, 400).retry_after, Some(Duration::from_millis(600)));
        assert_eq!(ask(B, 400).retry_after, None);
        assert_eq!(ask(A, 1_000).retry_after, None);
        assert_eq!(ask(A, 1_000).retry_after, Some(Duration::from_secs(1)));
        assert_eq!(ask(A, 3_600_000).remaining, 2);

        let mut headers = HeaderMap::new();
        refused.state(&mut headers);
        assert_eq!(headers["ratelimit-policy"], "\"client\";q=60;w=60");
        assert_eq!(headers["ratelimit"], "\"client\";r=0;t=3");
    }

    #[test]
    fn nothing_is_limited_unless_asked_for() {
        let limiter = Limiter::new(&Limits::default());
        assert_eq!(limiter.request(A, Instant::now()), None);
        assert!(limiter.stream(A).unwrap().is_none());
    }

    #[test]
    fn one_client_does_not_wait_in_every_place() {
        let limiter = Limiter::new(&Limits::default());
        let mut network = (0u16..).map(|host| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, host]));
        let mut wait = || limiter.wait(network.next().unwrap());
        let places: Vec<_> = (0..MAX_OWN_WAITING.get()).map(|_| wait().unwrap()).collect();
        assert_eq!(wait().unwrap_err(), TooMany);
        assert!(limiter.wait(A).is_ok());
        drop(places);
        assert!(wait().is_ok());
    }

    #[test]
    fn places_of_streams_are_given_back() {
        let limiter = Limiter::new(&Limits { streams_per_address: 1, ..Limits::default() });
        let place = limiter.stream(A).unwrap();
        assert_eq!(limiter.stream(A).unwrap_err(), TooMany);
        assert!(limiter.stream(B).is_ok());
        drop(place);
        assert!(limiter.stream(A).is_ok());
        assert!(lock(&limiter.open_streams).is_empty());
    }
}
