//! Making ready for identities that are about to be written. A row of each goes to another page of the index of identities. Where
//! that index does not fit into memory, the connection that writes would wait for one page after the other; asked for
//! beforehand, several are read at a time.

use std::time::{Duration, Instant};

use did_plc::Did;
use futures::future::try_join_all;

use super::lookup::keys;
use super::open::{PARALLEL_READS, Postgres};
use crate::store::StoreError;

/// The share of the identities by which it is found out whether the disk has to be read: asking for all of them would cost
/// a tenth of the speed where it has not.
const SAMPLE: usize = 16;
/// An identity takes the server 3 microseconds when its page is in memory, and about 50 when it is not.
const IN_MEMORY: Duration = Duration::from_micros(20);

impl Postgres {
    /// See [`crate::store::Store::expect`].
    pub async fn expect(&self, dids: &[Did]) -> Result<(), StoreError> {
        let (sample, others) = dids.split_at(dids.len() / SAMPLE);
        let begun = Instant::now();
        self.visit(sample).await?;
        if begun.elapsed() <= IN_MEMORY * sample.len() as u32 {
            return Ok(());
        }
        let share = others.len().div_ceil(PARALLEL_READS).max(1);
        try_join_all(others.chunks(share).map(|share| self.visit(share))).await?;
        Ok(())
    }

    /// Reads the pages on which these identities have their place.
    async fn visit(&self, dids: &[Did]) -> Result<(), StoreError> {
        if dids.is_empty() {
            return Ok(());
        }
        let visit = sqlx::query!(
            "SELECT count(*) FROM unnest($1::bytea[]) AS asked (did),
                LATERAL (SELECT FROM operations o WHERE o.did = asked.did LIMIT 1) held",
            keys(dids) as _
        );
        self.ingest.all(visit).await.map(drop)
    }
}
