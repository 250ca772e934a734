//! Whether a gap between sequence numbers is worth a question: not where it is an upstream's way of numbering.

/// After so many gaps with nothing in them, none of them is asked about any more: what is left out then is found
/// when it is read the second time.
const USUAL_GAPS: u32 = 20;
/// So many batches without a gap make up for one with nothing in it.
const BATCHES_OF_A_GAP: u32 = 32;

/// What is known of an upstream's gaps.
#[derive(Debug, Default)]
pub struct Gaps {
    /// How usual they are: more with each that has nothing in it, less with each batch that has none.
    usual: u32,
}

impl Gaps {
    /// Whether it is worth asking what is in one.
    pub fn are_worth_asking(&self) -> bool {
        self.usual < USUAL_GAPS * BATCHES_OF_A_GAP
    }

    /// One had nothing in it.
    pub fn add_empty(&mut self) {
        self.usual += BATCHES_OF_A_GAP;
    }

    /// Something was missing in one.
    pub fn add_filled(&mut self) {
        self.usual = 0;
    }

    /// A batch had none.
    pub fn add_batch_without(&mut self) {
        self.usual = self.usual.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_that_are_usual_are_asked_about_now_and_then() {
        let mut gaps = Gaps::default();
        for _ in 0..USUAL_GAPS {
            assert!(gaps.are_worth_asking());
            gaps.add_empty();
        }
        assert!(!gaps.are_worth_asking());
        // One batch without a gap is enough for one question.
        gaps.add_batch_without();
        assert!(gaps.are_worth_asking());
        gaps.add_empty();
        for _ in 1..BATCHES_OF_A_GAP {
            gaps.add_batch_without();
            assert!(!gaps.are_worth_asking());
        }
        gaps.add_batch_without();
        assert!(gaps.are_worth_asking());
        gaps.add_empty();
        gaps.add_filled();
        assert!(gaps.are_worth_asking());
        gaps.add_batch_without();
        assert!(gaps.are_worth_asking());
    }

    #[test]
    fn what_happened_once_is_forgotten() {
        let mut gaps = Gaps::default();
        (0..2 * USUAL_GAPS).for_each(|_| gaps.add_empty());
        (0..2 * USUAL_GAPS * BATCHES_OF_A_GAP).for_each(|_| gaps.add_batch_without());
        (1..USUAL_GAPS).for_each(|_| gaps.add_empty());
        assert!(gaps.are_worth_asking());
    }
}
