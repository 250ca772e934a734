//! The load generator `wrk`, for those who trust it more than ours.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

use crate::load::Outcome;

/// Asks for random DIDs; `$DIDS` is a file of them, `$SUFFIX` what follows in the path.
const SCRIPT: &str = r#"
local dids, suffix = {}, os.getenv("SUFFIX")
for line in io.lines(os.getenv("DIDS")) do dids[#dids + 1] = line end
math.randomseed(1)
request = function()
    return "GET /" .. dids[math.random(#dids)] .. suffix .. " HTTP/1.1\r\nHost: localhost\r\n\r\n"
end
"#;

/// Whether it is installed.
pub fn is_installed() -> bool {
    Command::new("wrk").arg("--version").output().is_ok()
}

/// Asks for random DIDs with this suffix.
pub fn run(
    server: SocketAddr,
    dids: &Path,
    suffix: &str,
    connections: u64,
    seconds: u64,
) -> anyhow::Result<Outcome> {
    let script = dids.with_extension("lua");
    fs::write(&script, SCRIPT)?;
    let output = Command::new("wrk")
        .args(["--threads", "1", "--latency", "--connections", &connections.to_string()])
        .args(["--duration", &format!("{seconds}s"), "--script"])
        .arg(&script)
        .arg(format!("http://{server}"))
        .env("DIDS", dids)
        .env("SUFFIX", suffix)
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "wrk: {}", String::from_utf8_lossy(&output.stderr));
    parse(&text).with_context(|| format!("wrk printed something else:\n{text}"))
}

fn parse(text: &str) -> Option<Outcome> {
    // A share such as `83.99%` elsewhere on a line is not the label `99%`.
    let after = |label: &str| {
        text.lines().find_map(|line| Some(line.trim_start().strip_prefix(label)?.trim().to_owned()))
    };
    let number = |label: &str| after(label)?.parse::<f64>().ok();
    Some(Outcome {
        requests: requests(text)?,
        requests_per_second: number("Requests/sec:")?,
        megabytes_per_second: megabytes(&after("Transfer/sec:")?)?,
        p50_milliseconds: milliseconds(&after("50%")?)?,
        p99_milliseconds: milliseconds(&after("99%")?)?,
        others: number("Non-2xx or 3xx responses:").unwrap_or(0.0) as u64,
        put_off: 0,
    })
}

/// `1000 requests in 1.00s, 2.00MB read`.
fn requests(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.contains(" requests in "))?;
    line.split_whitespace().next()?.parse().ok()
}

/// `1.50MB`, of 1,024² bytes.
fn megabytes(text: &str) -> Option<f64> {
    let units =
        [("GB", (1u64 << 30) as f64), ("MB", f64::from(1 << 20)), ("KB", 1024.0), ("B", 1.0)];
    units
        .iter()
        .find_map(|(unit, bytes)| Some(text.strip_suffix(unit)?.parse::<f64>().ok()? * bytes / 1e6))
}

/// `12.34ms`, `560.00us` or `1.02s`.
fn milliseconds(text: &str) -> Option<f64> {
    let units = [("us", 1e-3), ("ms", 1.0), ("s", 1e3)];
    units
        .iter()
        .find_map(|(unit, factor)| Some(text.strip_suffix(unit)?.parse::<f64>().ok()? * factor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_output_is_understood() {
        let text = "Running 1s test @ http://127.0.0.1:1\n  1 threads and 32 connections\n\
                    \x20 Thread Stats   Avg      Stdev     Max   +/- Stdev\n\
                    \x20   Latency     1.00ms  200.00us  20.00ms   83.99%\n\
                    \x20 Latency Distribution\n     50%  910.00us\n     75%    1.00ms\n\
                    \x20    90%    1.10ms\n     99%    1.50s \n  1000 requests in 1.00s, 2.00MB read\n\
                    \x20 Non-2xx or 3xx responses: 7\nRequests/sec:  31234.50\nTransfer/sec:     46.50MB\n";
        let outcome = parse(text).unwrap();
        assert_eq!((outcome.requests, outcome.requests_per_second), (1_000, 31234.5));
        assert_eq!((outcome.p50_milliseconds, outcome.p99_milliseconds), (0.91, 1500.0));
        assert_eq!(outcome.others, 7);
        assert!((outcome.megabytes_per_second - 48.76).abs() < 0.01);
    }
}
