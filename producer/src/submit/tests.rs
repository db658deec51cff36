//! Submissions against the broker in memory.

use clap::Parser;
use promptq_common::config::{Sources, resolve};
use promptq_common::job::{BatchName, Queue};

use super::*;
use crate::forecast::Forecaster;
use crate::input::{Destination, InputArgs};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    input: InputArgs,
}

pub(super) struct Fixture {
    folder: tempfile::TempDir,
    pub(super) broker: Broker,
}

impl Fixture {
    pub(super) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), broker: Broker::memory() }
    }

    pub(super) fn input(&self, content: &str, flags: &[&str]) -> Arc<Input> {
        let path = self.folder.path().join("rows.jsonl");
        std::fs::write(&path, content).unwrap();
        let cli = Cli::parse_from(["test", path.to_str().unwrap()].iter().chain(flags));
        let sources = Input::open(&cli.input).unwrap();
        let batch = BatchName::new("nov").unwrap();
        let to = Destination { queue: Queue::standard(), policy: None, batch, named: true, reusable_for: None };
        Arc::new(Input::new(&cli.input, sources, to).unwrap())
    }

    async fn submit(&self, content: &str, terms: Terms) -> Result<Tally> {
        let input = self.input(content, &[]);
        let checked = check(&input, &self.broker, terms, None).await?;
        enqueue(&input, &self.broker, terms, Some(&checked), None).await
    }
}

pub(super) fn rows(numbers: impl IntoIterator<Item = u64>) -> String {
    numbers.into_iter().fold(String::new(), |text, n| text + &format!("{{\"prompt\":\"row {n}\",\"id\":\"r{n}\"}}\n"))
}

#[tokio::test]
async fn the_same_submission_again_enqueues_only_what_is_missing() {
    let fixture = Fixture::new();
    let tally = fixture.submit(&rows(1..=1_500), Terms::default()).await.unwrap();
    assert_eq!((tally.new, tally.known), (1_500, 0));
    let tally = fixture.submit(&rows(1..=2_200), Terms::default()).await.unwrap();
    assert_eq!((tally.new, tally.known), (700, 1_500));
    let batch = fixture.broker.ledger().batch(&BatchName::new("nov").unwrap()).await.unwrap().unwrap();
    assert!(batch.sealed);
    assert_eq!(batch.counts.total, 2_200);
}

#[tokio::test]
async fn one_bad_row_keeps_every_row_out() {
    let fixture = Fixture::new();
    let content = rows(1..=1_200) + "{\"prompt\":\"unterminated\n" + &rows(2_000..=2_001);
    let problem = fixture.submit(&content, Terms::default()).await.unwrap_err();
    assert_eq!((problem.exit, problem.slug), (Exit::Usage, "bad-row"));
    assert!(problem.to_string().contains("rows.jsonl:1201:"), "{problem}");
    assert!(fixture.broker.ledger().batch(&BatchName::new("nov").unwrap()).await.unwrap().is_none());
    let tally = fixture.submit(&content, Terms { skip_invalid: true, ..Terms::default() }).await.unwrap();
    assert_eq!((tally.new, tally.invalid), (1_202, 1));
    assert_eq!(tally.summary(), "1,202 new, 0 already known, 1 invalid row skipped");
}

#[tokio::test]
async fn a_repeated_id_is_named_with_both_rows() {
    let fixture = Fixture::new();
    let problem = fixture.submit(&(rows(1..=3) + "\n" + &rows(2..=2)), Terms::default()).await.unwrap_err();
    assert_eq!((problem.exit, problem.slug), (Exit::Usage, "duplicate-id"));
    assert!(problem.to_string().contains("rows.jsonl:5  | row 4 has the id \"r2\" of row 2"), "{problem}");
}

#[tokio::test]
async fn other_content_under_a_known_id_is_a_conflict_before_anything_is_enqueued() {
    let fixture = Fixture::new();
    fixture.submit(&rows(1..=3), Terms::default()).await.unwrap();
    let changed = rows(4..=5) + "{\"prompt\":\"other\",\"id\":\"r2\"}\n";
    let problem = fixture.submit(&changed, Terms::default()).await.unwrap_err();
    assert_eq!((problem.exit, problem.slug), (Exit::Conflict, "conflict"));
    assert_eq!(fixture.submit(&rows(4..=5), Terms::default()).await.unwrap().new, 2, "rows 4 and 5 were left out");
    let skip = Terms { on_conflict: OnConflict::Skip, ..Terms::default() };
    let tally = fixture.submit(&changed, skip).await.unwrap();
    assert_eq!((tally.new, tally.known, tally.conflicts), (0, 2, 1));
    assert_eq!(tally.summary(), "0 new, 2 already known, 1 row kept the answer of earlier content");
    assert!(!problem.to_string().contains("--id-field"), "its row has an id: {problem}");
}

#[tokio::test]
async fn rows_without_ids_are_told_that_they_are_counted() {
    let fixture = Fixture::new();
    fixture.submit("{\"prompt\":\"one\"}\n{\"prompt\":\"two\"}\n", Terms::default()).await.unwrap();
    let problem = fixture.submit("{\"prompt\":\"two\"}\n", Terms::default()).await.unwrap_err();
    assert!(problem.to_string().contains("rows are counted by position; give them names with --id-field"), "{problem}");
}

#[tokio::test]
async fn every_row_of_a_submission_is_in_one_number() {
    let fixture = Fixture::new();
    let content = rows(1..=3) + &rows(2..=2) + "{\"prompt\":\"other\",\"id\":\"r3\"}\n" + "{}\n";
    let skip = Terms { skip_invalid: true, ..Terms::default() };
    for (new, known) in [(3, 0), (0, 3)] {
        let tally = fixture.submit(&content, skip).await.unwrap();
        assert_eq!((tally.new, tally.known, tally.repeated, tally.conflicts, tally.invalid), (new, known, 2, 0, 1));
    }
    let problem = fixture.submit(&(rows(1..=3) + &rows(2..=2)), Terms::default()).await.unwrap_err();
    assert_eq!(problem.what, "1 row repeats the id of an earlier row");
}

#[tokio::test]
async fn nobody_reads_on_for_a_check_that_was_dropped() {
    let (sender, listener) = tokio::sync::mpsc::channel(1);
    drop(listener);
    let fixture = Fixture::new();
    let input = fixture.input(&rows(1..=3), &[]);
    let seen = check::read_all(input.read(), false, None, &sender).unwrap();
    assert_eq!(seen.rows, 0);
}

#[tokio::test]
async fn windows_go_together_only_where_no_id_comes_twice() {
    let fixture = Fixture::new();
    let skip = Terms { skip_invalid: true, ..Terms::default() };
    assert_eq!(at_once(None), 1);
    for (content, windows) in [(rows(1..=3), AT_ONCE), (rows(1..=3) + &rows(2..=2), 1)] {
        let checked = check(&fixture.input(&content, &[]), &fixture.broker, skip, None).await.unwrap();
        assert_eq!(at_once(Some(&checked)), windows, "{} repeated", checked.repeated);
    }
}

#[tokio::test]
async fn nothing_offers_to_skip_every_row() {
    let problem = Fixture::new().submit("prompt\n", Terms::default()).await.unwrap_err();
    assert!(problem.what.contains("not JSON") && !problem.to_string().contains("--skip-invalid"), "{problem}");
}

#[tokio::test]
async fn a_file_that_changes_after_the_check_is_noticed() {
    let fixture = Fixture::new();
    let input = fixture.input(&rows(1..=3), &[]);
    let checked = check(&input, &fixture.broker, Terms::default(), None).await.unwrap();
    let input = fixture.input(&rows(5..=7), &[]);
    let problem = enqueue(&input, &fixture.broker, Terms::default(), Some(&checked), None).await.unwrap_err();
    assert_eq!((problem.exit, problem.slug), (Exit::Conflict, "changed"));
    assert!(
        problem.details.contains(&"0 jobs were enqueued before this".to_owned()),
        "before the first window: {problem}"
    );
}

#[tokio::test]
async fn nothing_to_submit_is_an_error() {
    let problem = Fixture::new().submit("\n\n", Terms::default()).await.unwrap_err();
    assert_eq!((problem.exit, problem.slug), (Exit::Usage, "no-rows"));
}

#[test]
fn numbers_are_grouped() {
    assert_eq!([grouped(0), grouped(999), grouped(1_000), grouped(1_234_567)], ["0", "999", "1,000", "1,234,567"]);
    assert_eq!([jobs(1), jobs(2)], ["1 job", "2 jobs"]);
}

#[tokio::test]
async fn a_forecast_is_of_the_jobs_that_are_not_there_yet() {
    let fixture = Fixture::new();
    fixture.submit(&rows(1..=1_500), Terms::default()).await.unwrap();
    let read = |_: &std::path::Path| Err(std::io::ErrorKind::NotFound.into());
    let environment = [("HOME".to_owned(), "/home/me".to_owned())].into();
    let (files, flags, folder) = (Vec::new(), Vec::new(), "/run".into());
    let config = resolve(&Sources { files, environment, flags, folder, read: &read }).unwrap();
    let forecaster = Some(Forecaster::new(&config).unwrap());
    let input = fixture.input(&rows(1_000..=2_700), &[]);
    let checked = check(&input, &fixture.broker, Terms::default(), forecaster).await.unwrap();
    assert_eq!((checked.rows, checked.known), (1_701, 501));
    assert_eq!(checked.forecast.unwrap().json()["jobs"], 1_200);
    let batch = fixture.broker.ledger().batch(&BatchName::new("nov").unwrap()).await.unwrap().unwrap();
    assert_eq!(batch.counts.total, 1_500, "nothing was enqueued");
}
