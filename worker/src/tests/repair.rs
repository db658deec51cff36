//! Answers that are not whole: kept as they are unless the policy says otherwise, and what it takes when it does.

use promptq_common::broker::Verdict;
use promptq_common::job::Extras;
use promptq_common::outcome::{AnswerClass, Attempt};
use promptq_common::record::Output;
use promptq_common::time::Timestamp;

use super::*;
use crate::reuse::plain_key;

/// An answer of this class, which cost so many billionths of a dollar.
fn reply(class: AnswerClass, nanos: i64) -> Play {
    let usage = Usage { input_tokens: 5, output_tokens: 2, ..Usage::default() };
    let (cost, finish_reason) = (Some(Usd::from_nanos(nanos)), Some("length".to_owned()));
    let body = Body::Text(format!("for {nanos}"));
    Play::Reply(Box::new(Reply { status_code: 200, body, class, finish_reason, usage, cost, ..Reply::default() }))
}

/// A job that may be tried and repaired so often.
fn repaired(attempts: u32, repairs: u32) -> Job {
    let mut job = job("m", "x");
    (job.policy.attempts, job.policy.repair_attempts) = (attempts, repairs);
    job
}

async fn ended(rig: &Rig, job: &Job) -> (End, Record) {
    rig.broker.enqueue(std::slice::from_ref(job)).await.unwrap();
    (rig.ends(&[job.id]).await[0], rig.record(job.id).await)
}

fn text(record: &Record) -> &str {
    match &record.answer.as_ref().unwrap().output {
        Output::Inline(Body::Text(text)) => text,
        Output::Inline(Body::Json(_)) | Output::Stored(_) => panic!("no text in the record"),
    }
}

fn codes(record: &Record) -> Vec<&str> {
    record.history.recent.iter().map(|attempt| attempt.code.as_deref().unwrap_or("ok")).collect()
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_not_whole_is_a_success_with_its_class_and_is_paid_once() {
    let mut rig = Rig::new();
    let classes = [AnswerClass::Truncated, AnswerClass::Refused, AnswerClass::InvalidOutput];
    let at = AtomicU32::new(0);
    let script = move |_: &Job, _: &RunContext| reply(classes[at.fetch_add(1, Ordering::SeqCst) as usize], 7);
    let runner = rig.runs("m", Scripted::new("m", script));
    rig.start();
    for (class, detail) in [
        ("truncated", "the answer was cut off (length)"),
        ("refused", "the answer was refused (length)"),
        ("invalid_output", "the answer is empty (length)"),
    ] {
        let (end, record) = ended(&rig, &repaired(5, 0)).await;
        assert_eq!((end, record.class_name(), record.attempts), (End::Succeeded, Some(class), 1));
        assert_eq!(record.history.recent[0].detail.as_deref(), Some(detail));
        assert_eq!((text(&record), record.history.cost), ("for 7", Some(Usd::from_nanos(7))));
    }
    assert_eq!(runner.started(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_reason_that_nobody_knows_is_no_fault() {
    let mut rig = Rig::new();
    let runner = rig.runs("m", Scripted::new("m", |_, _| reply(AnswerClass::Unknown, 1)));
    rig.start();
    let (end, record) = ended(&rig, &repaired(5, 9)).await;
    assert_eq!((end, record.class_name(), runner.started()), (End::Succeeded, None, 1));
}

#[tokio::test(start_paused = true)]
async fn a_job_is_called_again_until_an_answer_is_whole_and_pays_for_each() {
    let mut rig = Rig::new();
    let script = |_: &Job, cx: &RunContext| match cx.attempt {
        1 => reply(AnswerClass::Truncated, 10),
        2 => reply(AnswerClass::Refused, 100),
        _ => reply(AnswerClass::Complete, 1_000),
    };
    rig.runs("m", Scripted::new("m", script));
    rig.start();
    let (end, record) = ended(&rig, &repaired(1, 5)).await;
    assert_eq!((end, record.class_name(), text(&record)), (End::Succeeded, None, "for 1000"));
    assert_eq!(codes(&record), ["truncated", "refused", "ok"]);
    assert_eq!((record.history.cost, record.history.usage.input_tokens), (Some(Usd::from_nanos(1_110)), 15));
}

#[tokio::test(start_paused = true)]
async fn answers_and_failures_have_each_their_own_budget() {
    let mut rig = Rig::new();
    let script = |_: &Job, cx: &RunContext| match cx.attempt {
        2 | 4 => failure(FailureClass::Transient, 500),
        attempt => reply(AnswerClass::Truncated, attempt.into()),
    };
    let runner = rig.runs("m", Scripted::new("m", script));
    rig.start();
    let (end, record) = ended(&rig, &repaired(3, 2)).await;
    assert_eq!((end, record.class_name(), text(&record)), (End::Succeeded, Some("truncated"), "for 5"));
    assert_eq!(codes(&record), ["truncated", "scripted", "truncated", "scripted", "truncated"]);
    assert_eq!((record.attempts, runner.started()), (5, 5), "the last answer is kept as it is");
    let (end, record) = ended(&rig, &repaired(2, 2)).await;
    assert_eq!((end, codes(&record).len()), (End::Dead, 4), "the second failure is the last");
    assert_eq!(record.history.cost, Some(Usd::from_nanos(4)), "what was put aside was paid");
}

#[tokio::test(start_paused = true)]
async fn what_other_workers_put_aside_counts_whatever_became_of_them() {
    let mut rig = Rig::new();
    let runner = rig.runs("m", Scripted::new("m", |_, _| reply(AnswerClass::Truncated, 1)));
    let job = repaired(5, 1);
    rig.broker.enqueue(std::slice::from_ref(&job)).await.unwrap();
    let (first, second) = (WorkerId::random("first"), WorkerId::random("second"));
    let delivery = lease_as(&rig, &first).await;
    let aside = Attempt {
        n: 1,
        worker: "first".to_owned(),
        started_at: Timestamp::now(),
        ended_at: Timestamp::now(),
        class: None,
        code: Some("truncated".to_owned()),
        detail: None,
        status_code: Some(200),
        usage: Usage::default(),
        cost: Some(Usd::from_nanos(1)),
    };
    delivery.lease.settle(Verdict::Retry { after: Duration::ZERO, attempt: Box::new(aside) }).await.unwrap();
    // Another one dies over it.
    let delivery = lease_as(&rig, &second).await;
    rig.broker.recover(&second).await.unwrap();
    drop(delivery);
    rig.start();
    assert_eq!(rig.ends(&[job.id]).await, [End::Succeeded]);
    let record = rig.record(job.id).await;
    assert_eq!((record.class_name(), record.attempts, runner.started()), (Some("truncated"), 2, 1));
    assert_eq!(record.history.cost, Some(Usd::from_nanos(2)));
}

#[tokio::test(start_paused = true)]
async fn a_late_answer_is_kept_and_not_asked_for_again() {
    let mut rig = Rig::new();
    rig.settings.concurrency = 1;
    let script =
        |_: &Job, _: &RunContext| Play::Wait(Duration::from_secs(30), Box::new(reply(AnswerClass::Truncated, 1)));
    let runner = rig.runs("m", Scripted::new("m", script));
    let job = repaired(5, 3);
    rig.broker.enqueue(std::slice::from_ref(&job)).await.unwrap();
    rig.start();
    rig.until(async || runner.running() == 1).await;
    rig.broker.recover(&rig.settings.worker).await.unwrap();
    assert_eq!(rig.ends(&[job.id]).await, [End::Succeeded]);
    assert_eq!((rig.record(job.id).await.class_name(), runner.started()), (Some("truncated"), 1));
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_kept_once_there_is_no_time_for_another() {
    let mut rig = Rig::new();
    let script = |_: &Job, _: &RunContext| Play::Wait(Duration::from_secs(1), Box::new(reply(AnswerClass::Refused, 1)));
    let runner = rig.runs("m", Scripted::new("m", script));
    rig.start();
    // Paused time stands still for the clock on the wall.
    let job = Job { deadline: Timestamp::now() + Duration::from_millis(400), ..repaired(5, 3) };
    rig.broker.enqueue(std::slice::from_ref(&job)).await.unwrap();
    rig.until(async || runner.running() == 1).await;
    while job.deadline > Timestamp::now() {
        tokio::task::yield_now().await;
    }
    assert_eq!(rig.ends(&[job.id]).await, [End::Succeeded]);
    assert_eq!((rig.record(job.id).await.class_name(), runner.started()), (Some("refused"), 1));
}

#[tokio::test(start_paused = true)]
async fn only_whole_answers_are_kept_for_others() {
    let (mut rig, store) = (Rig::new(), Store::memory());
    rig.store = Some(store.clone());
    let classes = [AnswerClass::Truncated, AnswerClass::Refused, AnswerClass::InvalidOutput, AnswerClass::Unknown];
    let at = AtomicU32::new(0);
    let script = move |_: &Job, _: &RunContext| {
        let class = classes.get(at.fetch_add(1, Ordering::SeqCst) as usize).copied();
        reply(class.unwrap_or_default(), 1)
    };
    rig.runs("m", Scripted::new("m", script));
    rig.start();
    let asking = || {
        let extras = Extras { reuse: Some(Duration::from_secs(3_600)), ..Extras::default() };
        Job { extras: extras.kept(), ..job("m", "q") }
    };
    for class in classes {
        assert_eq!(ended(&rig, &asking()).await.0, End::Succeeded);
        sleep(Duration::from_secs(5)).await;
        assert!(store.reusable(&plain_key(&asking())).await.unwrap().is_none(), "{class}");
    }
    let whole = asking();
    assert_eq!(ended(&rig, &whole).await.0, End::Succeeded);
    rig.until(async || store.reusable(&plain_key(&whole)).await.unwrap().is_some_and(|kept| kept.job == whole.id))
        .await;
}
