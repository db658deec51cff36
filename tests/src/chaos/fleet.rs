//! Worker processes that are killed and started again.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use super::Plan;
use crate::binary::binary;
use crate::provider::Provider;

/// Longer than the drain of a worker without jobs takes.
const STOP: Duration = Duration::from_secs(40);

/// A worker's exit code when it cannot reach its broker.
const BROKER_LOST: i32 = 7;

/// Between two starts of a worker that leaves by itself: hundreds of starts a minute would be the storm's own load.
const RESTART: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Fleet {
    command: Recipe,
    workers: Vec<Worker>,
    started: u64,
}

#[derive(Debug)]
struct Worker {
    child: Child,
    generation: u64,
    since: Instant,
}

/// What every worker is started with.
#[derive(Debug)]
struct Recipe {
    /// Where the broker is.
    places: Vec<(&'static str, String)>,
    home: PathBuf,
    plan: Plan,
    base_url: String,
}

impl Fleet {
    pub(super) fn start(
        plan: &Plan,
        places: Vec<(&'static str, String)>,
        home: &Path,
        provider: &Provider,
    ) -> anyhow::Result<Self> {
        let base_url = provider.base_url(0);
        let command = Recipe { places, home: home.to_owned(), plan: *plan, base_url };
        let mut fleet = Self { command, workers: Vec::new(), started: 0 };
        for _ in 0..plan.workers {
            let worker = fleet.spawn()?;
            fleet.workers.push(worker);
        }
        Ok(fleet)
    }

    /// Tells a worker's present process from the ones before it.
    pub(super) fn generation(&self, worker: usize) -> u64 {
        self.workers[worker].generation
    }

    /// Starts those again that came while the broker was down and could not connect, as a supervisor does. Nobody may
    /// leave by itself for any other reason.
    pub(super) fn revive(&mut self) -> anyhow::Result<()> {
        for at in 0..self.workers.len() {
            let Some(status) = self.workers[at].child.try_wait()? else { continue };
            let excused = self.command.plan.troubles.count() > 0 && status.code() == Some(BROKER_LOST);
            ensure!(excused, "a worker left by itself with {status}: {}", self.tails());
            if self.workers[at].since.elapsed() > RESTART {
                self.workers[at] = self.spawn()?;
            }
        }
        Ok(())
    }

    pub(super) async fn kill_and_restart(&mut self, worker: usize) -> anyhow::Result<()> {
        // It may have left by itself already.
        if self.workers[worker].child.try_wait()?.is_none() {
            self.workers[worker].child.kill().await?;
        }
        self.workers[worker] = self.spawn()?;
        Ok(())
    }

    /// Asks every worker to leave; each must, with code 0.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        for worker in &self.workers {
            let id = worker.child.id().and_then(|id| Pid::from_raw(id.cast_signed())).context("a worker has gone")?;
            kill_process(id, Signal::TERM)?;
        }
        for worker in &mut self.workers {
            let status = tokio::time::timeout(STOP, worker.child.wait()).await.context("a worker does not leave")??;
            ensure!(status.success(), "a worker left with {status}");
        }
        Ok(())
    }

    /// The last lines of the workers' logs.
    pub(super) fn tails(&self) -> String {
        let tail = |worker: &Worker| {
            let log = std::fs::read_to_string(self.command.log(worker.generation)).unwrap_or_default();
            let lines: Vec<_> = log.lines().rev().take(5).map(str::to_owned).collect();
            format!("\nworker {}:\n{}", worker.generation, lines.join("\n"))
        };
        self.workers.iter().map(tail).collect()
    }

    fn spawn(&mut self) -> anyhow::Result<Worker> {
        self.started += 1;
        let generation = self.started;
        Ok(Worker { child: self.command.spawn(generation)?, generation, since: Instant::now() })
    }
}

impl Recipe {
    fn spawn(&self, generation: u64) -> anyhow::Result<Child> {
        let log = File::create(self.log(generation))?;
        let base_url = self.base_url.replace("/0/", &format!("/{generation}/"));
        let child = Command::new(binary("promptq-worker"))
            .env_clear()
            .env("HOME", &self.home)
            .envs(self.places.iter().map(|(name, value)| (*name, value)))
            .env("PROMPTQ__WORKER__CONCURRENCY", self.plan.slots.to_string())
            .env("PROMPTQ__WORKER__LEASE", format!("{}ms", self.plan.lease.as_millis()))
            .env("PROMPTQ__WORKER__HEARTBEAT", format!("{}ms", self.plan.lease.as_millis() / 3))
            .env("PROMPTQ__WORKER__MAX_DEATHS", "50")
            .env("OPENAI_BASE_URL", base_url)
            .env("OPENAI_API_KEY", "not-a-key")
            .current_dir(&self.home)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        Ok(child)
    }

    fn log(&self, generation: u64) -> PathBuf {
        self.home.join(format!("worker-{generation}.log"))
    }
}
