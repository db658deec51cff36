//! Cases: the ends of a job, its deadline, and counts that follow every path.

use std::time::Duration;

use promptq_common::broker::{Cancel, Depth, Retention, Verdict};
use promptq_common::job::{Job, Queue};
use promptq_common::ledger::Cursor;
use promptq_common::outcome::{History, Usage, Usd};
use promptq_common::record::{End, State};
use promptq_common::time::Timestamp;
use promptq_tests::backends::{Fixture, LONG};
use promptq_tests::fixture::{self, COST, USAGE, batch, job, job_of, registered, retry};
use promptq_tests::steps::{end, eventually, put, put_one, record, recount, see, state, sweep, view};

const MOMENT: Duration = Duration::from_millis(250);

pub(crate) async fn every_end_is_what_is_seen_of_the_job(f: Fixture) {
    let mut worker = f.worker().await;
    for how in End::ALL {
        let id = put_one(&f.broker, job()).await;
        worker.ends_one(how).await;
        let seen = see(&f.broker, id).await;
        assert_eq!((seen.state, seen.record.unwrap().end), (how.into(), how));
        assert!(seen.worker.is_none() && seen.leased_at.is_none() && seen.due.is_none());
    }
}

pub(crate) async fn a_record_comes_back_as_it_was_stored(f: Fixture) {
    let mut job = Job { custom_id: Some("x".into()), row: Some(4), tenant: Some("acme".into()), ..job_of(&batch("b")) };
    job.tags.insert("team".into(), "search".into());
    put(&f.broker, std::slice::from_ref(&job)).await;
    let delivery = f.worker().await.one().await;
    let mut expected = fixture::record(&delivery.head, delivery.lease.id(), End::Succeeded);
    expected.answer = Some(fixture::stored_answer("out/x"));
    let verdict = Verdict::End(Box::new(expected.clone()));
    delivery.lease.settle(verdict).await.unwrap();
    assert_eq!(record(&f.broker, job.id).await, expected);
}

pub(crate) async fn a_running_job_names_its_worker(f: Fixture) {
    let id = put_one(&f.broker, job()).await;
    let mut worker = f.worker().await;
    let _delivery = worker.one().await;
    let seen = see(&f.broker, id).await;
    assert_eq!((seen.state, seen.worker.as_deref()), (State::Running, Some(worker.id.as_str())));
    assert!(seen.leased_at.is_some());
}

pub(crate) async fn a_delayed_job_is_never_early(f: Fixture) {
    let due = Timestamp::now() + MOMENT;
    let id = put_one(&f.broker, Job { not_before: Some(due), ..registered() }).await;
    let seen = see(&f.broker, id).await;
    assert_eq!((seen.state, seen.due), (State::Scheduled, Some(due)));
    assert_eq!(f.broker.depth(&Queue::standard()).await.unwrap().delayed, 1);
    let delivery = f.worker().await.one_asking_often().await;
    assert_eq!(delivery.head.id, id);
    assert!(Timestamp::now() >= due, "leased before its time");
}

pub(crate) async fn a_delayed_job_does_not_hold_up_the_others(f: Fixture) {
    let late = Job { not_before: Some(Timestamp::now() + LONG), ..job() };
    put(&f.broker, std::slice::from_ref(&late)).await;
    let id = put_one(&f.broker, job()).await;
    assert_eq!(f.worker().await.one().await.head.id, id);
}

pub(crate) async fn a_passed_deadline_shows_as_expired_at_once(f: Fixture) {
    let soon = Timestamp::now() + MOMENT;
    let delayed = Job { deadline: soon, not_before: Some(soon + LONG), ..registered() };
    let ids = [put_one(&f.broker, Job { deadline: soon, ..registered() }).await, put_one(&f.broker, delayed).await];
    assert_eq!(state(&f.broker, ids[0]).await, State::Queued);
    let broker = &f.broker;
    eventually("the deadline has passed", || async { (Timestamp::now() > soon + MOMENT / 10).then_some(()) }).await;
    for id in ids {
        assert_eq!(state(broker, id).await, State::Expired);
    }
}

pub(crate) async fn a_job_past_its_deadline_is_never_leased(f: Fixture) {
    let late = Job { deadline: Timestamp::now() - Duration::from_millis(1), ..job_of(&batch("b")) };
    put(&f.broker, std::slice::from_ref(&late)).await;
    let id = put_one(&f.broker, job_of(&batch("b"))).await;
    let mut worker = f.worker().await;
    assert_eq!(worker.one().await.head.id, id);
    worker.finds_nothing().await;
    let counts = recount(&f.broker, &batch("b")).await;
    assert_eq!((counts.expired, counts.running), (1, 1));
}

pub(crate) async fn a_sweep_ends_what_passed_its_deadline(f: Fixture) {
    let late = Job { deadline: Timestamp::now() - Duration::from_millis(1), ..job_of(&batch("b")) };
    put(&f.broker, std::slice::from_ref(&late)).await;
    put_one(&f.broker, job_of(&batch("b"))).await;
    assert_eq!(sweep(&f.broker, &Retention::standard()).await.expired, 1);
    assert_eq!(sweep(&f.broker, &Retention::standard()).await.expired, 0);
    let record = record(&f.broker, late.id).await;
    assert_eq!((record.end, record.attempts), (End::Expired, 0));
    f.depth_is([1, 0, 0, 0]).await;
}

pub(crate) async fn batch_counts_follow_every_path(f: Fixture) {
    let name = batch("b");
    let jobs: Vec<_> = (0..12).map(|_| job_of(&name)).collect();
    put(&f.broker, &jobs).await;
    put_one(&f.broker, Job { not_before: Some(Timestamp::now() + LONG), ..job_of(&name) }).await;
    let counts = recount(&f.broker, &name).await;
    assert_eq!((counts.total, counts.queued + counts.delayed), (13, 13));
    assert_eq!(counts.delayed, u64::from(f.sees_waiting()));
    let mut worker = f.worker().await;
    for how in [End::Succeeded, End::Dead, End::Cancelled, End::Expired] {
        worker.ends_one(how).await;
        recount(&f.broker, &name).await;
    }
    let retried = worker.one().await;
    let verdict = retry(&retried.head, LONG);
    retried.lease.settle(verdict).await.unwrap();
    worker.one().await.lease.settle(fixture::release()).await.unwrap();
    let counts = recount(&f.broker, &name).await;
    assert_eq!((counts.queued + counts.delayed, counts.running), (9, 0));
    assert!(!f.sees_waiting() || counts.delayed == 2, "{counts:?}");
    let running = worker.one().await;
    assert_eq!(recount(&f.broker, &name).await.running, 1);
    let gone = f.lose(worker).await;
    f.broker.recover(&gone).await.unwrap();
    assert_eq!(recount(&f.broker, &name).await.running, 0);
    assert_eq!(f.broker.cancel(&[running.head.id]).await.unwrap(), [Cancel::Ended]);
    end(running, End::Succeeded).await;
    let counts = recount(&f.broker, &name).await;
    assert_eq!((counts.succeeded, counts.dead, counts.cancelled, counts.expired), (2, 1, 1, 1));
    f.broker.purge(&Queue::standard()).await.unwrap();
    let counts = recount(&f.broker, &name).await;
    assert_eq!((counts.ended(), counts.cancelled), (13, 9));
}

pub(crate) async fn a_batch_adds_up_usage_and_cost_of_every_attempt(f: Fixture) {
    let name = batch("b");
    put(&f.broker, &[job_of(&name), job_of(&name)]).await;
    let mut worker = f.worker().await;
    let first = worker.one().await;
    let verdict = retry(&first.head, Duration::ZERO);
    first.lease.settle(verdict).await.unwrap();
    assert_eq!(view(&f.broker, &name).await.usage, Usage::default(), "only ended jobs count");
    worker.ends_one(End::Succeeded).await;
    worker.ends_one(End::Dead).await;
    let view = view(&f.broker, &name).await;
    let mut usage = USAGE;
    usage += USAGE;
    usage += USAGE;
    assert_eq!((view.usage, view.cost.unwrap().as_nanos(), view.cost_unknown), (usage, 3 * COST.as_nanos(), 0));
    assert!(view.last > Cursor(0));
}

pub(crate) async fn an_unknown_cost_is_counted_as_such(f: Fixture) {
    let name = batch("b");
    put_one(&f.broker, job_of(&name)).await;
    let delivery = f.worker().await.one().await;
    let mut record = fixture::record(&delivery.head, delivery.lease.id(), End::Succeeded);
    record.history.cost = None;
    let verdict = Verdict::End(Box::new(record));
    delivery.lease.settle(verdict).await.unwrap();
    let seen = view(&f.broker, &name).await;
    assert_eq!((seen.cost, seen.cost_unknown, seen.usage), (None, 1, USAGE));
    assert_eq!(seen.known_cost(), None);
}

pub(crate) async fn what_was_never_called_costs_nothing(f: Fixture) {
    let name = batch("b");
    put(&f.broker, &[job_of(&name), job_of(&name), job_of(&name), job_of(&name)]).await;
    let mut worker = f.worker().await;
    for how in [End::Dead, End::Cancelled] {
        let delivery = worker.one().await;
        let mut record = fixture::record(&delivery.head, delivery.lease.id(), how);
        (record.attempts, record.history) = (0, History::default());
        delivery.lease.settle(Verdict::End(Box::new(record))).await.unwrap();
    }
    let seen = view(&f.broker, &name).await;
    assert_eq!((seen.cost_unknown, seen.known_cost()), (0, Some(Usd::default())));
    // What a program gave says neither what it took nor what it cost.
    let delivery = worker.one().await;
    let mut record = fixture::record(&delivery.head, delivery.lease.id(), End::Succeeded);
    for attempt in &mut record.history.recent {
        (attempt.usage, attempt.cost) = (Usage::default(), None);
    }
    (record.history.usage, record.history.cost) = (Usage::default(), None);
    delivery.lease.settle(Verdict::End(Box::new(record))).await.unwrap();
    let seen = view(&f.broker, &name).await;
    assert_eq!((seen.cost_unknown, seen.known_cost()), (1, None));
    let delivery = worker.one().await;
    let mut record = fixture::record(&delivery.head, delivery.lease.id(), End::Dead);
    record.history = History { unknown_billed: 3, ..History::default() };
    delivery.lease.settle(Verdict::End(Box::new(record))).await.unwrap();
    let seen = view(&f.broker, &name).await;
    assert_eq!((seen.cost_unknown, seen.known_cost()), (2, None), "its workers died of it");
}

pub(crate) async fn depth_counts_by_state(f: Fixture) {
    let before = Timestamp::now();
    put(&f.broker, &fixture::jobs(6)).await;
    put_one(&f.broker, Job { not_before: Some(before + LONG), ..job() }).await;
    let mut worker = f.worker().await;
    worker.ends_one(End::Dead).await;
    worker.ends_one(End::Succeeded).await;
    worker.ends_one(End::Cancelled).await;
    let _running = worker.one().await;
    let depth = f.second().await.depth(&Queue::standard()).await.unwrap();
    if f.sees_waiting() {
        assert_eq!((depth.ready, depth.delayed, depth.running, depth.dead), (2, 1, 1, 1));
        let oldest = depth.oldest_ready.expect("two are ready");
        assert!(oldest + Duration::from_millis(1) >= before && oldest <= Timestamp::now());
    } else {
        // What was delivered to a worker that is yet to start it is not counted.
        assert!(depth.ready <= 2, "{depth:?}");
        assert_eq!((depth.delayed, depth.running, depth.dead), (1, 1, 1));
    }
    let other = f.broker.depth(&fixture::queue("other")).await.unwrap();
    // RabbitMQ's delayed jobs of all queues wait in the same places.
    let delayed = u64::from(!f.sees_waiting());
    let other_has = Depth { delayed, delayed_of_all: delayed > 0, ..Depth::default() };
    assert_eq!((other, depth.delayed_of_all), (other_has, false), "the other is not known yet");
}

pub(crate) async fn an_idle_worker_is_there_when_a_delayed_job_is_due(f: Fixture) {
    let mut worker = f.worker().await;
    worker.finds_nothing().await;
    let due = Timestamp::now() + MOMENT;
    let late = Job { not_before: Some(due + LONG), ..job() };
    let jobs = [Job { not_before: Some(due), ..job() }, late];
    let ((), delivery) = tokio::join!(put(&f.broker, &jobs), worker.one());
    assert_eq!(delivery.head.id, jobs[0].id);
    assert!(Timestamp::now().since(due) < Duration::from_secs(2), "{:?}", Timestamp::now().since(due));
}
