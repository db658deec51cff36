//! The process that dies in the crash tests of RabbitMQ: puts jobs in, leases, settles, redrives and purges them, takes
//! in those of a foreign client, and writes to a log what it was told is done. Where it dies is armed by `FAILPOINTS`; when it survives, it ends with 0.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::time::Duration;

use anyhow::Context;
use promptq_common::broker::amqp::QueueType;
use promptq_common::broker::{Broker, Consumer, Delivery, Retention};
use promptq_common::job::{JobId, Queue};
use promptq_common::record::End;
use promptq_tests::backends::terms;
use promptq_tests::rabbit::{RawClient, RawMessage};
use promptq_tests::steps::want;
use promptq_tests::{carrier, fixture};

/// How long its claims last, and so how long the tests wait for what it left behind.
const LEASE: Duration = Duration::from_secs(2);

/// A release that has to wait.
const SOON: Duration = Duration::from_millis(50);

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [url, ledger, log, kind] = arguments.as_slice() else { anyhow::bail!("RabbitMQ, ledger, log, type of queues") };
    let mut log = Log(OpenOptions::new().create(true).append(true).open(log)?);
    let queues = if kind == "classic" { QueueType::Classic } else { QueueType::Quorum };
    let broker = Broker::connect(&carrier::access(url, ledger, &[], queues).await).await?;
    let mut consumer = broker.consume(terms(&[(Queue::standard(), 1)], LEASE)).await?;
    for (round, jobs) in fixture::rounds().into_iter().enumerate() {
        broker.enqueue(&jobs).await?;
        for job in &jobs {
            log.write("enqueued", &job.id, "")?;
        }
        for place in 0..3 {
            let delivery = take(&mut consumer).await?;
            // The last one of a round is left behind, as by a worker that runs it still.
            if place < 2 {
                settle(&broker, delivery, round * 2 + place, &mut log).await?;
            }
        }
    }
    let client = RawClient::connect(url).await;
    take_in_foreign(&broker, &client, &mut log).await?;
    let rejected = RawMessage { routing_key: "pq1.dead".to_owned(), id: Some("x".to_owned()), ..RawMessage::default() };
    anyhow::ensure!(client.publish(&rejected).await, "there is a queue for what is rejected");
    while broker.sweep(&Retention::standard()).await?.more {}
    broker.purge(&Queue::standard()).await?;
    consumer.close().await?;
    Ok(())
}

/// Jobs of a client that is not ours, in a queue of their own: they are compared before they are opened.
async fn take_in_foreign(broker: &Broker, client: &RawClient, log: &mut Log) -> anyhow::Result<()> {
    let abroad = fixture::queue("abroad");
    let mut consumer = broker.consume(terms(&[(abroad.clone(), 1)], LEASE)).await?;
    for name in ["one", "two"] {
        let sent = RawMessage {
            exchange: "pq1.in".to_owned(),
            routing_key: "abroad".to_owned(),
            id: Some(name.to_owned()),
            content_type: Some("application/json".to_owned()),
            durable: true,
            body: br#"{"prompt": "say something"}"#.to_vec(),
            ..RawMessage::default()
        };
        anyhow::ensure!(client.publish(&sent).await, "there is a queue for foreign jobs");
        log.write("sent", &JobId::derived(&abroad, None, name), "")?;
        let delivery = take(&mut consumer).await?;
        let (head, lease) = (delivery.head.clone(), delivery.lease.id());
        let settled = delivery.lease.settle(fixture::end(&head, lease, End::Succeeded)).await.context("settles")?;
        log.write("settled", &head.id, &format!("succeeded {settled:?}"))?;
    }
    consumer.close().await?;
    Ok(())
}

async fn take(consumer: &mut Consumer) -> anyhow::Result<Delivery> {
    for _ in 0..10 {
        if let Some(delivery) = consumer.next(&want(1)).await?.deliveries.pop() {
            return Ok(delivery);
        }
    }
    anyhow::bail!("nothing to lease")
}

/// Each verdict in its turn; what died is put back in line.
async fn settle(broker: &Broker, delivery: Delivery, turn: usize, log: &mut Log) -> anyhow::Result<()> {
    let (head, lease) = (delivery.head.clone(), delivery.lease.id());
    let (verdict, name) = match turn % 4 {
        0 => (fixture::end(&head, lease, End::Dead), "dead"),
        1 => (fixture::end(&head, lease, End::Succeeded), "succeeded"),
        2 => (fixture::retry(&head, Duration::ZERO), "retried"),
        _ => (promptq_common::broker::Verdict::Release { after: SOON, hold: None }, "released"),
    };
    let settled = delivery.lease.settle(verdict).await.context("settles")?;
    log.write("settled", &head.id, &format!("{name} {settled:?}"))?;
    if name == "dead" {
        log.write("redriving", &head.id, "")?;
        broker.redrive(&[head.id]).await?;
        log.write("redriven", &head.id, "")?;
    }
    Ok(())
}

/// What it was told, in order; a line that is there was told.
struct Log(File);

impl Log {
    fn write(&mut self, what: &str, id: &JobId, how: &str) -> anyhow::Result<()> {
        Ok(self.0.write_all(format!("{what} {id} {how}\n").as_bytes())?)
    }
}
