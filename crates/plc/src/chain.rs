//! The chain of one identity, and the rules by which it grows
//! (specification, "DID update process" and "Recovery").

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

    /// Compares with another statement of the same operation, which may give it its number.
    fn restate(
        &mut self,
        received: &Received,
        number_held_by: impl FnOnce() -> Option<Cid>,
    ) -> Restated {
        let stated = received.sequence;
        let mut restated = Restated {
            cid: received.stated_cid.clone(),
            created_at: (self.created_at != received.created_at).then_some(self.created_at),
            sequence: self.sequence.filter(|held| stated.is_some_and(|stated| stated != *held)),
            numbered: stated.filter(|_| self.sequence.is_none()),
            number_held_by: None,
        };
        if restated.numbered.is_some() {
            restated.number_held_by = number_held_by();
            self.sequence = restated.numbered.filter(|_| restated.number_held_by.is_none());
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
    /// `created_at` of what it nullifies, ascending.
    pub nullifies: Vec<Timestamp>,
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
    /// The other operation that has the number stated, which this one does not get then.
    pub number_held_by: Option<Cid>,
}

impl Restated {
    /// True when nothing was stated differently.
    pub fn agrees(&self) -> bool {
        self.cid.is_none() && self.created_at.is_none() && self.sequence.is_none()
    }
}

/// Every accepted operation of one identity, in the order of `created_at`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chain {
    links: Vec<Link>,
}

impl Chain {
    /// A chain of links that were accepted before, ascending by `created_at`.
    pub fn from_links(links: Vec<Link>) -> Chain {
        Chain { links }
    }

    /// All links, nullified ones included, ascending by `created_at`.
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
        self.links.iter().map(of_link).sum()
    }

    /// The newest operation that is not nullified.
    pub fn head(&self) -> Option<&Link> {
        self.links.iter().rev().find(|link| link.nullified_by.is_none())
    }

    /// The link with this CID.
    pub fn find(&self, cid: &Cid) -> Option<&Link> {
        self.links.iter().find(|link| link.cid == *cid)
    }

    /// Judges an operation of this identity, as the reference directory does
    /// (`assureValidNextOp` of did-method-plc), and appends it when it is accepted. The checks
    /// stand in the order of the design's table; the first that fails names the refusal.
    ///
    /// `number_held_by` says which other operation of the log has the sequence number that is
    /// stated for this one, if any. It is asked once at most, and only when everything else is in
    /// order.
    pub fn take(
        &mut self,
        received: &Received,
        verifier: &dyn Verifier,
        number_held_by: impl FnOnce() -> Option<Cid>,
    ) -> Verdict {
        if let Some(held) = self.links.iter_mut().find(|link| link.cid == received.cid) {
            return Verdict::Known(held.restate(received, number_held_by));
        }
        match self.take_new(received, verifier, number_held_by) {
            Ok(acceptance) => Verdict::Accepted(acceptance),
            Err(refusal) => Verdict::Refused(refusal),
        }
    }

    fn take_new(
        &mut self,
        received: &Received,
        verifier: &dyn Verifier,
        number_held_by: impl FnOnce() -> Option<Cid>,
    ) -> Result<Acceptance, Refusal> {
        if let Some(stated) = &received.stated_cid {
            return Err(Refusal::CidMismatch { stated: stated.clone(), computed: received.cid });
        }
        let operation = Operation::read(&received.signed)
            .map_err(|error| Refusal::Malformed { reason: error.to_string() })?;
        let acceptance = self.judge(received, &operation, verifier)?;
        if let Some(sequence) = received.sequence
            && let Some(holder) = number_held_by()
        {
            return Err(Refusal::SequenceConflict { sequence, holder });
        }
        self.append(received, &operation, &acceptance);
        Ok(acceptance)
    }

    fn judge(
        &self,
        received: &Received,
        operation: &Operation<'_>,
        verifier: &dyn Verifier,
    ) -> Result<Acceptance, Refusal> {
        match (operation.prev(), self.links.first()) {
            (None, None) => judge_genesis(received, operation, verifier),
            (None, Some(first)) => Err(Refusal::SecondGenesis { genesis: first.cid }),
            (Some(prev), None) => Err(Refusal::UnknownDid { prev: prev.to_owned() }),
            (Some(prev), Some(_)) => {
                let at = self.find_prev(prev)?;
                self.judge_successor(at, received, operation, verifier)
            }
        }
    }

    /// Judges an operation whose `prev` is the link at this place.
    fn judge_successor(
        &self,
        at: usize,
        received: &Received,
        operation: &Operation<'_>,
        verifier: &dyn Verifier,
    ) -> Result<Acceptance, Refusal> {
        let in_force = &self.links[at].rotation_keys;
        let nullified: Vec<&Link> =
            self.links[at + 1..].iter().filter(|link| link.nullified_by.is_none()).collect();
        let disputed = nullified.first();
        let authorised = match disputed {
            Some(disputed) => &in_force[..usize::from(disputed.signer).min(in_force.len())],
            None => in_force,
        };
        let signed = signed(operation)?;
        let signer = find_signer(&signed, authorised, verifier)?.ok_or_else(|| {
            // Not one of those that may: another key of the list, or nobody's signature.
            let rest = &in_force[authorised.len()..];
            match (disputed, find_signer(&signed, rest, verifier)) {
                (Some(disputed), Ok(Some(index))) => Refusal::NotAuthorised {
                    signer: authorised.len() + index,
                    disputed: usize::from(disputed.signer),
                },
                _ => Refusal::SignatureInvalid,
            }
        })?;
        self.check_time(received.created_at, disputed)?;
        let nullifies = nullified.iter().map(|link| link.created_at).collect();
        Ok(Acceptance { signer: index_of(signer), nullifies })
    }

    /// The link that `prev` names, if something may follow it.
    fn find_prev(&self, prev: &str) -> Result<usize, Refusal> {
        let unknown = || Refusal::UnknownPrev { prev: prev.to_owned() };
        let cid = Cid::of_any_spelling(prev).ok_or_else(unknown)?;
        let at = self.links.iter().position(|link| link.cid == cid).ok_or_else(unknown)?;
        if self.links[at].nullified_by.is_some() {
            return Err(Refusal::PrevNullified { prev: cid });
        }
        if self.links[at].tombstone {
            return Err(Refusal::PrevTombstone { prev: cid });
        }
        Ok(at)
    }

    fn check_time(&self, created_at: Timestamp, disputed: Option<&&Link>) -> Result<(), Refusal> {
        // The last link is never nullified (what nullifies comes later), so it is the head; all
        // links count, since `created_at` is what tells the operations of an identity apart.
        if let Some(head) = self.links.last().filter(|last| last.created_at >= created_at) {
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
        for link in &mut self.links {
            if acceptance.nullifies.binary_search(&link.created_at).is_ok() {
                link.nullified_by = Some(received.created_at);
            }
        }
        // Most identities never have more than a few operations: no room is kept for others.
        if self.links.len() < FEW {
            self.links.reserve_exact(1);
        }
        self.links.push(Link::new(received, operation, acceptance.signer));
    }
}

fn judge_genesis(
    received: &Received,
    operation: &Operation<'_>,
    verifier: &dyn Verifier,
) -> Result<Acceptance, Refusal> {
    let derived = Did::of_genesis_digest(received.cid.digest());
    if derived != received.did {
        return Err(Refusal::GenesisMismatch { derived });
    }
    let own: Vec<&str> = operation.rotation_keys();
    let signer =
        find_signer(&signed(operation)?, &own, verifier)?.ok_or(Refusal::SignatureInvalid)?;
    Ok(Acceptance { signer: index_of(signer), nullifies: Vec::new() })
}

/// An index in a list of rotation keys. A list longer than this does not fit into an operation of
/// the accepted length.
fn index_of(signer: usize) -> u16 {
    u16::try_from(signer).unwrap_or(u16::MAX)
}

/// The signature of an operation.
fn signed(operation: &Operation<'_>) -> Result<Signed, Refusal> {
    let signature = Signature::parse(operation.sig()).ok_or(Refusal::SignatureEncoding)?;
    Ok(Signed { digest: operation.signing_digest(), signature })
}

/// The first of `keys` that made a signature. A key that is met and is none ends the trial.
fn find_signer<K: AsRef<str>>(
    signed: &Signed,
    keys: &[K],
    verifier: &dyn Verifier,
) -> Result<Option<usize>, Refusal> {
    let keys: Vec<&str> = keys.iter().map(AsRef::as_ref).collect();
    let unsupported = |UnsupportedKey { index }| Refusal::UnsupportedKey { index };
    verifier.find_signer(&keys, signed).map_err(unsupported)
}
