//! The upstreams that can be followed, as it stands with each: what the follower finds out, and the server shows.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock};

use metrics::gauge;

use crate::clock;
use crate::store::UpstreamWord;
use did_plc::Timestamp;

/// How it stands with an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It is the one that is followed.
    Followed,
    /// It has what is held here, and could be followed.
    Ready,
    /// It has what is held here under numbers of its own, or without numbers, and could be followed by time.
    OwnNumbers,
    /// It does not answer, or not what it was asked.
    Away,
    /// It lacks the newest of what is held here, or of what another one has, and for longer than that is on its way.
    Behind,
    /// It states something else than what is held here, or than it did, and nobody else bears that out; or it is another log.
    Refuted,
    /// Nothing is known of it yet.
    Unknown,
}

impl Standing {
    /// All of them.
    pub const ALL: [Standing; 7] = [
        Standing::Followed,
        Standing::Ready,
        Standing::OwnNumbers,
        Standing::Away,
        Standing::Behind,
        Standing::Refuted,
        Standing::Unknown,
    ];

    /// Its name in `/_health`, in metrics and in the log.
    pub const fn name(self) -> &'static str {
        match self {
            Standing::Followed => "followed",
            Standing::Ready => "ready",
            Standing::OwnNumbers => "own-numbers",
            Standing::Away => "away",
            Standing::Behind => "behind",
            Standing::Refuted => "refuted",
            Standing::Unknown => "unknown",
        }
    }
}

/// What is known of an upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamReport {
    /// Its base URL, without credentials.
    pub base: String,
    /// How it stands with it.
    pub standing: Standing,
    /// Since when.
    pub since: Timestamp,
    /// Why; empty where there is nothing to be explained.
    pub reason: String,
}

/// All upstreams, in order of preference: at least one.
#[derive(Debug)]
pub struct Upstreams {
    bases: Vec<String>,
    reports: Vec<RwLock<UpstreamReport>>,
    followed: AtomicUsize,
}

impl Upstreams {
    /// These, by their base URLs, of which nothing is known yet.
    pub fn new<'a>(bases: impl IntoIterator<Item = &'a str>) -> Upstreams {
        let bases: Vec<String> =
            bases.into_iter().map(|base| base.trim_end_matches('/').to_owned()).collect();
        let report = |base: &String| {
            RwLock::new(UpstreamReport {
                base: base.clone(),
                standing: Standing::Unknown,
                since: clock::now(),
                reason: String::new(),
            })
        };
        let reports = bases.iter().map(report).collect();
        Upstreams { bases, reports, followed: AtomicUsize::new(0) }
    }

    /// The place in the order of the one that is followed, or is waited for.
    pub fn followed(&self) -> usize {
        self.followed.load(Ordering::Acquire)
    }

    /// From here on this one is followed.
    pub fn set_followed(&self, place: usize) {
        self.followed.store(place, Ordering::Release);
    }

    /// The base URL of the one that is followed, or is waited for.
    pub fn base(&self) -> &str {
        self.bases.get(self.followed()).map_or("", String::as_str)
    }

    /// The base URL of the one that is preferred, whoever is followed meanwhile.
    pub fn preferred(&self) -> &str {
        self.bases.first().map_or("", String::as_str)
    }

    /// States how it stands with one. It stands so since the standing was another one.
    pub fn set(&self, place: usize, standing: Standing, reason: &str) {
        let Some(report) = self.reports.get(place) else { return };
        // A report is whole whoever panicked beside it.
        let mut report = report.write().unwrap_or_else(PoisonError::into_inner);
        if report.standing != standing {
            (report.standing, report.since) = (standing, clock::now());
        }
        if report.reason != reason {
            reason.clone_into(&mut report.reason);
        }
    }

    /// What is known of one.
    pub fn report(&self, place: usize) -> Option<UpstreamReport> {
        let report = self.reports.get(place)?;
        Some(report.read().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// What is known of all of them, in order of preference.
    pub fn reports(&self) -> Vec<UpstreamReport> {
        (0..self.reports.len()).filter_map(|place| self.report(place)).collect()
    }

    /// What a reader is told of all of them.
    pub fn words(&self) -> Vec<UpstreamWord> {
        let word = |report: UpstreamReport| UpstreamWord {
            url: report.base,
            state: report.standing.name().to_owned(),
            since: report.since.millis(),
            reason: report.reason,
        };
        self.reports().into_iter().map(word).collect()
    }

    /// What the follower of another process says of those that are known here too.
    pub fn learn(&self, followed: &str, words: &[UpstreamWord]) {
        for (place, base) in self.bases.iter().enumerate() {
            if base == followed {
                self.set_followed(place);
            }
            let Some(word) = words.iter().find(|word| word.url == *base) else { continue };
            let standing = Standing::ALL.into_iter().find(|known| known.name() == word.state);
            let Some(standing) = standing else { continue };
            self.set(place, standing, &word.reason);
            if let Some(report) = self.reports.get(place) {
                let mut report = report.write().unwrap_or_else(PoisonError::into_inner);
                report.since = Timestamp::from_millis(word.since);
            }
        }
    }

    /// Whether the one with this base URL could be followed by number.
    pub fn is_ready(&self, base: &str) -> bool {
        let place = self.bases.iter().position(|it| it == base);
        let report = place.and_then(|place| self.report(place));
        report.is_some_and(|report| report.standing == Standing::Ready)
    }

    /// The places of those that can be asked now, in the order in which they are to be asked: the one that is
    /// followed first, unless it is away; and that one, where there is none that can be asked.
    pub fn to_ask(&self) -> Vec<usize> {
        let followed = self.followed();
        let reports = self.reports();
        let is = |place: usize, standing| reports[place].standing == standing;
        let can_be_asked =
            |place: usize| is(place, Standing::Ready) || is(place, Standing::OwnNumbers);
        let mut places: Vec<usize> = Vec::new();
        if reports.len() == 1 || !is(followed, Standing::Away) {
            places.push(followed);
        }
        let ready = (0..reports.len()).filter(|place| *place != followed && can_be_asked(*place));
        places.extend(ready);
        if places.is_empty() {
            places.push(followed);
        }
        places
    }

    /// States all of this as metrics.
    pub fn state_metrics(&self) {
        for (place, report) in self.reports().into_iter().enumerate() {
            let is_followed = f64::from(u8::from(place == self.followed()));
            gauge!("plc_upstream_followed", "upstream" => report.base.clone()).set(is_followed);
            for standing in Standing::ALL {
                let is = f64::from(u8::from(standing == report.standing));
                let labels =
                    [("upstream", report.base.clone()), ("state", standing.name().to_owned())];
                gauge!("plc_upstream_state", &labels).set(is);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_asked_is_the_one_that_is_followed_and_then_those_that_could_be() {
        let upstreams = Upstreams::new(["http://a/", "http://b", "http://c"]);
        assert_eq!((upstreams.base(), upstreams.to_ask()), ("http://a", vec![0]));
        upstreams.set(0, Standing::Followed, "");
        upstreams.set(2, Standing::Ready, "");
        assert_eq!(upstreams.to_ask(), [0, 2]);
        upstreams.set(0, Standing::Away, "it was told to go");
        assert_eq!(upstreams.to_ask(), [2]);
        upstreams.set(1, Standing::Ready, "");
        upstreams.set_followed(2);
        assert_eq!((upstreams.base(), upstreams.to_ask()), ("http://c", vec![2, 1]));
        for place in 0..3 {
            upstreams.set(place, Standing::Away, "");
        }
        assert_eq!(upstreams.to_ask(), [2]);
    }

    #[test]
    fn it_stands_so_since_it_was_otherwise() {
        let upstreams = Upstreams::new(["http://a"]);
        upstreams.set(0, Standing::Away, "one reason");
        let before = upstreams.report(0).unwrap();
        upstreams.set(0, Standing::Away, "another reason");
        let after = upstreams.report(0).unwrap();
        assert_eq!((after.since, &*after.reason), (before.since, "another reason"));
    }
}
