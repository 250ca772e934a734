//! The arguments that several commands take.

use std::sync::Arc;

use did_plc::signature::{PlainVerifier, Verifier};
use plc_curve::{FastVerifier, Tables};

use crate::store::{DIVERGENCE_BYTES, RefusalLimits, Store};

/// How requests to others are signed.
pub const USER_AGENT: &str = concat!("plc-replica/", env!("CARGO_PKG_VERSION"));

/// Where the log is kept.
#[derive(Debug, clap::Args)]
pub struct Database {
    /// Database: the path of a file for SQLite (or `sqlite://PATH`), or `postgres://…`. `serve` and `import` create it when it is
    /// missing.
    #[arg(
        id = "database",
        long = "database",
        env = "DATABASE_URL",
        hide_env_values = true,
        value_name = "URL",
        default_value = "sqlite://plc.db"
    )]
    pub url: String,
}

/// How often the upstream is asked.
#[derive(Debug, clap::Args)]
pub struct RequestRate {
    /// Requests a minute that the upstream is sent at most, and each other that is asked for anything; 0 for no
    /// limit. The public directory allows 500 in 5 minutes.
    #[arg(
        id = "upstream_requests_per_minute",
        long = "upstream-requests-per-minute",
        env = "PLC_UPSTREAM_REQUESTS_PER_MINUTE",
        value_name = "REQUESTS",
        default_value_t = 100
    )]
    pub per_minute: u32,
}

/// The first of several upstreams, which clap makes sure that there is.
pub fn preferred(upstreams: &[String]) -> &str {
    upstreams.first().map_or("", String::as_str)
}

/// How much is kept of what is refused, and of differences.
#[derive(Debug, clap::Args)]
pub struct KeptRecords {
    /// Bytes that refused lines may take in the database. Each counts with itself, the reason, twice the DID that it
    /// states, and 300. Beyond them the oldest go for newer ones, those of the same upstream and kind first.
    #[arg(
        long,
        env = "PLC_REFUSED_BYTES",
        value_name = "BYTES",
        default_value_t = RefusalLimits::default().in_all
    )]
    refused_bytes: u64,
    /// Bytes that those of one identity may take.
    #[arg(
        long,
        env = "PLC_REFUSED_BYTES_PER_IDENTITY",
        value_name = "BYTES",
        default_value_t = RefusalLimits::default().of_identity
    )]
    refused_bytes_per_identity: u64,
    /// Bytes that records of differences may take in the database. Each counts with both sides, and some 500. Beyond
    /// them the oldest go for newer ones, those of the same upstream and kind first; the first of each upstream and
    /// kind stays.
    #[arg(
        long,
        env = "PLC_DIVERGENCE_BYTES",
        value_name = "BYTES",
        default_value_t = DIVERGENCE_BYTES
    )]
    divergence_bytes: u64,
}

impl KeptRecords {
    /// Has this store keep so much from now on.
    pub fn limit(&self, store: &Store) {
        store.limit_refusals(RefusalLimits {
            of_identity: self.refused_bytes_per_identity,
            in_all: self.refused_bytes,
        });
        store.limit_divergences(self.divergence_bytes);
    }
}

/// How signatures are checked.
#[derive(Debug, clap::Args)]
pub struct Signatures {
    /// Check signatures of keys that sign often with tables of their multiples. `off` leaves them
    /// to libsecp256k1; the verdicts are the same.
    #[arg(
        long,
        env = "PLC_SIGNATURE_TABLES",
        value_name = "on|off",
        default_value = "on",
        action = clap::ArgAction::Set,
        value_parser = super::values::switch()
    )]
    pub signature_tables: bool,
}

impl Signatures {
    /// The verifier that these settings ask for.
    pub fn verifier(&self) -> Arc<dyn Verifier> {
        let tables = if self.signature_tables { Tables::On } else { Tables::Off };
        Arc::new(FastVerifier::new(tables))
    }

    /// That, or the second opinion.
    pub fn verifier_or_plain(&self, plain: bool) -> Arc<dyn Verifier> {
        if plain { Arc::new(PlainVerifier) } else { self.verifier() }
    }
}
