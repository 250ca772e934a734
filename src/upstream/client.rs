//! Requests and their answers: pages of the export, audit logs, any other path.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use data_encoding::BASE64;
use percent_encoding::percent_decode_str;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, RANGE, RETRY_AFTER};
use reqwest::{ClientBuilder, RequestBuilder, Response, StatusCode};
use tokio::time::{Instant, timeout};
use url::{Host, Url};

use super::budget::{Priority, RequestBudget};
use super::fault::UpstreamFault;
use super::limits::Limits;
use super::page::{Page, not_an_export, number, require_export, split_lines};
use crate::clock;
use did_plc::{Did, Timestamp};

/// Redirects to follow. One for `http` to `https` and one for a moved host are plausible.
const REDIRECTS: usize = 5;

/// The setting `--upstream` (or `--against`) cannot be used as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "an upstream is an http:// or https:// URL without query, such as https://plc.directory; {given:?} is not ({reason})"
)]
pub struct UnusableUpstream {
    given: String,
    reason: String,
}

impl UnusableUpstream {
    pub(super) fn new(given: impl Into<String>, reason: String) -> UnusableUpstream {
        UnusableUpstream { given: given.into(), reason }
    }
}

/// One upstream, over HTTP. Cheap to clone; clones share connections and the budget.
#[derive(Debug, Clone)]
pub struct ExportClient {
    http: reqwest::Client,
    /// Without a slash at its end.
    base: Arc<str>,
    user_agent: Arc<str>,
    /// Of a mirror that asks for a name and a password.
    authorization: Option<HeaderValue>,
    budget: Arc<RequestBudget>,
    /// What everything but following is counted as.
    aside: Priority,
    limits: Arc<Limits>,
}

/// An answer that is one, whatever its status says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// 2xx or 4xx, never 429.
    pub status: u16,
    /// The whole body.
    pub body: Bytes,
}

impl ExportClient {
    /// A client of the directory (or replica) at this URL, with a budget of so many requests a
    /// minute (0 for no limit).
    pub fn new(
        base_url: &str,
        requests_per_minute: u32,
        user_agent: &str,
        limits: Limits,
    ) -> Result<ExportClient, UnusableUpstream> {
        ExportClient::build(base_url, requests_per_minute, user_agent, limits, |builder| builder)
    }

    /// The same of a server of files, which are taken as they are stored.
    pub(super) fn of_files(
        base_url: &str,
        user_agent: &str,
        limits: Limits,
    ) -> Result<ExportClient, UnusableUpstream> {
        let as_stored = |builder: ClientBuilder| builder.no_gzip().no_zstd();
        ExportClient::build(base_url, 0, user_agent, limits, as_stored)
    }

    fn build(
        base_url: &str,
        requests_per_minute: u32,
        user_agent: &str,
        limits: Limits,
        prepared: impl FnOnce(ClientBuilder) -> ClientBuilder,
    ) -> Result<ExportClient, UnusableUpstream> {
        let mut url = Url::parse(base_url).map_err(|error| {
            let reason = match error {
                url::ParseError::RelativeUrlWithoutBase => "it begins with neither".to_owned(),
                error => error.to_string(),
            };
            UnusableUpstream::new(base_url, reason)
        })?;
        let authorization = take_credentials(&mut url);
        let unusable = |reason: String| UnusableUpstream::new(url.as_str(), reason);
        if !matches!(url.scheme(), "http" | "https") {
            return Err(unusable(format!("its scheme is {}", url.scheme())));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(unusable("it has a query or a fragment".to_owned()));
        }
        let http = prepared(builder(&url, user_agent, authorization.as_ref()))
            .connect_timeout(limits.connect)
            .redirect(reqwest::redirect::Policy::limited(REDIRECTS))
            .build()
            .map_err(|error| unusable(sentence(&error)))?;
        Ok(ExportClient {
            http,
            base: url.as_str().trim_end_matches('/').into(),
            user_agent: user_agent.into(),
            authorization,
            budget: Arc::new(RequestBudget::per_minute(requests_per_minute)),
            aside: Priority::Aside,
            limits: Arc::new(limits),
        })
    }

    /// The same upstream and the same budget, to ask for what clients want to have.
    pub fn for_read_through(&self) -> ExportClient {
        ExportClient { aside: Priority::ReadThrough, ..self.clone() }
    }

    /// The URL, without a slash at its end and without credentials, which nobody else is to see:
    /// what a store remembers of whom it follows.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// What requests to this upstream are counted against.
    pub fn budget(&self) -> &Arc<RequestBudget> {
        &self.budget
    }

    /// The limits that it was made with.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(super) fn user_agent(&self) -> &str {
        &self.user_agent
    }

    pub(super) fn authorization(&self) -> Option<&HeaderValue> {
        self.authorization.as_ref()
    }

    /// The page after this sequence number; `longest` is the most lines that one of those before it had. A body that
    /// was cut is a page too, of its complete lines, as long as these lead further; otherwise it is the fault that cut
    /// it.
    pub async fn page(&self, after: i64, longest: usize) -> Result<Page, UpstreamFault> {
        let asked = self.limits.page;
        let (body, cut) = self.export(after, asked, Priority::Following).await?;
        Page::read(&body, after, (asked, longest), cut)
    }

    /// The body of the export after a sequence number or a time, as far as it comes, and why it is not whole.
    async fn export(
        &self,
        after: impl Display,
        count: usize,
        priority: Priority,
    ) -> Result<(Bytes, Option<UpstreamFault>), UpstreamFault> {
        let path = format!("/export?after={after}&count={count}");
        let response = self.request(&path, priority).await?;
        match response.status() {
            StatusCode::OK => {}
            status => return Err(UpstreamFault::UnexpectedStatus { status: status.as_u16() }),
        }
        let web_page = response
            .headers()
            .get(CONTENT_TYPE)
            .is_some_and(|value| value.as_bytes().starts_with(b"text/html"));
        let (body, cut) = self.receive(response).await;
        if web_page { Err(not_an_export(&body)) } else { Ok((body, cut)) }
    }

    /// The audit log of an identity, as a JSON array; none when the upstream does not know it.
    pub async fn audit_log(&self, did: &Did) -> Result<Option<Bytes>, UpstreamFault> {
        let answer = self.fetch(&format!("/{did}/log/audit")).await?;
        match answer.status {
            200 => Ok(Some(answer.body)),
            404 => Ok(None),
            status => Err(UpstreamFault::UnexpectedStatus { status }),
        }
    }

    /// What the upstream answers to `GET path` (which begins with a slash), counted as aside of
    /// following.
    pub async fn fetch(&self, path: &str) -> Result<Answer, UpstreamFault> {
        self.answer(path, self.aside).await
    }

    /// The first lines, so many at most, of the export after a sequence number or a time. Of one line that is asked
    /// for alone it cannot be told whether it is of an export.
    pub async fn lines(
        &self,
        after: impl Display,
        count: usize,
        priority: Priority,
    ) -> Result<Vec<Bytes>, UpstreamFault> {
        let (body, cut) = self.export(after, count, priority).await?;
        if let Some(fault) = cut {
            return Err(fault);
        }
        let lines: Vec<Bytes> = split_lines(&body).take(count).collect();
        if count > 1 {
            require_export(lines.iter(), &body)?;
        }
        Ok(lines)
    }

    /// The first line of the export at this number or above it; none at its end. Damage on the way
    /// is gone when it is asked for again; one without a number in the end is what they have.
    pub async fn first_from(
        &self,
        sequence: i64,
        priority: Priority,
    ) -> Result<Option<Bytes>, UpstreamFault> {
        Ok(self.lines_from(sequence, 1, priority).await?.pop())
    }

    /// The same of the first lines, at most so many.
    pub async fn lines_from(
        &self,
        sequence: i64,
        count: usize,
        priority: Priority,
    ) -> Result<Vec<Bytes>, UpstreamFault> {
        let mut attempts = 0;
        loop {
            let lines = self.lines(sequence - 1, count, priority).await?;
            attempts += 1;
            let are_entries = lines.iter().all(|line| number(line).is_some());
            if are_entries || attempts >= self.limits.stuck_attempts {
                return Ok(lines);
            }
        }
    }

    async fn answer(&self, path: &str, priority: Priority) -> Result<Answer, UpstreamFault> {
        let response = self.request(path, priority).await?;
        let status = response.status().as_u16();
        match self.receive(response).await {
            (body, None) => Ok(Answer { status, body }),
            (_, Some(fault)) => Err(fault),
        }
    }

    /// A file, or its rest from this byte on where that is not 0 (RFC 9110, 14.2). What its server does instead is for
    /// the caller to see.
    pub(super) async fn file_from(&self, path: &str, from: u64) -> Result<Response, UpstreamFault> {
        let mut request = self.http.get(format!("{}{path}", self.base));
        if from > 0 {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        self.send(request).await
    }

    /// Sends a request when its turn has come.
    async fn request(&self, path: &str, priority: Priority) -> Result<Response, UpstreamFault> {
        self.budget.acquire(priority).await;
        self.send(self.http.get(format!("{}{path}", self.base))).await
    }

    /// Answers with 2xx or 4xx come back; the others are faults.
    async fn send(&self, request: RequestBuilder) -> Result<Response, UpstreamFault> {
        let sending = request.send();
        let response = match timeout(self.limits.silence, sending).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) if error.is_redirect() => return Err(UpstreamFault::RedirectLoop),
            Ok(Err(error)) => {
                return Err(UpstreamFault::Unreachable { reason: sentence(&error.without_url()) });
            }
            Err(_) => return Err(UpstreamFault::Silent { after: self.limits.silence }),
        };
        let status = response.status();
        if status.is_success() || (status.is_client_error() && status.as_u16() != 429) {
            return Ok(response);
        }
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok());
        Err(self.refused(status.as_u16(), retry_after))
    }

    /// The fault that a status which is no answer means; keeps everybody away from the upstream
    /// for as long as it asks for.
    pub(super) fn refused(&self, status: u16, retry_after: Option<&str>) -> UpstreamFault {
        let retry_after = retry_after
            .and_then(|value| parse_retry_after(value, clock::now()))
            .map(|wish| wish.min(self.limits.retry_after_longest));
        if let (429 | 503, Some(wish)) = (status, retry_after) {
            self.budget.hold(wish);
        }
        match status {
            429 => UpstreamFault::RateLimited { retry_after },
            500..=599 => UpstreamFault::ServerError { status, retry_after },
            _ => UpstreamFault::UnexpectedStatus { status },
        }
    }

    /// Reads a body as far as it comes and the limits allow; says why it is not whole.
    async fn receive(&self, mut response: Response) -> (Bytes, Option<UpstreamFault>) {
        let deadline = Instant::now() + self.limits.answer;
        let announced = response.content_length().unwrap_or(0);
        let room = usize::try_from(announced).unwrap_or(usize::MAX).min(self.limits.body);
        let mut body = BytesMut::with_capacity(room);
        let cut = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let piece = match timeout(left.min(self.limits.silence), response.chunk()).await {
                Ok(Ok(Some(piece))) => piece,
                Ok(Ok(None)) => break None,
                Ok(Err(error)) => {
                    break Some(UpstreamFault::Truncated {
                        reason: sentence(&error.without_url()),
                    });
                }
                Err(_) if left < self.limits.silence => {
                    break Some(UpstreamFault::TooSlow { after: self.limits.answer });
                }
                Err(_) => break Some(UpstreamFault::Silent { after: self.limits.silence }),
            };
            if body.len() + piece.len() > self.limits.body {
                break Some(UpstreamFault::BodyTooLarge { limit: self.limits.body });
            }
            body.extend_from_slice(&piece);
        };
        (body.freeze(), cut)
    }
}

/// What every client of an upstream has in common.
pub(super) fn builder(
    url: &Url,
    user_agent: &str,
    authorization: Option<&HeaderValue>,
) -> reqwest::ClientBuilder {
    let authorization = authorization.map(|value| (AUTHORIZATION, value.clone()));
    let builder = reqwest::Client::builder()
        .user_agent(user_agent)
        .default_headers(authorization.into_iter().collect());
    match is_loopback(url) {
        // The proxy of the environment, which every other upstream is asked through, cannot
        // reach what listens on our own loopback.
        true => builder.no_proxy(),
        false => builder,
    }
}

/// Seconds, or a date (RFC 9110, "Retry-After"). A date that is past is no delay.
fn parse_retry_after(value: &str, now: Timestamp) -> Option<Duration> {
    match value.trim().parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => {
            let date = httpdate::parse_http_date(value.trim()).ok()?;
            Some(Timestamp::from(date).since(now))
        }
    }
}

/// An error with its causes: the first alone says "error sending request".
pub(super) fn sentence(error: &dyn std::error::Error) -> String {
    let mut sentence = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        sentence = format!("{sentence}: {error}");
        cause = error.source();
    }
    sentence
}

/// Takes name and password out of a URL, as the header that says them (RFC 7617).
fn take_credentials(url: &mut Url) -> Option<HeaderValue> {
    let credentials = [url.username(), ":", url.password().unwrap_or_default()].concat();
    // Both fail only where a URL has no host, and then it has neither.
    let _ = (url.set_username(""), url.set_password(None));
    let plain: Vec<u8> = percent_decode_str(&credentials).collect();
    let header = (plain != b":").then(|| format!("Basic {}", BASE64.encode(&plain)))?;
    let mut header = HeaderValue::from_str(&header).ok()?;
    header.set_sensitive(true);
    Some(header)
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = "1994-11-06T08:49:37Z".parse().unwrap();
        for (value, seconds) in [
            ("0", Some(0)),
            (" 120 ", Some(120)),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
        ] {
            assert_eq!(parse_retry_after(value, now), seconds.map(Duration::from_secs), "{value}");
        }
    }

    #[test]
    fn only_http_urls_are_upstreams() {
        let client = |url| ExportClient::new(url, 0, "test", Limits::default());
        for url in ["plc.directory", "ftp://plc.directory", "https://plc.directory/?x", ""] {
            assert!(client(url).is_err(), "{url}");
        }
        assert_eq!(client("https://plc.directory/").unwrap().base(), "https://plc.directory");
        assert_eq!(client("http://h:1/plc/").unwrap().base(), "http://h:1/plc");
        let with_password = client("http://user:p%40ss@h:1").unwrap();
        assert_eq!(with_password.base(), "http://h:1");
        assert_eq!(with_password.authorization().unwrap(), "Basic dXNlcjpwQHNz");
        assert_eq!(client("http://h:1").unwrap().authorization(), None);
        let error = client("ftp://user:secret@h").unwrap_err().to_string();
        assert!(error.contains("ftp://h") && !error.contains("secret"), "{error}");
    }
}
