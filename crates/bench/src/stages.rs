//! What each stage of taking in an operation costs by itself, on one core, with nothing else
//! going on: measured in this process by calling what the replica calls.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use did_plc::entry::Received;
use did_plc::signature::{Signed, UnsupportedKey, Verifier};
use did_plc::{Cid, Operation, Verdict};
use plc_replica::judge::{self, Candidate};
use plc_replica::store::codec::{Interned, Packer};
use plc_replica::upstream::{ExportClient, Limits};

use crate::child::processor;
use crate::log::Log;
use crate::report::Stage;

/// Operations that are looked at: a few seconds' work, and enough for the keys to be known.
const SAMPLE: u64 = 200_000;
/// Operations that are judged together, as a follower's batch.
const BATCH: usize = 1_000;

/// Measures each stage over the first operations of a log that this upstream serves.
pub fn measure(
    log: &Log,
    operations: u64,
    upstream: SocketAddr,
    verifier: &dyn Verifier,
) -> anyhow::Result<Vec<Stage>> {
    let operations = SAMPLE.min(operations);
    let fetch = fetch(upstream, operations)?;
    let text = Bytes::from(log.lines(0, operations)?);
    let lines: Vec<Bytes> = text
        .split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| text.slice_ref(line))
        .collect();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
    pool.install(|| {
        let begun = Instant::now();
        let received: Vec<Received> =
            lines.iter().filter_map(|line| Received::decode(line).ok()).collect();
        let decode_and_hash = begun.elapsed();
        ensure!(received.len() == lines.len(), "the log has lines that cannot be decoded");

        let begun = Instant::now();
        for operation in &received {
            std::hint::black_box(Cid::of(&operation.signed));
        }
        let hash_signed = begun.elapsed();

        let begun = Instant::now();
        for operation in &received {
            let operation = Operation::read(&operation.signed).context("a malformed operation")?;
            std::hint::black_box(operation.signing_digest());
        }
        let read_and_hash = begun.elapsed();

        let begun = Instant::now();
        for operation in &received {
            std::hint::black_box(Operation::read(&operation.signed).is_ok());
        }
        let hash_unsigned = read_and_hash.saturating_sub(begun.elapsed());

        let begun = Instant::now();
        let mut packer = Packer::new(Interned::default());
        for batch in received.chunks(BATCH) {
            for operation in batch {
                std::hint::black_box(packer.pack(&operation.signed));
            }
            packer.committed();
        }
        let encode = begun.elapsed();

        let timed = Timed { verifier, nanoseconds: AtomicU64::new(0) };
        let begun = Instant::now();
        judge_all(received, &timed)?;
        let judge = begun.elapsed();
        let signature = Duration::from_nanos(timed.nanoseconds.into_inner());

        let each = |name, time: Duration| Stage {
            name,
            microseconds: time.as_secs_f64() * 1e6 / operations as f64,
        };
        Ok(vec![
            each("fetch", fetch),
            each("decode", decode_and_hash.saturating_sub(hash_signed)),
            each("hash", hash_signed + hash_unsigned),
            each("signature", signature),
            each("chain", judge.saturating_sub(signature + hash_unsigned)),
            each("encode", encode),
        ])
    })
}

/// Processor time of fetching the operations page by page.
fn fetch(upstream: SocketAddr, operations: u64) -> anyhow::Result<Duration> {
    let url = format!("http://{upstream}");
    let client = ExportClient::new(&url, 0, "plc-replica bench", Limits::default())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let used = || processor(std::process::id()).context("no /proc");
        let before = used()?;
        let (mut after, last) = (0, i64::try_from(operations)?);
        while after < last {
            let page = client.page(after, 0).await?;
            ensure!(page.next > after, "the upstream has ended at {after}");
            after = page.next;
        }
        Ok(Duration::from_secs_f64(used()? - before))
    })
}

/// Judges the operations batch by batch. Every chain stays in memory.
fn judge_all(received: Vec<Received>, verifier: &dyn Verifier) -> anyhow::Result<()> {
    let mut chains = ahash::AHashMap::new();
    let mut received = received.into_iter().peekable();
    while received.peek().is_some() {
        let batch = received.by_ref().take(BATCH).enumerate();
        let candidates = batch.map(|(line, received)| Candidate { line, received });
        let mut groups = judge::group(candidates);
        for (did, group) in &mut groups {
            group.chain = chains.remove(did).unwrap_or_default();
        }
        let judged = judge::judge(&mut groups, verifier);
        let accepted = |judged: &judge::Judged| matches!(judged.verdict, Verdict::Accepted(_));
        ensure!(judged.iter().all(accepted), "the log has operations that are refused");
        chains.extend(groups.into_iter().map(|(did, group)| (did, group.chain)));
    }
    Ok(())
}

/// Counts the time that another verifier takes.
struct Timed<'a> {
    verifier: &'a dyn Verifier,
    nanoseconds: AtomicU64,
}

impl Verifier for Timed<'_> {
    fn find_signer(&self, keys: &[&str], signed: &Signed) -> Result<Option<usize>, UnsupportedKey> {
        let begun = Instant::now();
        let signer = self.verifier.find_signer(keys, signed);
        self.nanoseconds.fetch_add(begun.elapsed().as_nanos() as u64, Ordering::Relaxed);
        signer
    }
}
