//! A report for people: a table for each measure, which limit programs count, and the goals.

use std::fmt::Write as _;

use crate::account::{Figure, short};
use crate::goals::{goals, lean};
use crate::report::{Report, Sample};

/// All of it, as text.
pub fn text(report: &Report) -> String {
    let mut text = String::new();
    write(report, &mut text).expect("a string takes all");
    text
}

fn write(report: &Report, text: &mut String) -> std::fmt::Result {
    let machine = &report.machine;
    writeln!(text, "promptq, {} run of {}", report.form, report.date)?;
    writeln!(
        text,
        "{} x {}, {} MiB, {}, {}",
        machine.processors, machine.processor, machine.memory_mib, machine.kernel, machine.rustc
    )?;
    let versions: Vec<_> = report.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
    writeln!(text, "{}", versions.join(", "))?;
    writeln!(
        text,
        "Medians, in brackets the interval that holds the median with 95 % (of fewer than 6 rounds: the least and the \
         most). A ratio is taken round by round.\n"
    )?;
    for (contest, measure) in report.measures() {
        match measure {
            "latency" => latencies(report, contest, text)?,
            "calls" => calls(report, contest, text)?,
            _ => rates(report, contest, measure, text)?,
        }
    }
    counted(report, text)?;
    judged(report, text)
}

fn rates(report: &Report, contest: &str, measure: &str, text: &mut String) -> std::fmt::Result {
    writeln!(
        text,
        "{:22}{:26}{:24}{:22}{:22}{:>9}{:>9}",
        format!("{contest}, {measure}"),
        "jobs/s",
        "promptq is x of it",
        "its us/job",
        "broker's us/job",
        "peak MiB",
        "others %"
    )?;
    for who in report.contestants(contest, measure) {
        let of = |what: fn(&Sample) -> f64| shown(report.figure([contest, measure, who], what));
        let ratio = if who == "promptq" { None } else { report.ratio(contest, measure, "promptq", who) };
        let (speed, ours, theirs) = (of(|s| s.per_second), of(|s| s.cpu_us), of(|s| s.broker_us));
        let tail = tail(report, [contest, measure, who]);
        writeln!(text, "  {who:20}{speed:26}{:24}{ours:22}{theirs:22}{tail}", shown(ratio))?;
    }
    writeln!(text)
}

/// Peak memory and others' load.
fn tail(report: &Report, of: [&str; 3]) -> String {
    let peak = report.figure(of, mib).map_or(0.0, |figure| figure.median);
    let others = report.figure(of, |sample| sample.others * 100.0).map_or(0.0, |figure| figure.median);
    format!("{peak:>9.0}{others:>9.0}")
}

fn mib(sample: &Sample) -> f64 {
    u32::try_from(sample.peak_kib).map_or(f64::INFINITY, f64::from) / 1024.0
}

fn shown(figure: Option<Figure>) -> String {
    figure.map_or_else(|| "-".to_owned(), |figure| figure.to_string())
}

fn latencies(report: &Report, contest: &str, text: &mut String) -> std::fmt::Result {
    writeln!(
        text,
        "{:40}{:26}{:26}{:>9}{:>9}",
        format!("{contest}, idle submit to start"),
        "p50 ms",
        "p99 ms",
        "peak MiB",
        "others %"
    )?;
    for who in report.contestants(contest, "latency") {
        let of = |what: fn(&Sample) -> Option<f64>| {
            shown(report.figure([contest, "latency", who], |sample| what(sample).unwrap_or(f64::NAN)))
        };
        let (p50, p99) = (of(|sample| sample.p50_ms), of(|sample| sample.p99_ms));
        writeln!(text, "  {who:38}{p50:26}{p99:26}{}", tail(report, [contest, "latency", who]))?;
    }
    writeln!(text)
}

fn calls(report: &Report, contest: &str, text: &mut String) -> std::fmt::Result {
    writeln!(
        text,
        "{:40}{:22}{:14}{:22}{:22}{:>9}{:>9}",
        format!("{contest}, calls of 1 s in one worker"),
        "seconds in all",
        "most at once",
        "its us/job",
        "broker's us/job",
        "peak MiB",
        "others %"
    )?;
    for who in report.contestants(contest, "calls") {
        let of = |what: fn(&Sample) -> f64| shown(report.figure([contest, "calls", who], what));
        let most = report.of(contest, "calls", who).iter().filter_map(|sample| sample.at_once).min();
        let most = most.map_or_else(|| "-".to_owned(), |most| most.to_string());
        let (time, ours, theirs) = (of(|s| s.seconds), of(|s| s.cpu_us), of(|s| s.broker_us));
        let what = if who == "limit" { "limit (their drain)" } else { who };
        writeln!(text, "  {what:38}{time:22}{most:14}{ours:22}{theirs:22}{}", tail(report, [contest, "calls", who]))?;
    }
    writeln!(text)
}

fn counted(report: &Report, text: &mut String) -> std::fmt::Result {
    let lean = lean(report);
    if lean.is_empty() {
        return Ok(());
    }
    writeln!(text, "Limit programs: client us/job of the bare loop, and the most for which it counts")?;
    for lean in lean {
        let word = if lean.counts() { "counts" } else { "does not count" };
        let name = format!("{}, {}", lean.contest, lean.measure);
        writeln!(text, "  {name:20}{:>8}{:>8}  {word}", short(lean.seen), short(lean.allowed))?;
    }
    writeln!(text)
}

fn judged(report: &Report, text: &mut String) -> std::fmt::Result {
    writeln!(text, "{:58}{:24}{:44}", "Goal", "should be", "was")?;
    for goal in goals(report) {
        let met = match goal.met {
            Some(true) => "met",
            Some(false) => "NOT MET",
            None => "undecided",
        };
        writeln!(text, "  {:56}{:24}{:44}{met}", goal.measure, goal.goal, goal.seen)?;
    }
    writeln!(text, "  Growth with what waits and with queues is measured apart: benches/SCALING.md")
}
