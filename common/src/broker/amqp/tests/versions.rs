//! What servers of different versions do differently, each played: 3.12, 4.0 and 4.3 cannot be run here.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, DeliveryTag, FieldTable};

use super::peer::Peer;
use super::played::{Did, Kind, Order, Played};
use crate::broker::amqp::Amqp;
use crate::broker::amqp::wire::{LARGEST, Parcel};
use crate::broker::memory::Memory;
use crate::broker::{
    Backend, Claim, Enqueued, Leased, RawDelivery, Refusal, Source, Terms, Verdict, Want, WorkerId, envelope,
};
use crate::error::Error;
use crate::job::{Job, Queue};
use crate::record::{End, Record};
use crate::time::Timestamp;
use crate::work::Work;

pub(super) const LANE: &str = "pq1.q.default._.normal";
const LEASE: Duration = Duration::from_secs(45);
/// Everything is there, and messages may be as large as a server takes since 4.0.
pub(super) const NEW: Kind = Kind { hides: None, max_message_size: 16 << 20 };

pub(super) async fn played(kind: Kind) -> (Played, Amqp) {
    let peer = Peer::listen().await;
    let access = peer.access();
    let server = Played::start(peer, kind);
    (server, Amqp::connect(&access, Arc::new(Memory::new())).await.unwrap())
}

/// A worker of the standard queue, which consumes its lanes.
pub(super) async fn worker(server: &mut Played, amqp: &Amqp) -> Box<dyn Source> {
    worker_for(server, amqp, LEASE).await
}

/// One with leases of this length.
pub(super) async fn worker_for(server: &mut Played, amqp: &Amqp, lease: Duration) -> Box<dyn Source> {
    let terms = Terms { queues: vec![(Queue::standard(), 1)], worker: WorkerId::known("w"), lease };
    let mut source = amqp.subscribe(terms).await.unwrap();
    let want = want();
    tokio::join!(server.until_consumed(LANE), source.next(&want)).1.unwrap();
    source
}

fn want() -> Want {
    Want { total: 1, caps: Vec::new(), rest: 1 }
}

pub(super) fn job(text: &str) -> Job {
    Job::new(Queue::standard(), Work::prompt(None, text))
}

pub(super) fn message(job: &Job) -> (BasicProperties, Vec<u8>) {
    Parcel { envelope: envelope(job).unwrap(), reply: None, named: false, again: false }.message(false).unwrap()
}

pub(super) async fn one(source: &mut Box<dyn Source>) -> RawDelivery {
    loop {
        let Leased { mut deliveries, .. } = source.next(&want()).await.unwrap();
        if let Some(delivery) = deliveries.pop() {
            return delivery;
        }
    }
}

/// Waits for something the server is told, while the worker asks on and is given nothing.
pub(super) async fn meanwhile<T>(source: &mut Box<dyn Source>, told: impl Future<Output = T>) -> T {
    tokio::pin!(told);
    let want = want();
    loop {
        tokio::select! {
            found = &mut told => return found,
            leased = source.next(&want) => match leased {
                Ok(leased) => assert!(leased.deliveries.is_empty(), "leased twice"),
                // Told to the worker, which goes on.
                Err(error) => {
                    assert!(error.is_transient(), "{error}");
                    tracing::warn!("{error}");
                }
            },
        }
    }
}

/// Ends it, and waits until the result is announced and a delivery acknowledged: which.
pub(super) async fn ends(server: &mut Played, delivery: RawDelivery) -> DeliveryTag {
    let unrun = Record::unrun(&delivery.head, End::Cancelled, None, Timestamp::now());
    let record = Record { lease: delivery.lease, ..unrun };
    delivery.hold.settle(&Verdict::End(Box::new(record))).await.unwrap();
    let announced = |did| match did {
        Did::Published(message) => (message.key == "pq1.results.default").then_some(()),
        Did::Answered { .. } => panic!("{did:?}"),
        Did::Declared { .. } | Did::Consumed { .. } => None,
    };
    server.until(announced).await;
    server.until(|did| if let Did::Answered { tag, ack: true } = did { Some(tag) } else { None }).await
}

/// 4.3: `basic.cancel`, and the channel stays with everything else on it.
#[tokio::test]
async fn a_consumer_that_is_taken_away_takes_no_other_along() {
    let (mut server, amqp) = played(NEW).await;
    let mut source = worker(&mut server, &amqp).await;
    let mut others = Vec::new();
    for _ in 0..3 {
        server.deliver(LANE, message(&job("another"))).await;
        others.push(one(&mut source).await);
    }
    // With three in hand there is room for one, and as much with four: it does not change its consumer for that.
    let settled = |did| matches!(did, Did::Consumed { prefetch: 4, .. }).then_some(());
    meanwhile(&mut source, server.until(settled)).await;
    server.deliver(LANE, message(&job("long"))).await;
    let long = one(&mut source).await;
    server.order(Order::Cancel { queue: LANE.to_owned() }).await;
    // It runs on: a message of its own is made, and kept in hand instead of the one that is gone.
    let copied = |did| match did {
        Did::Published(copy) if copy.exchange == "pq1.hold.w" => Some(copy),
        Did::Answered { .. } => panic!("{did:?}"),
        Did::Declared { .. } | Did::Consumed { .. } | Did::Published(_) => None,
    };
    let copy = meanwhile(&mut source, server.until(copied)).await;
    assert_eq!(copy.properties.message_id().as_ref().unwrap().as_str(), long.head.id.to_string());
    meanwhile(&mut source, server.until_consumed("pq1.hold.w")).await;
    server.deliver("pq1.hold.w", (copy.properties, copy.body)).await;
    server.deliver(LANE, message(&job("next"))).await;
    let next = one(&mut source).await;
    assert_ne!(next.head.id, long.head.id);
    // The first three are answered for; to the server the fourth is not in our hands any more, but its copy is.
    for (delivery, of) in others.into_iter().zip(1..).chain([(long, 5), (next, 6)]) {
        assert_eq!(ends(&mut server, delivery).await, of);
    }
}

/// 3.x to 4.2: the channel goes, and all that was delivered on it comes again.
#[tokio::test]
async fn a_channel_that_is_closed_over_a_long_job_costs_no_second_run() {
    let (mut server, amqp) = played(NEW).await;
    let mut source = worker(&mut server, &amqp).await;
    let sent = message(&job("long"));
    server.deliver(LANE, sent.clone()).await;
    let delivery = one(&mut source).await;
    let settled = |did| matches!(did, Did::Consumed { prefetch: 2, .. }).then_some(());
    meanwhile(&mut source, server.until(settled)).await;
    let why = "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. Timeout value used: 1800000 ms.";
    server.order(Order::Close { queue: LANE.to_owned(), code: 406, why }).await;
    meanwhile(&mut source, server.until_consumed(LANE)).await;
    server.deliver(LANE, sent).await;
    // Taken for the message that is in hand, not for another job.
    for _ in 0..2 {
        assert!(source.next(&want()).await.unwrap().deliveries.is_empty());
    }
    assert_eq!(ends(&mut server, delivery).await, 1);
}

/// 4.x counts deliveries in `x-delivery-count`, 4.3 the failures there and all of them in `x-acquired-count`.
#[tokio::test]
async fn a_worker_that_may_not_look_consumes_what_it_may() {
    // 4.2.6 and 4.3.0 ask for the right to declare of those who only look; later ones for any right.
    let why = "ACCESS_REFUSED - configure access to queue refused";
    let (mut server, amqp) = played(Kind { hides: Some((403, why)), ..NEW }).await;
    let mut source = worker(&mut server, &amqp).await;
    let job = job("seen all the same");
    server.deliver(LANE, message(&job)).await;
    assert_eq!(one(&mut source).await.head.id, job.id);
}

#[tokio::test]
async fn a_servers_counts_are_no_deaths() {
    let (mut server, amqp) = played(NEW).await;
    let mut source = worker(&mut server, &amqp).await;
    let (properties, body) = message(&job("often given back"));
    let mut headers = properties.headers().clone().unwrap_or_default();
    for (name, count) in [("x-delivery-count", 25), ("x-acquired-count", 40)] {
        headers.insert(name.into(), AMQPValue::LongLongInt(count));
    }
    server.deliver(LANE, (properties.with_headers(headers), body)).await;
    let delivery = one(&mut source).await;
    assert_eq!(delivery.hold.claim().await.unwrap(), Claim::Fresh { deaths: 0 });
}

/// From 4.0 on a quorum queue that says nothing gives a message up after 20 deliveries; from 4.3 on queues that do not
/// outlive the server and a prefetch for a whole channel are refused, as `played` does.
#[tokio::test]
async fn every_queue_outlives_its_server_and_gives_no_job_up() {
    let (mut server, amqp) = played(Kind { hides: Some((404, "NOT_FOUND - no such thing")), ..NEW }).await;
    amqp.declare(&Queue::standard(), &[], false).await.unwrap();
    let mut made = BTreeSet::new();
    for did in server.so_far() {
        let Did::Declared { queue, arguments } = did else { continue };
        let argument = |name: &str| arguments.inner().get(name).cloned();
        assert_eq!(argument("x-queue-type"), Some(AMQPValue::LongString("quorum".into())), "{queue}");
        let is_consumed = !queue.starts_with("pq1.delay.") && !queue.starts_with("pq1.after");
        assert_eq!(argument("x-delivery-limit"), is_consumed.then_some(AMQPValue::LongLongInt(1 << 31)), "{queue}");
        // From 3.12 on a queue may say how long a delivery may take: a day and an hour.
        let patience = queue.starts_with("pq1.q.").then_some(AMQPValue::LongLongInt(90_000_000));
        assert_eq!(argument("x-consumer-timeout"), patience, "{queue}");
        made.insert(queue);
    }
    assert_eq!(made.len(), 1 + 7 + 3 + 1 + 1, "rejected, delayed, lanes, results, and one in passing");
}

/// From 4.0 on `max_message_size` is 16 MiB; where it is less, the server says so by closing the channel.
#[tokio::test]
async fn a_job_that_is_too_large_is_refused_and_no_other() {
    let (mut server, amqp) = played(NEW).await;
    let beyond = job(&"x".repeat(LARGEST + 1));
    let size = envelope(&beyond).unwrap().payload.len();
    let fits = job(&"x".repeat(LARGEST - 1_000));
    let answers = amqp.enqueue(vec![envelope(&beyond).unwrap(), envelope(&fits).unwrap()]).await.unwrap();
    assert_eq!(answers, [Enqueued::Refused(Refusal::TooLarge(size)), Enqueued::New]);
    let published = server.until(|did| if let Did::Published(one) = did { Some(one) } else { None }).await;
    assert_eq!(published.properties.message_id().as_ref().unwrap().as_str(), fits.id.to_string());

    let (_server, amqp) = played(Kind { max_message_size: 5_000, ..NEW }).await;
    let jobs = [job("a"), job(&"x".repeat(6_000)).with_key("large"), job("b")];
    let envelopes = || jobs.iter().map(|job| envelope(job).unwrap()).collect::<Vec<_>>();
    let mut answers = amqp.enqueue(envelopes()).await;
    // Which of them it was is not known at once.
    while answers.as_ref().is_err_and(Error::is_transient) {
        answers = amqp.enqueue(envelopes()).await;
    }
    let size = envelopes()[1].payload.len();
    assert_eq!(answers.unwrap(), [Enqueued::New, Enqueued::Refused(Refusal::TooLarge(size)), Enqueued::New]);
}

/// From 4.0 on a quorum queue serves what is more urgent first, and a delay queue looks at its head alone.
#[test]
fn messages_of_one_queue_stand_in_one_line() {
    let urgent = Job { priority: crate::job::Priority::new(9).unwrap(), ..job("urgent") };
    let (properties, _) = message(&urgent);
    assert_eq!(*properties.priority(), None);
    let headers: Option<&FieldTable> = properties.headers().as_ref();
    assert!(headers.is_some_and(|headers| !headers.contains_key("priority")));
}
