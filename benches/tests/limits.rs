//! What is made of the fake provider's ledger and of findings; and that `benches/limits` works from its command line to its
//! file.

use std::collections::BTreeMap;
use std::process::Command;

use promptq_benches::limits::calls::{Call, Counted, MINUTE, Spent, share_of_429};
use promptq_benches::limits::findings::{Finding, Findings, SCHEMA};
use promptq_benches::report::Machine;

/// Calls of two seconds each: when, what came of it, how much went in and out. Each might have come to 100 more.
fn calls(all: &[(i64, u16, u64, u64)]) -> Vec<Call> {
    let call = |&(started_ms, status, input_tokens, output_tokens): &(i64, u16, u64, u64)| Call {
        started_ms,
        ended_ms: started_ms + 2_000,
        status,
        end: if status == 429 { "refused" } else { "answered" }.to_owned(),
        input_tokens,
        output_tokens,
        max_tokens: Some(100),
        ..Call::default()
    };
    all.iter().map(call).collect()
}

#[test]
fn a_limit_is_spent_when_and_as_its_provider_counts() {
    let calls = calls(&[(1_000, 200, 10, 5), (1_500, 429, 7, 0), (61_000, 200, 20, 6), (62_000, 200, 30, 7)]);
    let spent = |counted| Spent::of(&calls, counted);
    assert_eq!(spent(Counted::Requests).within(0, 61_000), 1, "until just before; refused ones are none");
    assert_eq!(spent(Counted::Requests).within(1_000, 61_001), 2);
    assert_eq!(spent(Counted::Tokens).within(0, 100_000), 60 + 300, "as much as they might come to, at the start");
    assert_eq!(spent(Counted::Output).within(3_000, 63_001), 5 + 6, "as it has come");
    assert_eq!(spent(Counted::Output).begins(), Some(3_000));
    assert!((share_of_429(&calls) - 0.25).abs() < 1e-9 && share_of_429(&[]).abs() < 1e-9);
}

#[test]
fn the_emptiest_window_is_found_and_the_minute_from_which_none_was_over() {
    let steady: Vec<_> = (0..240).map(|second| (second * 1_000, 200, 0, 0)).collect();
    let mut gap = steady.clone();
    gap.retain(|(at, ..)| !(100_000..130_000).contains(at));
    let spent = |calls: &[_]| Spent::of(&self::calls(calls), Counted::Requests);
    assert_eq!(spent(&steady).emptiest(60_000, 240_000, MINUTE), 60);
    assert_eq!(spent(&gap).emptiest(60_000, 240_000, MINUTE), 30);
    assert_eq!(spent(&gap).emptiest(0, 90_000, 5 * MINUTE), 90, "what there is of it");
    assert_eq!(spent(&gap).minutes(60_000, 240_000), [40, 50, 60]);
    let mut slower = steady;
    slower.retain(|(at, ..)| *at < 120_000 || at % 2_000 == 0);
    // 60 until then; one goes each second, and one comes every other.
    assert_eq!(spent(&slower).below_from(40, MINUTE), Some(158_001));
    assert_eq!(spent(&slower).below_from(60, MINUTE), Some(0));
    assert_eq!(spent(&[]).below_from(1, MINUTE), None);
}

fn findings() -> Findings {
    let named = |measure: &str, finding: Finding| Finding { measure: measure.to_owned(), ..finding };
    Findings {
        schema: SCHEMA,
        date: "2026-11-22T04:00:00.000Z".to_owned(),
        form: "quick".to_owned(),
        alone: false,
        machine: Machine {
            processor: "Fast".to_owned(),
            processors: 2,
            memory_mib: 1_024,
            kernel: "Linux 6".to_owned(),
            rustc: "rustc 1".to_owned(),
        },
        versions: BTreeMap::from([("redis".to_owned(), "7".to_owned())]),
        findings: vec![
            named("kept", Finding::new("of the limit used", 96.5, "%").at_least(95.0)),
            named("kept", Finding::new("of calls answered 429", 0.75, "%").at_most(0.5)),
            named("money", Finding::new("the bill", 0.9876, "$").at_least(0.95).at_most(1.0)),
            named("money", Finding::new("jobs left", 107.0, "jobs")),
        ],
        trouble: vec!["store: nobody was there".to_owned()],
    }
}

#[test]
fn a_goal_is_met_missed_or_not_there() {
    let met: Vec<_> = findings().findings.iter().map(Finding::is_met).collect();
    assert_eq!(met, [Some(true), Some(false), Some(true), None]);
    assert_eq!(Finding::new("", 1.1, "$").at_least(0.95).at_most(1.0).is_met(), Some(false));
    assert_eq!(Finding::new("", 0.9, "$").at_least(0.95).at_most(1.0).is_met(), Some(false));
    let table = findings().table();
    for line in ["96.5 %   at least 95.0 %", "MISSED", "$ 0.9876   at least $ 0.9500, at most $ 1.0000", "107 jobs"] {
        assert!(table.contains(line), "no {line:?} in {table}");
    }
    assert!(table.contains("redis 7") && table.ends_with("broke off: store: nobody was there\n"), "{table}");
}

#[test]
fn findings_survive_their_file_and_another_form_is_refused() {
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("deep/limits.json");
    let mut findings = findings();
    findings.write(&path).unwrap();
    assert_eq!(Findings::read(&path).unwrap(), findings);
    findings.schema += 1;
    findings.write(&path).unwrap();
    assert!(Findings::read(&path).unwrap_err().to_string().contains("schema 2, not 1"));
    std::fs::write(&path, "{}").unwrap();
    assert!(Findings::read(&path).unwrap_err().to_string().contains("none of benches/limits"));
}

#[test]
fn a_measure_runs_from_its_command_line_to_its_file() {
    let folder = tempfile::TempDir::new().unwrap();
    let out = folder.path().join("limits.json");
    let limits = |words: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_limits")).args(words).arg(&out).output().unwrap();
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{}{}", said(&output.stdout), said(&output.stderr));
        said(&output.stdout)
    };
    let table = limits(&["queues", "--smoke", "--out"]);
    let findings = Findings::read(&out).unwrap();
    let seen = |what: &str| findings.findings.iter().find(|found| found.what.contains(what)).map(|found| found.seen);
    // The limit is a tenth of it at once and eleven a second then.
    assert!(seen("calls after the first minute").is_some_and(|calls| (10.0..=120.0).contains(&calls)), "{table}");
    assert!(seen("fullest minute").is_some_and(|percent| percent <= 100.0), "{table}");
    assert_eq!(limits(&["--table"]), table.split("\nEvery figure").next().unwrap());
}
