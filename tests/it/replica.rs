//! A server on a store of its own, to which operations are committed as a follower would.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use did_plc::json::read_operation;
use did_plc::signature::PlainVerifier;
use did_plc::{Did, Timestamp};
use plc_replica::live::{Feed, Mode, Status};
use plc_replica::reads::Reads;
use plc_replica::serve::{self, ReadThrough, ServeSettings, ServeState};
use plc_replica::store::{Commit, Lease, Store, StoredOperation};
use reqwest::header::{HeaderMap, HeaderName};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Who is followed, as far as anybody is told.
pub const UPSTREAM: &str = "https://plc.example.com";

/// A server that runs until it is dropped.
pub struct Replica {
    pub address: SocketAddr,
    pub state: ServeState,
    pub shutdown: CancellationToken,
    pub server: JoinHandle<()>,
    lease: Lease,
    cursor: i64,
    client: reqwest::Client,
    /// Where its store is, when that is its own.
    folder: Option<TempDir>,
}

/// What was answered.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    /// A header as text; empty when there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The media type without its charset.
    pub fn media_type(&self) -> &str {
        self.header("content-type").split(';').next().unwrap()
    }

    pub fn text(&self) -> &str {
        str::from_utf8(&self.body).unwrap()
    }
}

impl Replica {
    pub async fn start() -> Replica {
        Replica::start_with(ServeSettings::default(), Feed::new()).await
    }

    pub async fn start_with(settings: ServeSettings, feed: Feed) -> Replica {
        Replica::start_here(settings, feed, None).await
    }

    /// One that asks somebody for what it does not have.
    pub async fn start_reading_through(upstream: ReadThrough) -> Replica {
        Replica::start_here(ServeSettings::default(), Feed::new(), Some(upstream)).await
    }

    async fn start_here(
        settings: ServeSettings,
        feed: Feed,
        upstream: Option<ReadThrough>,
    ) -> Replica {
        let folder = TempDir::new().unwrap();
        let url = format!("sqlite://{}", folder.path().join("plc.db").display());
        let mut replica = Replica::start_on(&url, settings, feed, upstream).await;
        replica.folder = Some(folder);
        replica
    }

    /// On a store that the caller keeps in its place.
    pub async fn start_at(url: &str, settings: ServeSettings, feed: Feed) -> Replica {
        Replica::start_on(url, settings, feed, None).await
    }

    async fn start_on(
        url: &str,
        settings: ServeSettings,
        feed: Feed,
        upstream: Option<ReadThrough>,
    ) -> Replica {
        let store = Store::open(url).await.unwrap();
        let (lease, source) = store.follow(UPSTREAM).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let status = Status::new([UPSTREAM], Some(&source));
        status.set_following(&source);
        status.set_mode(Mode::Idle);
        let status = Arc::new(status);
        let state = ServeState {
            reads: Arc::new(Reads::new(store.clone(), Arc::clone(&status), Vec::new())),
            store,
            feed: Arc::new(feed),
            status,
            verifier: Arc::new(PlainVerifier),
            upstream: upstream.map(Arc::new),
            forward: None,
            settings,
        };
        let shutdown = CancellationToken::new();
        let server = tokio::spawn(serve::run(listener, state.clone(), shutdown.clone()));
        // Answers are looked at as they are sent.
        let client = reqwest::Client::builder().no_gzip().no_zstd().build().unwrap();
        let cursor = source.cursor;
        Replica { address, state, shutdown, server, lease, cursor, client, folder: None }
    }

    /// Commits new operations, and then tells whoever has to know.
    pub async fn commit(&mut self, operations: Vec<StoredOperation>) {
        self.commit_with(Commit { operations, ..Commit::default() }).await;
    }

    /// Commits what is new and what is now nullified.
    pub async fn commit_with(&mut self, commit: Commit) {
        self.store(commit).await;
        self.state.feed.settled().await;
    }

    /// Commits, and does not wait until whoever has to know is told.
    pub async fn store(&mut self, commit: Commit) -> Vec<StoredOperation> {
        let last = commit.operations.iter().filter_map(|operation| operation.sequence).max();
        let commit = Commit {
            cursor_before: self.cursor,
            cursor_after: self.cursor.max(last.unwrap_or(0)),
            ..commit
        };
        self.state.store.commit(&self.lease, &commit).await.unwrap();
        self.cursor = commit.cursor_after;
        self.state
            .status
            .set_committed(&Commit { received_at_millis: now().millis(), ..commit.clone() });
        commit.operations
    }

    /// The log has been read to its end.
    pub fn caught_up(&self) {
        self.state.status.set_mode(Mode::Live);
        self.state.status.set_heard(now());
        self.state.status.set_complete_at(now());
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[]).await
    }

    pub async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        let url = format!("http://{}{path}", self.address);
        let mut request = self.client.request(method.parse().unwrap(), url);
        for &(name, value) in headers {
            request = request.header(name.parse::<HeaderName>().unwrap(), value);
        }
        let response = request.send().await.unwrap();
        Answer {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body: response.bytes().await.unwrap().into(),
        }
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

pub fn now() -> Timestamp {
    Timestamp::from(SystemTime::now())
}

/// A stored operation from its JSON.
pub fn stored(did: &str, created_at: &str, sequence: i64, json: &str) -> StoredOperation {
    StoredOperation {
        did: did.parse().unwrap(),
        created_at: created_at.parse().unwrap(),
        sequence: Some(sequence),
        signed: read_operation(json).unwrap().into(),
        signer: 0,
        nullified_by: None,
        received_at: now(),
    }
}

/// An operation of an identity of its own, created now: enough for what does not look into it.
pub fn numbered(sequence: i64) -> StoredOperation {
    let mut did = [0; 15];
    did[..8].copy_from_slice(&sequence.to_be_bytes());
    let did = Did::from_bytes(did).to_string();
    stored(&did, &now().to_string(), sequence, &operation(&format!("at://{sequence}.example")))
}

/// The same, of some 20 kB: a thousand of them are more than the system holds for a client that
/// does not read.
pub fn large(sequence: i64) -> StoredOperation {
    let alias = "x".repeat(20_000);
    StoredOperation {
        signed: read_operation(&operation(&alias)).unwrap().into(),
        ..numbered(sequence)
    }
}

/// The JSON of an operation with this alias. Its signature is that of nobody.
pub fn operation(alias: &str) -> String {
    format!(
        r#"{{"sig":"sig","prev":null,"type":"plc_operation","services":{{}},"alsoKnownAs":["{alias}"],"rotationKeys":[],"verificationMethods":{{}}}}"#
    )
}

/// The JSON of a tombstone.
pub fn tombstone(prev: &str) -> String {
    format!(r#"{{"sig":"sig","prev":"{prev}","type":"plc_tombstone"}}"#)
}
