//! The texts that have a number.

use std::sync::{Arc, OnceLock};

use super::MAX_INTERNED;
use super::damage::Damage;

/// The texts that are stored as a number, by number; shared by all readers and cheap to clone.
///
/// Holds what is committed, and grows only: a number never changes its text. A reader that meets a
/// number that is not here yet (another process assigned it) loads the rest of the table.
#[derive(Debug, Clone)]
pub struct Interned {
    texts: Arc<[OnceLock<Box<str>>]>,
}

impl Default for Interned {
    fn default() -> Interned {
        Interned { texts: (0..MAX_INTERNED).map(|_| OnceLock::new()).collect() }
    }
}

impl Interned {
    /// The text with this number, if it has one.
    pub fn get(&self, number: u32) -> Option<&str> {
        self.texts.get(number as usize)?.get().map(|text| &**text)
    }

    /// How many texts there are: they are numbered from 0 on, without a gap.
    pub fn len(&self) -> u32 {
        self.texts.partition_point(|text| text.get().is_some()) as u32
    }

    /// True before the first text.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes over a row of the table.
    ///
    /// # Errors
    ///
    /// [`Damage`] when the number has another text already, or is none that we would have given.
    pub fn insert(&self, number: u32, text: &str) -> Result<(), Damage> {
        let place = self
            .texts
            .get(number as usize)
            .ok_or(Damage::Other("a text with a number that is never given"))?;
        if **place.get_or_init(|| text.into()) == *text {
            return Ok(());
        }
        Err(Damage::Other("a number that has changed its text"))
    }
}
