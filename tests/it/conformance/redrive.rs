//! Cases: ended jobs put back in line, and the dead set.

use std::time::Duration;

use promptq_common::broker::{Claim, Redriven};
use promptq_common::job::{Job, Queue};
use promptq_common::ledger::JobFilter;
use promptq_common::outcome::{FailureClass, History};
use promptq_common::record::{End, State};
use promptq_common::time::Timestamp;
use promptq_tests::backends::{Fixture, LONG};
use promptq_tests::fixture::{self, batch, job, job_for, job_in, job_of, queue, registered, retry};
use promptq_tests::steps::{end, list, put, put_one, recount, see, state, sweep, view};

pub(crate) async fn redrive_begins_a_new_epoch_at_zero(f: Fixture) {
    let id = put_one(&f.broker, job()).await;
    let mut worker = f.worker().await;
    let first = worker.one().await;
    first.lease.settle(retry(&first.head, Duration::ZERO)).await.unwrap();
    drop(worker.one().await);
    let gone = f.lose(worker).await;
    f.broker.recover(&gone).await.unwrap();
    let mut worker = f.worker().await;
    worker.ends_one(End::Dead).await;
    assert_eq!(f.second().await.redrive(&[id]).await.unwrap(), [Redriven::Queued { epoch: 1 }]);
    let seen = see(&f.broker, id).await;
    assert_eq!((seen.state, seen.epoch, seen.attempts, seen.deaths), (State::Queued, 1, 0, 0));
    assert!(seen.record.is_none());
    let again = worker.one().await;
    assert_eq!((again.head.id, again.head.epoch, again.head.attempts), (id, 1, 0));
    assert_eq!(again.head.history, History::default());
    assert_eq!(again.lease.claim().await.unwrap(), Claim::Fresh { deaths: 0 });
    assert_eq!(again.open().unwrap().id, id);
}

pub(crate) async fn an_old_end_leaves_the_counts(f: Fixture) {
    let name = batch("b");
    let id = put_one(&f.broker, job_of(&name)).await;
    let mut worker = f.worker().await;
    worker.ends_one(End::Dead).await;
    assert_eq!(recount(&f.broker, &name).await.dead, 1);
    f.broker.redrive(&[id]).await.unwrap();
    let counts = recount(&f.broker, &name).await;
    assert_eq!((counts.total, counts.dead, counts.queued), (1, 0, 1));
    assert_eq!(f.broker.depth(&Queue::standard()).await.unwrap().dead, 0);
    worker.ends_one(End::Dead).await;
    let counts = recount(&f.broker, &name).await;
    assert_eq!((counts.total, counts.dead), (1, 1));
    assert_eq!(see(&f.broker, id).await.record.unwrap().epoch, 1);
    assert_eq!(f.broker.redrive(&[id]).await.unwrap(), [Redriven::Queued { epoch: 2 }]);
    worker.ends_one(End::Succeeded).await;
    assert_eq!(recount(&f.broker, &name).await.succeeded, 1);
}

pub(crate) async fn what_an_earlier_epoch_consumed_stays_in_the_sums(f: Fixture) {
    let name = batch("b");
    let id = put_one(&f.broker, job_of(&name)).await;
    let mut worker = f.worker().await;
    worker.ends_one(End::Dead).await;
    f.broker.redrive(&[id]).await.unwrap();
    for attempts in 1..=2_u32 {
        let sums = view(&f.broker, &name).await;
        assert_eq!(sums.usage.input_tokens, u64::from(attempts) * fixture::USAGE.input_tokens);
        assert_eq!(sums.cost.unwrap().as_nanos(), i64::from(attempts) * fixture::COST.as_nanos());
        if attempts == 1 {
            worker.ends_one(End::Succeeded).await;
        }
    }
}

pub(crate) async fn a_success_is_never_redriven(f: Fixture) {
    let id = put_one(&f.broker, job()).await;
    f.worker().await.ends_one(End::Succeeded).await;
    let before = see(&f.broker, id).await;
    assert_eq!(f.broker.redrive(&[id]).await.unwrap(), [Redriven::Succeeded]);
    assert_eq!(see(&f.broker, id).await, before);
    f.worker().await.finds_nothing().await;
}

pub(crate) async fn a_job_back_in_line_is_not_redriven_twice(f: Fixture) {
    let id = put_one(&f.broker, registered()).await;
    assert_eq!(f.broker.redrive(&[id]).await.unwrap(), [Redriven::Waiting]);
    let mut worker = f.worker().await;
    worker.ends_one(End::Dead).await;
    assert_eq!(f.broker.redrive(&[id, id]).await.unwrap(), [Redriven::Queued { epoch: 1 }, Redriven::Waiting]);
    let running = worker.one().await;
    assert_eq!(f.broker.redrive(&[id]).await.unwrap(), [Redriven::Waiting]);
    assert_eq!(end(running, End::Succeeded).await, promptq_common::broker::Settled::Applied);
    worker.finds_nothing().await;
}

pub(crate) async fn cancelled_and_expired_jobs_can_be_redriven(f: Fixture) {
    let cancelled = put_one(&f.broker, registered()).await;
    f.broker.cancel(&[cancelled]).await.unwrap();
    let late = Job { deadline: Timestamp::now() - Duration::from_millis(1), ..registered() };
    let expired = put_one(&f.broker, late).await;
    sweep(&f.broker, &promptq_common::broker::Retention::standard()).await;
    assert_eq!(state(&f.broker, expired).await, State::Expired);
    let answers = f.broker.redrive(&[cancelled, job().id, expired]).await.unwrap();
    // Where the message of the old epoch still waits, it is the one that may run after all.
    let back = Redriven::Queued { epoch: u32::from(f.sees_waiting()) };
    assert_eq!(answers, [back, Redriven::Unknown, back]);
    f.worker().await.ends_one(End::Succeeded).await;
    assert_eq!(state(&f.broker, cancelled).await, State::Succeeded);
}

pub(crate) async fn an_expired_job_that_is_redriven_may_run(f: Fixture) {
    let now = Timestamp::now();
    let job = Job { created_at: now - Duration::from_secs(3_600), deadline: now - LONG, ..registered() };
    put(&f.broker, std::slice::from_ref(&job)).await;
    sweep(&f.broker, &promptq_common::broker::Retention::standard()).await;
    f.broker.redrive(&[job.id]).await.unwrap();
    let delivery = f.worker().await.one().await;
    assert_eq!(delivery.head.id, job.id);
    assert!(see(&f.broker, job.id).await.deadline > Timestamp::now());
}

pub(crate) async fn a_redriven_job_that_was_delayed_may_run_at_once(f: Fixture) {
    // On RabbitMQ its message goes on waiting, and may run again when it is due.
    let due = Timestamp::now() + if f.sees_waiting() { LONG } else { Duration::from_millis(500) };
    let id = put_one(&f.broker, Job { not_before: Some(due), ..registered() }).await;
    f.broker.cancel(&[id]).await.unwrap();
    f.broker.redrive(&[id]).await.unwrap();
    assert_eq!(f.worker().await.one().await.head.id, id);
}

pub(crate) async fn a_dropped_job_is_gone_from_the_dead_but_keeps_its_record(f: Fixture) {
    let ids = [put_one(&f.broker, job_of(&batch("b"))).await, put_one(&f.broker, job_of(&batch("b"))).await];
    let mut worker = f.worker().await;
    worker.ends_one(End::Dead).await;
    worker.ends_one(End::Succeeded).await;
    assert_eq!(f.broker.drop_dead(&[ids[0], ids[1], job().id]).await.unwrap(), 1);
    assert_eq!(f.broker.drop_dead(&ids).await.unwrap(), 0);
    assert_eq!(f.broker.redrive(&[ids[0]]).await.unwrap(), [Redriven::Gone]);
    assert_eq!(f.ledger().payload(ids[0]).await.unwrap(), None);
    assert_eq!(f.broker.depth(&Queue::standard()).await.unwrap().dead, 0);
    assert!(f.ledger().dead_groups(None).await.unwrap().is_empty());
    let seen = see(&f.broker, ids[0]).await;
    assert_eq!((seen.state, seen.record.unwrap().end), (State::Dead, End::Dead));
    recount(&f.broker, &batch("b")).await;
}

pub(crate) async fn the_dead_are_grouped_by_cause(f: Fixture) {
    let other = queue("other");
    put(&f.broker, &[job_for(Some("a")), job_for(Some("a")), job_for(Some("b")), job_for(Some("a"))]).await;
    put(&f.broker, &[job_in(&other)]).await;
    let both = [(Queue::standard(), 1), (other.clone(), 1)];
    let mut worker = f.worker_on(&both, LONG).await;
    let mut late = None;
    for delivery in worker.take(5).await {
        let mut record = fixture::record(&delivery.head, delivery.lease.id(), End::Dead);
        if delivery.head.lane.model_str() == "a" && late.is_none() {
            late = Some(delivery.head.id);
            record.cause = Some(fixture::cause(FailureClass::Content, "refused"));
        }
        delivery.lease.settle(promptq_common::broker::Verdict::End(Box::new(record))).await.unwrap();
    }
    let groups = f.ledger().dead_groups(None).await.unwrap();
    assert_eq!(groups.iter().map(|group| group.count).collect::<Vec<_>>(), [2, 1, 1, 1]);
    let first = &groups[0];
    assert_eq!((first.model.as_deref(), first.code.as_str()), (Some("a"), "broken"));
    assert_eq!((first.class, first.detail.as_str()), (Some(FailureClass::Fatal), "it broke"));
    assert!(first.first <= first.last);
    let refused = groups.iter().find(|group| group.code == "refused").unwrap();
    assert_eq!((Some(refused.sample), refused.class), (late, Some(FailureClass::Content)));
    let ours = f.ledger().dead_groups(Some(&other)).await.unwrap();
    assert_eq!((ours.len(), &ours[0].queue), (1, &other));
    let filter = JobFilter { code: Some("refused".into()), ..JobFilter::default() };
    assert_eq!(list(&f.broker, &filter, 10).await.iter().map(|job| Some(job.id)).collect::<Vec<_>>(), [late]);
}

pub(crate) async fn a_redriven_job_that_is_cancelled_shows_that_end(f: Fixture) {
    let id = put_one(&f.broker, job_of(&batch("b"))).await;
    f.worker().await.ends_one(End::Dead).await;
    let broken = JobFilter { code: Some("broken".into()), ..JobFilter::default() };
    assert_eq!(list(&f.broker, &broken, 10).await.len(), 1);
    f.broker.redrive(&[id]).await.unwrap();
    assert!(list(&f.broker, &broken, 10).await.is_empty(), "while it waits it has died of nothing");
    f.broker.cancel(&[id]).await.unwrap();
    let record = see(&f.broker, id).await.record.unwrap();
    assert_eq!((record.end, record.epoch, record.attempts), (End::Cancelled, 1, 0));
    let code = record.cause.unwrap().code;
    let cancelled = JobFilter { code: Some(code), ..JobFilter::default() };
    assert_eq!(list(&f.broker, &cancelled, 10).await.len(), 1);
    recount(&f.broker, &batch("b")).await;
}

pub(crate) async fn a_job_that_died_before_its_cancel_was_seen_runs_when_redriven(f: Fixture) {
    let id = put_one(&f.broker, job()).await;
    let mut worker = f.worker().await;
    let running = worker.one().await;
    f.broker.cancel(&[id]).await.unwrap();
    end(running, End::Dead).await;
    assert_eq!(f.broker.redrive(&[id]).await.unwrap(), [Redriven::Queued { epoch: 1 }]);
    let again = worker.one().await;
    assert_eq!(again.lease.claim().await.unwrap(), Claim::Fresh { deaths: 0 });
    assert_eq!(again.lease.beat().await.unwrap(), promptq_common::broker::Beat::Kept);
    assert_eq!(end(again, End::Succeeded).await, promptq_common::broker::Settled::Applied);
}

pub(crate) async fn a_job_redriven_from_a_cancelled_batch_runs(f: Fixture) {
    let name = batch("b");
    let id = put_one(&f.broker, job_of(&name)).await;
    f.broker.cancel_batch(&name).await.unwrap();
    f.broker.redrive(&[id]).await.unwrap();
    let mut worker = f.worker().await;
    let again = worker.one().await;
    assert_eq!(again.lease.claim().await.unwrap(), Claim::Fresh { deaths: 0 });
    assert_eq!(again.lease.beat().await.unwrap(), promptq_common::broker::Beat::Kept);
    again.lease.settle(fixture::release()).await.unwrap();
    assert_eq!(worker.ends_one(End::Succeeded).await, id);
    recount(&f.broker, &name).await;
}
