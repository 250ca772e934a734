//! What the follower knows and the log does not say, for the processes that only read.

use std::time::Duration;

use did_plc::Timestamp;
use serde::{Deserialize, Serialize};

/// All of it, as it was at one moment. Times are milliseconds since 1970.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Word {
    /// When it was said, by the follower's clock.
    pub said_at: i64,
    /// What the follower is doing, by its name in `/_health`.
    pub mode: String,
    /// The time up to which the log is complete.
    pub as_of: Option<i64>,
    /// When the upstream said something last.
    pub heard_at: Option<i64>,
    /// The latest `createdAt` that was committed.
    pub last_operation_at: Option<i64>,
    /// The last sequence number that was received.
    pub received: i64,
    /// The upstream's last sequence number when it was asked for; 0 before.
    pub head: i64,
    /// Base URL of the upstream that is followed.
    pub followed: String,
    /// How it stands with each upstream, in order of preference.
    pub upstreams: Vec<UpstreamWord>,
}

/// How it stands with an upstream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamWord {
    /// Its base URL, without credentials.
    pub url: String,
    /// The standing by its name in `/_health`.
    pub state: String,
    /// Since when.
    pub since: i64,
    /// Why; empty where there is nothing to be explained.
    pub reason: String,
}

impl Word {
    /// As it is stored.
    pub(super) fn text(&self) -> String {
        // There is no map in it with keys that are not strings, the only way to fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// As it was stored. What cannot be read, as that of another version may be, is as good as nothing.
    pub(super) fn read(text: &str) -> Option<Word> {
        serde_json::from_str(text).ok()
    }

    /// Whether it says something else than the one before, or the same so much later.
    pub(super) fn is_news_after(&self, before: &Word, time: Duration) -> bool {
        let is_same = (&self.mode, &self.followed) == (&before.mode, &before.followed);
        let is_soon = (before.said_at()..before.said_at() + time).contains(&self.said_at());
        !is_same || !is_soon
    }

    /// When it was said.
    pub fn said_at(&self) -> Timestamp {
        Timestamp::from_millis(self.said_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_news_when_it_is_said_later() {
        let said = |said_at, mode: &str| Word { said_at, mode: mode.to_owned(), ..Word::default() };
        let before = said(10_000, "live");
        let is_news = |word: Word| word.is_news_after(&before, Duration::from_secs(10));
        assert!(!is_news(said(10_000, "live")) && !is_news(said(19_999, "live")));
        assert!(is_news(said(20_000, "live")) && is_news(said(10_001, "waiting")));
        // The clock was put back.
        assert!(is_news(said(9_999, "live")));
    }

    #[test]
    fn it_comes_back_and_what_is_of_another_version_does_no_harm() {
        let upstream = UpstreamWord {
            url: "https://plc.example".to_owned(),
            state: "followed".to_owned(),
            since: 7,
            reason: String::new(),
        };
        let word = Word {
            said_at: 9,
            mode: "live".to_owned(),
            as_of: Some(8),
            upstreams: vec![upstream],
            ..Word::default()
        };
        assert_eq!(Word::read(&word.text()), Some(word));
        let newer = r#"{"saidAt":9,"somethingNew":[1]}"#;
        assert_eq!(Word::read(newer), Some(Word { said_at: 9, ..Word::default() }));
        assert_eq!(Word::read("no JSON"), None);
    }
}
