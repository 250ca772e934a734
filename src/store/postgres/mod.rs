//! The store on a Postgres server.
//!
//! Three kinds of connections, each made when it is first needed and again after it has broken: one writes; one answers what
//! ingest asks before it judges; a few share all other reads. Nothing waits in a pool: requests
//! are pipelined on the connection that they are given.

mod claims;
mod commit;
mod connection;
mod copy;
mod error;
mod gather;
mod migrate;
mod read;
mod rows;
mod strings;
mod tls;
mod write;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use self::connection::{Link, Server};
use self::gather::Gatherer;
use self::read::{Heads, Histories};
use self::strings::Strings;
use self::write::Writer;
use super::{Load, StoreError, StoredOperation};

/// Connections for lookups, each with one query of gathered lookups at a time. Two keep a core of
/// the server busy while the answers of the other are taken apart.
const LOOKUP_CONNECTIONS: usize = 2;
/// Connections for pages and everything else: a page is milliseconds of work, and a lookup must
/// not queue behind it.
const PAGE_CONNECTIONS: usize = 3;

/// For the connection that migrates: building an index may take as long as it takes.
const MIGRATION_SETTINGS: &str = "SET statement_timeout = 0; SET client_min_messages = warning";

/// A store on Postgres. Clones share their connections.
#[derive(Clone)]
pub struct Postgres {
    writer: Arc<Writer>,
    /// Builds the index of claims, where that is asked for.
    builder: Arc<Link>,
    /// Chains, numbers and refusals for the batch that is about to be judged.
    ingest: Arc<Link>,
    /// Everything else that is read, but lookups.
    pages: Arc<Turns>,
    /// The connections of the two that follow.
    lookups: Arc<[Arc<Link>]>,
    heads: Arc<Gatherer<Option<StoredOperation>>>,
    histories: Arc<Gatherer<Vec<StoredOperation>>>,
    strings: Arc<Strings>,
    server: Arc<Server>,
}

impl std::fmt::Debug for Postgres {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Postgres").field("server", &self.server).finish_non_exhaustive()
    }
}

impl Postgres {
    /// Connects to a database that has our tables already.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unusable`] when it has not.
    pub async fn open_existing(url: &str) -> Result<Postgres, StoreError> {
        let session = Server::new(url)?.connect_once(MIGRATION_SETTINGS, &[]).await?;
        if !migrate::is_migrated(&session.client).await? {
            return Err(StoreError::Unusable(
                "there is no log in the database that --database names; \
                 `serve` and `import` create one"
                    .to_owned(),
            ));
        }
        Postgres::open(url).await
    }

    /// Connects, and brings the schema up to date.
    pub async fn open(url: &str) -> Result<Postgres, StoreError> {
        let server = Arc::new(Server::new(url)?);
        let session = server.connect_once(MIGRATION_SETTINGS, &[]).await?;
        migrate::migrate(&session.client).await?;
        drop(session);

        let link = |statements| Arc::new(Link::new(server.clone(), read::SETTINGS, statements));
        let ingest = link(&[read::STATEMENTS, strings::STATEMENTS]);
        let pages = || link(&[read::STATEMENTS, claims::READING]);
        let pages = Turns::new((0..PAGE_CONNECTIONS).map(|_| pages()));
        let builder = Link::new(server.clone(), write::SETTINGS, &[claims::BUILDING]);
        let lookups: Arc<[_]> =
            (0..LOOKUP_CONNECTIONS).map(|_| link(&[read::LOOKUP_STATEMENTS])).collect();
        let strings = Arc::new(Strings::new(ingest.clone()));
        let of_lookups = || lookups.iter().map(|link| (link.clone(), strings.clone()));
        let heads = of_lookups().map(|(link, strings)| Heads(link, strings)).collect();
        let histories = of_lookups().map(|(link, strings)| Histories(link, strings)).collect();
        Ok(Postgres {
            writer: Arc::new(Writer::new(server.clone(), strings.clone())),
            builder: Arc::new(builder),
            ingest,
            pages: Arc::new(pages),
            lookups,
            heads: Arc::new(Gatherer::start(heads)),
            histories: Arc::new(Gatherer::start(histories)),
            strings,
            server,
        })
    }
}

impl Postgres {
    /// See [`crate::store::Store::load`].
    pub fn load(&self) -> Load {
        let links = self.pages.links.iter().chain(&*self.lookups).chain([&self.ingest]);
        let reading = links.filter(|link| link.is_busy()).count();
        let busy = reading + usize::from(self.writer.is_busy());
        Load {
            busy,
            idle: self.server.open().saturating_sub(busy),
            waiting: self.heads.waiting() + self.histories.waiting(),
        }
    }
}

/// Links that are used in turn.
struct Turns {
    links: Vec<Arc<Link>>,
    next: AtomicUsize,
}

impl Turns {
    fn new(links: impl Iterator<Item = Arc<Link>>) -> Turns {
        Turns { links: links.collect(), next: AtomicUsize::new(0) }
    }

    fn next(&self) -> &Link {
        &self.links[self.next.fetch_add(1, Ordering::Relaxed) % self.links.len()]
    }
}
