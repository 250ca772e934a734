//! The fast verifier.

use std::sync::atomic::{AtomicU32, Ordering};

use did_plc::signature::{PlainVerifier, Signed, UnsupportedKey, Verifier};
use metrics::{Counter, counter};

use crate::cache::{KeyCache, KeyText};
use crate::hot::{HOT, HotKeys, TABLES};
use crate::libraries::{Key, verify_k256, verify_p256};
use crate::table::Trial;

/// A key's signatures are counted up to here; then the counts of all keys in its list are halved,
/// so that what is long ago weighs little: when the keys of a host change, the new one is tried
/// first after about as many signatures.
const FULL_COUNT: u32 = 1024;

/// Whether tables of multiples are built for the k256 keys that are met most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tables {
    /// They are: up to 19 MB, and less than half of the time.
    On,
    /// Every k256 signature is verified by libsecp256k1.
    Off,
}

/// Verifies with libsecp256k1, aws-lc and tables of multiples, and keeps the keys that it has
/// parsed.
///
/// One is meant to be shared by all threads for as long as the process lives. Its memory is
/// bounded whatever keys come: 19 MB for tables and at most 17 MB for keys.
///
/// # What a refusal costs
///
/// That none of the keys signed is answered only after [`PlainVerifier`] has said so too, since it
/// decides for good about somebody's identity. It takes 48 µs for each k256 key and 145 µs for each
/// P-256 key, beside the 26 and 58 µs that the fast libraries took before. So whoever sends bad
/// signatures, and lists the five P-256 keys that the specification allows, makes us work one
/// millisecond for each; with the 17,000 keys that fit into the largest operation that is
/// accepted, three and a half seconds. Without the confirmation it would be less than a third.
///
/// Should the two disagree, the answer is that of [`PlainVerifier`]: it is the one that the rules are
/// defined by and that others can repeat, and a signature that was refused by mistake would
/// cut off everything that its identity signs later. The disagreement is logged as an error with all
/// that is needed to repeat it, and counted as `plc_signature_disagreements_total`.
///
/// # Metrics
///
/// They go to the recorder that is there when the verifier is made. Beside the disagreements these
/// are `plc_cache_lookups_total` with the labels `cache` (`tables` or `keys`) and `outcome` (`hit` or
/// `miss`): a key that has no table is looked for among those that were parsed.
pub struct FastVerifier {
    keys: KeyCache<Met>,
    hot: Option<HotKeys>,
    counts: Counts,
}

/// A key that was met.
struct Met {
    key: Key,
    /// How often a k256 key was met without a table.
    times: AtomicU32,
    /// How often it was the key that had signed, not long ago: see [`FULL_COUNT`].
    signed: AtomicU32,
}

/// What is counted for the operator.
struct Counts {
    table_hits: Counter,
    table_misses: Counter,
    key_hits: Counter,
    key_misses: Counter,
    disagreements: Counter,
}

impl FastVerifier {
    /// A verifier that has met no key yet.
    #[must_use]
    pub fn new(tables: Tables) -> FastVerifier {
        let hot = (tables == Tables::On).then(|| HotKeys::new(TABLES));
        FastVerifier { keys: KeyCache::new(), hot, counts: Counts::new() }
    }

    /// What the fast libraries and the tables say.
    ///
    /// The likeliest key is tried before the others. All keys before it are keys, so that none of
    /// them could have ended the trial; and nobody can make an operation whose signature is one
    /// of two different keys that its own bytes, or those of an operation before it, name.
    pub(crate) fn try_keys(
        &self,
        keys: &[&str],
        signed: &Signed,
    ) -> Result<Option<usize>, UnsupportedKey> {
        let trial = Trial::new(signed);
        let likeliest = self.likeliest(keys);
        let others = (0..keys.len()).filter(|&index| Some(index) != likeliest);
        for index in likeliest.into_iter().chain(others) {
            let text = key_text(keys[index]).ok_or(UnsupportedKey { index })?;
            if self.try_key(text, &trial).ok_or(UnsupportedKey { index })? {
                self.count_signature(text, keys);
                return Ok(Some(index));
            }
        }
        Ok(None)
    }

    /// Whether the key made the signature; `None` if it is no key.
    fn try_key(&self, text: &KeyText, trial: &Trial<'_>) -> Option<bool> {
        if let Some(hot) = &self.hot
            && let Some(verdict) = hot.verify(text, trial)
        {
            self.counts.table_hits.increment(1);
            return Some(verdict);
        }
        let (key, times) = self.keys.with(text, || Met::new(text), Met::again);
        self.counts.table_misses.increment(1);
        match times {
            1 => self.counts.key_misses.increment(1),
            _ => self.counts.key_hits.increment(1),
        }
        match key {
            Key::Unsupported => None,
            Key::P256(key) => Some(verify_p256(&key, trial.signed)),
            Key::K256(key) => {
                if let Some(hot) = &self.hot
                    && times.is_multiple_of(HOT)
                {
                    hot.admit(text, &key);
                }
                Some(verify_k256(&key, trial.signed))
            }
        }
    }

    /// The first index of the key that signed most often so far, if that is not the first of all and
    /// every key before it is one. It decides nothing but the order of trial.
    fn likeliest(&self, keys: &[&str]) -> Option<usize> {
        if keys.len() < 2 {
            return None;
        }
        let signed = |key: &str| self.keys.peek(key_text(key)?, Met::signed);
        let likeliest = first_of_the_busiest(keys, signed)?;
        let is_key = |key: &&str| {
            key_text(key).is_some_and(|text| self.keys.with(text, || Met::new(text), Met::is_key))
        };
        (likeliest > 0 && keys[..likeliest].iter().all(is_key)).then_some(likeliest)
    }

    /// Remembers that a key of the list has signed.
    fn count_signature(&self, signer: &KeyText, keys: &[&str]) {
        let count = self.keys.with(signer, || Met::new(signer), Met::has_signed);
        if count >= FULL_COUNT {
            for text in keys.iter().copied().filter_map(key_text) {
                self.keys.peek(text, Met::halve);
            }
        }
    }
}

impl Verifier for FastVerifier {
    fn find_signer(&self, keys: &[&str], signed: &Signed) -> Result<Option<usize>, UnsupportedKey> {
        let found = self.try_keys(keys, signed);
        if let Ok(Some(_)) = found {
            return found;
        }
        let plain = PlainVerifier.find_signer(keys, signed);
        if plain != found {
            self.counts.disagreements.increment(1);
            tracing::error!(
                ?keys,
                ?signed,
                fast = ?found,
                ?plain,
                "two libraries disagree about who made a signature; the plain one is believed"
            );
        }
        plain
    }
}

/// The first index of the key with the highest count, if any has one. The counts are read while other
/// threads count on, so that a key which a list names twice can have a higher one the second time.
fn first_of_the_busiest(keys: &[&str], count: impl Fn(&str) -> Option<u32>) -> Option<usize> {
    let (mut busiest, mut most) = (None, 0);
    for key in keys {
        if let Some(count) = count(key).filter(|&count| count > most) {
            (busiest, most) = (Some(key), count);
        }
    }
    keys.iter().position(|key| Some(key) == busiest)
}

/// The text of a key, perhaps; one of another length is no key.
fn key_text(key: &str) -> Option<&KeyText> {
    key.as_bytes().try_into().ok()
}

impl Met {
    fn new(text: &KeyText) -> Met {
        Met { key: Key::parse(text), times: AtomicU32::new(0), signed: AtomicU32::new(0) }
    }

    fn is_key(&self) -> bool {
        !matches!(self.key, Key::Unsupported)
    }

    /// The key, and how often it was met, this time included. One thread sees each number.
    fn again(&self) -> (Key, u32) {
        let before = self.times.fetch_add(1, Ordering::Relaxed);
        (self.key.clone(), before.wrapping_add(1))
    }

    fn signed(&self) -> u32 {
        self.signed.load(Ordering::Relaxed)
    }

    /// Counts a signature; answers how many there are now.
    fn has_signed(&self) -> u32 {
        self.signed.fetch_add(1, Ordering::Relaxed).wrapping_add(1)
    }

    /// Two threads that do this at once may lose a few counts, which does no harm.
    fn halve(&self) {
        self.signed.store(self.signed() / 2, Ordering::Relaxed);
    }
}

impl Counts {
    fn new() -> Counts {
        let lookups = |cache: &'static str, outcome: &'static str| counter!("plc_cache_lookups_total", "cache" => cache, "outcome" => outcome);
        Counts {
            table_hits: lookups("tables", "hit"),
            table_misses: lookups("tables", "miss"),
            key_hits: lookups("keys", "hit"),
            key_misses: lookups("keys", "miss"),
            disagreements: counter!("plc_signature_disagreements_total"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    use did_plc::signature::Signature;
    use plc_testkit::keys::SigningKey;
    use rand::seq::IndexedRandom;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn sign(key: &SigningKey, digest: [u8; 32]) -> Signed {
        Signed { digest, signature: Signature(key.sign(&digest)) }
    }

    fn texts(keys: &[SigningKey]) -> Vec<&str> {
        keys.iter().map(SigningKey::did_key).collect()
    }

    #[test]
    fn threads_that_meet_a_key_often_find_its_table() {
        let key = SigningKey::k256(&mut ChaCha8Rng::seed_from_u64(1));
        let good = sign(&key, [9; 32]);
        let bad = Signed { digest: [8; 32], ..good };
        let verifier = FastVerifier::new(Tables::On);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..HOT {
                        assert_eq!(verifier.try_keys(&[key.did_key()], &good), Ok(Some(0)));
                        assert_eq!(verifier.try_keys(&[key.did_key()], &bad), Ok(None));
                    }
                });
            }
        });
        let text = key_text(key.did_key()).unwrap();
        let hot = verifier.hot.unwrap();
        assert_eq!(hot.verify(text, &Trial::new(&good)), Some(true));
        assert_eq!(hot.verify(text, &Trial::new(&bad)), Some(false));
    }

    fn experience_changes_no_verdict(tables: Tables) {
        let random = &mut ChaCha8Rng::seed_from_u64(1);
        let busy: Vec<SigningKey> = (0..3).map(|_| SigningKey::k256(random)).collect();
        let verifier = FastVerifier::new(tables);
        // The later ones sign more.
        for number in 0..1_200 {
            let signer = [0, 1, 1, 2, 2, 2][number % 6];
            let signed = sign(&busy[signer], random.random());
            assert_eq!(verifier.find_signer(&texts(&busy), &signed), Ok(Some(signer)));
        }
        let likeliest = |keys: &[&str]| verifier.likeliest(keys);
        let known = texts(&busy);
        assert_eq!(likeliest(&known), Some(2));
        assert_eq!(likeliest(&known[..2]), Some(1));
        assert_eq!(likeliest(&[known[0], known[2], known[2]]), Some(1), "the first occurrence");
        assert_eq!(likeliest(&[known[1], known[0], known[1]]), None, "it is the first already");
        assert_eq!(likeliest(&["no key", known[1]]), None);

        let others = [SigningKey::k256(random), SigningKey::p256(random), SigningKey::k256(random)];
        let keys: Vec<&SigningKey> = busy.iter().chain(&others).collect();
        let mut texts: Vec<&str> = keys.iter().map(|key| key.did_key()).collect();
        texts.extend(["", "no key", "did:key:zNoKeyEither"]);
        let mut found = 0;
        for _ in 0..2_000 {
            let length = random.random_range(0..6);
            let list: Vec<&str> =
                (0..length).filter_map(|_| texts.choose(random).copied()).collect();
            let signed = sign(keys.choose(random).unwrap(), random.random());
            let plain = PlainVerifier.find_signer(&list, &signed);
            assert_eq!(verifier.try_keys(&list, &signed), plain, "{list:?}");
            found += usize::from(matches!(plain, Ok(Some(1..))));
        }
        assert!(found > 100, "{found}");
    }

    #[test]
    fn experience_with_keys_changes_no_verdict() {
        experience_changes_no_verdict(Tables::On);
    }

    #[test]
    fn experience_without_tables_changes_no_verdict() {
        experience_changes_no_verdict(Tables::Off);
    }

    #[test]
    fn a_new_key_is_tried_first_before_long() {
        let random = &mut ChaCha8Rng::seed_from_u64(2);
        let keys: Vec<SigningKey> = (0..2).map(|_| SigningKey::k256(random)).collect();
        let keys = texts(&keys);
        let verifier = FastVerifier::new(Tables::Off);
        let count = |index: usize| verifier.count_signature(key_text(keys[index]).unwrap(), &keys);
        (0..100_000).for_each(|_| count(0));
        assert_eq!(verifier.likeliest(&keys), None);
        (0..FULL_COUNT).for_each(|_| count(1));
        assert_eq!(verifier.likeliest(&keys), Some(1));
    }

    #[test]
    fn a_key_that_is_named_twice_is_found_where_it_is_first() {
        let counted = Cell::new(0);
        let count = |key: &str| {
            // Another thread counts a signature of "a" whenever we look.
            counted.set(counted.get() + 1);
            (key == "a").then(|| counted.get() - 1)
        };
        assert_eq!(first_of_the_busiest(&["a", "b", "a"], count), Some(0));
        assert_eq!(first_of_the_busiest(&["b", "a", "b", "a"], count), Some(1));
        assert_eq!(first_of_the_busiest(&["b"], count), None);
    }

    /// A verifier whose disagreements can be read.
    fn counting() -> (FastVerifier, Arc<AtomicU64>) {
        let mut verifier = FastVerifier::new(Tables::On);
        let disagreements = Arc::new(AtomicU64::new(0));
        verifier.counts.disagreements = Counter::from_arc(Arc::clone(&disagreements));
        (verifier, disagreements)
    }

    #[test]
    fn a_refusal_is_what_the_plain_verifier_says() {
        let random = &mut ChaCha8Rng::seed_from_u64(3);
        let keys = [SigningKey::k256(random), SigningKey::p256(random)];
        let signed = sign(&SigningKey::k256(random), [1; 32]);
        let (verifier, disagreements) = counting();
        assert_eq!(verifier.find_signer(&texts(&keys), &signed), Ok(None));
        let list = [keys[0].did_key(), "no key", keys[1].did_key()];
        let unsupported = Err(UnsupportedKey { index: 1 });
        assert_eq!(verifier.find_signer(&list, &signed), unsupported);
        assert_eq!(disagreements.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn the_plain_verifier_is_believed() {
        let random = &mut ChaCha8Rng::seed_from_u64(4);
        let [key, other] = [SigningKey::k256(random), SigningKey::p256(random)];
        let keys = [key.did_key(), other.did_key()];
        for (mistake, said) in [
            (Key::parse(other.did_key().as_bytes()), Ok(None)),
            (Key::Unsupported, Err(UnsupportedKey { index: 0 })),
        ] {
            let (verifier, disagreements) = counting();
            let wrong = Met { key: mistake, ..Met::new(key_text(keys[0]).unwrap()) };
            verifier.keys.with(key_text(keys[0]).unwrap(), || wrong, |_| ());
            let signed = sign(&key, [1; 32]);
            assert_eq!(verifier.try_keys(&keys, &signed), said);
            assert_eq!(verifier.find_signer(&keys, &signed), Ok(Some(0)));
            assert_eq!(disagreements.load(Ordering::Relaxed), 1);
        }
    }
}
