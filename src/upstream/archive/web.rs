//! Files on the web: fetched whole and checked, or read while they come.

use std::io::{self, Cursor, Read};
use std::time::Duration;

use bytes::{Buf, Bytes};
use reqwest::header::{CONTENT_RANGE, CONTENT_TYPE};
use reqwest::{Response, StatusCode};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use url::Url;

use super::content::Content;
use super::error::ArchiveError;
use crate::blocking;
use crate::upstream::dump::Raw;
use crate::upstream::{Backoff, ExportClient, Limits, UpstreamFault};

/// Bytes of a volume that is fetched whole, at most.
pub const MAX_VOLUME: usize = 64 << 20;
/// How long a volume may be on its way, with signs of life: 64 MiB at 150 kbit/s.
const WHOLE: Duration = Duration::from_secs(60 * 60);
/// How the names of files of entries end.
const FILE_ENDINGS: [&str; 6] = ["json", "jsonl", "ndjson", "gz", "zst", "zstd"];
/// How often in a row something is asked for that does not come: for about a minute.
const ATTEMPTS: usize = 8;
/// The same before anything has come from a server: its name may be mistaken.
const FIRST_ATTEMPTS: usize = 3;
/// Pieces of a file that wait for its reader; a piece is what one read from a connection brings.
const PIECES: usize = 64;

/// How archives on the web are asked for.
#[derive(Debug, Clone)]
pub struct Web {
    user_agent: String,
    limits: Limits,
}

/// A place on the web below which files are, or one file.
#[derive(Debug, Clone)]
pub(super) struct Site {
    client: ExportClient,
    /// The query of its URL, with the question mark.
    query: String,
}

impl Web {
    /// With this name, and with the back-off and the time-outs of these limits.
    pub fn new(user_agent: &str, limits: Limits) -> Web {
        let limits = Limits { body: MAX_VOLUME, answer: WHOLE, ..limits };
        Web { user_agent: user_agent.to_owned(), limits }
    }

    pub(super) fn site(&self, url: &str) -> Result<Site, ArchiveError> {
        // What stands before the host may be a password.
        let shown = url.rsplit_once('@').map_or(url, |(_, place)| place);
        let unusable = |reason: String| ArchiveError::Url { name: shown.to_owned(), reason };
        let mut base = Url::parse(url).map_err(|error| unusable(error.to_string()))?;
        let query = base.query().map(|query| format!("?{query}")).unwrap_or_default();
        base.set_query(None);
        base.set_fragment(None);
        let client = ExportClient::of_files(base.as_str(), &self.user_agent, self.limits.clone());
        let client = client.map_err(|error| unusable(error.to_string()))?;
        Ok(Site { client, query })
    }
}

impl Site {
    /// Its URL, without credentials, a query, and a slash at its end.
    pub fn url(&self) -> &str {
        self.client.base()
    }

    /// Whether it is named as a file is, or with a query.
    pub fn is_file(&self) -> bool {
        let ending = self.url().rsplit('.').next().unwrap_or_default();
        !self.query.is_empty() || FILE_ENDINGS.contains(&ending)
    }

    /// What is at a path below it (which begins with a slash), where a server has something there that is no page for
    /// people.
    pub async fn look(&self, path: &str) -> Result<Option<Bytes>, ArchiveError> {
        let answer = self.repeated(path, FIRST_ATTEMPTS, || self.client.fetch(path)).await?;
        let is_page = answer.body.trim_ascii_start().starts_with(b"<");
        Ok((answer.status == 200 && !is_page).then_some(answer.body))
    }

    /// A file below it, which holds this where that is known.
    pub async fn file(&self, path: &str, content: Option<Content>) -> Result<Bytes, ArchiveError> {
        let mut attempts = 0;
        loop {
            let answer = self.repeated(path, ATTEMPTS, || self.client.fetch(path)).await?;
            let url = format!("{}{path}", self.url());
            if answer.status != 200 {
                return Err(ArchiveError::Status { url, status: answer.status });
            }
            let Some(content) = content else { return Ok(answer.body) };
            let stored = answer.body.clone();
            let checked = move || content.check(&url, Cursor::new(stored));
            match blocking::run("checking a volume", checked).await {
                Ok(()) => return Ok(answer.body),
                // Damage on the way is gone when it is asked for again.
                Err(error) => {
                    attempts += 1;
                    if attempts == FIRST_ATTEMPTS {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// Lines of the export of a replica after a number.
    pub async fn export(&self, after: i64) -> Result<Vec<Bytes>, ArchiveError> {
        let page = crate::upstream::MAX_LINES;
        let lines = || self.client.lines(after, page, crate::upstream::Priority::Following);
        self.repeated("/export", ATTEMPTS, lines).await
    }

    /// Asks until an answer comes, at ever longer pauses.
    async fn repeated<T, F>(
        &self,
        path: &str,
        attempts: usize,
        ask: impl Fn() -> F,
    ) -> Result<T, ArchiveError>
    where
        F: Future<Output = Result<T, UpstreamFault>>,
    {
        let mut backoff = Backoff::new(self.client.limits());
        let mut faults = 0;
        loop {
            let fault = match ask().await {
                Ok(answer) => return Ok(answer),
                Err(fault) => fault,
            };
            let url = format!("{}{path}", self.url());
            faults += 1;
            if faults == attempts || matches!(fault, UpstreamFault::BodyTooLarge { .. }) {
                return Err(ArchiveError::Web { url, fault });
            }
            let pause = backoff.after(&fault);
            tracing::warn!("{url}: {fault}; asked again after {:.1} s", pause.as_secs_f64());
            sleep(pause).await;
        }
    }

    /// The file that it is, read while it comes. Where the connection breaks the server is asked for the rest.
    pub async fn stream(&self) -> Result<Raw, ArchiveError> {
        let first = || self.client.file_from(&self.query, 0);
        let response = self.repeated("", FIRST_ATTEMPTS, first).await?;
        let url = self.url().to_owned();
        if response.status() != StatusCode::OK {
            return Err(ArchiveError::Status { url, status: response.status().as_u16() });
        }
        let kind = response.headers().get(CONTENT_TYPE);
        if kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/html")) {
            return Err(ArchiveError::Unknown { url });
        }
        let total = response.content_length();
        let (sender, pieces) = mpsc::channel(PIECES);
        tokio::spawn(Transfer { site: self.clone(), sender, received: 0 }.run(response));
        let bytes = Box::new(Pieces { pieces, piece: Bytes::new() });
        Ok(Raw { name: url, bytes, total })
    }
}

/// A file on its way.
struct Transfer {
    site: Site,
    sender: mpsc::Sender<io::Result<Bytes>>,
    received: u64,
}

impl Transfer {
    /// Hands over all of the file, or an error at its end, as long as somebody reads.
    async fn run(mut self, mut response: Response) {
        let limits = self.site.client.limits().clone();
        let mut backoff = Backoff::new(&limits);
        let mut faults = 0;
        loop {
            let before = self.received;
            let Some(fault) = self.receive(&mut response).await else { return };
            if self.received > before {
                backoff.reset();
                faults = 0;
            }
            match self.rest(fault, &mut backoff, &mut faults).await {
                Ok(next) => response = next,
                Err(error) => {
                    // Whoever does not read any more need not be told.
                    self.sender.send(Err(io::Error::other(error))).await.ok();
                    return;
                }
            }
        }
    }

    /// Hands over what comes; the fault that cut it, or none at the end, or when nobody reads any more.
    async fn receive(&mut self, response: &mut Response) -> Option<UpstreamFault> {
        let silence = self.site.client.limits().silence;
        loop {
            let piece = match timeout(silence, response.chunk()).await {
                Ok(Ok(piece)) => piece?,
                Ok(Err(error)) => {
                    return Some(UpstreamFault::Truncated { reason: error.to_string() });
                }
                Err(_) => return Some(UpstreamFault::Silent { after: silence }),
            };
            self.received += piece.len() as u64;
            self.sender.send(Ok(piece)).await.ok()?;
        }
    }

    /// Asks for the rest of the file.
    async fn rest(
        &self,
        mut fault: UpstreamFault,
        backoff: &mut Backoff,
        faults: &mut usize,
    ) -> Result<Response, ArchiveError> {
        let (url, read) = (self.site.url().to_owned(), self.received);
        loop {
            *faults += 1;
            if *faults == ATTEMPTS {
                return Err(ArchiveError::Web { url, fault });
            }
            let pause = backoff.after(&fault);
            tracing::warn!("{url}: {fault} after {read} bytes; asked for the rest");
            sleep(pause).await;
            match self.site.client.file_from(&self.site.query, read).await {
                Ok(response) if is_rest(&response, read) => return Ok(response),
                Ok(_) => {
                    let reason = fault.to_string();
                    return Err(ArchiveError::Broken { url, read, reason });
                }
                Err(again) => fault = again,
            }
        }
    }
}

/// Whether an answer is a file from this byte on (RFC 9110, 14.4).
fn is_rest(response: &Response, from: u64) -> bool {
    let range = response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
    let begins =
        range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse().ok());
    match response.status() {
        StatusCode::OK => from == 0,
        StatusCode::PARTIAL_CONTENT => begins == Some(from),
        _ => false,
    }
}

/// Pieces as they come, for a thread that reads them.
struct Pieces {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    piece: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.piece = piece?,
                None => return Ok(0),
            }
        }
        let size = buffer.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut buffer[..size]);
        Ok(size)
    }
}
