//! The listener of `/metrics`, apart from the public one.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusBuilder;

use super::failure;

/// How often measurements are put into their buckets, whoever scrapes. Until then each of them is
/// kept by itself, in some 24 bytes: ten thousand requests a second come to a megabyte or two.
const UPKEEP: Duration = Duration::from_secs(5);

/// Serves `/metrics` in the text format of Prometheus.
pub async fn listen(address: SocketAddr) -> anyhow::Result<()> {
    let handle = crate::metrics::install(PrometheusBuilder::new())?;
    let upkeep = handle.clone();
    let listener = tokio::net::TcpListener::bind(address)
        .await
        .with_context(|| failure::cannot_listen("--metrics-listen", address))?;
    let router = Router::new().route(
        "/metrics",
        get(move || {
            let handle = handle.clone();
            async move {
                ([("content-type", "text/plain; version=0.0.4; charset=utf-8")], handle.render())
            }
        }),
    );
    tokio::spawn(async move {
        let mut beat = tokio::time::interval(UPKEEP);
        loop {
            beat.tick().await;
            upkeep.run_upkeep();
        }
    });
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(())
}
