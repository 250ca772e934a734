//! What a store on Postgres consists of, and how it is opened.

use std::sync::Arc;

use sqlx::migrate::Migrator;

use super::gather::Gatherer;
use super::lookup::{Chains, Heads, Lookups};
use super::migrations::{self, MIGRATIONS, Schema};
use super::pool::{self, Pool};
use super::server::{Server, Setting};
use super::strings::Strings;
use super::writer::Writer;
use crate::store::{Load, StoreError, StoredOperation};

/// Connections for each kind of lookup, each with one query of gathered lookups at a time where they are gathered. Two
/// keep a core of the server busy while the answers of the other are taken apart.
const LOOKUP_CONNECTIONS: u32 = 2;
/// Connections for pages and everything else: a page is milliseconds of work, and a lookup must
/// not queue behind it.
const PAGE_CONNECTIONS: u32 = 3;
/// Queries in which many identities are read.
pub(super) const PARALLEL_READS: usize = 4;
/// Connections for what ingest asks: those on which it reads at a time, and one for who meets a text that is not known
/// here.
const INGEST_CONNECTIONS: u32 = PARALLEL_READS as u32 + 1;
/// Connections that write: one for commits, and one for the builder of the index of claims.
const WRITE_CONNECTIONS: u32 = 2;

/// Connections for what commits tell clients of the stream: one that asks, and one on which notifications come.
const NEWS_CONNECTIONS: u32 = 2;

/// A store on Postgres. Clones share their connections.
#[derive(Clone)]
pub struct Postgres {
    pub(super) writer: Arc<Writer>,
    /// Chains, numbers and refusals for the batch that is about to be judged.
    pub(super) ingest: Arc<Pool>,
    /// Everything else that is read, but lookups.
    pub(super) pages: Arc<Pool>,
    /// What commits tell clients of the stream.
    pub(super) news: Arc<Pool>,
    /// Lookups of what was refused of an identity: few ask, and each alone.
    pub(super) refused: Arc<Pool>,
    /// The connections of the two that follow.
    pub(super) lookups: Arc<Pool>,
    pub(super) heads: Arc<Gatherer<Option<StoredOperation>>>,
    pub(super) chains: Arc<Gatherer<Vec<StoredOperation>>>,
    pub(super) strings: Arc<Strings>,
}

impl std::fmt::Debug for Postgres {
    /// Without where it is: a URL may hold a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Postgres").finish_non_exhaustive()
    }
}

impl Postgres {
    /// Connects to a database that has our tables already.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unusable`] when it has not.
    pub async fn open_existing(url: &str) -> Result<Postgres, StoreError> {
        let mut connection = Server::new(url, Setting::Database)?.connect().await?;
        let unusable = |sentence: &str| Err(StoreError::Unusable(sentence.to_owned()));
        match migrations::look(&mut connection, &MIGRATIONS).await? {
            Schema::Absent => unusable(
                "there is no log in the database that --database names; `serve` and `import` create one",
            ),
            Schema::Older => unusable(
                "the database was written by an older version of plc-replica; `serve` and `import` bring it up to date",
            ),
            Schema::Current | Schema::Newer => Postgres::open(url).await,
        }
    }

    /// Connects, and brings the schema up to date.
    pub async fn open(url: &str) -> Result<Postgres, StoreError> {
        Postgres::open_at(url, &MIGRATIONS).await
    }

    /// Connects, and brings the schema to where these migrations leave it, which may be those of a version to come.
    pub async fn open_at(url: &str, migrations: &Migrator) -> Result<Postgres, StoreError> {
        let server = Arc::new(Server::new(url, Setting::Database)?);
        migrations::migrate(server.connect().await?, migrations).await?;
        Ok(Postgres::of(&server, migrations))
    }

    /// See [`crate::store::Store::open_to_read`].
    pub async fn open_to_read(url: &str) -> Result<Postgres, StoreError> {
        Postgres::open_to_read_at(url, &MIGRATIONS).await
    }

    /// The same, for a version that has these migrations.
    pub async fn open_to_read_at(url: &str, migrations: &Migrator) -> Result<Postgres, StoreError> {
        let server = Arc::new(Server::new(url, Setting::Database)?);
        let mut connection = server.connect().await?;
        match migrations::look(&mut connection, migrations).await? {
            Schema::Absent => Err(StoreError::Unusable(
                "there is no log in the database that --database names; a process that may follow (`serve --follow auto` \
                 or `on`) creates one"
                    .to_owned(),
            )),
            // Who only reads is started at any time, and a standby replays it a moment later than the others have it.
            Schema::Older => Err(StoreError::Unavailable(
                "its tables are of an older version of plc-replica, and wait for `plc-replica migrate`, or a process of \
                 this version that may follow (`serve --follow auto` or `on`), to bring them up to date"
                    .to_owned(),
            )),
            Schema::Current | Schema::Newer => Ok(Postgres::of(&server, migrations)),
        }
    }

    /// The store on a server, of which the tables are known to be ours, as these migrations make them, or a newer version.
    /// Nothing is connected yet.
    pub(super) fn of(server: &Arc<Server>, migrations: &Migrator) -> Postgres {
        let pool = |settings, size| Arc::new(Pool::new(server, settings, size));
        let ingest = pool(pool::READING, INGEST_CONNECTIONS);
        let lookups = pool(pool::READING, 2 * LOOKUP_CONNECTIONS);
        let strings = Arc::new(Strings::new(ingest.clone()));
        let of_kind = || (0..LOOKUP_CONNECTIONS).map(|_| Lookups::new(&lookups, &strings));
        let heads = Gatherer::start(of_kind().map(Heads).collect());
        let chains = Gatherer::start(of_kind().map(Chains).collect());
        let writing = pool(pool::WRITING, WRITE_CONNECTIONS);
        Postgres {
            writer: Arc::new(Writer::new(writing, strings.clone(), migrations::last(migrations))),
            pages: pool(pool::READING, PAGE_CONNECTIONS),
            news: pool(pool::READING, NEWS_CONNECTIONS),
            refused: pool(pool::READING, LOOKUP_CONNECTIONS),
            heads: Arc::new(heads),
            chains: Arc::new(chains),
            ingest,
            lookups,
            strings,
        }
    }

    /// See [`crate::store::Store::is_sought`].
    pub fn is_sought(&self) -> bool {
        self.writer.pool.is_server_sought()
    }

    /// See [`crate::store::Store::load`].
    pub fn load(&self) -> Load {
        // Those for lookups are kept by who asks, also while there is nothing to ask.
        let mut busy = self.heads.asking() + self.chains.asking();
        let (mut open, _) = self.lookups.open_and_idle();
        let mut waiting = self.heads.waiting() + self.chains.waiting();
        for pool in [&self.pages, &self.news, &self.refused, &self.ingest, &self.writer.pool] {
            let (of_pool, idle) = pool.open_and_idle();
            open += of_pool;
            busy += of_pool.saturating_sub(idle);
            waiting += pool.waiting();
        }
        Load { busy, idle: open.saturating_sub(busy), waiting }
    }
}
