//! What is made of measurements: figures, ratios, goals, the file and the drawing; and that a run works from its command
//! line to its chart.

use std::collections::BTreeMap;
use std::process::Command;

use promptq_benches::account::Figure;
use promptq_benches::goals::{goals, lean};
use promptq_benches::report::{Machine, Report, SCHEMA, Sample};
use promptq_benches::{chart, table};

fn report(samples: Vec<Sample>) -> Report {
    Report {
        schema: SCHEMA,
        date: "2026-11-21T21:00:00.000Z".to_owned(),
        form: "quick".to_owned(),
        machine: Machine {
            processor: "Fast & <Small>".to_owned(),
            processors: 2,
            memory_mib: 1_024,
            kernel: "Linux 6".to_owned(),
            rustc: "rustc 1".to_owned(),
        },
        versions: BTreeMap::from([("redis".to_owned(), "7".to_owned())]),
        samples,
    }
}

fn sample(contest: &str, measure: &str, contestant: &str, round: u32, per_second: f64) -> Sample {
    let (contest, measure, contestant) = (contest.to_owned(), measure.to_owned(), contestant.to_owned());
    Sample { contest, measure, contestant, round, per_second, jobs: 10, seconds: 1.0, ..Sample::default() }
}

/// Six rounds in which promptq does these shares of what the limit does, whose own speed drifts.
fn drains(shares: [f64; 6]) -> Vec<Sample> {
    let mut samples = Vec::new();
    for (round, share) in (1..).zip(shares) {
        let speed = 1_000.0 * f64::from(round);
        samples.push(sample("redis", "drain", "limit", round, speed));
        samples.push(sample("redis", "drain", "promptq", round, speed * share));
        samples.push(sample("redis", "drain", "celery", round, speed * share / 25.0));
    }
    samples
}

#[test]
fn an_interval_leaves_out_as_many_values_as_95_percent_allow() {
    let figure = |count: u32| Figure::of((1..=count).rev().map(f64::from)).unwrap();
    let seen = |count| (figure(count).median, figure(count).low, figure(count).high);
    // Ranks from the binomial distribution with one half: of ten, the second to the ninth hold it with 97.9 %.
    assert_eq!(seen(10), (5.5, 2.0, 9.0));
    assert_eq!(seen(20), (10.5, 6.0, 15.0));
    // Of six, the ends just do, with 96.9 %; of fewer, nothing does, and the ends are shown.
    assert_eq!(seen(6), (3.5, 1.0, 6.0));
    assert_eq!(seen(3), (2.0, 1.0, 3.0));
    assert_eq!(seen(1), (1.0, 1.0, 1.0));
    assert_eq!(Figure::of([]), None);
}

#[test]
fn ratios_are_taken_round_by_round() {
    let mut report = report(drains([0.9, 0.5, 0.9, 0.9, 0.9, 0.9]));
    let ratio = report.ratio("redis", "drain", "promptq", "limit").unwrap();
    assert!((ratio.median - 0.9).abs() < 1e-9 && (ratio.low - 0.5).abs() < 1e-9, "{ratio:?}");
    // A round that only one of them has is nobody's.
    report.samples.push(sample("redis", "drain", "promptq", 7, 1e9));
    assert_eq!(report.ratio("redis", "drain", "promptq", "limit").unwrap(), ratio);
}

#[test]
fn goals_follow_from_the_medians() {
    let judged = |report: &Report, name: &str| {
        let goal = goals(report).into_iter().find(|goal| goal.measure == name).unwrap();
        (goal.met, goal.seen)
    };
    let limit = "redis, drain, against the limit";
    assert_eq!(judged(&report(Vec::new()), limit), (None, "not measured".to_owned()));
    assert_eq!(judged(&report(drains([0.9; 6])), limit).0, Some(true));
    assert_eq!(judged(&report(drains([0.9, 0.8, 0.8, 0.8, 0.8, 0.9])), limit).0, Some(false));
    assert_eq!(judged(&report(drains([0.5; 6])), "redis, drain, against celery").0, Some(true));
    // A limit program that is too slow itself is no measure.
    let mut lazy = report(drains([0.9; 6]));
    lazy.samples.push(Sample { cpu_us: 9.0, ..sample("redis", "drain", "bare", 1, 1.0) });
    assert!(!lean(&lazy)[0].counts());
    assert_eq!(judged(&lazy, limit).0, None);
    lazy.samples.push(Sample { cpu_us: 1.0, ..sample("redis", "drain", "bare", 2, 1.0) });
    lazy.samples.push(Sample { cpu_us: 1.0, ..sample("redis", "drain", "bare", 3, 1.0) });
    assert_eq!(judged(&lazy, limit).0, Some(true));
}

#[test]
fn waits_and_calls_are_goals_that_must_not_be_exceeded() {
    let wait = |who: &str, p50| Sample { p50_ms: Some(p50), ..sample("redis", "latency", who, 1, 1.0) };
    let calls = |who: &str, seconds, at_once| {
        let (at_once, peak_kib) = (Some(at_once), 90 << 10);
        Sample { seconds, at_once, peak_kib, ..sample("quorum", "calls", who, 1, 1.0) }
    };
    let report =
        report(vec![wait("promptq", 0.8), wait("sidekiq", 0.6), calls("promptq", 1.9, 9_400), calls("limit", 0.7, 0)]);
    let met: Vec<_> = goals(&report).into_iter().filter_map(|goal| Some((goal.measure, goal.met?))).collect();
    let expected = [
        ("redis, idle submit to start, p50", true),
        ("redis, p50, against sidekiq", false),
        ("quorum, 10,000 calls of 1 s in one worker, in all", true),
        ("quorum, 10,000 calls of 1 s in one worker, at once", false),
        ("quorum, 10,000 calls of 1 s in one worker, peak memory", true),
    ];
    assert_eq!(met, expected.map(|(name, met)| (name.to_owned(), met)));
}

#[test]
fn a_report_survives_its_file_and_another_form_is_refused() {
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("deep/latest.json");
    let mut report = report(drains([1.0; 6]));
    report.samples[0].p50_ms = Some(0.25);
    report.write(&path).unwrap();
    assert_eq!(Report::read(&path).unwrap(), report);
    report.schema = SCHEMA + 1;
    report.write(&path).unwrap();
    assert!(Report::read(&path).unwrap_err().to_string().contains("schema 2, not 1"));
    std::fs::write(&path, "{}").unwrap();
    assert!(Report::read(&path).unwrap_err().to_string().contains("no report of benches/run"));
}

#[test]
fn the_chart_is_whole_and_has_the_numbers() {
    assert!(chart::svg(&report(Vec::new())).is_err(), "there is nothing to draw");
    let svg = chart::svg(&report(drains([0.9, 0.7, 0.9, 0.9, 0.9, 0.9]))).unwrap();
    well_formed(&svg);
    for text in ["0.90 (0.70-0.90)", "25.0 (25.0-25.0) x", "Redis, everysec: celery", "2026-11-21", "quick run"] {
        assert!(svg.contains(text), "no {text:?} in {svg}");
    }
}

/// Every tag that opens is closed in turn, and no name of a machine breaks out.
fn well_formed(svg: &str) {
    let mut open = Vec::new();
    for tag in svg.split('<').skip(1) {
        let (tag, text) = tag.split_once('>').unwrap_or_else(|| panic!("<{tag} has no end"));
        assert!(!text.contains('&') || text.contains("&amp;"), "{text}");
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "in {svg}");
        } else if !tag.ends_with('/') && !tag.starts_with('?') {
            open.push(tag.split_whitespace().next().expect("a tag has a name"));
        }
    }
    assert!(open.is_empty(), "{open:?} stay open");
}

#[test]
fn the_table_has_what_was_measured() {
    let mut samples = drains([0.9; 6]);
    samples.push(Sample { p50_ms: Some(0.25), p99_ms: Some(1.5), ..sample("redis", "latency", "promptq", 1, 1.0) });
    let text = table::text(&report(samples));
    for words in ["redis, drain", "0.90 (0.90-0.90)", "25.0 (25.0-25.0)", "0.25 (0.25-0.25)", "redis 7", "met"] {
        assert!(text.contains(words), "no {words:?} in {text}");
    }
}

#[test]
fn a_run_measures_tells_and_draws() {
    let folder = tempfile::TempDir::new().unwrap();
    let out = folder.path().join("latest.json");
    let measure = |words: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_measure")).args(words).arg(&out).output().unwrap();
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{}", said(&output.stderr));
        said(&output.stdout)
    };
    let table = measure(&["sqlite", "run", "--smoke", "--no-peers", "--out"]);
    assert!(table.contains("sqlite, live") && table.contains("run, run"), "{table}");
    let report = Report::read(&out).unwrap();
    for contestant in ["promptq", "limit", "bare"] {
        for measure in ["enqueue", "drain", "live"] {
            let samples = report.of("sqlite", measure, contestant);
            assert_eq!(samples.len(), 1, "{contestant} {measure}");
            assert!(samples[0].per_second > 1.0 && samples[0].peak_kib > 1_000, "{samples:?}");
        }
    }
    assert_eq!(measure(&["table"]), table.split("\nEvery measurement").next().unwrap());
    std::fs::remove_file(folder.path().join("speed.svg")).unwrap();
    measure(&["chart"]);
    well_formed(&std::fs::read_to_string(folder.path().join("speed.svg")).unwrap());
}
