//! The page of one identity: who this is now, and everything that ever happened to it.

use maud::{Markup, html};

use did_plc::operation::{Kind, Malformed, Service};
use did_plc::{Did, Operation, Timestamp};

use super::diff::KINDS;
use super::entry::Context;
use super::layout::page;
use super::parts::{items, key, plural, time_ago};
use super::records;
use super::text::{line, plain, text};
use super::timeline::{Entry, Held, Timeline};
use super::tree::tree;

/// Operations on a page: nearly every identity has fewer, and hostile ones stay readable.
const PAGE: usize = 50;
/// The filter for recoveries, which are no kind of change.
const RECOVERY: &str = "recovery";

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
    held: &Held,
    selection: &Selection,
    now: Timestamp,
) -> Result<String, Malformed> {
    let timeline = Timeline::of(&held.operations)?;
    let did = held.did;
    let handle = timeline.content().and_then(|entry| handle(&entry.operation));
    let title = match &handle {
        Some(handle) => format!("{} — {did}", plain(handle)),
        None => did.to_string(),
    };
    let count = timeline.entries.len();
    // Numbers of operations never change, so that a link stays what it is.
    let href = |index: usize| {
        let cid = timeline.entries[index].cid;
        match count {
            0..=PAGE => format!("/explore/{did}#{cid}"),
            _ => format!("/explore/{did}?until={}#{cid}", (index + PAGE / 2).min(count)),
        }
    };
    let context = Context { did, timeline: &timeline, now, href: &href };
    let content = html! {
        (present(did, handle.as_deref(), &timeline, now))
        (records::refusals(&did, &held.refusals, now))
        (records::divergences(&did, &held.divergences, now))
        (tree(&timeline, href))
        (history(&context, selection)?)
    };
    Ok(page(&title, &did.to_string(), content))
}

/// The first alias that is a handle, without `at://`.
fn handle(operation: &Operation<'_>) -> Option<String> {
    let aliases = operation.also_known_as();
    aliases.iter().find_map(|alias| alias.strip_prefix("at://").map(str::to_owned))
}

fn present(did: Did, handle: Option<&str>, timeline: &Timeline<'_>, now: Timestamp) -> Markup {
    let ended = timeline.head().is_some_and(|head| head.operation.kind() == Kind::Tombstone);
    html! {
        section.card aria-labelledby="who" {
            h1 #who {
                @match handle { Some(handle) => (line(handle)), None => "An identity" }
            }
            p.did.code { (did) }
            @if let (true, Some(head)) = (ended, timeline.head()) {
                p.outcome.open {
                    strong { "Ended by a tombstone" } " on " (time_ago(head.stored.created_at, now))
                    ". What follows is what was said last."
                }
            }
            @match timeline.content() {
                Some(content) => (facts(content, timeline, now)),
                None => p { "No operation of it was accepted." },
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

fn facts(content: &Entry<'_>, timeline: &Timeline<'_>, now: Timestamp) -> Markup {
    let operation = &content.operation;
    let (handles, others): (Vec<_>, Vec<_>) = operation
        .also_known_as()
        .into_iter()
        .map(std::borrow::Cow::into_owned)
        .partition(|alias| alias.starts_with("at://"));
    let services = operation.services();
    let nullified = timeline.entries.iter().filter(|entry| entry.nullified_by.is_some()).count();
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
                (since(timeline.since(handle)))
            }
            @if !others.is_empty() {
                dt { "Other aliases" }
                dd { ul.plain { (items(&others, |_, alias| html! { li { (text(alias)) } })) } }
            }
            dt { "Hosted at" }
            dd {
                @if services.is_empty() { span.note { "no service" } }
                ul.plain { (items(&services, |_, (name, service)| self::service(name, service))) }
                (since(timeline.since(Operation::services)))
            }
            dt { "Signing keys" }
            dd {
                @let methods = operation.verification_methods();
                @if methods.is_empty() { span.note { "none" } }
                ul.plain { (items(&methods, |_, (name, value)| html! {
                    li { span.label { (text(name)) } (key(value)) }
                })) }
                (since(timeline.since(Operation::verification_methods)))
            }
            dt { "Rotation keys" }
            dd {
                p.note { "May change all of this. The first has the highest authority: within 72 "
                    "hours it can undo what a later one signed." }
                ol.keys { (items(&operation.rotation_keys(), |rank, value| html! {
                    li value=(rank + 1) { (key(value)) }
                })) }
                (since(timeline.since(Operation::rotation_keys)))
            }
            dt { "History" }
            dd {
                (plural(timeline.entries.len() as u64, "operation"))
                @if nullified > 0 { ", " (nullified) " of them nullified" }
                @if let Some(first) = timeline.entries.first() {
                    "; begun " (time_ago(first.stored.created_at, now))
                }
                ". " span.tag.good { "every one verified here" }
            }
        }
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
fn history(context: &Context<'_>, selection: &Selection) -> Result<Markup, Malformed> {
    let entries = &context.timeline.entries;
    let did = context.did;
    let kind = selection.kind();
    let chosen: Vec<usize> = (0..entries.len())
        .filter(|&index| kind.is_none_or(|kind| has(&entries[index], kind)))
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

fn has(entry: &Entry<'_>, kind: &str) -> bool {
    match kind {
        RECOVERY => !entry.nullifies.is_empty(),
        _ => entry.changes.iter().any(|change| change.kind() == kind),
    }
}

/// Links that leave one kind of change, for the kinds that there are.
fn filters(context: &Context<'_>, chosen: Option<&str>) -> Markup {
    let did = context.did;
    let entries = &context.timeline.entries;
    let kinds: Vec<(&str, &str, usize)> = KINDS
        .into_iter()
        .chain([(RECOVERY, "recovery")])
        .map(|(kind, name)| (kind, name, entries.iter().filter(|entry| has(entry, kind)).count()))
        .filter(|(.., count)| *count > 0)
        .collect();
    html! {
        @if entries.len() > 1 {
            nav.filters aria-label="Kinds of change" {
                a href=(format!("/explore/{did}#history"))
                    aria-current=[chosen.is_none().then_some("true")] {
                    "all " span.count { (entries.len()) }
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
