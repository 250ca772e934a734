//! Decisions that are taken byte by byte from given ones.

use std::convert::Infallible;

use rand::TryRng;

/// Each decision takes one byte, which stands for its share of what can be decided: so a change of one byte changes
/// one decision. After the last byte everything is decided as by 255, which ends whatever goes on until something
/// happens.
pub struct Chances<'a>(pub &'a [u8]);

impl Chances<'_> {
    fn byte(&mut self) -> u8 {
        match self.0 {
            [first, rest @ ..] => {
                self.0 = rest;
                *first
            }
            [] => u8::MAX,
        }
    }
}

impl TryRng for Chances<'_> {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(u32::from_ne_bytes([self.byte(); 4]))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(u64::from_ne_bytes([self.byte(); 8]))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        bytes.fill_with(|| self.byte());
        Ok(())
    }
}
