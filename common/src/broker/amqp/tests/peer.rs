//! A RabbitMQ server that a test plays: it listens, does the handshake, and then says frame by frame what the test has
//! it say, such as what only another version, a full disk or an unlucky moment would. Knows no queues.

use std::time::Duration;

use amq_protocol::frame::{AMQPContentHeader, AMQPFrame, gen_frame, parse_frame};
use amq_protocol::protocol::{AMQPClass, basic, channel, confirm, connection};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, ChannelId, DeliveryTag, FieldTable};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};

use crate::broker::Access;

/// So that a test that waits for what never comes fails by itself.
const PATIENCE: Duration = Duration::from_secs(20);
const HEARTBEAT: u16 = 10;

/// The server: a port that connections come to.
pub(in crate::broker::amqp) struct Peer {
    listener: TcpListener,
    /// The heartbeat it asks for, in seconds.
    pub(in crate::broker::amqp) heartbeat: u16,
}

/// One connection to it.
pub(in crate::broker::amqp) struct Session {
    stream: TcpStream,
    received: Vec<u8>,
    /// Channels that it has closed, until the client has seen it: what comes on them is for nobody.
    closing: Vec<ChannelId>,
    /// What the client calls it; known after the handshake.
    pub(in crate::broker::amqp) name: String,
}

/// A message that was published to it.
#[derive(Clone, Debug)]
pub(in crate::broker::amqp) struct Published {
    pub(in crate::broker::amqp) channel: ChannelId,
    pub(in crate::broker::amqp) exchange: String,
    pub(in crate::broker::amqp) key: String,
    pub(in crate::broker::amqp) mandatory: bool,
    pub(in crate::broker::amqp) properties: BasicProperties,
    pub(in crate::broker::amqp) body: Vec<u8>,
}

impl Peer {
    pub(in crate::broker::amqp) async fn listen() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").await.unwrap(), heartbeat: HEARTBEAT }
    }

    pub(in crate::broker::amqp) fn access(&self) -> Access {
        self.access_as("amqp")
    }

    pub(in crate::broker::amqp) fn access_as(&self, scheme: &str) -> Access {
        let port = self.listener.local_addr().unwrap().port();
        Access::new(&format!("{scheme}://me:hunter2@127.0.0.1:{port}/team?heartbeat={}", self.heartbeat)).unwrap()
    }

    /// The next connection, before anything was said.
    pub(in crate::broker::amqp) async fn arrival(&self) -> Session {
        let (stream, _) = timeout(PATIENCE, self.listener.accept()).await.expect("nobody connects").unwrap();
        stream.set_nodelay(true).unwrap();
        Session { stream, received: Vec::new(), closing: Vec::new(), name: String::new() }
    }

    /// The next connection, open.
    pub(in crate::broker::amqp) async fn session(&self) -> Session {
        let mut session = self.arrival().await;
        session.start().await;
        session.open(self.heartbeat).await;
        session
    }

    /// The two connections of a link, open, in whatever order they come: the consuming and the publishing one, which
    /// has its channel already.
    pub(in crate::broker::amqp) async fn both(&self) -> (Session, Session) {
        let (one, other) = (self.arrival().await, self.arrival().await);
        let greet = async |mut session: Session| {
            session.start().await;
            session.open(self.heartbeat).await;
            session
        };
        let (one, other) = tokio::join!(greet(one), greet(other));
        let (consuming, mut publishing) = if one.name.ends_with("consume") { (one, other) } else { (other, one) };
        publishing.confirms().await;
        (consuming, publishing)
    }
}

impl Session {
    /// Says hello and takes the login; the client's next word is about the virtual host.
    pub(in crate::broker::amqp) async fn start(&mut self) {
        let Some(AMQPFrame::ProtocolHeader(_)) = self.read().await else { panic!("no AMQP") };
        let mut can = FieldTable::default();
        for name in ["publisher_confirms", "basic.nack", "consumer_cancel_notify", "connection.blocked"] {
            can.insert(name.into(), AMQPValue::Boolean(true));
        }
        let mut about = FieldTable::default();
        about.insert("product".into(), AMQPValue::LongString("RabbitMQ".into()));
        about.insert("capabilities".into(), AMQPValue::FieldTable(can));
        let start = connection::Start {
            version_major: 0,
            version_minor: 9,
            server_properties: about,
            mechanisms: "PLAIN AMQPLAIN".into(),
            locales: "en_US".into(),
        };
        self.say_connection(connection::AMQPMethod::Start(start)).await;
        let AMQPClass::Connection(connection::AMQPMethod::StartOk(login)) = self.method().await.1 else {
            panic!("no login");
        };
        if let Some(AMQPValue::LongString(name)) = login.client_properties.inner().get("connection_name") {
            self.name = name.to_string();
        }
    }

    /// Agrees on the terms and opens the virtual host.
    pub(in crate::broker::amqp) async fn open(&mut self, heartbeat: u16) {
        self.tune(heartbeat).await;
        let open_ok = connection::OpenOk {};
        self.say_connection(connection::AMQPMethod::OpenOk(open_ok)).await;
    }

    /// Agrees on the terms; what the client asks for then is the virtual host.
    pub(in crate::broker::amqp) async fn tune(&mut self, heartbeat: u16) {
        let tune = connection::Tune { channel_max: 2047, frame_max: 131_072, heartbeat };
        self.say_connection(connection::AMQPMethod::Tune(tune)).await;
        let AMQPClass::Connection(connection::AMQPMethod::TuneOk(_)) = self.method().await.1 else { panic!("no tune") };
        let AMQPClass::Connection(connection::AMQPMethod::Open(_)) = self.method().await.1 else { panic!("no open") };
    }

    /// Opens the channel that the client asks for.
    pub(in crate::broker::amqp) async fn channel(&mut self) -> ChannelId {
        let (id, AMQPClass::Channel(channel::AMQPMethod::Open(_))) = self.method().await else { panic!("no channel") };
        self.say(id, AMQPClass::Channel(channel::AMQPMethod::OpenOk(channel::OpenOk {}))).await;
        id
    }

    /// Opens the channel that the client asks for, and promises confirms on it.
    pub(in crate::broker::amqp) async fn confirms(&mut self) -> ChannelId {
        let id = self.channel().await;
        let AMQPClass::Confirm(confirm::AMQPMethod::Select(_)) = self.method().await.1 else { panic!("no confirms") };
        self.say(id, AMQPClass::Confirm(confirm::AMQPMethod::SelectOk(confirm::SelectOk {}))).await;
        id
    }

    /// Takes the consumer that the client wants: its channel and tag.
    pub(in crate::broker::amqp) async fn consumer(&mut self) -> (ChannelId, String) {
        let (id, method) = self.method().await;
        let AMQPClass::Basic(basic::AMQPMethod::Consume(wanted)) = method else { panic!("no consumer: {method:?}") };
        let tag = if wanted.consumer_tag.as_str().is_empty() { "tag".into() } else { wanted.consumer_tag };
        let ok = basic::ConsumeOk { consumer_tag: tag.clone() };
        self.say(id, AMQPClass::Basic(basic::AMQPMethod::ConsumeOk(ok))).await;
        (id, tag.into())
    }

    /// Gives a consumer a message.
    pub(in crate::broker::amqp) async fn deliver(
        &mut self,
        channel: ChannelId,
        consumer: &str,
        delivery: DeliveryTag,
        message: (BasicProperties, &[u8]),
    ) {
        let deliver = basic::Deliver {
            consumer_tag: consumer.into(),
            delivery_tag: delivery,
            redelivered: false,
            exchange: "pq1.in".into(),
            routing_key: "key".into(),
        };
        self.say(channel, AMQPClass::Basic(basic::AMQPMethod::Deliver(deliver))).await;
        self.content(channel, message.0, message.1).await;
    }

    /// The delivery that the client answers for next, and whether it acknowledges it rather than gives it back.
    pub(in crate::broker::amqp) async fn answered(&mut self) -> (DeliveryTag, bool) {
        let answer = self.method().await.1;
        if let AMQPClass::Basic(basic::AMQPMethod::Ack(ack)) = answer {
            return (ack.delivery_tag, true);
        }
        let AMQPClass::Basic(basic::AMQPMethod::Nack(nack)) = answer else { panic!("no answer: {answer:?}") };
        (nack.delivery_tag, false)
    }

    /// Takes a consumer away, as when its queue was deleted or it took too long.
    pub(in crate::broker::amqp) async fn cancel(&mut self, channel: ChannelId, consumer: &str) {
        let cancel = basic::Cancel { consumer_tag: consumer.into(), nowait: true };
        self.say(channel, AMQPClass::Basic(basic::AMQPMethod::Cancel(cancel))).await;
    }

    /// Waits until the client closes a channel, and lets it; what it asks for on that before is granted.
    pub(in crate::broker::amqp) async fn closed(&mut self, channel: ChannelId) {
        loop {
            match self.read().await {
                Some(AMQPFrame::Method(id, AMQPClass::Channel(channel::AMQPMethod::Close(_)))) => {
                    self.say(id, AMQPClass::Channel(channel::AMQPMethod::CloseOk(channel::CloseOk {}))).await;
                    if id == channel {
                        return;
                    }
                }
                Some(AMQPFrame::Method(id, AMQPClass::Basic(basic::AMQPMethod::Cancel(cancel)))) => {
                    let ok = basic::CancelOk { consumer_tag: cancel.consumer_tag };
                    self.say(id, AMQPClass::Basic(basic::AMQPMethod::CancelOk(ok))).await;
                }
                Some(_) => {}
                None => panic!("the client hung up"),
            }
        }
    }

    /// The next message that is published.
    pub(in crate::broker::amqp) async fn published(&mut self) -> Published {
        let (channel, method) = self.method().await;
        let AMQPClass::Basic(basic::AMQPMethod::Publish(publish)) = method else { panic!("no message: {method:?}") };
        self.content_of(channel, publish).await
    }

    /// The rest of a message whose publishing has begun.
    pub(in crate::broker::amqp) async fn content_of(
        &mut self,
        channel: ChannelId,
        publish: basic::Publish,
    ) -> Published {
        let Some(AMQPFrame::Header(_, header)) = self.read().await else { panic!("no header") };
        let mut body = Vec::new();
        while u64::try_from(body.len()).unwrap() < header.body_size {
            let Some(AMQPFrame::Body(_, part)) = self.read().await else { panic!("no body") };
            body.extend(part);
        }
        Published {
            channel,
            exchange: publish.exchange.into(),
            key: publish.routing_key.into(),
            mandatory: publish.mandatory,
            properties: header.properties,
            body,
        }
    }

    pub(in crate::broker::amqp) async fn ack(&mut self, channel: ChannelId, tag: DeliveryTag, multiple: bool) {
        let ack = basic::Ack { delivery_tag: tag, multiple };
        self.say(channel, AMQPClass::Basic(basic::AMQPMethod::Ack(ack))).await;
    }

    pub(in crate::broker::amqp) async fn nack(&mut self, channel: ChannelId, tag: DeliveryTag) {
        let nack = basic::Nack { delivery_tag: tag, multiple: false, requeue: false };
        self.say(channel, AMQPClass::Basic(basic::AMQPMethod::Nack(nack))).await;
    }

    /// Gives a message back that no queue takes; its confirm is another matter.
    pub(in crate::broker::amqp) async fn give_back(&mut self, message: &Published) {
        let back = basic::Return {
            reply_code: 312,
            reply_text: "NO_ROUTE".into(),
            exchange: message.exchange.as_str().into(),
            routing_key: message.key.as_str().into(),
        };
        self.say(message.channel, AMQPClass::Basic(basic::AMQPMethod::Return(back))).await;
        self.content(message.channel, message.properties.clone(), &message.body).await;
    }

    /// Says that it takes nothing for now.
    pub(in crate::broker::amqp) async fn block(&mut self, why: &str) {
        self.say_connection(connection::AMQPMethod::Blocked(connection::Blocked { reason: why.into() })).await;
    }

    pub(in crate::broker::amqp) async fn unblock(&mut self) {
        self.say_connection(connection::AMQPMethod::Unblocked(connection::Unblocked {})).await;
    }

    /// Closes a channel.
    pub(in crate::broker::amqp) async fn close_channel(&mut self, channel: ChannelId, code: u16, why: &str) {
        let close = channel::Close { reply_code: code, reply_text: why.into(), class_id: 60, method_id: 40 };
        self.say(channel, AMQPClass::Channel(channel::AMQPMethod::Close(close))).await;
        self.closing.push(channel);
    }

    /// Closes the connection.
    pub(in crate::broker::amqp) async fn close(&mut self, code: u16, why: &str) {
        let close = connection::Close { reply_code: code, reply_text: why.into(), class_id: 0, method_id: 0 };
        self.say_connection(connection::AMQPMethod::Close(close)).await;
    }

    /// Waits until the client says goodbye, returns it, and waits until it is gone. Whether it said goodbye.
    pub(in crate::broker::amqp) async fn goodbye(&mut self) -> bool {
        let mut said = false;
        while let Some(frame) = self.read().await {
            if let AMQPFrame::Method(0, AMQPClass::Connection(connection::AMQPMethod::Close(_))) = frame {
                said = true;
                self.say_connection(connection::AMQPMethod::CloseOk(connection::CloseOk {})).await;
            }
        }
        said
    }

    /// The next method; content in between is passed over, and channels are closed as the client likes.
    pub(in crate::broker::amqp) async fn method(&mut self) -> (ChannelId, AMQPClass) {
        loop {
            match self.read().await {
                Some(AMQPFrame::Method(id, AMQPClass::Channel(channel::AMQPMethod::Close(_)))) => {
                    let ok = channel::AMQPMethod::CloseOk(channel::CloseOk {});
                    self.say(id, AMQPClass::Channel(ok)).await;
                }
                Some(AMQPFrame::Method(id, method)) => return (id, method),
                Some(_) => {}
                None => panic!("the client hung up"),
            }
        }
    }

    pub(in crate::broker::amqp) async fn say(&mut self, channel: ChannelId, method: AMQPClass) {
        self.write(&AMQPFrame::Method(channel, method)).await;
    }

    async fn say_connection(&mut self, method: connection::AMQPMethod) {
        self.say(0, AMQPClass::Connection(method)).await;
    }

    async fn content(&mut self, channel: ChannelId, properties: BasicProperties, body: &[u8]) {
        let body_size = u64::try_from(body.len()).unwrap();
        self.write(&AMQPFrame::Header(channel, AMQPContentHeader { class_id: 60, body_size, properties })).await;
        if !body.is_empty() {
            self.write(&AMQPFrame::Body(channel, body.to_vec())).await;
        }
    }

    async fn write(&mut self, frame: &AMQPFrame) {
        let bytes = gen_frame(frame)(Vec::new().into()).unwrap().into_inner().0;
        self.raw(&bytes).await;
    }

    /// Sends heartbeats for so long, and says for how long the client was silent at the longest.
    pub(in crate::broker::amqp) async fn longest_silence(&mut self, length: Duration) -> Duration {
        let (begun, mut heard, mut longest) = (Instant::now(), Instant::now(), Duration::ZERO);
        while begun.elapsed() < length {
            self.write(&AMQPFrame::Heartbeat).await;
            let reading = self.stream.read_buf(&mut self.received);
            if let Ok(read) = timeout(Duration::from_millis(200), reading).await {
                assert!(matches!(read, Ok(1..)), "the client hung up");
                longest = longest.max(heard.elapsed());
                heard = Instant::now();
            }
        }
        longest.max(heard.elapsed())
    }

    /// Bytes as they are: what no AMQP server would say.
    pub(in crate::broker::amqp) async fn raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// The next frame but heartbeats and what comes on closed channels; `None` when the client has hung up.
    pub(in crate::broker::amqp) async fn read(&mut self) -> Option<AMQPFrame> {
        loop {
            if let Ok((rest, frame)) = parse_frame(self.received.as_slice()) {
                let used = self.received.len() - rest.len();
                self.received.drain(..used);
                if let AMQPFrame::Method(id, AMQPClass::Channel(channel::AMQPMethod::CloseOk(_))) = frame {
                    self.closing.retain(|closing| *closing != id);
                } else if frame != AMQPFrame::Heartbeat && !self.closing.contains(&frame.channel_id()) {
                    return Some(frame);
                }
                continue;
            }
            let reading = self.stream.read_buf(&mut self.received);
            let read = timeout(PATIENCE, reading).await.expect("the client says nothing");
            if !matches!(read, Ok(1..)) {
                return None;
            }
        }
    }
}
