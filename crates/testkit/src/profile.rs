//! The log that measurements follow: millions of plausible operations, the same for a seed and a
//! size on every machine and with any number of cores.
//!
//! The log is dealt in turn from [`SHARDS`] independent generators, each with its own identities,
//! so that they can sign in parallel although an operation needs the CID of the one before it.
//! Each generator remembers a bounded number of identities, so that memory does not grow with the
//! log.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Write};
use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::builder::RECOVERY_WINDOW;
use super::keys::SigningKey;
use super::nonces::Nonces;
use super::shape::Shape;
use did_plc::key::{Curve, PublicKey};
use did_plc::{Cid, Did, Timestamp};

/// Generators that the log is dealt from; part of what a seed means.
const SHARDS: usize = 16;
/// Operations that each generator makes between two writes: enough to keep the cores busy, and
/// few megabytes.
const BLOCK: u64 = 256;
/// Identities that a generator remembers and may change again: 200,000 in all, about 50 MB.
const REMEMBERED: usize = 12_500;
/// Recent updates of a generator that a recovery may overrule; spans some hours of the log.
const CONTESTED: usize = 64;
/// Hosts that the identities are spread over.
const HOSTS: usize = 60;
/// Domains of handles.
const DOMAINS: [&str; 4] =
    ["host.example", "people.example", "club.example.org", "host.example.net"];
/// 2023-01-01T00:00:00.000Z, when the log begins.
const BEGINNING: Timestamp = Timestamp::from_millis(1_672_531_200_000);
/// Milliseconds between an operation and the next, on average.
const PACE: u64 = 5_000;

/// Of all operations.
const GENESIS_SHARE: f64 = 0.70;
/// Of all operations.
const RECOVERY_SHARE: f64 = 0.01;
/// Of all operations.
const TOMBSTONE_SHARE: f64 = 0.003;
/// Of the identities; the others have two P-256 keys of their own.
const SHARED_KEYS_SHARE: f64 = 0.95;
/// Of the operations that are no recovery: those are the first key's, and three in four in all
/// are the second's.
const SECOND_KEY_SHARE: f64 = 0.75 / (1.0 - RECOVERY_SHARE);

/// What a log was made of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Profile {
    pub operations: u64,
    pub genesis: u64,
    pub updates: u64,
    pub recoveries: u64,
    pub tombstones: u64,
    /// Identities under the shared pair of rotation keys.
    pub shared_identities: u64,
    /// Operations that the second rotation key signed.
    pub second_key: u64,
    /// Operations that a P-256 key signed.
    pub p256: u64,
    /// Bytes of the operations as JSON.
    pub json_bytes: u64,
    /// Bytes of the operations as signed DAG-CBOR.
    pub signed_bytes: u64,
}

impl Profile {
    fn add(&mut self, other: &Profile) {
        self.operations += other.operations;
        self.genesis += other.genesis;
        self.updates += other.updates;
        self.recoveries += other.recoveries;
        self.tombstones += other.tombstones;
        self.shared_identities += other.shared_identities;
        self.second_key += other.second_key;
        self.p256 += other.p256;
        self.json_bytes += other.json_bytes;
        self.signed_bytes += other.signed_bytes;
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.operations.max(1);
        let percent = |part: u64, of: u64| 100.0 * part as f64 / of.max(1) as f64;
        write!(
            f,
            "{} operations of {} identities: {:.1} % genesis, {:.1} % updates, {:.2} % recoveries, \
             {:.2} % tombstones; {:.1} % of the identities under two shared rotation keys; the \
             second key signs {:.1} %; {:.1} % signed with P-256; an operation is {} bytes of \
             JSON, {} of signed DAG-CBOR",
            self.operations,
            self.genesis,
            percent(self.genesis, all),
            percent(self.updates, all),
            percent(self.recoveries, all),
            percent(self.tombstones, all),
            percent(self.shared_identities, self.genesis),
            percent(self.second_key, all),
            percent(self.p256, all),
            self.json_bytes / all,
            self.signed_bytes / all,
        )
    }
}

/// Writes a log of sequenced export lines, each with a newline, and says what it is made of.
/// `progress` is told the number of operations written, every few thousand.
///
/// # Errors
///
/// Those of `out`.
pub fn write_log(
    seed: u64,
    operations: u64,
    out: &mut impl Write,
    progress: impl Fn(u64),
) -> io::Result<Profile> {
    let world = World::seeded(seed);
    let mut shards: Vec<Shard> = (0..SHARDS).map(|index| Shard::seeded(seed, index)).collect();
    let shards_in_turn = SHARDS as u64;
    let mut written = 0;
    while written < operations {
        let block = BLOCK.min((operations - written).div_ceil(shards_in_turn));
        shards.par_iter_mut().enumerate().for_each(|(index, shard)| {
            let first = written + index as u64 + 1;
            let sequences = (0..block).map(|turn| first + turn * shards_in_turn);
            shard.make_block(&world, sequences.take_while(|&sequence| sequence <= operations));
        });
        for turn in 0..block as usize {
            for line in shards.iter().filter_map(|shard| shard.line(turn)) {
                out.write_all(line)?;
            }
        }
        written = operations.min(written + block * shards_in_turn);
        progress(written);
    }
    let mut profile = Profile::default();
    for shard in &shards {
        profile.add(&shard.profile);
    }
    Ok(profile)
}

/// What all generators share.
struct World {
    rotation_keys: [SigningKey; 2],
    hosts: Vec<String>,
    nonces: Nonces,
}

impl World {
    fn seeded(seed: u64) -> World {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let rotation_keys = [SigningKey::k256(&mut random), SigningKey::k256(&mut random)];
        let host =
            |_| format!("https://{}.us-east.host.example.network", name(&mut random, 5..=11));
        let hosts = (0..HOSTS).map(host).collect();
        World { rotation_keys, hosts, nonces: Nonces::draw(&mut random) }
    }
}

/// An identity as its newest operation left it.
#[derive(Debug, Clone)]
struct Identity {
    did: Did,
    head: Cid,
    handle: String,
    /// Index into [`World::hosts`].
    host: usize,
    atproto: PublicKey,
    /// None: the shared pair.
    own_keys: Option<Box<[SigningKey; 2]>>,
}

/// An update by the second key, which the first one may overrule for 72 hours.
struct Contested {
    slot: usize,
    update: Cid,
    at: Timestamp,
    before: Identity,
}

/// One of the generators.
struct Shard {
    random: ChaCha8Rng,
    /// Where the verification keys have come to: each is the generator of the curve added to the
    /// one before, which makes them as unique as random ones, for a fifth of the time.
    next_key: secp256k1::PublicKey,
    step: secp256k1::PublicKey,
    identities: Vec<Identity>,
    contested: VecDeque<Contested>,
    profile: Profile,
    /// The block's lines, and where each ends.
    lines: Vec<u8>,
    ends: Vec<usize>,
    scratch: Vec<u8>,
}

/// Who signs: the index in the identity's rotation keys.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Signer {
    First,
    Second,
}

impl Shard {
    fn seeded(seed: u64, index: usize) -> Shard {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        // Stream 0 is the world's.
        random.set_stream(index as u64 + 1);
        let mut secret = || loop {
            if let Ok(key) = secp256k1::SecretKey::from_secret_bytes(random.random()) {
                return key.public_key();
            }
        };
        let (next_key, step) = (secret(), secret());
        Shard {
            random,
            next_key,
            step,
            identities: Vec::new(),
            contested: VecDeque::new(),
            profile: Profile::default(),
            lines: Vec::new(),
            ends: Vec::new(),
            scratch: Vec::new(),
        }
    }

    /// Replaces the block by one with these sequence numbers.
    fn make_block(&mut self, world: &World, sequences: impl Iterator<Item = u64>) {
        self.lines.clear();
        self.ends.clear();
        for sequence in sequences {
            self.make(world, sequence);
            self.ends.push(self.lines.len());
        }
    }

    /// A line of the block.
    fn line(&self, turn: usize) -> Option<&[u8]> {
        let end = *self.ends.get(turn)?;
        let start = turn.checked_sub(1).map_or(0, |before| self.ends[before]);
        Some(&self.lines[start..end])
    }

    fn make(&mut self, world: &World, sequence: u64) {
        // Strictly rising, at an uneven pace.
        let uneven = sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let at = BEGINNING + Duration::from_millis(sequence * PACE + uneven % PACE);
        let kind = self.random.random::<f64>();
        self.profile.operations += 1;
        if kind < GENESIS_SHARE || self.identities.is_empty() {
            self.make_genesis(world, sequence, at);
        } else if kind < GENESIS_SHARE + RECOVERY_SHARE
            && let Some(contested) = self.overrulable(at)
        {
            self.make_recovery(world, sequence, at, contested);
        } else if kind < GENESIS_SHARE + RECOVERY_SHARE + TOMBSTONE_SHARE {
            self.make_tombstone(world, sequence, at);
        } else {
            self.make_update(world, sequence, at);
        }
    }

    fn make_genesis(&mut self, world: &World, sequence: u64, at: Timestamp) {
        let shared = self.random.random_bool(SHARED_KEYS_SHARE);
        let own_keys = (!shared).then(|| {
            Box::new([SigningKey::p256(&mut self.random), SigningKey::p256(&mut self.random)])
        });
        let mut identity = Identity {
            did: Did::from_bytes([0; 15]),
            head: Cid::from_digest([0; 32]),
            handle: self.handle(),
            host: self.random.random_range(0..world.hosts.len()),
            atproto: self.atproto_key(),
            own_keys,
        };
        let signer = self.usual_signer();
        self.write(world, &mut identity, Act::Genesis, signer, sequence, at);
        self.profile.genesis += 1;
        self.profile.shared_identities += u64::from(shared);
        if self.identities.len() < REMEMBERED {
            self.identities.push(identity);
        } else {
            let forgotten = self.random.random_range(0..REMEMBERED);
            self.identities[forgotten] = identity;
        }
    }

    fn make_update(&mut self, world: &World, sequence: u64, at: Timestamp) {
        let slot = self.random.random_range(0..self.identities.len());
        let before = self.identities[slot].clone();
        let mut identity = before.clone();
        match self.random.random_range(0..20) {
            0..12 => identity.handle = self.handle(),
            12..17 => {
                identity.host = self.random.random_range(0..world.hosts.len());
                identity.atproto = self.atproto_key();
            }
            _ => identity.atproto = self.atproto_key(),
        }
        let signer = self.usual_signer();
        self.write(world, &mut identity, Act::Update, signer, sequence, at);
        self.profile.updates += 1;
        if signer == Signer::Second {
            if self.contested.len() == CONTESTED {
                self.contested.pop_front();
            }
            self.contested.push_back(Contested { slot, update: identity.head, at, before });
        }
        self.identities[slot] = identity;
    }

    /// A recent update that is still its identity's head and can be overruled at this time.
    fn overrulable(&mut self, at: Timestamp) -> Option<Contested> {
        while !self.contested.is_empty() {
            let chosen = self.random.random_range(0..self.contested.len());
            let contested = self.contested.swap_remove_back(chosen)?;
            let is_head = self
                .identities
                .get(contested.slot)
                .is_some_and(|identity| identity.head == contested.update);
            if is_head && at.since(contested.at) <= RECOVERY_WINDOW {
                return Some(contested);
            }
        }
        None
    }

    fn make_recovery(&mut self, world: &World, sequence: u64, at: Timestamp, contested: Contested) {
        let mut identity = contested.before;
        identity.atproto = self.atproto_key();
        self.write(world, &mut identity, Act::Update, Signer::First, sequence, at);
        self.profile.recoveries += 1;
        self.identities[contested.slot] = identity;
    }

    fn make_tombstone(&mut self, world: &World, sequence: u64, at: Timestamp) {
        let slot = self.random.random_range(0..self.identities.len());
        let mut identity = self.identities.swap_remove(slot);
        // Another identity has moved into the slot, and one slot is gone: a contested update is
        // looked up by its CID, so that this only loses candidates.
        let signer = self.usual_signer();
        self.write(world, &mut identity, Act::Tombstone, signer, sequence, at);
        self.profile.tombstones += 1;
    }

    fn usual_signer(&mut self) -> Signer {
        match self.random.random_bool(SECOND_KEY_SHARE) {
            true => Signer::Second,
            false => Signer::First,
        }
    }

    fn handle(&mut self) -> String {
        let domain = DOMAINS[self.random.random_range(0..DOMAINS.len())];
        format!("at://{}.{domain}", name(&mut self.random, 6..=16))
    }

    fn atproto_key(&mut self) -> PublicKey {
        let key = self.next_key;
        // Fails only where the sum is the point at infinity, once in 2^256: one key comes twice.
        self.next_key = key.combine(&self.step).unwrap_or(key);
        PublicKey { curve: Curve::K256, point: key.serialize() }
    }

    /// Signs what the identity has become, makes it the head, and appends the line.
    fn write(
        &mut self,
        world: &World,
        identity: &mut Identity,
        kind: Act,
        signer: Signer,
        sequence: u64,
        at: Timestamp,
    ) {
        let keys = identity.own_keys.as_deref().unwrap_or(&world.rotation_keys);
        let atproto = identity.atproto.to_string();
        let shape = match kind {
            Act::Tombstone => Shape::Tombstone,
            Act::Genesis | Act::Update => Shape::Regular {
                handle: &identity.handle,
                host: &world.hosts[identity.host],
                rotation_keys: [keys[0].did_key(), keys[1].did_key()],
                atproto: &atproto,
            },
        };
        let prev = (kind != Act::Genesis).then(|| identity.head.to_string());
        let prev = prev.as_deref();

        self.scratch.clear();
        shape.write_cbor(prev, None, &mut self.scratch);
        let digest = Sha256::digest(&self.scratch).into();
        let key = &keys[usize::from(signer == Signer::Second)];
        let sig = BASE64URL_NOPAD.encode(&world.nonces.sign(key, &digest));

        self.scratch.clear();
        shape.write_cbor(prev, Some(&sig), &mut self.scratch);
        let cid = Cid::of(&self.scratch);
        if kind == Act::Genesis {
            identity.did = Did::of_genesis_digest(cid.digest());
        }
        identity.head = cid;
        self.profile.second_key += u64::from(signer == Signer::Second);
        self.profile.p256 += u64::from(identity.own_keys.is_some());
        self.profile.signed_bytes += self.scratch.len() as u64;

        let out = &mut self.lines;
        out.extend_from_slice(br#"{"did":""#);
        out.extend_from_slice(&identity.did.to_ascii());
        out.extend_from_slice(br#"","cid":""#);
        out.extend_from_slice(&cid.to_ascii());
        out.extend_from_slice(br#"","seq":"#);
        out.extend_from_slice(itoa::Buffer::new().format(sequence).as_bytes());
        out.extend_from_slice(br#","createdAt":""#);
        out.extend_from_slice(&at.to_ascii());
        out.extend_from_slice(br#"","operation":"#);
        let start = out.len();
        shape.write_json(prev, &sig, out);
        self.profile.json_bytes += (out.len() - start) as u64;
        out.extend_from_slice(b",\"type\":\"sequenced_op\"}\n");
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Act {
    Genesis,
    Update,
    Tombstone,
}

/// A word that can be part of a host name.
fn name(random: &mut ChaCha8Rng, length: std::ops::RangeInclusive<usize>) -> String {
    let length = random.random_range(length);
    (0..length).map(|_| char::from(random.random_range(b'a'..=b'z'))).collect()
}
