//! promptq-worker: takes jobs from a queue and runs them. [`run`] is what `main`, `promptq run` and the tests call.
//!
//! Read in this order: `intake` (the loop), `execute` (one job), `route` and `call` (where it goes), `judge` (what an outcome
//! means).

mod admission;
pub mod asked;
mod call;
mod claim;
pub mod cli;
pub mod configured;
mod cost;
mod drain;
mod echo;
mod execute;
pub mod healthcheck;
mod heartbeat;
mod intake;
pub mod judge;
mod meter;
pub mod money;
mod output;
pub mod protect;
mod provider;
mod repair;
mod reuse;
pub mod rollup;
mod route;
pub mod runner;
pub mod settings;
pub mod size;
pub mod status;
pub mod stop;
#[cfg(test)]
mod tests;
pub mod tier;
mod traced;
mod upkeep;
mod verdict;

use std::sync::Arc;

use promptq_common::broker::Broker;
use promptq_common::config::ConfigErrors;
use promptq_common::error::{Error, Kind};
use promptq_common::store::Store;
use tokio::sync::watch;

use intake::Intake;
use runner::Runners;
use settings::Settings;
use status::{Board, Finished};
use stop::Stop;

/// What a worker is made of.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Where jobs come from and records go.
    pub broker: Broker,
    /// Where large answers go; without one they stay in the record, up to `inline_max`.
    pub store: Option<Store>,
    /// What runs jobs.
    pub runners: Arc<Runners>,
    /// Names, numbers and places.
    pub settings: Settings,
    /// Where it shows what it does.
    pub board: Board,
}

/// How a worker left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// What it did.
    pub finished: Finished,
    /// Jobs whose run was cut when the drain time was over, or at once when told so; others run them again.
    pub handed_back: u64,
    /// Why it left.
    pub reason: StopReason,
}

/// Why a worker left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// It was told to, and everything it ran has finished.
    Signal,
    /// Nothing was there to run for as long as it was told to wait; see [`settings::Settings::exit_when_idle`].
    Idle,
    /// The same, or nothing more was ready, but jobs are left that wait for money which only a person, or another day, brings.
    Broke,
    /// It ran as many jobs as it was told to.
    MaxJobs,
    /// Nothing more was ready.
    Once,
    /// The broker was out of reach for longer than `give_up`.
    BackendLost,
    /// Its user may not take jobs: the first time that it asked it was refused.
    Refused,
    /// It was told to leave, and the drain time was over before all jobs had finished.
    DeadlinePassed,
    /// It was told to leave at once.
    Now,
}

impl Drained {
    /// The process's exit code: 0 drained, 2 refused, 7 broker lost, 9 what is left waits for money, 124 drain time over (or told to leave at once) with jobs cut.
    pub fn exit_code(&self) -> u8 {
        match self.reason {
            StopReason::BackendLost => 7,
            StopReason::Refused => 2,
            StopReason::Broke => 9,
            StopReason::DeadlinePassed | StopReason::Now if self.handed_back > 0 => 124,
            StopReason::Signal
            | StopReason::Idle
            | StopReason::MaxJobs
            | StopReason::Once
            | StopReason::DeadlinePassed
            | StopReason::Now => 0,
        }
    }
}

/// The exit code for an error of [`run`], or on the way to it: 2 for what a person has to mend, rights and logins included, 7 for a broker out of reach, else 1.
pub fn error_code(error: &anyhow::Error) -> u8 {
    if error.is::<ConfigErrors>() {
        return 2;
    }
    match error.downcast_ref::<Error>().map(Error::kind) {
        Some(Kind::Config | Kind::Denied | Kind::Unsupported) => 2,
        Some(Kind::Unavailable | Kind::TimedOut) => 7,
        _ => 1,
    }
}

/// Takes and runs jobs until told to leave, or until its settings say so. Dropping it drops what runs, and the leases
/// run out.
///
/// # Errors
/// Settings that do not fit, or a broker that refuses the subscription; nothing was run then.
pub async fn run(parts: Parts, stop: Stop) -> anyhow::Result<Drained> {
    parts.settings.check(parts.store.is_some())?;
    let (cut, give_up) = watch::channel(false);
    let (worker, queues) = (parts.settings.worker.clone(), parts.settings.queues.len());
    let mut intake = Intake::new(parts, &stop, give_up);
    let mut consumer = match intake.subscribe(&stop).await {
        Ok(Some(consumer)) => consumer,
        refused => {
            drain::unsubscribed(intake).await;
            refused?;
            return Ok(Drained { finished: Finished::default(), handed_back: 0, reason: StopReason::Signal });
        }
    };
    tracing::info!(%worker, queues, "taking jobs");
    let reason = intake.take_jobs(&mut consumer).await;
    tracing::info!(%worker, ?reason, running = intake.running.len(), "leaving");
    let drained = drain::drain(intake, consumer, reason, (&stop, cut)).await;
    let Finished { succeeded, dead, cancelled, expired, .. } = drained.finished;
    tracing::info!(%worker, succeeded, dead, cancelled, expired, handed_back = drained.handed_back, "left");
    Ok(drained)
}
