//! The upstream of a plan: what is wrong with it at a time.

use std::collections::BTreeMap;
use std::sync::Mutex;

use plc_testkit::fake_upstream::{FakeUpstream, Fault, LogEntry, Route};
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;

use super::plan::Trouble;
use crate::healing::{self, MISFORTUNES};

/// Every way in which it can fail, and on which route.
pub fn failures() -> Vec<(&'static str, Route, Fault)> {
    let nonsense = || Fault::SayAndClose("{".to_owned(), 1000, "");
    let more = [
        ("pages are not answered", Route::Export, Fault::Silence),
        ("pages end in silence", Route::Export, Fault::SilentBody),
        ("pages are not JSON", Route::Export, Fault::line(0, "{\"did\":")),
        ("streams are not answered", Route::Stream, Fault::Silence),
        ("streams are silent", Route::Stream, Fault::SilentStream),
        ("streams talk nonsense", Route::Stream, nonsense()),
        ("streams are too slow", Route::Stream, Fault::Close(1000, "ConsumerTooSlow")),
        ("identities are not answered", Route::Identity, Fault::Silence),
        ("identities are cut", Route::Identity, Fault::CutBody),
        ("identities fail", Route::Identity, Fault::Status(500, None)),
        ("identities are not found", Route::Identity, Fault::Status(404, None)),
        ("identities are too many", Route::Identity, Fault::Status(429, Some("90".to_owned()))),
    ];
    healing::failures().into_iter().chain(more).collect()
}

/// An upstream, with the faults that it has now.
pub struct Upstream {
    pub fake: FakeUpstream,
    seed: u64,
    /// By the number of the spell.
    faults: BTreeMap<usize, Vec<(Route, Fault)>>,
    away: BTreeMap<usize, ()>,
}

impl Upstream {
    pub async fn start(log: &[LogEntry], seed: u64) -> Upstream {
        let fake = FakeUpstream::start(log.to_vec()).await;
        Upstream { fake, seed, faults: BTreeMap::new(), away: BTreeMap::new() }
    }

    /// Something begins to be wrong with it.
    pub async fn begin(&mut self, spell: usize, trouble: &Trouble) {
        match trouble {
            Trouble::Told(index) => {
                let misfortune = &MISFORTUNES[*index];
                let faults = misfortune.routes.iter().map(|&route| {
                    let seed = self.seed + spell as u64;
                    let random = Mutex::new(ChaCha20Rng::seed_from_u64(seed));
                    let edit = misfortune.edit;
                    (route, Fault::edited(move |lines| edit(lines, &mut random.lock().unwrap())))
                });
                self.faults.insert(spell, faults.collect());
            }
            Trouble::Failing(index) => {
                let (_, route, fault) = failures().swap_remove(*index);
                self.faults.insert(spell, vec![(route, fault)]);
            }
            Trouble::Away => {
                if self.away.is_empty() {
                    self.fake.stop().await;
                }
                self.away.insert(spell, ());
            }
            _ => return,
        }
        self.arm();
    }

    /// That is over.
    pub async fn end(&mut self, spell: usize) {
        self.faults.remove(&spell);
        if self.away.remove(&spell).is_some() && self.away.is_empty() {
            self.fake.start_again().await;
        }
        self.arm();
    }

    fn arm(&self) {
        self.fake.mend();
        // Of a route the first counts: the one that came last.
        for (route, fault) in self.faults.values().rev().flatten() {
            self.fake.fail(*route, usize::MAX, fault.clone());
        }
        // A stream that is open has the faults of when it was opened.
        self.fake.close_streams(1012, "restart");
    }
}
