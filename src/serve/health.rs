//! How the server itself is, for programs: `/_health` and `/_ready`.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use http::{StatusCode, header};
use serde::Serialize;

use super::answer::{self, Answer};
use super::state::Server;
use crate::clock::now;
use crate::live::{Mode, UpstreamReport, Upstreams};
use did_plc::Did;

/// How long the database may take to say that it is there. Whoever asks about health has a
/// timeout too, of ten seconds or so.
const DATABASE_TIMEOUT: Duration = Duration::from_secs(3);
/// The identity that is looked up to see whether lookups work. Nobody has it, and whether it is there is of
/// no interest: it is looked for in the same way as any other, and answered from nowhere but the store.
const PROBE: [u8; 15] = [0; 15];
/// The version in `/_health`.
const VERSION: &str = env!("CARGO_PKG_VERSION");

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Health {
    version: &'static str,
    sequence: i64,
    last_operation_at: Option<String>,
    upstream_age_seconds: Option<u64>,
    state: &'static str,
    role: &'static str,
    read_twice: i64,
    /// The upstream's last sequence number, as far as it is known.
    upstream_sequence: Option<i64>,
    percent: Option<f64>,
    /// At the rate of the last minutes; while catching up.
    seconds_left: Option<u64>,
    /// In order of preference.
    upstreams: Vec<Upstream>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Upstream {
    url: String,
    followed: bool,
    state: &'static str,
    since: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
}

#[derive(Serialize)]
struct Unhealthy {
    version: &'static str,
    error: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Readiness {
    ready: bool,
    answers_lookups: bool,
    lag_seconds: Option<u64>,
    state: &'static str,
    /// The process is about to end.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    draining: bool,
}

/// 200 while a database answers, whatever the upstream does.
pub async fn health(State(server): State<Arc<Server>>) -> Answer {
    if !answers_lookups(&server).await {
        let body = Unhealthy { version: VERSION, error: "Service Unavailable" };
        return report(StatusCode::SERVICE_UNAVAILABLE, &body);
    }
    let status = &server.state.status;
    let outlook = status.outlook();
    let left = outlook.and_then(|outlook| outlook.left);
    let health = Health {
        version: VERSION,
        sequence: status.sequence(),
        last_operation_at: status.last_operation().map(|at| at.to_string()),
        upstream_age_seconds: status.upstream_age(now()).map(|age| age.as_secs()),
        state: status.mode().name(),
        role: status.role().name(),
        read_twice: status.read_twice(),
        upstream_sequence: outlook.map(|outlook| outlook.head),
        percent: outlook.map(|outlook| (outlook.percent * 100.0).floor() / 100.0),
        seconds_left: left.filter(|_| status.mode() == Mode::CatchingUp).map(|left| left.as_secs()),
        upstreams: upstreams(status.upstreams()),
    };
    report(StatusCode::OK, &health)
}

fn upstreams(upstreams: &Upstreams) -> Vec<Upstream> {
    let followed = upstreams.followed();
    let upstream = |(place, report): (usize, UpstreamReport)| Upstream {
        url: report.base,
        followed: place == followed,
        state: report.standing.name(),
        since: report.since.to_string(),
        reason: report.reason,
    };
    upstreams.reports().into_iter().enumerate().map(upstream).collect()
}

/// 200 once the log has been caught up, while it is not older than the setting and a lookup is answered, and until the
/// process is asked to end. The
/// age alone would not do: while the upstream has nothing new, it stays young without the database.
pub async fn ready(State(server): State<Arc<Server>>) -> Answer {
    let answers_lookups = answers_lookups(&server).await;
    let status = &server.state.status;
    let lag = status.lag(now());
    let fresh = lag.is_some_and(|lag| lag < server.state.settings.ready_lag);
    let draining = server.draining.is_cancelled();
    let ready = answers_lookups && status.caught_up() && fresh && !draining;
    let body = Readiness {
        ready,
        answers_lookups,
        lag_seconds: lag.map(|lag| lag.as_secs()),
        state: status.mode().name(),
        draining,
    };
    report(if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, &body)
}

/// Whether a lookup works now.
async fn answers_lookups(server: &Server) -> bool {
    let (log, did) = (server.picture(), Did::from_bytes(PROBE));
    let lookup = tokio::time::timeout(DATABASE_TIMEOUT, log.head_here(&did));
    matches!(lookup.await, Ok(Ok(_)))
}

fn report(status: StatusCode, body: &impl Serialize) -> Answer {
    // These structures have no map with keys that are not strings, the only way to fail.
    let mut answer = answer::json(status, serde_json::to_vec(body).unwrap_or_default());
    if status == StatusCode::SERVICE_UNAVAILABLE {
        answer.headers_mut().insert(header::RETRY_AFTER, answer::RETRY_AFTER);
    }
    answer
}
