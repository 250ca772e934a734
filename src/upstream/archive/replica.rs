//! Another replica as an archive: its export in ranges of numbers, several at a time.

use serde::Deserialize;

use super::volume::{Begins, Place, Volume};
use super::web::Site;

/// Numbers of a volume: ten pages.
const NUMBERS: i64 = 10_000;

/// What a replica says of itself at `/_health`; the directory states no sequence number there.
#[derive(Deserialize)]
struct Health {
    sequence: i64,
}

/// The volumes of a replica, when this is what `/_health` of one says.
pub fn volumes(site: &Site, health: &[u8]) -> Option<Vec<Volume>> {
    let Health { sequence } = serde_json::from_slice(health).ok()?;
    let begins = (0..sequence.max(0)).step_by(usize::try_from(NUMBERS).ok()?);
    let volume = |after: i64| {
        let to = (after + NUMBERS).min(sequence);
        Volume {
            name: format!("{}/export, {} to {to}", site.url(), after + 1),
            bytes: None,
            content: None,
            begins: if after == 0 { Begins::After(0) } else { Begins::WithoutGap },
            place: Place::Numbers { site: site.clone(), after, to, is_last: to == sequence },
        }
    };
    Some(begins.map(volume).collect())
}
