//! Lookups of single identities, which are gathered into common queries.

use std::sync::Arc;

use did_plc::Did;

use super::gather::Ask;
use super::pool::{Lent, Pool};
use super::rows::{OfPlace, operations};
use super::strings::Strings;
use crate::store::codec::Interned;
use crate::store::operation::{head_of, sort_histories};
use crate::store::{StoreError, StoredOperation};

/// Operations for each of the identities that were asked for, in their order.
type Histories = Vec<Result<Vec<StoredOperation>, StoreError>>;

/// Asks for many identities at a time, on a connection that is kept from one query to the next.
pub(super) struct Lookups {
    pool: Arc<Pool>,
    strings: Arc<Strings>,
    /// None before the first query, and after one that failed.
    connection: Option<Lent>,
}

impl Lookups {
    pub(super) fn new(pool: &Arc<Pool>, strings: &Arc<Strings>) -> Lookups {
        Lookups { pool: pool.clone(), strings: strings.clone(), connection: None }
    }

    async fn connection(&mut self) -> Result<Lent, StoreError> {
        match self.connection.take() {
            Some(connection) => Ok(connection),
            None => self.pool.lend().await,
        }
    }

    /// The histories of these identities, in their order.
    async fn histories(&mut self, dids: &[Did]) -> Result<Histories, StoreError> {
        let chains = operations!(
            OfPlace,
            r#"asked.place AS "key!""#,
            FROM "unnest($1::bytea[]) WITH ORDINALITY AS asked (did, place), LATERAL (
                SELECT * FROM operations o WHERE o.did = asked.did ORDER BY o.created_at) chain",
            keys(dids) as _
        );
        let mut connection = self.connection().await?;
        let rows = connection.all(chains).await?;
        self.connection = Some(connection);
        self.sorted_out(dids, rows).await
    }

    /// What the rows are, for each of `dids`; a damaged row spoils the answer for its identity alone.
    async fn sorted_out(&self, dids: &[Did], rows: Vec<OfPlace>) -> Result<Histories, StoreError> {
        let asked = dids.to_vec();
        let make = move |rows: &[OfPlace], known: &Interned| sort_out(&asked, rows, known);
        self.strings.read(rows, make, |answers| answers.iter().any(Result::is_err)).await
    }
}

/// Asks for the heads of many identities.
pub(super) struct Heads(pub(super) Lookups);

impl Ask for Heads {
    type Answer = Option<StoredOperation>;

    async fn ask(
        &mut self,
        dids: &[Did],
    ) -> Result<Vec<Result<Self::Answer, StoreError>>, StoreError> {
        let heads = operations!(
            OfPlace,
            r#"asked.place AS "key!""#,
            FROM "unnest($1::bytea[]) WITH ORDINALITY AS asked (did, place), LATERAL (
                SELECT * FROM operations o WHERE o.did = asked.did AND o.nullified_by IS NULL
                ORDER BY o.created_at DESC FETCH FIRST ROW WITH TIES) head",
            keys(dids) as _
        );
        let mut connection = self.0.connection().await?;
        let rows = connection.all(heads).await?;
        self.0.connection = Some(connection);
        let newest = self.0.sorted_out(dids, rows).await?;
        // Of equal times only the order of the whole history says which is the last.
        let is_tied = |newest: &Result<Vec<_>, _>| newest.as_ref().is_ok_and(|of| of.len() > 1);
        let tied: Vec<Did> = dids
            .iter()
            .zip(&newest)
            .filter(|(_, newest)| is_tied(newest))
            .map(|(did, _)| *did)
            .collect();
        let mut tied = match tied.is_empty() {
            true => Vec::new(),
            false => self.0.histories(&tied).await?,
        }
        .into_iter();
        let mut head = |newest: Result<Vec<_>, StoreError>| match is_tied(&newest) {
            true => tied.next().unwrap_or(newest),
            false => newest,
        };
        Ok(newest.into_iter().map(|newest| Ok(head_of(head(newest)?))).collect())
    }
}

/// Asks for the histories of many identities.
pub(super) struct Chains(pub(super) Lookups);

impl Ask for Chains {
    type Answer = Vec<StoredOperation>;

    async fn ask(&mut self, dids: &[Did]) -> Result<Histories, StoreError> {
        self.0.histories(dids).await
    }
}

/// DIDs as the database has them.
pub(super) fn keys(dids: &[Did]) -> Vec<[u8; 15]> {
    dids.iter().map(|did| *did.as_bytes()).collect()
}

/// The rows of a gathered lookup, by the identity that each belongs to.
fn sort_out(asked: &[Did], rows: &[OfPlace], known: &Interned) -> Histories {
    let mut answers: Vec<_> = asked.iter().map(|_| Ok(Vec::new())).collect();
    for row in rows {
        // Places count from 1, and each is one that was asked for.
        let place = row.key.wrapping_sub(1) as usize;
        let (Some(did), Some(answer)) = (asked.get(place), answers.get_mut(place)) else {
            continue;
        };
        match (row.operation(*did, known), answer) {
            (Ok(operation), Ok(history)) => history.push(operation),
            (Err(error), answer) => *answer = Err(error),
            (Ok(_), Err(_)) => {}
        }
    }
    // The nested loop yields each chain in this order already; no plan is bound to.
    for history in answers.iter_mut().flatten() {
        sort_histories(history);
    }
    answers
}
