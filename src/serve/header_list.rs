//! Headers of requests whose value is a list, each element with parameters (RFC 9110, 5.6).

/// What stands between the separators, trimmed; a separator in quotation marks is none. Nothing
/// between two of them is no element.
pub fn elements(value: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    let separates = move |character: char| {
        let literal = escaped;
        escaped = quoted && !literal && character == '\\';
        quoted ^= character == '"' && !literal;
        character == separator && !quoted
    };
    value.split(separates).map(str::trim).filter(|part| !part.is_empty())
}

/// A weight between 0 and 1 in thousandths; what is none counts as a refusal.
pub fn weight(text: &str) -> u16 {
    let weight = text.parse::<f32>().ok().filter(|weight| (0.0..=1.0).contains(weight));
    weight.map_or(0, |weight| (weight * 1000.0).round() as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_taken_apart() {
        for (value, expected) in [
            ("", &[][..]),
            (" , ,", &[]),
            ("a, b;c=d ,e", &["a", "b;c=d", "e"]),
            (r#"a="b,c", d"#, &[r#"a="b,c""#, "d"]),
            (r#"a="b\",c", d"#, &[r#"a="b\",c""#, "d"]),
            (r#"a="b\\", d"#, &[r#"a="b\\""#, "d"]),
            (r#"a\", b"#, &[r#"a\", b"#]),
            (r#"a="b, c"#, &[r#"a="b, c"#]),
        ] {
            assert_eq!(elements(value, ',').collect::<Vec<_>>(), expected, "{value}");
        }
    }

    #[test]
    fn weights_are_thousandths() {
        let weights = [("1", 1000), ("0.001", 1), ("0.5", 500), ("0", 0), ("0.000", 0)];
        for (text, thousandths) in weights {
            assert_eq!(weight(text), thousandths, "{text}");
        }
        for text in ["", "x", "nan", "inf", "-1", "1.5"] {
            assert_eq!(weight(text), 0, "{text}");
        }
    }
}
