//! A fleet under limits: a broker of its own, a fake provider that counts, real workers, jobs put in by `promptq submit`.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use promptq_common::broker::Broker;
use promptq_common::limits::{PoolView, look};

use super::fake::Fake;
use super::prompts::Prompts;
use crate::process::{Home, Running};
use crate::stage::{Hall, Kind, Stage};

/// Between two looks at whether all workers live.
const LOOK: Duration = Duration::from_millis(200);
/// Of a worker that was killed: soon enough that its jobs are with others within a window.
const LEASE: [&str; 4] = ["--lease", "10s", "--heartbeat", "2s"];

/// The fleet; everything of it ends with it, the workers first.
#[derive(Debug)]
pub(super) struct Fleet {
    workers: BTreeMap<usize, Running>,
    pub(super) fake: Fake,
    pub(super) home: Home,
    pub(super) stage: Stage,
    _hall: Hall,
}

/// How a worker of it is started.
#[derive(Clone, Copy, Debug)]
pub(super) struct Post {
    /// What it takes from, as `--queues` has it.
    pub(super) queues: &'static str,
    /// Jobs at once.
    pub(super) slots: u32,
}

impl Post {
    /// 64 slots for the standard queue.
    pub(super) const STANDARD: Self = Self { queues: "default", slots: 64 };
}

impl Fleet {
    /// Nobody works there yet. `provider` is the fake provider's configuration, `config` promptq's.
    pub(super) async fn set_up(kind: Kind, provider: &str, config: &str) -> anyhow::Result<Self> {
        let hall = Hall::open(kind);
        let stage = hall.stage()?;
        let mut home = stage.home(config)?;
        let fake = Fake::start(&home, provider).await?;
        home.add(fake.environment("someone"));
        // Those that are killed here are killed on purpose.
        home.add([("PROMPTQ__WORKER__MAX_DEATHS".to_owned(), "1000".to_owned())]);
        Ok(Self { workers: BTreeMap::new(), fake, home, stage, _hall: hall })
    }

    /// The same with so many workers, each with 64 slots for the standard queue.
    pub(super) async fn of(workers: usize, kind: Kind, provider: &str, config: &str) -> anyhow::Result<Self> {
        let mut fleet = Self::set_up(kind, provider, config).await?;
        for number in 0..workers {
            fleet.hire(number, Post::STANDARD)?;
        }
        Ok(fleet)
    }

    /// Starts a worker; the provider knows it as `w` and its number.
    pub(super) fn hire(&mut self, number: usize, post: Post) -> anyhow::Result<()> {
        let (name, slots) = (format!("w{number}"), post.slots.to_string());
        let own = ["--name", name.as_str(), "--concurrency", slots.as_str(), "--queues", post.queues];
        let arguments = [&own[..], &LEASE[..]].concat();
        let worker = self.home.start_as(&name, "promptq-worker", &arguments, &self.fake.environment(&name))?;
        self.workers.insert(number, worker);
        Ok(())
    }

    /// Kills a worker with -9.
    pub(super) fn kill(&mut self, number: usize) -> anyhow::Result<()> {
        self.workers.remove(&number).map_or(Ok(()), |worker| worker.stop().map(drop))
    }

    /// Who works.
    pub(super) fn numbers(&self) -> Vec<usize> {
        self.workers.keys().copied().collect()
    }

    /// Puts so many rows in, with more words for `promptq submit`.
    pub(super) async fn submit(&self, prompts: &Prompts<'_>, rows: u64, more: &[&str]) -> anyhow::Result<()> {
        let path = prompts.write(self.home.path(), rows)?;
        self.submit_file(&path, more).await
    }

    /// Puts a file's rows in.
    pub(super) async fn submit_file(&self, path: &Path, more: &[&str]) -> anyhow::Result<()> {
        let path = path.display().to_string();
        let arguments = [&["submit", path.as_str(), "--in", "jsonl", "--quiet"][..], more].concat();
        self.home.start("promptq", &arguments)?.ended().await.context("promptq submit").map(drop)
    }

    /// Lets so much time pass, in which no worker may leave.
    pub(super) async fn pass(&mut self, length: Duration) -> anyhow::Result<()> {
        let began = Instant::now();
        while let Some(rest) = length.checked_sub(began.elapsed()).filter(|rest| !rest.is_zero()) {
            self.all_live()?;
            tokio::time::sleep(rest.min(LOOK)).await;
        }
        self.all_live()
    }

    /// Waits until so many calls have ended.
    pub(super) async fn until_called(&mut self, calls: usize) -> anyhow::Result<()> {
        let began = Instant::now();
        while self.fake.calls()?.len() < calls {
            self.all_live()?;
            let patience = Duration::from_secs(120);
            ensure!(began.elapsed() < patience, "only {} calls within {patience:?}", self.fake.calls()?.len());
            tokio::time::sleep(LOOK / 10).await;
        }
        Ok(())
    }

    fn all_live(&mut self) -> anyhow::Result<()> {
        for (number, worker) in &mut self.workers {
            ensure!(!worker.has_left()?, "worker {number} has left: {}", worker.tail());
        }
        Ok(())
    }

    /// The broker, for this process.
    pub(super) async fn broker(&self) -> anyhow::Result<Broker> {
        Ok(Broker::connect(&self.stage.access()?).await?)
    }

    /// What the fleet itself believes of a limit key.
    pub(super) async fn believed(&self, key: &str) -> anyhow::Result<PoolView> {
        let broker = self.broker().await?;
        look(broker.ledger(), key).await?.with_context(|| format!("nobody has used the limits of {key}"))
    }
}
