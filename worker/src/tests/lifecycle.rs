//! What becomes of one job: answers, failures, deaths, cancels, lost leases.

use promptq_common::broker::Verdict;
use promptq_common::price::{Price, Prices};
use promptq_common::record::{Output, State};
use promptq_common::time::Timestamp;

use super::*;

#[tokio::test(start_paused = true)]
async fn a_job_is_run_and_its_answer_recorded() {
    let mut rig = Rig::new();
    rig.runs("m", Scripted::new("m", |_, cx| Play::Answer(format!("attempt {}", cx.attempt))));
    let ids = rig.submit("m", 3).await;
    rig.start();
    assert_eq!(rig.ends(&ids).await, [End::Succeeded; 3]);
    let record = rig.record(ids[0]).await;
    assert_eq!(record.answer.unwrap().output, Output::Inline(Body::Text("attempt 1".into())));
    assert_eq!((record.attempts, record.history.recent.len(), record.worker.is_some()), (1, 1, true));
    let drained = rig.drain().await;
    assert_eq!((drained.finished.succeeded, drained.handed_back, drained.exit_code()), (3, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_failed_attempt_is_repeated_until_the_policy_ends_it() {
    let mut rig = Rig::new();
    rig.runs(
        "m",
        Scripted::new("m", |_, cx| match cx.attempt {
            1 => failure(FailureClass::Transient, 500),
            _ => Play::Answer("ok".into()),
        }),
    );
    let never = rig.runs(
        "never",
        Scripted::new("never", |_, _| Play::Fail(Failure::new(FailureClass::Transient, "exit_1", "as scripted"))),
    );
    let (good, bad) = (rig.submit("m", 1).await[0], rig.submit("never", 1).await[0]);
    rig.start();
    assert_eq!(rig.ends(&[good, bad]).await, [End::Succeeded, End::Dead]);
    assert_eq!(rig.record(good).await.attempts, 2);
    let record = rig.record(bad).await;
    assert_eq!((record.attempts, never.started(), record.cause.unwrap().code.as_str()), (5, 5, "exit_1"));
}

#[tokio::test(start_paused = true)]
async fn after_a_504_the_answer_is_asked_for_as_a_stream() {
    let mut rig = Rig::new();
    rig.runs(
        "m",
        Scripted::new("m", |_, cx| match cx.attempt {
            1 => failure(FailureClass::Transient, 504),
            2 => failure(FailureClass::Transient, if cx.stream { 500 } else { 400 }),
            _ => Play::Answer(format!("{}", cx.stream)),
        }),
    );
    let id = rig.submit("m", 1).await[0];
    rig.start();
    assert_eq!(rig.ends(&[id]).await, [End::Succeeded]);
    let record = rig.record(id).await;
    assert_eq!(record.history.recent[1].status_code, Some(500));
    assert_eq!(record.answer.unwrap().output, Output::Inline(Body::Text("false".into())));
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_a_crash_and_stays_in_its_job() {
    let mut rig = Rig::new();
    rig.runs("m", Scripted::new("m", |_, cx| if cx.attempt < 3 { Play::Panic } else { Play::Answer("ok".into()) }));
    let id = rig.submit("m", 1).await[0];
    rig.start();
    assert_eq!(rig.ends(&[id]).await, [End::Succeeded]);
    let classes: Vec<_> = rig.record(id).await.history.recent.iter().map(|attempt| attempt.class).collect();
    assert_eq!(classes, [Some(FailureClass::Crashed), Some(FailureClass::Crashed), None]);
}

#[tokio::test(start_paused = true)]
async fn a_job_nobody_can_run_or_read_is_dead_at_once() {
    let mut rig = Rig::new();
    let strange = rig.submit("no such model", 1).await[0];
    rig.start();
    assert_eq!(rig.ends(&[strange]).await, [End::Dead]);
    let record = rig.record(strange).await;
    assert_eq!((record.attempts, record.cause.unwrap().class), (0, Some(FailureClass::Fatal)));
}

#[tokio::test(start_paused = true)]
async fn a_runner_that_may_take_longer_is_left_to_it() {
    let mut rig = Rig::new();
    let runner = Scripted::new("m", |_, _| Play::After(Duration::from_secs(10)));
    rig.runs("m", Scripted { times: 6, ..runner });
    let mut slow = job("m", "slow");
    (slow.policy.timeout, slow.policy.attempts) = (Duration::from_secs(2), 1);
    rig.broker.enqueue(&[slow.clone()]).await.unwrap();
    rig.start();
    assert_eq!(rig.ends(&[slow.id]).await, [End::Succeeded]);
}

#[tokio::test(start_paused = true)]
async fn a_runner_that_does_not_keep_the_time_is_cut() {
    let mut rig = Rig::new();
    rig.runs("m", Scripted { billed: false, ..Scripted::new("m", |_, _| Play::Forever) });
    let mut slow = job("m", "slow");
    (slow.policy.timeout, slow.policy.attempts) = (Duration::from_secs(2), 1);
    rig.broker.enqueue(&[slow.clone()]).await.unwrap();
    rig.start();
    assert_eq!(rig.ends(&[slow.id]).await, [End::Dead]);
    assert_eq!(rig.record(slow.id).await.cause.unwrap().class, Some(FailureClass::TimedOut));
}

#[tokio::test(start_paused = true)]
async fn the_third_death_ends_a_job() {
    let mut rig = Rig::new();
    let runner = rig.runs("m", Scripted::new("m", |_, _| Play::Answer("ok".into())));
    let ids = rig.submit("m", 1).await;
    for deaths in 1..=3 {
        let other = WorkerId::random("other");
        let delivery = lease_as(&rig, &other).await;
        rig.broker.recover(&other).await.unwrap();
        drop(delivery);
        assert_eq!(rig.view(ids[0]).await.deaths, deaths);
    }
    rig.start();
    assert_eq!(rig.ends(&ids).await, [End::Dead]);
    let record = rig.record(ids[0]).await;
    let cause = record.cause.unwrap();
    assert_eq!((cause.code.as_str(), cause.class, runner.started()), ("crash_loop", Some(FailureClass::Crashed), 0));
    assert_eq!(record.history.known_cost(), None, "what they died of may have been billed");
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_job_is_stopped_within_a_heartbeat() {
    let mut rig = Rig::new();
    let runner = rig.runs("m", Scripted::new("m", |_, _| Play::Forever));
    let ids = rig.submit("m", 1).await;
    rig.start();
    rig.until(async || runner.running() == 1).await;
    rig.broker.cancel(&ids).await.unwrap();
    let asked = tokio::time::Instant::now();
    rig.until(async || runner.running() == 0).await;
    assert!(asked.elapsed() <= rig.settings.heartbeat, "{:?}", asked.elapsed());
    assert_eq!(rig.ends(&ids).await, [End::Cancelled]);
    let history = rig.record(ids[0]).await.history;
    assert_eq!((history.unknown_billed, history.usage.input_tokens), (1, 7), "the cut call may have been billed");
}

#[tokio::test(start_paused = true)]
async fn what_a_run_cost_is_in_its_record_however_it_ended() {
    let mut rig = Rig::new();
    let price = Price::flat("2".parse().unwrap(), "10".parse().unwrap());
    rig.settings.prices = Prices::new([("acme/m".to_owned(), price)], BTreeMap::new());
    let mut refused = Failure::new(FailureClass::Content, "refused", "as scripted");
    refused.usage = Usage { input_tokens: 30, output_tokens: 4, ..Usage::default() };
    rig.runs("fails", Scripted::new("acme/m", move |_, _| Play::Fail(refused.clone())));
    let cut = rig.runs("cut", Scripted::new("acme/m", |_, _| Play::Forever));
    let ids = [rig.submit("fails", 1).await, rig.submit("cut", 1).await].concat();
    rig.start();
    rig.until(async || cut.running() == 1).await;
    rig.broker.cancel(&ids[1..]).await.unwrap();
    assert_eq!(rig.ends(&ids).await, [End::Dead, End::Cancelled]);
    for (id, cost) in ids.iter().zip(["0.0001", "0.000014"]) {
        assert_eq!(
            rig.record(*id).await.history.cost,
            Some(cost.parse().unwrap()),
            "30 x 2 + 4 x 10, and a guess of 7 x 2"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_lets_a_paid_call_finish_and_keeps_its_answer() {
    let mut rig = Rig::new();
    rig.settings.concurrency = 1;
    let runner = rig.runs("m", Scripted::new("m", |_, _| Play::After(Duration::from_secs(30))));
    let ids = rig.submit("m", 1).await;
    rig.start();
    rig.until(async || runner.running() == 1).await;
    rig.broker.recover(&rig.settings.worker).await.unwrap();
    assert_eq!(rig.ends(&ids).await, [End::Succeeded]);
    assert_eq!(runner.started(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_stops_what_acts_on_the_world() {
    let mut rig = Rig::new();
    rig.settings.concurrency = 1;
    let script = |_: &Job, _: &RunContext| Play::After(Duration::from_secs(30));
    let runner = rig.runs("m", Scripted { lost: WhenLost::Stop, billed: false, ..Scripted::new("m", script) });
    let ids = rig.submit("m", 1).await;
    rig.start();
    rig.until(async || runner.running() == 1).await;
    rig.broker.recover(&rig.settings.worker).await.unwrap();
    let asked = tokio::time::Instant::now();
    rig.until(async || runner.started() == 2).await;
    assert!(asked.elapsed() <= rig.settings.heartbeat + Duration::from_secs(1), "stopped, then run anew");
    assert_eq!((rig.ends(&ids).await, runner.most.load(Ordering::SeqCst)), (vec![End::Succeeded], 1));
}

#[tokio::test(start_paused = true)]
async fn a_job_that_ended_elsewhere_is_dropped() {
    let mut rig = Rig::new();
    rig.settings.concurrency = 1;
    let runner = rig.runs("m", Scripted::new("m", |_, _| Play::Forever));
    rig.submit("m", 1).await;
    rig.start();
    rig.until(async || runner.running() == 1).await;
    rig.broker.recover(&rig.settings.worker).await.unwrap();
    let delivery = lease_as(&rig, &WorkerId::random("other")).await;
    let record = Record::unrun(&delivery.head, End::Succeeded, None, Timestamp::now());
    delivery.lease.settle(Verdict::End(Box::new(record))).await.unwrap();
    let ended = tokio::time::Instant::now();
    rig.until(async || runner.running() == 0).await;
    assert!(ended.elapsed() <= rig.settings.heartbeat, "{:?}", ended.elapsed());
    let drained = rig.drain().await;
    assert_eq!((drained.finished.dropped, drained.finished.ended()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn beats_that_fail_are_repeated_until_the_lease_is_over() {
    let mut rig = Rig::new();
    rig.settings.concurrency = 1;
    let runner = rig.runs("m", Scripted { lost: WhenLost::Stop, ..Scripted::new("m", |_, _| Play::Forever) });
    rig.submit("m", 1).await;
    rig.start();
    rig.until(async || runner.running() == 1).await;
    let began = tokio::time::Instant::now();
    Faults::set(&rig.faults.beat, true);
    sleep(Duration::from_secs(30)).await;
    assert_eq!(runner.running(), 1, "a short outage is nothing");
    Faults::set(&rig.faults.beat, false);
    sleep(Duration::from_secs(60)).await;
    assert_eq!((runner.running(), runner.started()), (1, 1));
    Faults::set(&rig.faults.beat, true);
    Faults::set(&rig.faults.next, true);
    rig.until(async || runner.running() == 0).await;
    let over = began.elapsed().as_secs_f64() - 90.0;
    assert!((35.0..=45.5).contains(&over), "lost when the lease was over, {over} s later");
}

#[tokio::test(start_paused = true)]
async fn a_job_past_its_deadline_expires() {
    let mut rig = Rig::new();
    let runner = rig.runs("m", Scripted::new("m", |_, _| Play::Answer("ok".into())));
    let mut late = job("m", "late");
    late.deadline = Timestamp::now() + Duration::from_millis(20);
    rig.broker.enqueue(&[late.clone()]).await.unwrap();
    sleep(Duration::from_millis(30)).await;
    rig.start();
    assert_eq!(rig.ends(&[late.id]).await, [End::Expired]);
    assert_eq!(runner.started(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_large_answer_goes_to_the_store_before_its_record() {
    let mut rig = Rig::new();
    let store = Store::memory();
    rig.store = Some(store.clone());
    rig.runs("m", Scripted::new("m", |_, _| Play::Answer("x".repeat(70_000))));
    let id = rig.submit("m", 1).await[0];
    rig.start();
    assert_eq!(rig.ends(&[id]).await, [End::Succeeded]);
    let output = rig.record(id).await.answer.unwrap().output;
    let Output::Stored(stored) = output else { panic!("{output:?}") };
    assert_eq!(store.get_output(&stored).await.unwrap(), Body::Text("x".repeat(70_000)));
}

#[tokio::test(start_paused = true)]
async fn an_answer_too_large_for_a_record_without_a_store_is_dead_with_its_cost() {
    let mut rig = Rig::new();
    rig.settings.inline_max = 10;
    rig.runs("m", Scripted::new("m", |_, _| Play::Answer("x".repeat(11))));
    let id = rig.submit("m", 1).await[0];
    rig.start();
    assert_eq!(rig.ends(&[id]).await, [End::Dead]);
    let record = rig.record(id).await;
    assert_eq!((record.cause.unwrap().code.as_str(), record.attempts), ("output_too_large", 1));
}

#[tokio::test(start_paused = true)]
async fn jobs_of_a_paused_queue_wait() {
    let mut rig = Rig::new();
    let runner = rig.runs("m", Scripted::new("m", |_, _| Play::Answer("ok".into())));
    rig.broker.pause(&Queue::standard(), Some("maintenance")).await.unwrap();
    let ids = rig.submit("m", 1).await;
    rig.start();
    sleep(Duration::from_secs(20)).await;
    assert_eq!((runner.started(), rig.view(ids[0]).await.state), (0, State::Queued));
    rig.broker.pause(&Queue::standard(), None).await.unwrap();
    assert_eq!(rig.ends(&ids).await, [End::Succeeded]);
}

#[tokio::test(start_paused = true)]
async fn a_worker_for_one_batch_runs_no_other() {
    let mut rig = Rig::new();
    rig.settings.own_batch = Some("mine".parse().unwrap());
    let runner = rig.runs("m", Scripted::new("m", |_, _| Play::Answer("ok".into())));
    let (mut own, foreign) = (job("m", "own"), job("m", "foreign"));
    own.batch = rig.settings.own_batch.clone();
    rig.broker.enqueue(&[own.clone(), foreign.clone()]).await.unwrap();
    rig.start();
    assert_eq!(rig.ends(&[own.id, foreign.id]).await, [End::Succeeded, End::Dead]);
    assert_eq!(runner.started(), 1);
}
