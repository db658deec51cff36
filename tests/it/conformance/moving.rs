//! Cases: jobs on their way to another broker, looked at whole and forgotten here.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use promptq_common::broker::{Claim, Enqueued, Envelope, HoldKey, MAX_BATCH, PAGE_BYTES, Settled, Verdict};
use promptq_common::codec;
use promptq_common::error::Kind;
use promptq_common::job::{Job, JobId, Queue};
use promptq_common::ledger::{JobFilter, Known};
use promptq_common::outcome::FailureClass;
use promptq_common::record::{End, State};
use promptq_common::time::Timestamp;
use promptq_common::work::Work;
use promptq_tests::backends::Fixture;
use promptq_tests::fixture::{self, batch, job, job_for, job_in, job_of, jobs, keyed, queue, registered, retry};
use promptq_tests::steps::{end, list, put, put_one, recount, see, state, view};

const HOUR: Duration = Duration::from_secs(3_600);

/// Everything that waits in the standard queue, a page at a time.
async fn waiting(f: &Fixture, limit: usize) -> Vec<Envelope> {
    let (mut all, mut after) = (Vec::new(), None);
    f.all_given_back().await;
    let mover = f.second().await;
    loop {
        let page = mover.waiting(&Queue::standard(), after.as_deref(), limit).await.unwrap();
        assert!(page.items.len() <= limit, "{} jobs in a page of {limit}", page.items.len());
        all.extend(page.items);
        match page.next {
            None => return all,
            Some(next) => assert_ne!(after.replace(next.clone()), Some(next), "a page may not end where it began"),
        }
    }
}

/// Looks at everything that waits in the standard queue as whoever moves it does, and forgets these.
async fn forget(f: &Fixture, jobs: &[(JobId, u32)]) -> u64 {
    f.all_given_back().await;
    let mover = f.second().await;
    let mut after = None;
    loop {
        let page = mover.waiting(&Queue::standard(), after.as_deref(), MAX_BATCH).await.unwrap();
        after = page.next;
        if after.is_none() {
            return mover.forget(jobs).await.unwrap();
        }
    }
}

fn ids(found: &[Envelope]) -> Vec<JobId> {
    found.iter().map(|envelope| envelope.head.id).collect()
}

pub(crate) async fn what_waits_is_given_whole_and_as_it_stands(f: Fixture) {
    let later = Timestamp::now() + HOUR;
    let ready = Job { row: Some(7), custom_id: Some("c".into()), ..job_of(&batch("b")) };
    let ready = Job { tenant: Some("t".into()), tags: BTreeMap::from([("k".into(), "v".into())]), ..ready };
    let scheduled = Job { not_before: Some(later), ..keyed("key", "text") };
    let mut worker = f.worker().await;
    put(&f.broker, &jobs(4)).await;
    let mut taken = worker.take(4).await;
    let sent = [ready, scheduled, job_in(&queue("other"))];
    put(&f.broker, &sent).await;
    let (held, retried) = (taken.pop().unwrap(), taken.pop().unwrap());
    let (held_id, retried_id) = (held.head.id, retried.head.id);
    let release = Verdict::Release { after: HOUR, hold: Some(HoldKey::Limit("k".into())) };
    held.lease.settle(release).await.unwrap();
    let verdict = retry(&retried.head, HOUR);
    retried.lease.settle(verdict).await.unwrap();
    // One ends, one goes on running: neither waits.
    end(taken.pop().unwrap(), End::Succeeded).await;
    // What RabbitMQ has given to a worker that did not begin it is seen when that worker has left.
    f.lose(worker).await;
    let found = waiting(&f, MAX_BATCH).await;
    let of = |id: JobId| found.iter().find(|envelope| envelope.head.id == id).expect("it waits");
    assert_eq!(found.len(), 4, "{:?}", ids(&found));
    for job in &sent[..2] {
        let envelope = of(job.id);
        assert_eq!(envelope.head, fixture::head(job));
        assert_eq!(&codec::decode_job(&envelope.payload).unwrap(), job);
    }
    let due = async |id| see(&f.broker, id).await.due.expect("it is delayed");
    let stands = &of(held_id).head;
    // What nobody can wake waits for ten minutes at a time.
    let waits = stands.not_before == Some(due(held_id).await);
    assert!(waits || !f.wakes_holds() && stands.not_before < Some(due(held_id).await), "{:?}", stands.not_before);
    assert_eq!(stands.attempts, 0);
    let stands = &of(retried_id).head;
    // Where the ledger is another's than the message's, its due time is set by another step.
    let later = due(retried_id).await.since(stands.not_before.expect("it is delayed"));
    assert!(later <= Duration::from_secs(u64::from(!f.sees_waiting())), "{later:?}");
    assert_eq!((stands.attempts, stands.history.recent.len()), (1, 1));
    assert_eq!(stands.history.usage, fixture::USAGE);
    // Looking leased nothing and moved nothing.
    // On RabbitMQ the message of what runs came back when its worker was cut off, and waits until its claim is over.
    f.depth_is([1, 3 + u64::from(!f.sees_waiting()), 1, 0]).await;
    assert_eq!(f.worker().await.one().await.head.id, sent[0].id);
}

pub(crate) async fn a_walk_misses_no_job_while_others_are_forgotten(f: Fixture) {
    let mut sent = jobs(20);
    sent.extend((0..10).map(|n| job_for(Some(["a", "b"][n % 2]))));
    sent.extend((0..7).map(|_| Job { not_before: Some(Timestamp::now() + HOUR), ..job() }));
    put(&f.broker, &sent).await;
    let (mut seen, mut after) = (HashSet::new(), None);
    loop {
        let page = f.backend.waiting(&Queue::standard(), after.as_deref(), 4).await.unwrap();
        // Every other one stays, as a job does that the other broker refuses.
        let gone: Vec<_> = page.items.iter().skip(1).step_by(2).map(|envelope| (envelope.head.id, 0)).collect();
        assert_eq!(f.backend.forget(&gone).await.unwrap(), gone.len() as u64);
        seen.extend(ids(&page.items));
        put_one(&f.broker, job_in(&queue("other"))).await;
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(seen, sent.iter().map(|job| job.id).collect());
}

pub(crate) async fn a_page_of_waiting_jobs_has_a_bound_in_bytes(f: Fixture) {
    let large = |bytes| Job { work: Work::prompt(Some("mock"), "x".repeat(bytes)), ..job() };
    let sent = [large(PAGE_BYTES * 2), large(PAGE_BYTES / 2), large(PAGE_BYTES / 3), large(PAGE_BYTES / 3), job()];
    put(&f.broker, &sent).await;
    let (mut seen, mut after) = (HashSet::new(), None);
    loop {
        let page = f.backend.waiting(&Queue::standard(), after.as_deref(), MAX_BATCH).await.unwrap();
        let bytes: usize = page.items.iter().map(|envelope| envelope.payload.len()).sum();
        assert!(bytes <= PAGE_BYTES || page.items.len() == 1, "{bytes} bytes in {} jobs", page.items.len());
        seen.extend(ids(&page.items));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(seen.len(), sent.len());
    let wrong = f.backend.waiting(&Queue::standard(), Some("not a place"), 1).await.unwrap_err();
    assert_eq!(wrong.kind(), Kind::Config);
}

pub(crate) async fn jobs_that_only_have_to_be_ended_are_left_out(f: Fixture) {
    let name = batch("b");
    put_one(&f.broker, job_of(&name)).await;
    f.broker.cancel_batch(&name).await.unwrap();
    let overdue = Job { deadline: Timestamp::now() - HOUR, ..job() };
    put(&f.broker, &[job_of(&name), overdue, job()]).await;
    assert_eq!(waiting(&f, 10).await.len(), 1);
}

pub(crate) async fn a_job_whose_end_was_taken_back_waits_with_its_new_deadline(f: Fixture) {
    let now = Timestamp::now();
    let overdue = Job { created_at: now - HOUR, deadline: now - HOUR / 2, ..registered() };
    put(&f.broker, std::slice::from_ref(&overdue)).await;
    f.broker.redrive(&[overdue.id]).await.unwrap();
    let found = waiting(&f, 10).await;
    assert_eq!(ids(&found), [overdue.id]);
    assert!(found[0].head.deadline > now, "{}", found[0].head.deadline);
}

pub(crate) async fn a_forgotten_job_was_never_there(f: Fixture) {
    let name = batch("b");
    let first = Job { batch: Some(name.clone()), ..keyed("key", "text") };
    let delayed = Job { not_before: Some(Timestamp::now() + HOUR), ..job_of(&name) };
    put(&f.broker, &[first.clone(), delayed.clone(), job_of(&name)]).await;
    f.ledger().seal(&name, &Queue::standard()).await.unwrap();
    assert_eq!(forget(&f, &[(first.id, 0), (delayed.id, 0)]).await, 2);
    for id in [first.id, delayed.id] {
        assert_eq!(f.ledger().fetch(&[id]).await.unwrap(), [None]);
        assert_eq!(f.ledger().payload(id).await.unwrap(), None);
    }
    assert_eq!(f.ledger().known(&[(first.id, first.fingerprint())]).await.unwrap(), [Known::New]);
    let depth = f.broker.depth(&Queue::standard()).await.unwrap();
    assert_eq!((depth.ready, depth.delayed, list(&f.broker, &JobFilter::default(), 10).await.len()), (1, 0, 1));
    let counts = recount(&f.broker, &name).await;
    assert_eq!((counts.total, counts.queued, counts.delayed), (1, 1, 0));
    assert!(f.ledger().batch(&name).await.unwrap().unwrap().sealed);
    // Even another body under its key is no conflict.
    let other = Job { batch: Some(name.clone()), ..keyed("key", "another text") };
    assert_eq!(f.broker.enqueue(&[other]).await.unwrap(), [Enqueued::New]);
    assert_eq!(recount(&f.broker, &name).await.total, 2);
    assert_eq!(f.worker().await.drain().await.len(), 2);
}

pub(crate) async fn only_what_waits_in_that_epoch_is_forgotten(f: Fixture) {
    let name = batch("b");
    let sent: Vec<Job> = (0..4).map(|_| job_of(&name)).collect();
    put(&f.broker, &sent).await;
    let mut worker = f.worker().await;
    let dead = worker.ends_one(End::Dead).await;
    let redriven = worker.ends_one(End::Dead).await;
    f.broker.redrive(&[redriven]).await.unwrap();
    let running = worker.one().await;
    f.lose(worker).await;
    let all: Vec<_> = sent.iter().map(|job| (job.id, 0)).chain([(JobId::fresh(), 0)]).collect();
    assert_eq!(forget(&f, &all).await, 1, "the one that waits in epoch 0");
    assert_eq!(forget(&f, &all).await, 0, "a repeat does nothing");
    assert_eq!(state(&f.broker, dead).await, State::Dead);
    assert_eq!((state(&f.broker, redriven).await, see(&f.broker, redriven).await.epoch), (State::Queued, 1));
    assert_eq!(running.lease.claim().await.unwrap(), Claim::Fresh { deaths: 0 });
    assert_eq!(end(running, End::Succeeded).await, Settled::Applied);
    assert_eq!(forget(&f, &[(redriven, 1)]).await, 1);
    let counts = view(&f.broker, &name).await.counts;
    assert_eq!((counts.total, counts.dead, counts.succeeded, counts.queued), (2, 1, 1, 0));
    let many: Vec<_> = (0..=MAX_BATCH).map(|_| (JobId::fresh(), 0)).collect();
    assert_eq!(f.backend.forget(&many).await.unwrap_err().kind(), Kind::TooLarge);
}

pub(crate) async fn a_lease_of_a_forgotten_job_is_stale(f: Fixture) {
    put_one(&f.broker, job()).await;
    let mut hasty = f.worker().await;
    let late = hasty.one().await;
    let hasty = f.lose(hasty).await;
    f.broker.recover(&hasty).await.unwrap();
    assert_eq!(forget(&f, &[(late.head.id, 0)]).await, 1);
    assert!(!f.claims_when_asked() || late.lease.claim().await.unwrap() == Claim::Stale);
    assert_eq!(end(late, End::Succeeded).await, Settled::Stale);
    assert_eq!(list(&f.broker, &JobFilter::default(), 10).await.len(), 0);
}

pub(crate) async fn a_job_put_in_elsewhere_keeps_what_it_has_behind_it(f: Fixture) {
    let id = put_one(&f.broker, job_of(&batch("b"))).await;
    let mut worker = f.worker().await;
    worker.ends_one(End::Dead).await;
    f.broker.redrive(&[id]).await.unwrap();
    let tried = worker.one().await;
    let mut verdict = retry(&tried.head, HOUR);
    if let Verdict::Retry { attempt, .. } = &mut verdict {
        attempt.class = Some(FailureClass::TimedOut);
    }
    tried.lease.settle(verdict).await.unwrap();
    let mut sent = waiting(&f, 10).await;
    assert_eq!(forget(&f, &[(id, 1)]).await, 1);
    assert_eq!(f.broker.enqueue_moved(sent.clone()).await.unwrap(), [Enqueued::New]);
    assert_eq!(f.broker.enqueue_moved(sent.clone()).await.unwrap(), [Enqueued::Known(State::Retrying)]);
    assert_eq!(waiting(&f, 10).await, sent);
    assert_eq!(forget(&f, &[(id, 1)]).await, 1);
    sent[0].head.not_before = None;
    f.broker.enqueue_moved(sent).await.unwrap();
    let again = worker.one().await;
    assert_eq!((again.head.epoch, again.head.attempts, again.head.history.recent.len()), (1, 1, 1));
    assert_eq!(again.head.history.recent[0].class, Some(FailureClass::TimedOut));
    assert_eq!(again.open().unwrap().id, id);
    assert_eq!(end(again, End::Succeeded).await, Settled::Applied);
}

pub(crate) async fn what_stands_behind_a_forgotten_job_is_leased(f: Fixture) {
    let sent = jobs(3);
    put(&f.broker, &sent).await;
    assert_eq!(forget(&f, &[(sent[0].id, 0), (sent[1].id, 0)]).await, 2);
    assert_eq!(f.worker().await.one().await.head.id, sent[2].id);
}

pub(crate) async fn a_forgotten_job_that_comes_again_begins_anew(f: Fixture) {
    let sent = keyed("key", "text");
    put(&f.broker, std::slice::from_ref(&sent)).await;
    let mut worker = f.worker().await;
    worker.ends_one(End::Dead).await;
    f.broker.redrive(&[sent.id]).await.unwrap();
    let tried = worker.one().await;
    let again = retry(&tried.head, Duration::ZERO);
    tried.lease.settle(again).await.unwrap();
    f.lose(worker).await;
    assert_eq!(forget(&f, &[(sent.id, 1)]).await, 1);
    put(&f.broker, std::slice::from_ref(&sent)).await;
    let mut worker = f.worker().await;
    let anew = worker.one().await;
    assert_eq!((anew.head.id, anew.head.epoch, anew.head.attempts), (sent.id, 0, 0));
    assert_eq!(anew.lease.claim().await.unwrap(), Claim::Fresh { deaths: 0 });
}
