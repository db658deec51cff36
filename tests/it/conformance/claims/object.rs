//! Cases of the ledger in object storage, which cannot claim: what it promises where another ledger promises more.

use std::time::Duration;

use promptq_common::broker::{Beat, Cancel, Claim, Envelope, LeaseId, Retention, Settled};
use promptq_common::job::{Job, JobId, Queue};
use promptq_common::ledger::{Asked, JobFilter, Opened, Raised, Registered};
use promptq_common::record::{End, State};
use promptq_tests::backends::{Fixture, LONG};
use promptq_tests::fixture::{self, batch, job, job_of, keyed, queue, release};
use promptq_tests::messages::{Carrier, message, run_out};
use promptq_tests::steps::{list, record, results, see, state, view};

/// So that what is created next is later than what was.
const MOMENT: Duration = Duration::from_millis(1);

/// What a message hears whose job has ended. It is never known that somebody has announced that.
fn told_of(how: State) -> Opened {
    Opened { claim: Claim::Ended(how), announce: true, keep: false }
}

/// What the first copy of a message hears whose job was ended while it waited.
fn ended_meanwhile(how: State) -> Opened {
    Opened { keep: true, ..told_of(how) }
}

/// Opens a message that the broker says it may have delivered before; after how many deaths it may run.
async fn again(by: &Carrier, message: &Envelope) -> (LeaseId, u32) {
    let lease = LeaseId::random();
    let asked = Asked { lease, worker: &by.worker, length: LONG, redelivered: true };
    let Claim::Fresh { deaths } = by.claims.open(&message.head, &asked).await.unwrap().claim else {
        panic!("it may not run")
    };
    (lease, deaths)
}

async fn unseen(f: &Fixture, id: JobId) -> bool {
    f.ledger().fetch(&[id]).await.unwrap()[0].is_none()
}

pub(crate) async fn two_copies_may_both_run_and_the_first_success_is_the_result(f: Fixture) {
    let (by, other) = (Carrier::on(&f), Carrier::on(&f));
    let message = by.register(&job_of(&batch("b"))).await;
    let (first, second) = (by.run(&message).await, other.run(&message).await);
    assert_eq!(by.claims.beat(&message.head, first.lease, LONG).await.unwrap(), Beat::Kept);
    assert_eq!(second.end(End::Succeeded).await, Settled::Applied);
    assert_eq!(by.claims.beat(&message.head, first.lease, LONG).await.unwrap(), Beat::Ended);
    for how in End::ALL {
        assert_eq!(first.end(how).await, Settled::Stale, "{how}");
    }
    assert_eq!(record(&f.broker, message.head.id).await.lease, second.lease);
    assert_eq!(by.told(&message).await, told_of(State::Succeeded));
    assert_eq!(
        (view(&f.broker, &batch("b")).await.counts.succeeded, results(&f.broker, &batch("b")).await.len()),
        (1, 1)
    );
}

pub(crate) async fn asking_again_with_the_same_lease_may_run(f: Fixture) {
    let by = Carrier::on(&f);
    let message = by.register(&job_of(&batch("b"))).await;
    let run = by.run(&message).await;
    for _ in 0..2 {
        let again = by.open_as(&message, run.lease, LONG).await;
        assert_eq!(again.claim, Claim::Fresh { deaths: 0 });
    }
    assert_eq!(run.end(End::Succeeded).await, Settled::Applied);
    assert_eq!(by.claims.beat(&message.head, LeaseId::random(), LONG).await.unwrap(), Beat::Ended);
}

pub(crate) async fn deaths_are_counted_from_the_second_on(f: Fixture) {
    let by = Carrier::on(&f);
    let message = by.register(&job()).await;
    by.run(&message).await;
    for deaths in 0..3 {
        let (lease, told) = again(&by, &message).await;
        assert_eq!(told, deaths);
        let asked = Asked { lease, worker: &by.worker, length: LONG, redelivered: true };
        let repeated = by.claims.open(&message.head, &asked).await.unwrap();
        assert_eq!(repeated.claim, Claim::Fresh { deaths }, "the same claim is no death");
    }
    // A run that ends in order is none either.
    let (lease, _) = again(&by, &message).await;
    by.again(&message, lease).settle(&release()).await;
    assert_eq!(again(&by, &message).await.1, 3);
}

pub(crate) async fn deaths_are_counted_by_epoch(f: Fixture) {
    let by = Carrier::on(&f);
    let message = by.register(&job()).await;
    again(&by, &message).await;
    let (lease, deaths) = again(&by, &message).await;
    assert_eq!(deaths, 1);
    by.again(&message, lease).end(End::Dead).await;
    let anew = by.raise_anew(&message).await;
    assert_eq!(again(&by, &anew).await.1, 0);
}

pub(crate) async fn a_job_is_known_when_it_has_ended(f: Fixture) {
    let by = Carrier::on(&f);
    let message = message(&Job { batch: Some(batch("b")), ..keyed("k", "hi") });
    let other = promptq_tests::messages::message(&keyed("k", "other"));
    for _ in 0..2 {
        assert_eq!(by.claims.register(&[&message.head]).await.unwrap(), [Registered::New]);
        by.claims.confirm(&[&message.head]).await.unwrap();
    }
    // Not seen while it waits.
    assert_eq!(by.claims.register(&[&other.head]).await.unwrap(), [Registered::New]);
    assert_eq!(view(&f.broker, &batch("b")).await.counts.total, 1, "registered twice, counted once");
    by.run(&message).await.end(End::Succeeded).await;
    assert_eq!(by.claims.register(&[&message.head]).await.unwrap(), [Registered::Known(State::Succeeded)]);
    assert_eq!(by.claims.register(&[&other.head]).await.unwrap(), [Registered::Conflict]);
}

pub(crate) async fn a_job_that_waits_or_runs_is_counted_and_not_told_of(f: Fixture) {
    let by = Carrier::on(&f);
    let (waits, runs) = (by.register(&job_of(&batch("b"))).await, by.register(&job_of(&batch("b"))).await);
    let copy = by.run(&runs).await.retries().await;
    let counts = view(&f.broker, &batch("b")).await.counts;
    assert_eq!((counts.total, counts.queued, counts.running), (2, 2, 0));
    assert!(unseen(&f, waits.head.id).await && unseen(&f, runs.head.id).await);
    by.run(&copy).await.end(End::Succeeded).await;
    let found = record(&f.broker, runs.head.id).await;
    assert_eq!((found.attempts, found.history.usage.input_tokens), (2, 2 * 7), "what came with the copy");
    let filter = JobFilter { batch: Some(batch("b")), ..JobFilter::default() };
    assert_eq!(list(&f.broker, &filter, 1).await.into_iter().map(|job| job.id).collect::<Vec<_>>(), [runs.head.id]);
}

pub(crate) async fn a_late_success_replaces_every_other_end(f: Fixture) {
    let by = Carrier::on(&f);
    for how in [End::Dead, End::Cancelled, End::Expired] {
        let message = by.register(&job_of(&batch("b"))).await;
        let (late, running) = (by.run(&message).await, by.run(&message).await);
        assert_eq!(running.end(how).await, Settled::Applied);
        assert_eq!(late.end(how).await, Settled::Stale);
        for _ in 0..2 {
            assert_eq!(late.end(End::Succeeded).await, Settled::Kept);
        }
        assert_eq!(state(&f.broker, message.head.id).await, State::Succeeded);
        assert!(f.ledger().dead_groups(None).await.unwrap().is_empty());
        assert_eq!(by.claims.standing(&Queue::standard()).await.unwrap().depth.dead, 0);
        assert!(f.ledger().payload(message.head.id).await.unwrap().is_none());
    }
    let found = view(&f.broker, &batch("b")).await;
    assert_eq!((found.counts.succeeded, found.counts.ended(), found.usage.input_tokens), (3, 3, 3 * 7));
}

pub(crate) async fn a_late_success_of_an_earlier_epoch_is_kept(f: Fixture) {
    let by = Carrier::on(&f);
    let message = by.register(&job_of(&batch("b"))).await;
    let (late, running) = (by.run(&message).await, by.run(&message).await);
    running.end(End::Dead).await;
    let anew = by.raise_anew(&message).await;
    assert_eq!(late.end(End::Succeeded).await, Settled::Kept);
    assert_eq!(by.told(&anew).await, told_of(State::Succeeded));
    let counts = view(&f.broker, &batch("b")).await.counts;
    assert_eq!((counts.succeeded, counts.ended(), counts.total), (1, 1, 1));
}

pub(crate) async fn counts_follow_every_end_and_every_redrive(f: Fixture) {
    let by = Carrier::on(&f);
    let mut last = None;
    for how in End::ALL {
        let message = by.register(&job_of(&batch("b"))).await;
        let copy = by.run(&message).await.retries().await;
        by.run(&copy).await.end(how).await;
        last = Some(copy);
    }
    let counts = view(&f.broker, &batch("b")).await.counts;
    assert_eq!((counts.succeeded, counts.dead, counts.cancelled, counts.expired), (1, 1, 1, 1));
    let anew = by.raise_anew(&last.unwrap()).await;
    let found = view(&f.broker, &batch("b")).await;
    assert_eq!((found.counts.total, found.counts.queued, found.counts.expired), (4, 1, 0));
    by.run(&anew).await.end(End::Succeeded).await;
    let again = view(&f.broker, &batch("b")).await;
    assert_eq!((again.counts.succeeded, again.counts.ended()), (2, 4));
    assert_eq!(again.usage.input_tokens, found.usage.input_tokens + 7, "an earlier epoch's consumption stays");
    let second = f.second().await.ledger().batch(&batch("b")).await.unwrap();
    assert_eq!(second, Some(again), "as another process counts it");
}

pub(crate) async fn a_cancel_is_a_flag_that_waiting_messages_and_running_jobs_meet(f: Fixture) {
    let by = Carrier::on(&f);
    let (waits, runs) = (by.register(&job_of(&batch("b"))).await, by.register(&job_of(&batch("b"))).await);
    let run = by.run(&runs).await;
    assert_eq!(by.claims.cancel(&[waits.head.id], &[]).await.unwrap(), [Cancel::Unknown]);
    let ids = [waits.head.id, runs.head.id];
    for _ in 0..2 {
        assert_eq!(by.claims.cancel(&ids, &[Queue::standard()]).await.unwrap(), [Cancel::Flagged; 2]);
    }
    assert_eq!(by.told(&waits).await, ended_meanwhile(State::Cancelled));
    assert!(by.claims.keep(&waits.head, &waits.payload).await.unwrap());
    assert_eq!(by.told(&waits).await, told_of(State::Cancelled));
    assert_eq!(f.ledger().payload(waits.head.id).await.unwrap(), Some(waits.payload));
    assert_eq!(by.claims.beat(&runs.head, run.lease, LONG).await.unwrap(), Beat::Cancelled);
    assert_eq!(by.open_as(&runs, run.lease, LONG).await.claim, Claim::Cancelled);
    assert_eq!(run.end(End::Cancelled).await, Settled::Applied);
    let already = by.claims.cancel(&ids, &[Queue::standard()]).await.unwrap();
    assert_eq!(already, [Cancel::Already(State::Cancelled); 2]);
    assert_eq!(view(&f.broker, &batch("b")).await.counts.cancelled, 2);
}

pub(crate) async fn a_cancelled_batch_stops_what_waits_and_what_comes_later(f: Fixture) {
    let by = Carrier::on(&f);
    assert_eq!(by.claims.cancel_batch(&batch("b")).await.unwrap().flagged, 0, "no such batch");
    let (waits, runs) = (by.register(&job_of(&batch("b"))).await, by.register(&job_of(&batch("b"))).await);
    let run = by.run(&runs).await;
    let counts = by.claims.cancel_batch(&batch("b")).await.unwrap();
    assert_eq!((counts.ended, counts.flagged), (0, 2), "which of them run is not known");
    assert_eq!(by.told(&waits).await, ended_meanwhile(State::Cancelled));
    assert_eq!(by.claims.beat(&runs.head, run.lease, LONG).await.unwrap(), Beat::Cancelled);
    run.end(End::Cancelled).await;
    let later = by.register(&job_of(&batch("b"))).await;
    assert_eq!(by.told(&later).await, ended_meanwhile(State::Cancelled));
    let found = view(&f.broker, &batch("b")).await;
    assert_eq!((found.cancelled, found.counts.cancelled), (true, 3));
    // Put back in line, they may run.
    assert!(by.claims.keep(&later.head, &later.payload).await.unwrap());
    by.run(&by.raise_anew(&later).await).await;
    assert_eq!(by.raise(&waits).await, Raised::Restored { epoch: 0 });
    let run = by.run(&waits).await;
    assert_eq!(by.claims.beat(&waits.head, run.lease, LONG).await.unwrap(), Beat::Kept);
}

pub(crate) async fn a_purge_meets_what_was_created_before_it(f: Fixture) {
    let by = Carrier::on(&f);
    let (ours, elsewhere) = (message(&job()), message(&Job { queue: queue("other"), ..job() }));
    let died = by.register(&job()).await;
    by.run(&died).await.end(End::Dead).await;
    run_out(MOMENT).await;
    assert_eq!(by.claims.purge(&Queue::standard()).await.unwrap(), 0, "the broker counts what it drains");
    run_out(MOMENT).await;
    assert_eq!(by.told(&ours).await, ended_meanwhile(State::Cancelled));
    assert_eq!(record(&f.broker, ours.head.id).await.cause.unwrap().code, "purged");
    // Created before it, and put back in line after it.
    let anew = by.raise_anew(&died).await;
    for kept in [&message(&job()), &elsewhere, &anew] {
        by.run(kept).await;
    }
}

pub(crate) async fn an_end_is_taken_back_while_its_message_waits(f: Fixture) {
    let by = Carrier::on(&f);
    let message = by.register(&job_of(&batch("b"))).await;
    by.claims.cancel(&[message.head.id], &[Queue::standard()]).await.unwrap();
    // Nobody has met it.
    assert_eq!(by.raise(&message).await, Raised::Restored { epoch: 0 });
    assert_eq!(by.raise(&message).await, Raised::Waiting);
    by.claims.cancel(&[message.head.id], &[Queue::standard()]).await.unwrap();
    // Its message has, and has not handed over its payload.
    assert_eq!(by.told(&message).await, ended_meanwhile(State::Cancelled));
    assert_eq!(view(&f.broker, &batch("b")).await.counts.cancelled, 1);
    assert_eq!(by.raise(&message).await, Raised::Restored { epoch: 0 });
    let counts = view(&f.broker, &batch("b")).await.counts;
    assert_eq!((counts.queued, counts.cancelled), (1, 0));
    assert!(!by.claims.keep(&message.head, &message.payload).await.unwrap(), "it is needed");
    by.run(&message).await.end(End::Dead).await;
    assert_eq!(see(&f.broker, message.head.id).await.state, State::Dead);
    assert_eq!(view(&f.broker, &batch("b")).await.counts.dead, 1);
    let anew = by.raise_anew(&message).await;
    assert!(by.claims.keep(&message.head, &message.payload).await.unwrap(), "an epoch later it is not");
    by.run(&anew).await;
}

pub(crate) async fn a_redrive_that_died_in_the_middle_is_found_again(f: Fixture) {
    let by = Carrier::on(&f);
    let message = by.register(&job_of(&batch("b"))).await;
    by.run(&message).await.end(End::Dead).await;
    let first = by.raise_anew(&message).await;
    assert_eq!(by.raise_anew(&message).await, first);
    by.claims.published(&[&first.head]).await.unwrap();
    assert_eq!(by.raise(&message).await, Raised::Waiting);
    assert_eq!(see(&f.broker, message.head.id).await.epoch, 1);
    // Both copies may run; what the first says counts.
    let (one, other) = (by.run(&first).await, by.run(&first).await);
    assert_eq!((one.end(End::Dead).await, other.end(End::Dead).await), (Settled::Applied, Settled::Stale));
    let third = by.raise_anew(&message).await;
    assert_eq!(third.head.epoch, 2);
    by.claims.published(&[&first.head]).await.unwrap();
    assert_eq!(by.raise_anew(&message).await, third, "what is said of an earlier epoch's message says nothing");
}

pub(crate) async fn what_cannot_be_redriven_is_said(f: Fixture) {
    let by = Carrier::on(&f);
    let message = by.register(&job()).await;
    assert_eq!(by.raise(&message).await, Raised::Unknown, "it waits, and was never seen");
    by.run(&message).await.end(End::Dead).await;
    assert_eq!(by.claims.drop_dead(&[message.head.id]).await.unwrap(), 1);
    assert_eq!(by.claims.drop_dead(&[message.head.id]).await.unwrap(), 0);
    assert_eq!(by.raise(&message).await, Raised::Gone);
    assert!(see(&f.broker, message.head.id).await.dropped);
    assert_eq!(by.told(&message).await, told_of(State::Dead));
    assert_eq!(by.claims.standing(&Queue::standard()).await.unwrap().depth.dead, 0);
}

pub(crate) async fn a_job_that_goes_elsewhere_leaves_its_batch(f: Fixture) {
    let by = Carrier::on(&f);
    let (waits, ended) = (by.register(&job_of(&batch("b"))).await, by.register(&job_of(&batch("b"))).await);
    by.run(&ended).await.end(End::Succeeded).await;
    assert_eq!(by.claims.forget(&[(waits.head.id, 1), (ended.head.id, 0)]).await.unwrap(), 0);
    assert_eq!(view(&f.broker, &batch("b")).await.counts.total, 2);
    assert_eq!(by.claims.forget(&[(waits.head.id, 0)]).await.unwrap(), 1);
    assert_eq!(view(&f.broker, &batch("b")).await.counts.total, 1);
    by.claims.register(&[&waits.head]).await.unwrap();
    assert_eq!(view(&f.broker, &batch("b")).await.counts.total, 2, "and may come back");
}

pub(crate) async fn queues_stand_with_what_is_dead(f: Fixture) {
    let by = Carrier::on(&f);
    for how in [End::Dead, End::Succeeded] {
        by.run(&by.register(&job()).await).await.end(how).await;
    }
    by.run(&message(&Job { queue: queue("other"), ..job() })).await;
    let standings = by.claims.standings().await.unwrap();
    let told: Vec<_> = standings.iter().map(|one| (one.queue.as_str(), one.depth.dead, one.depth.running)).collect();
    assert_eq!(told, [("default", 1, 0), ("other", 0, 0)]);
}

pub(crate) async fn results_are_told_in_pages_and_to_every_process_alike(f: Fixture) {
    let by = Carrier::on(&f);
    let mut ended = Vec::new();
    for _ in 0..5 {
        let message = by.register(&job_of(&batch("b"))).await;
        by.run(&message).await.end(End::Succeeded).await;
        run_out(MOMENT).await;
        ended.push(message.head.id);
    }
    let scopes =
        [promptq_common::ledger::Scope::Batch(batch("b")), promptq_common::ledger::Scope::Queue(Queue::standard())];
    for scope in scopes {
        let (mut told, mut cursor) = (Vec::new(), promptq_common::ledger::Cursor(0));
        for more in [true, true, false] {
            // A cursor of one process is one of every other.
            let page = f.second().await.ledger().results(&scope, cursor, 2).await.unwrap();
            told.extend(page.records.iter().map(|(_, record)| record.id));
            assert_eq!(page.more, more);
            cursor = page.next;
        }
        assert_eq!(told, ended);
        assert_eq!(cursor, view(&f.broker, &batch("b")).await.last);
        assert_eq!(f.ledger().results(&scope, cursor, 2).await.unwrap().next, cursor);
    }
    let newest: Vec<_> = list(&f.broker, &JobFilter::default(), 2).await.into_iter().map(|job| job.id).collect();
    assert_eq!(newest, ended.into_iter().rev().collect::<Vec<_>>());
}

pub(crate) async fn locks_notes_and_workers_are_kept_beside(f: Fixture) {
    let (one, other) = (Carrier::on(&f).worker, Carrier::on(&f).worker);
    let (ledger, second) = (f.ledger(), f.second().await);
    assert!(ledger.lock("l/ö", &one, LONG).await.unwrap() && ledger.lock("l/ö", &one, LONG).await.unwrap());
    assert!(!second.ledger().lock("l/ö", &other, LONG).await.unwrap());
    second.ledger().unlock("l/ö", &other).await.unwrap();
    assert!(!second.ledger().lock("l/ö", &other, LONG).await.unwrap());
    ledger.unlock("l/ö", &one).await.unwrap();
    assert!(second.ledger().lock("l/ö", &other, Duration::ZERO).await.unwrap());
    run_out(MOMENT).await;
    assert!(ledger.lock("l/ö", &one, LONG).await.unwrap(), "it ran out");
    ledger.set_note("run/é", Some("x")).await.unwrap();
    assert_eq!(second.ledger().note("run/é").await.unwrap().as_deref(), Some("x"));
    ledger.set_note("run/é", None).await.unwrap();
    assert_eq!(second.ledger().note("run/é").await.unwrap(), None);
}

pub(crate) async fn retention_forgets_records_and_remembers_ids(f: Fixture) {
    let by = Carrier::on(&f);
    let message = by.register(&Job { batch: Some(batch("b")), ..keyed("k", "hi") }).await;
    let lease = by.run(&message).await.lease;
    let verdict = fixture::end(&message.head, lease, End::Succeeded);
    by.again(&message, lease).settle(&verdict).await;
    run_out(MOMENT).await;
    let retention = Retention { succeeded: Duration::ZERO, ..Retention::standard() };
    while by.claims.sweep(&retention).await.unwrap().more {}
    assert!(unseen(&f, message.head.id).await);
    assert_eq!(by.told(&message).await, promptq_tests::messages::ended(End::Succeeded));
    assert_eq!(by.claims.register(&[&message.head]).await.unwrap(), [Registered::Known(State::Succeeded)]);
    let counts = view(&f.broker, &batch("b")).await.counts;
    assert_eq!((counts.total, counts.succeeded), (1, 1));
    assert!(results(&f.broker, &batch("b")).await.is_empty());
}
