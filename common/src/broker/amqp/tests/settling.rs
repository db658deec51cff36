//! How a job leaves a worker that is unlucky: too late, too large, for the second time, or through code that breaks.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use lapin::BasicProperties;
use lapin::types::FieldTable;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::peer::Published;
use super::stage::{LONG, SOON, Stage, envelope, success};
use crate::broker::amqp::desk::Item;
use crate::broker::amqp::opening::Opening;
use crate::broker::amqp::wire::{self, Parcel};
use crate::broker::backend::{Claim, Head, LeaseId, RawDelivery, Settled, Verdict};
use crate::job::Queue;
use crate::ledger::{Claims, Ledger, Raised};
use crate::outcome::{Attempt, FailureClass, History, Usage};
use crate::record::State;
use crate::time::Timestamp;

const LEASE: Duration = Duration::from_millis(50);
const RELEASE: Verdict = Verdict::Release { after: LONG, hold: None };

fn retry(head: &Head) -> Verdict {
    let now = Timestamp::now();
    let attempt = Attempt {
        n: head.attempts + 1,
        worker: "here".to_owned(),
        started_at: now,
        ended_at: now,
        class: Some(FailureClass::Transient),
        code: Some("broken".to_owned()),
        detail: None,
        status_code: Some(500),
        usage: Usage::default(),
        cost: None,
    };
    Verdict::Retry { after: Duration::ZERO, attempt: Box::new(attempt) }
}

/// Another worker gets a job whose claim has run out.
async fn taken_over(stage: &Stage, head: &Head) -> LeaseId {
    let taking = async {
        loop {
            match stage.asked(head).await {
                (lease, Claim::Fresh { deaths: 1 }) => return lease,
                (_, claim) => assert!(matches!(claim, Claim::Taken { .. }), "{claim:?}"),
            }
            tokio::time::sleep(LEASE / 10).await;
        }
    };
    timeout(SOON, taking).await.expect("a claim runs out")
}

#[tokio::test]
async fn a_retry_that_is_too_late_sends_no_copy() {
    let mut stage = Stage::new(LEASE).await;
    for (tag, ends) in [(1, false), (2, true)] {
        let job = stage.held().await;
        let lease = taken_over(&stage, &job.head).await;
        if ends {
            stage.ledger.settle(&job.head, lease, &success(&job.head, lease), None).await.unwrap();
        }
        // The server confirms nothing.
        let verdict = retry(&job.head);
        let settled = timeout(SOON, job.hold.settle(&verdict)).await.expect("a copy was published");
        assert_eq!(settled.unwrap(), Settled::Stale);
        assert_eq!(stage.consuming.answered().await, (tag, false));
        assert_eq!(stage.state(&job.head).await, if ends { State::Succeeded } else { State::Running });
    }
    assert_eq!(stage.desk.count(), 0);
}

#[tokio::test]
async fn a_job_that_is_too_large_for_another_attempt_is_dead_with_its_payload() {
    const WHY: &str = "PRECONDITION_FAILED - message size 16777300 is larger than configured max size 16777216";
    let mut stage = Stage::new(LONG).await;
    let job = stage.held().await;
    let verdict = retry(&job.head);
    let serving = async {
        let copy = stage.publishing.published().await;
        stage.publishing.close_channel(copy.channel, 406, WHY).await;
    };
    let settling = async { tokio::join!(job.hold.settle(&verdict), serving).0 };
    assert_eq!(timeout(SOON, settling).await.expect("it ends").unwrap(), Settled::Applied);
    let view = stage.ledger.fetch(&[job.head.id]).await.unwrap().pop().flatten().unwrap();
    let record = view.record.unwrap();
    assert_eq!((view.state, record.attempts, record.history.recent.len()), (State::Dead, 1, 1));
    let cause = record.cause.as_ref().unwrap();
    assert_eq!((cause.class, cause.code.as_str()), (Some(FailureClass::Fatal), "job_too_large"));
    assert!(cause.detail.contains("attempt 1 failed (broken)") && cause.detail.contains("16777300"), "{cause:?}");
    let channel = stage.publishing.confirms().await;
    stage.publishing.published().await;
    stage.publishing.ack(channel, 1, false).await;
    assert_eq!(stage.consuming.answered().await, (1, true));
    // Its head is as small as at first when it is put back in line.
    let raised = stage.ledger.raise(&[job.head.id]).await.unwrap().remove(0);
    let Raised::Publish(again) = raised else { panic!("{raised:?}") };
    assert_eq!((again.payload, again.head.history), (job.payload, History::default()));
}

fn is_marked(message: &Published) -> bool {
    message.properties.headers().as_ref().is_some_and(|headers| headers.contains_key("pq-dup"))
}

#[tokio::test]
async fn a_job_that_came_again_says_so_wherever_it_goes() {
    let mut stage = Stage::new(LONG).await;
    for again in [false, true] {
        let mut jobs = Vec::new();
        for _ in 0..2 {
            let item = stage.item_again(&envelope(), again).await;
            jobs.push(stage.granted(item).await);
        }
        let parked = stage.item_again(&envelope(), again).await;
        let desk = Arc::clone(&stage.desk);
        let verdict = retry(&jobs[1].head);
        let leaving = async {
            for (job, verdict) in jobs.iter().zip([&RELEASE, &verdict]) {
                assert_eq!(job.hold.settle(verdict).await.unwrap(), Settled::Applied);
            }
            parked.put_off(&desk.post, LONG).await;
        };
        let first = if again { 4 } else { 1 };
        let serving = async {
            for tag in first..first + 3 {
                let sent = stage.publishing.published().await;
                assert_eq!(is_marked(&sent), again, "{tag}");
                stage.publishing.ack(sent.channel, tag, false).await;
            }
        };
        tokio::join!(leaving, serving);
    }
    assert_eq!(stage.ledger.redelivered(), [false, false, true, true]);
}

#[tokio::test]
async fn a_message_that_says_so_was_delivered_before() {
    let mut stage = Stage::new(LONG).await;
    for again in [true, false] {
        let (properties, body) =
            Parcel { envelope: envelope(), reply: None, named: false, again }.message(false).unwrap();
        let (delivery, receipt) = stage.delivery((properties, &body)).await;
        let read = wire::read(&delivery, &Queue::standard(), Timestamp::now());
        stage.granted(Item::new(read, receipt, false, false)).await;
    }
    // So does one that another client named and that turns out to be another job's.
    let (properties, body) = (BasicProperties::default().with_content_type("application/json".into()), b"{");
    let (delivery, receipt) = stage.delivery((properties.with_headers(FieldTable::default()), body)).await;
    let mut parcel = wire::read(&delivery, &Queue::standard(), Timestamp::now()).parcel;
    parcel.again = true;
    assert!(wire::Read::conflicting(parcel, Timestamp::now()).parcel.again);
    drop(receipt);
    assert_eq!(stage.ledger.redelivered(), [true, false]);
}

/// Waits until nothing is in hand or under way, and all room is there again.
async fn nothing_is_left(stage: &Stage, room: usize) {
    let left = async {
        while !stage.desk.is_done() || stage.desk.finishing.available_permits() < room {
            tokio::time::sleep(LEASE / 10).await;
        }
    };
    timeout(SOON, left).await.expect("something stays for ever");
}

#[tokio::test]
async fn a_message_whose_opening_breaks_goes_back_and_its_neighbours_run() {
    let mut stage = Stage::new(LONG).await;
    let room = stage.desk.finishing.available_permits();
    let (breaks, other) = (envelope(), envelope());
    stage.ledger.set("open");
    let items = [stage.item(&breaks).await, stage.item(&other).await];
    let opened = join_all(items.map(|item| Arc::clone(&stage.desk).open(item))).await;
    assert!(matches!(opened[..], [None, Some(Opening::Granted(_))]), "{opened:?}");
    assert_eq!(stage.consuming.answered().await, (1, false));
    assert_eq!(stage.desk.count(), 1);
    let again = stage.item(&breaks).await;
    let jobs = [stage.granted(again).await];
    for job in opened.into_iter().flatten().filter_map(granted).chain(jobs) {
        job.hold.settle(&Verdict::Release { after: Duration::ZERO, hold: None }).await.unwrap();
        assert!(!stage.consuming.answered().await.1);
    }
    nothing_is_left(&stage, room).await;
}

#[tokio::test]
async fn opened_together_each_is_asked_about_alone_when_that_breaks() {
    let mut stage = Stage::new(LONG).await;
    let (ran, runs, other) = (envelope(), envelope(), envelope());
    stage.taken(&ran.head).await;
    stage.ledger.set("open");
    let items = vec![stage.item(&ran).await, stage.item(&runs).await, stage.item(&other).await];
    let opening = Arc::clone(&stage.desk).open_all(items, || ());
    let opened = timeout(SOON, opening).await.expect("they wait for each other");
    let jobs: Vec<_> = opened.into_iter().filter_map(granted).collect();
    assert_eq!(jobs.iter().map(|job| job.head.id).collect::<Vec<_>>(), [runs.head.id, other.head.id]);
    // The one that runs elsewhere has to wait, and holds up nobody.
    let copy = stage.publishing.published().await;
    stage.publishing.ack(copy.channel, 1, false).await;
    assert_eq!(stage.consuming.answered().await, (1, true));
    assert_eq!(stage.desk.count(), 2);
}

fn granted(opening: Opening) -> Option<RawDelivery> {
    if let Opening::Granted(job) = opening { Some(*job) } else { None }
}

#[tokio::test]
async fn a_message_whose_settle_breaks_goes_back_when_its_claim_is_over() {
    let mut stage = Stage::new(LEASE).await;
    let room = stage.desk.finishing.available_permits();
    let job = stage.held().await;
    let head = job.head.clone();
    stage.ledger.set("settle");
    let mut running = JoinSet::new();
    running.spawn(async move { job.hold.settle(&success(&job.head, job.lease)).await });
    assert!(running.join_next().await.unwrap().unwrap_err().is_panic());
    let over = async {
        while stage.desk.count() > 0 {
            stage.desk.expire();
            tokio::time::sleep(LEASE / 10).await;
        }
    };
    timeout(SOON, over).await.expect("it stays for ever");
    assert_eq!(stage.consuming.answered().await, (1, false));
    nothing_is_left(&stage, room).await;
    taken_over(&stage, &head).await;
}

#[tokio::test]
async fn a_message_whose_announcement_breaks_goes_back_until_it_is_announced() {
    let mut stage = Stage::new(LONG).await;
    let room = stage.desk.finishing.available_permits();
    let message = envelope();
    // Delivered before: another copy may ask whether its end was announced.
    let item = stage.item_again(&message, true).await;
    let job = stage.granted(item).await;
    // First where the job ended, then where its message is met again.
    for tag in 1..=2 {
        stage.ledger.set("announced");
        if tag == 1 {
            assert_eq!(job.hold.settle(&success(&job.head, job.lease)).await.unwrap(), Settled::Applied);
        } else {
            let item = stage.item(&message).await;
            assert!(Arc::clone(&stage.desk).open(item).await.is_none());
        }
        let result = stage.publishing.published().await;
        stage.publishing.ack(result.channel, tag, false).await;
        assert_eq!(stage.consuming.answered().await, (tag, false));
    }
    let item = stage.item(&message).await;
    assert!(Arc::clone(&stage.desk).open(item).await.is_none());
    let result = stage.publishing.published().await;
    stage.publishing.ack(result.channel, 3, false).await;
    assert_eq!(stage.consuming.answered().await, (3, true));
    nothing_is_left(&stage, room).await;
}

/// Has a job succeed and its announcement, the one of this number, be taken. Whether the ledger is told of that.
async fn is_noted(stage: &mut Stage, job: RawDelivery, number: u64) -> bool {
    assert_eq!(job.hold.settle(&success(&job.head, job.lease)).await.unwrap(), Settled::Applied);
    let result = timeout(SOON, stage.publishing.published()).await.expect("a result is announced");
    stage.publishing.ack(result.channel, number, false).await;
    let told = async {
        while !stage.desk.is_done() {
            tokio::time::sleep(LEASE / 10).await;
        }
    };
    timeout(SOON, told).await.expect("something stays for ever");
    stage.ledger.noted().contains(&job.head.id)
}

#[tokio::test]
async fn a_success_is_noted_as_announced_unless_its_message_is_the_only_one() {
    let mut stage = Stage::new(LONG).await;
    let plain = stage.held().await;
    assert!(!is_noted(&mut stage, plain, 1).await, "nobody will ask");
    let again = stage.item_again(&envelope(), true).await;
    let again = stage.granted(again).await;
    assert!(is_noted(&mut stage, again, 2).await, "delivered before");
    // A copy is met while the ledger is asked.
    let twice = envelope();
    let items = vec![stage.item(&twice).await, stage.item(&twice).await];
    let mut opened = Arc::clone(&stage.desk).open_all(items, || ()).await;
    let place = opened.iter().position(|opening| matches!(opening, Opening::Granted(_))).unwrap();
    let runs = granted(opened.remove(place)).unwrap();
    assert!(matches!(opened[..], [Opening::Second(_)]), "{opened:?}");
    assert!(is_noted(&mut stage, runs, 3).await, "a copy was about");
}

#[tokio::test]
async fn a_success_that_has_lost_its_message_is_noted_as_announced() {
    let mut stage = Stage::new(LONG).await;
    // Lost for good, or while it ran, and come again.
    for (number, comes_again) in [(1, false), (2, true)] {
        let message = envelope();
        let item = stage.item(&message).await;
        let job = stage.granted(item).await;
        std::mem::take(&mut stage.origin.ended).store(true, Ordering::Relaxed);
        if comes_again {
            let item = stage.item_again(&message, true).await;
            assert!(stage.desk.attach(item).is_none());
        }
        assert!(is_noted(&mut stage, job, number).await, "another worker may have met it");
    }
    let job = stage.held().await;
    stage.lose_channel().await;
    let lost = async {
        while !stage.desk.held(|held| !held.is_orphan()).is_empty() {
            tokio::time::sleep(LEASE / 10).await;
        }
    };
    timeout(SOON, lost).await.expect("a closed channel is noticed");
    assert!(is_noted(&mut stage, job, 3).await, "the server has given the message to another worker");
}
