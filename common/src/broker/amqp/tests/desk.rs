//! Messages in hand, against a server that is played and a ledger in memory: who waits for what, what goes back to the
//! server, and what is seen through.

use std::collections::HashSet;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use amq_protocol::protocol::{AMQPClass, basic, queue};
use async_trait::async_trait;
use tokio::time::timeout;

use super::stage::{LONG, SOON, Stage, envelope, success};
use crate::broker::amqp::consumers::Consumers;
use crate::broker::amqp::opening::Opening;
use crate::broker::amqp::{enqueue, leave, swap};
use crate::broker::backend::{Beat, Claim, Envelope, Head, Hold, LeaseId, RawDelivery, Settled, Verdict};
use crate::error::{Error, Kind, Result};
use crate::ledger::{Claims, Registered};
use crate::record::{End, Record, State};
use crate::time::Timestamp;

#[tokio::test]
async fn what_is_being_settled_stays_here_however_long_that_takes() {
    let mut stage = Stage::new(Duration::from_millis(50)).await;
    let job = stage.held().await;
    let room = Arc::clone(&stage.desk.finishing);
    let full = room.acquire_many(u32::try_from(room.available_permits()).unwrap()).await.unwrap();
    let verdict = success(&job.head, job.lease);
    {
        let mut settling = pin!(job.hold.settle(&verdict));
        for _ in 0..4 {
            assert!(timeout(Duration::from_millis(40), &mut settling).await.is_err(), "there is no room");
            stage.desk.expire();
        }
        // Its record is durable, whoever announces it.
        assert_eq!(stage.state(&job.head).await, State::Succeeded);
        assert_eq!(stage.desk.count(), 1, "it was given back");
    }
    // Nobody settles it any more.
    let over = async {
        while stage.desk.count() > 0 {
            tokio::task::yield_now().await;
            stage.desk.expire();
        }
    };
    timeout(SOON, over).await.expect("it stays for ever");
    assert_eq!(stage.consuming.answered().await, (1, false));
    drop(full);
}

#[tokio::test]
async fn nobody_waits_for_a_neighbours_message() {
    let mut stage = Stage::new(LONG).await;
    let (runs, ended) = (envelope(), envelope());
    stage.taken(&runs.head).await;
    let lease = stage.taken(&ended.head).await;
    stage.ledger.settle(&ended.head, lease, &success(&ended.head, lease), None).await.unwrap();
    let mut unread = stage.item(&envelope()).await;
    unread.dead = Some(Box::new(Record::unrun(&unread.parcel.envelope.head, End::Dead, None, Timestamp::now())));
    let dead = unread.parcel.envelope.head.clone();
    let items = [stage.item(&runs).await, stage.item(&ended).await, unread, stage.item(&envelope()).await];
    let opening = items.map(|item| Arc::clone(&stage.desk).open(item));
    // The server confirms nothing yet: no copy that has to wait, no announcement.
    let opened = timeout(SOON, futures_util::future::join_all(opening)).await.expect("they wait for each other");
    assert!(matches!(opened[..], [None, None, None, Some(Opening::Granted(_))]), "{opened:?}");
    for tag in 1..=3 {
        let sent = stage.publishing.published().await;
        stage.publishing.ack(sent.channel, tag, false).await;
    }
    let mut answered = Vec::new();
    for _ in 0..3 {
        answered.push(stage.consuming.answered().await);
    }
    answered.sort_unstable();
    assert_eq!(answered, [(1, true), (2, true), (3, true)]);
    assert_eq!(stage.state(&dead).await, State::Dead);
}

#[tokio::test]
async fn what_goes_on_beside_is_bounded() {
    let mut stage = Stage::new(LONG).await;
    let runs = envelope();
    stage.taken(&runs.head).await;
    let room = Arc::clone(&stage.desk.finishing);
    let full = room.acquire_many(u32::try_from(room.available_permits()).unwrap()).await.unwrap();
    let item = stage.item(&runs).await;
    let mut opening = pin!(Arc::clone(&stage.desk).open(item));
    assert!(timeout(Duration::from_millis(100), &mut opening).await.is_err(), "there is no room");
    drop(full);
    assert!(opening.await.is_none());
    let copy = stage.publishing.published().await;
    stage.publishing.ack(copy.channel, 1, false).await;
    assert_eq!(stage.consuming.answered().await, (1, true));
}

#[tokio::test]
async fn who_may_run_does_not_wait_until_there_is_room_for_a_neighbour() {
    let mut stage = Stage::new(LONG).await;
    let runs = envelope();
    stage.taken(&runs.head).await;
    let room = Arc::clone(&stage.desk.finishing);
    let full = room.acquire_many(u32::try_from(room.available_permits()).unwrap()).await.unwrap();
    let (items, slot) = (vec![stage.item(&runs).await, stage.item(&envelope()).await], Arc::new(()));
    let opening = Arc::clone(&stage.desk).open_all(items, || Arc::clone(&slot));
    let opened = timeout(SOON, opening).await.expect("one waits for the other");
    assert!(matches!(opened[..], [Opening::Granted(_)]), "{opened:?}");
    assert_eq!(Arc::strong_count(&slot), 2, "while it waits for room it counts");
    drop(full);
    let copy = stage.publishing.published().await;
    stage.publishing.ack(copy.channel, 1, false).await;
    assert_eq!(stage.consuming.answered().await, (1, true));
    assert_eq!(Arc::strong_count(&slot), 1);
}

#[tokio::test]
async fn a_result_that_nobody_takes_is_announced_once() {
    let mut stage = Stage::new(LONG).await;
    let job = stage.held().await;
    assert_eq!(job.hold.settle(&success(&job.head, job.lease)).await.unwrap(), Settled::Applied);
    let result = stage.publishing.published().await;
    let why = "ACCESS_REFUSED - access to exchange 'amq.default' in vhost 'team' refused for user 'me'";
    stage.publishing.close_channel(result.channel, 403, why).await;
    assert_eq!(stage.consuming.answered().await, (1, true));
}

#[tokio::test]
async fn an_end_is_announced_before_its_message_goes() {
    let mut stage = Stage::new(LONG).await;
    let job = stage.held().await;
    job.hold.settle(&success(&job.head, job.lease)).await.unwrap();
    let result = stage.publishing.published().await;
    stage.publishing.nack(result.channel, 1).await;
    let again = stage.publishing.published().await;
    assert_eq!(again.body, result.body);
    stage.publishing.ack(result.channel, 2, false).await;
    assert_eq!(stage.consuming.answered().await, (1, true));
}

#[tokio::test]
async fn a_message_that_could_not_change_tries_again_soon() {
    let mut stage = Stage::new(LONG).await;
    let _job = stage.held().await;
    stage.desk.holding.store(true, Ordering::Relaxed);
    stage.origin.ended.store(true, Ordering::Relaxed);
    // A copy that is on its way is waited for for a quarter of that.
    let keeping = swap::keep(Arc::downgrade(&stage.desk), LONG, Duration::ZERO);
    let refusing = async {
        for tag in 1..=3 {
            let copy = stage.publishing.published().await;
            stage.publishing.nack(copy.channel, tag).await;
        }
    };
    tokio::select! {
        () = refusing => {}
        () = keeping => unreachable!("it keeps for as long as there is something"),
    }
}

#[tokio::test]
async fn what_was_taken_is_known_though_another_was_refused() {
    let mut stage = Stage::new(LONG).await;
    let both = [envelope(), envelope()].map(|one| Envelope { head: Head { keyed: true, ..one.head }, ..one });
    let refusing = async {
        let taken = stage.publishing.published().await;
        stage.publishing.ack(taken.channel, 1, false).await;
        stage.publishing.published().await;
        stage.publishing.nack(taken.channel, 2).await;
    };
    let nowhere = HashSet::new();
    let putting = enqueue::enqueue(&stage.desk.post, both.to_vec(), (false, &nowhere));
    let (put, ()) = tokio::join!(putting, refusing);
    assert_eq!(put.unwrap_err().kind(), Kind::Unavailable);
    let known = stage.ledger.register(&[&both[0].head, &both[1].head]).await.unwrap();
    assert_eq!(known, [Registered::Known(State::Queued), Registered::Again]);
}

#[tokio::test]
async fn what_is_under_way_is_seen_through_while_jobs_run() {
    let mut stage = Stage::new(LONG).await;
    let waits = stage.item(&envelope()).await;
    let job = stage.held().await;
    let desk = Arc::clone(&stage.desk);
    stage.desk.spawn(async move { desk.post.park(waits.parcel, waits.receipt, Duration::ZERO).await });
    let copy = stage.publishing.published().await;
    stage.desk.finish(Duration::from_millis(20)).await;
    stage.publishing.ack(copy.channel, 1, false).await;
    assert_eq!(stage.consuming.answered().await, (1, true));
    // With the last job goes the channel, and the server has back what is left.
    let left = stage.item(&envelope()).await;
    let desk = Arc::clone(&stage.desk);
    stage.desk.spawn(async move { desk.post.park(left.parcel, left.receipt, Duration::ZERO).await });
    stage.publishing.published().await;
    let verdict = Verdict::Release { after: Duration::ZERO, hold: None };
    job.hold.settle(&verdict).await.unwrap();
    stage.desk.finish(Duration::from_millis(20)).await;
    assert!(stage.desk.is_done());
}

/// The ledger is away for the first few times.
#[derive(Debug)]
struct Flaky(AtomicU32, Arc<AtomicU32>);

#[async_trait]
impl Hold for Flaky {
    async fn claim(&self) -> Result<Claim> {
        Ok(Claim::Stale)
    }

    async fn beat(&self) -> Result<Beat> {
        Ok(Beat::Lost)
    }

    async fn settle(&self, _verdict: &Verdict) -> Result<Settled> {
        if self.0.fetch_sub(1, Ordering::Relaxed) > 0 {
            return Err(Error::new(Kind::Unavailable, "settle", "not now"));
        }
        self.0.store(0, Ordering::Relaxed);
        self.1.fetch_add(1, Ordering::Relaxed);
        Ok(Settled::Applied)
    }
}

#[tokio::test(start_paused = true)]
async fn claims_are_given_back_as_soon_as_the_ledger_hears_of_it() {
    let released = Arc::new(AtomicU32::new(0));
    let job = |failures| {
        let Envelope { head, payload } = envelope();
        let hold = Box::new(Flaky(AtomicU32::new(failures), Arc::clone(&released)));
        RawDelivery { head, payload, lease: LeaseId::random(), hold }
    };
    let began = tokio::time::Instant::now();
    leave::release(vec![job(u32::MAX), job(3), job(0)], Duration::from_secs(45)).await;
    assert_eq!((released.load(Ordering::Relaxed), began.elapsed()), (2, Duration::from_secs(45)));
}

/// The driver keeps a consumer that nobody waits for any more, and its channel with it.
#[tokio::test]
async fn a_subscription_that_goes_while_it_asks_for_a_consumer_leaves_none_behind() {
    let mut stage = Stage::new(LONG).await;
    let consuming = &mut stage.consuming;
    let consumers = Consumers::open(&stage.desk.post);
    consumers.set([(Arc::from("pq1.q.b"), 1)].into_iter().collect());
    let (channel, _looks) = (consuming.channel().await, consuming.channel().await);
    let (id, _) = consuming.method().await;
    let there = queue::DeclareOk { queue: "pq1.q.b".into(), message_count: 0, consumer_count: 0 };
    consuming.say(id, AMQPClass::Queue(queue::AMQPMethod::DeclareOk(there))).await;
    let (id, qos) = consuming.method().await;
    assert_eq!((id, matches!(qos, AMQPClass::Basic(basic::AMQPMethod::Qos(_)))), (channel, true));
    consuming.say(id, AMQPClass::Basic(basic::AMQPMethod::QosOk(basic::QosOk {}))).await;
    let (_, asked) = consuming.method().await;
    let AMQPClass::Basic(basic::AMQPMethod::Consume(asked)) = asked else { panic!("{asked:?}") };
    drop(consumers);
    let ok = basic::ConsumeOk { consumer_tag: asked.consumer_tag };
    consuming.say(channel, AMQPClass::Basic(basic::AMQPMethod::ConsumeOk(ok))).await;
    consuming.closed(channel).await;
}
