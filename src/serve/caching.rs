//! How long caches before the replica may go on giving what it said of an identity (RFC 9111, RFC 5861).

use std::time::Duration;

use http::{HeaderMap, HeaderValue, header};

use super::answer::{self, REVALIDATE, seconds};

/// For how long.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Caching {
    /// Without asking again, and then as long again while one request asks. Zero: every time it is asked.
    pub fresh: Duration,
    /// After that, while the replica cannot be asked.
    pub unreachable: Duration,
}

impl Caching {
    /// States it, where an answer may be kept at all. The answer's own `PLC-As-Of` is kept with it, so that it says
    /// how old it is wherever it comes from.
    pub fn state(self, headers: &mut HeaderMap) {
        if self.fresh.is_zero() || headers.get(header::CACHE_CONTROL) != Some(&REVALIDATE) {
            return;
        }
        headers.insert(header::CACHE_CONTROL, self.value());
    }

    fn value(self) -> HeaderValue {
        let (fresh, unreachable) = (seconds(self.fresh), seconds(self.unreachable));
        let value = format!(
            "public, max-age={fresh}, stale-while-revalidate={fresh}, stale-if-error={unreachable}"
        );
        answer::owned_value(value.into_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_be_kept_says_for_how_long() {
        let caching =
            Caching { fresh: Duration::from_secs(5), unreachable: Duration::from_secs(3_600) };
        let kept = "public, max-age=5, stale-while-revalidate=5, stale-if-error=3600";
        let never = Caching::default();
        for (caching, stated, expected) in [
            (caching, REVALIDATE, kept),
            (caching, answer::NO_STORE, "no-store"),
            (never, REVALIDATE, "public, no-cache"),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::CACHE_CONTROL, stated);
            caching.state(&mut headers);
            assert_eq!(headers[header::CACHE_CONTROL], expected);
        }
    }
}
