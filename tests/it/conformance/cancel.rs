//! Cases: stopping jobs that wait, run, have ended or come later.

use std::time::Duration;

use promptq_common::broker::{Beat, Cancel, Claim, Settled};
use promptq_common::job::Job;
use promptq_common::record::{End, State};
use promptq_common::time::Timestamp;
use promptq_tests::backends::{Fixture, LONG};
use promptq_tests::fixture::{batch, job, job_of, registered, release, retry};
use promptq_tests::steps::{end, eventually, put_one, record, recount, see, state};

pub(crate) async fn a_waiting_job_is_cancelled_at_once(f: Fixture) {
    let waiting = put_one(&f.broker, registered()).await;
    let delayed = put_one(&f.broker, Job { not_before: Some(Timestamp::now() + LONG), ..registered() }).await;
    let other = f.second().await;
    assert_eq!(other.cancel(&[waiting, delayed]).await.unwrap(), [Cancel::Ended, Cancel::Ended]);
    for id in [waiting, delayed] {
        let record = record(&f.broker, id).await;
        assert_eq!((record.end, record.attempts, record.worker), (End::Cancelled, 0, None));
        assert_eq!(record.cause.unwrap().class, None);
    }
    f.worker().await.finds_nothing().await;
}

pub(crate) async fn a_running_job_learns_of_it_with_its_next_beat(f: Fixture) {
    let id = put_one(&f.broker, job()).await;
    let delivery = f.worker().await.one().await;
    assert_eq!(delivery.lease.beat().await.unwrap(), Beat::Kept);
    let other = f.second().await;
    assert_eq!(other.cancel(&[id]).await.unwrap(), [Cancel::Flagged]);
    assert!(see(&f.broker, id).await.cancel_requested);
    assert_eq!(delivery.lease.beat().await.unwrap(), Beat::Cancelled);
    if f.claims_when_asked() {
        assert_eq!(delivery.lease.claim().await.unwrap(), Claim::Cancelled);
    }
    assert_eq!(other.cancel(&[id]).await.unwrap(), [Cancel::Flagged], "repeatable");
    assert_eq!(end(delivery, End::Cancelled).await, Settled::Applied);
    let seen = see(&f.broker, id).await;
    assert_eq!((seen.state, seen.cancel_requested), (State::Cancelled, false));
}

pub(crate) async fn an_answer_that_came_before_the_cancel_was_seen_is_kept(f: Fixture) {
    let id = put_one(&f.broker, job()).await;
    let delivery = f.worker().await.one().await;
    f.broker.cancel(&[id]).await.unwrap();
    assert_eq!(end(delivery, End::Succeeded).await, Settled::Applied);
    assert_eq!(state(&f.broker, id).await, State::Succeeded);
}

pub(crate) async fn cancelling_an_ended_or_unknown_job_says_so(f: Fixture) {
    let mut worker = f.worker().await;
    for how in End::ALL {
        let id = put_one(&f.broker, job()).await;
        worker.ends_one(how).await;
        let answers = f.broker.cancel(&[id, job().id]).await.unwrap();
        // Where nobody knows what waits, whatever was never seen may be on its way.
        let unknown = if f.sees_waiting() { Cancel::Unknown } else { Cancel::Flagged };
        assert_eq!(answers, [Cancel::Already(how.into()), unknown]);
        assert_eq!(state(&f.broker, id).await, how.into());
    }
}

pub(crate) async fn a_cancelled_job_given_back_does_not_run_again(f: Fixture) {
    for how in ["retry", "release", "recover"] {
        let name = batch(how);
        let id = put_one(&f.broker, job_of(&name)).await;
        let mut worker = f.worker().await;
        let delivery = worker.one().await;
        f.broker.cancel(&[id]).await.unwrap();
        let verdict = if how == "retry" { retry(&delivery.head, Duration::ZERO) } else { release() };
        if how == "recover" {
            drop(delivery);
            let gone = f.lose(worker).await;
            f.broker.recover(&gone).await.unwrap();
            worker = f.worker().await;
        } else {
            assert_eq!(delivery.lease.settle(verdict).await.unwrap(), Settled::Applied, "{how}");
        }
        assert!(worker.drain().await.is_empty(), "{how}");
        assert_eq!(state(&f.broker, id).await, State::Cancelled, "{how}");
        recount(&f.broker, &name).await;
    }
}

pub(crate) async fn a_cancelled_job_whose_worker_died_ends_when_its_lease_does(f: Fixture) {
    let id = put_one(&f.broker, job()).await;
    let mut gone = f.hasty_worker().await;
    drop(gone.one().await);
    f.lose(gone).await;
    f.broker.cancel(&[id]).await.unwrap();
    let mut worker = f.worker().await;
    let broker = &f.broker;
    tokio::select! {
        answered = async { loop { let ids = worker.drain().await; if !ids.is_empty() { break ids } } } =>
            panic!("{answered:?} was run although cancelled"),
        () = eventually("it is cancelled", || async { (state(broker, id).await == State::Cancelled).then_some(()) }) => {}
    }
}

pub(crate) async fn cancelling_a_batch_ends_what_waits_and_flags_what_runs(f: Fixture) {
    let name = batch("b");
    let mut worker = f.worker().await;
    for _ in 0..5 {
        put_one(&f.broker, job_of(&name)).await;
    }
    let stranger = put_one(&f.broker, job_of(&batch("c"))).await;
    worker.ends_one(End::Succeeded).await;
    let running = worker.one().await;
    let counts = f.second().await.cancel_batch(&name).await.unwrap();
    assert_eq!((counts.ended, counts.flagged), (3, 1));
    assert_eq!(running.lease.beat().await.unwrap(), Beat::Cancelled);
    end(running, End::Cancelled).await;
    let counts = recount(&f.broker, &name).await;
    assert_eq!((counts.succeeded, counts.cancelled), (1, 4));
    assert!(f.ledger().batch(&name).await.unwrap().unwrap().cancelled);
    assert_eq!(worker.drain().await, [stranger]);
}

pub(crate) async fn jobs_enqueued_to_a_cancelled_batch_never_run(f: Fixture) {
    let name = batch("b");
    put_one(&f.broker, job_of(&name)).await;
    f.broker.cancel_batch(&name).await.unwrap();
    let late = put_one(&f.second().await, job_of(&name)).await;
    assert!(f.worker().await.drain().await.is_empty());
    assert_eq!(state(&f.broker, late).await, State::Cancelled);
    assert_eq!(recount(&f.broker, &name).await.cancelled, 2);
}

pub(crate) async fn cancelling_a_batch_twice_ends_nothing_more(f: Fixture) {
    let name = batch("b");
    put_one(&f.broker, job_of(&name)).await;
    assert_eq!(f.broker.cancel_batch(&name).await.unwrap().ended, 1);
    let again = f.broker.cancel_batch(&name).await.unwrap();
    assert_eq!((again.ended, again.flagged), (0, 0));
}
