//! What an answer about an identity says in its headers beside what was asked for.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::answer;
use super::read_through::Outcome;
use crate::reads::Freshness;

const REFUSED: HeaderName = HeaderName::from_static("plc-refused");

/// What there is to say.
#[derive(Debug, Clone, Copy)]
pub struct Notes {
    /// How fresh the answer is.
    pub freshness: Freshness,
    /// What read-through did, where it was asked.
    pub read_through: Option<Outcome>,
    /// How many refusals stand of what was stated after the head.
    pub refused: usize,
}

impl Notes {
    /// Nothing but how fresh the answer is.
    pub fn new(freshness: Freshness) -> Notes {
        Notes { freshness, read_through: None, refused: 0 }
    }

    /// States it; `PLC-Refused` only where something was refused.
    pub fn state(self, headers: &mut HeaderMap) {
        answer::state_freshness(self.freshness, headers);
        if let Some(outcome) = self.read_through {
            outcome.state(headers);
        }
        if self.refused > 0 {
            headers.insert(REFUSED, HeaderValue::from(self.refused));
        }
    }
}
