//! The metrics: each name once, with what it means. What is in `ops/` uses these names, which a
//! test makes sure of.

use std::sync::{OnceLock, PoisonError, RwLock};
use std::time::Duration;

use ::metrics::{Counter, Histogram, counter, gauge, histogram};
use ::metrics::{describe_counter, describe_gauge, describe_histogram};
use ahash::AHashMap;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// Only rises; its name ends with `_total`.
    Counter,
    /// Rises and falls.
    Gauge,
    /// Counted into buckets: `_bucket`, `_sum` and `_count` are scraped.
    Histogram,
}

/// Every metric: its name, what it is, what it means.
pub const METRICS: &[(&str, MetricKind, &str)] = &[
    ("plc_operations_accepted_total", MetricKind::Counter, "Operations accepted and committed"),
    ("plc_operations_known_total", MetricKind::Counter, "Operations that came again"),
    ("plc_operations_refused_total", MetricKind::Counter, "Operations refused and kept, by kind"),
    (
        "plc_signature_disagreements_total",
        MetricKind::Counter,
        "Signatures about which the fast and the plain library disagreed; the plain one is believed",
    ),
    ("plc_divergences_total", MetricKind::Counter, "Differences noticed and recorded, by kind"),
    ("plc_upstream_faults_total", MetricKind::Counter, "Faults of the upstream, by kind"),
    (
        "plc_upstream_followed",
        MetricKind::Gauge,
        "1 for the upstream that is followed, 0 for the others, by upstream",
    ),
    (
        "plc_upstream_state",
        MetricKind::Gauge,
        "1 for how it stands with an upstream, 0 for how it does not, by upstream and state",
    ),
    (
        "plc_upstream_switches_total",
        MetricKind::Counter,
        "Times that another upstream was followed than before",
    ),
    (
        "plc_upstream_streams_total",
        MetricKind::Counter,
        "Times that the upstream's stream was joined",
    ),
    (
        "plc_upstream_gaps_total",
        MetricKind::Counter,
        "Gaps between sequence numbers that the upstream was asked about",
    ),
    (
        "plc_doubts_asked_total",
        MetricKind::Counter,
        "Kept refusals about which the upstream was asked again",
    ),
    (
        "plc_doubts_healed_total",
        MetricKind::Counter,
        "Those of them that did not stand any more afterwards",
    ),
    ("plc_received_cursor", MetricKind::Gauge, "Last sequence number that was received"),
    ("plc_cursor", MetricKind::Gauge, "Last sequence number that is committed"),
    (
        "plc_upstream_cursor",
        MetricKind::Gauge,
        "Last sequence number of the upstream, when it was asked for it",
    ),
    (
        "plc_catch_up_seconds",
        MetricKind::Gauge,
        "Until the upstream's log is read, at the rate of the last minutes; 0 when it is",
    ),
    (
        "plc_read_twice_cursor",
        MetricKind::Gauge,
        "Sequence number up to which the log was read a second time",
    ),
    ("plc_lag_seconds", MetricKind::Gauge, "How old the store's picture of the upstream is"),
    (
        "plc_lag_operations",
        MetricKind::Gauge,
        "Sequence numbers that were received and are not committed; what the upstream has not sent yet is not known",
    ),
    (
        "plc_upstream_silence_seconds",
        MetricKind::Gauge,
        "How long ago the upstream said something; absent before it has",
    ),
    (
        "plc_mode",
        MetricKind::Gauge,
        "1 for what the follower is doing, 0 for what it is not, by mode",
    ),
    (
        "plc_role",
        MetricKind::Gauge,
        "1 for what this process is to the log, 0 for what it is not, by role",
    ),
    ("plc_caught_up", MetricKind::Gauge, "1 once the log was read to its end"),
    ("plc_store_damaged", MetricKind::Gauge, "1 when a damaged row has stopped the intake"),
    ("plc_ingest_batch_operations", MetricKind::Histogram, "Operations of a commit"),
    ("plc_ingest_stage_seconds", MetricKind::Histogram, "Time of a batch in each stage"),
    ("plc_store_operations", MetricKind::Gauge, "Operations in the store, nullified ones included"),
    ("plc_store_identities", MetricKind::Gauge, "Identities in the store"),
    (
        "plc_store_refusals",
        MetricKind::Gauge,
        "Kept refusals that were not accepted since, counted up to 10000",
    ),
    (
        "plc_refusals_forgotten_total",
        MetricKind::Counter,
        "Kept refusals that went for newer ones since the log was begun",
    ),
    (
        "plc_divergences_forgotten_total",
        MetricKind::Counter,
        "Records of divergences that went for newer ones since the log was begun",
    ),
    (
        "plc_store_open_divergences",
        MetricKind::Gauge,
        "Divergences that are not closed, counted up to 10000",
    ),
    ("plc_store_bytes", MetricKind::Gauge, "Bytes of the database on disk"),
    (
        "plc_store_connections",
        MetricKind::Gauge,
        "Connections to the database, by state: busy or idle",
    ),
    ("plc_store_waiting", MetricKind::Gauge, "Reads that wait for a connection"),
    (
        "plc_reads_total",
        MetricKind::Counter,
        "Reads for answers, by the database that was asked; absent without read databases",
    ),
    (
        "plc_reads_retried_total",
        MetricKind::Counter,
        "Those of them that were asked elsewhere, by the read database that did not answer",
    ),
    (
        "plc_read_database_in_use",
        MetricKind::Gauge,
        "1 while a read database is read from, 0 while it is left out, by read database",
    ),
    (
        "plc_read_database_lag_seconds",
        MetricKind::Gauge,
        "For how long the database has had what a read database has not replayed, by read database",
    ),
    (
        "plc_cache_lookups_total",
        MetricKind::Counter,
        "Lookups in caches, by cache and outcome: hit or miss",
    ),
    ("plc_index_bytes", MetricKind::Gauge, "Bytes of the index of claims; absent without one"),
    (
        "plc_index_behind_operations",
        MetricKind::Gauge,
        "Sequence numbers that the index of claims does not have yet; absent without one",
    ),
    (
        "plc_snapshot_cursor",
        MetricKind::Gauge,
        "Last sequence number that is published in the snapshot; absent without one",
    ),
    ("plc_http_requests_total", MetricKind::Counter, "Requests answered, by route and status"),
    ("plc_http_request_seconds", MetricKind::Histogram, "Time until an answer was ready, by route"),
    ("plc_http_refused_total", MetricKind::Counter, "Requests that a limit refused, by limit"),
    ("plc_stream_clients", MetricKind::Gauge, "Clients of the stream"),
    (
        "plc_read_through_total",
        MetricKind::Counter,
        "Questions passed on to the upstream, by outcome",
    ),
    ("plc_writes_total", MetricKind::Counter, "Operations that clients submitted, by outcome"),
    ("plc_audit_comparisons_total", MetricKind::Counter, "Identities compared with the upstream's"),
    ("plc_audit_failures_total", MetricKind::Counter, "Comparisons that could not be made"),
    ("plc_audit_waiting", MetricKind::Gauge, "Identities that changed and are to be compared"),
    ("plc_divergences_closed_total", MetricKind::Counter, "Divergences that were found to be gone"),
    ("plc_stream_ended_total", MetricKind::Counter, "Stream clients that left, by reason"),
];

/// Upper bounds of what is measured in seconds.
const SECONDS: [f64; 14] =
    [0.0002, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];
/// Upper bounds of what is counted in operations: a batch has 8,000 at most.
const OPERATIONS: [f64; 8] = [1.0, 3.0, 10.0, 50.0, 200.0, 1_000.0, 3_000.0, 8_000.0];

/// Installs the recorder of this process and describes every metric.
///
/// # Errors
///
/// When there is a recorder already.
pub fn install(builder: PrometheusBuilder) -> Result<PrometheusHandle, BuildError> {
    let handle = builder
        .set_buckets(&SECONDS)?
        .set_buckets_for_metric(Matcher::Suffix("_operations".to_owned()), &OPERATIONS)?
        .install_recorder()?;
    for &(name, kind, meaning) in METRICS {
        match kind {
            MetricKind::Counter => describe_counter!(name, meaning),
            MetricKind::Gauge => describe_gauge!(name, meaning),
            MetricKind::Histogram => describe_histogram!(name, meaning),
        }
    }
    // What alerts look at is there from the start: a metric that is absent alarms nobody.
    gauge!("plc_store_damaged").set(0.0);
    gauge!("plc_stream_clients").set(0.0);
    for unlabelled in [
        "plc_operations_accepted_total",
        "plc_operations_known_total",
        "plc_signature_disagreements_total",
        "plc_upstream_gaps_total",
        "plc_upstream_switches_total",
        "plc_doubts_asked_total",
        "plc_doubts_healed_total",
    ] {
        counter!(unlabelled).absolute(0);
    }
    Ok(handle)
}

/// Counts lookups in a cache.
pub fn cache(name: &'static str, hits: usize, misses: usize) {
    for (outcome, lookups) in [("hit", hits), ("miss", misses)] {
        counter!("plc_cache_lookups_total", "cache" => name, "outcome" => outcome)
            .increment(lookups as u64);
    }
}

/// The statuses that are counted by themselves; the others are counted as `other`.
const STATUSES: [&str; 22] = [
    "200", "303", "304", "400", "404", "405", "406", "408", "409", "410", "413", "414", "415",
    "426", "429", "500", "501", "502", "503", "504", "101", "204",
];

/// Requests of all routes, by the name of the route.
#[derive(Debug, Default)]
pub struct RequestCounts {
    by_route: RwLock<AHashMap<String, Requests>>,
}

impl RequestCounts {
    /// Counts a request of a route that was answered so, after this time.
    pub fn count(&self, route: &str, status: http::StatusCode, took: Duration) {
        // Nothing can panic between two changes of it.
        let known = self.by_route.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(requests) = known.get(route) {
            return requests.count(status, took);
        }
        drop(known);
        let mut known = self.by_route.write().unwrap_or_else(PoisonError::into_inner);
        let requests = known.entry(route.to_owned()).or_insert_with(|| Requests::new(route));
        requests.count(status, took);
    }
}

/// Requests of one route: the handles are asked for once, so that counting a request costs some
/// nanoseconds.
#[derive(Debug)]
struct Requests {
    route: String,
    seconds: OnceLock<Histogram>,
    answered: [OnceLock<Counter>; STATUSES.len() + 1],
}

impl Requests {
    /// None yet.
    fn new(route: &str) -> Requests {
        Requests { route: route.to_owned(), seconds: OnceLock::new(), answered: Default::default() }
    }

    /// Counts one that was answered so, after this time.
    fn count(&self, status: http::StatusCode, took: Duration) {
        let at = STATUSES.iter().position(|name| *name == status.as_str());
        let at = at.unwrap_or(STATUSES.len());
        let answered = self.answered[at].get_or_init(|| {
            let status = STATUSES.get(at).copied().unwrap_or("other");
            counter!("plc_http_requests_total", "route" => self.route.clone(), "status" => status)
        });
        answered.increment(1);
        let seconds = self
            .seconds
            .get_or_init(|| histogram!("plc_http_request_seconds", "route" => self.route.clone()));
        seconds.record(took.as_secs_f64());
    }
}
