//! Which records go when there are too many, of refusals and of differences: the one rule of both backends.
//!
//! What a commit brings makes room for itself: the oldest of the same source and kind go first, then the oldest of the
//! same source, then the oldest of all, until no more bytes are kept than the bound says. So an upstream that sends
//! junk pushes out its own. The newest of a commit stays, however large it is. Of differences the first of each
//! source and kind stays too, which says since when there are such: the backends do not name it among the oldest.

use std::collections::BTreeMap;

/// Records that a backend is asked for at a time.
pub(super) const PAGE: i64 = 256;

/// A record as a commit has kept it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kept<'a> {
    /// The identity, as it is stated.
    pub(super) did: &'a str,
    pub(super) source: &'a str,
    pub(super) kind: &'a str,
    /// Number of the record.
    pub(super) id: i64,
    /// How many bytes more are kept by it.
    pub(super) bytes: i64,
}

/// What was kept of one source and kind.
#[derive(Debug)]
struct Brought<'a> {
    source: &'a str,
    kind: &'a str,
    bytes: i64,
}

/// Whose room it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner<'a> {
    /// That of one identity, as its lines state it.
    Identity(&'a str),
    /// That of all.
    All,
}

/// A question to the backend: the first [`PAGE`] records by id of this owner, each with its bytes; of a source and of
/// a kind, where given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Oldest<'a> {
    pub(super) owner: Owner<'a>,
    pub(super) source: Option<&'a str>,
    pub(super) kind: Option<&'a str>,
    /// Which does not go.
    pub(super) except: i64,
}

/// Room that is being made.
#[derive(Debug)]
pub(super) struct Room<'a> {
    owner: Owner<'a>,
    brought: Vec<Brought<'a>>,
    /// The newest record of all that was brought, which stays: one for all groups, or what one of them spares would
    /// go for another.
    newest: i64,
    /// Which of them makes room for itself, and how many of the three groups it has asked for.
    at: usize,
    groups: usize,
    /// Bytes that are kept, of what was brought up to `at`.
    held: i64,
    bound: i64,
    /// Records that go, and their bytes.
    pub(super) forgotten: i64,
    pub(super) freed: i64,
}

impl<'a> Room<'a> {
    /// For what a commit has kept; `held_before` are the bytes that were kept without it.
    pub(super) fn new(
        owner: Owner<'a>,
        kept: impl IntoIterator<Item = Kept<'a>>,
        held_before: i64,
        bound: u64,
    ) -> Room<'a> {
        let mut brought: Vec<Brought<'a>> = Vec::new();
        let mut newest = i64::MIN;
        for Kept { source, kind, id, bytes, .. } in kept {
            newest = newest.max(id);
            match brought.iter_mut().find(|of| (of.source, of.kind) == (source, kind)) {
                Some(of) => of.bytes += bytes,
                None => brought.push(Brought { source, kind, bytes }),
            }
        }
        let held = held_before + brought.first().map_or(0, |of| of.bytes);
        let bound = i64::try_from(bound).unwrap_or(i64::MAX);
        Room { owner, brought, newest, at: 0, groups: 0, held, bound, forgotten: 0, freed: 0 }
    }

    /// What to ask next; none when there is room.
    pub(super) fn next(&mut self) -> Option<Oldest<'a>> {
        loop {
            let of = self.brought.get(self.at)?;
            if self.held > self.bound && self.groups < 3 {
                return Some(Oldest {
                    owner: self.owner,
                    source: (self.groups < 2).then_some(of.source),
                    kind: (self.groups < 1).then_some(of.kind),
                    except: self.newest,
                });
            }
            self.at += 1;
            self.groups = 0;
            self.held += self.brought.get(self.at).map_or(0, |of| of.bytes);
        }
    }

    /// Those of the answer (id and bytes) that go, and are not there when the next question is asked.
    pub(super) fn forget(&mut self, oldest: &[(i64, i64)]) -> Vec<i64> {
        if oldest.is_empty() {
            self.groups += 1;
        }
        let mut going = Vec::new();
        for &(id, bytes) in oldest {
            if self.held <= self.bound {
                break;
            }
            self.held -= bytes;
            self.freed += bytes;
            going.push(id);
        }
        self.forgotten += going.len() as i64;
        going
    }
}

/// What a commit has kept, by identity. Lines that state none are of no identity.
pub(super) fn by_identity<'a>(kept: &[Kept<'a>]) -> BTreeMap<&'a str, Vec<Kept<'a>>> {
    let mut identities: BTreeMap<&str, Vec<Kept<'a>>> = BTreeMap::new();
    for &one in kept.iter().filter(|one| !one.did.is_empty()) {
        identities.entry(one.did).or_default().push(one);
    }
    identities
}
