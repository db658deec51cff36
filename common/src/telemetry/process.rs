//! What the kernel and the runtime say of this process: processor time, memory, files, threads, tasks.

use tokio::runtime::RuntimeMetrics;

use super::exposition::Page;
use super::metric as m;

const NONE: [&str; 0] = [];

/// Adds what the kernel says; what it does not say is left out.
pub(super) fn kernel(page: &mut Page) {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let boot = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    if let Some(read) = read(&stat, &boot) {
        page.family(&m::CPU, [(NONE, read.cpu_seconds)]);
        page.family(&m::RESIDENT, [(NONE, read.resident)]);
        page.family(&m::VIRTUAL, [(NONE, read.virtual_bytes)]);
        page.family(&m::THREADS, [(NONE, read.threads)]);
        page.family(&m::START_TIME, [(NONE, read.started_at)]);
    }
    if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
        page.family(&m::OPEN_FDS, [(NONE, number(files.count() as u64))]);
    }
    if let Some(most) = rustix::process::getrlimit(rustix::process::Resource::Nofile).current {
        page.family(&m::MAX_FDS, [(NONE, number(most))]);
    }
}

/// Adds what the runtime that does the work says of itself.
pub(super) fn runtime(page: &mut Page, runtime: &RuntimeMetrics) {
    let threads = runtime.num_workers();
    let busy: f64 = (0..threads).map(|thread| runtime.worker_total_busy_duration(thread).as_secs_f64()).sum();
    page.family(&m::RUNTIME_BUSY, [(NONE, busy)]);
    page.family(&m::RUNTIME_THREADS, [(NONE, number(threads as u64))]);
    page.family(&m::RUNTIME_TASKS, [(NONE, number(runtime.num_alive_tasks() as u64))]);
    page.family(&m::RUNTIME_QUEUE, [(NONE, number(runtime.global_queue_depth() as u64))]);
}

#[derive(Debug, PartialEq)]
struct Read {
    cpu_seconds: f64,
    resident: f64,
    virtual_bytes: f64,
    threads: f64,
    started_at: f64,
}

/// Reads proc(5)'s one line on a process, and when the machine was started.
fn read(stat: &str, boot: &str) -> Option<Read> {
    // The program's name may hold anything, and ends with the last parenthesis.
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let field = |place: usize| fields.get(place - 3)?.parse::<u64>().ok();
    let booted: u64 = boot.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    let ticks = number(rustix::param::clock_ticks_per_second());
    Some(Read {
        cpu_seconds: number(field(14)? + field(15)?) / ticks,
        threads: number(field(20)?),
        started_at: number(booted) + number(field(22)?) / ticks,
        virtual_bytes: number(field(23)?),
        resident: number(field(24)? * rustix::param::page_size() as u64),
    })
}

#[expect(clippy::cast_precision_loss, reason = "the format knows no other numbers")]
fn number(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_line_is_read_whatever_the_programs_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 9 0 1000 4096 2 18446744073709551615";
        let read = read(stat, "cpu 1 2\nbtime 1000\n").unwrap();
        assert_eq!((read.cpu_seconds, read.threads, read.virtual_bytes), (2.0, 9.0, 4096.0));
        assert_eq!((read.started_at, read.resident > 4096.0), (1010.0, true));
        assert_eq!(super::read("nonsense", "btime 1\n"), None);
    }

    #[tokio::test]
    async fn this_process_tells_of_itself() {
        let mut page = Page::default();
        kernel(&mut page);
        runtime(&mut page, &tokio::runtime::Handle::current().metrics());
        let text = page.into_text();
        for metric in [&m::CPU, &m::RESIDENT, &m::OPEN_FDS, &m::MAX_FDS, &m::START_TIME, &m::RUNTIME_TASKS] {
            assert!(text.contains(&format!("\n{} ", metric.name)), "{}: {text}", metric.name);
        }
    }
}
