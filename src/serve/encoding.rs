//! Compression of answers, for clients that ask for it.

use std::io::Write;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};

use super::header::weight;

/// Bodies below this many bytes are sent as they are: they fit into a packet or two, and
/// compressing one costs more than what looking it up does.
const SMALLEST: usize = 1_400;
/// Bodies above this many bytes are compressed away from the threads that answer others; below
/// it takes less than handing the work over costs.
const LARGE: usize = 64 << 10;
/// The fastest level of each; the next ones cost more time than they save in traffic.
const ZSTD_LEVEL: i32 = 1;
const GZIP_LEVEL: flate2::Compression = flate2::Compression::fast();

/// A content coding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    /// `zstd`, RFC 8878.
    Zstd,
    /// `gzip`, RFC 1952.
    Gzip,
}

impl Coding {
    /// The coding that the client likes best among those that we have (`Accept-Encoding`,
    /// RFC 9110 12.5.3); none when it asks for none of them. Of equals zstd, the cheaper one.
    pub fn wanted(request: &HeaderMap) -> Option<Coding> {
        let (mut zstd, mut gzip, mut any, mut identity) = (None, None, None, None);
        for list in request.get_all(header::ACCEPT_ENCODING) {
            for item in list.to_str().unwrap_or_default().split(',') {
                let mut parts = item.split(';').map(str::trim);
                let name = parts.next().unwrap_or_default();
                let weight = parts.find_map(|part| part.strip_prefix("q=")).map_or(1000, weight);
                match name {
                    _ if name.eq_ignore_ascii_case("zstd") => zstd = Some(weight),
                    _ if name.eq_ignore_ascii_case("gzip") => gzip = Some(weight),
                    _ if name.eq_ignore_ascii_case("x-gzip") => gzip = Some(weight),
                    _ if name.eq_ignore_ascii_case("identity") => identity = Some(weight),
                    "*" => any = Some(weight),
                    _ => {}
                }
            }
        }
        let best = [(Coding::Zstd, zstd.or(any)), (Coding::Gzip, gzip.or(any))];
        let mut wanted = None;
        let mut most = identity.unwrap_or(0);
        for (coding, weight) in best {
            if let Some(weight) = weight.filter(|&weight| weight > 0)
                && (weight > most || wanted.is_none() && weight >= most)
            {
                (wanted, most) = (Some(coding), weight);
            }
        }
        wanted
    }

    /// The name in `Content-Encoding`.
    pub fn name(self) -> HeaderValue {
        match self {
            Coding::Zstd => HeaderValue::from_static("zstd"),
            Coding::Gzip => HeaderValue::from_static("gzip"),
        }
    }

    /// Compresses a body; none when it is better sent as it is.
    pub async fn compress(self, body: Bytes) -> Option<Bytes> {
        if body.len() < SMALLEST {
            None
        } else if body.len() < LARGE {
            self.encode(&body)
        } else {
            tokio::task::spawn_blocking(move || self.encode(&body)).await.ok().flatten()
        }
    }

    fn encode(self, body: &[u8]) -> Option<Bytes> {
        let encoded = match self {
            Coding::Zstd => zstd::bulk::compress(body, ZSTD_LEVEL),
            Coding::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), GZIP_LEVEL);
                encoder.write_all(body).and_then(|()| encoder.finish())
            }
        };
        // Writing to memory does not fail; should it, the body goes out as it is.
        encoded.ok().map(Bytes::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_liked_coding_is_chosen() {
        for (sent, wanted) in [
            (None, None),
            (Some(""), None),
            (Some("identity"), None),
            (Some("br, deflate"), None),
            (Some("gzip"), Some(Coding::Gzip)),
            (Some("GZIP"), Some(Coding::Gzip)),
            (Some("gzip, deflate, br, zstd"), Some(Coding::Zstd)),
            (Some("zstd;q=0.5, gzip;q=0.8"), Some(Coding::Gzip)),
            (Some("zstd;q=0, gzip"), Some(Coding::Gzip)),
            (Some("gzip;q=0"), None),
            (Some("gzip;q=0.000"), None),
            (Some("gzip;q=nan"), None),
            (Some("*"), Some(Coding::Zstd)),
            (Some("*;q=0.1, zstd;q=0"), Some(Coding::Gzip)),
            (Some("identity, gzip;q=0.5"), None),
            (Some("identity, gzip"), Some(Coding::Gzip)),
        ] {
            let mut request = HeaderMap::new();
            if let Some(sent) = sent {
                request.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(sent));
            }
            assert_eq!(Coding::wanted(&request), wanted, "{sent:?}");
        }
    }

    #[tokio::test]
    async fn bodies_come_back_and_small_ones_are_left_alone() {
        for length in [SMALLEST, LARGE, 3 * LARGE] {
            let body = Bytes::from(vec![b'x'; length]);
            let zstd = Coding::Zstd.compress(body.clone()).await.unwrap();
            assert_eq!(zstd::decode_all(&zstd[..]).unwrap(), body);
            let gzip = Coding::Gzip.compress(body.clone()).await.unwrap();
            let mut decoded = Vec::new();
            flate2::write::GzDecoder::new(&mut decoded).write_all(&gzip).unwrap();
            assert_eq!(decoded, body);
        }
        assert_eq!(Coding::Zstd.compress(Bytes::from_static(b"small")).await, None);
    }
}
