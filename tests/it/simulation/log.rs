//! What the service says in a plan, with the time of the plan.

use std::sync::{Arc, Mutex};

use tokio::time::Instant;

use super::time::Time;

/// What was said so far. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Everything.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }

    /// Takes down what is said on this thread, in all detail or not, until what it returns is dropped.
    pub fn take_down(&self, time: &Time, in_detail: bool) -> tracing::subscriber::DefaultGuard {
        let log = self.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(if in_detail {
                "plc_replica=debug,it=debug"
            } else {
                "plc_replica=info,it=info"
            })
            .with_ansi(false)
            .with_timer(Passed(Instant::now() - time.passed()))
            .with_writer(move || log.clone())
            .finish();
        tracing::subscriber::set_default(subscriber)
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Times of log lines are those of the plan.
struct Passed(Instant);

impl tracing_subscriber::fmt::time::FormatTime for Passed {
    fn format_time(&self, w: &mut tracing_subscriber::fmt::format::Writer<'_>) -> std::fmt::Result {
        write!(w, "{:>9.2}", self.0.elapsed().as_secs_f64())
    }
}
