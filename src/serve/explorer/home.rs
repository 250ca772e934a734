//! The status page: is it well, how far is it, how much is there.

use std::time::Duration;

use maud::{Markup, html};

use crate::live::{Mode, Outlook, Role, Standing, UpstreamReport};
use crate::store::claims::ClaimsIndex;
use crate::store::{MOST_COUNTED, Statistics};
use crate::words::{duration, number, plural};
use did_plc::Timestamp;

use super::layout::page;
use super::parts::{bytes, time_ago};
use super::text::text;

/// What the page says.
#[derive(Debug, Clone)]
pub struct Report {
    /// Base URL of the upstream that is followed.
    pub upstream: String,
    /// Whether it is sent what clients write.
    pub takes_writes: bool,
    /// How it stands with each that can be followed, in order of preference.
    pub upstreams: Vec<UpstreamReport>,
    /// What this process is to the log.
    pub role: Role,
    /// What the follower is doing, here or in another process.
    pub mode: Mode,
    /// Whether the log was caught up once.
    pub caught_up: bool,
    /// The last sequence number that is committed.
    pub sequence: i64,
    /// How much of the upstream's log that is, and how long the rest will take.
    pub outlook: Option<Outlook>,
    /// The sequence number up to which everything was read twice.
    pub read_twice: i64,
    /// How old the store's picture is.
    pub lag: Option<Duration>,
    /// How long ago the upstream said something.
    pub upstream_age: Option<Duration>,
    /// The latest `createdAt` that was committed since the start.
    pub last_operation: Option<Timestamp>,
    /// What the store holds; none before that was counted for the first time.
    pub statistics: Option<Statistics>,
    /// The sequence number at the end of each of the last minutes, the newest last.
    pub sequences: Vec<i64>,
    /// The time of the page.
    pub now: Timestamp,
}

/// The page.
pub fn home_page(report: &Report) -> String {
    let content = html! {
        section.card aria-labelledby="status" {
            h1 #status { "A verifying replica of the PLC directory" }
            p.badges { (state(report)) }
            dl.facts {
                dt { "Source" }
                dd {
                    (text(&report.upstream))
                    @if report.takes_writes { ", to which writes are passed on" }
                }
                @if report.upstreams.len() > 1 {
                    dt { "Upstreams, by preference" }
                    @for upstream in &report.upstreams { dd { (standing(upstream, report.now)) } }
                }
                @if report.role == Role::Reader {
                    dt { "This process" }
                    dd { "reads what another one takes in" }
                }
                dt { "Cursor" }
                dd { "sequence number " (number(report.sequence.unsigned_abs())) }
                (rest(report))
                dt { "Read twice" }
                dd {
                    @match report.read_twice {
                        0 => "nothing yet",
                        read => { "everything up to number " (number(read.unsigned_abs())) }
                    }
                }
                dt { "Behind by" }
                dd {
                    @match report.lag {
                        Some(lag) => (duration(lag)),
                        None => "not known before the first operation",
                    }
                }
                dt { "Source last heard" }
                dd {
                    @match report.upstream_age {
                        Some(age) => { (duration(age)) " ago" }
                        None => "not since the start",
                    }
                }
                @if let Some(last) = report.last_operation {
                    dt { "Newest operation" }
                    dd { (time_ago(last, report.now)) }
                }
            }
        }
        (figures(report.statistics.as_ref()))
        (hour(&report.sequences))
        (about())
    };
    page("plc-replica", "", content)
}

fn state(report: &Report) -> Markup {
    let (class, words) = match (report.mode, report.caught_up) {
        (Mode::Live, _) => ("good", "live: following the source as it grows"),
        (Mode::CatchingUp, false) => ("warn", "catching up: reading the log for the first time"),
        (Mode::CatchingUp, true) => ("warn", "catching up with the source"),
        (Mode::Waiting, _) => ("bad", "waiting: the source or the database is away"),
        (Mode::Idle, _) => ("warn", "idle: nobody follows"),
    };
    html! { span.tag.(class) { (words) } }
}

/// How much of the log is still to be read, while that is so.
fn rest(report: &Report) -> Markup {
    let Some(Outlook { head, percent, rate, left }) = report.outlook else { return html! {} };
    if report.mode != Mode::CatchingUp {
        return html! {};
    }
    html! {
        dt { "Read so far" }
        dd {
            progress max="100" value=(format!("{percent:.2}")) {}
            " " (format!("{percent:.1}")) " % of " (number(head.unsigned_abs())) " numbers"
            @if let Some(rate) = rate { ", " (number(rate as u64)) " a second" }
            @if let Some(left) = left { ", about " (duration(left)) " left" }
        }
    }
}

fn standing(upstream: &UpstreamReport, now: Timestamp) -> Markup {
    let class = match upstream.standing {
        Standing::Followed | Standing::Ready | Standing::OwnNumbers => "good",
        Standing::Away | Standing::Behind | Standing::Unknown => "warn",
        Standing::Refuted => "bad",
    };
    html! {
        (text(&upstream.base)) " "
        span.tag.(class) { (upstream.standing.name()) }
        " since " (time_ago(upstream.since, now))
        @if !upstream.reason.is_empty() { ": it " (text(&upstream.reason)) }
    }
}

fn figures(statistics: Option<&Statistics>) -> Markup {
    html! {
        section.card aria-labelledby="held" {
            h2 #held { "Held and verified here" }
            @match statistics {
                None => p.note { "Not counted yet." },
                Some(statistics @ Statistics { operations, identities, refusals, .. }) => {
                    ul.figures {
                        li { b { (number(*operations)) } a href="/explore/log" { "operations" } }
                        li { b { (number(*identities)) } "identities" }
                        li { b { (counted(*refusals)) } a href="/explore/refused" { "refused" } }
                        li {
                            b { (counted(statistics.open_divergences)) }
                            a href="/explore/divergences?open=true" { "open divergences" }
                        }
                        li { b { (bytes(statistics.bytes)) } "on disk" }
                    }
                    @if let Some(index) = &statistics.claims {
                        p.note { (index_of_claims(index, statistics.claims_bytes)) }
                    }
                }
            }
        }
    }
}

/// A number of records that are not all counted.
fn counted(records: u64) -> String {
    match records < MOST_COUNTED {
        true => number(records),
        false => format!("{} or more", number(records)),
    }
}

fn index_of_claims(index: &ClaimsIndex, size: u64) -> Markup {
    html! {
        "Of that, about " (bytes(size)) " are the index of handles, hosts and keys"
        @if !index.is_complete() {
            ", which is being built: it has " (number(index.sequence.unsigned_abs())) " of "
            (number(index.highest.unsigned_abs())) " operations"
        }
        "."
    }
}

/// Units of the sparkline's drawing, which is stretched over the page.
const WIDTH: usize = 600;
const HEIGHT: i64 = 40;

/// How many sequence numbers were committed in each minute of the last hour.
fn hour(sequences: &[i64]) -> Markup {
    let minutes: Vec<i64> = sequences.windows(2).map(|pair| (pair[1] - pair[0]).max(0)).collect();
    let (Some(last), Some(highest)) = (minutes.last(), minutes.iter().max()) else {
        return html! {};
    };
    let step = WIDTH / minutes.len().max(2).saturating_sub(1);
    let points: Vec<String> = minutes
        .iter()
        .enumerate()
        .map(|(at, count)| format!("{},{}", at * step, HEIGHT - count * HEIGHT / (*highest).max(1)))
        .collect();
    let total = plural(minutes.iter().sum::<i64>().unsigned_abs(), "operation");
    let words = format!(
        "{total} in the last {}; {} in the last minute, at most {} in one",
        plural(minutes.len() as u64, "minute"),
        number(last.unsigned_abs()),
        number(highest.unsigned_abs()),
    );
    html! {
        section.card aria-labelledby="hour" {
            h2 #hour { "The last hour" }
            svg.spark viewBox=(format!("0 -2 {WIDTH} {}", HEIGHT + 4)) preserveAspectRatio="none"
                role="img" aria-label=(words) {
                polyline points=(points.join(" ")) {}
            }
            p.note { (words) "." }
        }
    }
}

fn about() -> Markup {
    html! {
        section.card aria-labelledby="for-programs" {
            h2 #for-programs { "For programs" }
            p { "The same paths and the same bytes as the directory itself." }
            dl {
                @for (path, what) in [
                    ("/{did}", "the DID document"),
                    ("/{did}/data", "what it is made from"),
                    ("/{did}/log", "the operations in force"),
                    ("/{did}/log/audit", "all operations"),
                    ("/{did}/log/last", "the newest operation"),
                    ("/{did}/log/verdicts", "who signed each operation"),
                    ("/1.0/identifiers/{did}", "the document by DID Resolution v1.0"),
                    ("/export", "everything, in pages"),
                    ("/_lookup?handle=", "who claims it, or a host= or a key="),
                    ("/export/stream", "everything that is new, over a WebSocket"),
                    ("/_audit/divergences", "where this log and its upstream differ"),
                    ("/_audit/refused", "what was not accepted, and why"),
                    ("/_health", "whether this server works"),
                    ("/_ready", "whether it is up to date"),
                ] {
                    dt.code { (path) }
                    dd { (what) }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hour_is_drawn_within_its_frame() {
        for sequences in [&[][..], &[5], &[5, 5], &[0, 10, 10, 40], &[7, 3, 9]] {
            let page = hour(sequences).into_string();
            let points = page.split("points=\"").nth(1).and_then(|rest| rest.split('"').next());
            assert_eq!(points.is_some(), sequences.len() > 1);
            for point in points.unwrap_or_default().split(' ').filter(|point| !point.is_empty()) {
                let (x, y) = point.split_once(',').unwrap();
                assert!(x.parse::<usize>().unwrap() <= WIDTH);
                assert!((0..=HEIGHT).contains(&y.parse().unwrap()));
            }
        }
    }
}
