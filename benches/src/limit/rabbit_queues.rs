//! The queues of the limit on RabbitMQ, and how many messages they have.

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ExchangeKind};

use super::arguments::{QueueKind, Setting, Writes};

/// Where jobs wait.
pub(super) const READY: &str = "limit.ready";
/// Where results are announced.
pub(super) const DONE: &str = "limit.done";
/// What jobs are published to, with promptq's writes.
pub(super) const EXCHANGE: &str = "limit.in";
/// And with which key.
pub(super) const KEY: &str = "default.mock.normal";

/// Declares them, the results' with the bounds that promptq has for them.
pub(super) async fn declare(channel: &Channel, setting: &Setting) -> anyhow::Result<()> {
    let kind = match setting.queue {
        QueueKind::Quorum => "quorum",
        QueueKind::Classic => "classic",
    };
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    for queue in [READY, DONE] {
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.into()));
        if queue == DONE && setting.writes == Writes::Promptq {
            arguments.insert("x-message-ttl".into(), AMQPValue::LongLongInt(86_400_000));
            arguments.insert("x-max-length-bytes".into(), AMQPValue::LongLongInt(1 << 30));
            arguments.insert("x-overflow".into(), AMQPValue::LongString("drop-head".into()));
        }
        channel.queue_declare(queue.into(), durable, arguments).await?;
    }
    if setting.writes == Writes::Promptq {
        let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        channel.exchange_declare(EXCHANGE.into(), ExchangeKind::Direct, durable, FieldTable::default()).await?;
        let options = QueueBindOptions::default();
        channel.queue_bind(READY.into(), EXCHANGE.into(), KEY.into(), options, FieldTable::default()).await?;
    }
    Ok(())
}

/// How many messages wait in a queue.
pub(super) async fn count(channel: &Channel, queue: &str) -> anyhow::Result<usize> {
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let found = channel.queue_declare(queue.into(), options, FieldTable::default()).await?;
    Ok(usize::try_from(found.message_count())?)
}
