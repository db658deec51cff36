//! A RabbitMQ that a test plays for a whole backend: it grants whatever it is asked for as every version would, refuses
//! what the newest refuse, tells the test what was asked, and delivers, cancels and closes as the test orders.

use std::collections::{BTreeMap, HashMap};

use amq_protocol::frame::AMQPFrame;
use amq_protocol::protocol::{AMQPClass, basic, channel, confirm, exchange, queue};
use lapin::BasicProperties;
use lapin::types::{ChannelId, DeliveryTag, FieldTable};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::peer::{Peer, Published, Session};

/// More than any test makes happen before it looks.
const WAITING: usize = 1_000;

/// What a client did.
#[derive(Debug)]
pub(in crate::broker::amqp) enum Did {
    /// Asked for a queue to be made.
    Declared {
        queue: String,
        arguments: FieldTable,
    },
    /// With this prefetch.
    Consumed {
        queue: String,
        prefetch: u16,
    },
    Published(Box<Published>),
    /// Answered for a delivery: an ack, or else it is to come again.
    Answered {
        tag: DeliveryTag,
        ack: bool,
    },
}

/// What the server is to do next.
#[derive(Debug)]
pub(in crate::broker::amqp) enum Order {
    /// Give the consumer of a queue a message; the tags of a channel begin with 1.
    Deliver { queue: String, properties: Box<BasicProperties>, body: Vec<u8> },
    /// Take the consumer of a queue away.
    Cancel { queue: String },
    /// Close the channel that a queue is consumed on.
    Close { queue: String, code: u16, why: &'static str },
}

/// What kind of server it is.
#[derive(Clone, Copy, Debug)]
pub(in crate::broker::amqp) struct Kind {
    /// What it says to whoever looks for a queue or an exchange; else it has them all.
    pub(in crate::broker::amqp) hides: Option<(u16, &'static str)>,
    /// The largest message it takes.
    pub(in crate::broker::amqp) max_message_size: usize,
}

/// The test's end of it; it ends with this.
pub(in crate::broker::amqp) struct Played {
    orders: mpsc::Sender<Order>,
    did: mpsc::Receiver<Did>,
    task: JoinSet<()>,
}

impl Played {
    /// Serves the two connections of one link.
    pub(in crate::broker::amqp) fn start(peer: Peer, kind: Kind) -> Self {
        let (orders, ordered) = mpsc::channel(WAITING);
        let (tell, did) = mpsc::channel(WAITING);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let (consuming, publishing) = peer.both().await;
            let mut server = Server { kind, consumers: HashMap::new(), tags: BTreeMap::new(), prefetch: 0, tell };
            server.tags.insert((1, 1), 0);
            server.serve(consuming, publishing, ordered).await;
        });
        Self { orders, did, task }
    }

    pub(in crate::broker::amqp) async fn order(&self, order: Order) {
        self.orders.send(order).await.expect("the server serves");
    }

    /// Gives the newest consumer of a queue a message.
    pub(in crate::broker::amqp) async fn deliver(&self, queue: &str, (properties, body): (BasicProperties, Vec<u8>)) {
        self.order(Order::Deliver { queue: queue.to_owned(), properties: Box::new(properties), body }).await;
    }

    /// The next that a client did and `pick` takes; what it does not take is passed over.
    pub(in crate::broker::amqp) async fn until<T>(&mut self, mut pick: impl FnMut(Did) -> Option<T>) -> T {
        loop {
            let Some(did) = self.did.recv().await else {
                self.task.join_next().await.expect("one task").expect("the server refuses nothing");
                panic!("the client hung up");
            };
            if let Some(found) = pick(did) {
                return found;
            }
        }
    }

    pub(in crate::broker::amqp) async fn until_consumed(&mut self, wanted: &str) {
        self.until(|did| matches!(did, Did::Consumed { queue, .. } if queue == wanted).then_some(())).await;
    }

    /// What was done since, as far as it has come here.
    pub(in crate::broker::amqp) fn so_far(&mut self) -> Vec<Did> {
        std::iter::from_fn(|| self.did.try_recv().ok()).collect()
    }
}

struct Server {
    kind: Kind,
    /// Channel and tag of each queue's newest consumer.
    consumers: HashMap<String, (ChannelId, String)>,
    /// The last delivery tag by connection (0 consumes, 1 publishes) and channel.
    tags: BTreeMap<(u8, ChannelId), DeliveryTag>,
    /// Of the next consumer.
    prefetch: u16,
    tell: mpsc::Sender<Did>,
}

impl Server {
    async fn serve(&mut self, mut consuming: Session, mut publishing: Session, mut orders: mpsc::Receiver<Order>) {
        loop {
            let (frame, line) = tokio::select! {
                order = orders.recv() => match order {
                    Some(order) => {
                        self.carry_out(&mut consuming, order).await;
                        continue;
                    }
                    None => return,
                },
                frame = consuming.read() => (frame, 0),
                frame = publishing.read() => (frame, 1),
            };
            let session = if line == 0 { &mut consuming } else { &mut publishing };
            match frame {
                Some(AMQPFrame::Method(channel, method)) => self.grant(session, (line, channel), method).await,
                Some(_) => {}
                None => return,
            }
        }
    }

    async fn carry_out(&mut self, consuming: &mut Session, order: Order) {
        let consumer =
            |queue: &str| self.consumers.get(queue).cloned().unwrap_or_else(|| panic!("{queue}: no consumer"));
        match order {
            Order::Deliver { queue, properties, body } => {
                let (channel, tag) = consumer(&queue);
                let number = self.next_tag((0, channel));
                consuming.deliver(channel, &tag, number, (*properties, &body)).await;
            }
            Order::Cancel { queue } => {
                let (channel, tag) = consumer(&queue);
                consuming.cancel(channel, &tag).await;
            }
            Order::Close { queue, code, why } => consuming.close_channel(consumer(&queue).0, code, why).await,
        }
    }

    fn next_tag(&mut self, place: (u8, ChannelId)) -> DeliveryTag {
        let tag = self.tags.entry(place).or_default();
        *tag += 1;
        *tag
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "what no client of ours asks for")]
    async fn grant(&mut self, session: &mut Session, place: (u8, ChannelId), method: AMQPClass) {
        let id = place.1;
        let answer = match method {
            AMQPClass::Channel(channel::AMQPMethod::Open(_)) => {
                self.tags.insert(place, 0);
                AMQPClass::Channel(channel::AMQPMethod::OpenOk(channel::OpenOk {}))
            }
            AMQPClass::Channel(channel::AMQPMethod::Close(_)) => {
                AMQPClass::Channel(channel::AMQPMethod::CloseOk(channel::CloseOk {}))
            }
            AMQPClass::Confirm(_) => AMQPClass::Confirm(confirm::AMQPMethod::SelectOk(confirm::SelectOk {})),
            AMQPClass::Exchange(exchange::AMQPMethod::Declare(wanted)) => {
                if let Some((code, why)) = self.kind.hides.filter(|_| wanted.passive) {
                    return session.close_channel(id, code, why).await;
                }
                AMQPClass::Exchange(exchange::AMQPMethod::DeclareOk(exchange::DeclareOk {}))
            }
            AMQPClass::Queue(asked) => match self.grant_queue(asked).await {
                Ok(answer) => AMQPClass::Queue(answer),
                Err((code, why)) => return session.close_channel(id, code, why).await,
            },
            AMQPClass::Basic(asked) => return self.grant_basic(session, place, asked).await,
            other => panic!("not played: {other:?}"),
        };
        session.say(id, answer).await;
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "what no client of ours asks for")]
    async fn grant_queue(&mut self, asked: queue::AMQPMethod) -> Result<queue::AMQPMethod, (u16, &'static str)> {
        use queue::AMQPMethod::{Bind, BindOk, Declare, DeclareOk, Delete, DeleteOk};
        Ok(match asked {
            Declare(wanted) => {
                if let Some(hides) = self.kind.hides.filter(|_| wanted.passive) {
                    return Err(hides);
                }
                // 4.3 refuses queues that are neither durable nor one connection's own.
                assert!(wanted.passive || (wanted.durable && !wanted.exclusive && !wanted.auto_delete), "{wanted:?}");
                let name = wanted.queue.clone();
                if !wanted.passive {
                    self.tell(Did::Declared { queue: name.to_string(), arguments: wanted.arguments }).await;
                }
                DeclareOk(queue::DeclareOk { queue: name, message_count: 0, consumer_count: 0 })
            }
            Bind(_) => BindOk(queue::BindOk {}),
            Delete(_) => DeleteOk(queue::DeleteOk { message_count: 0 }),
            other => panic!("not played: {other:?}"),
        })
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "what no client of ours asks for")]
    async fn grant_basic(&mut self, session: &mut Session, place: (u8, ChannelId), asked: basic::AMQPMethod) {
        use basic::AMQPMethod::{Ack, Cancel, CancelOk, Consume, ConsumeOk, Nack, Publish, Qos, QosOk};
        let id = place.1;
        let answer = match asked {
            Qos(wanted) => {
                assert!(!wanted.global, "4.3 refuses a prefetch that consumers share");
                self.prefetch = wanted.prefetch_count;
                QosOk(basic::QosOk {})
            }
            Consume(wanted) => {
                let (queue, tag) = (wanted.queue.to_string(), wanted.consumer_tag.to_string());
                self.consumers.insert(queue.clone(), (id, tag));
                let ok = basic::ConsumeOk { consumer_tag: wanted.consumer_tag };
                session.say(id, AMQPClass::Basic(ConsumeOk(ok))).await;
                return self.tell(Did::Consumed { queue, prefetch: self.prefetch }).await;
            }
            Cancel(wanted) => CancelOk(basic::CancelOk { consumer_tag: wanted.consumer_tag }),
            Publish(publish) => {
                let published = session.content_of(id, publish).await;
                if published.body.len() > self.kind.max_message_size {
                    let why = "PRECONDITION_FAILED - message size 2 is larger than configured max size 1";
                    return session.close_channel(id, 406, why).await;
                }
                let tag = self.next_tag(place);
                session.ack(id, tag, false).await;
                return self.tell(Did::Published(Box::new(published))).await;
            }
            Ack(said) => return self.tell(Did::Answered { tag: said.delivery_tag, ack: true }).await,
            Nack(said) => return self.tell(Did::Answered { tag: said.delivery_tag, ack: false }).await,
            other => panic!("not played: {other:?}"),
        };
        session.say(id, AMQPClass::Basic(answer)).await;
    }

    async fn tell(&self, did: Did) {
        // A test that has left does not listen.
        self.tell.send(did).await.unwrap_or_default();
    }
}
