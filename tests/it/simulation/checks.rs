//! What has to be in a plan when nothing is wrong any more.

use std::time::Duration;

use did_plc::signature::PlainVerifier;
use plc_replica::audit::fsck;
use plc_replica::store::{DivergenceKind, Store};
use tokio::time::{Instant, sleep};

use super::database::patiently;
use super::plan::Blow;
use super::service::{REQUESTS_PER_MINUTE, Service};
use super::witness::{Truth, Witness};
use super::world::World;
use crate::healing::{ALL, by_number};

/// Until when everything is whole after the last fault: what was read first is read again after an hour.
const HEALED: Duration = Duration::from_secs(3 * 60 * 60);
/// How often it is looked whether it is.
const LOOK: Duration = Duration::from_secs(120);
/// Requests a minute of a process when nothing is wrong: whether the upstream has the same log, and each page once more.
const QUIET: f64 = 3.0;
/// The same with the comparison of identities.
const QUIET_WITH_AUDIT: f64 = QUIET + 20.0;

/// How long what is whole is watched until all of it was read twice.
const READ_TWICE: Duration = Duration::from_secs(75 * 60);
/// Wrong answers that are quoted.
const QUOTED: usize = 5;

impl World<'_> {
    /// Waits until all is well again, and looks at what has come of the plan.
    pub async fn check(&self, truth: &Truth, witness: &Witness<'_>) -> Result<(), String> {
        let quiet_since = Instant::now();
        self.heals(truth).await?;
        if self.plan.reads_twice {
            sleep(READ_TWICE).await;
            self.heals(truth).await?;
            self.misses_nothing().await?;
        }
        let wrong = witness.wrong();
        if !wrong.is_empty() {
            let quoted = wrong[..wrong.len().min(QUOTED)].join("\n");
            return Err(format!("{} answers are wrong:\n{quoted}", wrong.len()));
        }
        self.has_all_that_was_shown(witness).await?;
        self.asked_within_bounds(quiet_since).await?;
        for service in self.processes.take().into_iter().flatten() {
            if service.has_ended() {
                return Err(format!("a process has ended by itself: {}", service.why().await));
            }
            service.end().await;
        }
        Ok(())
    }

    /// Waits until what is held is what is true.
    async fn heals(&self, truth: &Truth) -> Result<(), String> {
        let begun = Instant::now();
        let store = self.database.lock().await.look().await;
        loop {
            if self.processes.borrow().iter().flatten().any(Service::has_ended) {
                let ended = self.processes.take().into_iter().flatten().find(Service::has_ended);
                let why = match ended {
                    Some(service) => service.why().await,
                    None => String::new(),
                };
                return Err(format!("a process has ended by itself: {why}"));
            }
            let held = by_number(patiently(async || store.export_by_sequence(0, ALL).await).await);
            if truth.is(&held) {
                return Ok(());
            }
            if begun.elapsed() > HEALED + self.plan.jumps() {
                let missing: Vec<_> = truth
                    .rows
                    .iter()
                    .filter(|(number, row)| held.get(number) != Some(row))
                    .collect();
                let more: Vec<_> = held
                    .iter()
                    .filter(|(number, row)| truth.rows.get(number) != Some(row))
                    .collect();
                return Err(format!(
                    "not whole {HEALED:?} after the last fault: {} of {} are missing or other, {} are too much:\n{:#?}\n{:#?}",
                    missing.len(),
                    truth.rows.len(),
                    more.len(),
                    &missing[..missing.len().min(3)],
                    &more[..more.len().min(3)]
                ));
            }
            sleep(LOOK).await;
        }
    }

    /// Of an upstream that has everything nothing is said to be missing.
    async fn misses_nothing(&self) -> Result<(), String> {
        if self.plan.restored.is_some() {
            return Ok(());
        }
        let store = self.database.lock().await.look().await;
        let kind = DivergenceKind::MissingInExport.name();
        let open = async || store.divergences(None, Some(kind), Some(true), 0, 10).await;
        match &patiently(open).await[..] {
            [] => Ok(()),
            missing => Err(format!("is said to be missing: {missing:#?}")),
        }
    }

    async fn has_all_that_was_shown(&self, witness: &Witness<'_>) -> Result<(), String> {
        let store = self.database.lock().await.look().await;
        for (did, cids) in witness.shown() {
            let history = patiently(async || store.history(&did.parse().unwrap()).await).await;
            for cid in cids {
                if !history.iter().any(|held| held.cid().to_string() == cid) {
                    return Err(format!("{cid} of {did} was shown, and is lost"));
                }
            }
        }
        Ok(())
    }

    /// No minute saw more requests than each process may send in one, and when nothing is wrong any more few are sent.
    async fn asked_within_bounds(&self, quiet_since: Instant) -> Result<(), String> {
        let asked = self.upstream.lock().await.fake.asked();
        let crashes = self
            .plan
            .blows
            .iter()
            .filter(|(_, blow)| matches!(blow, Blow::Crash { .. } | Blow::Restart { .. }))
            .count();
        let most = self.plan.processes * REQUESTS_PER_MINUTE as usize + 1 + crashes;
        for (at, first) in asked.iter().enumerate() {
            let within = asked[at..]
                .iter()
                .take_while(|it| it.at - first.at < Duration::from_secs(60))
                .count();
            if within > most {
                return Err(format!("{within} requests within a minute"));
            }
        }
        let minutes = quiet_since.elapsed().as_secs_f64() / 60.0;
        let a_minute = if self.plan.settings.audit { QUIET_WITH_AUDIT } else { QUIET };
        let most = 100.0 + minutes * a_minute * self.plan.processes as f64;
        let quiet = asked.iter().filter(|asked| asked.at >= quiet_since).count();
        match quiet as f64 > most {
            true => Err(format!(
                "{quiet} requests within {minutes:.0} minutes in which nothing is wrong"
            )),
            false => Ok(()),
        }
    }
}

/// What is stored is sound by the own check of the program.
pub async fn is_sound(url: &str) {
    let store = Store::open_existing(url).await.unwrap();
    let mut damages = Vec::new();
    fsck::check(&store, &PlainVerifier, |damage| damages.push(damage), |_| ()).await.unwrap();
    assert_eq!(damages, []);
}
