//! Numbers under which something is stated otherwise than before, until they were read once more.

use did_plc::Timestamp;

use super::lease::over;
use super::open::Postgres;
use super::pool::Lent;
use crate::store::commit::MAX_UNSETTLED;
use crate::store::{Commit, Lease, StoreError, Unsettled};

/// Notes what a commit takes over. What finds no room, and what is above a cursor that is put back, is left out.
pub(super) async fn write(connection: &mut Lent, commit: &Commit) -> Result<(), StoreError> {
    if commit.goes_back() {
        let lost = sqlx::query!("DELETE FROM unsettled WHERE sequence > $1", commit.cursor_after);
        connection.execute(lost).await?;
    }
    if commit.unsettled.is_empty() {
        return Ok(());
    }
    let numbers: Vec<i64> = commit.unsettled.iter().map(|it| it.number).collect();
    let times: Vec<bool> = commit.unsettled.iter().map(|it| it.times).collect();
    let note = sqlx::query!(
        "INSERT INTO unsettled (sequence, at, times)
         SELECT sequence, $3, times FROM unnest($1::int8[], $2::bool[]) AS new (sequence, times)
         WHERE (SELECT count(*) FROM unsettled) < $4
         ON CONFLICT (sequence) DO UPDATE SET at = excluded.at, times = unsettled.times OR excluded.times",
        &numbers,
        &times,
        commit.received_at_millis,
        MAX_UNSETTLED
    );
    connection.execute(note).await?;
    Ok(())
}

impl Postgres {
    /// See [`crate::store::Store::unsettled`].
    pub async fn unsettled(
        &self,
        after: i64,
        before: Timestamp,
        count: usize,
    ) -> Result<Vec<Unsettled>, StoreError> {
        let unsettled = sqlx::query_as!(
            Unsettled,
            "SELECT sequence AS number, times FROM unsettled WHERE sequence > $1 AND at < $2
             ORDER BY sequence LIMIT $3",
            after,
            before.millis(),
            i64::try_from(count).unwrap_or(i64::MAX)
        );
        self.ingest.all(unsettled).await
    }

    /// See [`crate::store::Store::settle`].
    pub async fn settle(
        &self,
        lease: &Lease,
        numbers: Vec<i64>,
        before: Timestamp,
    ) -> Result<(), StoreError> {
        let _turn = self.writer.turn.lock().await;
        let settle = sqlx::query!(
            r#"WITH settled AS (
                DELETE FROM unsettled USING sources
                WHERE epoch = $1 AND sequence = ANY($2) AND at < $3)
             SELECT count(*) AS "count!" FROM sources WHERE epoch = $1"#,
            lease.epoch,
            &numbers,
            before.millis()
        );
        match self.writer.pool.lend().await?.first(settle).await?.map_or(0, |row| row.count) {
            0 => Err(over(lease)),
            _ => Ok(()),
        }
    }
}
