//! Who asks the service all the time, remembers what was shown, and finds what must not be.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use futures::StreamExt;
use plc_testkit::fake_upstream::LogEntry;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;
use serde_json::Value;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message;

use super::plan::Plan;
use crate::healing::Row;

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is true.
pub struct Truth {
    /// What is held in the end, by number.
    pub rows: BTreeMap<i64, Row>,
    /// Of each identity what is accepted, in the order of its numbers.
    identities: BTreeMap<String, Vec<Row>>,
    /// All that is stated, by identity and CID.
    stated: BTreeSet<(String, String)>,
    /// All operations that are stated, by identity and signature.
    signed: BTreeSet<(String, String)>,
}

impl Truth {
    /// Of an upstream that had these logs one after the other, with what each of them comes to. What the last one lacks
    /// is held all the same.
    pub fn of(logs: &[(Vec<LogEntry>, BTreeMap<i64, Row>)]) -> Truth {
        let mut identities = BTreeMap::<String, Vec<Row>>::new();
        let (mut stated, mut signed) = (BTreeSet::new(), BTreeSet::new());
        for (log, rows) in logs {
            let mut here = BTreeMap::<String, Vec<Row>>::new();
            for row in rows.values() {
                here.entry(row.did.clone()).or_default().push(row.clone());
            }
            for (did, history) in here {
                let known = identities.entry(did).or_default();
                if history.len() > known.len() {
                    *known = history;
                }
            }
            stated.extend(log.iter().map(|entry| (entry.did.clone(), entry.cid.clone())));
            signed.extend(log.iter().map(|entry| (entry.did.clone(), signature(&entry.operation))));
        }
        let rows = logs.last().map(|(_, rows)| rows.clone()).unwrap_or_default();
        Truth { rows, identities, stated, signed }
    }

    /// Whether this is held at last. What the upstream has lost is held with it: under its old number as long as that is
    /// above all others, and nullifying what it has nullified, as far as it had come here.
    pub fn is(&self, held: &BTreeMap<i64, Row>) -> bool {
        let end = self.rows.last_key_value().map_or(0, |(last, _)| last + 1);
        let is_old = |row: &Row| {
            let before = |old: &Row| {
                Row { nullified_by: row.nullified_by.and(old.nullified_by), ..old.clone() } == *row
            };
            self.identities.get(&row.did).is_some_and(|rows| rows.iter().any(before))
        };
        let is_same = |((number, row), (true_number, true_row)): ((&i64, &Row), (&i64, &Row))| {
            number == true_number && (row == true_row || row.cid == true_row.cid && is_old(row))
        };
        held.range(..end).count() == self.rows.len()
            && held.range(..end).zip(&self.rows).all(is_same)
            && held.range(end..).all(|(_, row)| is_old(row))
    }

    /// The number after this one.
    fn next_number(&self, after: i64) -> Option<i64> {
        self.rows.range(after + 1..).next().map(|(number, _)| *number)
    }

    /// The number of operations after which an identity looks like this; none when it never does. What is shown are
    /// CIDs, and whether they are nullified.
    fn moment(&self, did: &str, shown: &BTreeSet<(String, bool)>) -> Option<usize> {
        let history = &self.identities[did];
        let known = history.get(..shown.len())?;
        let nullified = |row: &Row| {
            let by = |nullifier: &Row| {
                Some(nullifier.created_at) == row.nullified_by && nullifier.cid != row.cid
            };
            known.iter().any(by)
        };
        let looks: BTreeSet<(String, bool)> =
            known.iter().map(|row| (row.cid.clone(), nullified(row))).collect();
        (&looks == shown).then_some(shown.len())
    }
}

fn signature(operation: &str) -> String {
    let operation: Value = serde_json::from_str(operation).unwrap_or_default();
    operation["sig"].as_str().unwrap_or_default().to_owned()
}

/// What was shown so far.
#[derive(Default)]
struct Shown {
    /// Of each identity the CIDs.
    cids: BTreeMap<String, BTreeSet<String>>,
    asked: usize,
    answered: usize,
    streamed: usize,
    wrong: Vec<String>,
}

/// Asks, and remembers.
pub struct Witness<'a> {
    truth: &'a Truth,
    /// Whether what the upstream tells is true at all times: then what is shown is what was true at some time.
    told_truly: bool,
    /// Whether true operations may be refused by wrong times.
    misdated: bool,
    /// Whether numbers stand for the same operations at all times.
    numbered: bool,
    /// Whether somebody else is asked for what is not here: more may be shown for a while than is here.
    reads_through: bool,
    /// Whether little happens.
    pub quiet: Cell<bool>,
    shown: RefCell<Shown>,
}

impl Witness<'_> {
    pub fn new<'a>(plan: &Plan, truth: &'a Truth) -> Witness<'a> {
        Witness {
            truth,
            told_truly: plan.is_told_truly(),
            misdated: plan.is_misdated(),
            numbered: plan.is_told_truly() && plan.restored.is_none(),
            reads_through: plan.settings.read_through,
            quiet: Cell::new(false),
            shown: RefCell::default(),
        }
    }

    /// How often it has asked, how often it was answered with something, and how many messages the stream has sent.
    pub fn figures(&self) -> String {
        let Shown { asked, answered, streamed, .. } = &*self.shown.borrow();
        format!("{answered} of {asked} questions answered, {streamed} messages")
    }

    /// What was shown and must not have been, and what was lost.
    pub fn wrong(&self) -> Vec<String> {
        self.shown.borrow().wrong.clone()
    }

    /// All that was shown, by identity, as far as it is true.
    pub fn shown(&self) -> BTreeMap<String, BTreeSet<String>> {
        self.shown.borrow().cids.clone()
    }

    /// Asks for as long as it is polled.
    pub async fn ask(&self, seed: u64, addresses: impl Fn() -> Vec<SocketAddr>) -> ! {
        let random = &mut ChaCha20Rng::seed_from_u64(seed);
        let client = reqwest::Client::builder().timeout(PATIENCE).build().unwrap();
        let dids: Vec<&String> = self.truth.identities.keys().collect();
        loop {
            let longest = if self.quiet.get() { 400.0 } else { 10.0 };
            sleep(Duration::from_secs_f64(random.random_range(0.1..longest))).await;
            let addresses = addresses();
            let Some(address) = addresses.choose(random) else { continue };
            let did = *dids.choose(random).unwrap();
            let what = ["/log/audit", "/log/audit", "/log/last", "", "export"].choose(random);
            let path = match *what.unwrap() {
                "export" => format!("/export?after={}", random.random_range(0..100)),
                what => format!("/{did}{what}"),
            };
            self.ask_for(&client, *address, did, &path).await;
        }
    }

    async fn ask_for(&self, client: &reqwest::Client, address: SocketAddr, did: &str, path: &str) {
        self.shown.borrow_mut().asked += 1;
        // What the stream shows while an answer is on its way is not in it.
        let before = self.shown.borrow().cids.get(did).cloned().unwrap_or_default();
        let answer = async {
            let answer = client.get(format!("http://{address}{path}")).send().await?;
            let status = answer.status().as_u16();
            Ok::<_, reqwest::Error>((status, answer.text().await?))
        };
        // A service that is gone answers nothing.
        let Ok((status, body)) = answer.await else { return };
        if let Err(wrong) = self.look_at((did, &before), path, status, &body) {
            let wrong = format!("{path} is answered {status}, {wrong}: {body}");
            self.shown.borrow_mut().wrong.push(wrong);
        }
    }

    /// Looks at an answer about an identity of which something was shown before it was asked for.
    fn look_at(
        &self,
        (did, before): (&str, &BTreeSet<String>),
        path: &str,
        status: u16,
        body: &str,
    ) -> Result<(), &'static str> {
        match status {
            200 => self.shown.borrow_mut().answered += 1,
            503 => return Ok(()),
            // Something of it was refused, and nothing accepted.
            502 if self.told_truly => return Err("and all is true"),
            404 | 502 if path.starts_with("/did") => {
                let known = !before.is_empty();
                let unknown = status == 502 || body.contains("not registered");
                let gone = unknown && known && !self.misdated && !self.reads_through;
                return if gone { Err("and was there before") } else { Ok(()) };
            }
            _ => return Err("which it never may be"),
        }
        if path.ends_with("/log/audit") {
            return self.look_at_log((did, before), body);
        }
        if path.starts_with("/export") {
            return self.look_at_export(body);
        }
        let is_stated = if path.ends_with("/log/last") {
            self.truth.signed.contains(&(did.to_owned(), signature(body)))
        } else {
            let document: Value = serde_json::from_str(body).unwrap_or_default();
            document["id"] == did
        };
        if is_stated { Ok(()) } else { Err("which was never stated") }
    }

    fn look_at_log(
        &self,
        (did, before): (&str, &BTreeSet<String>),
        body: &str,
    ) -> Result<(), &'static str> {
        let log: Vec<Value> = serde_json::from_str(body).map_err(|_| "which is no JSON")?;
        let text = |entry: &Value, name: &str| entry[name].as_str().unwrap_or_default().to_owned();
        let looks: BTreeSet<(String, bool)> = log
            .iter()
            .map(|entry| (text(entry, "cid"), entry["nullified"].as_bool().unwrap_or_default()))
            .collect();
        let cids: BTreeSet<String> = looks.iter().map(|(cid, _)| cid.clone()).collect();
        let stated = &self.truth.stated;
        if !cids.iter().all(|cid| stated.contains(&(did.to_owned(), cid.clone()))) {
            return Err("which was never stated");
        }
        if self.told_truly && self.truth.moment(did, &looks).is_none() {
            return Err("which was never true");
        }
        let mut shown = self.shown.borrow_mut();
        let now = shown.cids.entry(did.to_owned()).or_default();
        let is_true = |cid: &&String| self.truth.identities[did].iter().any(|row| row.cid == **cid);
        let lost = before.iter().any(|cid| !cids.contains(cid));
        now.extend(cids.iter().filter(is_true).cloned());
        if lost && !self.misdated && !self.reads_through {
            Err("and has lost what it had shown")
        } else {
            Ok(())
        }
    }

    /// Follows the stream for as long as it is polled.
    pub async fn listen(&self, seed: u64, addresses: impl Fn() -> Vec<SocketAddr>) -> ! {
        let random = &mut ChaCha20Rng::seed_from_u64(seed ^ 0x1157);
        let client = reqwest::Client::builder().timeout(PATIENCE).build().unwrap();
        let mut cursor = 0;
        loop {
            sleep(Duration::from_secs_f64(random.random_range(0.1..5.0))).await;
            let addresses = addresses();
            let Some(address) = addresses.choose(random) else { continue };
            let url = format!("ws://{address}/export/stream?cursor={cursor}");
            let connecting = timeout(PATIENCE, tokio_tungstenite::connect_async(url)).await;
            let Ok(Ok((mut stream, _))) = connecting else { continue };
            while let Some(Ok(message)) = stream.next().await {
                let looked = match message {
                    Message::Text(text) => match self.look_at_message(&text, &mut cursor) {
                        Ok(did) => {
                            // Who was told finds it at once: it is committed.
                            let path = format!("/{did}/log/audit");
                            self.ask_for(&client, *address, &did, &path).await;
                            Ok(())
                        }
                        Err(wrong) => Err(wrong),
                    },
                    Message::Close(Some(close))
                        if self.numbered && close.reason == "FutureCursor" =>
                    {
                        Err(format!("the stream does not know {cursor}, which it has sent"))
                    }
                    _ => Ok(()),
                };
                if let Err(wrong) = looked {
                    self.shown.borrow_mut().wrong.push(wrong);
                }
            }
        }
    }

    /// The identity of a message.
    fn look_at_message(&self, text: &str, cursor: &mut i64) -> Result<String, String> {
        let wrong = |what: &str| Err(format!("after {cursor} the stream sends {text}, {what}"));
        let Ok(message) = serde_json::from_str::<Value>(text) else {
            return wrong("which is no JSON");
        };
        let text_of = |name: &str| message[name].as_str().unwrap_or_default().to_owned();
        if !self.truth.stated.contains(&(text_of("did"), text_of("cid"))) {
            return wrong("which was never stated");
        }
        if self.told_truly {
            let mut shown = self.shown.borrow_mut();
            shown.cids.entry(text_of("did")).or_default().insert(text_of("cid"));
        }
        let Some(number) = message["seq"].as_i64() else { return wrong("which has no number") };
        if self.numbered && self.truth.next_number(*cursor) != Some(number) {
            return wrong("which does not come next");
        }
        self.shown.borrow_mut().streamed += 1;
        *cursor = number.max(*cursor);
        Ok(text_of("did"))
    }

    fn look_at_export(&self, body: &str) -> Result<(), &'static str> {
        let mut last = 0;
        for line in body.lines() {
            let line: Value = serde_json::from_str(line).map_err(|_| "which is no JSON")?;
            let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
            if !self.truth.stated.contains(&(text("did"), text("cid"))) {
                return Err("which was never stated");
            }
            let number = line["seq"].as_i64().ok_or("which has no number")?;
            if number <= last {
                return Err("which is not in order");
            }
            last = number;
        }
        Ok(())
    }
}
