//! What an operation changed, in words and as a diff.

use maud::{Markup, html};

use did_plc::Change;
use did_plc::change::Endpoint;

use super::parts::{items, key};
use super::text::text;

/// The kinds of change, in the order in which they are offered as filters, with their names for
/// people.
pub const KINDS: [(&str, &str); 8] = [
    ("handle", "handle"),
    ("service", "host or service"),
    ("rotation-keys", "rotation keys"),
    ("verification-method", "signing keys"),
    ("aliases", "other aliases"),
    ("created", "creation"),
    ("tombstoned", "tombstone"),
    ("nothing", "signed anew"),
];

/// What changed, in a few words.
pub fn headline(changes: &[Change]) -> String {
    if let [Change::Created { legacy }, ..] = changes {
        return if *legacy { "Created, in the deprecated form" } else { "Created" }.to_owned();
    }
    let mut parts: Vec<String> = Vec::new();
    for change in changes {
        let part = words(change);
        if !parts.contains(&part) {
            parts.push(part);
        }
    }
    let mut headline = parts.join(", ");
    if let Some(first) = headline.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    headline
}

/// One change without its values, none of which belongs into a headline.
fn words(change: &Change) -> String {
    let verb = |before: bool, after: bool| match (before, after) {
        (false, _) => "added",
        (_, false) => "removed",
        _ => "changed",
    };
    match change {
        Change::Created { .. } => "created".to_owned(),
        Change::Tombstoned => "ended by a tombstone".to_owned(),
        Change::Handle { before, after } => {
            format!("handle {}", verb(before.is_some(), after.is_some()))
        }
        Change::Aliases { .. } => "other aliases changed".to_owned(),
        Change::RotationKeys { before, after } => {
            let same = before.len() == after.len() && before.iter().all(|key| after.contains(key));
            format!("rotation keys {}", if same { "reordered" } else { "changed" })
        }
        Change::VerificationMethod { before, after, .. } => {
            format!("signing key {}", verb(before.is_some(), after.is_some()))
        }
        Change::Service { name, before, after } => match (name.as_str(), before, after) {
            ("atproto_pds", Some(_), Some(_)) => "host changed".to_owned(),
            ("atproto_pds", ..) => format!("host {}", verb(before.is_some(), after.is_some())),
            _ => format!("service {}", verb(before.is_some(), after.is_some())),
        },
        Change::Nothing => "signed anew with the same content".to_owned(),
    }
}

/// The changes with their values, what was struck out and what is underlined.
pub fn diff(changes: &[Change]) -> Markup {
    let shown: Vec<&Change> = changes
        .iter()
        .filter(|change| !matches!(change, Change::Created { .. } | Change::Tombstoned))
        .filter(|change| !matches!(change, Change::Nothing))
        .collect();
    html! {
        @if !shown.is_empty() {
            ul.diff { (items(&shown, |_, change| html! { li { (one(change)) } })) }
        }
    }
}

fn one(change: &Change) -> Markup {
    match change {
        Change::Handle { before, after } => {
            html! {
                span.label { "Handle" }
                (pair(before.as_deref(), after.as_deref(), text))
            }
        }
        Change::Aliases { removed, added } => html! {
            span.label { "Other aliases" }
            ul.plain {
                (items(removed, |_, alias| html! { li { (was(text(alias))) } }))
                (items(added, |_, alias| html! { li { (is(text(alias))) } }))
            }
        },
        Change::RotationKeys { before, after } => rotation_keys(before, after),
        Change::VerificationMethod { name, before, after } => html! {
            span.label { "Signing key " (text(name)) }
            (pair(before.as_deref(), after.as_deref(), key))
        },
        Change::Service { name, before, after } => html! {
            span.label {
                @if name == "atproto_pds" { "Host" } @else { "Service " (text(name)) }
            }
            (pair(before.as_ref(), after.as_ref(), endpoint))
        },
        Change::Created { .. } | Change::Tombstoned | Change::Nothing => html! {},
    }
}

/// The list as it is now, each key with where it stood before; then what is gone. Order is
/// authority, so a key that only moved has changed.
fn rotation_keys(before: &[String], after: &[String]) -> Markup {
    let gone: Vec<(usize, &String)> =
        before.iter().enumerate().filter(|(_, key)| !after.contains(key)).collect();
    html! {
        span.label { "Rotation keys, the highest authority first" }
        ol.keys {
            (items(after, |rank, text| {
                let place = before.iter().position(|key| key == text);
                html! {
                    li value=(rank) {
                        @match place {
                            None => (is(key(text))),
                            Some(place) if place == rank => (key(text)),
                            Some(place) => {
                                (key(text)) " " span.tag { "was number " (place) }
                            }
                        }
                    }
                }
            }))
        }
        @if after.is_empty() { p.note { "none: nothing can follow" } }
        @if !gone.is_empty() {
            ul.plain {
                (items(&gone, |_, (place, text)| html! {
                    li { (was(key(text))) " " span.tag { "was number " (place) } }
                }))
            }
        }
    }
}

/// A service's type and where it is.
pub fn endpoint(endpoint: &Endpoint) -> Markup {
    html! {
        (text(&endpoint.url))
        @if endpoint.kind != "AtprotoPersonalDataServer" {
            " " span.note { "of type " (text(&endpoint.kind)) }
        }
    }
}

fn pair<T: ?Sized>(before: Option<&T>, after: Option<&T>, show: impl Fn(&T) -> Markup) -> Markup {
    html! {
        @if let Some(before) = before { (was(show(before))) }
        @if let Some(after) = after { (is(show(after))) }
    }
}

/// What is no longer so. Screen readers seldom say that something is struck out.
fn was(shown: Markup) -> Markup {
    html! { del { span.unseen { "before: " } (shown) } }
}

fn is(shown: Markup) -> Markup {
    html! { ins { span.unseen { "now: " } (shown) } }
}
