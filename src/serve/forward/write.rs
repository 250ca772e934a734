//! One write on its way: to the upstream, back by its log, and into an answer.

use std::sync::Arc;
use std::time::Duration;

use axum::response::IntoResponse;
use did_plc::Did;
use did_plc::submission::Submission;
use http::{HeaderValue, StatusCode, header};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};

use super::super::answer::{self, Answer};
use super::super::error::ServeError;
use super::super::state::Server;
use super::super::wait;
use super::gate::Forward;
use super::outcome::Outcome;
use crate::reads::Freshness;
use crate::upstream::{SubmissionAnswer, SubmissionFault};

/// An operation that goes to the upstream.
pub struct Write {
    /// By whom.
    pub forward: Arc<Forward>,
    /// Of this identity.
    pub did: Did,
    /// What was submitted.
    pub submission: Submission,
    /// When the answer is due.
    pub deadline: Instant,
    /// How long the operation is waited for once it was sent.
    pub patience: Duration,
    /// Its place among all that are under way.
    pub place: OwnedSemaphorePermit,
}

impl Write {
    /// Sends the operation and waits until it has come back. The answer says what is known of it.
    pub async fn carry_out(self, server: &Server) -> Answer {
        let (outcome, answer) = self.outcome(server).await;
        drop(self.place);
        outcome.count();
        let mut answer = answer.into_response();
        outcome.state(answer.headers_mut());
        answer::state_freshness(Freshness::now(&server.state.status), answer.headers_mut());
        answer
    }

    async fn outcome(&self, server: &Server) -> (Outcome, Result<Answer, ServeError>) {
        let due = self.deadline.min(Instant::now() + self.forward.settings.time);
        let json = self.submission.json().to_owned();
        let doubt = match self.forward.submitter.submit(&self.did, json, due).await {
            Ok(said) if is_success(&said) => {
                let has_come = self.has_come(server).await;
                let outcome = if has_come { Outcome::Committed } else { Outcome::Accepted };
                return (outcome, Ok(pass_on(said)));
            }
            Ok(said) if said.status.is_client_error() => {
                return (Outcome::Refused, Ok(pass_on(said)));
            }
            Err(SubmissionFault::NotSent { reason }) => {
                return (Outcome::NotSent, Err(ServeError::NotSent(reason)));
            }
            Err(SubmissionFault::Redirected { to }) => {
                return (Outcome::Refused, Err(ServeError::WritesElsewhere(to)));
            }
            Ok(said) if said.status.is_server_error() => Ok(pass_on(said)),
            Ok(said) => {
                let reason = format!("it answered {} with something else", said.status.as_u16());
                Err(self.unknown(reason, StatusCode::BAD_GATEWAY))
            }
            Err(fault @ SubmissionFault::Silent { .. }) => {
                Err(self.unknown(fault.to_string(), StatusCode::GATEWAY_TIMEOUT))
            }
            Err(fault @ SubmissionFault::Broken { .. }) => {
                Err(self.unknown(fault.to_string(), StatusCode::BAD_GATEWAY))
            }
        };
        // Nobody has said what became of it. If it comes, the upstream has taken it.
        match self.has_come(server).await {
            true => (Outcome::Committed, Ok(taken())),
            false => (Outcome::Unknown, doubt),
        }
    }

    fn unknown(&self, reason: String, status: StatusCode) -> ServeError {
        ServeError::OutcomeUnknown { did: self.did, reason, status }
    }

    /// Waits until the operation is here. Where it does not come in time, the upstream is asked from now on by whoever
    /// reads its identity.
    async fn has_come(&self, server: &Server) -> bool {
        let cid = self.submission.cid();
        let until = self.deadline.min(Instant::now() + self.patience);
        let arrival = timeout_at(until, wait::arrival(server, self.did, cid));
        // Where the store cannot be asked, nobody knows that it is here.
        let has_come = server.shutdown.run_until_cancelled(arrival).await;
        if let Some(Ok(Ok(()))) = has_come {
            if server.state.reads.has_standbys() {
                self.forward.written.note(self.did, cid);
            }
            return true;
        }
        self.forward.written.note(self.did, cid);
        if let Some(upstream) = &server.state.upstream {
            upstream.forget(&self.did);
        }
        false
    }
}

/// Whether an upstream says that it has taken an operation. A web page is somebody else's answer.
fn is_success(said: &SubmissionAnswer) -> bool {
    let media_type = said.media_type.as_ref().map_or(&b""[..], HeaderValue::as_bytes);
    said.status.is_success() && !media_type.to_ascii_lowercase().starts_with(b"text/html")
}

/// The upstream's answer as our own.
fn pass_on(said: SubmissionAnswer) -> Answer {
    let mut answer = answer::empty(said.status);
    *answer.body_mut() = said.body.into();
    let headers = answer.headers_mut();
    headers.insert(header::CACHE_CONTROL, answer::NO_STORE);
    for (name, value) in
        [(header::CONTENT_TYPE, said.media_type), (header::RETRY_AFTER, said.retry_after)]
    {
        if let Some(value) = value {
            headers.insert(name, value);
        }
    }
    answer
}

/// What a directory answers when it has taken an operation.
fn taken() -> Answer {
    let mut answer = answer::body(StatusCode::OK, answer::TEXT, "OK");
    answer.headers_mut().insert(header::CACHE_CONTROL, answer::NO_STORE);
    answer
}
