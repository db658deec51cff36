//! An account's limit beside its models', and a rate limit of a model that no rule is for, with real workers.

use std::time::Duration;

use promptq_tests::fake::fault::FaultRule;
use promptq_tests::fake::kind::Kind;
use promptq_tests::fake::ledger::Call;
use promptq_tests::fake::random::Span;
use promptq_tests::metered::{Metered, Place, jobs};
use promptq_tests::process::Said;
use promptq_tests::site::{put, until};
use serde_json::Value;

use super::{allowed, of, wait_for};

fn by_model<'a>(calls: &'a [Call], model: &str) -> Vec<&'a Call> {
    calls.iter().filter(|call| call.model == model).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_keep_an_accounts_limit_and_that_of_one_of_its_models() {
    const LOOKED_AT: i64 = 10_000;
    let config = "[limits.openai]\nrequests = \"120/min\"\n[limits.\"openai/slow\"]\nrequests = \"30/min\"\n";
    let metered = Metered::new(Place::redis(), "", config);
    let broker = metered.broker().await;
    for model in ["slow", "free"] {
        put(&broker, &jobs("default", model, 100)).await;
    }
    let _workers = [1, 2].map(|number| metered.worker(number, &["--concurrency", "4"]));
    let first = metered.called(1).await[0].started_ms;
    wait_for(Duration::from_millis(LOOKED_AT.unsigned_abs())).await;
    let mut calls = metered.fake.calls(0);
    calls.retain(|call| call.started_ms < first + LOOKED_AT);
    let (all, slow) = (allowed(120, LOOKED_AT), allowed(30, LOOKED_AT));
    assert!((all / 2..=all).contains(&calls.len()), "{} calls, not {} to {all}", calls.len(), all / 2);
    let theirs = by_model(&calls, "slow").len();
    assert!((slow / 3..=slow).contains(&theirs), "{theirs} of the slow one, not {} to {slow}", slow / 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_limit_of_a_model_without_a_rule_is_shared_shown_and_released() {
    const FREEZE: Duration = Duration::from_secs(600);
    let slow = "[latency]\nfirst = { fixed = \"300ms\" }\n";
    let metered = Metered::new(Place::redis(), slow, "");
    let waiting = jobs("default", "gpt-4o", 2_000);
    put(&metered.broker().await, &waiting).await;
    let _workers = [1, 2].map(|number| metered.worker(number, &["--concurrency", "2"]));
    let both_call = async |from: i64| {
        until(&format!("both call after {from}"), async || {
            let calls: Vec<_> = metered.fake.calls(0).into_iter().filter(|call| call.started_ms > from).collect();
            ["w1", "w2"].iter().all(|worker| of(&calls, worker).len() >= 4).then_some(())
        })
        .await;
    };
    let refuse = async |first: Option<u64>, told: Duration| {
        let from = metered.fake.calls(0).iter().map(|call| call.started_ms).max().unwrap_or_default();
        let fault = FaultRule { first, retry_after: Some(Span(told)), ..FaultRule::new(Kind::RateLimited) };
        metered.fake.set_faults(&[fault]).unwrap();
        from
    };
    let limits = |arguments: &[&str]| Said::of(&mut metered.program("promptq", "limits", arguments)).ends(0);
    both_call(0).await;
    // Each is refused once at least, and knows the key from then on.
    let from = refuse(None, Duration::from_secs(1)).await;
    until("both were refused", async || {
        let calls: Vec<_> = metered.fake.calls(0).into_iter().filter(|call| call.started_ms > from).collect();
        ["w1", "w2"].iter().all(|worker| of(&calls, worker).iter().any(|call| call.status == 429)).then_some(())
    })
    .await;
    metered.fake.set_faults(&[]).unwrap();
    let from = metered.fake.calls(0).iter().map(|call| call.started_ms).max().unwrap();
    both_call(from).await;
    let from = refuse(Some(1), FREEZE).await;
    let refused = until("one is refused", async || {
        metered.fake.calls(0).into_iter().find(|call| call.started_ms >= from && call.status == 429)
    })
    .await;
    // Who was not refused looks once a second, and what it had sent by then is on its way.
    wait_for(Duration::from_secs(5)).await;
    let calls = metered.fake.calls(0);
    let late: Vec<_> = calls.iter().filter(|call| call.started_ms > refused.ended_ms + 3_000).collect();
    assert!(late.is_empty(), "{late:?} after {refused:?}");
    assert_eq!(calls.iter().filter(|call| call.status == 429 && call.started_ms >= from).count(), 1);
    let list = limits(&["limits", "list", "--json"]).json();
    let [item] = list["items"].as_array().unwrap().as_slice() else { panic!("{list}") };
    assert_eq!((&item["key"], &item["state"]), (&Value::from("openai/gpt-4o"), &Value::from("frozen")), "{item}");
    assert!(item["refusal"].as_str().unwrap().contains("rate_limit"), "{item}");
    limits(&["limits", "show", "openai/gpt-4o"]).prints(&["frozen", "rate_limit", "promptq limits release"]);
    let id = waiting.last().unwrap().id.to_string();
    let why = limits(&["jobs", "why", &id]);
    why.prints(&["openai/gpt-4o refused a call (", "is frozen for 9m"]);
    until("the table of queues says it", async || {
        let table = Said::of(&mut metered.program("promptq", "queues", &["queues", "list"])).ends(0);
        table.stdout.contains("openai/gpt-4o is frozen").then_some(())
    })
    .await;
    let from = calls.iter().map(|call| call.started_ms).max().unwrap();
    // By the account's name: the models under it are meant too.
    limits(&["limits", "release", "openai"]);
    both_call(from).await;
    let list = limits(&["limits", "list", "--json"]).json();
    assert!(list["items"].as_array().unwrap().iter().all(|item| item["state"] != "frozen"), "{list}");
}
