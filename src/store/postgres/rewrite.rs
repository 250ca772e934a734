//! Identities whose operations a commit replaces.

use std::collections::{HashMap, HashSet};

use did_plc::Did;

use super::pool::Lent;
use super::rows::DidBytes;
use crate::store::{Commit, StoreError};

/// Deletes all operations of the identities that a commit rewrites: all of them before anything is put in, since a
/// number may go from one to another.
pub(super) async fn delete(connection: &mut Lent, commit: &Commit) -> Result<(), StoreError> {
    if commit.rewritten.is_empty() {
        return Ok(());
    }
    let dids: Vec<_> = commit.rewritten.iter().map(|of| *of.did.as_bytes()).collect();
    let delete = sqlx::query!(
        r#"DELETE FROM operations WHERE did = ANY($1) RETURNING did AS "did: DidBytes", sequence"#,
        dids as _
    );
    let deleted = connection.all(delete).await?;
    let mut counts: HashMap<Did, usize> = HashMap::new();
    for row in &deleted {
        *counts.entry(row.did.0).or_default() += 1;
    }
    for rewritten in &commit.rewritten {
        let count = counts.get(&rewritten.did).copied().unwrap_or(0);
        if count != rewritten.stored {
            return Err(StoreError::Damaged {
                place: rewritten.did.to_string(),
                reason: format!("{count} operations where {} were known", rewritten.stored),
            });
        }
    }
    let numbers: HashSet<i64> = commit.written().filter_map(|new| new.sequence).collect();
    if deleted.iter().filter_map(|row| row.sequence).any(|number| !numbers.contains(&number)) {
        let renumbered = sqlx::query!("UPDATE sources SET renumbered = renumbered + 1");
        connection.execute(renumbered).await?;
    }
    Ok(())
}
