//! Whether the upstream still states on its export what is on record as different there. The
//! records of other kinds are looked at again by comparing their identity.

use super::check::CheckError;
use super::peer::{Peer, PeerError};
use crate::store::{DivergenceKind, NewDivergence, Store, StoredOperation};
use crate::upstream::{ExportClient, Priority};
use did_plc::entry::{Entry, Received, without_mark};
use did_plc::{Did, Timestamp};

/// A line of their export as far as it can be restated.
#[derive(Debug, PartialEq, Eq)]
struct ExportLine {
    did: String,
    cid: String,
    created_at: Timestamp,
    seq: Option<i64>,
}

/// What of the export a record is about; none where its identity is to be compared instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Recheck {
    /// The line that was received: whether it still reads the same.
    Line,
    /// What is stated of one operation: whether it still is not what we hold.
    Restated(DivergenceKind),
    /// What stands where the upstream went back: whether it is still something else.
    Rewound,
    /// An operation that was not there: whether it is still missing.
    Missing,
}

impl Recheck {
    fn of(kind: &str) -> Option<Recheck> {
        match DivergenceKind::of_name(kind)? {
            DivergenceKind::Backdated => Some(Recheck::Line),
            DivergenceKind::UpstreamRewound => Some(Recheck::Rewound),
            DivergenceKind::MissingInExport => Some(Recheck::Missing),
            kind @ (DivergenceKind::RestatedCid
            | DivergenceKind::RestatedCreatedAt
            | DivergenceKind::RestatedSequence) => Some(Recheck::Restated(kind)),
            DivergenceKind::MissingThere
            | DivergenceKind::MissingHere
            | DivergenceKind::OtherBytes
            | DivergenceKind::OtherCreatedAt
            | DivergenceKind::OtherSequence
            | DivergenceKind::OtherNullifiedFlag
            | DivergenceKind::OtherOrder
            | DivergenceKind::OtherHead
            | DivergenceKind::OtherDocument
            | DivergenceKind::DoesNotVerify => None,
        }
    }
}

/// Whether a record of this kind is about the export.
pub fn is_of_export(kind: &str) -> bool {
    Recheck::of(kind).is_some()
}

/// Asks whether what the upstream's export states now still contradicts what we hold, as the record
/// has it. One request; none for a record without evidence, which stays.
///
/// # Errors
///
/// [`CheckError`].
pub async fn is_still_stated(
    record: &NewDivergence,
    store: &Store,
    upstream: &Peer,
) -> Result<bool, CheckError> {
    let Peer::Server(client) = upstream else { return Ok(true) };
    let Ok(did) = record.did.parse::<Did>() else { return Ok(true) };
    let Some(recheck) = Recheck::of(&record.kind) else { return Ok(true) };
    let held = store.history(&did).await?;
    match recheck {
        Recheck::Rewound => return is_still_rewound(record, &held, client).await,
        Recheck::Missing => return is_still_missing(record, &held, client).await,
        Recheck::Line | Recheck::Restated(_) => {}
    }
    let then = record.theirs.as_ref().and_then(|line| read(line.as_bytes()));
    let Some((then, number)) = then.and_then(|then| then.seq.map(|seq| (then, seq))) else {
        return Ok(true);
    };
    let line = client.first_from(number, Priority::Aside).await.map_err(PeerError::from)?;
    let Some(line) = line else { return Ok(false) };
    let Recheck::Restated(kind) = recheck else { return Ok(read(&line) == Some(then)) };
    // Whatever it says now of the same operation, as long as that is not what we hold.
    let Ok(now) = Received::decode(&line) else { return Ok(false) };
    let held = held.iter().find(|held| held.cid() == now.cid);
    let is_same = now.cid.to_string() == record.subject;
    Ok(held.is_some_and(|held| is_same && differs(kind, &now, held)))
}

/// Whether the number that followed what both sides had last is still not that of our operation.
async fn is_still_rewound(
    record: &NewDivergence,
    held: &[StoredOperation],
    client: &ExportClient,
) -> Result<bool, CheckError> {
    let Some(shared) = last_shared(record) else { return Ok(true) };
    let numbers = held.iter().filter_map(|held| Some((held.sequence?, held.cid())));
    let lost = numbers.filter(|(number, _)| *number > shared).min_by_key(|(number, _)| *number);
    let Some((number, cid)) = lost else { return Ok(true) };
    let line = client.first_from(number, Priority::Aside).await.map_err(PeerError::from)?;
    let there = line.and_then(|line| read(&line));
    Ok(there.is_none_or(|there| there.cid != cid.to_string()))
}

/// Whether what stands under the number of our operation is still another one, or nothing. One that has lost its number
/// is not stated there, or it would have it back.
async fn is_still_missing(
    record: &NewDivergence,
    held: &[StoredOperation],
    client: &ExportClient,
) -> Result<bool, CheckError> {
    let held = held.iter().find(|held| held.cid().to_string() == record.subject);
    let Some(held) = held else { return Ok(false) };
    let Some(number) = held.sequence else { return Ok(true) };
    let line = client.first_from(number, Priority::Aside).await.map_err(PeerError::from)?;
    let there = line.and_then(|line| read(&line));
    Ok(there.is_none_or(|there| there.seq != Some(number) || there.cid != record.subject))
}

fn differs(kind: DivergenceKind, now: &Received, held: &StoredOperation) -> bool {
    match kind {
        DivergenceKind::RestatedCid => now.stated_cid.is_some(),
        DivergenceKind::RestatedCreatedAt => now.created_at != held.created_at,
        DivergenceKind::RestatedSequence => now.sequence != held.sequence,
        _ => false,
    }
}

/// The number of what both sides had last, which the subject begins with.
fn last_shared(record: &NewDivergence) -> Option<i64> {
    let (shared, _) = record.subject.split_once(' ')?;
    shared.parse().ok()
}

fn read(line: &[u8]) -> Option<ExportLine> {
    let entry = Entry::read(str::from_utf8(without_mark(line)).ok()?).ok()?;
    Some(ExportLine {
        created_at: entry.created_at.parse().ok()?,
        did: entry.did.into_owned(),
        cid: entry.cid.into_owned(),
        seq: entry.seq,
    })
}
