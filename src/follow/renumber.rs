//! Turning a store to an upstream that has the same operations under other sequence numbers: another replica,
//! or a directory that was restored elsewhere.

use super::fetch::fetch_lines;
use super::lease::{self, while_renewing};
use crate::store::{Lease, Store, StoreError};
use crate::upstream::{ExportClient, Priority, UpstreamFault};

/// Lines of the other upstream that are looked for in the store.
const COMPARED: usize = 100;

/// Why a store was not turned.
#[derive(Debug, thiserror::Error)]
pub enum RenumberError {
    /// Because of the upstream.
    #[error(transparent)]
    Upstream(#[from] UpstreamFault),
    /// Because of the store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It sent nothing that could be looked for here.
    #[error("{upstream} sent no operations that could be compared with those of this database")]
    NothingToCompare { upstream: String },
    /// The logs are not the same.
    #[error(
        "only {known} of the first {compared} operations of {upstream} are in this database: it is another log; use another database for it"
    )]
    OtherLog { upstream: String, known: usize, compared: usize },
}

/// Has the store read the log of this upstream from its beginning when it is followed the next time. What
/// is known is recognised then, and gets the numbers that the upstream states for it, which are no differences to
/// be recorded. Nothing is deleted, and what is served stays as it is until then.
///
/// # Errors
///
/// [`RenumberError`]; [`StoreError::LostLease`] while somebody follows.
pub async fn renumber(store: &Store, client: &ExportClient) -> Result<(), RenumberError> {
    let (lease, _) = lease::take(store, client.base()).await?;
    let turned = while_renewing(store, &lease, turn(store, client, &lease)).await;
    // One that cannot be given back runs out by itself.
    store.release(lease).await.ok();
    turned
}

/// A crash in between leaves a store that follows the upstream of before.
async fn turn(store: &Store, client: &ExportClient, lease: &Lease) -> Result<(), RenumberError> {
    compare(store, client).await?;
    Ok(store.begin_renumbering(lease, client.base()).await?)
}

/// Makes sure that the upstream's first operations are here, under whatever numbers.
async fn compare(store: &Store, client: &ExportClient) -> Result<(), RenumberError> {
    let decoded = fetch_lines(client, 0, COMPARED, Priority::Following).await?;
    let (mut known, mut compared) = (0, 0);
    for received in decoded.entries().iter().flatten() {
        compared += 1;
        let held = store.history(&received.did).await?;
        let refused = store.standing_refusals(&[received.did]).await?;
        let is_here = held.iter().any(|held| held.cid() == received.cid)
            || refused.iter().any(|kept| kept.refusal.cid == Some(received.cid));
        known += usize::from(is_here);
    }
    let upstream = client.base().to_owned();
    // Some may be missing here: the rest is the same.
    match compared {
        0 => Err(RenumberError::NothingToCompare { upstream }),
        _ if known * 2 > compared => Ok(()),
        _ => Err(RenumberError::OtherLog { upstream, known, compared }),
    }
}
