//! What should not have happened.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// So many are told one by one.
const TOLD: usize = 20;

/// What failed: how often, and the first of it in words.
#[derive(Debug, Default)]
pub struct Failures(Mutex<Counted>);

#[derive(Debug, Default)]
struct Counted {
    count: u64,
    first: Vec<String>,
}

impl Failures {
    /// Counts one.
    pub fn add(&self, what: String) {
        let mut counted = self.counted();
        counted.count += 1;
        if counted.first.len() < TOLD {
            counted.first.push(what);
        }
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.counted().count
    }

    /// The first of them.
    pub fn first(&self) -> Vec<String> {
        self.counted().first.clone()
    }

    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
