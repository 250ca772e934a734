//! Text that anybody can write, made safe to show on a terminal or a page: characters that cannot be seen, or
//! that change what is around them, are escaped.

use std::borrow::Cow;
use std::fmt::Write;

/// The text in one line, with everything that cannot be seen, or that changes what is around it,
/// written out: `\u{202e}`.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(is_hidden) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match is_hidden(character) {
            true => {
                // Writing to a string cannot fail.
                let _ = write!(out, "{}", character.escape_unicode());
            }
            false => out.push(character),
        }
    }
    Cow::Owned(out)
}

/// True of what leaves no trace on the screen, or changes what is around it: control and format
/// characters, blanks other than the space, and what has no meaning of its own.
pub fn is_hidden(character: char) -> bool {
    character.is_control()
        || (character.is_whitespace() && character != ' ')
        || matches!(character,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}'
            | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{2800}' | '\u{3164}' | '\u{e000}'..='\u{f8ff}' | '\u{fdd0}'..='\u{fdef}'
            | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
            | '\u{fffe}' | '\u{ffff}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{10ffff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_acts_on_the_terminal() {
        for (given, shown) in [
            ("at://alice.example", "at://alice.example"),
            ("a\n    signed by", r"a\u{a}    signed by"),
            ("\u{1b}[2J", r"\u{1b}[2J"),
            ("a\u{202e}b\u{9b}c", r"a\u{202e}b\u{9b}c"),
        ] {
            assert_eq!(printable(given), shown);
        }
    }
}
