//! How long what is found out of an upstream has to last before something follows from it.

use std::time::Duration;

/// When another upstream is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SwitchSettings {
    /// How often each upstream is asked for what is held here; ten times as often while the one that is followed is not
    /// well.
    pub look: Duration,
    /// One that is followed is away when it has failed for so long.
    pub away: Duration,
    /// One is behind when it lacks for so long what is held here, or what another one has under our numbers.
    pub behind: Duration,
    /// One that was away or behind is returned to when it was well for so long, or twice as long each time it was not
    /// followed for an hour.
    pub well: Duration,
    /// The same of one that was refuted.
    pub repented: Duration,
    /// What only one upstream states, and nobody else bears out or refutes, is believed after so long.
    pub alone: Duration,
}

impl Default for SwitchSettings {
    fn default() -> SwitchSettings {
        SwitchSettings {
            look: Duration::from_secs(60),
            away: Duration::from_secs(30),
            behind: Duration::from_secs(2 * 60),
            well: Duration::from_secs(5 * 60),
            repented: Duration::from_secs(60 * 60),
            alone: Duration::from_secs(60 * 60),
        }
    }
}
