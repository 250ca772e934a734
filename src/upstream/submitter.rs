//! Writing: an operation is sent to an upstream, once. Nothing here sends it a second time, whatever becomes
//! of it: whoever sends an operation twice is told that the second one is wrong.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, StatusCode, header};
use tokio::time::{Instant, timeout_at};
use url::Url;

use super::budget::Priority;
use super::client::{ExportClient, UnusableUpstream, builder, sentence};
use did_plc::Did;

/// Bytes of an answer. The directory's longest quotes an operation of 4,000 bytes, which is 28 kB where
/// every character of it is escaped twice; another upstream may take longer ones.
const LONGEST_ANSWER: usize = 1 << 20;
/// A connection that does not stand by then is given up, so that nothing was sent: three lost SYNs (1 + 2 + 4 s)
/// still connect.
const CONNECT: Duration = Duration::from_secs(8);

/// Sends operations to one upstream, within its budget.
#[derive(Debug, Clone)]
pub struct Submitter {
    http: reqwest::Client,
    upstream: ExportClient,
}

/// What the upstream answered, whatever that is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubmissionAnswer {
    /// Anything but a redirect.
    pub status: StatusCode,
    /// `Content-Type`.
    pub media_type: Option<HeaderValue>,
    /// `Retry-After`.
    pub retry_after: Option<HeaderValue>,
    /// The whole body.
    pub body: Bytes,
}

/// No answer, and what is known of the operation then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmissionFault {
    /// Nothing was sent.
    #[error("{reason}")]
    NotSent {
        /// Why.
        reason: String,
    },
    /// The upstream takes no operations at this address. It has not taken this one.
    #[error("the upstream redirects to {to}")]
    Redirected {
        /// Where to, as it says.
        to: String,
    },
    /// It was sent, or part of it, and there is no answer yet: the upstream may have taken it.
    #[error("no answer within {after:?}")]
    Silent {
        /// Since the request came.
        after: Duration,
    },
    /// The same, and there will be none that can be read.
    #[error("{reason}")]
    Broken {
        /// What went wrong.
        reason: String,
    },
}

impl Submitter {
    /// Submits to the upstream of this client.
    ///
    /// # Errors
    ///
    /// Those of [`ExportClient::new`].
    pub fn new(upstream: &ExportClient) -> Result<Submitter, UnusableUpstream> {
        let unusable = |reason: String| UnusableUpstream::new(upstream.base(), reason);
        let url = Url::parse(upstream.base()).map_err(|error| unusable(error.to_string()))?;
        let http = builder(&url, upstream.user_agent(), upstream.authorization())
            // After a redirect a client asks with GET, and what that is answered is no word about the operation.
            .redirect(reqwest::redirect::Policy::none())
            // A connection that was kept may be closed by the upstream while a request is written into it: then nobody
            // would know whether that has arrived.
            .pool_max_idle_per_host(0)
            .connect_timeout(CONNECT)
            .build()
            .map_err(|error| unusable(sentence(&error)))?;
        Ok(Submitter { http, upstream: upstream.clone() })
    }

    /// Sends the JSON of an operation of an identity, when its turn in the budget has come, and reads the answer.
    ///
    /// # Errors
    ///
    /// Each says what is known of the operation then.
    pub async fn submit(
        &self,
        did: &Did,
        json: String,
        deadline: Instant,
    ) -> Result<SubmissionAnswer, SubmissionFault> {
        let begun = Instant::now();
        let not_sent = |reason: String| SubmissionFault::NotSent { reason };
        let turn = timeout_at(deadline, self.upstream.budget().acquire(Priority::Writing)).await;
        turn.map_err(|_| {
            not_sent("more requests wait for the upstream than it is sent in that time".to_owned())
        })?;
        let request = self
            .http
            .post(format!("{}/{did}", self.upstream.base()))
            .header(header::CONTENT_TYPE, "application/json")
            .body(json);
        let silent = || SubmissionFault::Silent { after: begun.elapsed() };
        let response = match timeout_at(deadline, request.send()).await {
            Err(_) => return Err(silent()),
            Ok(Ok(response)) => response,
            Ok(Err(error)) if error.is_connect() => {
                let reason = sentence(&error.without_url());
                return Err(not_sent(format!("the upstream cannot be reached: {reason}")));
            }
            Ok(Err(error)) => return Err(broken(error)),
        };
        let header = |name| response.headers().get(name).cloned();
        let (status, retry_after) = (response.status(), header(header::RETRY_AFTER));
        if let Some(to) = header(header::LOCATION).filter(|_| status.is_redirection()) {
            let to = String::from_utf8_lossy(to.as_bytes()).into_owned();
            return Err(SubmissionFault::Redirected { to });
        }
        if matches!(status.as_u16(), 429 | 503) {
            // Which keeps everybody away for as long as the upstream asks for.
            let wish = retry_after.as_ref().and_then(|value| value.to_str().ok());
            self.upstream.refused(status.as_u16(), wish);
        }
        let media_type = header(header::CONTENT_TYPE);
        let body = timeout_at(deadline, receive(response)).await.map_err(|_| silent())??;
        Ok(SubmissionAnswer { status, media_type, retry_after, body })
    }
}

fn broken(error: reqwest::Error) -> SubmissionFault {
    SubmissionFault::Broken { reason: sentence(&error.without_url()) }
}

async fn receive(mut response: reqwest::Response) -> Result<Bytes, SubmissionFault> {
    let mut body = BytesMut::new();
    while let Some(piece) = response.chunk().await.map_err(broken)? {
        if body.len() + piece.len() > LONGEST_ANSWER {
            let reason = format!("its answer is larger than {LONGEST_ANSWER} bytes");
            return Err(SubmissionFault::Broken { reason });
        }
        body.extend_from_slice(&piece);
    }
    Ok(body.freeze())
}
