//! What was measured, as a table for people and as JSON for programs.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::scope::Backend;
use crate::turns::Each;

/// Everything that one run of the benchmark has to say.
#[derive(Debug, Serialize)]
pub struct Report {
    pub machine: Machine,
    /// What the log is made of.
    pub log: String,
    /// Settings that change what the figures mean.
    pub settings: Vec<String>,
    pub rows: Vec<Row>,
    /// What each stage of taking in an operation costs by itself, on one core.
    pub stages: Vec<Stage>,
    /// Microseconds of processor time that the whole of a following replica took an operation,
    /// by database.
    pub processor: Vec<(&'static str, f64)>,
    /// The program that everything is compared with, if any.
    pub against: Option<PathBuf>,
    /// What was left out, and why.
    pub skipped: Vec<String>,
}

/// Where it was measured.
#[derive(Debug, Serialize)]
pub struct Machine {
    pub processor: String,
    pub cores: usize,
    pub memory_megabytes: u64,
    pub kernel: String,
}

impl Machine {
    /// This one.
    pub fn here() -> Machine {
        let field = |file: &str, name: &str| {
            let text = fs::read_to_string(file).unwrap_or_default();
            let line = text.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned())
        };
        let memory = field("/proc/meminfo", "MemTotal").unwrap_or_default();
        Machine {
            processor: field("/proc/cpuinfo", "model name").unwrap_or_default(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_megabytes: memory.trim_end_matches(" kB").parse::<u64>().unwrap_or(0) >> 10,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
                .unwrap_or_default()
                .trim()
                .to_owned(),
        }
    }
}

/// One measured quantity.
#[derive(Debug, Serialize)]
pub struct Row {
    pub name: String,
    pub backend: Option<&'static str>,
    pub unit: &'static str,
    /// The least (or most) that is acceptable, and what is aimed at.
    pub goal: Option<Goal>,
    /// One of each run, in the order of the runs.
    pub values: Vec<f64>,
    pub median: f64,
    /// What the other program came to.
    pub against: Option<Compared>,
}

/// The other program's side of a row.
#[derive(Debug, Serialize)]
pub struct Compared {
    pub values: Vec<f64>,
    pub median: f64,
    /// How many times better the measured program is, by the medians: below 1 it is worse, whether
    /// the row counts what is to be much or what is to be little.
    pub ratio: f64,
}

/// What is to be reached. Where the aim is the smaller number, less is better.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Goal {
    pub least: f64,
    pub aim: f64,
}

/// What is to be reached, at least and better.
pub fn goal(least: f64, aim: f64) -> Option<Goal> {
    Some(Goal { least, aim })
}

/// Of 1,000,000 bytes each.
pub fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

impl Row {
    /// A row of what each run measured.
    pub fn new(
        name: impl Into<String>,
        backend: Option<&'static str>,
        unit: &'static str,
        goal: Option<Goal>,
        values: Each<Vec<f64>>,
    ) -> Row {
        let Each { measured: values, against } = values;
        let middle = median(&values);
        let against = against.map(|values| {
            let other = median(&values);
            // A rate is to be high; time, memory and space are to be low.
            let ratio = if unit.ends_with("/s") { middle / other } else { other / middle };
            Compared { values, median: other, ratio }
        });
        Row { name: name.into(), backend, unit, goal, values, median: middle, against }
    }

    fn verdict(&self) -> &'static str {
        let Some(Goal { least, aim }) = self.goal else { return "" };
        let reaches = |goal: f64| match aim < least {
            true => self.median <= goal,
            false => self.median >= goal,
        };
        match (reaches(least), reaches(aim)) {
            (_, true) => "aim reached",
            (true, false) => "reached",
            (false, false) => "**missed**",
        }
    }
}

/// A stage of the work.
#[derive(Debug, Serialize)]
pub struct Stage {
    pub name: &'static str,
    pub microseconds: f64,
}

impl Report {
    /// The table of docs/PERFORMANCE.md.
    pub fn markdown(&self) -> String {
        let mut out = String::new();
        let Machine { processor, cores, memory_megabytes, kernel } = &self.machine;
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "Measured on {cores} cores of {processor}, {memory_megabytes} MB of memory, Linux \
             {kernel}. Log: {}.",
            self.log
        );
        for setting in &self.settings {
            let _ = writeln!(out, "{setting}");
        }
        match &self.against {
            None => self.write_rows(&mut out),
            Some(program) => self.write_comparison(&mut out, program),
        }
        self.write_stages(&mut out);
        for reason in &self.skipped {
            let _ = writeln!(out, "\nSkipped: {reason}");
        }
        out
    }

    fn write_rows(&self, out: &mut String) {
        out.push_str("\n| | | median | lowest–highest | least | aim | |\n");
        out.push_str("| --- | --- | ---: | ---: | ---: | ---: | --- |\n");
        for row in &self.rows {
            let goal = |of: fn(&Goal) -> f64| {
                row.goal.as_ref().map_or_else(String::new, |goal| number(of(goal)))
            };
            let _ = writeln!(
                out,
                "| {} | {} | {} {} | {} | {} | {} | {} |",
                row.name,
                row.backend.unwrap_or_default(),
                number(row.median),
                row.unit,
                range(&row.values),
                goal(|goal| goal.least),
                goal(|goal| goal.aim),
                row.verdict(),
            );
        }
    }

    /// Both medians of each row that both programs have.
    fn write_comparison(&self, out: &mut String, program: &Path) {
        let _ = writeln!(
            out,
            "Compared with {}, by turns. A ratio above 1 is better than that, below 1 worse.",
            program.display()
        );
        out.push_str(
            "\n| | | median | lowest–highest | compared with | lowest–highest | ratio |\n",
        );
        out.push_str("| --- | --- | ---: | ---: | ---: | ---: | ---: |\n");
        for row in &self.rows {
            let Some(against) = &row.against else { continue };
            let _ = writeln!(
                out,
                "| {} | {} | {} {unit} | {} | {} {unit} | {} | {:.3} |",
                row.name,
                row.backend.unwrap_or_default(),
                number(row.median),
                range(&row.values),
                number(against.median),
                range(&against.values),
                against.ratio,
                unit = row.unit,
            );
        }
    }

    /// Adds a row.
    pub fn row(
        &mut self,
        name: &str,
        backend: Option<Backend>,
        unit: &'static str,
        goal: Option<Goal>,
        values: Each<Vec<f64>>,
    ) {
        self.rows.push(Row::new(name, backend.map(Backend::name), unit, goal, values));
    }

    /// The stages, and their shares of the processor time of the replica on each database. What
    /// is left of that is the transaction, loading chains, and the runtime.
    fn write_stages(&self, out: &mut String) {
        if self.stages.is_empty() {
            return;
        }
        out.push_str("\n| stage, by itself on one core | µs an operation |");
        for (backend, all) in &self.processor {
            let _ = write!(out, " of {all:.1} on {backend} |");
        }
        out.push_str("\n| --- | ---: |");
        out.push_str(&" ---: |".repeat(self.processor.len()));
        for Stage { name, microseconds } in &self.stages {
            let _ = write!(out, "\n| {name} | {microseconds:.2} |");
            for (_, all) in &self.processor {
                let _ = write!(out, " {:.0} % |", 100.0 * microseconds / all);
            }
        }
        let stages: f64 = self.stages.iter().map(|stage| stage.microseconds).sum();
        let _ = write!(out, "\n| together | {stages:.2} |");
        for (_, all) in &self.processor {
            let _ = write!(out, " {:.0} % |", 100.0 * stages / all);
        }
        out.push('\n');
    }
}

/// The lowest and the highest of some values.
fn range(values: &[f64]) -> String {
    let lowest = values.iter().copied().fold(f64::INFINITY, f64::min);
    let highest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!("{}–{}", number(lowest), number(highest))
}

/// Three digits, or all before the point, in groups of three.
pub fn number(value: f64) -> String {
    if value < 100.0 {
        let digits = if value < 10.0 { 2 } else { 1 };
        return format!("{value:.digits$}");
    }
    let digits = format!("{value:.0}");
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// The middle value; the mean of the two when their number is even.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => 0.0,
        length if length % 2 == 1 => sorted[middle],
        _ => (sorted[middle - 1] + sorted[middle]) / 2.0,
    }
}

/// The value that this share of the sorted values does not exceed; zero of none.
pub fn quantile(sorted: &[u32], share: f64) -> u32 {
    let index = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(index.saturating_sub(1)).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        for (value, text) in
            [(1.234, "1.23"), (45.67, "45.7"), (999.6, "1,000"), (1_234_567.0, "1,234,567")]
        {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn medians_and_quantiles() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0]), 2.5);
        let sorted: Vec<u32> = (1..=100).collect();
        assert_eq!(quantile(&sorted, 0.5), 50);
        assert_eq!(quantile(&sorted, 0.99), 99);
        assert_eq!(quantile(&sorted, 1.0), 100);
        assert_eq!(quantile(&[], 0.5), 0);
    }

    #[test]
    fn a_goal_can_be_a_ceiling() {
        let row = |median, least, aim| {
            let values = Each { measured: vec![median], against: None };
            Row::new("", None, "", Some(Goal { least, aim }), values).verdict()
        };
        assert_eq!(row(31_000.0, 30_000.0, 45_000.0), "reached");
        assert_eq!(row(50_000.0, 30_000.0, 45_000.0), "aim reached");
        assert_eq!(row(250.0, 280.0, 220.0), "reached");
        assert_eq!(row(300.0, 280.0, 220.0), "**missed**");
    }

    #[test]
    fn a_ratio_above_one_is_better() {
        let ratio = |unit, ours, theirs| {
            let values = Each { measured: vec![ours, 1e9, 0.0], against: Some(vec![theirs]) };
            Row::new("", None, unit, None, values).against.unwrap().ratio
        };
        assert_eq!(ratio("op/s", 120.0, 100.0), 1.2);
        assert_eq!(ratio("MB/s", 50.0, 100.0), 0.5);
        assert_eq!(ratio("MB", 50.0, 100.0), 2.0);
        assert_eq!(ratio("µs", 200.0, 100.0), 0.5);
    }
}
