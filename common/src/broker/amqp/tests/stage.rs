//! A subscription's messages in hand, with a server that is played and a ledger that a test may trap: what the tests of
//! settling stand on.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::message::Delivery;
use lapin::options::BasicConsumeOptions;
use lapin::types::{ChannelId, FieldTable};
use lapin::{BasicProperties, Consumer};
use tokio::task::JoinSet;

use super::peer::{Peer, Session};
use super::trapped::Trapped;
use crate::broker::amqp::Settings;
use crate::broker::amqp::desk::{Desk, Item};
use crate::broker::amqp::link::Link;
use crate::broker::amqp::opening::Opening;
use crate::broker::amqp::post::{Clock, Post};
use crate::broker::amqp::receipt::{Origin, Receipt};
use crate::broker::amqp::wire::{Parcel, Read};
use crate::broker::backend::{Claim, Envelope, Head, LeaseId, RawDelivery, Terms, Verdict, WorkerId};
use crate::job::{Job, Queue};
use crate::ledger::{Asked, Claims, Ledger};
use crate::record::{End, Record, State};
use crate::time::Timestamp;
use crate::work::Work;

/// Longer than any test.
pub(super) const LONG: Duration = Duration::from_secs(600);
/// Far longer than what is waited for takes, and shorter than the played server's patience.
pub(super) const SOON: Duration = Duration::from_secs(10);

/// A subscription's messages in hand, and the server's ends of its connections.
pub(super) struct Stage {
    pub(super) desk: Arc<Desk>,
    pub(super) ledger: Arc<Trapped>,
    pub(super) consuming: Session,
    pub(super) publishing: Session,
    consumer: Consumer,
    place: (ChannelId, String),
    delivered: u64,
    /// How deliveries are answered for.
    pub(super) origin: Origin,
    _writing: JoinSet<()>,
}

impl Stage {
    pub(super) async fn new(lease: Duration) -> Self {
        let peer = Peer::listen().await;
        let access = peer.access();
        let (link, (mut consuming, publishing)) = tokio::join!(Link::connect(&access), peer.both());
        let link = link.unwrap();
        let (channel, _) = tokio::join!(link.channel(), consuming.channel());
        let channel = channel.unwrap();
        let options = BasicConsumeOptions::default();
        let asking = channel.basic_consume("pq1.q.a".into(), "".into(), options, FieldTable::default());
        let (consumer, place) = tokio::join!(asking, consuming.consumer());
        let ledger = Arc::new(Trapped::default());
        let claims = Arc::clone(&ledger) as Arc<dyn Claims>;
        let (settings, clock) = (Settings::default(), Clock::default());
        let post = Post { link, claims, settings, clock, lanes: Arc::default(), leaving: Mutex::default() };
        let worker = WorkerId::random("here");
        let terms = Terms { worker, queues: vec![(Queue::standard(), 1)], lease };
        let desk = Desk::new(Arc::new(post), &terms);
        let (consumer, origin, mut writing) = (consumer.unwrap(), Origin::default(), JoinSet::new());
        writing.spawn(Arc::clone(&origin.answers).write(channel));
        let delivered = 0;
        Self { desk, ledger, consuming, publishing, consumer, place, delivered, origin, _writing: writing }
    }

    /// A message that is delivered now, the first with tag 1, and so on.
    pub(super) async fn delivery(&mut self, message: (BasicProperties, &[u8])) -> (Delivery, Receipt) {
        self.delivered += 1;
        let (channel, tag) = &self.place;
        self.consuming.deliver(*channel, tag, self.delivered, message).await;
        let delivery = self.consumer.next().await.unwrap().unwrap();
        let receipt = Receipt::new(&delivery, &self.origin);
        (delivery, receipt)
    }

    /// A job's message, delivered for the first time.
    pub(super) async fn item(&mut self, envelope: &Envelope) -> Item {
        self.item_again(envelope, false).await
    }

    /// A job's message, delivered.
    pub(super) async fn item_again(&mut self, envelope: &Envelope, redelivered: bool) -> Item {
        let (_, receipt) = self.delivery((BasicProperties::default(), b"x")).await;
        item(envelope, receipt, redelivered)
    }

    /// Has the server close the channel that everything was delivered by.
    pub(super) async fn lose_channel(&mut self) {
        self.consuming.close_channel(self.place.0, 406, "PRECONDITION_FAILED - unknown delivery tag 99").await;
    }

    /// A job that runs here.
    pub(super) async fn held(&mut self) -> RawDelivery {
        let item = self.item(&envelope()).await;
        self.granted(item).await
    }

    /// What the ledger lets run.
    pub(super) async fn granted(&self, item: Item) -> RawDelivery {
        let opening = Arc::clone(&self.desk).open(item).await;
        let Some(Opening::Granted(delivery)) = opening else { panic!("{opening:?}") };
        *delivery
    }

    /// Has another worker run a job.
    pub(super) async fn taken(&self, head: &Head) -> LeaseId {
        let (lease, claim) = self.asked(head).await;
        assert_eq!(claim, Claim::Fresh { deaths: 0 });
        lease
    }

    /// Another worker asks to run a job.
    pub(super) async fn asked(&self, head: &Head) -> (LeaseId, Claim) {
        let (lease, worker) = (LeaseId::random(), WorkerId::random("there"));
        let asked = Asked { lease, worker: &worker, length: LONG, redelivered: false };
        (lease, self.ledger.open(head, &asked).await.unwrap().claim)
    }

    pub(super) async fn state(&self, head: &Head) -> State {
        self.ledger.fetch(&[head.id]).await.unwrap().pop().flatten().unwrap().state
    }
}

pub(super) fn item(envelope: &Envelope, receipt: Receipt, redelivered: bool) -> Item {
    let parcel = Parcel { envelope: envelope.clone(), reply: None, named: false, again: false };
    Item::new(Read { parcel, dead: None }, receipt, redelivered, false)
}

pub(super) fn envelope() -> Envelope {
    crate::broker::envelope(&Job::new(Queue::standard(), Work::prompt(None, "x"))).unwrap()
}

pub(super) fn success(head: &Head, lease: LeaseId) -> Verdict {
    let mut record = Record::unrun(head, End::Succeeded, None, Timestamp::now());
    record.lease = lease;
    Verdict::End(Box::new(record))
}
