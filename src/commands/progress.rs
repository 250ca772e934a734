//! Progress of long work: a bar with rate and time left on a terminal, a log line now and then
//! elsewhere.

use std::cell::Cell;
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle, WeakProgressBar};

/// How often a line is logged where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// What commands say beside their output: warnings, and how far they are.
pub const LEVELS: &str = concat!("warn,", module_path!(), "=info");

/// The bar that is on the terminal.
static SHOWN: Mutex<Option<WeakProgressBar>> = Mutex::new(None);

/// A meter of work that is done bit by bit.
pub struct Meter {
    what: String,
    bar: Option<ProgressBar>,
    total: Option<u64>,
    unit: &'static str,
    begun: Instant,
    said: Cell<Instant>,
}

impl Meter {
    /// Of bytes.
    pub fn bytes(what: &str, total: Option<u64>) -> Meter {
        Meter::new(
            what,
            total,
            "bytes",
            "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta} left",
            "{msg} {spinner} {bytes} {bytes_per_sec}",
        )
    }

    /// Of operations.
    pub fn operations(what: &str, total: Option<u64>) -> Meter {
        Meter::new(
            what,
            total,
            "operations",
            "{msg} {wide_bar} {human_pos}/{human_len} {per_sec} {eta} left",
            "{msg} {spinner} {human_pos} {per_sec}",
        )
    }

    /// Of identities.
    pub fn identities(what: &str, total: u64) -> Meter {
        Meter::new(
            what,
            Some(total),
            "identities",
            "{msg} {wide_bar} {human_pos}/{human_len} {per_sec} {eta} left",
            "",
        )
    }

    fn new(
        what: &str,
        total: Option<u64>,
        unit: &'static str,
        bounded: &'static str,
        unbounded: &'static str,
    ) -> Meter {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = match total {
                Some(total) => ProgressBar::new(total),
                None => ProgressBar::new_spinner(),
            };
            let template = if total.is_some() { bounded } else { unbounded };
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.set_message(what.to_owned());
            bar.enable_steady_tick(Duration::from_millis(250));
            *SHOWN.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar.downgrade());
            bar
        });
        let now = Instant::now();
        Meter { what: what.to_owned(), bar, total, unit, begun: now, said: Cell::new(now) }
    }

    /// So much is done in all.
    pub fn set(&self, done: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            return;
        }
        if self.said.get().elapsed() < LINE_EVERY {
            return;
        }
        self.said.set(Instant::now());
        self.log(done);
    }

    fn log(&self, done: u64) {
        let rate = done as f64 / self.begun.elapsed().as_secs_f64();
        let left = self.total.map(|total| total.saturating_sub(done) as f64 / rate.max(1e-9));
        tracing::info!(
            done,
            total = self.total,
            rate = rate.round(),
            seconds_left = left.map(f64::round),
            "{} ({})",
            self.what,
            self.unit
        );
    }

    /// Prints something above the bar.
    pub fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    /// Takes the bar away.
    pub fn finish(self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Standard error, for what is logged: above the bar while there is one.
pub struct AboveBar;

impl Write for AboveBar {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let shown = SHOWN.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match shown.and_then(|bar| bar.upgrade()) {
            Some(bar) => bar.suspend(|| io::stderr().write(text)),
            None => io::stderr().write(text),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::Arc;

    use tracing_subscriber::EnvFilter;

    use super::*;

    #[test]
    fn where_there_is_no_terminal_a_line_says_how_far_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let logging = tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::new(LEVELS))
            .with_writer(Arc::new(File::create(&log).unwrap()))
            .with_ansi(false)
            .with_target(false)
            .finish();
        tracing::subscriber::with_default(logging, || {
            let begun = Instant::now().checked_sub(2 * LINE_EVERY).unwrap();
            let what = "importing dump.jsonl".to_owned();
            let (total, said) = (Some(80), Cell::new(begun));
            let meter = Meter { what, bar: None, total, unit: "bytes", begun, said };
            meter.set(40);
            meter.set(41);
        });
        let said = std::fs::read_to_string(&log).unwrap();
        assert_eq!(said.lines().count(), 1, "{said}");
        let line =
            " INFO importing dump.jsonl (bytes) done=40 total=80 rate=2.0 seconds_left=20.0\n";
        assert!(said.ends_with(line), "{said}");
    }
}
