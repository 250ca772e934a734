//! A commit: everything that follows from a batch, in one transaction.

use std::sync::atomic::Ordering;

use did_plc::{Did, Timestamp};

use super::changes::CHANNEL;
use super::insert::insert;
use super::open::Postgres;
use super::pool::Lent;
use super::writer::LEASE;
use super::{claims, divergences, refusals, rewrite, rows, unsettled};
use crate::store::codec::Packer;
use crate::store::news;
use crate::store::{Commit, Lease, NewDivergence, Noted, StoreError, StoredOperation, Word};

/// While catching up, what a crash of the server takes back is fetched again; cursor and operations
/// still agree. Texts that are given a number make the commit durable.
const LOOSELY: &str = "BEGIN; SET LOCAL synchronous_commit = off";

/// For the transaction that is under way, whatever it began with.
const DURABLE: &str = "SET LOCAL synchronous_commit = on";

impl Postgres {
    /// See [`crate::store::Store::commit`].
    pub async fn commit(&self, lease: &Lease, commit: &Commit) -> Result<(), StoreError> {
        let writer = &self.writer;
        let mut turn = writer.turn.lock().await;
        // Whatever fails or is dropped before COMMIT takes the connection with it, and the server
        // rolls back.
        let mut connection = writer.pool.lend().await?;
        let mut packer = match turn.take() {
            Some(packer) => packer,
            None => writer.packer(&mut connection).await?,
        };
        let live = writer.live.load(Ordering::Relaxed);
        let keeps_claims = live && writer.keeps_claims.load(Ordering::Relaxed);
        connection.begin(if live { "BEGIN" } else { LOOSELY }).await?;
        let Some(advanced) = advance(&mut connection, lease, commit, keeps_claims).await? else {
            drop(connection);
            return Err(self.lost_lease(lease, commit).await?);
        };
        rewrite::delete(&mut connection, commit).await?;
        insert(&mut connection, &in_order(commit), &mut packer).await?;
        if let Some(to) = advanced.claims_up_to {
            claims::claim(&mut connection, commit, to).await?;
        }
        intern(&mut connection, &packer).await?;
        nullify(&mut connection, &commit.nullified).await?;
        number(&mut connection, &commit.numbered).await?;
        unsettled::write(&mut connection, commit).await?;
        refusals::write(&mut connection, commit, writer.refusal_limits.get()).await?;
        let bound = writer.divergence_bytes.load(Ordering::Relaxed);
        let seen_at = commit.received_at_millis;
        divergences::write(&mut connection, &commit.divergences, seen_at, bound).await?;
        writer.end(connection).await?;
        packer.committed();
        *turn = Some(packer);
        Ok(())
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
        let _turn = self.writer.turn.lock().await;
        let mut connection = self.writer.bare_transaction("BEGIN").await?;
        let open = sqlx::query!(
            // OFFSET leaves the index of DIDs alone to choose, as in `Postgres::refusals`.
            "SELECT id, kind, subject FROM (SELECT * FROM divergences WHERE did = $1 OFFSET 0) of_did
             WHERE source = $2 AND closed_at IS NULL",
            did.as_bytes(),
            source.as_bytes()
        );
        let rows = connection.all(open).await?.into_iter();
        let open: Vec<(i64, String, String)> = rows
            .map(|row| Ok((row.id, row.kind, rows::text("divergences", row.subject)?)))
            .collect::<Result<_, StoreError>>()?;
        let (noted, closed) = Noted::between(&open, covered, seen);
        let bound = self.writer.divergence_bytes.load(Ordering::Relaxed);
        divergences::write(&mut connection, seen, now.millis(), bound).await?;
        if !closed.is_empty() {
            divergences::lock(&mut connection).await?;
            close(&mut connection, &closed, now).await?;
        }
        connection.commit().await?;
        Ok(noted)
    }

    /// See [`crate::store::Store::close_divergence`].
    pub async fn close_divergence(&self, id: i64, now: Timestamp) -> Result<(), StoreError> {
        let _turn = self.writer.turn.lock().await;
        let mut connection = self.writer.bare_transaction("BEGIN").await?;
        close(&mut connection, &[id], now).await?;
        connection.commit().await
    }

    /// Who writes now, for a commit that found another epoch or cursor than its own. The commit has
    /// its turn still, so that a doubt about an earlier one cannot be waited out here; and it need
    /// not be, since the comparison has waited for the row.
    async fn lost_lease(&self, lease: &Lease, commit: &Commit) -> Result<StoreError, StoreError> {
        let now = match self.committed_source().await? {
            Some(now) => format!("the epoch is {} and the cursor {}", now.epoch, now.cursor),
            None => "nothing is followed".to_owned(),
        };
        Ok(StoreError::LostLease(format!(
            "{now}, but this commit is of epoch {} and starts from {}",
            lease.epoch, commit.cursor_before
        )))
    }
}

/// What the row of the source says after it was moved.
struct Advanced {
    /// The index of claims has to have this commit's operations up to this number; none where there is
    /// no such index.
    claims_up_to: Option<i64>,
    /// Nothing: that others are notified is a function's side effect.
    #[expect(dead_code, reason = "a row has all columns of its statement")]
    notified: Option<String>,
}

/// Locks the row of the source, compares and moves the cursor. None when the lease or the cursor is
/// not what the commit rests on: no right to write.
async fn advance(
    connection: &mut Lent,
    lease: &Lease,
    commit: &Commit,
    keeps_claims: bool,
) -> Result<Option<Advanced>, StoreError> {
    let written = commit.written().filter_map(|new| new.sequence);
    let numbered = commit.numbered.iter().map(|(_, _, number)| *number);
    // What was read again above a cursor that is put back is another log's.
    // The index of claims moves with the cursor when it is complete and kept ($9) so; what it has
    // then, and where the log has ended before this commit, say which operations the commit adds to it.
    // Other processes are told when the transaction is committed, and never when it is not.
    let advance = sqlx::query_as!(
        Advanced,
        r#"WITH advanced AS (UPDATE sources SET
            cursor = $3,
            cursor_cid = CASE WHEN cursor = $3 THEN cursor_cid ELSE $11 END,
            lease_until = clock_timestamp() + make_interval(secs => $4),
            caught_up_at = CASE WHEN $5 THEN coalesce(caught_up_at, $6) ELSE caught_up_at END,
            renumbering = renumbering AND NOT $5,
            operations = operations + $7,
            identities = identities + $8,
            second_reading = least(second_reading, $3),
            round = least(round, $3),
            claimed = CASE WHEN $9 AND claimed >= coalesce((SELECT max(sequence) FROM operations), 0)
                THEN greatest(claimed, $10) ELSE claimed END,
            commits = commits + 1,
            committed_in = epoch,
            word = coalesce($12, word)
        WHERE epoch = $1 AND cursor = $2
        RETURNING commits, CASE WHEN claimed IS NOT NULL
            THEN greatest(claimed, (SELECT max(sequence) FROM operations)) END AS claims_up_to),
        noted AS (INSERT INTO commits (slot, number, epoch, told)
            SELECT commits % $14, commits, $1, $13 FROM advanced
            ON CONFLICT (slot) DO UPDATE
            SET number = excluded.number, epoch = excluded.epoch, told = excluded.told)
        SELECT claims_up_to, pg_notify($15, '')::text AS notified FROM advanced"#,
        lease.epoch,
        commit.cursor_before,
        commit.cursor_after,
        LEASE.as_secs_f64(),
        commit.caught_up,
        commit.received_at_millis,
        commit.more_operations(),
        commit.more_identities(),
        keeps_claims,
        written.chain(numbered).max().unwrap_or(0),
        commit.cursor_cid.as_ref().map(String::as_bytes),
        commit.word.as_ref().map(Word::text),
        news::listed(commit.told()),
        news::KEPT,
        CHANNEL
    );
    connection.first(advance).await
}

/// As exports read them: rows that are read together lie together, and the indexes on number and
/// time grow at their end.
fn in_order(commit: &Commit) -> Vec<&StoredOperation> {
    let mut ordered: Vec<_> = commit.written().collect();
    ordered.sort_by_key(|new| (new.sequence.unwrap_or(i64::MAX), new.created_at));
    ordered
}

/// The texts that were given a number while this batch was packed. With such the commit is durable
/// also while catching up: this process goes on to refer to these numbers, and a crash of the
/// server that took them back would let them be given to other texts.
async fn intern(connection: &mut Lent, packer: &Packer) -> Result<(), StoreError> {
    let (numbers, texts): (Vec<_>, Vec<_>) =
        packer.new_texts().map(|(number, text)| (number as i32, text.as_bytes())).unzip();
    if numbers.is_empty() {
        return Ok(());
    }
    connection.script(DURABLE).await?;
    let intern = sqlx::query!(
        "INSERT INTO interned (id, text) SELECT * FROM unnest($1::int4[], $2::bytea[])",
        &numbers,
        texts as _
    );
    connection.execute(intern).await?;
    Ok(())
}

async fn nullify(
    connection: &mut Lent,
    nullified: &[(Did, Timestamp, Timestamp)],
) -> Result<(), StoreError> {
    if nullified.is_empty() {
        return Ok(());
    }
    let (dids, times): (Vec<_>, Vec<_>) = keys(nullified);
    let by: Vec<i64> = nullified.iter().map(|(_, _, by)| by.millis()).collect();
    let nullify = sqlx::query!(
        "UPDATE operations o SET nullified_by = new.nullified_by
         FROM unnest($1::bytea[], $2::int8[], $3::int8[]) AS new (did, created_at, nullified_by)
         WHERE o.did = new.did AND o.created_at = new.created_at",
        dids as _,
        &times,
        &by
    );
    let changed = connection.execute(nullify).await?;
    all_there(changed, nullified.len(), "to be nullified")
}

async fn number(
    connection: &mut Lent,
    numbered: &[(Did, Timestamp, i64)],
) -> Result<(), StoreError> {
    if numbered.is_empty() {
        return Ok(());
    }
    let (dids, times): (Vec<_>, Vec<_>) = keys(numbered);
    let numbers: Vec<i64> = numbered.iter().map(|(_, _, number)| *number).collect();
    let number = sqlx::query!(
        "UPDATE operations o SET sequence = new.sequence
         FROM unnest($1::bytea[], $2::int8[], $3::int8[]) AS new (did, created_at, sequence)
         WHERE o.did = new.did AND o.created_at = new.created_at AND o.sequence IS NULL",
        dids as _,
        &times,
        &numbers
    );
    let changed = connection.execute(number).await?;
    all_there(changed, numbered.len(), "without a number")
}

fn keys<T>(rows: &[(Did, Timestamp, T)]) -> (Vec<&[u8]>, Vec<i64>) {
    rows.iter().map(|(did, time, _)| (did.as_bytes().as_slice(), time.millis())).unzip()
}

/// A row that was judged to be there and is not: judgement and table disagree.
fn all_there(changed: u64, expected: usize, what: &str) -> Result<(), StoreError> {
    if changed == expected as u64 {
        return Ok(());
    }
    Err(StoreError::Damaged {
        place: "table operations".to_owned(),
        reason: format!("{changed} operations {what} where {expected} were known"),
    })
}

/// Closes divergences.
async fn close(connection: &mut Lent, ids: &[i64], now: Timestamp) -> Result<(), StoreError> {
    let close =
        sqlx::query!("UPDATE divergences SET closed_at = $2 WHERE id = ANY($1)", ids, now.millis());
    connection.execute(close).await?;
    Ok(())
}
