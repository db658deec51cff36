//! The least that a queue on RabbitMQ could do: one connection publishes persistent messages and awaits their confirms
//! late; another consumes, publishes a result for each message, and acknowledges once that is confirmed. No ledger.

use std::collections::VecDeque;

use anyhow::{Context, ensure};
use futures_util::StreamExt as _;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};
use promptq_common::broker::amqp::QueueType;

use crate::meter::{TEXT, prompt};
use crate::rabbit::RabbitServer;

/// How many messages are under way at once, as `performance.md` section 1 has it.
const WINDOW: usize = 1_000;
/// The prefetch that was fastest there.
const PREFETCH: u16 = 500;

const READY: &str = "limit.ready";
const DONE: &str = "limit.done";

/// Declares the two queues.
pub(super) async fn declare(server: &RabbitServer, queues: QueueType) -> anyhow::Result<()> {
    let (_connection, channel) = connect(server).await?;
    let kind = match queues {
        QueueType::Quorum => "quorum",
        QueueType::Classic => "classic",
    };
    for queue in [READY, DONE] {
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.into()));
        channel.queue_declare(queue.into(), options, arguments).await?;
    }
    Ok(())
}

/// Publishes so many jobs, each confirmed.
pub(super) async fn enqueue(server: &RabbitServer, jobs: usize) -> anyhow::Result<()> {
    let (_connection, channel) = connect(server).await?;
    let mut due = VecDeque::new();
    for job in 0..jobs {
        due.push_back(publish(&channel, READY, prompt(job).into_bytes()).await?);
        if due.len() == WINDOW {
            confirmed(due.pop_front().context("a confirm is due")?).await?;
        }
    }
    for confirm in due {
        confirmed(confirm).await?;
    }
    Ok(())
}

/// Takes, answers and acknowledges so many.
pub(super) async fn drain(server: &RabbitServer, jobs: usize) -> anyhow::Result<()> {
    let ((_one, consuming), (_other, publishing)) = (connect(server).await?, connect(server).await?);
    consuming.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
    let options = BasicConsumeOptions::default();
    let mut consumer = consuming.basic_consume(READY.into(), "limit".into(), options, FieldTable::default()).await?;
    let mut due = VecDeque::new();
    let mut left = jobs;
    while left > 0 || !due.is_empty() {
        // Half of what may be unanswered is answered before more is taken in.
        if left > 0 && due.len() < usize::from(PREFETCH) / 2 {
            let delivery = consumer.next().await.context("the consumer ended")??;
            due.push_back((publish(&publishing, DONE, vec![b'r'; TEXT]).await?, delivery));
            left -= 1;
        } else if let Some((confirm, delivery)) = due.pop_front() {
            confirmed(confirm).await?;
            delivery.ack(BasicAckOptions::default()).await?;
        }
    }
    Ok(())
}

async fn connect(server: &RabbitServer) -> anyhow::Result<(Connection, Channel)> {
    let connection = Connection::connect(&server.url(), ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    Ok((connection, channel))
}

async fn publish(channel: &Channel, queue: &str, body: Vec<u8>) -> anyhow::Result<lapin::PublisherConfirm> {
    let properties = BasicProperties::default().with_delivery_mode(2);
    Ok(channel.basic_publish("".into(), queue.into(), BasicPublishOptions::default(), &body, properties).await?)
}

async fn confirmed(confirm: lapin::PublisherConfirm) -> anyhow::Result<()> {
    let answer = confirm.await?;
    ensure!(matches!(answer, Confirmation::Ack(None)), "a publish was answered {answer:?}");
    Ok(())
}
