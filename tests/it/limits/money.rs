//! `--max-cost` as a process keeps it: what the provider bills never exceeds it, and what is left over stays.

use std::time::{Duration, Instant};

use promptq_common::job::Queue;
use promptq_common::ledger::JobFilter;
use promptq_common::limits::look;
use promptq_common::outcome::Usd;
use promptq_tests::metered::{Metered, Place};
use promptq_tests::process::Said;
use promptq_tests::site::until;

/// A job is at most some tokens in and 1,900 out, less than $ 0.02, and comes to less than half of that.
const PROVIDER: &str = "[answer]\noutput = { fixed = 900 }\nchunk = 900\n[latency]\nfirst = { fixed = \"50ms\" }\n\
    [[models]]\nname = \"gpt-4o\"\ninput = \"4\"\noutput = \"10\"\n";
const PRICES: &str = "[prices.\"openai/gpt-4o\"]\ninput = \"4\"\noutput = \"10\"\n";
/// No call for so long: nothing more comes.
const QUIET: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_stops_at_its_max_cost_and_keeps_what_is_left() {
    let metered = Metered::new(Place::redis(), PROVIDER, PRICES);
    let rows: Vec<_> = (0..40).map(|row| format!("number {row}\n")).collect();
    metered.write("in.txt", &rows.concat());
    let submit = ["submit", "in.txt", "--in", "lines", "-m", "gpt-4o", "--max-tokens", "1900", "--max-cost", "0.10"];
    Said::of(&mut metered.program("promptq", "submit", &submit)).ends(0);
    let _worker = metered.worker(1, &["--concurrency", "64"]);
    metered.called(1).await;
    let (mut calls, mut since) = (0, Instant::now());
    until("no more calls come", async || {
        let now = metered.fake.calls(0).len();
        if now != calls {
            (calls, since) = (now, Instant::now());
        }
        (since.elapsed() >= QUIET).then_some(())
    })
    .await;
    let bill = metered.fake.bill().total.usd;
    // Nobody knows before what a job comes to: it stops where one that costs the most would not fit.
    let (least, most) = (Usd::from_nanos(80_000_000), Usd::from_nanos(100_000_000));
    assert!((least..=most).contains(&bill), "{bill}");
    let depth = metered.broker().await.depth(&Queue::standard()).await.unwrap();
    let left = depth.ready + depth.delayed;
    assert_eq!((left, depth.dead, depth.running), (40 - u64::try_from(calls).unwrap(), 0, 0), "{depth:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_says_what_the_calls_of_a_killed_one_may_have_been_billed() {
    let slow = PROVIDER.replace("50ms", "2s");
    let metered = Metered::new(Place::File, &slow, PRICES);
    let rows: Vec<_> = (0..8).map(|row| format!("number {row}\n")).collect();
    metered.write("in.txt", &rows.concat());
    let run = ["run", "in.txt", "--in", "lines", "-m", "gpt-4o", "--max-tokens", "1900", "--max-cost", "1"];
    let run = || metered.program("promptq", "run", &[&run[..], &["--batch", "nov", "-o", "out.jsonl"]].concat());
    let mut killed = run().spawn().unwrap();
    let broker = metered.broker().await;
    let held = until("eight calls have reserved what they may cost", async || {
        let view = look(broker.ledger(), "batch:nov").await.ok()??;
        // Of each at least its longest answer.
        view.caps.first().map(|cap| cap.held).filter(|held| *held >= 8 * 19_000_000)
    })
    .await;
    killed.kill().unwrap();
    killed.wait().unwrap();
    let most = format!("up to ${} more may have been billed, by calls that were cut", Usd::from_nanos(held));
    Said::of(&mut run()).ends(0).says(&["8 succeeded", &most]);
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_left_for_want_of_an_accounts_money_leave_word_of_it() {
    let rules = format!("{PRICES}[limits.openai]\nusd = \"0.06/day\"\n[limits.mock]\nrequests_per_day = 1\n");
    let metered = Metered::new(Place::File, PROVIDER, &rules);
    let rows: Vec<_> = (0..16).map(|row| format!("number {row}\n")).collect();
    metered.write("in.txt", &rows.concat());
    let promptq = |words: &[&str]| Said::of(&mut metered.program("promptq", "p", words));
    promptq(&["submit", "in.txt", "--in", "lines", "-m", "gpt-4o", "--max-tokens", "1900", "--batch", "nov"]).ends(0);
    let begun = Instant::now();
    let worker = ["--exit-when-idle", "1s", "--concurrency", "2"];
    let left = Said::of(&mut metered.program("promptq-worker", "w", &worker)).ends(9);
    let left =
        left.says(&["leaving: the jobs that are left wait for money", r#"promptq limits set \"openai\" usd=AMOUNT"#]);
    let waits = "jobs wait that may not run now, and this worker with them, for";
    assert_eq!(
        (left.stderr.matches(waits).count(), left.stderr.matches(&format!("{waits} openai ($")).count()),
        (1, 1)
    );
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    // Of $0.06 five calls of less than a cent are paid, and a sixth might come to two.
    assert_eq!(metered.fake.calls(0).len(), 5);

    let list = promptq(&["limits", "list", "--json"]).ends(0).json();
    let limit = list["items"].as_array().unwrap().iter().find(|limit| limit["key"] == "openai").unwrap();
    assert_eq!((&limit["state"], &limit["workers"]), (&"full".into(), &0.into()));
    promptq(&["limits", "list", "--fields", "key,brief"]).ends(0).prints(&["openai\tfull, a job may cost $0.0"]);
    promptq(&["queues", "list", "--fields", "queue,blocked_by"])
        .ends(0)
        .prints(&["default\tbudget-bound: openai $0.0"]);
    let status = promptq(&["status", "nov", "--json"]).ends(0).json();
    assert_eq!((&status["eta_seconds"], &status["blocked"][0]["key"]), (&serde_json::Value::Null, &"openai".into()));
    let waiting = metered.broker().await.ledger().list(&JobFilter::default(), None, 100).await.unwrap().items;
    let ready = waiting.iter().find(|job| job.record.is_none() && job.hold.is_none()).expect("a job that went nowhere");
    let why = promptq(&["jobs", "why", &ready.id.to_string()]).ends(0);
    why.prints(&["It waits for openai. $0.0", "of $0.06/day of openai are spent", "a job that waits may cost $0.0"]);

    // One that was told to run what is ready says what is left, and why.
    let once = || Said::of(&mut metered.program("promptq-worker", "w", &["--once"]));
    once().ends(9).says(&["leaving: the jobs that are left wait for money"]);
    metered.write("more.txt", "a\nb\n");
    promptq(&["submit", "more.txt", "--in", "lines", "-m", "mock"]).ends(0);
    let left = "leaving, with jobs left that may not run now, for ";
    once().ends(0).says(&[left, "openai ($0.0"]);
}
