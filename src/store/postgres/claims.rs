//! The index of claims in this backend; see [`crate::store::claims`].

use std::sync::atomic::Ordering;

use did_plc::claim::Value;
use did_plc::{Did, Timestamp};

use super::open::Postgres;
use super::pool::Lent;
use super::rows::{OfIdentity, operations};
use crate::blocking;
use crate::store::claims::{self, Claimants, ClaimsIndex};
use crate::store::{Commit, StoreError, StoredOperation};

/// Operations that are read at once.
const READ: usize = 4_096;
/// Pairs that one transaction adds: a tenth of a second in which no batch is committed.
const ADDED_AT_ONCE: usize = 1 << 14;
/// Operations that the last transaction of a step takes in under the lock: more than come while a
/// step is written, so that the builder gets to the end.
const TAIL: usize = 1_024;

/// Stands for the operations without a number, which are first.
const UNNUMBERED_FIRST: i64 = -1;

/// No commit waits for the disk: what a crash of the server takes back is the last of it, and built
/// again.
const TRANSACTION: &str = "BEGIN; SET LOCAL synchronous_commit = off";

/// Adds what a commit adds to the index by itself, in its transaction: everything up to `to`.
pub(super) async fn claim(
    connection: &mut Lent,
    commit: &Commit,
    to: i64,
) -> Result<(), StoreError> {
    add(connection, &claims::pairs_up_to(commit, to)?).await
}

/// Adds pairs, which stand in their order, in the transaction that holds the lock.
async fn add(connection: &mut Lent, pairs: &[i64]) -> Result<(), StoreError> {
    if !pairs.is_empty() {
        let add = sqlx::query!(
            "WITH new AS (
                INSERT INTO claims SELECT * FROM unnest($1::int8[]) ON CONFLICT DO NOTHING RETURNING 1)
             UPDATE sources SET claims = claims + (SELECT count(*) FROM new)",
            pairs
        );
        connection.execute(add).await?;
    }
    Ok(())
}

/// From where a builder reads on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct BuildPlace {
    claimed: i64,
    /// Commits that took a number out of the log.
    renumbered: i64,
}

/// Takes the lock that commits take, before anything is added: nobody who holds one waits for the
/// other. How far the index is.
async fn lock(connection: &mut Lent) -> Result<Option<BuildPlace>, StoreError> {
    let lock = sqlx::query_as!(
        BuildPlace,
        r#"SELECT claimed AS "claimed!", renumbered FROM sources
           WHERE claimed IS NOT NULL FOR UPDATE"#
    );
    connection.first(lock).await
}

impl Postgres {
    /// See [`crate::store::Store::keep_claims`].
    pub async fn keep_claims(&self) -> Result<(), StoreError> {
        self.writer.keeps_claims.store(true, Ordering::Relaxed);
        let begin =
            sqlx::query!("UPDATE sources SET claimed = $1 WHERE claimed IS NULL", UNNUMBERED_FIRST);
        let mut connection = self.writer.bare_transaction("BEGIN").await?;
        connection.execute(begin).await?;
        connection.commit().await
    }

    /// See [`crate::store::Store::claims_index`].
    pub async fn claims_index(&self) -> Result<Option<ClaimsIndex>, StoreError> {
        let index = sqlx::query!(
            r#"SELECT claimed AS "claimed!",
                coalesce((SELECT max(sequence) FROM operations), 0) AS "highest!", claims
               FROM sources WHERE claimed IS NOT NULL"#
        );
        Ok(self.pages.first(index).await?.map(|row| ClaimsIndex {
            sequence: row.claimed.max(0),
            highest: row.highest,
            begun: row.claimed >= 0,
            pairs: row.claims.unsigned_abs(),
        }))
    }

    /// See [`crate::store::Store::build_claims`]. A crash leaves pairs behind that are written
    /// again.
    pub async fn build_claims(&self, limit: usize) -> Result<(), StoreError> {
        let Some(from) = self.build_place().await? else { return Ok(()) };
        if from.claimed == UNNUMBERED_FIRST {
            return self.build_unnumbered(from).await;
        }
        let (mut to, mut read, mut pairs) = (from.claimed, 0, Vec::new());
        while read < limit {
            let page = self.export_by_sequence(to, READ).await?;
            let Some(last) = page.last().and_then(|last| last.sequence) else { break };
            to = last;
            read += page.len();
            pairs.extend(pairs_of(page).await?);
        }
        pairs.sort_unstable();
        pairs.dedup();
        self.add_pieces(&pairs).await?;
        self.move_claims(from, to).await
    }

    /// None where there is no such index.
    async fn build_place(&self) -> Result<Option<BuildPlace>, StoreError> {
        let place = sqlx::query_as!(
            BuildPlace,
            r#"SELECT claimed AS "claimed!", renumbered FROM sources WHERE claimed IS NOT NULL"#
        );
        self.pages.first(place).await
    }

    /// Brings in the operations without a number. Those that come meanwhile bring themselves in.
    async fn build_unnumbered(&self, from: BuildPlace) -> Result<(), StoreError> {
        let mut after = (Did::from_bytes([0; 15]), Timestamp::from_millis(i64::MIN));
        loop {
            let page = operations!(
                FROM "operations WHERE sequence IS NULL AND (did, created_at) > ($1, $2)
                    ORDER BY did, created_at FETCH FIRST $3 ROWS WITH TIES",
                after.0.as_bytes().as_slice(),
                after.1.millis(),
                READ as i64
            );
            let page = self.operations(page).await?;
            let Some(last) = page.last() else { break };
            after = (last.did, last.created_at);
            self.add_pieces(&pairs_of(page).await?).await?;
        }
        self.move_claims(from, 0).await
    }

    async fn add_pieces(&self, pairs: &[i64]) -> Result<(), StoreError> {
        for pairs in pairs.chunks(ADDED_AT_ONCE) {
            let mut connection = self.writer.bare_transaction(TRANSACTION).await?;
            lock(&mut connection).await?;
            add(&mut connection, pairs).await?;
            connection.commit().await?;
        }
        Ok(())
    }

    /// Moves the place of the index, with what has come behind it meanwhile.
    async fn move_claims(&self, from: BuildPlace, to: i64) -> Result<(), StoreError> {
        let mut connection = self.writer.bare_transaction(TRANSACTION).await?;
        if lock(&mut connection).await? == Some(from) {
            // By another connection, which sees what was committed before the lock was ours.
            let tail = self.export_by_sequence(to, TAIL).await?;
            let to = tail.last().and_then(|last| last.sequence).unwrap_or(to);
            add(&mut connection, &pairs_of(tail).await?).await?;
            connection.execute(sqlx::query!("UPDATE sources SET claimed = $1", to)).await?;
        }
        // Otherwise another builder was here, or what was read may have changed since, and there is nothing to commit.
        connection.commit().await
    }

    /// See [`crate::store::Store::claimants`].
    pub async fn claimants(
        &self,
        value: &Value<'_>,
        after: Option<Did>,
        limit: usize,
    ) -> Result<Claimants, StoreError> {
        let (first, last) = claims::range(value, after.as_ref());
        // A row for each identity under each pair, and one for a pair without any.
        let claimants = sqlx::query!(
            r#"SELECT c.pair AS "pair!", o.did AS "did?"
               FROM (SELECT pair FROM claims WHERE pair >= $1 AND pair <= $2
                     ORDER BY pair LIMIT $3) c
               LEFT JOIN LATERAL (
                   SELECT DISTINCT did FROM operations
                   WHERE did >= substring(int8send(c.pair) FROM 5)
                       AND did <= substring(int8send(c.pair) FROM 5)
                           || '\xffffffffffffffffffffff'::bytea
                   ORDER BY did) o ON true
               ORDER BY c.pair"#,
            first,
            last,
            limit as i64
        );
        let (mut pairs, mut dids) = (Vec::new(), Vec::new());
        for row in self.pages.all(claimants).await? {
            pairs.push(row.pair);
            let did = row.did.as_deref().and_then(Did::from_slice);
            dids.extend(did.filter(|did| Some(*did) > after));
        }
        pairs.dedup();
        dids.sort_unstable();
        Ok(Claimants { dids, next: claims::end_of_page(&pairs, limit) })
    }

    /// See [`crate::store::Store::absent_claims`].
    pub async fn absent_claims(&self, pairs: &[i64]) -> Result<Vec<i64>, StoreError> {
        let absent = sqlx::query!(
            r#"SELECT asked.pair AS "pair!" FROM unnest($1::int8[]) AS asked (pair)
               WHERE NOT EXISTS (SELECT 1 FROM claims c WHERE c.pair = asked.pair)"#,
            pairs
        );
        Ok(self.pages.all(absent).await?.into_iter().map(|row| row.pair).collect())
    }
}

/// The pairs of a page, on a thread that nobody else waits for.
async fn pairs_of(operations: Vec<StoredOperation>) -> Result<Vec<i64>, StoreError> {
    blocking::run("reading what operations claim", move || claims::pairs(&operations)).await
}

#[cfg(test)]
mod tests {
    use plc_testkit::postgres::Database;

    use super::*;
    use crate::store::samples::{commit_of, geneses, without_number};

    /// The end of the log goes away after a builder has read to it, and something else comes there.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_builder_does_not_pass_what_has_come_behind_it() {
        let Some(database) = Database::create().await else { return };
        let store = Postgres::open(&database.url).await.unwrap();
        let (lease, _) =
            store.follow("https://plc.example", std::time::Duration::ZERO).await.unwrap();
        let operations = geneses(7);
        store.keep_claims().await.unwrap();
        store.build_claims(100).await.unwrap();
        store.set_durability(false).await.unwrap();
        store.commit(&lease, &commit_of(&operations[..6], vec![])).await.unwrap();
        let from = store.build_place().await.unwrap().unwrap();
        let page = store.export_by_sequence(from.claimed, READ).await.unwrap();
        assert_eq!((from.claimed, page.len()), (0, 6));

        let gone = vec![without_number(&operations[5]), without_number(&operations[4])];
        store.commit(&lease, &commit_of(&[], gone)).await.unwrap();
        let other = StoredOperation { sequence: Some(5), ..operations[6].clone() };
        store.commit(&lease, &commit_of(&[other], vec![])).await.unwrap();
        store.add_pieces(&pairs_of(page).await.unwrap()).await.unwrap();
        store.move_claims(from, 6).await.unwrap();

        for _ in 0..3 {
            let index = store.claims_index().await.unwrap().unwrap();
            let all = store.next_histories(None, 100).await.unwrap();
            let has = |of: &&StoredOperation| of.sequence.is_some_and(|n| n <= index.sequence);
            let expected = claims::pairs(all.iter().filter(has)).unwrap();
            assert_eq!(store.absent_claims(&expected).await.unwrap(), [0i64; 0], "{index:?}");
            store.build_claims(100).await.unwrap();
        }
        assert_eq!(store.claims_index().await.unwrap().unwrap().behind(), 0);
    }

    /// A page of them ends between operations of one identity and time.
    #[tokio::test(flavor = "multi_thread")]
    async fn equal_times_without_a_number_are_all_taken_in() {
        let Some(database) = Database::create().await else { return };
        let store = Postgres::open(&database.url).await.unwrap();
        let (lease, _) =
            store.follow("https://plc.example", std::time::Duration::ZERO).await.unwrap();
        let told = geneses(3);
        let at = |of: &StoredOperation, millis| StoredOperation {
            did: told[0].did,
            created_at: Timestamp::from_millis(millis),
            sequence: None,
            ..of.clone()
        };
        let mut operations = vec![at(&told[0], 1); READ - 1];
        operations.extend([at(&told[1], 2), at(&told[2], 2)]);
        store.commit(&lease, &commit_of(&operations, vec![])).await.unwrap();
        store.keep_claims().await.unwrap();
        store.build_claims(10).await.unwrap();
        assert!(store.claims_index().await.unwrap().unwrap().is_complete());
        let expected = claims::pairs(&operations).unwrap();
        assert_eq!(store.absent_claims(&expected).await.unwrap(), [0i64; 0]);
    }
}
