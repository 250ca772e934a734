//! Who keeps the row of the source locked after the lease has run out: most of all a follower that hangs in the middle of a
//! transaction, of which the server waits for the rest.

use std::sync::atomic::Ordering;

use super::pool::Lent;
use super::writer::{LEASE, Writer};
use crate::store::StoreError;

/// The backend that has locked the row.
struct Holder {
    pid: i32,
    user: String,
    /// What its connection calls itself.
    application: String,
    /// Whether that is what ours do.
    is_ours: bool,
    /// Whether the server has waited for it, in a transaction that is older than a lease; none where this user may neither
    /// see nor end that.
    hangs: Option<bool>,
}

impl Writer {
    /// Why the lease cannot be taken, of which the row is locked though it has run out. The connection of one that hangs is
    /// ended: what it has written is undone, and it finds when it goes on that it has lost the lease.
    pub(super) async fn locked_out(&self, connection: &mut Lent) -> Result<StoreError, StoreError> {
        let lost = |reason: &str| Ok(StoreError::LostLease(reason.to_owned()));
        let Some(holder) = holder(connection).await? else {
            return lost("its lease has ended only just now");
        };
        match holder.hangs {
            Some(false) => lost("it is in the middle of a transaction"),
            Some(true) if holder.is_ours => {
                let pid = holder.pid;
                let end = sqlx::query!("SELECT pg_terminate_backend($1)", pid);
                connection.first(end).await?;
                tracing::warn!(
                    pid,
                    "the process that followed hangs in the middle of a transaction: its lease has run out, and its \
                     connection to the database is ended"
                );
                lost("it hangs, and its connection is ended")
            }
            _ => {
                self.say_that_it_is_locked(&holder);
                lost("its lease has run out, but the row of the table sources is locked")
            }
        }
    }

    /// Once of each.
    fn say_that_it_is_locked(&self, holder: &Holder) {
        let Holder { pid, user, application, .. } = holder;
        if self.locked_by.swap(*pid, Ordering::Relaxed) != *pid {
            tracing::warn!(
                pid,
                user,
                application,
                "nobody can follow: the lease has run out, but somebody has locked the row of the table sources, whom this \
                 process may not end; where that one hangs, end it as the same user, or as a superuser: SELECT \
                 pg_terminate_backend({pid})"
            );
        }
    }
}

/// Whoever has changed or locked the row, in a transaction that has not ended.
async fn holder(connection: &mut Lent) -> Result<Option<Holder>, StoreError> {
    let holder = sqlx::query_as!(
        Holder,
        r#"SELECT activity.pid AS "pid!", coalesce(activity.usename::text, '') AS "user!",
                activity.application_name AS "application!",
                activity.application_name = current_setting('application_name') AS "is_ours!",
                CASE WHEN pg_has_role(activity.usesysid, 'USAGE') THEN coalesce(
                    activity.wait_event_type = 'Client' AND activity.xact_start < now() - make_interval(secs => $1), false)
                END AS hangs
           FROM sources
           JOIN pg_locks AS held ON held.transactionid = sources.xmax AND held.granted
           JOIN pg_stat_activity AS activity ON activity.pid = held.pid"#,
        LEASE.as_secs_f64()
    );
    connection.first(holder).await
}
