//! What the upstream stated last, by which it is told whether it still has the log that was read.

use bytes::Bytes;

/// Characters of a CID that is looked at: twice those of the directory's.
const MAX_CID: usize = 118;

/// A line of the upstream's log as far as it identifies it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stated {
    /// Its number.
    pub sequence: i64,
    /// Its CID, as long as it may be one; none when it states none.
    pub cid: Option<String>,
}

impl Stated {
    /// What a line states; none when it has no number that could be a cursor.
    pub fn of(line: &[u8]) -> Option<Stated> {
        #[derive(serde::Deserialize)]
        struct Line {
            seq: i64,
            #[serde(default)]
            cid: serde_json::Value,
        }
        let Line { seq: sequence, cid } = serde_json::from_slice(line).ok()?;
        let cid = cid.as_str().filter(|cid| cid.len() <= MAX_CID).map(str::to_owned);
        (sequence > 0).then_some(Stated { sequence, cid })
    }

    /// What lines state for this number, usually in the last one.
    pub fn among(lines: &[Bytes], sequence: i64) -> Option<Stated> {
        let stated = lines.iter().rev().filter_map(|line| Stated::of(line));
        stated.into_iter().find(|stated| stated.sequence == sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_known_by_its_number_and_its_cid() {
        let stated =
            |sequence, cid: Option<&str>| Some(Stated { sequence, cid: cid.map(str::to_owned) });
        assert_eq!(Stated::of(br#"{"seq":7,"cid":"bafy","did":"x"}"#), stated(7, Some("bafy")));
        assert_eq!(Stated::of(br#"{"type":"notice","seq":7}"#), stated(7, None));
        assert_eq!(Stated::of(br#"{"seq":7,"cid":["bafy"]}"#), stated(7, None));
        assert_eq!(Stated::of(br#"{"seq":0,"cid":"bafy"}"#), None);
        assert_eq!(Stated::of(br#"{"seq":"7"}"#), None);
        assert_eq!(Stated::of(b"{"), None);
    }
}
