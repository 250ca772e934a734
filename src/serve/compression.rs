//! Compression of answers, for clients that ask for it.

use std::convert::Infallible;

use axum::body::{Body, HttpBody};
use axum::response::{IntoResponse, Response};
use http::header;
use http_body_util::BodyExt;
use tower_http::CompressionLevel;
use tower_http::compression::predicate::SizeAbove;
use tower_http::compression::{CompressionBody, CompressionLayer};

use crate::blocking;

use super::error::ServeError;

/// Bodies below this many bytes are sent as they are: they fit into a packet or two, and
/// compressing one costs more than what looking it up does.
const SMALLEST: u16 = 1_400;
/// Bodies from this many bytes on are compressed away from the threads that answer others; below
/// it takes less than handing the work over costs.
const LARGE: u64 = 64 << 10;
/// The fastest level of gzip and zstd; the next ones cost more time than they save in traffic.
const LEVEL: CompressionLevel = CompressionLevel::Precise(1);

/// Chooses the coding and begins to compress. The entity tag stays, being a weak one.
pub fn layer() -> CompressionLayer<SizeAbove> {
    CompressionLayer::new().quality(LEVEL).compress_when(SizeAbove::new(SMALLEST))
}

/// Compresses a body to its end, so that its length is known.
pub async fn gather(answer: Response<CompressionBody<Body>>) -> Result<Response, Infallible> {
    if !answer.headers().contains_key(header::CONTENT_ENCODING) {
        return Ok(answer.map(CompressionBody::into_inner));
    }
    let (parts, body) = answer.into_parts();
    let compressed = if body.get_ref().size_hint().lower() < LARGE {
        body.collect().await
    } else {
        let compress = move || futures::executor::block_on(body.collect());
        blocking::run("compressing an answer", compress).await
    };
    Ok(match compressed {
        Ok(body) => Response::from_parts(parts, body.to_bytes().into()),
        Err(error) => {
            tracing::error!(%error, "a body in memory could not be compressed");
            ServeError::Bug.into_response()
        }
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use axum::extract::Request;
    use http::HeaderValue;
    use tower::{ServiceBuilder, ServiceExt, service_fn};

    use super::*;

    /// The answer with this body to a client that accepts these codings.
    async fn answer(length: usize, accepted: &'static str) -> Response {
        let body = move |_| async move { Ok::<_, Infallible>(Response::new(body(length).into())) };
        let service =
            ServiceBuilder::new().and_then(gather).layer(layer()).service(service_fn(body));
        let mut request = Request::new(Body::empty());
        request.headers_mut().insert("accept-encoding", HeaderValue::from_static(accepted));
        let Ok(answer) = service.oneshot(request).await;
        answer
    }

    fn body(length: usize) -> Vec<u8> {
        (0..length).map(|at| b"0123456789abcdef"[at * at % 13]).collect()
    }

    #[tokio::test]
    async fn bodies_come_back_and_small_ones_are_left_alone() {
        for length in [usize::from(SMALLEST), LARGE as usize, 3 * LARGE as usize] {
            for coding in ["zstd", "gzip"] {
                let answer = answer(length, coding).await;
                assert_eq!(answer.headers()["content-encoding"], coding);
                assert_eq!(answer.headers()["vary"], "accept-encoding");
                assert!(answer.body().size_hint().exact().unwrap() < length as u64);
                let sent = answer.into_body().collect().await.unwrap().to_bytes();
                let mut plain = Vec::new();
                match coding {
                    "zstd" => plain = zstd::decode_all(&sent[..]).unwrap(),
                    _ => {
                        flate2::read::GzDecoder::new(&sent[..]).read_to_end(&mut plain).unwrap();
                    }
                }
                assert!(plain == body(length), "{length} {coding}");
            }
        }
        let small = answer(usize::from(SMALLEST) - 1, "zstd").await;
        assert_eq!(small.headers().get("content-encoding"), None);
    }

    #[tokio::test]
    async fn the_best_liked_coding_is_chosen() {
        for (accepted, chosen) in [
            ("", None),
            ("identity", None),
            ("br, deflate", None),
            ("gzip", Some("gzip")),
            ("GZIP", Some("gzip")),
            ("gzip, deflate, br, zstd", Some("zstd")),
            ("zstd;q=0.5, gzip;q=0.8", Some("gzip")),
            ("zstd;q=0, gzip", Some("gzip")),
            ("gzip;q=0", None),
            ("gzip;q=0.000", None),
            ("gzip;q=nan", None),
            ("identity, gzip;q=0.5", None),
            ("identity, gzip", Some("gzip")),
        ] {
            let answer = answer(5_000, accepted).await;
            let coding = answer.headers().get("content-encoding");
            assert_eq!(coding.map(|coding| coding.to_str().unwrap()), chosen, "{accepted:?}");
        }
    }
}
