//! The forks of a history as a small tree: what was nullified by what.
//!
//! Newest above, as in the list below it. The chain in force is the first lane; each branch that
//! was nullified has a lane beside it. Stretches in which nothing forks are one row.

use maud::{Markup, html};

use crate::words::plural;
use did_plc::history::HistoryEntry;
use did_plc::{Change, History};

use super::diff::headline;

const ROW: usize = 30;
const LANE: usize = 22;
/// Room for the label beside the lanes, in the units of the drawing.
const LABEL: usize = 300;
const RADIUS: usize = 6;
/// Rows at most, from the newest on: beyond this nobody sees anything.
const MAX_ROWS: usize = 60;
/// Lanes at most; what is further out is drawn on the last.
const MAX_LANES: usize = 8;
/// Characters of a headline in a label.
const WORDS: usize = 32;

/// A row of the drawing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TreeRow {
    Entry(usize),
    /// So many entries of the chain in force between which nothing forks.
    Stretch(usize),
}

/// The tree; nothing when nothing was nullified. `href` says where an entry is shown.
pub fn tree(history: &History, changes: &[Vec<Change>], href: impl Fn(usize) -> String) -> Markup {
    let entries = &history.entries;
    if entries.iter().all(|entry| entry.nullified_by.is_none()) {
        return html! {};
    }
    let mut rows = rows(entries);
    let cut = rows.len() > MAX_ROWS;
    rows.truncate(MAX_ROWS);
    let lanes = lanes(entries);
    let drawing = Drawing { entries, changes, rows: &rows, lanes: &lanes };
    let used = rows.iter().map(|row| drawing.lane(*row)).max().unwrap_or(0) + 1;
    let (width, height) = (used * LANE + LABEL, rows.len() * ROW);
    html! {
        section.card aria-labelledby="forks" {
            h2 #forks { "Forks" }
            p.note {
                "Newest first. Filled circles are in force; hollow ones were nullified, "
                "and the dashed line leads to what nullified them."
            }
            div.scroll {
                svg.tree viewBox=(format!("0 0 {width} {height}")) width=(width) height=(height)
                    role="group" aria-labelledby="forks" {
                    (drawing.lines())
                    @for (at, row) in rows.iter().enumerate() { (drawing.row(at, *row, used, &href)) }
                }
            }
            @if cut { p.note { "Older ones are not drawn." } }
        }
    }
}

/// The rows, newest first.
fn rows(entries: &[HistoryEntry]) -> Vec<TreeRow> {
    let mut forks = vec![false; entries.len()];
    for entry in entries.iter().filter(|entry| entry.nullified_by.is_some()) {
        if let Some(prev) = entry.prev {
            forks[prev] = true;
        }
    }
    let told = |index: usize| {
        let entry = &entries[index];
        let ends = index == 0 || index + 1 == entries.len();
        ends || forks[index] || entry.nullified_by.is_some() || !entry.nullifies.is_empty()
    };
    let mut rows = Vec::new();
    for index in (0..entries.len()).rev() {
        match rows.last_mut() {
            _ if told(index) => rows.push(TreeRow::Entry(index)),
            Some(TreeRow::Stretch(count)) => *count += 1,
            _ => rows.push(TreeRow::Stretch(1)),
        }
    }
    rows
}

/// The lane of each entry. What is in force is on lane 0; a nullified one goes on on the lane of
/// what it follows unless something did before; else it takes the first lane that is free.
fn lanes(entries: &[HistoryEntry]) -> Vec<usize> {
    let mut lanes = vec![0; entries.len()];
    let mut followed = vec![false; entries.len()];
    // The end of what each lane is used for: a branch is over when it is nullified.
    let mut busy_until = vec![usize::MAX];
    for (index, entry) in entries.iter().enumerate() {
        let Some(by) = entry.nullified_by else { continue };
        let prev = entry.prev.filter(|&prev| lanes[prev] > 0 && !followed[prev]);
        let lane = prev.map(|prev| lanes[prev]).unwrap_or_else(|| {
            let free = busy_until.iter().position(|&until| until < index);
            free.unwrap_or(busy_until.len()).min(MAX_LANES - 1)
        });
        if lane == busy_until.len() {
            busy_until.push(by);
        }
        busy_until[lane] = by;
        if let Some(prev) = prev {
            followed[prev] = true;
        }
        lanes[index] = lane;
    }
    lanes
}

struct Drawing<'a> {
    entries: &'a [HistoryEntry],
    changes: &'a [Vec<Change>],
    rows: &'a [TreeRow],
    lanes: &'a [usize],
}

impl Drawing<'_> {
    fn lane(&self, row: TreeRow) -> usize {
        match row {
            TreeRow::Entry(index) => self.lanes[index],
            TreeRow::Stretch(_) => 0,
        }
    }

    fn place(&self, index: usize) -> Option<(usize, usize)> {
        let at = self.rows.iter().position(|row| *row == TreeRow::Entry(index))?;
        Some((self.lanes[index] * LANE + LANE / 2, at * ROW + ROW / 2))
    }

    /// The chain in force, each branch to what it follows, and each to what nullified it.
    fn lines(&self) -> Markup {
        let trunk: Vec<usize> = (0..self.rows.len())
            .filter(|&at| self.lane(self.rows[at]) == 0)
            .map(|at| at * ROW + ROW / 2)
            .collect();
        let nullified: Vec<(usize, &HistoryEntry)> = self
            .entries
            .iter()
            .enumerate()
            .filter(|(_, entry)| entry.nullified_by.is_some())
            .collect();
        html! {
            @if let (Some(top), Some(bottom)) = (trunk.first(), trunk.last()) {
                path.force d=(format!("M{x} {top}V{bottom}", x = LANE / 2)) {}
            }
            @for (index, entry) in nullified {
                @if let Some((x, y)) = self.place(index) {
                    @if let Some((from, below)) = entry.prev.and_then(|prev| self.place(prev)) {
                        path.branch d=(format!("M{from} {below}C{x} {below} {x} {below} {x} {y}")) {}
                    }
                    // One line a branch: from its last operation.
                    @if let Some((to, above)) = entry.nullified_by
                        .filter(|_| self.ends_branch(index))
                        .and_then(|by| self.place(by)) {
                        path.undone d=(format!("M{x} {y}C{x} {above} {x} {above} {to} {above}")) {}
                    }
                }
            }
        }
    }

    fn ends_branch(&self, index: usize) -> bool {
        let by = self.entries[index].nullified_by;
        !self.entries.iter().any(|other| {
            other.prev == Some(index) && other.nullified_by.is_some() && other.nullified_by == by
        })
    }

    fn row(
        &self,
        at: usize,
        row: TreeRow,
        lanes: usize,
        href: &impl Fn(usize) -> String,
    ) -> Markup {
        let (x, y) = (self.lane(row) * LANE + LANE / 2, at * ROW + ROW / 2);
        let (text_x, text_y) = (lanes * LANE + 4, y + 5);
        match row {
            TreeRow::Stretch(count) => html! {
                circle.stretch cx=(x) cy=(y) r=(RADIUS / 2) {}
                text.note x=(text_x) y=(text_y) { (plural(count as u64, "more operation")) }
            },
            TreeRow::Entry(index) => {
                let entry = &self.entries[index];
                let date = entry.received.created_at.to_string();
                let nullified = entry.nullified_by.is_some();
                html! {
                    a href=(href(index)) {
                        circle.dead[nullified].alive[!nullified] cx=(x) cy=(y) r=(RADIUS) {}
                        text x=(text_x) y=(text_y) {
                            (index + 1) " · " (&date[..10]) " · " (words(&self.changes[index]))
                            @if nullified { tspan.unseen { ", nullified" } }
                        }
                    }
                }
            }
        }
    }
}

fn words(changes: &[Change]) -> String {
    let mut words = headline(changes);
    if let Some((at, _)) = words.char_indices().nth(WORDS) {
        words.truncate(at);
        words.push('…');
    }
    words
}
