//! A subscription against a server that is played: answers that do not come, jobs whose opening panics, second copies of
//! a job that runs, and messages that went back while their worker is full.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use amq_protocol::protocol::{AMQPClass, basic, queue};
use tokio::time::timeout;

use super::peer::{Peer, Session};
use super::played::{Did, Order};
use super::stage::{Stage, envelope};
use super::versions::{LANE, NEW, ends, job, meanwhile, message, one, played, worker, worker_for};
use crate::broker::amqp::desk::Opening;
use crate::broker::amqp::link::Link;
use crate::broker::amqp::post::{Clock, Post};
use crate::broker::amqp::tap::Tap;
use crate::broker::amqp::twins::Twins;
use crate::broker::amqp::{Settings, topology};
use crate::broker::memory::Memory;
use crate::error::Kind;

/// How long an answer may take here.
const SHORT: Duration = Duration::from_millis(200);
/// Longer than any test.
const LONG: Duration = Duration::from_secs(600);
/// Far longer than what is waited for takes.
const SOON: Duration = Duration::from_secs(20);

async fn linked(peer: &Peer) -> (Link, Session, Session) {
    let access = peer.access();
    let (link, (consuming, publishing)) = tokio::join!(Link::patient(&access, LONG, SHORT), peer.both());
    (link.unwrap(), consuming, publishing)
}

#[tokio::test]
async fn a_connection_that_owes_an_answer_is_given_up_for_another() {
    let peer = Peer::listen().await;
    let (link, mut consuming, _publishing) = linked(&peer).await;
    let opening = timeout(SOON, link.channel()).await.expect("it waits for ever");
    assert_eq!(opening.unwrap_err().kind(), Kind::TimedOut);
    let gone = async { while consuming.read().await.is_some() {} };
    let (_, mut again) = tokio::join!(gone, peer.session());
    // The same where a channel hangs and the others do not.
    let looking = async {
        let looked = timeout(SOON, topology::ready(&link, "pq1.q.a")).await.expect("it waits for ever");
        assert_eq!(looked.unwrap_err().kind(), Kind::TimedOut);
    };
    tokio::join!(looking, again.channel());
    let gone = async { while again.read().await.is_some() {} };
    let (_, mut last) = tokio::join!(gone, peer.session());
    let (channel, _) = tokio::join!(link.channel(), last.channel());
    assert!(channel.unwrap().status().connected());
}

#[tokio::test]
async fn a_consumer_that_is_not_answered_for_is_asked_for_anew() {
    let peer = Peer::listen().await;
    let (link, mut consuming, _publishing) = linked(&peer).await;
    let claims = Arc::new(Memory::new());
    let (settings, clock) = (Settings::default(), Clock::default());
    let post = Arc::new(Post { link, claims, settings, clock, leaving: Mutex::default() });
    let tap = Tap::open(&post);
    tap.set([(Arc::from("pq1.q.a"), 3)].into_iter().collect());
    until_wanted(&mut consuming).await;
    let gone = async { while consuming.read().await.is_some() {} };
    let (_, mut again) = timeout(SOON, async { tokio::join!(gone, peer.session()) }).await.expect("it waits for ever");
    assert_eq!(tap.check().unwrap_err().kind(), Kind::TimedOut);
    let channel = until_wanted(&mut again).await;
    again.say(channel, AMQPClass::Basic(basic::AMQPMethod::QosOk(basic::QosOk {}))).await;
    again.consumer().await;
}

/// Opens the two channels that consuming takes, and finds the queue. Where the consumer's prefetch is asked for.
async fn until_wanted(session: &mut Session) -> u16 {
    let (channel, _looks) = (session.channel().await, session.channel().await);
    let (id, _) = session.method().await;
    let there = queue::DeclareOk { queue: "pq1.q.a".into(), message_count: 0, consumer_count: 0 };
    session.say(id, AMQPClass::Queue(queue::AMQPMethod::DeclareOk(there))).await;
    let (id, asked) = session.method().await;
    assert!(matches!(asked, AMQPClass::Basic(basic::AMQPMethod::Qos(_))), "{asked:?}");
    assert_eq!(id, channel);
    id
}

/// A lease that no clock can add up is a fault that only a test can bring about.
#[tokio::test]
async fn a_job_whose_opening_panics_costs_no_slot_and_goes_back() {
    let (mut server, amqp) = played(NEW).await;
    let mut source = worker_for(&mut server, &amqp, Duration::MAX).await;
    for tag in 1..=2 {
        server.deliver(LANE, message(&job("never opened"))).await;
        let back = server.until(|did| if let Did::Answered { tag, ack: false } = did { Some(tag) } else { None });
        let back = timeout(SOON, meanwhile(&mut source, back)).await;
        assert_eq!(back.expect("its message stays, or its slot"), tag);
    }
}

#[tokio::test]
async fn a_job_whose_opening_panics_is_out_of_hand() {
    let mut stage = Stage::new(Duration::MAX).await;
    let item = stage.item(&envelope()).await;
    assert!(matches!(Arc::clone(&stage.desk).open(item).await, Opening::Gone));
    assert_eq!(stage.desk.count(), 0);
}

#[tokio::test]
async fn a_second_copy_is_looked_at_when_the_first_has_ended() {
    let (mut server, amqp) = played(NEW).await;
    let mut source = worker(&mut server, &amqp).await;
    let sent = message(&job("twice"));
    server.deliver(LANE, sent.clone()).await;
    let first = one(&mut source).await;
    server.deliver(LANE, sent).await;
    server.deliver(LANE, message(&job("behind it"))).await;
    let behind = one(&mut source).await;
    // Neither acknowledged nor sent elsewhere while the first one runs.
    let so_far = server.so_far();
    assert!(!so_far.iter().any(|did| matches!(did, Did::Answered { .. } | Did::Published(_))), "{so_far:?}");
    assert_eq!(ends(&mut server, first).await, 1);
    let answered = server.until(|did| if let Did::Answered { tag, ack } = did { Some((tag, ack)) } else { None });
    let answered = timeout(SOON, meanwhile(&mut source, answered)).await;
    assert_eq!(answered.expect("it waits for a lease"), (2, true));
    assert_eq!(ends(&mut server, behind).await, 3);
}

#[tokio::test]
async fn a_second_copy_becomes_the_message_of_a_job_that_has_lost_its_own() {
    let mut stage = Stage::new(LONG).await;
    let twice = envelope();
    let first = stage.item(&twice).await;
    let opened = Arc::clone(&stage.desk).open(first).await;
    let first_taken_back = std::mem::take(&mut stage.taken_back);
    let mut twins = Twins::default();
    for (tag, kept) in [(2, true), (3, false)] {
        let copy = stage.item(&twice).await;
        assert_eq!(twins.keep(copy).is_none(), kept, "{tag}");
    }
    let ripe = twins.ripe(&stage.desk, LONG);
    assert!(ripe.alone.is_empty() && ripe.old.is_empty());
    let ripe = twins.ripe(&stage.desk, Duration::ZERO);
    assert_eq!(ripe.old.len(), 1, "a server is not kept waiting for ever");
    for old in ripe.old {
        assert!(twins.keep(old).is_none());
    }
    first_taken_back.store(true, std::sync::atomic::Ordering::Relaxed);
    twins.ripe(&stage.desk, LONG);
    assert!(stage.desk.held(|held| !held.is_orphan()).len() == 1, "{opened:?}");
    assert!(twins.into_items().is_empty());
}

#[tokio::test]
async fn a_full_worker_has_messages_back_that_it_lost() {
    let (mut server, amqp) = played(NEW).await;
    let mut source = worker(&mut server, &amqp).await;
    let (sent, other) = (message(&job("runs")), message(&job("another's")));
    server.deliver(LANE, sent.clone()).await;
    let runs = one(&mut source).await;
    // It asks for nothing, and after 5 s gives back what it has not started: it is full.
    let is_back = |did| matches!(did, Did::Answered { tag: 2, ack: false }).then_some(());
    server.deliver(LANE, other.clone()).await;
    timeout(SOON, server.until(is_back)).await.expect("it keeps what it does not run");
    let why = "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. Timeout value used: 1800000 ms.";
    server.order(Order::Close { queue: LANE.to_owned(), code: 406, why }).await;
    let prefetch = |did| match did {
        Did::Consumed { queue, prefetch } => (queue == LANE).then_some(prefetch),
        Did::Answered { .. } | Did::Declared { .. } | Did::Published(_) => None,
    };
    let prefetch = timeout(SOON, server.until(prefetch)).await.expect("it looks for nothing");
    assert_eq!(prefetch, 2, "room for its own, and for one that stands before it");
    server.deliver(LANE, sent).await;
    server.deliver(LANE, other).await;
    timeout(SOON, server.until(is_back)).await.expect("it keeps what is another's");
    assert_eq!(ends(&mut server, runs).await, 1);
}
