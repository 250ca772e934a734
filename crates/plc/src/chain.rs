//! The chain of one identity, and the rules by which it grows
//! (specification, "DID update process" and "Recovery").

use std::collections::HashMap;
use std::time::Duration;

use super::cid::Cid;
use super::did::Did;
use super::entry::Received;
use super::operation::{Operation, OperationKind};
use super::refusal::Refusal;
use super::signature::{Signature, Signed, UnsupportedKey, Verifier};
use super::timestamp::Timestamp;

/// Links up to which a chain takes no more memory than it needs.
const FEW: usize = 4;
/// Links from which on a chain knows the place of each by its CID. Below that it is as fast to look at them
/// all, and nearly all chains are.
const MANY: usize = 33;
/// What an allocation takes beside what was asked for, about.
const ALLOCATION: usize = 16;
/// How long after the first operation that it nullifies a recovery may come; exactly this long is
/// in time.
pub const RECOVERY_WINDOW: Duration = Duration::from_secs(72 * 60 * 60);

/// An accepted operation in its chain: what is needed to judge those after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its CID.
    pub cid: Cid,
    /// When the directory accepted it.
    pub created_at: Timestamp,
    /// The directory's sequence number.
    pub sequence: Option<i64>,
    /// The keys that may sign what follows it, in order of authority; none of a tombstone.
    pub rotation_keys: Box<[Box<str>]>,
    /// Whether it ends the identity.
    pub tombstone: bool,
    /// Index of the rotation key that signed it, in the list that was in force.
    pub signer: u16,
    /// `created_at` of the operation that nullified it.
    pub nullified_by: Option<Timestamp>,
}

impl Link {
    /// The link that an operation makes whose content is `operation` and which this key signed.
    pub fn new(received: &Received, operation: &Operation<'_>, signer: u16) -> Link {
        Link {
            cid: received.cid,
            created_at: received.created_at,
            sequence: received.sequence,
            rotation_keys: operation.rotation_keys().into_iter().map(Box::from).collect(),
            tombstone: operation.kind() == OperationKind::Tombstone,
            signer,
            nullified_by: None,
        }
    }

    /// Compares with another statement of the same operation, whose number it has from now on.
    fn restate(&mut self, received: &Received) -> Restated {
        let restated = Restated::between(self, received);
        if received.stated_cid.is_none() {
            self.sequence = received.sequence.or(self.sequence);
        }
        restated
    }
}

/// What is decided about an operation of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is the next of its chain.
    Accepted(Acceptance),
    /// It is in its chain already; what was stated otherwise this time.
    Known(Restated),
    /// It is refused.
    Refused(Refusal),
}

/// The verdict on an operation that is accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acceptance {
    /// First index of the rotation key that signed it, in the list in force: that of the operation
    /// which `prev` names, and of a genesis operation its own.
    pub signer: u16,
    /// What it nullifies, in the order of the chain.
    pub nullifies: Vec<Cid>,
}

/// How a second statement of an operation differs from the first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Restated {
    /// The CID that was stated, when it is not that of the operation.
    pub cid: Option<String>,
    /// The `createdAt` that is held, when another was stated.
    pub created_at: Option<Timestamp>,
    /// The sequence number that is held, when another was stated.
    pub sequence: Option<i64>,
    /// The operation had no sequence number, and this one was stated.
    pub numbered: Option<i64>,
}

impl Restated {
    /// How a statement of an operation differs from what is held of it. Where it states another CID than the
    /// operation has, it is not what it says, and nothing else of it counts.
    pub fn between(held: &Link, received: &Received) -> Restated {
        if received.stated_cid.is_some() {
            return Restated { cid: received.stated_cid.clone(), ..Restated::default() };
        }
        let stated = received.sequence;
        Restated {
            cid: None,
            created_at: (held.created_at != received.created_at).then_some(held.created_at),
            sequence: held.sequence.filter(|held| stated.is_some_and(|stated| stated != *held)),
            numbered: stated.filter(|_| held.sequence.is_none()),
        }
    }

    /// True when nothing was stated differently.
    pub fn agrees(&self) -> bool {
        self.cid.is_none() && self.created_at.is_none() && self.sequence.is_none()
    }
}

/// Every accepted operation of one identity, in the order in which they are judged
/// ([`order`](super::order)).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chain {
    links: Vec<Link>,
    /// Of a chain with [`MANY`] links or more: where each is. Upstreams decide how long a chain is, and looking
    /// at all links for each operation takes a time that grows with the square of that.
    #[expect(clippy::box_collection, reason = "the many chains without one should be small")]
    places: Option<Box<HashMap<Cid, usize>>>,
}

impl Chain {
    /// A chain of links that were accepted before, in the order in which they were judged.
    pub fn from_links(links: Vec<Link>) -> Chain {
        let mut chain = Chain { links, places: None };
        chain.note_places();
        chain
    }

    /// All links, nullified ones included, in the order in which they were judged.
    pub fn links(&self) -> &[Link] {
        &self.links
    }

    /// Bytes of memory that it takes, about. Upstreams decide how many keys an operation lists and
    /// how long they are: what a chain takes cannot be told from the number of its links.
    pub fn bytes(&self) -> usize {
        let of_keys = |keys: &[Box<str>]| -> usize {
            keys.iter().map(|key| size_of_val(key) + ALLOCATION + key.len()).sum()
        };
        let of_link = |link: &Link| size_of_val(link) + ALLOCATION + of_keys(&link.rotation_keys);
        let of_places = |places: &HashMap<Cid, usize>| {
            // One place in eight stays empty, and each has a byte that says whether it is.
            places.capacity() * 8 / 7 * (size_of::<(Cid, usize)>() + 1) + 2 * ALLOCATION
        };
        self.links.iter().map(of_link).sum::<usize>() + self.places.as_deref().map_or(0, of_places)
    }

    /// The newest operation that is not nullified.
    pub fn head(&self) -> Option<&Link> {
        self.links.iter().rev().find(|link| link.nullified_by.is_none())
    }

    /// The link with this CID.
    pub fn find(&self, cid: &Cid) -> Option<&Link> {
        self.place(cid).map(|at| &self.links[at])
    }

    /// Where the link with this CID is.
    fn place(&self, cid: &Cid) -> Option<usize> {
        match &self.places {
            Some(places) => places.get(cid).copied(),
            None => self.links.iter().position(|link| link.cid == *cid),
        }
    }

    /// Notes where the links are of which that is not known yet.
    fn note_places(&mut self) {
        if self.links.len() < MANY {
            return;
        }
        let places = self.places.get_or_insert_default();
        for (at, link) in self.links.iter().enumerate().skip(places.len()) {
            places.entry(link.cid).or_insert(at);
        }
    }

    /// Judges an operation of this identity, as the reference directory does
    /// (`assureValidNextOp` of did-method-plc), and appends it when it is accepted. The checks
    /// stand in the order of the design's table; the first that fails names the refusal. What is in the
    /// chain already gets the sequence number that is stated for it now.
    pub fn take(&mut self, received: &Received, verifier: &dyn Verifier) -> Verdict {
        self.take_with(&Signers { known: None, verifier }, received)
    }

    /// [Takes](Chain::take) an operation that was accepted before, and was signed by the key with this index in
    /// the list of the operation that its `prev` names (of a genesis operation in its own). Its CID is that of its
    /// bytes, and those name its `prev` by the CID of that one's bytes, so it is signed by that key for good, and by
    /// none before it in the list: if that key may sign it here too, its signature is not verified again.
    pub fn take_again(
        &mut self,
        received: &Received,
        signer: u16,
        verifier: &dyn Verifier,
    ) -> Verdict {
        self.take_with(&Signers { known: Some(usize::from(signer)), verifier }, received)
    }

    fn take_with(&mut self, signers: &Signers<'_>, received: &Received) -> Verdict {
        if let Some(at) = self.place(&received.cid) {
            return Verdict::Known(self.links[at].restate(received));
        }
        match self.take_new(received, signers) {
            Ok(acceptance) => Verdict::Accepted(acceptance),
            Err(refusal) => Verdict::Refused(refusal),
        }
    }

    /// Gives an operation of the chain another number, or none.
    pub fn set_number(&mut self, cid: &Cid, number: Option<i64>) {
        if let Some(at) = self.place(cid) {
            self.links[at].sequence = number;
        }
    }

    /// Says of an operation that was refused, since its `prev` was not there, that it is dated before that:
    /// to be asked when everything that is known was judged.
    pub fn explain(&self, received: &Received, refusal: Refusal) -> Refusal {
        match refusal.lacking_prev().and_then(|prev| self.find(&prev)) {
            Some(prev) => {
                let (created_at, head) = (received.created_at, prev.created_at);
                Refusal::TimestampOrder { created_at, head }
            }
            None => refusal,
        }
    }

    fn take_new(
        &mut self,
        received: &Received,
        signers: &Signers<'_>,
    ) -> Result<Acceptance, Refusal> {
        if let Some(stated) = &received.stated_cid {
            return Err(Refusal::CidMismatch { stated: stated.clone(), computed: received.cid });
        }
        let operation = Operation::read(&received.signed)
            .map_err(|error| Refusal::Malformed { reason: error.to_string() })?;
        let acceptance = self.judge(received, &operation, signers)?;
        self.append(received, &operation, &acceptance);
        Ok(acceptance)
    }

    fn judge(
        &self,
        received: &Received,
        operation: &Operation<'_>,
        signers: &Signers<'_>,
    ) -> Result<Acceptance, Refusal> {
        match (operation.prev(), self.links.first()) {
            (None, None) => judge_genesis(received, operation, signers),
            (None, Some(first)) => Err(Refusal::SecondGenesis { genesis: first.cid }),
            (Some(prev), None) => Err(Refusal::UnknownDid { prev: prev.to_owned() }),
            (Some(prev), Some(_)) => {
                let at = self.find_prev(prev)?;
                self.judge_successor(at, received, operation, signers)
            }
        }
    }

    /// Judges an operation whose `prev` is the link at this place.
    fn judge_successor(
        &self,
        at: usize,
        received: &Received,
        operation: &Operation<'_>,
        signers: &Signers<'_>,
    ) -> Result<Acceptance, Refusal> {
        let in_force = &self.links[at].rotation_keys;
        let mut nullified =
            self.links[at + 1..].iter().filter(|link| link.nullified_by.is_none()).peekable();
        // An operation that is refused is not worth a look at all that it would nullify.
        let disputed = nullified.peek().copied();
        let authorised = match disputed {
            Some(disputed) => &in_force[..usize::from(disputed.signer).min(in_force.len())],
            None => in_force,
        };
        let signer = signers.find(operation, authorised)?.ok_or_else(|| {
            // Not one of those that may: another key of the list, or nobody's signature.
            let rest = &in_force[authorised.len()..];
            match (disputed, signers.verify(operation, rest)) {
                (Some(disputed), Ok(Some(index))) => Refusal::NotAuthorised {
                    signer: authorised.len() + index,
                    disputed: usize::from(disputed.signer),
                },
                _ => Refusal::SignatureInvalid,
            }
        })?;
        self.check_time(received.created_at, disputed)?;
        let nullifies = nullified.map(|link| link.cid).collect();
        Ok(Acceptance { signer: index_of(signer), nullifies })
    }

    /// The link that `prev` names, if something may follow it.
    fn find_prev(&self, prev: &str) -> Result<usize, Refusal> {
        let unknown = || Refusal::UnknownPrev { prev: prev.to_owned() };
        let cid = Cid::of_any_spelling(prev).ok_or_else(unknown)?;
        let at = self.place(&cid).ok_or_else(unknown)?;
        if self.links[at].nullified_by.is_some() {
            return Err(Refusal::PrevNullified { prev: cid });
        }
        if self.links[at].tombstone {
            return Err(Refusal::PrevTombstone { prev: cid });
        }
        Ok(at)
    }

    fn check_time(&self, created_at: Timestamp, disputed: Option<&Link>) -> Result<(), Refusal> {
        // The last link is never nullified (what nullifies comes later), so it is the head. The
        // reference's commit can accept equal times.
        if let Some(head) = self.links.last().filter(|last| last.created_at > created_at) {
            return Err(Refusal::TimestampOrder { created_at, head: head.created_at });
        }
        match disputed {
            Some(disputed) if created_at > disputed.created_at + RECOVERY_WINDOW => {
                Err(Refusal::RecoveryTooLate { created_at, disputed_at: disputed.created_at })
            }
            _ => Ok(()),
        }
    }

    /// Appends an operation that was accepted, and marks what it nullifies.
    fn append(&mut self, received: &Received, operation: &Operation<'_>, acceptance: &Acceptance) {
        for nullified in &acceptance.nullifies {
            if let Some(at) = self.place(nullified) {
                self.links[at].nullified_by = Some(received.created_at);
            }
        }
        // Most identities never have more than a few operations: no room is kept for others.
        if self.links.len() < FEW {
            self.links.reserve_exact(1);
        }
        self.links.push(Link::new(received, operation, acceptance.signer));
        self.note_places();
    }
}

fn judge_genesis(
    received: &Received,
    operation: &Operation<'_>,
    signers: &Signers<'_>,
) -> Result<Acceptance, Refusal> {
    let derived = Did::of_genesis_digest(received.cid.digest());
    if derived != received.did {
        return Err(Refusal::GenesisMismatch { derived });
    }
    let own: Vec<&str> = operation.rotation_keys();
    let signer = signers.find(operation, &own)?.ok_or(Refusal::SignatureInvalid)?;
    Ok(Acceptance { signer: index_of(signer), nullifies: Vec::new() })
}

/// An index in a list of rotation keys. A list longer than this does not fit into an operation of
/// the accepted length.
fn index_of(signer: usize) -> u16 {
    u16::try_from(signer).unwrap_or(u16::MAX)
}

/// Who signed an operation.
struct Signers<'a> {
    /// The index of the signer in the whole list in force, when it was found before.
    known: Option<usize>,
    verifier: &'a dyn Verifier,
}

impl Signers<'_> {
    /// The first key that made the signature, of those that may: the beginning of the list in force.
    fn find<K: AsRef<str>>(
        &self,
        operation: &Operation<'_>,
        authorised: &[K],
    ) -> Result<Option<usize>, Refusal> {
        match self.known.filter(|known| *known < authorised.len()) {
            Some(known) => Ok(Some(known)),
            None => self.verify(operation, authorised),
        }
    }

    /// The first of `keys` that made the signature. A key that is met and is none ends the trial.
    fn verify<K: AsRef<str>>(
        &self,
        operation: &Operation<'_>,
        keys: &[K],
    ) -> Result<Option<usize>, Refusal> {
        let signature = Signature::parse(operation.sig()).ok_or(Refusal::SignatureEncoding)?;
        let signed = Signed { digest: operation.signing_digest(), signature };
        let keys: Vec<&str> = keys.iter().map(AsRef::as_ref).collect();
        let unsupported = |UnsupportedKey { index }| Refusal::UnsupportedKey { index };
        self.verifier.find_signer(&keys, &signed).map_err(unsupported)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signature::PlainVerifier;
    use plc_testkit::builder::Story;

    fn received(story: &Story) -> Vec<Received> {
        let lines = story.log().iter().map(|entry| entry.sequenced_line());
        lines.map(|line| Received::decode(line.as_bytes()).unwrap()).collect()
    }

    /// What is looked up at every length around that from which on places are known.
    #[test]
    fn a_long_chain_is_searched_like_a_short_one() {
        let mut story = Story::seeded(1);
        let alice = story.create().accepted();
        for _ in 1..MANY + 4 {
            story.update(&alice).accepted();
        }
        let operations = received(&story);
        let mut chain = Chain::default();
        for (at, operation) in operations.iter().enumerate() {
            assert_eq!(chain.find(&operation.cid), None);
            assert!(matches!(chain.take(operation, &PlainVerifier), Verdict::Accepted(_)));
            assert_eq!(chain.places.is_some(), at + 1 >= MANY);
            for (before, operation) in operations[..=at].iter().enumerate() {
                assert_eq!(chain.find(&operation.cid), Some(&chain.links[before]));
            }
            let again = Received { sequence: Some(1000), ..operation.clone() };
            let Verdict::Known(restated) = chain.take(&again, &PlainVerifier) else { panic!() };
            assert_eq!(restated.sequence, operation.sequence);
            chain.set_number(&operation.cid, operation.sequence);
            assert_eq!(chain.links[at].sequence, operation.sequence);
            assert_eq!(Chain::from_links(chain.links.clone()), chain);
        }
        let of_links = |chain: &Chain| Chain { links: chain.links.clone(), places: None }.bytes();
        assert!(chain.bytes() >= of_links(&chain) + chain.links.len() * 40);
        chain = Chain::from_links(chain.links[..MANY - 1].to_vec());
        assert_eq!(chain.bytes(), of_links(&chain));
    }

    /// For what must not be verified again.
    struct NotAsked;

    impl Verifier for NotAsked {
        fn find_signer(&self, _: &[&str], _: &Signed) -> Result<Option<usize>, UnsupportedKey> {
            panic!("asked about a signature")
        }
    }

    #[test]
    fn who_signed_is_found_once_and_whether_they_may_each_time() {
        let mut story = Story::seeded(3);
        let recovery = story.recovery.clone();
        let alice = story.create().accepted();
        story.update(&alice).handle("stolen.example").accepted();
        let back = story.after(&alice).signed_by(&recovery).accepted();
        story.update(&back).accepted();
        let told = received(&story);
        let chain_of = |operations: &[&Received]| {
            let mut chain = Chain::default();
            for operation in operations {
                assert!(matches!(chain.take(operation, &PlainVerifier), Verdict::Accepted(_)));
            }
            chain
        };
        let before = chain_of(&told.iter().collect::<Vec<_>>());
        let mut again = Chain::default();
        for (operation, link) in told.iter().zip(before.links()) {
            let verdict = again.take_again(operation, link.signer, &NotAsked);
            assert!(matches!(verdict, Verdict::Accepted(_)));
        }
        assert_eq!(again, before);
        // The second key signed, and may not once something of the first or of its own came before.
        let late = Received { created_at: told[3].created_at, ..told[1].clone() };
        let of_its_own = story.after(&alice).handle("fork.example").refused("not-authorised");
        let fork = received(&story).pop().unwrap();
        assert_eq!(fork.cid.to_string(), of_its_own.cid);
        for (first, disputed, late) in [(&told[2], 0, late), (&told[1], 1, fork)] {
            let verdict = chain_of(&[&told[0], first]).take_again(&late, 1, &PlainVerifier);
            assert_eq!(verdict, chain_of(&[&told[0], first]).take(&late, &PlainVerifier));
            let refusal = Refusal::NotAuthorised { signer: 1, disputed };
            assert_eq!(verdict, Verdict::Refused(refusal));
        }
    }

    #[test]
    fn a_recovery_nullifies_all_of_a_long_chain_but_its_beginning() {
        let mut story = Story::seeded(2);
        let alice = story.create().accepted();
        let last = story.update(&alice).accepted();
        for _ in 0..2 * MANY {
            story.update(&alice).accepted();
        }
        let recovery = story.recovery.clone();
        story.after(&last).signed_by(&recovery).accepted();
        story.update(&alice).accepted();
        let mut chain = Chain::default();
        for operation in received(&story) {
            assert!(matches!(chain.take(&operation, &PlainVerifier), Verdict::Accepted(_)));
        }
        let nullified: Vec<bool> =
            chain.links.iter().map(|link| link.nullified_by.is_some()).collect();
        let told: Vec<bool> = story.log().iter().map(|it| it.nullified_in_the_end).collect();
        assert_eq!(nullified, told);
    }
}
