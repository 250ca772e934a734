//! The listener of `/metrics`, apart from the public one.

use std::net::SocketAddr;

use anyhow::Context;
use axum::Router;
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusBuilder;

/// Serves `/metrics` in the text format of Prometheus.
pub async fn listen(address: SocketAddr) -> anyhow::Result<()> {
    let handle = plc_replica::metrics::install(PrometheusBuilder::new())?;
    let listener = tokio::net::TcpListener::bind(address)
        .await
        .with_context(|| format!("--metrics-listen {address}: cannot listen there"))?;
    let router = Router::new().route(
        "/metrics",
        get(move || {
            let handle = handle.clone();
            async move {
                ([("content-type", "text/plain; version=0.0.4; charset=utf-8")], handle.render())
            }
        }),
    );
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(())
}
