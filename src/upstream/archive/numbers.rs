//! The lines of a replica's export with some numbers.

use bytes::{BufMut, Bytes, BytesMut};

use super::error::ArchiveError;
use super::web::{MAX_VOLUME, Site};
use crate::upstream::{UpstreamFault, number};

/// The lines with numbers above `after`, up to `to`. With `is_last` there need be none with the last of these numbers: the
/// replica may have refused it.
pub async fn lines(
    site: &Site,
    mut after: i64,
    to: i64,
    is_last: bool,
) -> Result<Bytes, ArchiveError> {
    let mut text = BytesMut::new();
    while after < to {
        let page = site.export(after).await?;
        let Some(last) = page.iter().rev().find_map(number).filter(|last| *last > after) else {
            if is_last {
                break;
            }
            return Err(ArchiveError::Short { url: site.url().to_owned(), after, to });
        };
        // What has no number is somebody's mistake, and is judged as such.
        for line in page.iter().filter(|line| number(line).is_none_or(|number| number <= to)) {
            text.put_slice(line);
            text.put_u8(b'\n');
        }
        if text.len() > MAX_VOLUME {
            let fault = UpstreamFault::BodyTooLarge { limit: MAX_VOLUME };
            return Err(ArchiveError::Web { url: site.url().to_owned(), fault });
        }
        after = last;
    }
    Ok(text.freeze())
}
