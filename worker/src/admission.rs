//! Whether this machine can take more jobs: pure arithmetic on readings of memory and disk, and how they are read.

use std::fs;
use std::path::{Path, PathBuf};

/// What the machine says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Readings {
    /// The cgroup's working set and its limit, in bytes, where it has one.
    pub(crate) cgroup: Option<(u64, u64)>,
    /// The host's available and whole memory, in bytes.
    pub(crate) host: Option<(u64, u64)>,
    /// The fullest file system written to, and its free bytes.
    pub(crate) disk: Option<(PathBuf, u64)>,
}

/// What the machine has too little of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Shortage {
    /// The figure, for people.
    Memory(String),
    /// The figure, for people.
    Disk(String),
}

const MIB: u64 = 1 << 20;
/// Shut above 80 % of the cgroup's limit, open again at 70 %: room for jobs in flight to grow.
const CGROUP: (u64, u64) = (80, 70);
/// Shut under 5 % of the host's memory, open again at 10 %.
const HOST: (u64, u64) = (5, 10);
/// Shut under 512 MiB of disk, open again at 1 GiB.
const DISK: (u64, u64) = (512 * MIB, 1_024 * MIB);

/// What holds new jobs back, given what did so before: the way back is longer, so that it does not flap.
pub(crate) fn judge(readings: &Readings, before: Option<&Shortage>) -> Option<Shortage> {
    let memory_before = matches!(before, Some(Shortage::Memory(_)));
    let disk_before = matches!(before, Some(Shortage::Disk(_)));
    memory(readings, memory_before).or_else(|| disk(readings, disk_before))
}

fn memory(readings: &Readings, before: bool) -> Option<Shortage> {
    if let Some((used, limit)) = readings.cgroup.filter(|(_, limit)| *limit > 0) {
        let percent = if before { CGROUP.1 } else { CGROUP.0 };
        let figure = || format!("{} MiB of memory used of the limit of {} MiB", used / MIB, limit / MIB);
        return over(used, limit, percent).then(|| Shortage::Memory(figure()));
    }
    let (available, whole) = readings.host.filter(|(_, whole)| *whole > 0)?;
    let percent = if before { HOST.1 } else { HOST.0 };
    let figure = || format!("{} MiB of {} MiB of memory available", available / MIB, whole / MIB);
    over(whole.saturating_sub(available), whole, 100 - percent).then(|| Shortage::Memory(figure()))
}

fn disk(readings: &Readings, before: bool) -> Option<Shortage> {
    let (path, free) = readings.disk.as_ref()?;
    let least = if before { DISK.1 } else { DISK.0 };
    let figure = || format!("{} MiB free at {}", free / MIB, path.display());
    (*free < least).then(|| Shortage::Disk(figure()))
}

fn over(part: u64, whole: u64, percent: u64) -> bool {
    u128::from(part) * 100 > u128::from(whole) * u128::from(percent)
}

/// Reads the machine. Blocks for as long as the file systems take; what cannot be read is left out.
pub(crate) fn read(disks: &[PathBuf]) -> Readings {
    let free = |path: &PathBuf| Some((path.clone(), free_bytes(path)?));
    let disk = disks.iter().filter_map(free).min_by_key(|(_, free)| *free);
    Readings { cgroup: cgroup(), host: host(), disk }
}

fn free_bytes(path: &Path) -> Option<u64> {
    let at = path.ancestors().find(|path| path.exists())?;
    let stat = rustix::fs::statvfs(at).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

fn cgroup() -> Option<(u64, u64)> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let name = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    // Inside a container the name may be the host's view of it, which is not mounted here.
    let root = Path::new("/sys/fs/cgroup");
    let folder = [root.join(name), root.to_owned()].into_iter().find(|folder| folder.join("memory.max").exists())?;
    let number = |file: &str| fs::read_to_string(folder.join(file)).ok()?.trim().parse::<u64>().ok();
    let (current, limit) = (number("memory.current")?, number("memory.max")?);
    let stat = fs::read_to_string(folder.join("memory.stat")).ok()?;
    let inactive = stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.parse().ok()).unwrap_or(0);
    Some((current.saturating_sub(inactive), limit))
}

fn host() -> Option<(u64, u64)> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let bytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1_024)
    };
    Some((bytes("MemAvailable:")?, bytes("MemTotal:")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cgroup_at(used: u64) -> Readings {
        Readings { cgroup: Some((used, 100)), host: Some((0, 100)), disk: None }
    }

    #[test]
    fn the_cgroup_shuts_above_80_percent_and_opens_at_70() {
        assert_eq!(judge(&cgroup_at(80), None), None);
        let shut = judge(&cgroup_at(81), None);
        assert!(matches!(shut, Some(Shortage::Memory(_))));
        assert!(judge(&cgroup_at(71), shut.as_ref()).is_some());
        assert_eq!(judge(&cgroup_at(70), shut.as_ref()), None);
    }

    #[test]
    fn the_host_counts_only_without_a_limit() {
        let at = |available| Readings { cgroup: None, host: Some((available, 100)), disk: None };
        assert_eq!(judge(&at(5), None), None);
        let shut = judge(&at(4), None);
        assert!(shut.is_some() && judge(&at(9), shut.as_ref()).is_some());
        assert_eq!(judge(&at(10), shut.as_ref()), None);
    }

    #[test]
    fn a_full_disk_shuts_under_512_mib_and_opens_at_a_gib() {
        let at = |mib| Readings { disk: Some(("/data".into(), mib * MIB)), ..Readings::default() };
        assert_eq!(judge(&at(512), None), None);
        let shut = judge(&at(511), None);
        assert_eq!(shut, Some(Shortage::Disk("511 MiB free at /data".into())));
        assert!(judge(&at(1_023), shut.as_ref()).is_some());
        assert_eq!(judge(&at(1_024), shut.as_ref()), None);
    }

    #[test]
    fn this_machine_can_be_read() {
        let readings = read(&[std::env::temp_dir().join("not/there/yet")]);
        assert!(readings.disk.is_some_and(|(_, free)| free > 0));
        assert!(readings.host.is_some_and(|(available, whole)| available <= whole));
    }
}
