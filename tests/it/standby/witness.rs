//! Somebody who asks all the time, and holds against each answer what it says of its own age.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use did_plc::Timestamp;
use plc_testkit::telling::Telling;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// Who ask at the same time.
const ASKERS: usize = 3;
/// How long something may be on its way where the follower was held up, and what it hears then has waited for it.
pub const HELD_UP: Duration = Duration::from_secs(3600);
/// Between two questions of each.
const PAUSE: Duration = Duration::from_millis(5);

/// What was seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// Answers of 200.
    pub answers: usize,
    /// What was no such answer.
    pub failed: Vec<String>,
    /// Answers that lack what they say that they have.
    pub too_old: Vec<String>,
    /// How long the slowest took.
    pub slowest: Duration,
}

/// Asks until it is stopped.
pub struct Witness {
    seen: Arc<Mutex<Seen>>,
    stop: CancellationToken,
    asking: JoinSet<()>,
}

impl Witness {
    /// Asks this server for the audit logs of all that were told of. So long something may be on its way to the follower.
    pub fn start(server: &str, told: &Arc<Telling>, on_its_way: Duration) -> Witness {
        let (seen, stop) = (Arc::<Mutex<Seen>>::default(), CancellationToken::new());
        let mut asking = JoinSet::new();
        for asker in 0..ASKERS {
            let (server, told, seen) = (server.to_owned(), Arc::clone(told), Arc::clone(&seen));
            let stop = stop.clone();
            asking.spawn(async move {
                let client = reqwest::Client::new();
                let mut turn = asker;
                while !stop.is_cancelled() {
                    let said = told.all();
                    let did = &said[turn % said.len()].did;
                    ask(&client, &server, did, &told, on_its_way, &seen).await;
                    turn += 7;
                    sleep(PAUSE).await;
                }
            });
        }
        Witness { seen, stop, asking }
    }

    /// What was seen since the last time, once there are so many answers more.
    pub async fn sees(&self, answers: usize) -> Seen {
        let begun = Instant::now();
        loop {
            sleep(Duration::from_millis(20)).await;
            let mut seen = self.seen.lock().unwrap();
            if seen.answers >= answers || begun.elapsed() > Duration::from_secs(60) {
                return std::mem::take(&mut seen);
            }
        }
    }

    /// Nobody was refused an answer, and none was older than it says, since the last time.
    pub async fn is_content(&self, what: &str) {
        let seen = self.sees(50).await;
        println!("{what}: {} answers, the slowest after {:?}", seen.answers, seen.slowest);
        assert!(seen.answers >= 50, "{what}: {seen:?}");
        assert!(seen.failed.is_empty() && seen.too_old.is_empty(), "{what}: {seen:?}");
    }

    /// Stops.
    pub async fn end(mut self) {
        self.stop.cancel();
        while self.asking.join_next().await.is_some() {}
    }
}

async fn ask(
    client: &reqwest::Client,
    server: &str,
    did: &str,
    told: &Telling,
    on_its_way: Duration,
    seen: &Mutex<Seen>,
) {
    let begun = Instant::now();
    let asked = client.get(format!("{server}/{did}/log/audit")).send().await;
    let answer = match asked {
        Ok(answer) => answer,
        Err(error) => return seen.lock().unwrap().failed.push(format!("{error:?}")),
    };
    let (status, headers) = (answer.status(), answer.headers().clone());
    let body = answer.text().await.unwrap_or_default();
    let took = begun.elapsed();
    let mut seen = seen.lock().unwrap();
    seen.slowest = seen.slowest.max(took);
    if status != 200 {
        return seen.failed.push(format!("{status} after {took:?}: {body}"));
    }
    seen.answers += 1;
    let header = |name: &str| headers.get(name).map(|value| value.to_str().unwrap());
    let sequence: i64 = header("plc-sequence").unwrap().parse().unwrap();
    let as_of: Option<Timestamp> = header("plc-as-of").map(|at| at.parse().unwrap());
    let held = serde_json::from_str::<Vec<serde_json::Value>>(&body).unwrap().len();
    let promised = told.promised(did, sequence, as_of, on_its_way);
    if held < promised {
        let what = format!("{did}: {held} operations of {promised} at {sequence}, {as_of:?}");
        seen.too_old.push(what);
    }
}
