//! Small parts that pages are put together from.

use maud::{Markup, html};

use crate::words::{duration, plural};
use did_plc::key::{Curve, PublicKey};
use did_plc::{Cid, Timestamp};

use super::text;

/// Items of a list that are shown at once: identities have two rotation keys and one service.
const SHOWN_ITEMS: usize = 12;
/// Items that are shown once it is unfolded. All of them are in the raw JSON.
const UNFOLDED_ITEMS: usize = 48;

/// The items of a list, folded when there are many. Each is rendered as an `li`.
pub fn items<T>(items: &[T], item: impl Fn(usize, &T) -> Markup) -> Markup {
    let (first, rest) = items.split_at(items.len().min(SHOWN_ITEMS));
    let second = &rest[..rest.len().min(UNFOLDED_ITEMS)];
    html! {
        @for (index, one) in first.iter().enumerate() { (item(index, one)) }
        @if !rest.is_empty() {
            li.folded {
                details.rest {
                    summary { "… " (rest.len()) " more" }
                    ul {
                        @for (index, one) in second.iter().enumerate() {
                            (item(first.len() + index, one))
                        }
                    }
                    @if rest.len() > second.len() {
                        p.note { "and " (rest.len() - second.len()) " more, which are in the raw JSON" }
                    }
                }
            }
        }
    }
}

/// A point in time, to the second; the milliseconds are in the markup.
pub fn time(at: Timestamp) -> Markup {
    let full = at.to_string();
    let (date, rest) = full.split_at(10);
    html! { time datetime=(full) { (date) " " (&rest[1..9]) " UTC" } }
}

/// A point in time, and how long ago that was.
pub fn time_ago(at: Timestamp, now: Timestamp) -> Markup {
    html! {
        (time(at))
        span.ago {
            " ("
            @if at > now { "in " (duration(at.since(now))) }
            @else { (duration(now.since(at))) " ago" }
            ")"
        }
    }
}

/// A number of bytes in its largest unit.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["bytes", "kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => plural(bytes, "byte"),
        _ => format!("{value:.1} {}", UNITS[unit]),
    }
}

/// The end of a CID, which is enough to tell the operations of one identity apart.
pub fn short(cid: &Cid) -> String {
    let text = cid.to_string();
    format!("…{}", &text[text.len() - 8..])
}

/// A key, with its curve when it is one.
pub fn key(key: &str) -> Markup {
    html! {
        span.key { (text::text(key)) }
        @match key.parse::<PublicKey>().ok().map(|key| key.curve) {
            Some(Curve::K256) => { " " span.tag title="secp256k1" { "k256" } }
            Some(Curve::P256) => { " " span.tag title="NIST P-256" { "p256" } }
            None => { " " span.tag.warn { "no did:key of a known curve" } }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_for_people() {
        assert_eq!(bytes(1), "1 byte");
        assert_eq!(bytes(999), "999 bytes");
        assert_eq!(bytes(30_500_000_000), "30.5 GB");
    }

    #[test]
    fn a_long_list_is_folded() {
        let page = items(&[(); 100], |index, ()| html! { li { (index) } }).into_string();
        assert_eq!(page.matches("<li>").count(), SHOWN_ITEMS + UNFOLDED_ITEMS);
        assert!(page.contains("… 88 more") && page.contains("and 40 more"));
    }
}
