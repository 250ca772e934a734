//! What commits tell clients of the stream.

use super::open::Postgres;
use super::pool::Lent;
use super::read::unpack;
use super::rows::{OfIdentity, operations};
use crate::store::news::{KEPT, Noted, Plan};
use crate::store::{CommitId, News, StoreError};

/// All that is read is of one moment: a number that goes from one operation to another is told of once. The few commits that
/// are new are found by their places: the planner cannot know how few they are, and left to itself it has all that are kept
/// read each time.
const AT_ONE_MOMENT: &str = "
    BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY;
    SET LOCAL enable_hashjoin = off;
    SET LOCAL enable_mergejoin = off";

impl Postgres {
    /// See [`crate::store::Store::news`].
    pub async fn news(&self, after: CommitId) -> Result<Option<News>, StoreError> {
        let mut connection = self.news.lend().await?;
        connection.begin(AT_ONE_MOMENT).await?;
        let noted = noted_from(&mut connection, after).await?;
        let plan = Plan::after(after, &noted)?;
        let numbers = plan.as_ref().map(Plan::numbers).unwrap_or_default();
        let rows = match numbers.is_empty() {
            true => Vec::new(),
            false => {
                let told = operations!(
                    FROM "operations WHERE sequence = ANY($1) ORDER BY sequence",
                    &numbers
                );
                connection.all(told).await?
            }
        };
        connection.commit().await?;
        let operations = unpack(&self.strings, rows).await?;
        Ok(plan.map(|plan| plan.with(operations)))
    }
}

/// The rows from this commit on, ascending; without those whose places others have taken.
async fn noted_from(connection: &mut Lent, from: CommitId) -> Result<Vec<Noted>, StoreError> {
    let noted = sqlx::query!(
        "SELECT commits.number, commits.epoch, commits.told
         FROM sources
         CROSS JOIN LATERAL generate_series(greatest($1, sources.commits - $2 + 1, 1), sources.commits) AS wanted
         JOIN commits ON commits.slot = wanted % $2",
        from.number,
        KEPT
    );
    let rows = connection.all(noted).await?.into_iter();
    let mut noted: Vec<Noted> = rows
        .map(|row| Noted { id: CommitId { number: row.number, epoch: row.epoch }, told: row.told })
        .collect();
    noted.sort_unstable_by_key(|noted| noted.id.number);
    Ok(noted)
}
