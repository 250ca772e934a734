//! Text from operations, which anybody can write: shown so that it cannot pretend to be anything
//! else on the page.
//!
//! Every text is isolated from the direction of the text around it, what cannot be seen is
//! written out as `U+202E`, and long texts are folded. Escaping is maud's.

use maud::{Markup, Render, html};

use crate::escape::is_hidden;

/// Characters of a text that are shown at once: a key, a host and most URLs are shorter.
const SHOWN: usize = 160;
/// Characters that are shown once it is unfolded. All of it is in the raw JSON.
const UNFOLDED: usize = 2_000;
/// Characters of a text in a line of its own, such as a title.
const LINE: usize = 80;
/// Marks that may stand on one character; more of them are drawn over the lines around it.
const MARKS: usize = 2;

/// A text in full, folded when it is long. To stand where a block may stand.
pub fn text(text: &str) -> Markup {
    let (first, rest) = split(text, SHOWN);
    let (second, hidden) = split(rest, UNFOLDED);
    html! {
        (isolated(first))
        @if !rest.is_empty() {
            details.rest {
                summary { "… " (rest.chars().count()) " more characters" }
                (isolated(second))
                @if !hidden.is_empty() {
                    p.note { "and " (hidden.chars().count()) " more, which are in the raw JSON" }
                }
            }
        }
    }
}

/// The beginning of a text, where only a line is.
pub fn line(text: &str) -> Markup {
    let (first, rest) = split(text, LINE);
    html! { (isolated(first)) @if !rest.is_empty() { "…" } }
}

/// The beginning of a text without markup, for a title.
pub fn plain(text: &str) -> String {
    let (first, rest) = split(text, LINE);
    let mut out = String::new();
    for piece in Pieces(first) {
        match piece {
            Piece::Plain(text) => out.push_str(text),
            Piece::Hidden { code, .. } => out.push_str(&format!("<U+{code:04X}>")),
        }
    }
    if !rest.is_empty() {
        out.push('…');
    }
    out
}

/// JSON as it is printed for programs, a field a line, with what cannot be seen escaped: it is
/// still the same JSON.
pub fn json(json: &str) -> Markup {
    let mut out = String::with_capacity(json.len() * 2);
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    let mut characters = json.chars().peekable();
    let indent = |out: &mut String, depth: usize| {
        out.push('\n');
        out.extend(std::iter::repeat_n("  ", depth));
    };
    while let Some(character) = characters.next() {
        if in_string {
            in_string = escaped || character != '"';
            escaped = !escaped && character == '\\';
            push_json(character, &mut out);
            continue;
        }
        match character {
            '{' | '[' if characters.peek().is_some_and(|next| matches!(next, '}' | ']')) => {
                out.push(character);
                out.extend(characters.next());
            }
            '{' | '[' => {
                depth += 1;
                out.push(character);
                indent(&mut out, depth);
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                indent(&mut out, depth);
                out.push(character);
            }
            ',' => {
                out.push(',');
                indent(&mut out, depth);
            }
            ':' => out.push_str(": "),
            '"' => {
                in_string = true;
                out.push('"');
            }
            other => out.push(other),
        }
        if out.len() > MAX_JSON {
            break;
        }
    }
    let (shown, cut) = split(&out, MAX_JSON);
    html! {
        pre.json tabindex="0" { code { (shown) } }
        @if !cut.is_empty() || characters.peek().is_some() {
            p.note { "cut here; all of it is in the raw JSON" }
        }
    }
}

/// Characters of an operation's JSON that are put into a page; operations are some 600 long.
const MAX_JSON: usize = 16_000;

fn push_json(character: char, out: &mut String) {
    if !is_hidden(character) && !is_mark(character) {
        return out.push(character);
    }
    let mut units = [0; 2];
    for unit in character.encode_utf16(&mut units) {
        out.push_str(&format!("\\u{unit:04x}"));
    }
}

fn isolated(text: &str) -> Markup {
    html! {
        bdi.text {
            @if text.is_empty() { span.hidden { "empty" } }
            @for piece in Pieces(text) { (piece) }
        }
    }
}

/// The first `count` characters, and the rest.
fn split(text: &str, count: usize) -> (&str, &str) {
    let at = text.char_indices().nth(count).map_or(text.len(), |(at, _)| at);
    text.split_at(at)
}

/// A part of a text.
enum Piece<'a> {
    /// Shown as it is.
    Plain(&'a str),
    /// A character that cannot be seen, so often in a row.
    Hidden { code: u32, times: usize },
}

impl Render for Piece<'_> {
    fn render(&self) -> Markup {
        match self {
            Piece::Plain(text) => html! { (text) },
            Piece::Hidden { code, times } => html! {
                span.hidden {
                    "U+" (format!("{code:04X}"))
                    @if *times > 1 { "×" (times) }
                }
            },
        }
    }
}

/// The parts of a text, from its beginning.
struct Pieces<'a>(&'a str);

impl<'a> Iterator for Pieces<'a> {
    type Item = Piece<'a>;

    fn next(&mut self) -> Option<Piece<'a>> {
        let first = self.0.chars().next()?;
        if is_hidden(first) || is_mark(first) {
            let rest = self.0.trim_start_matches(first);
            let times = (self.0.len() - rest.len()) / first.len_utf8();
            self.0 = rest;
            return Some(Piece::Hidden { code: first.into(), times });
        }
        let mut marks = 0;
        let end = self.0.char_indices().find_map(|(at, character)| {
            marks = if is_mark(character) { marks + 1 } else { 0 };
            (is_hidden(character) || marks > MARKS).then_some(at)
        });
        let (plain, rest) = self.0.split_at(end.unwrap_or(self.0.len()));
        self.0 = rest;
        Some(Piece::Plain(plain))
    }
}

/// True of the marks that are drawn over the character before them.
fn is_mark(character: char) -> bool {
    matches!(character,
        '\u{300}'..='\u{36f}' | '\u{483}'..='\u{489}' | '\u{1ab0}'..='\u{1aff}'
        | '\u{1dc0}'..='\u{1dff}' | '\u{20d0}'..='\u{20ff}' | '\u{fe20}'..='\u{fe2f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_seen_is_written_out() {
        for (given, shown) in [
            ("alice.example", "alice.example"),
            ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
            ("\"'&", "&quot;'&amp;"),
            ("a\u{202e}b", "a<span class=\"hidden\">U+202E</span>b"),
            ("\0\0\0", "<span class=\"hidden\">U+0000×3</span>"),
            ("a\nb", "a<span class=\"hidden\">U+000A</span>b"),
            ("\u{e9}e\u{301}", "\u{e9}e\u{301}"),
            ("e\u{301}\u{301}\u{301}", "e\u{301}\u{301}<span class=\"hidden\">U+0301</span>"),
            ("\u{10ffff}", "<span class=\"hidden\">U+10FFFF</span>"),
            ("مرحبا", "مرحبا"),
            ("", "<span class=\"hidden\">empty</span>"),
        ] {
            let expected = format!("<bdi class=\"text\">{shown}</bdi>");
            assert_eq!(text(given).into_string(), expected, "{given:?}");
        }
    }

    #[test]
    fn long_texts_are_folded_and_then_cut() {
        let long = "é".repeat(10_000);
        let page = text(&long).into_string();
        assert_eq!(page.matches('é').count(), SHOWN + UNFOLDED);
        assert!(page.contains("<summary>… 9840 more characters</summary>"));
        assert!(page.contains("and 7840 more, which are in the raw JSON"));
        assert_eq!(line(&long).into_string().matches('é').count(), LINE);
        assert_eq!(plain("a\u{202e}b"), "a<U+202E>b");
    }

    #[test]
    fn json_stays_the_same_json() {
        let given = r#"{"a":[1,{"b\"},":"x: {y}, \\"}],"c":{},"d":[],"e":"HIDDEN"}"#;
        let given = &given.replace("HIDDEN", "\u{202e}\u{1d173}");
        let page = json(given).into_string();
        let shown = page.split("<code>").nth(1).and_then(|rest| rest.split("</code>").next());
        let shown = shown.unwrap().replace("&quot;", "\"").replace("&amp;", "&");
        let value: serde_json::Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(value, serde_json::from_str::<serde_json::Value>(given).unwrap());
        assert!(shown.contains("\\u202e") && shown.contains("\\ud834\\udd73"));
        assert!(shown.lines().count() > 8);
    }

    #[test]
    fn endless_json_is_cut() {
        let given = format!("[{}1]", "1,".repeat(100_000));
        let page = json(&given).into_string();
        assert!(page.len() < 2 * MAX_JSON && page.contains("cut here"));
    }
}
