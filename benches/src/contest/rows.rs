//! `promptq run` over a table of rows with a model that answers at once, beside the limit program that does its writes and
//! a loop that only parses, fills in and writes.

use std::fmt::Write as _;
use std::process::Command;

use anyhow::{Context, ensure};

use super::programs::{AT_ONCE, Line, Measured, float};
use super::{Run, SMOKE};
use crate::machine::Load;
use crate::process::{Home, Took, built};
use crate::report::Sample;
use crate::stage::Kind;

/// Jobs at once, as the workers of the other contests have them; without the flag it would be 16, for calls that cost
/// money. What runs is what a kill can cost.
const SLOTS: &str = "500";

/// All rounds.
pub(super) async fn hold(run: &mut Run) -> anyhow::Result<()> {
    run.versions(Kind::Sqlite);
    let rows = run.plan.form.of(1_000_000, 50_000, SMOKE);
    // A million rows take minutes, and hold still better than seconds do.
    let rounds = if rows == 1_000_000 { run.plan.rounds.min(3) } else { run.plan.rounds };
    let table = table(rows)?;
    for round in 1..=rounds {
        for contestant in ["limit", "promptq", "plain"] {
            let sample = measured(contestant, rows, &table).await.with_context(|| contestant.to_owned())?;
            let (contest, measure) = ("run".to_owned(), "run".to_owned());
            run.note(Sample { contest, measure, contestant: contestant.to_owned(), round, ..sample });
        }
    }
    Ok(())
}

fn table(rows: u64) -> anyhow::Result<String> {
    let mut table = String::from("id,text\n");
    for row in 0..rows {
        writeln!(table, "r{row},this is the text of review number {row}")?;
    }
    Ok(table)
}

/// The whole process, from its start to its end.
async fn measured(contestant: &str, rows: u64, table: &str) -> anyhow::Result<Sample> {
    let home = Home::new(AT_ONCE, Vec::new())?;
    let at = |name: &str| home.path().join(name).display().to_string();
    let file = std::fs::File::create(home.path().join("rows.csv"))?;
    std::io::Write::write_all(&mut &file, table.as_bytes())?;
    file.sync_all()?;
    let load = Load::start()?;
    let running = if contestant == "promptq" {
        let broker = format!("sqlite://{}", at("q.db"));
        let words = ["run", "rows.csv", "-t", "Sentiment of: {{text}}", "--id-field", "id", "-m", "mock"];
        let rest = ["-o", "out.jsonl", "--concurrency", SLOTS, "--broker", &broker];
        home.start("promptq", &[&words[..], &rest].concat())?
    } else {
        let mut words = Command::new(built("limit")?);
        words.args([if contestant == "limit" { "sqlite" } else { "plain" }, "run"]);
        if contestant == "limit" {
            words.args(["--writes", "promptq", "--url", &format!("sqlite://{}", at("q.db"))]);
        }
        words.args(["--input", "rows.csv", "--output", "out.jsonl"]);
        home.begin("limit", words)?
    };
    let took = running.ended().await?;
    let others = load.of_others(took.cpu)?;
    let lines = std::fs::read_to_string(home.path().join("out.jsonl"))?.lines().count();
    ensure!(float(rows).total_cmp(&crate::account::number(lines)).is_eq(), "{lines} results of {rows} rows");
    check(contestant, &took)?;
    let Took { seconds, cpu, peak_kib, .. } = took;
    let measured = Measured { jobs: rows, seconds, cpu, broker: 0.0, broker_jobs: rows, others };
    Ok(Sample { peak_kib, ..measured.sample() })
}

/// A limit program's own line is not used here, but it has one.
fn check(contestant: &str, took: &Took) -> anyhow::Result<()> {
    if contestant != "promptq" {
        Line::of(took)?;
    }
    Ok(())
}
