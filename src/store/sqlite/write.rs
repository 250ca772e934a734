//! What a follower does to the store: it takes the lease, writes, and gives the lease back.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rusqlite::{OptionalExtension, Transaction};

use super::error::in_file;
use super::writer::{Held, over};
use super::{Shared, Sqlite, connection, read, rows};
use crate::store::codec::Packer;
use crate::store::{
    ByTime, Commit, Lease, NewDivergence, Noted, Rereading, Source, StoreError, Word,
};
use crate::{blocking, clock};
use did_plc::Timestamp;

const CREATE_SOURCE: &str =
    "INSERT INTO sources (id, upstream) VALUES (1, ?1) ON CONFLICT DO NOTHING";

const RAISE_EPOCH: &str = "UPDATE sources SET epoch = epoch + 1";

const SET_UPSTREAM: &str = "UPDATE sources SET upstream = ?1";

const BEGIN_RENUMBERING: &str =
    "UPDATE sources SET upstream = ?1, renumbering = 1, cursor = 0, cursor_cid = NULL,
        second_reading = 0, round = 0, round_began_at = NULL";

const SET_REREADING: &str = "UPDATE sources SET
    second_reading = ?1, round = ?2, round_began_at = ?3, rounds = ?4";

const SET_BY_TIME: &str = "UPDATE sources SET by_time = ?1, by_time_read = ?2, by_time_second = ?3";

/// How often what the follower says is written while nothing else is: each time is a page of the write-ahead log.
const SPARING: Duration = Duration::from_secs(10);

const SAY: &str = "UPDATE sources SET word = ?1";

impl Shared {
    fn follow(
        &self,
        upstream: &str,
        heard_before: Option<Timestamp>,
    ) -> Result<(Lease, Source), StoreError> {
        let mut writer = self.writer();
        let lock = writer.lock()?;
        // From here on nobody else writes. A crash leaves a source that nobody follows.
        let transaction = writer.bare_transaction()?;
        if let Some(before) = heard_before
            && has_followed_since(&transaction, before)?
        {
            return Err(StoreError::LostLease("its lease has ended only just now".to_owned()));
        }
        transaction.execute(CREATE_SOURCE, [upstream])?;
        transaction.execute(RAISE_EPOCH, [])?;
        let source = transaction.query_row(read::SOURCE, [], rows::source)?;
        rows::load_interned(&transaction, &self.interned)?;
        while !self.recent.catch_up(&transaction)? {}
        transaction.commit()?;
        let lease = Lease { epoch: source.epoch };
        let packer = Packer::new(self.interned.clone());
        writer.held = Some(Held { epoch: lease.epoch, packer, lock });
        self.following.store(true, Ordering::Release);
        Ok((lease, source))
    }

    fn release(&self, lease: &Lease) {
        let mut writer = self.writer();
        if writer.held.as_ref().is_some_and(|held| held.epoch == lease.epoch) {
            self.following.store(false, Ordering::Release);
            writer.held = None;
        }
    }
}

/// Whether a follower was heard of at this time or later.
fn has_followed_since(transaction: &Transaction, time: Timestamp) -> Result<bool, StoreError> {
    let source = transaction.query_row(read::SOURCE, [], rows::source).optional()?;
    let word = source.and_then(|source| source.word);
    Ok(word.is_some_and(|word| word.said_at() >= time))
}

impl Sqlite {
    /// Does something with the connection that writes. `doing` is what a panic in it is logged with.
    pub(super) async fn write<T: Send + 'static>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&Shared) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let shared = Arc::clone(&self.shared);
        let work = move || work(&shared).map_err(|error| in_file(&shared.path, error));
        blocking::run(doing, work).await
    }

    /// See [`crate::store::Store::follow`].
    pub async fn follow(
        &self,
        upstream: &str,
        free_for: Duration,
    ) -> Result<(Lease, Source), StoreError> {
        let upstream = upstream.to_owned();
        let heard_before = (free_for > Duration::ZERO).then(|| clock::now() - free_for);
        self.write("taking the lease", move |shared| shared.follow(&upstream, heard_before)).await
    }

    /// See [`crate::store::Store::renew`]. The lock needs no renewal; a lease that was given up
    /// does not come back.
    pub async fn renew(&self, lease: &Lease, word: Option<&Word>) -> Result<(), StoreError> {
        let (lease, word) = (lease.clone(), word.cloned());
        self.write("renewing the lease", move |shared| {
            let mut writer = shared.writer();
            if writer.held.as_ref().is_none_or(|held| held.epoch != lease.epoch) {
                return Err(over(&lease));
            }
            let Some(word) = word else { return writer.check_file() };
            let (transaction, _) = writer.transaction(&lease)?;
            let source = transaction.query_row(read::SOURCE, [], rows::source)?;
            if source.word.is_none_or(|before| word.is_news_after(&before, SPARING)) {
                transaction.prepare_cached(SAY)?.execute([word.text()])?;
                transaction.commit()?;
            }
            Ok(())
        })
        .await
    }

    /// See [`crate::store::Store::release`].
    pub async fn release(&self, lease: Lease) -> Result<(), StoreError> {
        self.write("giving the lease back", move |shared| {
            shared.release(&lease);
            Ok(())
        })
        .await
    }

    /// See [`crate::store::Store::set_upstream`].
    pub async fn set_upstream(&self, lease: &Lease, upstream: &str) -> Result<(), StoreError> {
        let (lease, upstream) = (lease.clone(), upstream.to_owned());
        self.write("remembering an upstream", move |shared| {
            let mut writer = shared.writer();
            let (transaction, _) = writer.transaction(&lease)?;
            transaction.execute(SET_UPSTREAM, [upstream])?;
            Ok(transaction.commit()?)
        })
        .await
    }

    /// See [`crate::store::Store::begin_renumbering`].
    pub async fn begin_renumbering(&self, lease: &Lease, upstream: &str) -> Result<(), StoreError> {
        let (lease, upstream) = (lease.clone(), upstream.to_owned());
        self.write("turning to another upstream", move |shared| {
            let mut writer = shared.writer();
            let (transaction, _) = writer.transaction(&lease)?;
            transaction.execute(BEGIN_RENUMBERING, [upstream])?;
            transaction.execute("DELETE FROM unsettled", [])?;
            Ok(transaction.commit()?)
        })
        .await
    }

    /// See [`crate::store::Store::set_rereading`].
    pub async fn set_rereading(
        &self,
        lease: &Lease,
        rereading: Rereading,
    ) -> Result<(), StoreError> {
        let lease = lease.clone();
        self.write("noting what was read again", move |shared| {
            let Rereading { second, round, round_began_at, rounds } = rereading;
            let began_at = round_began_at.map(Timestamp::millis);
            let mut writer = shared.writer();
            let (transaction, _) = writer.transaction(&lease)?;
            transaction
                .prepare_cached(SET_REREADING)?
                .execute((second, round, began_at, rounds))?;
            Ok(transaction.commit()?)
        })
        .await
    }

    /// See [`crate::store::Store::set_by_time`].
    pub async fn set_by_time(&self, lease: &Lease, by_time: &ByTime) -> Result<(), StoreError> {
        let (lease, by_time) = (lease.clone(), by_time.clone());
        self.write("noting what was read by time", move |shared| {
            let ByTime { upstream, read, second } = by_time;
            let mut writer = shared.writer();
            let (transaction, _) = writer.transaction(&lease)?;
            transaction.prepare_cached(SET_BY_TIME)?.execute((
                upstream,
                read.millis(),
                second.millis(),
            ))?;
            Ok(transaction.commit()?)
        })
        .await
    }

    /// See [`crate::store::Store::set_durability`].
    pub async fn set_durability(&self, live: bool) -> Result<(), StoreError> {
        self.write("setting the durability", move |shared| {
            shared.live.store(live, Ordering::Release);
            connection::set_durability(shared.writer().connection(), live)
        })
        .await
    }

    /// See [`crate::store::Store::commit`].
    pub async fn commit(&self, lease: &Lease, commit: &Commit) -> Result<(), StoreError> {
        let (lease, commit) = (lease.clone(), commit.clone());
        self.write("committing", move |shared| shared.commit(&lease, &commit)).await
    }

    /// See [`crate::store::Store::note_divergences`].
    pub async fn note_divergences(
        &self,
        source: &str,
        did: &str,
        covered: &[&str],
        seen: &[NewDivergence],
        now: Timestamp,
    ) -> Result<Noted, StoreError> {
        let (source, did, seen) = (source.to_owned(), did.to_owned(), seen.to_vec());
        let covered: Vec<String> = covered.iter().map(|&kind| kind.to_owned()).collect();
        self.write("recording divergences", move |shared| {
            let covered: Vec<&str> = covered.iter().map(String::as_str).collect();
            shared.note_divergences(&source, &did, &covered, &seen, now)
        })
        .await
    }

    /// See [`crate::store::Store::close_divergence`].
    pub async fn close_divergence(&self, id: i64, now: Timestamp) -> Result<(), StoreError> {
        self.write("closing a divergence", move |shared| shared.close_divergence(id, now)).await
    }
}
