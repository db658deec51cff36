//! `--max-cost` as a process keeps it: what the provider bills never exceeds it, and what is left over stays.

use std::time::{Duration, Instant};

use promptq_common::job::Queue;
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
