//! Pages for people: the status of this server, and the history of each identity.
//!
//! ```text
//! store ──▶ IdentityRecords ──▶ History (what follows what, what changed) ──▶ HTML
//! ```
//!
//! Everything from [`IdentityRecords`] on is pure. Every text that comes from an operation is hostile input
//! and goes through [`text`]; nothing is sent that a browser would have to fetch elsewhere, and
//! nothing that it would run.

mod claimants;
mod diff;
mod entry;
mod evidence;
mod home;
mod identity;
mod layout;
mod log;
mod parts;
mod records;
mod sought;
mod text;
mod tree;

use std::sync::Arc;

use axum::extract::State;
use http::{HeaderValue, StatusCode, header};
use maud::html;

use self::claimants::Search;
pub use self::home::{Report, home_page};
pub use self::identity::{IdentityRecords, Selection, identity_page};
pub(super) use self::layout::{icon, robots, style};
use self::sought::Sought;

use did_plc::Did;

use super::answer::{self, Answer};
use super::error::ServeError;
use super::extract::{PathDid, Query};
use super::query::parameter;
use super::state::Server;
use crate::clock::now;

/// `/`: the status page.
pub(super) async fn home(State(server): State<Arc<Server>>) -> Answer {
    let (status, sample, now) = (&server.state.status, server.samples.latest(), now());
    let report = Report {
        upstream: status.upstream().to_owned(),
        takes_writes: server.state.forward.is_some(),
        upstreams: status.upstreams().reports(),
        role: status.role(),
        mode: status.mode(),
        caught_up: status.caught_up(),
        sequence: status.sequence(),
        outlook: status.outlook(),
        lag: status.lag(now),
        read_twice: status.read_twice(),
        upstream_age: status.upstream_age(now),
        last_operation: status.last_operation(),
        statistics: sample.statistics,
        sequences: sample.sequences.into(),
        now,
    };
    layout::answer(StatusCode::OK, home_page(&report))
}

/// `/explore?q=`: to the identity, the operation or the time that was searched for, or to the identities that claim it.
pub(super) async fn search(State(server): State<Arc<Server>>, query: Query) -> Answer {
    let searched = match parameter(&query, "q") {
        Ok(searched) => searched.unwrap_or_default(),
        Err(error) => return failed(&error, ""),
    };
    let searched = searched.trim();
    let claimed = match Sought::of(searched) {
        Sought::Nothing => return redirect("/"),
        Sought::Identity(did) => return redirect(&format!("/explore/{did}")),
        Sought::Since(time) => return redirect(&format!("/explore/log?since={time}")),
        Sought::Number(number) => {
            return match to_operation(&server, number).await {
                Ok(answer) => answer,
                Err(error) => failed(&error, searched),
            };
        }
        Sought::Claim(claimed) => claimed,
    };
    let absence = match claimants::search(&server, &claimed, &query).await {
        Ok(Search::Page(page)) => return layout::answer(StatusCode::OK, page),
        Ok(Search::Nothing { complete: true }) => Absence::Nobody,
        Ok(Search::Nothing { complete: false }) => Absence::NobodyYet,
        Err(ServeError::NoIndex) => Absence::NoIndex,
        Err(error) => return failed(&error, searched),
    };
    layout::answer(StatusCode::NOT_FOUND, nothing_found(searched, absence))
}

/// Why nothing is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Absence {
    /// Nobody ever claimed it.
    Nobody,
    /// Nobody in the part of the log that the index has.
    NobodyYet,
    /// There is no index.
    NoIndex,
}

/// To the operation with this number, on its identity's page; where there is none, to those after it.
async fn to_operation(server: &Server, number: i64) -> Result<Answer, ServeError> {
    let next = server.picture().export_by_sequence(number.saturating_sub(1), 1).await?;
    Ok(match next.first().filter(|next| next.sequence == Some(number)) {
        Some(found) => redirect(&format!("/explore/{}#{}", found.did, found.cid())),
        None => redirect(&format!("/explore/log?from={}", number.max(1))),
    })
}

/// `/explore/log`: operations in their order.
pub(super) async fn log(State(server): State<Arc<Server>>, query: Query) -> Answer {
    shown(log::log_page(&server, &query).await)
}

/// `/explore/refused`: what was not accepted.
pub(super) async fn refused(State(server): State<Arc<Server>>, query: Query) -> Answer {
    shown(evidence::refused(&server, &query, now()).await)
}

/// `/explore/divergences`: where others say otherwise.
pub(super) async fn divergences(State(server): State<Arc<Server>>, query: Query) -> Answer {
    shown(evidence::divergences(&server, &query, now()).await)
}

/// A page, or the one that says why there is none.
fn shown(page: Result<String, ServeError>) -> Answer {
    match page {
        Ok(page) => layout::answer(StatusCode::OK, page),
        Err(error) => failed(&error, ""),
    }
}

/// `/explore/{did}`: the page of an identity. What goes wrong is said on a page too.
pub(super) async fn identity(
    State(server): State<Arc<Server>>,
    PathDid(did): PathDid,
    query: Query,
) -> Answer {
    match show(&server, &did, &query).await {
        Ok(page) => layout::answer(StatusCode::OK, page),
        Err(error) => failed(&error, &did),
    }
}

/// The page that says what went wrong.
fn failed(error: &ServeError, searched: &str) -> Answer {
    let status = error.status();
    let content = html! {
        section.card {
            h1 { (apology(status)) }
            div { (text::text(&error.to_string())) }
        }
    };
    let mut answer = layout::answer(status, layout::page(apology(status), searched, content));
    error.state(answer.headers_mut());
    answer
}

async fn show(server: &Server, did: &str, query: &str) -> Result<String, ServeError> {
    let log = server.picture();
    let did: Did = did.parse().map_err(|_| ServeError::NotRegistered(did.to_owned()))?;
    let selection = Selection {
        change: parameter(query, "change")?.map(|kind| kind.into_owned()),
        until: parameter(query, "until")?.and_then(|until| until.parse().ok()),
    };
    let text = did.to_string();
    // One more than is shown, to know that there are more.
    let records = records::MAX_RECORDS + 1;
    let held = IdentityRecords {
        did,
        operations: log.history(&did).await?,
        refusals: log.refusals(Some(&text), 0, records).await?,
        refused_since: server.refused.standing(&log, &did).await?,
        divergences: log.divergences(Some(&text), None, None, 0, records).await?,
    };
    if held.operations.is_empty() && held.refusals.is_empty() {
        return Err(match log.freshness().caught_up {
            true => ServeError::NotRegistered(text),
            false => ServeError::NotKnownYet(did.to_string()),
        });
    }
    identity_page(&held, &selection, now()).map_err(|reason| ServeError::damaged(&did, &reason))
}

fn redirect(to: &str) -> Answer {
    let mut answer = answer::empty(StatusCode::SEE_OTHER);
    let headers = answer.headers_mut();
    // A path of this server, and a DID, a CID, a number or a time: visible ASCII.
    headers.insert(header::LOCATION, answer::value(to.as_bytes()));
    headers.insert(header::CACHE_CONTROL, answer::NO_STORE);
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    answer
}

fn nothing_found(searched: &str, absence: Absence) -> String {
    let content = html! {
        section.card {
            h1 {
                @match absence {
                    Absence::Nobody => "Nobody claims that",
                    Absence::NobodyYet => "Nobody found yet",
                    Absence::NoIndex => "No DID in that",
                }
            }
            div { "Searched for: " (text::text(searched)) }
            p {
                @match absence {
                    Absence::Nobody => {
                        "No identity here has ever named it as a handle, a host or a key. They are "
                        "found by their whole name, " span.code { "alice.example.com" } "."
                    }
                    Absence::NobodyYet => {
                        "The index of handles, hosts and keys is being built, and does not have "
                        "the whole log yet."
                    }
                    Absence::NoIndex => {
                        "This replica finds identities by their DID alone. Handles, hosts and keys "
                        "are found where the operator has switched on the index of them, "
                        span.code { "--index" } "."
                    }
                }
            }
            p {
                "An identity is found by its DID, " span.code { "did:plc:" } " and 24 characters "
                "of a–z and 2–7. A text that has one in it will do, such as the address of a "
                "profile. An operation is found by its sequence number, and what happened since a day "
                "by its date, " span.code { "2024-01-31" } ". The DID of a handle is what its domain says: the TXT record "
                span.code { "_atproto" } ", or " span.code { "/.well-known/atproto-did" } "."
            }
        }
    };
    layout::page("Nothing found", searched, content)
}

fn apology(status: StatusCode) -> &'static str {
    match status {
        StatusCode::NOT_FOUND => "Not registered",
        StatusCode::SERVICE_UNAVAILABLE => "Not available now",
        StatusCode::BAD_REQUEST => "Not understood",
        _ => "Something is wrong here",
    }
}
