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

    /// Compares with another statement of the same operation, whose number it has from now on.
    fn restate(&mut self, received: &Received) -> Restated {
        let restated = Restated::between(self, received);
        self.sequence = received.sequence.or(self.sequence);
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
    /// How a statement of an operation differs from what is held of it.
    pub fn between(held: &Link, received: &Received) -> Restated {
        let stated = received.sequence;
        Restated {
            cid: received.stated_cid.clone(),
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
}

impl Chain {
    /// A chain of links that were accepted before, in the order in which they were judged.
    pub fn from_links(links: Vec<Link>) -> Chain {
        Chain { links }
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
    /// stand in the order of the design's table; the first that fails names the refusal. What is in the
    /// chain already gets the sequence number that is stated for it now.
    pub fn take(&mut self, received: &Received, verifier: &dyn Verifier) -> Verdict {
        if let Some(held) = self.links.iter_mut().find(|link| link.cid == received.cid) {
            return Verdict::Known(held.restate(received));
        }
        match self.take_new(received, verifier) {
            Ok(acceptance) => Verdict::Accepted(acceptance),
            Err(refusal) => Verdict::Refused(refusal),
        }
    }

    /// Gives an operation of the chain another number, or none.
    pub fn set_number(&mut self, cid: &Cid, number: Option<i64>) {
        if let Some(link) = self.links.iter_mut().find(|link| link.cid == *cid) {
            link.sequence = number;
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
        verifier: &dyn Verifier,
    ) -> Result<Acceptance, Refusal> {
        if let Some(stated) = &received.stated_cid {
            return Err(Refusal::CidMismatch { stated: stated.clone(), computed: received.cid });
        }
        let operation = Operation::read(&received.signed)
            .map_err(|error| Refusal::Malformed { reason: error.to_string() })?;
        let acceptance = self.judge(received, &operation, verifier)?;
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
        let nullifies = nullified.iter().map(|link| link.cid).collect();
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
        // Both are in the order of the chain.
        let mut nullified = acceptance.nullifies.iter().peekable();
        for link in &mut self.links {
            if nullified.next_if(|cid| **cid == link.cid).is_some() {
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
