//! What was seen while something went wrong, and what is to be said against it.

use std::time::Duration;

use super::watch::Lacking;
use crate::clients::lookups::Window;
use crate::report::{number, quantile};

/// A time, with what was seen in it.
pub struct Phase {
    pub name: &'static str,
    pub took: Duration,
    /// How long it took until all was as before, from when it was mended.
    pub recovered: Duration,
    /// Lookups; their latencies rise.
    pub window: Window,
    pub lacking: Lacking,
    /// How often clients of the stream had to come back.
    pub returned: u64,
    /// Operations that one of them did not get, got twice, or got in another order.
    pub disordered: u64,
}

/// What may be seen.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub without_following: Duration,
    /// How long a stream may lack something; none where its server may be away.
    pub stream_lacks: Option<Duration>,
    /// Of the slowest lookup, in milliseconds.
    pub slowest: f64,
    /// Whether clients of the stream may have to come back.
    pub may_return: bool,
}

/// The head of the table.
pub fn print_head() {
    println!(
        "\n| what | seconds | lookups | failed | put off | older than stated | p50 ms | p99 ms | slowest ms | seconds \
         without following | seconds that a stream lacked something | streams that came back | operations lost, \
         doubled or out of order | as before after, s |"
    );
    println!("| --- {}|", "| ---: ".repeat(13));
}

impl Phase {
    fn milliseconds(&self, share: f64) -> f64 {
        f64::from(quantile(&self.window.microseconds, share)) / 1e3
    }

    /// Its row of the table.
    pub fn print(&self) {
        println!(
            "| {} | {:.1} | {} | {} | {} | {} | {} | {} | {} | {:.2} | {:.2} | {} | {} | {:.1} |",
            self.name,
            self.took.as_secs_f64(),
            self.window.asked(),
            self.window.failed,
            self.window.put_off,
            self.window.older,
            number(self.milliseconds(0.5)),
            number(self.milliseconds(0.99)),
            number(self.milliseconds(1.0)),
            self.lacking.all.as_secs_f64(),
            self.lacking.last.as_secs_f64(),
            self.returned,
            self.disordered,
            self.recovered.as_secs_f64(),
        );
    }

    /// What is beyond the bounds.
    pub fn complaints(&self, bounds: Bounds) -> Vec<String> {
        let mut complaints = Vec::new();
        let mut complain = |is_so: bool, what: String| {
            if is_so {
                complaints.push(format!("{}: {what}", self.name));
            }
        };
        let Window { put_off, older, failed, .. } = self.window;
        let (slowest, without) = (self.milliseconds(1.0), self.lacking.all);
        complain(self.window.asked() == 0, "nothing was asked".to_owned());
        complain(failed > 0, format!("{failed} lookups failed"));
        complain(put_off > 0, format!("{put_off} lookups were put off"));
        complain(older > 0, format!("{older} answers were older than they said"));
        complain(
            slowest > bounds.slowest,
            format!("a lookup took {} ms, more than {}", number(slowest), number(bounds.slowest)),
        );
        complain(
            without > bounds.without_following,
            format!(
                "nothing was followed for {without:.1?}, longer than {:?}",
                bounds.without_following
            ),
        );
        complain(
            bounds.stream_lacks.is_some_and(|bound| self.lacking.last > bound),
            format!("a stream lacked something for {:.1?}", self.lacking.last),
        );
        complain(
            self.returned > 0 && !bounds.may_return,
            format!("{} streams were cut", self.returned),
        );
        complain(
            self.disordered > 0,
            format!("{} operations were lost, doubled or out of order", self.disordered),
        );
        complaints
    }
}
