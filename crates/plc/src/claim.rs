//! What an operation claims for its identity, and from when until when an identity claimed it:
//! handles, hosts and keys.
//!
//! A claim is what was signed, and nothing more: anybody can claim any handle, host or key.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

use super::cid::Cid;
use super::operation::{Malformed, Operation};
use super::timestamp::Timestamp;

/// What is claimed. The numbers are part of [`Value::hash`], which is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum ClaimKind {
    /// An alias that begins with `at://`; the rest of it, in lower case.
    Handle = 1,
    /// The authority (host, and port where there is one) of a service's endpoint, in lower case.
    Host = 2,
    /// A `did:key` that may rotate, or that verifies what the identity publishes.
    Key = 3,
}

impl ClaimKind {
    /// All of them.
    pub const ALL: [ClaimKind; 3] = [ClaimKind::Handle, ClaimKind::Host, ClaimKind::Key];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            ClaimKind::Handle => "handle",
            ClaimKind::Host => "host",
            ClaimKind::Key => "key",
        }
    }
}

/// There is no such kind of claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("claims are of a handle, a host or a key")]
pub struct UnknownKind;

impl FromStr for ClaimKind {
    type Err = UnknownKind;

    fn from_str(name: &str) -> Result<ClaimKind, UnknownKind> {
        ClaimKind::ALL.into_iter().find(|kind| kind.name() == name).ok_or(UnknownKind)
    }
}

/// In which place of an operation a value is claimed. [`fmt::Display`] prints it as the path in
/// `GET /{did}/data`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role<'a> {
    /// `alsoKnownAs`; the first handle in it is the primary one.
    Alias(usize),
    /// `services`, by its name.
    Service(&'a str),
    /// `rotationKeys`: the lower, the more authority.
    RotationKey(usize),
    /// `verificationMethods`, by its name.
    VerificationMethod(&'a str),
}

impl fmt::Display for Role<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Role::Alias(index) => write!(f, "alsoKnownAs/{index}"),
            Role::Service(name) => write!(f, "services/{name}"),
            Role::RotationKey(index) => write!(f, "rotationKeys/{index}"),
            Role::VerificationMethod(name) => write!(f, "verificationMethods/{name}"),
        }
    }
}

/// A value that can be claimed, in the one form in which values are compared.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value<'a> {
    /// What it is.
    pub kind: ClaimKind,
    /// Its text.
    pub text: Cow<'a, str>,
}

impl<'a> Value<'a> {
    /// What a person asks for: a handle also with `at://` or `@` before it, a host also as a URL, a
    /// key also without `did:key:`. None of an empty text.
    pub fn asked(kind: ClaimKind, text: &'a str) -> Option<Value<'a>> {
        let text = text.trim();
        match kind {
            ClaimKind::Handle => {
                let text = text.strip_prefix("at://").unwrap_or(text);
                Value::lower(kind, Cow::Borrowed(text.strip_prefix('@').unwrap_or(text)))
            }
            ClaimKind::Host => Value::lower(kind, Cow::Borrowed(authority(text))),
            ClaimKind::Key if text.is_empty() => None,
            ClaimKind::Key if text.starts_with(DID_KEY) => Some(Value { kind, text: text.into() }),
            ClaimKind::Key => Some(Value { kind, text: format!("{DID_KEY}{text}").into() }),
        }
    }

    fn lower(kind: ClaimKind, text: Cow<'a, str>) -> Option<Value<'a>> {
        let text = match text.bytes().any(|byte| byte.is_ascii_uppercase()) {
            true => Cow::Owned(text.to_ascii_lowercase()),
            false => text,
        };
        (!text.is_empty()).then_some(Value { kind, text })
    }

    fn handle(alias: Cow<'a, str>) -> Option<Value<'a>> {
        const SCHEME: &str = "at://";
        let bare = match alias {
            Cow::Borrowed(alias) => Cow::Borrowed(alias.strip_prefix(SCHEME)?),
            Cow::Owned(alias) => Cow::Owned(alias.strip_prefix(SCHEME)?.to_owned()),
        };
        Value::lower(ClaimKind::Handle, bare)
    }

    fn host(endpoint: Cow<'a, str>) -> Option<Value<'a>> {
        let host = match endpoint {
            Cow::Borrowed(endpoint) => Cow::Borrowed(authority(endpoint)),
            Cow::Owned(endpoint) => Cow::Owned(authority(&endpoint).to_owned()),
        };
        Value::lower(ClaimKind::Host, host)
    }

    fn key(key: &'a str) -> Option<Value<'a>> {
        let value = Value { kind: ClaimKind::Key, text: Cow::Borrowed(key) };
        key.starts_with(DID_KEY).then_some(value)
    }

    /// 32 bits of its SHA-256: what an index has of it. Two values may share them.
    pub fn hash(&self) -> u32 {
        let mut hash = Sha256::new();
        hash.update([self.kind as u8]);
        hash.update(self.text.as_bytes());
        let [a, b, c, d, ..] = <[u8; 32]>::from(hash.finalize());
        u32::from_be_bytes([a, b, c, d])
    }
}

const DID_KEY: &str = "did:key:";

/// What stands between `://` and the path of a URL, without a user's name. A text without `://`
/// is taken to begin with it.
fn authority(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let end = rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len());
    let whole = &rest[..end];
    whole.rsplit_once('@').map_or(whole, |(_, host)| host)
}

/// Everything that an operation claims, with the place where it does.
pub fn claims<'a>(operation: &Operation<'a>) -> Vec<(Value<'a>, Role<'a>)> {
    let mut claims = Vec::new();
    let mut claim =
        |value: Option<Value<'a>>, role| claims.extend(value.map(|value| (value, role)));
    for (index, alias) in operation.also_known_as().into_iter().enumerate() {
        claim(Value::handle(alias), Role::Alias(index));
    }
    for (name, service) in operation.services() {
        claim(Value::host(service.endpoint), Role::Service(name));
    }
    for (index, key) in operation.rotation_keys().into_iter().enumerate() {
        claim(Value::key(key), Role::RotationKey(index));
    }
    for (name, key) in operation.verification_methods() {
        claim(Value::key(key), Role::VerificationMethod(name));
    }
    claims
}

/// An operation of a history.
#[derive(Debug, Clone, Copy)]
pub struct Stated<'a> {
    /// When the directory accepted it.
    pub created_at: Timestamp,
    /// Whether another one nullified it.
    pub nullified: bool,
    /// Its signed DAG-CBOR.
    pub signed: &'a [u8],
}

/// A time in which an identity claimed a value in one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// The place, see [`Role`].
    pub role: String,
    /// When the operation that began it was accepted.
    pub from: Timestamp,
    /// When the operation that ended it was accepted; none while it lasts.
    pub until: Option<Timestamp>,
    /// The operation that began it.
    pub cid: Cid,
    /// True of what only operations claimed that were nullified: it stood at that time, and is held to
    /// have never been claimed now.
    pub nullified: bool,
}

impl Span {
    /// Whether the identity claims it now.
    pub fn is_current(&self) -> bool {
        self.until.is_none() && !self.nullified
    }
}

/// When an identity claimed a value, in the order of [`Span::from`]. `history` is all of the
/// identity's operations by `created_at`.
///
/// What is in force is looked at as if the nullified operations had never been. What those alone have
/// claimed has spans of its own, which end with the next operation that does not claim it or is in
/// force.
///
/// # Errors
///
/// [`Malformed`] when an operation cannot be read.
pub fn spans(history: &[Stated<'_>], wanted: &Value<'_>) -> Result<Vec<Span>, Malformed> {
    let mut ended = Vec::new();
    let (mut in_force, mut undone) = (Vec::new(), Vec::new());
    for stated in history {
        let operation = Operation::read(stated.signed)?;
        let claims = claims(&operation);
        let roles = claims.iter().filter(|(value, _)| value == wanted).map(|(_, role)| *role);
        let mut roles: Vec<String> = roles.map(|role| role.to_string()).collect();
        if stated.nullified {
            roles.retain(|role| !in_force.iter().any(|span: &Span| span.role == *role));
            go_on(&mut undone, &mut ended, stated, &roles);
        } else {
            go_on(&mut undone, &mut ended, stated, &[]);
            go_on(&mut in_force, &mut ended, stated, &roles);
        }
    }
    ended.extend(in_force);
    ended.extend(undone);
    ended.sort_by(|a, b| (a.from, &a.role).cmp(&(b.from, &b.role)));
    Ok(ended)
}

/// Ends the spans of places where the value is no longer claimed, and begins those where it is now.
fn go_on(open: &mut Vec<Span>, ended: &mut Vec<Span>, stated: &Stated<'_>, roles: &[String]) {
    let (lasting, over): (Vec<Span>, Vec<Span>) =
        open.drain(..).partition(|span| roles.contains(&span.role));
    ended.extend(over.into_iter().map(|span| Span { until: Some(stated.created_at), ..span }));
    *open = lasting;
    for role in roles {
        if !open.iter().any(|span| span.role == *role) {
            open.push(Span {
                role: role.clone(),
                from: stated.created_at,
                until: None,
                cid: Cid::of(stated.signed),
                nullified: stated.nullified,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use plc_testkit::Generated;
    use plc_testkit::builder::Story;

    #[test]
    fn values_are_compared_in_one_form() {
        for (kind, asked, text) in [
            (ClaimKind::Handle, "at://Alice.Example.COM", "alice.example.com"),
            (ClaimKind::Handle, " @alice.example.com", "alice.example.com"),
            (ClaimKind::Host, "https://User@PDS.example.com:8443/x?y#z", "pds.example.com:8443"),
            (ClaimKind::Host, "pds.example.com", "pds.example.com"),
            (ClaimKind::Host, "pds.example.com/", "pds.example.com"),
            (ClaimKind::Key, "zQ3sh", "did:key:zQ3sh"),
            (ClaimKind::Key, "did:key:zQ3sh", "did:key:zQ3sh"),
        ] {
            assert_eq!(Value::asked(kind, asked).unwrap().text, text, "{asked}");
        }
        for (kind, asked) in
            [(ClaimKind::Handle, "at://"), (ClaimKind::Host, "https://"), (ClaimKind::Key, " ")]
        {
            assert_eq!(Value::asked(kind, asked), None);
        }
        // The same text of another kind is another value.
        let of = |kind| Value { kind, text: "pds.example.com".into() }.hash();
        assert_ne!(of(ClaimKind::Handle), of(ClaimKind::Host));
    }

    #[test]
    fn everything_that_an_operation_claims() {
        let mut story = Story::seeded(5);
        let key = story.p256();
        let (recovery, signing) = (story.recovery.clone(), story.signing.clone());
        let aliases = ["https://other.example", "at://A.example", "at://b.example", "at://"];
        story
            .create()
            .also_known_as(aliases)
            .host("https://PDS.example.com:444/x")
            .atproto_key(&key)
            .accepted();
        story.create_legacy().handle("Old.example").accepted();
        let told = |index: usize| -> Vec<(String, String)> {
            let operation = Operation::read(&story.log()[index].signed).unwrap();
            let claims = claims(&operation);
            claims.iter().map(|(value, role)| (role.to_string(), value.text.to_string())).collect()
        };
        let pair = |role: &str, text: &str| (role.to_owned(), text.to_owned());
        assert_eq!(
            told(0),
            [
                pair("alsoKnownAs/1", "a.example"),
                pair("alsoKnownAs/2", "b.example"),
                pair("services/atproto_pds", "pds.example.com:444"),
                pair("rotationKeys/0", recovery.did_key()),
                pair("rotationKeys/1", signing.did_key()),
                pair("verificationMethods/atproto", key.did_key()),
            ]
        );
        assert_eq!(
            told(1),
            [
                pair("alsoKnownAs/0", "old.example"),
                pair("services/atproto_pds", "pds.example.com"),
                pair("rotationKeys/0", recovery.did_key()),
                pair("rotationKeys/1", signing.did_key()),
                pair("verificationMethods/atproto", signing.did_key()),
            ]
        );
    }

    /// Something that an identity does next.
    #[derive(Debug, Clone)]
    enum Act {
        Handles(Vec<u8>),
        Host(u8),
        Keys(Vec<u8>),
        Nothing,
        Tombstone,
        /// Goes on after the operation so many before, undoing those since.
        Recover(usize, u8),
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            3 => prop::collection::vec(0..3u8, 0..3).prop_map(Act::Handles),
            2 => (0..2u8).prop_map(Act::Host),
            2 => prop::collection::vec(0..3u8, 1..3).prop_map(Act::Keys),
            1 => Just(Act::Nothing),
            1 => Just(Act::Tombstone),
            3 => (1..4usize, 0..3u8).prop_map(|(back, handle)| Act::Recover(back, handle)),
        ]
    }

    fn handle(n: u8) -> String {
        format!("h{n}.example")
    }

    fn tell(acts: &[Act]) -> Vec<Generated> {
        let mut story = Story::seeded(6);
        let keys = [story.recovery.clone(), story.signing.clone(), story.k256()];
        let mut told = vec![story.create().handle(&handle(0)).accepted()];
        let alice = told[0].clone();
        for act in acts {
            let next = match act {
                Act::Handles(of) => {
                    let aliases: Vec<String> =
                        of.iter().map(|n| format!("at://{}", handle(*n))).collect();
                    story.update(&alice).also_known_as(aliases.iter().map(String::as_str))
                }
                Act::Host(n) => story.update(&alice).host(&format!("https://p{n}.example")),
                Act::Keys(of) => {
                    story.update(&alice).rotation_keys(of.iter().map(|n| &keys[usize::from(*n)]))
                }
                Act::Nothing => story.update(&alice),
                Act::Tombstone => story.tombstone(&alice),
                Act::Recover(back, n) => {
                    let prev = told[told.len().saturating_sub(*back).max(1) - 1].clone();
                    story.after(&prev).handle(&handle(*n))
                }
            };
            told.push(next.accepted());
        }
        story.log().to_vec()
    }

    /// The places where an operation claims a value.
    fn places(entry: &Generated, wanted: &Value<'_>) -> Vec<String> {
        let operation = Operation::read(&entry.signed).unwrap();
        let claims = claims(&operation);
        claims
            .iter()
            .filter(|(value, _)| value == wanted)
            .map(|(_, role)| role.to_string())
            .collect()
    }

    proptest! {
        /// At each instant the spans say what the last operation before it claimed: the last one
        /// that is in force, and beyond that the last one of all where that was nullified.
        #[test]
        fn spans_are_what_each_instant_says(acts in prop::collection::vec(act(), 0..12)) {
            let log = tell(&acts);
            let at = |entry: &Generated| entry.created_at.parse::<Timestamp>().unwrap();
            let history: Vec<Stated<'_>> = log
                .iter()
                .map(|entry| Stated {
                    created_at: at(entry),
                    nullified: entry.nullified_in_the_end,
                    signed: &entry.signed,
                })
                .collect();
            let values: std::collections::BTreeSet<Value<'_>> = log
                .iter()
                .flat_map(|entry| claims(&Operation::read(&entry.signed).unwrap()))
                .map(|(value, _)| value)
                .collect();
            for value in &values {
                let spans = spans(&history, value).unwrap();
                for instant in log.iter().map(at) {
                    let covering = |nullified| {
                        let mut roles: Vec<&str> = spans
                            .iter()
                            .filter(|span| span.nullified == nullified && span.from <= instant)
                            .filter(|span| span.until.is_none_or(|until| instant < until))
                            .map(|span| &*span.role)
                            .collect();
                        roles.sort_unstable();
                        roles
                    };
                    let past = || log.iter().filter(|entry| at(entry) <= instant);
                    let in_force = past().rfind(|entry| !entry.nullified_in_the_end);
                    let mut expected = in_force.map_or(vec![], |entry| places(entry, value));
                    expected.sort_unstable();
                    prop_assert_eq!(covering(false), &*expected);
                    let undone = past().next_back().filter(|entry| entry.nullified_in_the_end);
                    let mut beyond = undone.map_or(vec![], |entry| places(entry, value));
                    beyond.retain(|place| !expected.contains(place));
                    beyond.sort_unstable();
                    prop_assert_eq!(covering(true), beyond);
                }
                // Each begins with the operation that it names, where it did not go on from before.
                for span in &spans {
                    let first = log.iter().find(|entry| at(entry) == span.from).unwrap();
                    prop_assert_eq!(&first.cid, &span.cid.to_string());
                    prop_assert!(places(first, value).contains(&span.role));
                    let touching = |other: &&Span| {
                        other.role == span.role
                            && other.nullified == span.nullified
                            && other.until == Some(span.from)
                    };
                    if !span.nullified {
                        prop_assert_eq!(spans.iter().find(touching), None);
                    }
                }
            }
        }
    }
}
