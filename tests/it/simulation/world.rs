//! What happens in a plan: processes that come and go, and what is wrong with all that is around them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use plc_testkit::fake_upstream::FakeUpstream;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, sleep_until};

use super::database::Database;
use super::link::{Link, LinkTrouble};
use super::plan::{Blow, Growth, Plan, Telling, Trouble};
use super::service::Service;
use super::time::{Time, UnderWay};
use super::upstream::Upstream;

/// How often the database server looks at the time. A lease runs for three times as long.
const SERVER_CLOCK: Duration = Duration::from_secs(5);

/// Everything that a plan plays with.
pub struct World<'a> {
    pub plan: &'a Plan,
    pub time: Time,
    pub database: Mutex<Database>,
    pub upstream: Mutex<Upstream>,
    /// One with the same log, with which nothing is wrong.
    second: Option<FakeUpstream>,
    /// In order of preference.
    upstream_urls: Vec<String>,
    /// By process; none while it is gone.
    pub processes: RefCell<Vec<Option<Service>>>,
    /// The way of each process to the database, and the URL by it.
    ways: Vec<(Option<Link>, String)>,
    /// Spells that last, by their numbers.
    lasting: RefCell<BTreeMap<usize, Trouble>>,
}

/// What happens at a moment.
enum Moment<'a> {
    Begins(usize),
    Ends(usize),
    Blow(&'a Blow),
    Grows(usize),
}

impl World<'_> {
    /// What is there before anything happens: from here on the time is that of the plan.
    pub async fn before<'a>(
        plan: &'a Plan,
        telling: &Telling,
        under_way: &Arc<UnderWay>,
    ) -> World<'a> {
        let database = match plan.on_postgres {
            true => Database::postgres(under_way).await,
            false => None,
        };
        // Without a server these plans are run on SQLite too.
        let mut database = database.unwrap_or_else(Database::sqlite);
        let mut ways = Vec::new();
        for _ in 0..plan.processes {
            ways.push(database.way(under_way).await);
        }
        let time = Time::begin();
        database.tell_time(&time).await;
        let upstream = Upstream::start(&telling.at_start, plan.seed).await;
        let second = match plan.second {
            true => Some(FakeUpstream::start(telling.at_start.clone()).await),
            false => None,
        };
        let upstreams = std::iter::once(&upstream.fake).chain(&second);
        World {
            plan,
            upstream_urls: upstreams.map(FakeUpstream::url).collect(),
            second,
            time,
            database: database.into(),
            upstream: upstream.into(),
            processes: RefCell::new((0..plan.processes).map(|_| None).collect()),
            ways,
            lasting: RefCell::default(),
        }
    }

    /// Where the processes that run are served.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.processes.borrow().iter().flatten().map(Service::address).collect()
    }

    /// Tells the database server the time for as long as this is polled.
    pub async fn tell_time(&self) -> ! {
        loop {
            self.database.lock().await.tell_time(&self.time).await;
            sleep(SERVER_CLOCK).await;
        }
    }

    fn start(&self, process: usize) {
        let service =
            Service::start(&self.plan.settings, &self.ways[process].1, &self.upstream_urls);
        self.processes.borrow_mut()[process] = Some(service);
    }

    /// All that happens in the plan, until nothing is wrong any more and all processes run.
    pub async fn play(&self, telling: &Telling) {
        for process in 0..self.plan.processes {
            self.start(process);
        }
        self.storm(telling).await;
        for process in 0..self.plan.processes {
            if self.processes.borrow()[process].is_none() {
                self.start(process);
            }
        }
        tracing::info!("nothing is wrong any more");
    }

    /// Everything that is to happen, each at its time.
    async fn storm(&self, telling: &Telling) {
        let mut moments: Vec<(Duration, Moment<'_>)> = Vec::new();
        for (number, spell) in self.plan.spells.iter().enumerate() {
            moments.push((spell.begins, Moment::Begins(number)));
            moments.push((spell.ends, Moment::Ends(number)));
        }
        moments.extend(self.plan.blows.iter().map(|(at, blow)| (*at, Moment::Blow(blow))));
        moments
            .extend(telling.growth.iter().enumerate().map(|(n, (at, _))| (*at, Moment::Grows(n))));
        moments.sort_by_key(|(at, _)| *at);
        let begun = Instant::now();
        let mut back: Vec<(Instant, usize)> = Vec::new();
        for (at, moment) in moments {
            let at = begun + at;
            // Those that are to be back by then.
            back.sort();
            while let Some(&(when, process)) = back.first().filter(|(when, _)| *when <= at) {
                back.remove(0);
                sleep_until(when).await;
                self.start(process);
            }
            sleep_until(at).await;
            match moment {
                Moment::Begins(number) => self.begin(number).await,
                Moment::Ends(number) => self.end(number).await,
                Moment::Grows(number) => {
                    let upstream = self.upstream.lock().await;
                    for fake in std::iter::once(&upstream.fake).chain(&self.second) {
                        match &telling.growth[number].1 {
                            Growth::More(entries) => fake.append_all(entries.clone()),
                            Growth::Instead(after, entries) => {
                                tracing::info!("the upstream is restored up to {after}");
                                fake.replace_after(*after, entries.clone());
                                fake.close_streams(1012, "restart");
                            }
                        }
                    }
                }
                Moment::Blow(Blow::Crash { process, turns, back_after }) => {
                    for _ in 0..*turns {
                        tokio::task::yield_now().await;
                    }
                    let crashed = self.processes.borrow_mut()[*process].take();
                    if let Some(service) = crashed {
                        tracing::info!(process, "a crash");
                        service.crash().await;
                        back.push((Instant::now() + *back_after, *process));
                    }
                }
                Moment::Blow(Blow::Restart { process, back_after }) => {
                    let ended = self.processes.borrow_mut()[*process].take();
                    if let Some(service) = ended {
                        tracing::info!(process, "an end in order");
                        service.end().await;
                        back.push((Instant::now() + *back_after, *process));
                    }
                }
                Moment::Blow(blow) => self.strike(blow).await,
            }
        }
        sleep_until(begun + self.plan.storm).await;
    }

    async fn begin(&self, number: usize) {
        let trouble = &self.plan.spells[number].trouble;
        tracing::info!("spell {number} begins: {trouble:?}");
        self.upstream.lock().await.begin(number, trouble).await;
        if matches!(trouble, Trouble::Full) {
            self.database.lock().await.set_full(true).await;
        }
        self.lasting.borrow_mut().insert(number, trouble.clone());
        self.set_link_trouble();
    }

    async fn end(&self, number: usize) {
        tracing::info!("spell {number} ends");
        self.upstream.lock().await.end(number).await;
        self.lasting.borrow_mut().remove(&number);
        let full = self.lasting.borrow().values().any(|trouble| matches!(trouble, Trouble::Full));
        if !full {
            self.database.lock().await.set_full(false).await;
        }
        self.set_link_trouble();
    }

    /// What all that lasts means for the ways to the database.
    fn set_link_trouble(&self) {
        for (process, (link, _)) in self.ways.iter().enumerate() {
            let mut all = LinkTrouble::default();
            for (number, trouble) in self.lasting.borrow().iter() {
                if self.plan.spells[*number].process.is_some_and(|of| of != process) {
                    continue;
                }
                match trouble {
                    Trouble::Unreachable => all.closed = true,
                    Trouble::Stalled => all.stalled = true,
                    Trouble::Slow(delay) => all.delay = Some(*delay),
                    Trouble::Commits(fate) => all.commit = *fate,
                    _ => {}
                }
            }
            if let Some(link) = link {
                link.set_trouble(all);
            }
        }
    }

    async fn strike(&self, blow: &Blow) {
        tracing::info!("{blow:?}");
        match blow {
            Blow::Crash { .. } | Blow::Restart { .. } => {}
            Blow::Lock(lasts) => self.database.lock().await.lock(*lasts),
            Blow::Jump { seconds } => self.time.jump(*seconds),
            Blow::Disconnect => self.links().for_each(Link::cut),
            Blow::Cut(cut) => self.links().for_each(|link| link.cut_at(*cut)),
            Blow::CloseStreams => self.upstream.lock().await.fake.close_streams(1012, "restart"),
        }
    }

    fn links(&self) -> impl Iterator<Item = &Link> {
        self.ways.iter().filter_map(|(link, _)| link.as_ref())
    }
}
