//! A set of entries of the index of identities, in their order.

use super::prefix::Entry;

/// Bits of a prefix that say in which bucket it is: with as many entries as there ever are, sixteen are in each,
/// and looking one up touches two places in memory instead of the five of a tree.
const BUCKET_BITS: u32 = 15;

/// The entries.
#[derive(Debug, Default)]
pub(super) struct Entries {
    /// By the first bits of the prefix, each in its order; none at all before the first entry.
    buckets: Vec<Vec<Entry>>,
    len: usize,
}

impl Entries {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Adds one, if it is not there.
    pub(super) fn insert(&mut self, entry: Entry) {
        if self.buckets.is_empty() {
            self.buckets.resize_with(1 << BUCKET_BITS, Vec::new);
        }
        let bucket = &mut self.buckets[bucket_of(&entry)];
        if let Err(at) = bucket.binary_search(&entry) {
            bucket.insert(at, entry);
            self.len += 1;
        }
    }

    /// Takes one out, if it is there.
    pub(super) fn remove(&mut self, entry: &Entry) {
        let Some(bucket) = self.buckets.get_mut(bucket_of(entry)) else { return };
        if let Ok(at) = bucket.binary_search(entry) {
            bucket.remove(at);
            self.len -= 1;
        }
    }

    /// Keeps those that are to stay.
    pub(super) fn retain(&mut self, mut stays: impl FnMut(&Entry) -> bool) {
        for bucket in &mut self.buckets {
            bucket.retain(&mut stays);
        }
        self.len = self.buckets.iter().map(Vec::len).sum();
    }

    /// Takes all of them out, and gives their memory back.
    pub(super) fn clear(&mut self) {
        *self = Entries::default();
    }

    /// Those from an entry on, in their order.
    pub(super) fn from(&self, first: Entry) -> impl Iterator<Item = Entry> {
        let (bucket, after) = match self.buckets.get(bucket_of(&first)..) {
            Some([bucket, after @ ..]) => (&bucket[..], after),
            Some([]) | None => (&[][..], &[][..]),
        };
        let begin = bucket.partition_point(|entry| *entry < first);
        bucket[begin..].iter().chain(after.iter().flatten()).copied()
    }

    /// All of them, in their order.
    pub(super) fn iter(&self) -> impl Iterator<Item = Entry> {
        self.buckets.iter().flatten().copied()
    }
}

impl Extend<Entry> for Entries {
    fn extend<T: IntoIterator<Item = Entry>>(&mut self, entries: T) {
        entries.into_iter().for_each(|entry| self.insert(entry));
    }
}

fn bucket_of(entry: &Entry) -> usize {
    entry.0.first_bits(BUCKET_BITS)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::prefix::Prefix;
    use super::*;
    use did_plc::Did;
    use proptest::prelude::*;

    fn prefix(first: u8, last: u8) -> Prefix {
        let mut bytes = [0; 15];
        (bytes[0], bytes[3]) = (first, last);
        Prefix::of(&Did::from_bytes(bytes))
    }

    proptest! {
        /// What is in it is what a tree would have, whatever is put in and taken out.
        #[test]
        fn it_is_a_sorted_set(
            changes in prop::collection::vec((any::<bool>(), any::<u8>(), 0_u8..3, -3_i64..4), 0..200),
            first in (any::<u8>(), 0_u8..3, -3_i64..4),
        ) {
            let (mut entries, mut model) = (Entries::default(), BTreeSet::new());
            for (adds, high, low, sequence) in changes {
                let entry = (prefix(high, low), sequence);
                if adds {
                    entries.extend([entry]);
                    model.insert(entry);
                } else {
                    entries.remove(&entry);
                    model.remove(&entry);
                }
            }
            prop_assert_eq!(entries.len(), model.len());
            prop_assert!(entries.iter().eq(model.iter().copied()));
            let first = (prefix(first.0, first.1), first.2);
            prop_assert!(entries.from(first).eq(model.range(first..).copied()));
            entries.retain(|entry| entry.1 > 0);
            model.retain(|entry| entry.1 > 0);
            prop_assert!(entries.iter().eq(model.iter().copied()) && entries.len() == model.len());
            entries.clear();
            prop_assert_eq!((entries.len(), entries.iter().next()), (0, None));
        }
    }
}
