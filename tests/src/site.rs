//! A small installation for fault tests: a Redis, a provider that counts its calls, and worker processes around them.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use promptq_common::broker::{Access, Broker};
use promptq_common::job::{BatchName, Job, JobId, Queue};
use promptq_common::ledger::{Cursor, JobView, Scope};
use promptq_common::record::Record;
use promptq_common::work::Work;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::binary::binary;
use crate::provider::Provider;
use crate::redis::{Options, RedisServer};
use crate::{fixture, steps};

/// How long a fault test waits for what must come, on a machine that runs others.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The installation; everything in it ends with it.
#[derive(Debug)]
pub struct Site {
    /// Its broker.
    pub server: RedisServer,
    /// Who answers its jobs.
    pub provider: Provider,
    folder: TempDir,
}

/// How a worker process is started.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The broker's URL.
    pub url: String,
    /// Jobs at once.
    pub slots: u32,
    /// Its leases' length; a third of it between two beats.
    pub lease: Duration,
    /// More variables.
    pub environment: Vec<(String, String)>,
}

/// A worker process, killed when dropped.
#[derive(Debug)]
pub struct Hand {
    child: Option<Child>,
    log: PathBuf,
}

impl Site {
    /// With calls that take so many milliseconds.
    ///
    /// # Panics
    /// When something of it does not come up.
    pub async fn new(options: Options, latency: std::ops::RangeInclusive<u64>) -> Self {
        let provider = Provider::start(1, latency).await.expect("a provider");
        Self { server: RedisServer::start(options), provider, folder: TempDir::new().expect("a folder") }
    }

    /// The broker, for this process.
    pub async fn broker(&self) -> Broker {
        Broker::connect(&Access::new(&self.server.url()).expect("an address")).await.expect("connects")
    }

    /// A worker of one slot that holds its leases for long.
    pub fn setup(&self) -> Setup {
        Setup { url: self.server.url(), slots: 1, lease: Duration::from_secs(45), environment: Vec::new() }
    }

    /// A path below its folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts a worker process that the provider knows by this number; its name begins with `w` and the number.
    pub fn worker(&self, number: u64, setup: &Setup) -> Hand {
        let log = self.path(&format!("worker-{number}.log"));
        let mut command = Command::new(binary("promptq-worker"));
        command
            .args(["--name", &format!("w{number}")])
            .env_clear()
            .env("HOME", self.folder.path())
            .env("PROMPTQ_BROKER", &setup.url)
            .env("PROMPTQ__WORKER__CONCURRENCY", setup.slots.to_string())
            .env("PROMPTQ__WORKER__LEASE", format!("{}ms", setup.lease.as_millis()))
            .env("PROMPTQ__WORKER__HEARTBEAT", format!("{}ms", setup.lease.as_millis() / 3))
            .env("PROMPTQ__WORKER__MAX_DEATHS", "50")
            .env("OPENAI_BASE_URL", self.provider.base_url(number))
            .env("OPENAI_API_KEY", "not-a-key")
            .envs(setup.environment.iter().cloned())
            .current_dir(self.folder.path());
        Hand::start(command, log)
    }

    /// `promptq` on this broker.
    pub fn promptq(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary("promptq"));
        command.args(arguments).env_clear().env("HOME", self.folder.path()).env("PROMPTQ_BROKER", self.server.url());
        command.current_dir(self.folder.path()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

impl Hand {
    /// Starts one whose log goes into a file.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(mut command: Command, log: PathBuf) -> Self {
        let file = File::create(&log).expect("a log");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        Self { child: Some(command.spawn().expect("a worker starts")), log }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("it runs");
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("a process id")).expect("not 0");
        kill_process(pid, signal).expect("it can be signalled");
    }

    /// Asks it to leave, which it must with code 0.
    pub fn leaves(mut self) {
        self.signal(Signal::TERM);
        let Output { status, .. } = self.child.take().expect("it runs").wait_with_output().expect("it ends");
        assert!(status.success(), "{status}: {}", self.log());
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        self.child.as_mut().expect("it was not asked to leave").try_wait().expect("its state can be read").is_none()
    }

    /// How it ended by itself, if it did; `Some(None)` by a signal.
    pub fn code(&mut self) -> Option<Option<i32>> {
        let status = self.child.as_mut().expect("it was not asked to leave").try_wait().expect("its state can be read");
        status.map(|status| status.code())
    }

    /// What it said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Hand {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// Jobs by number, of the batch `b`; the provider knows them by their numbers.
pub fn jobs(numbers: std::ops::RangeInclusive<u64>) -> Vec<Job> {
    let job = |number| {
        let work = Work::prompt(Some("storm"), format!("job {number}"));
        Job { batch: Some(batch()), row: Some(number), ..Job::new(Queue::standard(), work) }
    };
    numbers.map(job).collect()
}

/// The batch of [`jobs`].
pub fn batch() -> BatchName {
    fixture::batch("b")
}

/// Puts jobs in.
pub async fn put(broker: &Broker, jobs: &[Job]) -> Vec<JobId> {
    steps::put(broker, jobs).await;
    jobs.iter().map(|job| job.id).collect()
}

/// Every record of the standard queue.
pub async fn records(broker: &Broker) -> Vec<Record> {
    let (mut all, mut from) = (Vec::new(), Cursor(0));
    loop {
        let page = broker.ledger().results(&Scope::Queue(Queue::standard()), from, 1_000).await.expect("reads results");
        from = page.next;
        all.extend(page.records.into_iter().map(|(_, record)| record));
        if !page.more {
            return all;
        }
    }
}

/// A job as it is now; it must be known.
pub async fn see(broker: &Broker, id: JobId) -> JobView {
    steps::see(broker, id).await
}

/// Looks until `check` gives something, for at most [`PATIENCE`].
///
/// # Panics
/// When it does not.
pub async fn until<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
