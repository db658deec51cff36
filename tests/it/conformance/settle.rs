//! Cases: how a lease ends, and what one that is no longer the job's may still do.

use std::time::Duration;

use promptq_common::broker::{Beat, Claim, Delivery, HoldKey, RawDelivery, Settled, Verdict, WorkerId};
use promptq_common::job::JobId;
use promptq_common::outcome::FailureClass;
use promptq_common::record::{End, State};
use promptq_common::time::Timestamp;
use promptq_tests::backends::{Fixture, LONG, SHORT};
use promptq_tests::fixture::{self, COST, USAGE, batch, job, job_of, release, retry};
use promptq_tests::steps::{PATIENCE, end, put_one, record, recount, results, see, state, view, want};

const MOMENT: Duration = Duration::from_millis(150);

pub(crate) async fn a_settled_job_is_not_delivered_again(f: Fixture) {
    let id = put_one(&f.broker, job()).await;
    let mut worker = f.hasty_worker().await;
    worker.ends_one(End::Succeeded).await;
    worker.finds_nothing().await;
    assert_eq!(state(&f.broker, id).await, State::Succeeded);
}

pub(crate) async fn a_retried_job_returns_with_the_next_attempt(f: Fixture) {
    let id = put_one(&f.broker, job()).await;
    let mut worker = f.worker().await;
    for attempts in 0..3 {
        let delivery = worker.one().await;
        assert_eq!((delivery.head.id, delivery.head.attempts), (id, attempts));
        assert_eq!(delivery.head.history.recent.len(), attempts as usize);
        let verdict = retry(&delivery.head, MOMENT);
        assert_eq!(delivery.lease.settle(verdict).await.unwrap(), Settled::Applied);
        let seen = see(&f.broker, id).await;
        assert_eq!((seen.attempts, seen.deaths), (attempts + 1, 0));
        assert_eq!(seen.state, State::Retrying);
    }
    let last = worker.one().await;
    let history = &last.head.history;
    assert_eq!((history.usage.input_tokens, history.cost.unwrap().as_nanos()), (3 * 7, 3 * COST.as_nanos()));
    assert_eq!(history.recent.iter().map(|attempt| attempt.n).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(history.recent.iter().all(|attempt| attempt.class == Some(FailureClass::Transient)));
}

pub(crate) async fn a_retry_is_never_early(f: Fixture) {
    put_one(&f.broker, job()).await;
    let mut worker = f.worker().await;
    let delivery = worker.one().await;
    let verdict = retry(&delivery.head, MOMENT * 2);
    let before = Timestamp::now();
    delivery.lease.settle(verdict).await.unwrap();
    worker.one_asking_often().await.lease.claim().await.unwrap();
    // A millisecond for the rounding of two clocks.
    assert!(Timestamp::now().since(before) + Duration::from_millis(1) >= MOMENT * 2);
}

pub(crate) async fn a_release_spends_nothing(f: Fixture) {
    let id = put_one(&f.broker, job()).await;
    let mut worker = f.worker().await;
    for _ in 0..5 {
        let delivery = worker.one().await;
        assert_eq!(delivery.lease.claim().await.unwrap(), Claim::Fresh { deaths: 0 });
        assert_eq!(delivery.lease.settle(release()).await.unwrap(), Settled::Applied);
        let seen = see(&f.broker, id).await;
        assert_eq!((seen.state, seen.attempts, seen.deaths), (State::Queued, 0, 0));
    }
    assert_eq!(worker.one().await.head.history.recent.len(), 0);
}

pub(crate) async fn a_released_job_goes_ahead_of_its_lane(f: Fixture) {
    let first = put_one(&f.broker, job()).await;
    let second = put_one(&f.broker, job()).await;
    let mut worker = f.worker().await;
    worker.one().await.lease.settle(release()).await.unwrap();
    let order: Vec<_> = worker.take(2).await.iter().map(|one| one.head.id).collect();
    assert!(order == [first, second] || !f.keeps_order() && order == [second, first], "{order:?}");
}

pub(crate) async fn a_released_job_waits_as_long_as_told(f: Fixture) {
    put_one(&f.broker, job()).await;
    let mut worker = f.worker().await;
    let before = Timestamp::now();
    let verdict = Verdict::Release { after: MOMENT * 2, hold: None };
    worker.one().await.lease.settle(verdict).await.unwrap();
    let again = worker.one_asking_often().await;
    assert!(Timestamp::now().since(before) + Duration::from_millis(1) >= MOMENT * 2);
    assert_eq!(again.lease.claim().await.unwrap(), Claim::Fresh { deaths: 0 });
}

pub(crate) async fn waking_a_hold_key_ends_every_wait_under_it_in_one_step(f: Fixture) {
    let (ours, theirs) = (HoldKey::Limit("acme/gpt".into()), HoldKey::Budget("acme".into()));
    let mut worker = f.worker().await;
    let mut held = Vec::new();
    for key in [&ours, &ours, &ours, &theirs] {
        held.push(put_one(&f.broker, job()).await);
        let verdict = Verdict::Release { after: LONG, hold: Some(key.clone()) };
        worker.one().await.lease.settle(verdict).await.unwrap();
    }
    let seen = see(&f.broker, held[0]).await;
    assert_eq!((seen.state, seen.attempts), (State::Queued, 0));
    worker.finds_nothing().await;
    if !f.wakes_holds() {
        assert_eq!(f.second().await.wake(&ours).await.unwrap(), 0);
        return worker.finds_nothing().await;
    }
    assert_eq!(seen.hold.as_ref(), Some(&ours));
    assert!(seen.due.is_some());
    assert_eq!(f.broker.wake(&HoldKey::Limit("other".into())).await.unwrap(), 0);
    assert_eq!(f.second().await.wake(&ours).await.unwrap(), 3);
    assert_eq!(f.broker.wake(&ours).await.unwrap(), 0);
    let mut woken: Vec<_> = worker.take(3).await.iter().map(|one| one.head.id).collect();
    woken.sort_unstable();
    assert_eq!(woken, sorted(&held[..3]));
    worker.finds_nothing().await;
}

pub(crate) async fn a_stale_settle_changes_nothing(f: Fixture) {
    for how in ["retry", "release", "dead", "cancelled", "expired"] {
        let (id, (stale, running)) = overtaken(&f).await;
        let (head, lease) = (stale.head.clone(), stale.lease.id());
        let verdict = match how {
            "retry" => retry(&head, Duration::ZERO),
            "release" => release(),
            end => fixture::end(&head, lease, end.parse().unwrap()),
        };
        let before = see(&f.broker, id).await;
        assert_eq!(stale.lease.settle(verdict).await.unwrap(), Settled::Stale, "{how}");
        assert_eq!(see(&f.broker, id).await, before, "{how}");
        let (_, running) = running;
        assert_eq!(running.lease.beat().await.unwrap(), Beat::Kept, "{how}");
        assert_eq!(end(running, End::Succeeded).await, Settled::Applied, "{how}");
        recount(&f.broker, &batch("b")).await;
    }
}

pub(crate) async fn a_late_success_ends_a_job_that_waits(f: Fixture) {
    let (id, (late, (other, _running))) = overtaken(&f).await;
    f.broker.recover(&other).await.unwrap();
    assert_eq!(state(&f.broker, id).await, State::Queued);
    assert_eq!(end(late, End::Succeeded).await, Settled::Kept);
    won(&f, id).await;
    f.worker().await.finds_nothing().await;
}

pub(crate) async fn a_late_success_ends_a_job_that_another_runs(f: Fixture) {
    let (id, (late, running)) = overtaken(&f).await;
    assert_eq!(end(late, End::Succeeded).await, Settled::Kept);
    won(&f, id).await;
    let (_, running) = running;
    assert_eq!(running.lease.beat().await.unwrap(), Beat::Ended);
    assert_eq!(end(running, End::Dead).await, Settled::Stale);
    won(&f, id).await;
}

pub(crate) async fn a_late_success_replaces_every_other_end(f: Fixture) {
    for how in [End::Dead, End::Cancelled, End::Expired] {
        let (id, (late, running)) = overtaken(&f).await;
        assert_eq!(end(running.1, how).await, Settled::Applied);
        assert_eq!(state(&f.broker, id).await, how.into());
        recount(&f.broker, &batch("b")).await;
        assert_eq!(end(late, End::Succeeded).await, Settled::Kept);
        assert_eq!(state(&f.broker, id).await, State::Succeeded);
        assert!(f.ledger().dead_groups(None).await.unwrap().is_empty());
        recount(&f.broker, &batch("b")).await;
    }
}

pub(crate) async fn a_late_success_of_an_earlier_epoch_is_kept(f: Fixture) {
    let (id, (late, running)) = overtaken(&f).await;
    end(running.1, End::Dead).await;
    f.broker.redrive(&[id]).await.unwrap();
    assert_eq!(end(late, End::Succeeded).await, Settled::Kept);
    won(&f, id).await;
    f.worker().await.finds_nothing().await;
}

pub(crate) async fn a_late_failure_of_an_earlier_epoch_is_stale(f: Fixture) {
    let (id, (late, running)) = overtaken(&f).await;
    end(running.1, End::Dead).await;
    f.broker.redrive(&[id]).await.unwrap();
    assert_eq!(end(late, End::Dead).await, Settled::Stale);
    let seen = see(&f.broker, id).await;
    assert_eq!((seen.state, seen.epoch), (State::Queued, 1));
    recount(&f.broker, &batch("b")).await;
}

pub(crate) async fn a_success_is_never_replaced_by_a_second_one(f: Fixture) {
    let (id, (late, running)) = overtaken(&f).await;
    let running = running.1;
    let winner = running.lease.id();
    assert_eq!(end(running, End::Succeeded).await, Settled::Applied);
    assert_eq!(end(late, End::Succeeded).await, Settled::Stale);
    assert_eq!(record(&f.broker, id).await.lease, winner);
    let counts = recount(&f.broker, &batch("b")).await;
    assert_eq!((counts.total, counts.succeeded), (1, 1));
    assert_eq!(results(&f.broker, &batch("b")).await.len(), 1);
}

pub(crate) async fn a_success_is_never_replaced_by_another_end(f: Fixture) {
    for how in [End::Dead, End::Cancelled, End::Expired] {
        let (id, (late, running)) = overtaken(&f).await;
        end(running.1, End::Succeeded).await;
        let before = record(&f.broker, id).await;
        assert_eq!(end(late, how).await, Settled::Stale);
        assert_eq!(record(&f.broker, id).await, before);
        recount(&f.broker, &batch("b")).await;
    }
}

pub(crate) async fn repeating_an_end_has_no_second_effect(f: Fixture) {
    for how in End::ALL {
        let id = put_one(&f.broker, job_of(&batch("b"))).await;
        let delivery = raw(&f).await;
        let verdict = fixture::end(&delivery.head, delivery.lease, how);
        for _ in 0..3 {
            assert_eq!(delivery.hold.settle(&verdict).await.unwrap(), Settled::Applied);
            assert_eq!(state(&f.broker, id).await, how.into());
        }
    }
    let counts = recount(&f.broker, &batch("b")).await;
    assert_eq!((counts.total, counts.succeeded, counts.dead, counts.cancelled, counts.expired), (4, 1, 1, 1, 1));
    assert_eq!(results(&f.broker, &batch("b")).await.len(), 4);
}

pub(crate) async fn repeating_a_retry_spends_one_attempt(f: Fixture) {
    let id = put_one(&f.broker, job()).await;
    let delivery = raw(&f).await;
    let verdict = retry(&delivery.head, Duration::ZERO);
    for _ in 0..3 {
        assert_eq!(delivery.hold.settle(&verdict).await.unwrap(), Settled::Applied);
    }
    assert_eq!(see(&f.broker, id).await.attempts, 1);
    let again = f.worker().await.one().await;
    assert_eq!(again.head.history.usage, USAGE);
    assert_ne!(delivery.hold.settle(&verdict).await.unwrap(), Settled::Kept);
    assert_eq!(again.lease.beat().await.unwrap(), Beat::Kept, "repeating takes the job from nobody");
    assert_eq!(end(again, End::Succeeded).await, Settled::Applied);
}

pub(crate) async fn repeating_a_release_takes_the_job_from_nobody(f: Fixture) {
    let id = put_one(&f.broker, job()).await;
    let delivery = raw(&f).await;
    delivery.hold.settle(&release()).await.unwrap();
    let again = f.worker().await.one().await;
    assert_eq!(delivery.hold.settle(&release()).await.unwrap(), Settled::Applied);
    assert_eq!(again.lease.beat().await.unwrap(), Beat::Kept);
    assert_eq!(state(&f.broker, id).await, State::Running);
}

pub(crate) async fn repeating_a_late_success_keeps_it_once(f: Fixture) {
    let id = put_one(&f.broker, job_of(&batch("b"))).await;
    let mut source = f.source(SHORT).await;
    let late = source.next(&want(1)).await.unwrap().deliveries.pop().unwrap();
    drop(source);
    f.worker().await.ends_one(End::Dead).await;
    let verdict = fixture::end(&late.head, late.lease, End::Succeeded);
    assert_eq!(late.hold.settle(&verdict).await.unwrap(), Settled::Kept);
    assert_ne!(late.hold.settle(&verdict).await.unwrap(), Settled::Stale);
    won(&f, id).await;
    assert_eq!(record(&f.broker, id).await.lease, late.lease);
}

/// A job of batch `b` whose lease ran out, and who has it now.
async fn overtaken(f: &Fixture) -> (JobId, (Delivery, (WorkerId, Delivery))) {
    let id = put_one(&f.broker, job_of(&batch("b"))).await;
    let mut worker = f.worker().await;
    let late = worker.one().await;
    let gone = f.lose(worker).await;
    f.broker.recover(&gone).await.unwrap();
    let mut other = f.worker().await;
    let running = other.one().await;
    (id, (late, (other.id, running)))
}

async fn won(f: &Fixture, id: JobId) {
    let seen = see(&f.broker, id).await;
    assert_eq!(seen.state, State::Succeeded);
    assert_eq!(seen.record.unwrap().end, End::Succeeded);
    let counts = recount(&f.broker, &batch("b")).await;
    assert_eq!((counts.total, counts.succeeded), (1, 1));
    f.depth_is([0; 4]).await;
}

async fn raw(f: &Fixture) -> RawDelivery {
    let mut source = f.source(LONG).await;
    let start = std::time::Instant::now();
    loop {
        assert!(start.elapsed() < PATIENCE, "nothing was leased");
        if let Some(delivery) = source.next(&want(1)).await.unwrap().deliveries.pop() {
            return delivery;
        }
    }
}

fn sorted(ids: &[JobId]) -> Vec<JobId> {
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    ids
}

pub(crate) async fn a_late_success_of_a_dropped_job_is_kept(f: Fixture) {
    let (id, (late, running)) = overtaken(&f).await;
    end(running.1, End::Dead).await;
    assert_eq!(f.broker.drop_dead(&[id]).await.unwrap(), 1);
    assert_eq!(end(late, End::Succeeded).await, Settled::Kept);
    won(&f, id).await;
    assert_eq!(view(&f.broker, &batch("b")).await.counts.dead, 0);
}

pub(crate) async fn a_late_success_of_an_earlier_epoch_adds_to_what_the_later_one_consumed(f: Fixture) {
    let (id, (late, running)) = overtaken(&f).await;
    end(running.1, End::Dead).await;
    f.broker.redrive(&[id]).await.unwrap();
    f.worker().await.ends_one(End::Dead).await;
    assert_eq!(end(late, End::Succeeded).await, Settled::Kept);
    // The success has the end of its own epoch behind it in its history or not; the other epoch's stays beside it.
    let sums = view(&f.broker, &batch("b")).await;
    assert_eq!(sums.usage.input_tokens, 3 * USAGE.input_tokens);
    won(&f, id).await;
}
