//! The lines of a replica's export with some numbers.

use bytes::{BufMut, Bytes, BytesMut};

use super::error::ArchiveError;
use super::web::Site;
use crate::upstream::number;

/// The lines with numbers above `after`, up to `to`.
pub async fn lines(site: &Site, mut after: i64, to: i64) -> Result<Bytes, ArchiveError> {
    let mut text = BytesMut::new();
    while after < to {
        let page = site.export(after).await?;
        let Some(last) = page.iter().rev().find_map(number).filter(|last| *last > after) else {
            break;
        };
        // What has no number is somebody's mistake, and is judged as such.
        for line in page.iter().filter(|line| number(line).is_none_or(|number| number <= to)) {
            text.put_slice(line);
            text.put_u8(b'\n');
        }
        after = last;
    }
    Ok(text.freeze())
}
