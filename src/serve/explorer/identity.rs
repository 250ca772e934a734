//! The page of one identity: who this is now, and everything that ever happened to it.

use maud::{Markup, html};

use crate::store::{StoredDivergence, StoredOperation, StoredRefusal};
use crate::words::plural;
use did_plc::operation::{Malformed, Service};
use did_plc::{Change, Did, History, Operation, Timestamp};

use super::diff::KINDS;
use super::entry::Context;
use super::layout::page;
use super::parts::{items, key, time_ago};
use super::records;
use super::text::{line, plain, text};
use super::tree::tree;

/// Operations on a page: nearly every identity has fewer, and hostile ones stay readable.
const PAGE: usize = 50;
/// The filter for recoveries, which are no kind of change.
const RECOVERY: &str = "recovery";

/// Everything that is held about one identity.
#[derive(Debug, Clone)]
pub struct IdentityRecords {
    /// Whose page it is.
    pub did: Did,
    /// Its operations by `created_at`, nullified ones included.
    pub operations: Vec<StoredOperation>,
    /// What was refused of it, accepted later or not.
    pub refusals: Vec<StoredRefusal>,
    /// How many refusals stand of what was stated after its head.
    pub refused_since: usize,
    /// Where somebody said otherwise.
    pub divergences: Vec<StoredDivergence>,
}

/// What of a history is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// Only operations with this kind of change; those that are no kind are ignored.
    pub change: Option<String>,
    /// Only operations up to this number, the first being 1.
    pub until: Option<usize>,
}

impl Selection {
    fn kind(&self) -> Option<&str> {
        let asked = self.change.as_deref()?;
        let known = asked == RECOVERY || KINDS.iter().any(|(kind, _)| *kind == asked);
        known.then_some(asked)
    }
}

/// The page of an identity, of which at least one operation or refusal is held.
///
/// # Errors
///
/// [`Malformed`] when stored bytes are no operation: the store is damaged.
pub fn identity_page(
    held: &IdentityRecords,
    selection: &Selection,
    now: Timestamp,
) -> Result<String, Malformed> {
    let did = held.did;
    let history = History::as_held(did, held.operations.iter().map(StoredOperation::as_held))?;
    let content = history.content().and_then(|entry| entry.operation());
    let handle = content.as_ref().and_then(handle);
    let title = match &handle {
        Some(handle) => format!("{} — {did}", plain(handle)),
        None => did.to_string(),
    };
    let count = history.entries.len();
    // Numbers of operations never change, so that a link stays what it is.
    let href = |index: usize| {
        let cid = history.entries[index].received.cid;
        match count {
            0..=PAGE => format!("/explore/{did}#{cid}"),
            _ => format!("/explore/{did}?until={}#{cid}", (index + PAGE / 2).min(count)),
        }
    };
    let changes: Vec<Vec<Change>> = (0..count).map(|index| history.changes(index)).collect();
    let context = Context { history: &history, changes: &changes, now, href: &href };
    let content = html! {
        (present(handle.as_deref(), content.as_ref(), &history, held.refused_since, now))
        (records::refusals(&did, &held.refusals, now))
        (records::divergences(&did, &held.divergences, now))
        (tree(&history, &changes, href))
        (operations(&context, selection)?)
    };
    Ok(page(&title, &did.to_string(), content))
}

/// The first alias that is a handle, without `at://`.
pub(super) fn handle(operation: &Operation<'_>) -> Option<String> {
    let aliases = operation.also_known_as();
    aliases.iter().find_map(|alias| alias.strip_prefix("at://").map(str::to_owned))
}

fn present(
    handle: Option<&str>,
    content: Option<&Operation<'_>>,
    history: &History,
    refused_since: usize,
    now: Timestamp,
) -> Markup {
    let did = history.did;
    let tombstone = history.head().filter(|head| head.is_tombstone());
    html! {
        section.card aria-labelledby="who" {
            h1 #who {
                @match handle { Some(handle) => (line(handle)), None => "An identity" }
            }
            p.did.code { (did) }
            @if let Some(tombstone) = tombstone {
                p.outcome.open {
                    strong { "Ended by a tombstone" }
                    " on " (time_ago(tombstone.received.created_at, now))
                    ". What follows is what was said last."
                }
            }
            @match content {
                Some(content) => {
                    (newer_refused(refused_since))
                    (facts(content, history, now))
                }
                None => p.outcome.open {
                    "Operations of it were received here, and none of them verifies: "
                    a href=(format!("/_audit/refused?did={did}")) { "what was received, and why" }
                    "."
                },
            }
            nav.links aria-label="Raw data" {
                @for (path, name) in [
                    ("", "Document"), ("/data", "Data"), ("/log", "Log"),
                    ("/log/audit", "Audit log"), ("/log/verdicts", "Verdicts"),
                ] {
                    a href=(format!("/{did}{path}")) { (name) }
                }
                a href=(format!("/1.0/identifiers/{did}")) { "Resolution" }
            }
        }
    }
}

/// What was refused after what is shown; nothing when that is nothing.
fn newer_refused(count: usize) -> Markup {
    html! {
        @if count > 0 {
            p.outcome.open {
                strong { "Refused since: " (plural(count as u64, "operation")) }
                ". What is shown is the last that verifies. "
                a href="#refused" { "Why" }
            }
        }
    }
}

fn facts(operation: &Operation<'_>, history: &History, now: Timestamp) -> Markup {
    let (handles, others): (Vec<_>, Vec<_>) = operation
        .also_known_as()
        .into_iter()
        .map(std::borrow::Cow::into_owned)
        .partition(|alias| alias.starts_with("at://"));
    let services = operation.services();
    let since = |at: Option<Timestamp>| {
        html! { @if let Some(at) = at { span.since { "since " (time_ago(at, now)) } } }
    };
    html! {
        dl.facts {
            dt { "Claims the handle" }
            dd {
                @if handles.is_empty() { span.note { "none" } }
                ul.plain { (items(&handles, |_, alias| html! {
                    li { (text(alias.strip_prefix("at://").unwrap_or(alias))) }
                })) }
                (since(history.since(handle)))
            }
            @if !others.is_empty() {
                dt { "Other aliases" }
                dd { ul.plain { (items(&others, |_, alias| html! { li { (text(alias)) } })) } }
            }
            dt { "Hosted at" }
            dd {
                @if services.is_empty() { span.note { "no service" } }
                ul.plain { (items(&services, |_, (name, service)| self::service(name, service))) }
                (since(history.since(Operation::services)))
            }
            dt { "Signing keys" }
            dd {
                @let methods = operation.verification_methods();
                @if methods.is_empty() { span.note { "none" } }
                ul.plain { (items(&methods, |_, (name, value)| html! {
                    li { span.label { (text(name)) } (key(value)) }
                })) }
                (since(history.since(Operation::verification_methods)))
            }
            dt { "Rotation keys" }
            dd {
                p.note { "May change all of this. Number 0 has the highest authority: within 72 "
                    "hours it can undo what another one signed." }
                ol.keys { (items(&operation.rotation_keys(), |rank, value| html! {
                    li value=(rank) { (key(value)) }
                })) }
                (since(history.since(Operation::rotation_keys)))
            }
            dt { "History" }
            dd { (length(history, now)) }
        }
    }
}

/// How many operations there are, and since when.
fn length(history: &History, now: Timestamp) -> Markup {
    let nullified = history.entries.iter().filter(|entry| entry.nullified_by.is_some()).count();
    html! {
        (plural(history.entries.len() as u64, "operation"))
        @if nullified > 0 { ", " (nullified) " of them nullified" }
        @if let Some(first) = history.entries.first() {
            "; begun " (time_ago(first.received.created_at, now))
        }
        ". " span.tag.good { "every one verified here" }
    }
}

fn service(name: &str, service: &Service<'_>) -> Markup {
    let usual = name == "atproto_pds" && service.kind == "AtprotoPersonalDataServer";
    html! {
        li {
            @if !usual { span.label { (text(name)) ", " (text(&service.kind)) } }
            (text(&service.endpoint))
        }
    }
}

/// The list of operations, newest first.
fn operations(context: &Context<'_>, selection: &Selection) -> Result<Markup, Malformed> {
    let did = context.history.did;
    let kind = selection.kind();
    let chosen: Vec<usize> = (0..context.history.entries.len())
        .filter(|&index| kind.is_none_or(|kind| has(context, index, kind)))
        .collect();
    let until = selection.until.unwrap_or(usize::MAX);
    let end = chosen.partition_point(|&index| index < until);
    let start = end.saturating_sub(PAGE);
    let shown = chosen[start..end]
        .iter()
        .rev()
        .map(|&index| context.entry(index))
        .collect::<Result<Vec<_>, _>>()?;
    let path = |until: usize| {
        let kind = kind.map(|kind| format!("change={kind}&")).unwrap_or_default();
        format!("/explore/{did}?{kind}until={until}#history")
    };
    Ok(html! {
        section aria-labelledby="history" {
            h2 #history { "History" }
            (filters(context, kind))
            @if end < chosen.len() {
                @let newest = chosen[(end + PAGE).min(chosen.len()) - 1] + 1;
                p.pages { a href=(path(newest)) { "Newer operations" } }
            }
            @if shown.is_empty() { p.note { "No such operation." } }
            ol.entries reversed { @for entry in &shown { (entry) } }
            @if start > 0 {
                p.pages { a href=(path(chosen[start - 1] + 1)) { "Older operations" } }
            }
        }
    })
}

fn has(context: &Context<'_>, index: usize, kind: &str) -> bool {
    match kind {
        RECOVERY => !context.history.entries[index].nullifies.is_empty(),
        _ => context.changes[index].iter().any(|change| change.kind() == kind),
    }
}

/// Links that leave one kind of change, for the kinds that there are.
fn filters(context: &Context<'_>, chosen: Option<&str>) -> Markup {
    let did = context.history.did;
    let count = context.history.entries.len();
    let kinds: Vec<(&str, &str, usize)> = KINDS
        .into_iter()
        .chain([(RECOVERY, "recovery")])
        .map(|(kind, name)| {
            (kind, name, (0..count).filter(|&index| has(context, index, kind)).count())
        })
        .filter(|(.., count)| *count > 0)
        .collect();
    html! {
        @if count > 1 {
            nav.filters aria-label="Kinds of change" {
                a href=(format!("/explore/{did}#history"))
                    aria-current=[chosen.is_none().then_some("true")] {
                    "all " span.count { (count) }
                }
                @for (kind, name, count) in kinds {
                    a href=(format!("/explore/{did}?change={kind}#history"))
                        aria-current=[(chosen == Some(kind)).then_some("true")] {
                        (name) " " span.count { (count) }
                    }
                }
            }
        }
    }
}
