//! The metrics: each name once, with what it means.

use metrics::{describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle};

/// Installs the recorder of this process and describes every metric.
///
/// # Errors
///
/// When there is a recorder already.
pub fn install(builder: PrometheusBuilder) -> Result<PrometheusHandle, BuildError> {
    let handle = builder.set_buckets(&SECONDS)?.install_recorder()?;
    describe_counter!("plc_operations_accepted_total", "Operations accepted and committed");
    describe_counter!("plc_operations_known_total", "Operations that came again");
    describe_counter!("plc_operations_refused_total", "Operations refused and kept, by kind");
    describe_counter!("plc_divergences_total", "Differences noticed and recorded, by kind");
    describe_counter!("plc_upstream_faults_total", "Faults of the upstream, by kind");
    describe_gauge!("plc_cursor", "Last sequence number that is committed");
    describe_gauge!("plc_store_damaged", "1 when a damaged row has stopped the intake");
    describe_histogram!("plc_ingest_batch_operations", "Operations of a commit");
    describe_histogram!("plc_ingest_stage_seconds", "Time of a batch in each stage");
    Ok(handle)
}

/// Upper bounds of the histograms, in seconds.
const SECONDS: [f64; 12] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];
