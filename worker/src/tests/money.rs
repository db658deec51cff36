//! Caps on what calls cost: what is called, what waits and for what, and what can never be called.

use promptq_common::broker::HoldKey;
use promptq_common::job::{BatchName, Extras};
use promptq_common::limits::{Cap, Measure, Per, change, look};
use promptq_common::outcome::AnswerClass;
use promptq_common::price::{Price, Prices};
use promptq_common::time::Timestamp;
use promptq_common::work::Input;

use super::*;
use crate::status::BlockedBy;

pub(super) const KEY: &str = "acme/m";

/// A rig whose model takes a cent for a thousand tokens of its answer, and nothing for what is sent.
pub(super) fn rig() -> Rig {
    let mut rig = Rig::new();
    let price = Price::flat(Usd::default(), "10".parse().unwrap());
    rig.settings.prices = Prices::new([(KEY.to_owned(), price)], BTreeMap::new());
    rig
}

pub(super) fn usd(text: &str) -> Usd {
    text.parse().unwrap()
}

/// One that costs half of what it might: half a cent.
pub(super) fn half(rig: &mut Rig, model: &'static str) -> Arc<Scripted> {
    rig.runs(model, Scripted::new(KEY, |_, _| Play::Costs(usd("0.005"))))
}

/// A job of a batch that may be answered with so many tokens.
pub(super) fn bounded(model: &str, batch: &str, tokens: u64, extras: Extras) -> Job {
    let mut job = job(model, "x");
    if let Input::Prompt(prompt) = &mut job.work.input {
        prompt.params = format!(r#"{{"max_tokens":{tokens}}}"#);
    }
    Job { batch: Some(BatchName::new(batch).unwrap()), extras: extras.kept(), ..job }
}

pub(super) async fn put(rig: &Rig, jobs: &[Job]) -> Vec<JobId> {
    rig.broker.enqueue(jobs).await.unwrap();
    jobs.iter().map(|job| job.id).collect()
}

pub(super) fn capped(most: &str) -> Extras {
    Extras { batch_max_cost: Some(usd(most)), ..Extras::default() }
}

pub(super) fn held(by: &str) -> BlockedBy {
    BlockedBy::Limit { key: by.into(), class: FailureClass::Throttled }
}

pub(super) async fn used(rig: &Rig, key: &str) -> (i64, i64) {
    let view = look(rig.broker.ledger(), key).await.unwrap().unwrap();
    (view.caps[0].used, view.caps[0].held)
}

#[tokio::test(start_paused = true)]
async fn a_batch_stops_at_its_cap_and_goes_on_when_it_is_raised() {
    let mut rig = rig();
    let runner = half(&mut rig, "m");
    let jobs: Vec<_> = (0..60).map(|_| bounded("m", "b", 1_000, capped("0.2"))).collect();
    let others: Vec<_> = (0..20).map(|_| bounded("m", "other", 1_000, Extras::default())).collect();
    let ids = put(&rig, &jobs).await;
    let free = put(&rig, &others).await;
    rig.start();
    assert_eq!(rig.ends(&free).await, [End::Succeeded; 20], "a batch of the same lane goes on");
    let status = rig.shows(|status| status.broke(Duration::ZERO, Timestamp::now()).is_some());
    let status = status.await;
    assert_eq!((status.spent.as_slice(), &status.blocked[0].by), (&["batch:b".to_owned()][..], &held("batch:b")));
    let called = runner.started() - 20;
    assert!((38..=40).contains(&called), "{called}");
    sleep(Duration::from_secs(60)).await;
    let mut waiting = 0;
    for id in &ids {
        let view = rig.view(*id).await;
        let batch = Some(HoldKey::Batch(BatchName::new("b").unwrap()));
        waiting += u32::from(view.record.is_none() && view.hold == batch);
    }
    assert_eq!(waiting + called, 60);
    let released = rig.board.now().finished.released;
    sleep(Duration::from_secs(300)).await;
    assert_eq!(rig.board.now().finished.released, released, "nobody leases it again");
    assert!(released <= 100, "{released}");
    let raise =
        |pool: &mut promptq_common::limits::Pool, now| pool.set(now, Measure::Usd, Per::Ever, Some(1_000_000_000));
    change(rig.broker.ledger(), "batch:b", raise).await.unwrap();
    let raised = tokio::time::Instant::now();
    assert_eq!(rig.ends(&ids).await, [End::Succeeded; 60]);
    assert!(raised.elapsed() < Duration::from_secs(30), "{:?}", raised.elapsed());
    assert_eq!(rig.record(ids[59]).await.attempts, 1);
    rig.drain().await;
    assert_eq!(used(&rig, "batch:b").await, (300_000_000, 0), "what it really cost, all of it given back");
}

#[tokio::test(start_paused = true)]
async fn a_queues_budget_closes_its_lanes_and_two_workers_share_it() {
    let mut rig = rig();
    let runner = half(&mut rig, "m");
    let cap = Cap { measure: Measure::Usd, per: Per::Day, most: 500_000_000 };
    rig.settings.budgets.insert(Queue::standard(), cap);
    let jobs: Vec<_> = (0..300).map(|_| bounded("m", "b", 1_000, Extras::default())).collect();
    put(&rig, &jobs).await;
    for _ in 0..2 {
        rig.settings.worker = WorkerId::random("w");
        rig.start();
    }
    rig.shows(|status| status.spent == ["budget:default"]).await;
    sleep(Duration::from_secs(60)).await;
    let called = runner.started();
    assert!((95..=100).contains(&called), "{called}");
    let (used, held) = used(&rig, "budget:default").await;
    assert_eq!((used, held), (i64::from(called) * 5_000_000, 0));
    assert!(rig.board.now().finished.released <= 60, "{:?}", rig.board.now().finished);
}

#[tokio::test(start_paused = true)]
async fn a_worker_of_one_batch_leases_no_more_of_it_than_there_is_money_for() {
    let mut rig = rig();
    half(&mut rig, "m");
    rig.settings.own_batch = Some(BatchName::new("b").unwrap());
    let jobs: Vec<_> = (0..500).map(|_| bounded("m", "b", 1_000, capped("0.1"))).collect();
    put(&rig, &jobs).await;
    rig.start();
    rig.shows(|status| status.broke(Duration::ZERO, Timestamp::now()).is_some()).await;
    let finished = rig.board.now().finished;
    assert!((18..=20).contains(&finished.succeeded) && finished.released <= 40, "{finished:?}");
}

#[tokio::test(start_paused = true)]
async fn what_may_cost_more_than_its_own_cap_is_dead_with_both_figures() {
    let mut rig = rig();
    let tried = rig.runs(
        "tried",
        Scripted::new(KEY, |_, cx| {
            let mut cut = Failure::new(FailureClass::Transient, "cut", "cut");
            cut.cost = Some(usd("0.015"));
            if cx.attempt > 1 { Play::Answer("ok".into()) } else { Play::Fail(cut) }
        }),
    );
    let runner = half(&mut rig, "m");
    let own = |most: &str| Extras { max_cost: Some(usd(most)), ..Extras::default() };
    let mut jobs = vec![bounded("m", "b", 2_000, own("0.0199")), bounded("m", "b", 2_000, own("0.02"))];
    jobs.push(bounded("tried", "b", 1_000, own("0.02")));
    let mut unbounded = bounded("m", "b", 1, own("1"));
    unbounded.work = Work::prompt(Some("m"), "x");
    jobs.push(unbounded);
    let ids = put(&rig, &jobs).await;
    rig.start();
    assert_eq!(rig.ends(&ids).await, [End::Dead, End::Succeeded, End::Dead, End::Dead]);
    let mut causes = Vec::new();
    for id in [ids[0], ids[2], ids[3]] {
        causes.push(rig.record(id).await.cause.unwrap());
    }
    assert!(causes[0].detail.contains("$0.02: its"), "{:?}", causes[0]);
    assert!(causes[0].code == "larger_than_max_cost" && causes[0].detail.contains("$0.0199"), "{:?}", causes[0]);
    assert!(causes[1].detail.contains("$0.01, and has cost $0.015 before"), "{:?}", causes[1]);
    assert_eq!((causes[2].code.as_str(), runner.started(), tried.started()), ("no_max_tokens", 1, 1));
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_not_put_aside_for_a_call_that_its_job_may_not_make() {
    let mut rig = rig();
    let script = |_: &Job, _: &RunContext| {
        let (class, cost) = (AnswerClass::Truncated, Some(usd("0.005")));
        Play::Reply(Box::new(Reply { status_code: 200, class, cost, ..Reply::default() }))
    };
    rig.runs("m", Scripted::new(KEY, script));
    let jobs = [("0.0149", 1), ("0.015", 2), ("0.02", 3), ("1", 4)].map(|(most, calls)| {
        let mut job = bounded("m", "b", 1_000, Extras { max_cost: Some(usd(most)), ..Extras::default() });
        job.policy.repair_attempts = 3;
        (job, calls)
    });
    put(&rig, &jobs.clone().map(|(job, _)| job)).await;
    rig.start();
    for (job, calls) in jobs {
        assert_eq!(rig.ends(&[job.id]).await, [End::Succeeded]);
        assert_eq!(rig.record(job.id).await.attempts, calls, "{:?}", job.extras);
    }
}

#[tokio::test(start_paused = true)]
async fn what_has_no_price_waits_under_a_cap_and_says_so() {
    let mut rig = rig();
    let unknown = rig.runs("unknown", Scripted::new("acme/unknown", |_, _| Play::Answer("ok".into())));
    let ids =
        put(&rig, &[bounded("unknown", "b", 1_000, capped("1")), bounded("unknown", "c", 9, Extras::default())]).await;
    rig.start();
    assert_eq!(rig.ends(&ids[1..]).await, [End::Succeeded], "nobody caps it");
    let status = rig.shows(|status| !status.spent.is_empty()).await;
    assert_eq!(status.blocked[0].by, held("batch:b"));
    assert!(
        status.blocked[0].detail.contains("acme/unknown") && status.blocked[0].detail.contains("hint:"),
        "{status:?}"
    );
    assert!(rig.view(ids[0]).await.hold.is_some() && unknown.started() == 1);
    rig.drain().await;
    let price = Price::flat(Usd::default(), "10".parse().unwrap());
    rig.settings.prices = Prices::new([("acme/unknown".to_owned(), price)], BTreeMap::new());
    (rig.stop, rig.settings.worker) = (Stop::new(), WorkerId::random("w"));
    let begun = tokio::time::Instant::now();
    rig.start();
    assert_eq!(rig.ends(&ids).await, [End::Succeeded; 2]);
    assert!(begun.elapsed() < Duration::from_secs(10), "a worker that starts wakes it: {:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn what_a_run_caps_now_holds_for_jobs_that_were_enqueued_without_a_cap() {
    let mut rig = rig();
    half(&mut rig, "m");
    rig.settings.own_batch = Some(BatchName::new("b").unwrap());
    rig.settings.own_cap = Some(usd("0.1"));
    let jobs: Vec<_> = (0..60).map(|_| bounded("m", "b", 1_000, Extras::default())).collect();
    put(&rig, &jobs).await;
    rig.start();
    rig.shows(|status| status.broke(Duration::ZERO, Timestamp::now()).is_some()).await;
    let succeeded = rig.board.now().finished.succeeded;
    assert!((18..=20).contains(&succeeded), "{succeeded}");
}

#[tokio::test(start_paused = true)]
async fn calls_that_nobody_knows_the_cost_of_count_as_the_worst() {
    let mut rig = rig();
    let cut = rig.runs(
        "cut",
        Scripted::new(KEY, |_, cx| {
            let mut cut = Failure::new(FailureClass::UnknownBilled, "cut", "cut");
            cut.cost = Some(usd("0.001"));
            if cx.attempt > 1 { Play::Answer("ok".into()) } else { Play::Fail(cut) }
        }),
    );
    let plain = half(&mut rig, "m");
    let own = Extras { max_cost: Some(usd("0.015")), ..Extras::default() };
    let ids = put(&rig, &[bounded("m", "b", 1_000, own.clone())]).await;
    let other = WorkerId::random("other");
    let delivery = lease_as(&rig, &other).await;
    rig.broker.recover(&other).await.unwrap();
    drop(delivery);
    let guessed = put(&rig, &[bounded("cut", "b", 1_000, own)]).await;
    rig.start();
    assert_eq!(rig.ends(&ids).await, [End::Dead], "the worker that died may have called");
    assert_eq!(rig.ends(&guessed).await, [End::Dead], "a guess at what a cut call cost is no bound");
    assert_eq!((plain.started(), cut.started()), (0, 1));
    for id in [ids[0], guessed[0]] {
        let detail = rig.record(id).await.cause.unwrap().detail;
        assert!(detail.contains("$0.01, and may have cost $0.01 before"), "{detail}");
    }
}

#[tokio::test(start_paused = true)]
async fn images_have_a_bound_and_what_else_is_no_text_has_none() {
    let mut rig = rig();
    let runner = rig.runs("m", Scripted::new(KEY, |_, _| Play::Answer("ok".into())));
    let price = Price::flat("10".parse().unwrap(), Usd::default());
    rig.settings.prices = Prices::new([(KEY.to_owned(), price)], BTreeMap::new());
    let showing = |part: &str, most: Option<&str>| {
        let body = format!(r#"{{"messages":[{{"role":"user","content":[{part}]}}]}}"#);
        let input = Input::Request { url: "/v1/chat/completions".into(), body };
        let extras = Extras { max_cost: most.map(usd), ..Extras::default() };
        Job { extras: extras.kept(), ..Job::new(Queue::standard(), Work { model: Some("m".into()), input }) }
    };
    let image = r#"{"type":"image_url","image_url":{"url":"https://far/a.png"}}"#;
    let inline =
        format!(r#"{{"type":"image_url","image_url":{{"url":"data:image/png;base64,{}"}}}}"#, "A".repeat(200_000));
    let file = r#"{"type":"file","file":{"file_id":"f"}}"#;
    let jobs = [
        showing(image, Some("0.48")),
        showing(image, Some("0.5")),
        showing(file, Some("100")),
        showing(file, None),
        showing(&inline, Some("0.5")),
    ];
    let ids = put(&rig, &jobs).await;
    rig.start();
    assert_eq!(rig.ends(&ids).await, [End::Dead, End::Succeeded, End::Dead, End::Succeeded, End::Succeeded]);
    assert_eq!(rig.record(ids[0]).await.cause.unwrap().code, "larger_than_max_cost");
    let unknown = rig.record(ids[2]).await.cause.unwrap();
    assert!(unknown.code == "cost_unknown" && unknown.detail.contains("\"file\""), "{unknown:?}");
    assert_eq!(runner.started(), 3);
}

#[tokio::test(start_paused = true)]
async fn what_only_its_own_cap_holds_back_is_shown_under_its_models_key() {
    let mut rig = rig();
    rig.runs("unknown", Scripted::new("acme/unknown", |_, _| Play::Answer("ok".into())));
    let own = Extras { max_cost: Some(usd("1")), ..Extras::default() };
    let ids = put(&rig, &[bounded("unknown", "b", 9, own)]).await;
    rig.start();
    let status = rig.shows(|status| !status.spent.is_empty()).await;
    assert_eq!(status.blocked[0].by, held("acme/unknown"));
    let hold = rig.view(ids[0]).await.hold.unwrap();
    assert_eq!((&hold, hold.limit_key().as_str()), (&HoldKey::Limit("acme/unknown".into()), "acme/unknown"));
}
