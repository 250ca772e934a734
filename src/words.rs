//! Numbers and durations as people read them.

use std::time::Duration;

/// A duration in its largest whole unit.
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (count, unit) = match seconds {
        0..120 => (seconds, "second"),
        120..7_200 => (seconds / 60, "minute"),
        7_200..172_800 => (seconds / 3_600, "hour"),
        172_800..63_072_000 => (seconds / 86_400, "day"),
        _ => (seconds / 31_536_000, "year"),
    };
    plural(count, unit)
}

/// `1 operation`, `2 operations`.
pub fn plural(count: u64, what: &str) -> String {
    let number = number(count);
    if count == 1 { format!("{number} {what}") } else { format!("{number} {what}s") }
}

/// A number with its thousands apart.
pub fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_for_people() {
        assert_eq!(number(0), "0");
        assert_eq!(number(999), "999");
        assert_eq!(number(1_234_567), "1,234,567");
        assert_eq!(duration(Duration::from_secs(1)), "1 second");
        assert_eq!(duration(Duration::from_secs(72 * 3600 - 1)), "2 days");
        assert_eq!(duration(Duration::from_secs(3 * 31_536_000)), "3 years");
    }
}
