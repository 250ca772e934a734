//! When the upstream that is followed was well last, and what has gone wrong since.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::upstream::UpstreamFault;

/// Told by the reader of each session, and asked by whoever decides whom to follow.
#[derive(Debug)]
pub struct Contact(Mutex<State>);

#[derive(Debug)]
struct State {
    /// When a page or a sign of life of the stream came last that could be used.
    well_at: Instant,
    /// What has gone wrong last since then.
    fault: Option<String>,
}

impl Contact {
    /// All is well.
    pub fn new() -> Contact {
        Contact(Mutex::new(State { well_at: Instant::now(), fault: None }))
    }

    /// It was well at this moment.
    pub fn well_at(&self, at: Instant) {
        let mut state = self.state();
        if at >= state.well_at {
            *state = State { well_at: at, fault: None };
        }
    }

    /// Something went wrong.
    pub fn fails(&self, fault: &UpstreamFault) {
        self.state().fault = Some(fault.to_string());
    }

    /// Since when it is not well, and why; none while nothing has gone wrong since it was.
    pub fn failing(&self) -> Option<(Duration, String)> {
        let state = self.state();
        state.fault.clone().map(|fault| (state.well_at.elapsed(), fault))
    }

    /// An instant and a text are whole whoever panicked while holding them.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
