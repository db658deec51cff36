//! What every measurement needs: the release programs, a home of their own, and what a process took from the machine.

mod facade;
mod latency;
pub mod limit;
mod meter;
pub mod on_rabbit;
pub mod on_redis;
/// A private RabbitMQ, as the tests have it.
#[path = "../../tests/src/rabbit/mod.rs"]
pub mod rabbit;
/// A private Redis, as the tests have it.
#[path = "../../tests/src/redis/mod.rs"]
pub mod redis;
pub mod spread;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tempfile::TempDir;

/// A folder that is home, working folder and state folder of what is measured.
#[derive(Debug)]
pub struct Home {
    folder: TempDir,
    broker: String,
}

impl Home {
    /// A fresh one with an embedded broker, with this `promptq.toml`.
    pub fn new(config: &str) -> anyhow::Result<Self> {
        let mut home = Self::at("", config)?;
        home.broker = format!("sqlite://{}/q.db", home.path().display());
        Ok(home)
    }

    /// One whose programs use the broker at this URL.
    pub fn at(broker: &str, config: &str) -> anyhow::Result<Self> {
        let folder = TempDir::new()?;
        std::fs::write(folder.path().join("promptq.toml"), config)?;
        Ok(Self { folder, broker: broker.to_owned() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The broker every program here uses.
    pub fn broker(&self) -> &str {
        &self.broker
    }

    /// Starts one of the programs built beside this one; its log goes to `NAME.log` in the home.
    pub fn start(&self, name: &str, arguments: &[&str]) -> anyhow::Result<Running> {
        let program = program(name)?;
        let log = std::fs::File::create(self.path().join(format!("{name}.log")))?;
        let child = Command::new(program)
            .args(arguments)
            .env_clear()
            .env("HOME", self.path())
            .env("PROMPTQ_BROKER", self.broker())
            .current_dir(self.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        Ok(Running { child, began: Instant::now(), peak: 0 })
    }
}

fn program(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    ensure!(path.exists(), "{} is not built; use benches/run", path.display());
    Ok(path)
}

/// A program that runs; killed with this value.
#[derive(Debug)]
pub struct Running {
    child: Child,
    began: Instant,
    peak: u64,
}

/// What a program took.
#[derive(Clone, Copy, Debug)]
pub struct Took {
    /// How it left.
    pub status: ExitStatus,
    /// From start to exit.
    pub time: Duration,
    /// The most memory it held at once, in MiB.
    pub peak_mib: u64,
}

impl Running {
    /// Waits until it leaves, looking at its memory every 20 ms (the kernel keeps the peak between two looks).
    pub async fn wait(mut self) -> anyhow::Result<Took> {
        loop {
            self.peak = self.peak.max(self.memory("VmHWM:").unwrap_or(0));
            if let Some(status) = self.child.try_wait()? {
                return Ok(Took { status, time: self.began.elapsed(), peak_mib: self.peak / 1024 });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Resident memory now, in KiB.
    pub fn resident(&self) -> anyhow::Result<u64> {
        self.memory("VmRSS:")
    }

    /// Processor time so far, in ticks of 10 ms.
    pub fn ticks(&self) -> anyhow::Result<u64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields = stat.rsplit_once(") ").context("no fields in stat")?.1.split(' ');
        // utime and stime are fields 14 and 15 of the whole line, 11 and 12 after the name.
        fields.skip(11).take(2).map(|field| Ok(field.parse::<u64>()?)).sum()
    }

    fn memory(&self, field: &str) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field)).context("no such field")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Gone already when it was waited for.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
