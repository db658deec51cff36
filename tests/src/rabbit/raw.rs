//! A client without any of promptq in it: what foreign clients send, and what is in a queue as it went over the wire.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions,
    QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};
use tokio::time::timeout;

/// Longer than any call of a test takes.
const PATIENCE: Duration = Duration::from_secs(20);
/// A queue that gives nothing for so long is empty.
const QUIET: Duration = Duration::from_secs(1);

/// A connection with one channel.
#[derive(Debug)]
pub struct RawClient {
    _connection: Connection,
    channel: Channel,
}

/// A message as it is in a queue, or is to be sent. Headers are shown and sent as text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawMessage {
    /// Where it was published, and under which key.
    pub exchange: String,
    /// See `exchange`.
    pub routing_key: String,
    /// `message_id`.
    pub id: Option<String>,
    /// `content_type`.
    pub content_type: Option<String>,
    /// `correlation_id`.
    pub correlation_id: Option<String>,
    /// `reply_to`.
    pub reply_to: Option<String>,
    /// Other headers.
    pub headers: BTreeMap<String, String>,
    /// Whether it survives a restart (`delivery_mode` 2).
    pub durable: bool,
    /// Whether it was delivered before.
    pub redelivered: bool,
    /// The body.
    pub body: Vec<u8>,
}

impl RawClient {
    /// Connects.
    ///
    /// # Panics
    /// When that fails; so do its other calls where nothing else is said.
    pub async fn connect(url: &str) -> Self {
        let connection = patiently(Connection::connect(url, ConnectionProperties::default())).await;
        let channel = patiently(connection.create_channel()).await;
        patiently(channel.confirm_select(ConfirmSelectOptions::default())).await;
        Self { _connection: connection, channel }
    }

    /// A durable queue: a quorum queue unless told otherwise by `x-queue-type`.
    ///
    /// # Errors
    /// What the server refuses it with; after that the client is of no use.
    pub async fn declare(&self, queue: &str, arguments: &[(&str, &str)]) -> Result<(), String> {
        let mut table = FieldTable::default();
        table.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        for (key, value) in arguments {
            table.insert(
                (*key).into(),
                value.parse().map_or_else(|_| AMQPValue::LongString((*value).into()), AMQPValue::LongLongInt),
            );
        }
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let declared = timeout(PATIENCE, self.channel.queue_declare(queue.into(), options, table)).await;
        declared.expect("RabbitMQ answers").map(drop).map_err(|error| error.to_string())
    }

    /// Deletes a queue with everything in it.
    pub async fn delete(&self, queue: &str) {
        patiently(self.channel.queue_delete(queue.into(), QueueDeleteOptions::default())).await;
    }

    /// Publishes and waits until it is confirmed; false when no queue took it.
    pub async fn publish(&self, message: &RawMessage) -> bool {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let (exchange, key) = (message.exchange.as_str().into(), message.routing_key.as_str().into());
        let sent = self.channel.basic_publish(exchange, key, options, &message.body, message.properties());
        let confirmation = patiently(async { sent.await?.await }).await;
        match confirmation {
            Confirmation::Ack(returned) => returned.is_none(),
            refused @ (Confirmation::Nack(_) | Confirmation::NotRequested) => panic!("not confirmed: {refused:?}"),
        }
    }

    /// Takes a message out of a queue.
    pub async fn take(&self, queue: &str) -> Option<RawMessage> {
        let got = patiently(self.channel.basic_get(queue.into(), BasicGetOptions::default())).await?;
        patiently(got.delivery.ack(BasicAckOptions::default())).await;
        Some(RawMessage::of(&got.delivery))
    }

    /// Takes everything out of a queue, and gives the ids alone: for thousands of messages.
    pub async fn drain(&self, queue: &str) -> Vec<String> {
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let consuming = self.channel.basic_consume(queue.into(), "drain".into(), options, FieldTable::default());
        let mut consumer = patiently(consuming).await;
        let mut ids = Vec::new();
        while let Ok(Some(delivery)) = timeout(QUIET, consumer.next()).await {
            let delivery = delivery.expect("a delivery");
            ids.extend(delivery.properties.message_id().as_ref().map(|id| id.as_str().to_owned()));
        }
        ids
    }

    /// Takes everything out of a queue.
    pub async fn take_all(&self, queue: &str) -> Vec<RawMessage> {
        let mut messages = Vec::new();
        while let Some(message) = self.take(queue).await {
            messages.push(message);
        }
        messages
    }
}

impl RawMessage {
    fn properties(&self) -> BasicProperties {
        let mut headers = FieldTable::default();
        for (key, value) in &self.headers {
            headers.insert(key.as_str().into(), AMQPValue::LongString(value.as_str().into()));
        }
        let mut properties = BasicProperties::default().with_headers(headers);
        if self.durable {
            properties = properties.with_delivery_mode(2);
        }
        if let Some(id) = &self.id {
            properties = properties.with_message_id(id.as_str().into());
        }
        if let Some(content_type) = &self.content_type {
            properties = properties.with_content_type(content_type.as_str().into());
        }
        if let Some(correlation) = &self.correlation_id {
            properties = properties.with_correlation_id(correlation.as_str().into());
        }
        if let Some(reply_to) = &self.reply_to {
            properties = properties.with_reply_to(reply_to.as_str().into());
        }
        properties
    }

    fn of(delivery: &lapin::message::Delivery) -> Self {
        let text = |value: &Option<ShortString>| value.as_ref().map(|value| value.as_str().to_owned());
        let properties = &delivery.properties;
        let headers = properties.headers().as_ref().map(FieldTable::inner);
        Self {
            exchange: delivery.exchange.as_str().to_owned(),
            routing_key: delivery.routing_key.as_str().to_owned(),
            id: text(properties.message_id()),
            content_type: text(properties.content_type()),
            correlation_id: text(properties.correlation_id()),
            reply_to: text(properties.reply_to()),
            headers: headers
                .into_iter()
                .flatten()
                .map(|(key, value)| (key.as_str().to_owned(), shown(value)))
                .collect(),
            durable: *properties.delivery_mode() == Some(2),
            redelivered: delivery.redelivered,
            body: delivery.data.clone(),
        }
    }
}

/// A text or a whole number as itself, anything else as the driver shows it.
fn shown(value: &AMQPValue) -> String {
    let text = format!("{value:?}");
    if let AMQPValue::LongString(text) = value {
        return text.to_string();
    }
    text.split_once('(').map_or(text.clone(), |(_, inside)| inside.trim_end_matches(')').to_owned())
}

async fn patiently<T>(call: impl Future<Output = Result<T, lapin::Error>>) -> T {
    let answer = timeout(PATIENCE, call).await.expect("RabbitMQ answers");
    answer.unwrap_or_else(|error| panic!("RabbitMQ refuses: {error}"))
}
