//! What was set as goals, and whether a run has met them: reckoned from its medians, never by eye. And whether a limit
//! program may be compared with at all.

use crate::account::{Figure, short};
use crate::report::Report;

/// One goal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Goal {
    /// What is measured.
    pub measure: String,
    /// What it should be.
    pub goal: String,
    /// What it was, where it was measured.
    pub seen: String,
    /// Whether that is good enough; `None` where it was not measured, or nothing counts that it could be compared with.
    pub met: Option<bool>,
}

/// Whether a limit program is as lean as it should be.
#[derive(Clone, Debug, PartialEq)]
pub struct Lean {
    /// Of which contest.
    pub contest: String,
    /// Of which measure.
    pub measure: String,
    /// Processor time of its bare loop for each job, in microseconds: the median.
    pub seen: f64,
    /// The most for which it counts.
    pub allowed: f64,
}

impl Lean {
    /// Whether it counts.
    pub fn counts(&self) -> bool {
        self.seen <= self.allowed
    }
}

/// What the driver's loop took of the client's processor for each job, in microseconds, in the measurements that the
/// goals were set by: RabbitMQ with lapin, classic queues v1; Redis and SQLite 100 a call.
const LEAN: [(&str, &str, f64); 8] = [
    ("redis", "enqueue", 1.2),
    ("redis", "drain", 1.8),
    ("quorum", "enqueue", 8.0),
    ("quorum", "drain", 21.0),
    ("classic", "enqueue", 8.0),
    ("classic", "drain", 21.0),
    ("sqlite", "enqueue", 2.4),
    ("sqlite", "drain", 8.0),
];
/// How much more a limit program may take.
const ROOM: f64 = 1.3;

/// Every limit program that has a figure to keep to, as far as it was measured.
pub fn lean(report: &Report) -> Vec<Lean> {
    let seen = |(contest, measure, allowed): &(&str, &str, f64)| {
        let seen = report.figure([contest, measure, "bare"], |sample| sample.cpu_us)?.median;
        Some(Lean { contest: (*contest).into(), measure: (*measure).into(), seen, allowed: allowed * ROOM })
    };
    LEAN.iter().filter_map(seen).collect()
}

/// All goals.
pub fn goals(report: &Report) -> Vec<Goal> {
    let mut goals = Vec::new();
    let lean = lean(report);
    for contest in ["redis", "quorum", "classic", "sqlite"] {
        for measure in ["enqueue", "drain", "live"] {
            // A live run is both.
            let mut of = lean.iter().filter(|lean| lean.contest == contest);
            let counts = of.all(|lean| lean.counts() || (lean.measure != measure && measure != "live"));
            let ratio = report.ratio(contest, measure, "promptq", "limit");
            let mut goal = at_least(format!("{contest}, {measure}, against the limit"), ratio, 0.85, "");
            if !counts && ratio.is_some() {
                goal.seen += "; the limit program does not count";
                goal.met = None;
            }
            goals.push(goal);
        }
    }
    for (contest, peer, times) in PEERS {
        let ratio = report.ratio(contest, "drain", "promptq", peer);
        goals.push(at_least(format!("{contest}, drain, against {peer}"), ratio, times, "x"));
    }
    goals.extend(latencies(report));
    goals.extend(calls(report));
    let rows = report.ratio("run", "run", "promptq", "limit");
    goals.push(at_least("`promptq run`, against the limit".to_owned(), rows, 0.6, ""));
    goals
}

const PEERS: [(&str, &str, f64); 5] = [
    ("redis", "celery", 20.0),
    ("quorum", "celery", 10.0),
    ("classic", "celery", 5.0),
    ("redis", "bullmq", 5.0),
    ("sqlite", "apalis", 3.0),
];

fn at_least(measure: String, seen: Option<Figure>, least: f64, unit: &str) -> Goal {
    Goal {
        measure,
        goal: format!("at least {least}{unit}"),
        seen: seen.map_or_else(not_measured, |seen| seen.to_string()),
        met: seen.map(|seen| seen.median >= least),
    }
}

fn at_most(measure: String, seen: Option<Figure>, most: Option<f64>, unit: &str) -> Goal {
    Goal {
        measure,
        goal: most.map_or_else(|| "-".to_owned(), |most| format!("at most {}{unit}", short(most))),
        seen: seen.map_or_else(not_measured, |seen| format!("{seen}{unit}")),
        met: seen.zip(most).map(|(seen, most)| seen.median <= most),
    }
}

fn not_measured() -> String {
    "not measured".to_owned()
}

fn latencies(report: &Report) -> Vec<Goal> {
    const MOST: [(&str, f64, Option<&str>); 4] = [
        ("redis", 1.0, Some("sidekiq")),
        ("quorum", 2.0, Some("dramatiq")),
        ("classic", 2.0, Some("dramatiq")),
        ("sqlite", 12.0, None),
    ];
    let p50 = |contest, who| report.figure([contest, "latency", who], |sample| sample.p50_ms.unwrap_or(f64::INFINITY));
    let mut goals = Vec::new();
    for (contest, most, peer) in MOST {
        let ours = p50(contest, "promptq");
        goals.push(at_most(format!("{contest}, idle submit to start, p50"), ours, Some(most), " ms"));
        if let Some(peer) = peer {
            let theirs = p50(contest, peer).map(|figure| figure.median);
            goals.push(at_most(format!("{contest}, p50, against {peer}"), ours, theirs, " ms"));
        }
    }
    goals
}

fn calls(report: &Report) -> Vec<Goal> {
    let mut goals = Vec::new();
    for contest in ["sqlite", "redis", "quorum"] {
        let name = |what| format!("{contest}, 10,000 calls of 1 s in one worker, {what}");
        let of = |who, what: fn(&crate::report::Sample) -> f64| report.figure([contest, "calls", who], what);
        let most = match contest {
            "quorum" => of("limit", |sample| sample.seconds).map(|limit| 1.0 + 1.3 * limit.median),
            _ => Some(1.5),
        };
        let at_once = of("promptq", |sample| sample.at_once.and_then(|n| u32::try_from(n).ok()).map_or(0.0, f64::from));
        let peak = of("promptq", |sample| u32::try_from(sample.peak_kib).map_or(f64::INFINITY, f64::from) / 1024.0);
        goals.push(at_most(name("in all"), of("promptq", |sample| sample.seconds), most, " s"));
        goals.push(at_least(name("at once"), at_once, 9_500.0, ""));
        goals.push(at_most(name("peak memory"), peak, Some(100.0), " MiB"));
    }
    goals
}
