//! The object-store ledger over stores that misbehave, and what it costs.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::broker::{Beat, Claim, Envelope, Head, LeaseId, Retention, Settled, Verdict, WorkerId, envelope};
use crate::error::Kind;
use crate::job::Job;
use crate::ledger::{Announced, Asked, Claims, Cursor, Ledger, Opened, Raised, Scope};
use crate::outcome::Body;
use crate::record::{Answer, Output, Record, State};
use crate::store::faulty::{Fault, Switches, faulty};
use crate::time::Timestamp;
use crate::work::Work;

const LONG: Duration = Duration::from_secs(60);

fn batch() -> BatchName {
    BatchName::new("b").unwrap()
}

fn message() -> Envelope {
    let work = Work::prompt(Some("mock"), "hi");
    envelope(&Job { batch: Some(batch()), ..Job::new(Queue::standard(), work) }).unwrap()
}

async fn bench() -> (ObjectLedger, Store, Arc<Switches>) {
    let (store, switches) = faulty();
    (ObjectLedger::open_with(store.clone(), Ages::NONE).await.unwrap(), store, switches)
}

async fn open(ledger: &ObjectLedger, head: &Head, lease: LeaseId, redelivered: bool) -> Opened {
    let worker = WorkerId::known("w");
    ledger.open(head, &Asked { lease, worker: &worker, length: LONG, redelivered }).await.unwrap()
}

fn end(head: &Head, lease: LeaseId, end: End) -> Verdict {
    let answer = Answer::plain(Output::Inline(Body::Text("an answer".into())));
    let record = Record::unrun(head, end, None, Timestamp::now());
    Verdict::End(Box::new(Record { lease, answer: (end == End::Succeeded).then_some(answer), ..record }))
}

/// Until what is written now has a later time than what was.
async fn a_moment_later() {
    let start = Timestamp::now();
    while Timestamp::now() <= start {
        tokio::task::yield_now().await;
    }
}

async fn counts(ledger: &ObjectLedger) -> (u64, u64, u64) {
    let counts = ledger.batch(&batch()).await.unwrap().unwrap().counts;
    (counts.total, counts.succeeded, counts.dead)
}

async fn ids(ledger: &ObjectLedger, after: Cursor) -> (Vec<JobId>, Cursor) {
    let page = ledger.results(&Scope::Batch(batch()), after, 100).await.unwrap();
    (page.records.iter().map(|(_, record)| record.id).collect(), page.next)
}

#[tokio::test]
async fn an_end_whose_answer_was_lost_is_ours() {
    for how in End::ALL {
        let (ledger, _, switches) = bench().await;
        let (message, lease) = (message(), LeaseId::random());
        ledger.register(&[&message.head]).await.unwrap();
        open(&ledger, &message.head, lease, false).await;
        // Neither the write's answer nor the look at what became of it comes through.
        switches.next(Fault::AnswerLost, "ledger/ends/");
        let verdict = end(&message.head, lease, how);
        switches.next(Fault::Unreadable, if how == End::Succeeded { "ledger/ends/" } else { ".0" });
        let failed = ledger.settle(&message.head, lease, &verdict, Some(&message.payload)).await;
        assert!(failed.unwrap_err().is_transient() && switches.are_met());
        a_moment_later().await;
        let again = ledger.settle(&message.head, lease, &verdict, Some(&message.payload)).await.unwrap();
        assert_eq!(again, Settled::Applied, "{how}");
        let view = ledger.fetch(&[message.head.id]).await.unwrap().pop().flatten().unwrap();
        assert_eq!(view.state, how.into());
        let (found, _) = ids(&ledger, Cursor(0)).await;
        assert_eq!(found, [message.head.id], "listed once");
    }
}

#[tokio::test]
async fn an_end_that_is_there_by_our_own_doing_is_ours() {
    let (ledger, _, switches) = bench().await;
    let (message, lease) = (message(), LeaseId::random());
    switches.next(Fault::OursExists, "ledger/ends/");
    let settled = ledger.settle(&message.head, lease, &end(&message.head, lease, End::Succeeded), None).await;
    assert_eq!(settled.unwrap(), Settled::Applied);
    assert!(switches.are_met());
    // A second copy ran as well.
    let other = LeaseId::random();
    let settled = ledger.settle(&message.head, other, &end(&message.head, other, End::Succeeded), None).await;
    assert_eq!(settled.unwrap(), Settled::Stale);
    let view = ledger.fetch(&[message.head.id]).await.unwrap().pop().flatten().unwrap();
    assert_eq!(view.record.unwrap().lease, lease);
}

#[tokio::test]
async fn a_creation_that_is_refused_for_nothing_is_tried_again() {
    let (ledger, _, switches) = bench().await;
    let (message, lease) = (message(), LeaseId::random());
    switches.next(Fault::Refused, "ledger/ends/");
    let verdict = end(&message.head, lease, End::Succeeded);
    let refused = ledger.settle(&message.head, lease, &verdict, None).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Unavailable, "{refused}");
    assert_eq!(ledger.settle(&message.head, lease, &verdict, None).await.unwrap(), Settled::Applied);
}

#[tokio::test]
async fn without_conditions_an_end_is_looked_for_before_it_is_written() {
    let (store, switches) = faulty();
    switches.careless();
    let ledger = ObjectLedger::open_with(store, Ages::NONE).await.unwrap();
    assert!(!ledger.is_conditional());
    let (message, first, second) = (message(), LeaseId::random(), LeaseId::random());
    for (lease, told) in [(first, Settled::Applied), (first, Settled::Applied), (second, Settled::Stale)] {
        let verdict = end(&message.head, lease, End::Succeeded);
        assert_eq!(ledger.settle(&message.head, lease, &verdict, None).await.unwrap(), told);
    }
    let view = ledger.fetch(&[message.head.id]).await.unwrap().pop().flatten().unwrap();
    assert_eq!(view.record.unwrap().lease, first);
}

#[tokio::test(start_paused = true)]
async fn opening_takes_one_round_trip_and_what_came_again_two_however_slow_the_store_is() {
    let (ledger, _, switches) = bench().await;
    let each = Duration::from_millis(250);
    switches.slow(each);
    // That what came again runs is noted once it is known that it does.
    for (redelivered, trips) in [(false, 1), (true, 2)] {
        let (message, start) = (message(), Instant::now());
        let opened = open(&ledger, &message.head, LeaseId::random(), redelivered).await;
        assert_eq!((opened.claim, start.elapsed()), (Claim::Fresh { deaths: 0 }, each * trips));
    }
    // What runs is not asked after one by one.
    let ledger = ObjectLedger { ages: Ages::default(), ..ledger };
    let (message, lease) = (message(), LeaseId::random());
    open(&ledger, &message.head, lease, false).await;
    let start = Instant::now();
    assert_eq!(ledger.beat(&message.head, lease, LONG).await.unwrap(), Beat::Kept);
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn whether_a_queue_is_paused_is_one_read_however_many_are_dead() {
    let (ledger, _, switches) = bench().await;
    let ledger = ObjectLedger { ages: Ages::default(), ..ledger };
    ledger.pause(&Queue::standard(), Some("a pause")).await.unwrap();
    let each = Duration::from_millis(250);
    switches.slow(each);
    let asks = async || {
        let start = Instant::now();
        let paused = ledger.paused(&Queue::standard()).await.unwrap();
        (paused, start.elapsed())
    };
    assert_eq!(asks().await, (Some("a pause".to_owned()), Duration::ZERO));
    tokio::time::advance(Ages::default().flags).await;
    assert_eq!(asks().await.1, each);
    assert_eq!(asks().await.1, Duration::ZERO);
}

#[tokio::test]
async fn a_message_that_came_again_and_did_not_run_is_no_death() {
    let (ledger, _, switches) = bench().await;
    let message = message();
    for n in 0..4 {
        if n % 2 == 0 {
            ledger.pause(&Queue::standard(), Some("a pause")).await.unwrap();
            let told = open(&ledger, &message.head, LeaseId::random(), true).await.claim;
            assert!(matches!(told, Claim::Paused { .. }), "{told:?}");
            ledger.pause(&Queue::standard(), None).await.unwrap();
        } else {
            switches.next(Fault::Unreadable, "ledger/ends/");
            let (lease, worker) = (LeaseId::random(), WorkerId::known("w"));
            let asked = Asked { lease, worker: &worker, length: LONG, redelivered: true };
            ledger.open(&message.head, &asked).await.unwrap_err();
        }
    }
    let told = open(&ledger, &message.head, LeaseId::random(), true).await.claim;
    assert_eq!(told, Claim::Fresh { deaths: 0 });
    // This one runs and is never heard of again.
    assert_eq!(open(&ledger, &message.head, LeaseId::random(), true).await.claim, Claim::Fresh { deaths: 1 });
}

#[tokio::test]
async fn an_end_that_was_not_listed_is_listed_before_its_message_goes() {
    let (ledger, store, switches) = bench().await;
    let (message, lease) = (message(), LeaseId::random());
    ledger.register(&[&message.head]).await.unwrap();
    switches.next(Fault::Unwritten, "ledger/marks/");
    let died = ledger.settle(&message.head, lease, &end(&message.head, lease, End::Succeeded), None).await;
    died.unwrap_err();
    assert_eq!(counts(&ledger).await, (1, 0, 0));
    // The worker is gone; its message comes to another.
    let heir = ObjectLedger::open_with(store, Ages::NONE).await.unwrap();
    let told = open(&heir, &message.head, LeaseId::random(), true).await;
    assert_eq!((told.claim, told.announce), (Claim::Ended(State::Succeeded), true));
    let record = heir.fetch(&[message.head.id]).await.unwrap().pop().flatten().unwrap().record.unwrap();
    heir.announced(&[Announced::of(&record)]).await.unwrap();
    assert_eq!(counts(&ledger).await, (1, 1, 0));
    assert_eq!(ids(&heir, Cursor(0)).await.0, [message.head.id]);
}

#[tokio::test]
async fn a_mark_that_comes_late_comes_after_what_was_told_before() {
    let (ledger, store, switches) = bench().await;
    let reader = ObjectLedger::open_with(store, Ages::NONE).await.unwrap();
    let (late, timely, lease) = (message(), message(), LeaseId::random());
    ledger.register(&[&late.head, &timely.head]).await.unwrap();
    switches.next(Fault::Unwritten, "ledger/marks/");
    ledger.settle(&late.head, lease, &end(&late.head, lease, End::Succeeded), None).await.unwrap_err();
    a_moment_later().await;
    ledger.settle(&timely.head, lease, &end(&timely.head, lease, End::Succeeded), None).await.unwrap();
    let (told, next) = ids(&reader, Cursor(0)).await;
    assert_eq!(told, [timely.head.id]);
    ledger.settle(&late.head, lease, &end(&late.head, lease, End::Succeeded), None).await.unwrap();
    let (told, end) = ids(&reader, next).await;
    assert_eq!(told, [late.head.id]);
    assert!(end > next);
    assert_eq!(ids(&reader, end).await.0, []);
    assert_eq!(counts(&reader).await, (2, 2, 0));
    assert_eq!(ids(&ledger, Cursor(0)).await.0.len(), 2, "another process tells both");
}

#[tokio::test]
async fn an_end_that_another_lists_comes_after_what_was_told_before_to_processes_that_begin_later_too() {
    for how in [End::Succeeded, End::Dead] {
        let (ledger, store, switches) = bench().await;
        let begin = async || ObjectLedger::open_with(store.clone(), Ages::NONE).await.unwrap();
        let (late, timely, lease) = (message(), message(), LeaseId::random());
        ledger.register(&[&late.head, &timely.head]).await.unwrap();
        switches.next(Fault::Unwritten, "ledger/marks/");
        ledger.settle(&late.head, lease, &end(&late.head, lease, how), Some(&late.payload)).await.unwrap_err();
        a_moment_later().await;
        ledger.settle(&timely.head, lease, &end(&timely.head, lease, End::Succeeded), None).await.unwrap();
        let (told, next) = ids(&begin().await, Cursor(0)).await;
        assert_eq!(told, [timely.head.id]);
        a_moment_later().await;
        // The worker is gone; copies of its message come to others.
        for _ in 0..2 {
            let heir = begin().await;
            assert!(open(&heir, &late.head, LeaseId::random(), true).await.announce);
            let view = heir.fetch(&[late.head.id]).await.unwrap().pop().flatten().unwrap();
            heir.announced(&[Announced::of(&view.record.unwrap())]).await.unwrap();
        }
        let (told, last) = ids(&begin().await, next).await;
        assert_eq!(told, [late.head.id], "{how}");
        assert_eq!(ids(&begin().await, last).await.0, []);
        assert_eq!(ids(&begin().await, Cursor(0)).await.0, [timely.head.id, late.head.id]);
        let dead = u64::from(how == End::Dead);
        assert_eq!(counts(&ledger).await, (2, 2 - dead, dead));
        assert_eq!(ledger.standing(&Queue::standard()).await.unwrap().depth.dead, dead);
        ledger.raise(&[late.head.id]).await.unwrap();
        assert_eq!(ledger.standing(&Queue::standard()).await.unwrap().depth.dead, 0);
    }
}

#[tokio::test]
async fn what_has_just_ended_is_told_once_nothing_earlier_can_come_any_more() {
    let (ledger, ..) = bench().await;
    let ledger = ObjectLedger { ages: Ages { untold: LONG, ..Ages::NONE }, ..ledger };
    let (messages, lease) = ([message(), message()], LeaseId::random());
    ledger.register(&[&messages[0].head, &messages[1].head]).await.unwrap();
    ledger.seal(&batch(), &Queue::standard()).await.unwrap();
    let ends = |message: &Envelope| end(&message.head, lease, End::Succeeded);
    ledger.settle(&messages[0].head, lease, &ends(&messages[0]), None).await.unwrap();
    assert_eq!((counts(&ledger).await, ids(&ledger, Cursor(0)).await.0), ((2, 1, 0), vec![]));
    a_moment_later().await;
    ledger.settle(&messages[1].head, lease, &ends(&messages[1]), None).await.unwrap();
    assert_eq!(counts(&ledger).await, (2, 2, 0));
    assert_eq!(ids(&ledger, Cursor(0)).await.0, messages.map(|message| message.head.id), "the batch is over");
}

#[tokio::test]
async fn a_batch_that_is_over_is_opened_again_by_what_comes_to_it() {
    let (ledger, ..) = bench().await;
    let (message, lease) = (message(), LeaseId::random());
    ledger.register(&[&message.head]).await.unwrap();
    ledger.seal(&batch(), &Queue::standard()).await.unwrap();
    let verdict = end(&message.head, lease, End::Dead);
    ledger.settle(&message.head, lease, &verdict, Some(&message.payload)).await.unwrap();
    for _ in 0..2 {
        assert_eq!(counts(&ledger).await, (1, 0, 1));
    }
    let Raised::Publish(anew) = ledger.raise(&[message.head.id]).await.unwrap().remove(0) else { panic!("raised") };
    assert_eq!(counts(&ledger).await, (1, 0, 0));
    let settled = ledger.settle(&anew.head, lease, &end(&anew.head, lease, End::Succeeded), None).await.unwrap();
    assert_eq!((settled, counts(&ledger).await), (Settled::Applied, (1, 1, 0)));
    let other = self::message();
    ledger.register(&[&other.head]).await.unwrap();
    assert_eq!(counts(&ledger).await, (2, 1, 0));
}

#[tokio::test]
async fn a_payload_handed_over_while_its_end_is_taken_back_is_published() {
    let (ledger, _, switches) = bench().await;
    let message = message();
    ledger.cancel(&[message.head.id], &[Queue::standard()]).await.unwrap();
    assert!(open(&ledger, &message.head, LeaseId::random(), false).await.keep);
    // Nothing is there yet when the redrive looks, then all of `keep` happens, then the end is taken back.
    assert!(ledger.keep(&message.head, &message.payload).await.unwrap());
    switches.next(Fault::Missing, "ledger/kept/");
    let raised = ledger.raise(&[message.head.id]).await.unwrap().remove(0);
    let Raised::Publish(anew) = raised else { panic!("its message is gone, and it is told as {raised:?}") };
    assert_eq!((anew.head.epoch, anew.payload), (1, message.payload));
}

#[tokio::test]
async fn what_is_old_is_forgotten_in_steps_and_its_id_last() {
    let (ledger, ..) = bench().await;
    let leases = [LeaseId::random(), LeaseId::random()];
    let messages = [message(), message()];
    ledger.register(&[&messages[0].head, &messages[1].head]).await.unwrap();
    for (message, (lease, how)) in messages.iter().zip(leases.into_iter().zip([End::Succeeded, End::Dead])) {
        let verdict = end(&message.head, lease, how);
        ledger.settle(&message.head, lease, &verdict, Some(&message.payload)).await.unwrap();
    }
    let sweep = async |retention: Retention| {
        let mut forgotten = 0;
        loop {
            let swept = ledger.sweep(&retention).await.unwrap();
            forgotten += swept.forgotten;
            if !swept.more {
                return forgotten;
            }
        }
    };
    a_moment_later().await;
    a_moment_later().await;
    assert_eq!(sweep(Retention { succeeded: Duration::ZERO, ..Retention::standard() }).await, 1);
    assert_eq!(sweep(Retention { succeeded: Duration::ZERO, ..Retention::standard() }).await, 0);
    let views = ledger.fetch(&[messages[0].head.id, messages[1].head.id]).await.unwrap();
    assert_eq!(views.iter().map(Option::is_some).collect::<Vec<_>>(), [false, true]);
    assert_eq!(counts(&ledger).await, (2, 1, 1));
    let none = Retention { succeeded: Duration::ZERO, dead: Duration::ZERO, ..Retention::standard() };
    assert_eq!(sweep(none).await, 1);
    for (message, how) in messages.iter().zip([State::Succeeded, State::Dead]) {
        let told = open(&ledger, &message.head, LeaseId::random(), true).await;
        assert_eq!(told, Opened { claim: Claim::Ended(how), announce: false, keep: false });
    }
    assert_eq!(ledger.raise(&[messages[1].head.id]).await.unwrap(), [Raised::Gone]);
    assert!(ledger.dead_groups(None).await.unwrap().is_empty());
    sweep(Retention { tombstones: Duration::ZERO, ..none }).await;
    assert_eq!(open(&ledger, &messages[0].head, LeaseId::random(), false).await.claim, Claim::Fresh { deaths: 0 });
}
