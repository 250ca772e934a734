//! How it stands with the upstreams, for people: shown, and logged where it is new.

use super::Candidates;
use crate::follow::candidate::Candidate;
use crate::live::Standing;
use crate::store::Source;

impl Candidates {
    pub(super) fn say_that_there_is_none(&self, source: &Source) {
        let reason =
            |place: usize| format!("{} {}", self.all[place].client.base(), self.standing(place).1);
        let reasons: Vec<String> = (0..self.all.len()).map(reason).collect();
        tracing::error!(
            cursor = source.cursor,
            before = source.upstream,
            "none of the upstreams can be followed: {}; serving goes on, and they are asked again",
            reasons.join("; ")
        );
    }

    /// How it stands with one, and why.
    pub(super) fn standing(&self, place: usize) -> (Standing, String) {
        let followed = self.followed == Some(place);
        match self.away().filter(|_| followed) {
            Some(fault) => (Standing::Away, format!("does not answer: {fault}")),
            None => self.all[place].standing(followed, &self.settings),
        }
    }

    /// Shows how it stands with all of them, and logs what is new.
    pub(super) fn state(&mut self) {
        let upstreams = self.status.upstreams();
        self.all.iter_mut().for_each(Candidate::end_probation);
        for place in 0..self.all.len() {
            let (standing, reason) = self.standing(place);
            let before = upstreams.report(place).map(|report| report.standing);
            upstreams.set(place, standing, &reason);
            if before == Some(standing) {
                continue;
            }
            let upstream = self.all[place].client.base();
            match standing {
                Standing::Refuted if self.all[place].followed_at.is_none() => tracing::error!(
                    "{upstream} is not to be followed: it {reason}; it is another log"
                ),
                Standing::Refuted => {
                    tracing::error!("{upstream} is not to be followed: it {reason}")
                }
                Standing::Away | Standing::Behind => tracing::warn!("{upstream} {reason}"),
                Standing::Ready => tracing::info!("{upstream} has the log that is held here"),
                Standing::OwnNumbers => tracing::info!("{upstream} {reason}"),
                Standing::Followed | Standing::Unknown => {}
            }
        }
    }
}
