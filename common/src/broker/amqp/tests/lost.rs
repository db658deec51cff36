//! A subscription against a server that is played: answers that do not come, jobs whose opening panics, second copies of
//! a job that runs, and messages that went back while their worker is full.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use amq_protocol::protocol::{AMQPClass, basic, queue};
use lapin::BasicProperties;
use tokio::time::{Instant, timeout};

use super::peer::{Peer, Session};
use super::played::{Did, Order};
use super::stage::{Stage, envelope, item};
use super::versions::{LANE, NEW, ends, job, meanwhile, message, one, played, worker, worker_for};
use crate::broker::amqp::consumers::Consumers;
use crate::broker::amqp::desk::REST;
use crate::broker::amqp::duplicates::Duplicates;
use crate::broker::amqp::link::Link;
use crate::broker::amqp::post::{Clock, Post};
use crate::broker::amqp::receipt::{Origin, Receipt};
use crate::broker::amqp::waiting::LaneQueues;
use crate::broker::amqp::{Settings, topology};
use crate::broker::memory::Memory;
use crate::error::Kind;
use crate::job::{Lane, ModelName};
use crate::record::{End, Record};
use crate::time::Timestamp;

/// How long an answer may take here.
const SHORT: Duration = Duration::from_millis(500);
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
    let ((), mut again) = tokio::join!(gone, peer.session());
    // The same where a channel hangs and the others do not.
    let looking = async {
        let looked = timeout(SOON, topology::ready(&link, "pq1.q.a")).await.expect("it waits for ever");
        assert_eq!(looked.unwrap_err().kind(), Kind::TimedOut);
    };
    tokio::join!(looking, again.channel());
    let gone = async { while again.read().await.is_some() {} };
    let ((), mut last) = tokio::join!(gone, peer.session());
    let (channel, _) = tokio::join!(link.channel(), last.channel());
    assert!(channel.unwrap().status().connected());
}

#[tokio::test]
async fn a_consumer_that_is_not_answered_for_is_asked_for_anew() {
    let peer = Peer::listen().await;
    let (link, mut consuming, _publishing) = linked(&peer).await;
    let claims = Arc::new(Memory::new());
    let (settings, clock) = (Settings::default(), Clock::default());
    let post = Arc::new(Post { link, claims, settings, clock, lanes: Arc::default(), leaving: Mutex::default() });
    let consumers = Consumers::open(&post);
    consumers.set([(Arc::from("pq1.q.a"), 3)].into_iter().collect());
    until_wanted(&mut consuming).await;
    let gone = async { while consuming.read().await.is_some() {} };
    let ((), mut again) = timeout(SOON, async { tokio::join!(gone, peer.session()) }).await.expect("it waits for ever");
    assert_eq!(consumers.check().unwrap_err().kind(), Kind::TimedOut);
    let channel = until_wanted(&mut again).await;
    again.say(channel, AMQPClass::Basic(basic::AMQPMethod::QosOk(basic::QosOk {}))).await;
    again.consumer().await;
}

#[tokio::test]
async fn a_channel_whose_answers_nobody_sends_is_left_for_another() {
    let mut stage = Stage::new(LONG).await;
    let consuming = &mut stage.consuming;
    let mut consumers = Consumers::open(&stage.desk.post);
    consumers.set([(Arc::from("pq1.q.a"), 1)].into_iter().collect());
    let channel = until_wanted(consuming).await;
    consuming.say(channel, AMQPClass::Basic(basic::AMQPMethod::QosOk(basic::QosOk {}))).await;
    let (_, tag) = consuming.consumer().await;
    consuming.deliver(channel, &tag, 1, (BasicProperties::default(), b"x")).await;
    let arrival = timeout(SOON, consumers.next()).await.unwrap().unwrap();
    // Whoever sends them ends, as one that breaks would.
    arrival.origin.answers.end();
    timeout(SOON, consuming.closed(channel)).await.expect("its messages stay with nobody");
    timeout(SOON, consuming.channel()).await.expect("nothing is consumed any more");
    assert!(!arrival.delivery.acker.usable(), "what came by it counts as lost");
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
    assert!(Arc::clone(&stage.desk).open(item).await.is_none());
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
    let first_taken_back = std::mem::take(&mut stage.origin.ended);
    let mut duplicates = Duplicates::default();
    for (tag, kept) in [(2, true), (3, false)] {
        let copy = stage.item(&twice).await;
        assert_eq!(duplicates.keep(copy).is_none(), kept, "{tag}");
    }
    let due = duplicates.due(&stage.desk, LONG);
    assert!(due.alone.is_empty() && due.old.is_empty());
    let due = duplicates.due(&stage.desk, Duration::ZERO);
    assert_eq!(due.old.len(), 1, "a server is not kept waiting for ever");
    for old in due.old {
        assert!(duplicates.keep(old).is_none());
    }
    first_taken_back.store(true, Ordering::Relaxed);
    duplicates.due(&stage.desk, LONG);
    assert!(stage.desk.held(|held| !held.is_orphan()).len() == 1, "{opened:?}");
    assert!(duplicates.into_items().is_empty());
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
    // Long before the search is over, or nobody would meet what stands behind it.
    server.deliver(LANE, other.clone()).await;
    let is_back = |did| matches!(did, Did::Answered { tag: 1, ack: false }).then_some(());
    timeout(SOON / 4, server.until(is_back)).await.expect("it keeps what is another's");
    server.deliver(LANE, sent).await;
    server.deliver(LANE, other).await;
    let is_back = |did| matches!(did, Did::Answered { tag: 3, ack: false }).then_some(());
    timeout(SOON, server.until(is_back)).await.expect("it searches for what it has");
    assert_eq!(ends(&mut server, runs).await, 2);
}

/// Whoever attaches a copy and whoever lets go of its job meet where they both look at the message: one sees the other.
#[tokio::test]
async fn a_copy_that_comes_as_its_job_is_let_go_is_with_somebody() {
    let mut stage = Stage::new(LONG).await;
    let (delivery, _) = stage.delivery((BasicProperties::default(), b"x")).await;
    let runtime = tokio::runtime::Handle::current();
    for _ in 0..50 {
        let receipt =
            |old| Receipt::new(&delivery, &Origin { ended: Arc::new(AtomicBool::new(old)), ..stage.origin.clone() });
        let job = envelope();
        let _job = Arc::clone(&stage.desk).open(item(&job, receipt(true), false)).await;
        let held = stage.desk.held(|_| true).pop().unwrap();
        let (attached, went) = std::thread::scope(|scope| {
            let stopped = held.stopped();
            let copy = item(&job, receipt(false), false);
            let attaching = scope.spawn(|| {
                let _entered = runtime.enter();
                stage.desk.attach(copy).is_none()
            });
            pass(Duration::from_millis(5));
            let going = scope.spawn(|| stage.desk.let_go(&held).unwrap());
            pass(Duration::from_millis(5));
            drop(stopped);
            (attaching.join().unwrap(), going.join().unwrap())
        });
        assert_eq!(attached, !went.is_taken_back(), "the copy was taken, and is with nobody");
    }
}

/// Gives other threads the time to come to where they wait.
fn pass(time: Duration) {
    let began = std::time::Instant::now();
    while began.elapsed() < time {
        std::thread::yield_now();
    }
}

#[tokio::test]
async fn what_is_put_back_is_the_next_of_its_lane() {
    let mut stage = Stage::new(LONG).await;
    let mut lanes = LaneQueues::default();
    let lane = envelope().head.lane;
    let of = |model: Option<&str>| Lane { model: model.map(ModelName::new), ..lane.clone() };
    assert!(lanes.keep(&[of(None), of(Some("own"))]).is_empty());
    for (queue, model) in
        [(None, Some("none")), (None, Some("none")), (Some("own"), Some("own")), (Some("own"), Some("own"))]
    {
        let mut envelope = envelope();
        envelope.head.lane = of(model);
        let name = topology::lane_queue(&of(queue));
        lanes.place(name.into(), &of(queue)).waiting.push_back(stage.item(&envelope).await);
    }
    for model in ["none", "own"] {
        let first = lanes.pull(&of(Some(model))).unwrap();
        let id = first.parcel.envelope.head.id;
        assert!(lanes.put_back(first).is_none());
        let names = lanes.names();
        let counts = names.iter().map(|name| lanes.get_mut(name).unwrap().waiting.len());
        assert_eq!(counts.collect::<Vec<_>>(), [2, 2], "each in its own queue");
        let again = lanes.pull(&of(Some(model))).unwrap();
        assert_eq!(again.parcel.envelope.head.id, id);
        assert!(lanes.put_back(again).is_none());
    }
    // A lane that is given up meanwhile leads to none.
    let gone = lanes.pull(&of(Some("none"))).unwrap();
    assert_eq!(lanes.keep(&[]).len(), 3);
    assert!(lanes.put_back(gone).is_some());
}

#[tokio::test]
async fn what_is_dead_as_it_comes_goes_back_as_it_is() {
    let mut stage = Stage::new(LONG).await;
    let mut unread = stage.item(&envelope()).await;
    unread.dead = Some(Box::new(Record::unrun(&unread.parcel.envelope.head, End::Dead, None, Timestamp::now())));
    let began = Instant::now();
    tokio::select! {
        ((), answered) = async { tokio::join!(unread.put_off(&stage.desk.post, Duration::ZERO), stage.consuming.answered()) } => {
            assert_eq!(answered, (1, false));
            assert!(began.elapsed() >= REST, "it would come and go without end");
        }
        copy = stage.publishing.published() => panic!("{copy:?}"),
    }
}

#[tokio::test]
async fn what_a_search_brings_beside_is_for_others() {
    let mut stage = Stage::new(LONG).await;
    let mut lanes = LaneQueues::default();
    let lane = envelope().head.lane;
    let queue = lanes.place(topology::lane_queue(&lane).into(), &lane);
    for _ in 0..3 {
        queue.waiting.push_back(stage.item(&envelope()).await);
    }
    assert!(queue.strangers(1).is_empty(), "they have just come");
    let old = async {
        while queue.waiting[2].receipt.age() <= Duration::from_secs(1) {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, old).await.unwrap();
    assert_eq!((queue.strangers(1).len(), queue.waiting.len()), (2, 1));
}
