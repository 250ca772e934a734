//! What an operation changed, in words: keys, handles, hosts.

use std::fmt;

use super::operation::{Operation, OperationKind, Service};

/// One thing that an operation changed of its identity. [`fmt::Display`] says it in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The identity begins.
    Created {
        /// In the deprecated form of the first operations.
        legacy: bool,
    },
    /// The identity ends.
    Tombstoned,
    /// The primary alias, which is the handle.
    Handle {
        /// As it was, without `at://`; none in the beginning.
        before: Option<String>,
        /// As it is.
        after: Option<String>,
    },
    /// Aliases other than the handle.
    Aliases {
        /// No longer there.
        removed: Vec<String>,
        /// New.
        added: Vec<String>,
    },
    /// The keys that may change the identity, in order of authority.
    RotationKeys {
        /// As they were; none in the beginning.
        before: Vec<String>,
        /// As they are.
        after: Vec<String>,
    },
    /// A key that signs what the identity publishes.
    VerificationMethod {
        /// Its name, such as `atproto`.
        name: String,
        /// As it was.
        before: Option<String>,
        /// As it is.
        after: Option<String>,
    },
    /// A service, such as the host of the identity's data.
    Service {
        /// Its name, such as `atproto_pds`.
        name: String,
        /// As it was.
        before: Option<Endpoint>,
        /// As it is.
        after: Option<Endpoint>,
    },
    /// Signed anew, with the same content.
    Nothing,
}

/// What a service is and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its `type`.
    pub kind: String,
    /// Its `endpoint`.
    pub url: String,
}

impl Change {
    /// What `after` changed of what stood since `before`, the operation that its `prev` names; of
    /// a genesis operation (no `before`) everything that it says.
    pub fn between(before: Option<&Operation<'_>>, after: &Operation<'_>) -> Vec<Change> {
        if after.kind() == OperationKind::Tombstone {
            return vec![Change::Tombstoned];
        }
        let mut changes = Vec::new();
        if before.is_none() {
            changes.push(Change::Created { legacy: after.kind() == OperationKind::LegacyCreate });
        }
        alias_changes(before, after, &mut changes);
        method_changes(before, after, &mut changes);
        service_changes(before, after, &mut changes);
        let keys = |operation: &Operation<'_>| texts(operation.rotation_keys());
        let (keys_before, keys_after) = (before.map(keys).unwrap_or_default(), keys(after));
        if keys_before != keys_after {
            changes.push(Change::RotationKeys { before: keys_before, after: keys_after });
        }
        if changes.is_empty() {
            changes.push(Change::Nothing);
        }
        changes
    }

    /// A name for programs.
    pub fn kind(&self) -> &'static str {
        match self {
            Change::Created { .. } => "created",
            Change::Tombstoned => "tombstoned",
            Change::Handle { .. } => "handle",
            Change::Aliases { .. } => "aliases",
            Change::RotationKeys { .. } => "rotation-keys",
            Change::VerificationMethod { .. } => "verification-method",
            Change::Service { .. } => "service",
            Change::Nothing => "nothing",
        }
    }
}

fn alias_changes(before: Option<&Operation<'_>>, after: &Operation<'_>, out: &mut Vec<Change>) {
    let aliases = |operation: &Operation<'_>| texts(operation.also_known_as());
    let (before, after) = (before.map(aliases).unwrap_or_default(), aliases(after));
    // The first alias that is a handle is the primary one (atproto, "DID documents").
    let handle = |aliases: &[String]| {
        aliases.iter().find_map(|alias| alias.strip_prefix("at://").map(str::to_owned))
    };
    let (handle_before, handle_after) = (handle(&before), handle(&after));
    let others = |these: &[String], those: &[String]| -> Vec<String> {
        let is_handle = |alias: &str| {
            let bare = alias.strip_prefix("at://");
            bare.is_some() && (bare == handle_before.as_deref() || bare == handle_after.as_deref())
        };
        these.iter().filter(|alias| !those.contains(alias) && !is_handle(alias)).cloned().collect()
    };
    let (removed, added) = (others(&before, &after), others(&after, &before));
    if handle_before != handle_after {
        out.push(Change::Handle { before: handle_before, after: handle_after });
    }
    if !removed.is_empty() || !added.is_empty() {
        out.push(Change::Aliases { removed, added });
    }
}

fn method_changes(before: Option<&Operation<'_>>, after: &Operation<'_>, out: &mut Vec<Change>) {
    let methods = |operation: &Operation<'_>| -> Vec<(String, String)> {
        let methods = operation.verification_methods();
        methods.into_iter().map(|(name, key)| (name.to_owned(), key.to_owned())).collect()
    };
    let (before, after) = (before.map(methods).unwrap_or_default(), methods(after));
    for (name, before, after) in changed(before, after) {
        out.push(Change::VerificationMethod { name, before, after });
    }
}

fn service_changes(before: Option<&Operation<'_>>, after: &Operation<'_>, out: &mut Vec<Change>) {
    let services = |operation: &Operation<'_>| -> Vec<(String, Endpoint)> {
        let endpoint = |service: Service<'_>| Endpoint {
            kind: service.kind.into_owned(),
            url: service.endpoint.into_owned(),
        };
        let services = operation.services();
        services.into_iter().map(|(name, service)| (name.to_owned(), endpoint(service))).collect()
    };
    let (before, after) = (before.map(services).unwrap_or_default(), services(after));
    for (name, before, after) in changed(before, after) {
        out.push(Change::Service { name, before, after });
    }
}

/// What is not the same under each name: first what was there, then what is new.
fn changed<T: PartialEq + Clone>(
    before: Vec<(String, T)>,
    after: Vec<(String, T)>,
) -> Vec<(String, Option<T>, Option<T>)> {
    let find = |list: &[(String, T)], name: &str| {
        list.iter().find(|(other, _)| other == name).map(|(_, value)| value.clone())
    };
    let mut changed = Vec::new();
    for (name, was) in &before {
        let is = find(&after, name);
        if is.as_ref() != Some(was) {
            changed.push((name.clone(), Some(was.clone()), is));
        }
    }
    let new = after.iter().filter(|(name, _)| find(&before, name).is_none());
    changed.extend(new.map(|(name, is)| (name.clone(), None, Some(is.clone()))));
    changed
}

fn texts<T: Into<String>>(texts: Vec<T>) -> Vec<String> {
    texts.into_iter().map(Into::into).collect()
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Created { legacy: false } => f.write_str("created"),
            Change::Created { legacy: true } => f.write_str("created (in the deprecated form)"),
            Change::Tombstoned => f.write_str("ended by a tombstone"),
            Change::Handle { before, after } => write_change(f, "handle", before, after),
            Change::Aliases { removed, added } => {
                let mut parts = Vec::new();
                parts.extend(removed.iter().map(|alias| format!("alias {alias} removed")));
                parts.extend(added.iter().map(|alias| format!("alias {alias} added")));
                f.write_str(&parts.join("; "))
            }
            Change::RotationKeys { before, after } => write_rotation_keys(f, before, after),
            Change::VerificationMethod { name, before, after } => {
                write_change(f, &format!("signing key `{name}`"), before, after)
            }
            Change::Service { name, before, after } => {
                let what = match name.as_str() {
                    "atproto_pds" => "host".to_owned(),
                    name => format!("service `{name}`"),
                };
                write_change(f, &what, before, after)
            }
            Change::Nothing => f.write_str("signed anew with the same content"),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind.as_str() {
            // What a host is expected to be goes without saying.
            "AtprotoPersonalDataServer" => f.write_str(&self.url),
            kind => write!(f, "{} ({kind})", self.url),
        }
    }
}

fn write_change<T: fmt::Display>(
    f: &mut fmt::Formatter<'_>,
    what: &str,
    before: &Option<T>,
    after: &Option<T>,
) -> fmt::Result {
    match (before, after) {
        (Some(before), Some(after)) => write!(f, "{what} from {before} to {after}"),
        (None, Some(after)) => write!(f, "{what} {after}"),
        (Some(before), None) => write!(f, "{what} {before} removed"),
        (None, None) => write!(f, "no {what}"),
    }
}

fn write_rotation_keys(
    f: &mut fmt::Formatter<'_>,
    before: &[String],
    after: &[String],
) -> fmt::Result {
    if before.is_empty() || after.is_empty() {
        let keys = if before.is_empty() { after } else { before };
        let what = if keys.len() == 1 { "rotation key" } else { "rotation keys" };
        let end = if after.is_empty() && !before.is_empty() { " removed" } else { "" };
        return match keys {
            [] => f.write_str("no rotation keys"),
            keys => write!(f, "{what} {}{end}", keys.join(", ")),
        };
    }
    let removed = before.iter().filter(|key| !after.contains(key));
    let added = after
        .iter()
        .enumerate()
        .filter(|(_, key)| !before.contains(key))
        .map(|(index, key)| format!("rotation key {key} added as number {index}"));
    let mut parts: Vec<String> =
        removed.map(|key| format!("rotation key {key} removed")).chain(added).collect();
    if parts.is_empty() {
        parts.push(format!("rotation keys reordered to {}", after.join(", ")));
    }
    f.write_str(&parts.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use plc_testkit::builder::Story;

    fn words(story: &Story, before: usize, after: usize) -> Vec<String> {
        let signed = |index: usize| Operation::read(&story.log()[index].signed).unwrap();
        let changes = Change::between(Some(&signed(before)), &signed(after));
        changes.iter().map(Change::to_string).collect()
    }

    #[test]
    fn changes_are_told_in_words() {
        let mut story = Story::seeded(3);
        let key = story.k256();
        let alice = story.create().handle("alice.example.com").accepted();
        story.update(&alice).handle("alice.example.org").accepted();
        story.update(&alice).host("https://elsewhere.example.com").accepted();
        story.update(&alice).atproto_key(&key).accepted();
        let signing = story.signing.clone();
        story.update(&alice).rotation_keys([&key, &signing]).accepted();
        story.update(&alice).accepted();
        story
            .update(&alice)
            .also_known_as(["at://alice.example.org", "https://a.example"])
            .accepted();
        story.tombstone(&alice).accepted();

        assert_eq!(words(&story, 0, 1), ["handle from alice.example.com to alice.example.org"]);
        assert_eq!(
            words(&story, 1, 2),
            ["host from https://pds.example.com to https://elsewhere.example.com"]
        );
        let atproto = words(&story, 2, 3);
        assert!(atproto[0].starts_with("signing key `atproto` from did:key:"), "{atproto:?}");
        assert!(atproto[0].ends_with(&format!(" to {}", key.did_key())), "{atproto:?}");
        let recovery = story.recovery.did_key().to_owned();
        assert_eq!(
            words(&story, 3, 4),
            [format!(
                "rotation key {recovery} removed; rotation key {} added as number 0",
                key.did_key()
            )]
        );
        assert_eq!(words(&story, 4, 5), ["signed anew with the same content"]);
        assert_eq!(words(&story, 5, 6), ["alias https://a.example added"]);
        assert_eq!(words(&story, 6, 7), ["ended by a tombstone"]);
    }

    #[test]
    fn a_genesis_says_everything_that_it_says() {
        let mut story = Story::seeded(4);
        story.create_legacy().handle("old.example.com").accepted();
        let operation = Operation::read(&story.log()[0].signed).unwrap();
        let changes = Change::between(None, &operation);
        let kinds: Vec<&str> = changes.iter().map(Change::kind).collect();
        assert_eq!(kinds, ["created", "handle", "verification-method", "service", "rotation-keys"]);
        assert_eq!(changes[1].to_string(), "handle old.example.com");
    }
}
