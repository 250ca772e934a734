//! Whether something that should stay as it is grows.

use std::time::Duration;

/// What was measured over time.
#[derive(Debug, Default)]
pub struct Trend {
    /// Hours, and the value then.
    points: Vec<(f64, f64)>,
}

/// How much something may grow.
#[derive(Debug, Clone, Copy)]
pub struct Allowed {
    /// In an hour.
    pub per_hour: f64,
    /// In a time that is so short that whatever comes and goes looks like growth.
    pub in_all: f64,
}

impl Trend {
    /// Takes a value.
    pub fn add(&mut self, at: Duration, value: f64) {
        self.points.push((at.as_secs_f64() / 3600.0, value));
    }

    /// The slope of the straight line that fits best (least squares); none of fewer than two moments.
    pub fn per_hour(&self) -> Option<f64> {
        let count = self.points.len() as f64;
        let mean = |of: fn(&(f64, f64)) -> f64| self.points.iter().map(of).sum::<f64>() / count;
        let (hour, value) = (mean(|point| point.0), mean(|point| point.1));
        let spread: f64 = self.points.iter().map(|point| (point.0 - hour).powi(2)).sum();
        let together: f64 =
            self.points.iter().map(|point| (point.0 - hour) * (point.1 - value)).sum();
        (spread > 0.0).then(|| together / spread)
    }

    /// How much it may grow an hour.
    pub fn bound(&self, allowed: Allowed) -> f64 {
        let hours = match (self.points.first(), self.points.last()) {
            (Some(first), Some(last)) => last.0 - first.0,
            _ => 0.0,
        };
        allowed.per_hour.max(allowed.in_all / hours)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trend(values: impl IntoIterator<Item = f64>) -> Trend {
        let mut trend = Trend::default();
        for (minute, value) in values.into_iter().enumerate() {
            trend.add(Duration::from_secs(60 * minute as u64), value);
        }
        trend
    }

    #[test]
    fn the_slope_is_that_of_the_line_that_fits_best() {
        let near = |trend: Trend, slope: f64| (trend.per_hour().unwrap() - slope).abs() < 1e-9;
        assert!(near(trend([5.0; 7]), 0.0));
        assert!(near(trend((0..10).map(f64::from)), 60.0));
        assert!(near(trend([1.0, 0.0, 0.0, 1.0]), 0.0));
        // By hand: (3 × 14 − 6 × 5) ÷ (3 × 5 − 3²) of 0, 1, 2 and 1, 0, 5.
        assert!(near(trend([1.0, 0.0, 5.0]), 60.0 * 2.0));
        assert_eq!(trend([1.0]).per_hour(), None);
        assert_eq!(trend([]).per_hour(), None);
    }

    #[test]
    fn a_short_time_is_judged_by_what_grew_in_all() {
        let allowed = Allowed { per_hour: 10.0, in_all: 2.0 };
        assert_eq!(trend([0.0; 61]).bound(allowed), 10.0);
        assert_eq!(trend([0.0; 7]).bound(allowed), 20.0);
    }
}
