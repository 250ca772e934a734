//! What the upstream stated on its export and that does not agree with what we hold: whether it
//! still says so. The other differences are found again, or not, by comparing the identity.

use serde::Deserialize;

use super::check::CheckError;
use super::peer::{Peer, PeerError};
use crate::follow::UPSTREAM_REWOUND;
use crate::judge::{BACKDATED, RESTATED};
use crate::store::{NewDivergence, Store};
use crate::upstream::Priority;
use did_plc::Did;
use did_plc::entry::Received;

/// An entry as far as it can be restated.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stated {
    did: String,
    cid: String,
    created_at: String,
    seq: Option<i64>,
}

/// Whether a record of this kind is about a statement on the export.
pub fn is_statement(kind: &str) -> bool {
    kind == BACKDATED || kind == UPSTREAM_REWOUND || RESTATED.contains(&kind)
}

/// Asks whether what the upstream states now still contradicts what we hold, as the record has it.
/// One request; none for a record without evidence, which stays.
///
/// # Errors
///
/// [`CheckError`].
pub async fn still_stated(
    record: &NewDivergence,
    store: &Store,
    upstream: &Peer,
) -> Result<bool, CheckError> {
    let Peer::Server(client) = upstream else { return Ok(true) };
    let Ok(did) = record.did.parse::<Did>() else { return Ok(true) };
    let held = store.history(&did).await?;
    if record.kind == UPSTREAM_REWOUND {
        let Some(shared) = last_shared(record) else { return Ok(true) };
        let numbers = held.iter().filter_map(|held| Some((held.sequence?, held.cid())));
        let lost = numbers.filter(|(number, _)| *number > shared).min_by_key(|(number, _)| *number);
        let Some((number, cid)) = lost else { return Ok(true) };
        let line = client.first_from(number, Priority::Aside).await.map_err(PeerError::from)?;
        let there = line.and_then(|line| read(&line));
        return Ok(there.is_none_or(|there| there.cid != cid.to_string()));
    }
    let then = record.theirs.as_ref().and_then(|line| read(line.as_bytes()));
    let Some((then, number)) = then.and_then(|then| then.seq.map(|seq| (then, seq))) else {
        return Ok(true);
    };
    let line = client.first_from(number, Priority::Aside).await.map_err(PeerError::from)?;
    let Some(line) = line else { return Ok(false) };
    if record.kind == BACKDATED {
        return Ok(read(&line) == Some(then));
    }
    // Whatever it says now of the same operation, as long as that is not what we hold.
    let Ok(received) = Received::decode(&line) else { return Ok(false) };
    let held = held.iter().find(|held| held.cid() == received.cid);
    Ok(held.is_some_and(|held| {
        let [cid, created_at, sequence] = RESTATED;
        received.cid.to_string() == record.subject
            && match &*record.kind {
                kind if kind == cid => received.stated_cid.is_some(),
                kind if kind == created_at => received.created_at != held.created_at,
                kind if kind == sequence => received.sequence != held.sequence,
                _ => false,
            }
    }))
}

/// The number of what both sides had last, which the subject begins with.
fn last_shared(record: &NewDivergence) -> Option<i64> {
    let (shared, _) = record.subject.split_once(' ')?;
    shared.parse().ok()
}

fn read(entry: &[u8]) -> Option<Stated> {
    serde_json::from_slice(entry).ok()
}
