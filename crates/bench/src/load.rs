//! Load: connections that ask for random identities, or for pages of the export, one request
//! after the other, as fast as they are answered.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::http::{Reader, request};
use crate::report::quantile;

/// Ask a server as fast as it answers; prints rate, bytes and latencies as JSON.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    /// Address and port of the server.
    #[arg(long)]
    server: SocketAddr,
    /// What is asked for; `{did}` is replaced by a random DID, `{after}` by a random multiple of
    /// 1,000.
    #[arg(long, default_value = "/{did}")]
    path: String,
    /// File with the DIDs, one a line.
    #[arg(long)]
    dids: Option<PathBuf>,
    /// The highest number for `{after}`.
    #[arg(long, default_value_t = 0)]
    operations: u64,
    /// Connections.
    #[arg(long, default_value_t = 32)]
    connections: u64,
    /// How long.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
}

/// What came of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Outcome {
    /// Requests that were answered, without those that were put off.
    pub requests: u64,
    pub requests_per_second: f64,
    pub megabytes_per_second: f64,
    pub p50_milliseconds: f64,
    pub p99_milliseconds: f64,
    /// Answers to them that were not 200.
    pub others: u64,
    /// Requests that were put off with 503 or 429 and `Retry-After`.
    pub put_off: u64,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let dids = match &args.dids {
        Some(path) => std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?,
        None => String::new(),
    };
    let dids: Arc<[Box<str>]> = dids.lines().map(Box::from).collect();
    ensure!(!args.path.contains("{did}") || !dids.is_empty(), "`{{did}}` needs --dids");
    // One thread: the load takes as little of the machine as it can.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(ask(args, dids))?;
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(ExitCode::SUCCESS)
}

async fn ask(args: &Args, dids: Arc<[Box<str>]>) -> anyhow::Result<Outcome> {
    let mut clients = Vec::new();
    for seed in 0..args.connections {
        // One after the other: no more come at once than the system lets wait.
        let connection = TcpStream::connect(args.server).await?;
        connection.set_nodelay(true)?;
        clients.push(Client {
            server: args.server,
            connection,
            path: args.path.clone(),
            dids: Arc::clone(&dids),
            pages: args.operations / 1_000 + 1,
            random: ChaCha8Rng::seed_from_u64(seed),
        });
    }
    let begun = Instant::now();
    let until = begun + Duration::from_secs_f64(args.seconds);
    let mut connections = JoinSet::new();
    for client in clients {
        connections.spawn(client.run(until));
    }
    let mut latencies = Vec::new();
    let (mut bytes, mut others, mut put_off) = (0, 0, 0);
    while let Some(tally) = connections.join_next().await {
        let tally = tally??;
        latencies.extend(tally.microseconds);
        bytes += tally.bytes;
        others += tally.others;
        put_off += tally.put_off;
    }
    let seconds = begun.elapsed().as_secs_f64();
    let requests_per_second = latencies.len() as f64 / seconds;
    latencies.sort_unstable();
    Ok(Outcome {
        requests: latencies.len() as u64,
        requests_per_second,
        megabytes_per_second: bytes as f64 / 1e6 / seconds,
        p50_milliseconds: f64::from(quantile(&latencies, 0.5)) / 1e3,
        p99_milliseconds: f64::from(quantile(&latencies, 0.99)) / 1e3,
        others,
        put_off,
    })
}

struct Client {
    server: SocketAddr,
    connection: TcpStream,
    path: String,
    dids: Arc<[Box<str>]>,
    pages: u64,
    random: ChaCha8Rng,
}

#[derive(Default)]
struct Tally {
    microseconds: Vec<u32>,
    bytes: u64,
    others: u64,
    put_off: u64,
}

impl Client {
    async fn run(mut self, until: Instant) -> anyhow::Result<Tally> {
        let mut reader = Reader::default();
        let mut tally = Tally::default();
        loop {
            let begun = Instant::now();
            if begun >= until {
                return Ok(tally);
            }
            let request = self.request();
            self.connection.write_all(&request).await?;
            let answer = reader.read(&mut self.connection).await?;
            if answer.puts_off() {
                tally.put_off += 1;
                continue;
            }
            tally.microseconds.push(begun.elapsed().as_micros() as u32);
            tally.bytes += answer.length;
            tally.others += u64::from(answer.status != 200);
        }
    }

    fn request(&mut self) -> Vec<u8> {
        let mut path = self.path.clone();
        if !self.dids.is_empty() {
            let did = self.random.random_range(0..self.dids.len());
            path = path.replace("{did}", &self.dids[did]);
        }
        let after = self.random.random_range(0..self.pages) * 1_000;
        request(self.server, &path.replace("{after}", itoa::Buffer::new().format(after)))
    }
}
