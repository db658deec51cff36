//! The programs that are measured: started in a home of their own, and what the machine gave them.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use rustix::time::{ClockId, clock_gettime};
use tempfile::TempDir;

/// Between two looks at a process or at a broker: as exact as a rate over half a second needs.
pub(crate) const LOOK: Duration = Duration::from_millis(2);
/// Nothing here takes longer, a million rows on a slow machine included.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30 * 60);

/// A folder that is home, working folder and state folder of what is measured.
#[derive(Debug)]
pub(crate) struct Home {
    folder: TempDir,
    environment: Vec<(String, String)>,
}

impl Home {
    /// A fresh one with this `promptq.toml`, whose programs see nothing of the environment but these.
    pub(crate) fn new(config: &str, environment: Vec<(String, String)>) -> anyhow::Result<Self> {
        let folder = TempDir::new()?;
        std::fs::write(folder.path().join("promptq.toml"), config)?;
        Ok(Self { folder, environment })
    }

    /// More of what its programs see.
    pub(crate) fn add(&mut self, more: impl IntoIterator<Item = (String, String)>) {
        self.environment.extend(more);
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Starts one of the programs built beside this one.
    pub(crate) fn start(&self, name: &str, arguments: &[&str]) -> anyhow::Result<Running> {
        self.start_as(name, name, arguments, &[])
    }

    /// The same as one of several: with a name for its log, and with more in its environment.
    pub(crate) fn start_as(
        &self,
        called: &str,
        name: &str,
        arguments: &[&str],
        more: &[(String, String)],
    ) -> anyhow::Result<Running> {
        let mut command = Command::new(built(name)?);
        command.args(arguments).env_clear().env("HOME", self.path()).envs(self.environment.iter().cloned());
        command.envs(more.iter().cloned());
        self.begin(called, command)
    }

    /// Starts a program in the environment of this one; its log goes to `NAME.log` in the home.
    pub(crate) fn begin(&self, name: &str, mut command: Command) -> anyhow::Result<Running> {
        let log = self.path().join(format!("{name}.log"));
        command.current_dir(self.path()).stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(std::fs::File::create(&log)?);
        let mut child = command.spawn().with_context(|| format!("{name} cannot be started"))?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("a process has an id")?;
        let mut out = child.stdout.take().context("its output was asked for")?;
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            out.read_to_string(&mut text).map(|_| text)
        });
        Ok(Running { child, pid, log, began: Instant::now(), peak_kib: 0, reader: Some(reader) })
    }
}

/// Where a program is that was built beside this one.
pub(crate) fn built(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    ensure!(
        path.exists(),
        "{} is not built\n  hint: benches/run and benches/limits build what they need",
        path.display()
    );
    Ok(path)
}

/// A program that runs; killed with this value.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    pid: Pid,
    log: PathBuf,
    began: Instant,
    peak_kib: u64,
    reader: Option<JoinHandle<std::io::Result<String>>>,
}

/// What a program took from its start to its end.
#[derive(Clone, Debug)]
pub(crate) struct Took {
    /// Seconds.
    pub(crate) seconds: f64,
    /// Processor time in seconds, to 10 ms.
    pub(crate) cpu: f64,
    /// The most memory it held at once.
    pub(crate) peak_kib: u64,
    /// What it said.
    pub(crate) output: String,
}

impl Running {
    /// Waits until it has ended well; otherwise an error has the end of its log.
    pub(crate) async fn ended(mut self) -> anyhow::Result<Took> {
        while !self.has_left()? {
            ensure!(self.began.elapsed() < PATIENCE, "it does not end: {}", self.tail());
            tokio::time::sleep(LOOK).await;
        }
        let seconds = self.began.elapsed().as_secs_f64();
        // It is kept until it is waited for, with its account.
        let cpu = self.cpu()?;
        let status = self.child.wait()?;
        let reader = self.reader.take().context("read once")?;
        let output = reader.join().map_err(|_| anyhow!("its reader broke off"))??;
        ensure!(status.success(), "it ended with {status}: {}", self.tail());
        Ok(Took { seconds, cpu, peak_kib: self.peak_kib, output })
    }

    /// Whether it has ended, by itself; looks at its memory too.
    pub(crate) fn has_left(&mut self) -> anyhow::Result<bool> {
        self.peak_kib = self.peak_kib.max(memory_of(self.child.id(), "VmHWM:").unwrap_or(0));
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        Ok(waitid(WaitId::Pid(self.pid), options)?.is_some())
    }

    /// Stops it with what is left undone, and tells its processor time to the end, in seconds, and its peak memory in KiB.
    pub(crate) fn stop(mut self) -> anyhow::Result<(f64, u64)> {
        self.has_left()?;
        let cpu = self.cpu()?;
        self.child.kill().ok();
        self.child.wait()?;
        Ok((cpu, self.peak_kib))
    }

    /// Processor time so far, in seconds, to 10 ms.
    pub(crate) fn cpu(&self) -> anyhow::Result<f64> {
        time_of(self.child.id())
    }

    /// Resident memory now, in KiB.
    pub(crate) fn resident(&self) -> anyhow::Result<u64> {
        memory_of(self.child.id(), "VmRSS:")
    }

    /// The end of its log.
    pub(crate) fn tail(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Gone already when it was waited for.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Processor time of a process, in seconds, to 10 ms.
pub(crate) fn time_of(pid: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit_once(") ").context("no fields in stat")?.1.split(' ');
    // utime and stime are fields 14 and 15 of the whole line, 11 and 12 after the name.
    let ticks = fields.skip(11).take(2).map(|field| Ok(field.parse::<u32>()?)).sum::<anyhow::Result<u32>>()?;
    Ok(f64::from(ticks) / 100.0)
}

/// The machine's clock that only goes forward, the same in every process.
pub fn monotonic() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or_default(), u32::try_from(now.tv_nsec).unwrap_or_default())
}

/// Processor time of this process, in seconds.
///
/// # Errors
/// When the clock is before its own beginning.
pub fn own_time() -> anyhow::Result<f64> {
    let own = clock_gettime(ClockId::ProcessCPUTime);
    Ok(Duration::new(u64::try_from(own.tv_sec)?, u32::try_from(own.tv_nsec)?).as_secs_f64())
}

/// A process's memory by a field of its status (`VmRSS:` now, `VmHWM:` at most so far), in KiB.
pub(crate) fn memory_of(pid: u32, field: &str) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line =
        status.lines().find_map(|line| line.strip_prefix(field)).with_context(|| format!("no {field} of {pid}"))?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
