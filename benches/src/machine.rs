//! The machine that a measurement ran on, and how much of it others had meanwhile.

use std::process::Command;
use std::time::Instant;

use anyhow::Context;

use crate::process::time_of;
use crate::report::Machine;

impl Machine {
    /// This one.
    pub fn seen() -> anyhow::Result<Self> {
        let cpus = std::fs::read_to_string("/proc/cpuinfo")?;
        let field = |text: &str, name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.map(|rest| rest.trim_start_matches([' ', '\t', ':']).trim().to_owned())
        };
        let memory = field(&std::fs::read_to_string("/proc/meminfo")?, "MemTotal").unwrap_or_default();
        Ok(Self {
            processor: field(&cpus, "model name").unwrap_or_else(|| "unknown".to_owned()),
            processors: u32::try_from(processors())?,
            memory_mib: memory.trim_end_matches(" kB").parse::<u64>().unwrap_or(0) / 1024,
            kernel: said("uname", &["-srm"]),
            rustc: said("rustc", &["--version"]),
        })
    }
}

/// What a program says of itself, its first line; of one that is not there, so.
pub(crate) fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().next().map_or_else(|| "not found".to_owned(), |line| line.trim().to_owned())
}

/// How much of the machine was used from now on, by whomever.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    busy: f64,
    own: f64,
    began: Instant,
}

impl Load {
    pub(crate) fn start() -> anyhow::Result<Self> {
        Ok(Self { busy: busy()?, own: time_of(std::process::id())?, began: Instant::now() })
    }

    /// The share of all processors that others had since: whoever is neither this process nor what it measured, whose
    /// processor time in seconds is `ours`. What the kernel does for all, and what the host takes, counts as others'.
    pub(crate) fn of_others(&self, ours: f64) -> anyhow::Result<f64> {
        let own = time_of(std::process::id())? - self.own;
        let all = self.began.elapsed().as_secs_f64() * f64::from(u32::try_from(processors())?);
        Ok(((busy()? - self.busy - own - ours) / all).clamp(0.0, 1.0))
    }
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Processor time of everybody so far, in seconds: all but idle and waiting for a disk, guests being users already.
fn busy() -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().and_then(|line| line.strip_prefix("cpu ")).context("no processors in /proc/stat")?;
    let ticks = line.split_whitespace().map(|field| Ok(field.parse::<f64>()?)).collect::<anyhow::Result<Vec<_>>>()?;
    Ok(ticks.iter().enumerate().filter(|(at, _)| !matches!(at, 3 | 4 | 8 | 9)).map(|(_, ticks)| ticks / 100.0).sum())
}
