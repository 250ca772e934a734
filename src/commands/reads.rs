//! The databases that `serve` reads from.

use std::sync::Arc;
use std::time::Duration;

use crate::live::Status;
use crate::reads::Reads;
use crate::store::{Standby, Store, StoreError};
use tokio::time::timeout;

/// How long a standby is waited for at the start. One that does not answer by then is looked for again and again.
const PATIENCE: Duration = Duration::from_secs(3);

/// Where answers are read from.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct ReadArgs {
    /// Hot standby of the database in Postgres, from which answers are read: a `postgres://` URL that always leads to the
    /// same server. May be given several times, or with commas between the URLs. While one is away, or behind, the others
    /// are read from, and the database itself where there is none left. The stream, and what follows, read from the
    /// database itself.
    #[arg(
        long,
        env = "PLC_READ_DATABASE",
        hide_env_values = true,
        value_name = "URL",
        value_delimiter = ','
    )]
    read_database: Vec<String>,
    /// A read database is left out while it lacks what the database has had for more than this.
    #[arg(
        long,
        env = "PLC_READ_LAG_SECONDS",
        value_name = "SECONDS",
        default_value_t = 5.0,
        value_parser = super::values::not_negative
    )]
    read_lag_seconds: f64,
}

impl ReadArgs {
    /// How far a standby may be behind.
    pub fn most(&self) -> Duration {
        Duration::from_secs_f64(self.read_lag_seconds)
    }

    /// What answers are read from, and the standbys to be watched.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unusable`], with a sentence, for a setting that cannot be used, as far as that can be told now: a
    /// standby that is away, or has not replayed the tables, is left out until it has. Others if the store is not there.
    pub async fn open(
        &self,
        store: &Store,
        status: &Arc<Status>,
    ) -> Result<(Arc<Reads>, Vec<Standby>), StoreError> {
        let mut standbys: Vec<Standby> = Vec::new();
        for url in &self.read_database {
            let mut standby = store.standby(url).await?;
            if standbys.iter().any(|other| other.name() == standby.name()) {
                let sentence =
                    format!("the setting --read-database names {} twice", standby.name());
                return Err(StoreError::Unusable(sentence));
            }
            if let Ok(Err(error @ StoreError::Unusable(_))) =
                timeout(PATIENCE, standby.replayed()).await
            {
                return Err(error);
            }
            standbys.push(standby);
        }
        let names = standbys.iter().map(Standby::name).collect();
        Ok((Arc::new(Reads::new(store.clone(), Arc::clone(status), names)), standbys))
    }
}
