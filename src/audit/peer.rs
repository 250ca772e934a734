//! Somebody who has a log of their own: a directory or replica at a URL, or a dump in a file.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ahash::AHashMap;
use bytes::Bytes;
use serde_json::value::RawValue;

use super::clock::latest;
use super::diff::{Said, Theirs};
use crate::blocking;
use crate::upstream::{
    ASIDE_SHARE, Answer, Dump, DumpError, DumpReader, ExportClient, Limits, UnusableUpstream,
    UpstreamFault,
};
use did_plc::entry::without_mark;
use did_plc::history::{History, NotALog};
use did_plc::signature::Verifier;
use did_plc::{Cid, Did, Timestamp, json};

/// Where another log comes from.
#[derive(Debug, Clone)]
pub enum Peer {
    /// Whoever answers `/{did}/log/audit` there.
    Server(ExportClient),
    /// A dump: an export in either format, or an audit log.
    File(PathBuf),
}

/// What a peer says of one identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerLog {
    /// Their entries as received: an audit log, or lines put into an array.
    pub evidence: Bytes,
    /// The same, judged. Empty when they do not know the identity.
    pub history: History,
    /// What `/{did}/log/last` answers.
    pub last: Said<Cid>,
    /// What `/{did}` answers.
    pub document: Said<Bytes>,
}

impl PeerLog {
    /// To be compared. Nothing in it can honestly be dated later than `latest`.
    pub fn as_theirs(&self, latest: Timestamp) -> Theirs<'_> {
        let PeerLog { history, last, document, .. } = self;
        let document = document.as_ref().map(|document| &document[..]);
        Theirs { history, last: *last, document, latest }
    }
}

/// A peer that has nothing that could be compared.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// It cannot be asked.
    #[error(transparent)]
    Upstream(#[from] UpstreamFault),
    /// It answers something else.
    #[error("{did}: {source}")]
    NotALog {
        /// Whose log was asked for.
        did: Did,
        /// What is wrong with it.
        source: NotALog,
    },
    /// The file cannot be read.
    #[error(transparent)]
    Dump(#[from] DumpError),
    /// What was read of the file is something else.
    #[error("there is no entry of a log in it")]
    NoEntry,
}

impl Peer {
    /// A URL (`http://` or `https://`), or else the name of a file. Servers are sent so many
    /// requests a minute at most (0 for no limit).
    ///
    /// # Errors
    ///
    /// When it is a URL that cannot be used.
    pub fn new(
        place: &str,
        requests_per_minute: u32,
        user_agent: &str,
    ) -> Result<Peer, UnusableUpstream> {
        if !place.contains("://") {
            return Ok(Peer::File(place.into()));
        }
        // Only requests aside of following are sent, which get their share of a budget.
        let budget = requests_per_minute.saturating_mul(ASIDE_SHARE);
        ExportClient::new(place, budget, user_agent, Limits::default()).map(Peer::Server)
    }

    /// How it is named in reports: the URL without a slash at its end, or the file.
    pub fn name(&self) -> String {
        match self {
            Peer::Server(client) => client.base().to_owned(),
            Peer::File(path) => path.display().to_string(),
        }
    }

    /// Asks for the log of an identity, and judges it.
    ///
    /// # Errors
    ///
    /// [`PeerError`].
    pub async fn ask(&self, did: Did, verifier: &Arc<dyn Verifier>) -> Result<PeerLog, PeerError> {
        let verifier = Arc::clone(verifier);
        match self {
            Peer::Server(client) => {
                let Some(log) = client.audit_log(&did).await? else {
                    return Ok(PeerLog::of_lines(did, &[], &*verifier));
                };
                blocking::run("judging an audit log", move || {
                    PeerLog::of_audit_log(did, log, &*verifier)
                })
                .await
            }
            Peer::File(path) => {
                let path = path.clone();
                blocking::run("looking an identity up in a dump", move || {
                    let lines = look_up(&path, &[did])?.lines.remove(&did).unwrap_or_default();
                    Ok(PeerLog::of_lines(did, &lines, &*verifier))
                })
                .await
            }
        }
    }

    /// Asks a server in addition what it says of the identity on its other paths; files have none.
    ///
    /// # Errors
    ///
    /// [`PeerError`].
    pub async fn ask_further(&self, log: &mut PeerLog) -> Result<(), PeerError> {
        let Peer::Server(client) = self else { return Ok(()) };
        let did = log.history.did;
        let last = said(client.fetch(&format!("/{did}/log/last")).await?);
        log.last = last.map(|last| {
            let text = str::from_utf8(&last).unwrap_or_default();
            // What is no operation at all has no CID that their log could lead to.
            Cid::of(&json::read_operation(text).unwrap_or_default())
        });
        log.document = said(client.fetch(&format!("/{did}")).await?);
        Ok(())
    }
}

/// A replica need not serve every path: of one that it does not have, its 404 says nothing about the
/// identity.
fn said(answer: Answer) -> Said<Bytes> {
    match answer.status {
        200 => Said::This(answer.body.slice_ref(without_mark(&answer.body))),
        404 | 410 if is_about_identity(&answer.body) => Said::Nothing,
        _ => Said::Unknown,
    }
}

/// `DID not registered: …` or `DID not available: …`, as the directory has it.
fn is_about_identity(body: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    struct ErrorMessage {
        message: String,
    }
    serde_json::from_slice::<ErrorMessage>(body)
        .is_ok_and(|refusal| refusal.message.starts_with("DID not "))
}

impl PeerLog {
    /// From the body of `/{did}/log/audit`.
    fn of_audit_log(did: Did, body: Bytes, verifier: &dyn Verifier) -> Result<PeerLog, PeerError> {
        let history = History::of_audit_log(did, &body, verifier)
            .map_err(|source| PeerError::NotALog { did, source })?;
        let evidence = body.slice_ref(without_mark(&body));
        Ok(PeerLog { evidence, history, last: Said::Unknown, document: Said::Unknown })
    }

    /// From the entries of one identity, whatever their envelope.
    pub fn of_lines(did: Did, lines: &[Bytes], verifier: &dyn Verifier) -> PeerLog {
        let history = History::of_lines(did, lines.iter().map(|line| &line[..]), verifier);
        let mut evidence = vec![b'['];
        for (index, line) in lines.iter().enumerate() {
            if index > 0 {
                evidence.push(b',');
            }
            evidence.extend_from_slice(without_mark(line));
        }
        evidence.push(b']');
        PeerLog { evidence: evidence.into(), history, last: Said::Unknown, document: Said::Unknown }
    }
}

/// What a dump has of some identities.
#[derive(Debug, Default)]
pub struct Dumped {
    /// Their entries, in order, also those that say nothing else that could be read.
    pub lines: AHashMap<Did, Vec<Bytes>>,
    /// The latest `createdAt` in the dump that is not in the future: what is newer, it cannot have.
    pub latest: Option<Timestamp>,
    /// Lines that name none.
    pub unnamed: u64,
}

/// Looks identities up in a dump, all in one reading. Blocking.
///
/// # Errors
///
/// When the file cannot be read, and when there is no entry of a log in it, whoever it is about.
pub fn look_up(path: &Path, dids: &[Did]) -> Result<Dumped, PeerError> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct NamedLine<'a> {
        #[serde(borrow)]
        did: Cow<'a, str>,
        #[serde(borrow, default)]
        created_at: Option<&'a RawValue>,
    }
    let now = latest();
    let (mut dumped, mut named_one) = (Dumped::default(), false);
    dumped.lines.extend(dids.iter().map(|did| (*did, Vec::new())));
    let mut blocks = DumpReader::start(Dump::open(path)?);
    while let Some(block) = blocks.next_blocking() {
        for (_, line) in block? {
            let named = serde_json::from_slice::<NamedLine>(without_mark(&line));
            let named = named.ok().and_then(|named| Some((named.did.parse().ok()?, named)));
            let Some((did, NamedLine { created_at, .. })) = named else {
                dumped.unnamed += 1;
                continue;
            };
            named_one = true;
            // Of a time that is none nothing follows for the others.
            let at = created_at.and_then(|at| serde_json::from_str::<Cow<'_, str>>(at.get()).ok());
            let at = at.and_then(|at| at.parse().ok()).filter(|at| *at <= now);
            dumped.latest = dumped.latest.max(at);
            if let Some(lines) = dumped.lines.get_mut(&did) {
                // A copy: the line is a slice of a whole block.
                lines.push(Bytes::copy_from_slice(&line));
            }
        }
    }
    if named_one { Ok(dumped) } else { Err(PeerError::NoEntry) }
}
