//! The limit on RabbitMQ, by lapin on one thread: 1,000 publishes in flight; a delivery's result is published, and what
//! is confirmed is acknowledged at once, `multiple`. A connection each for what comes and what goes.
//!
//! With promptq's writes messages have its properties and its bytes, go through an exchange, and the ledger beside it is
//! told what it is told there: see `rabbit_ledger`.

use std::pin::Pin;
use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::stream::FuturesOrdered;
use futures_util::{FutureExt as _, StreamExt as _};
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer, PublisherConfirm};
use tokio::runtime::Runtime;

use super::Contestant;
use super::arguments::{Setting, Writes};
use super::rabbit_ledger::Ledger;
use super::rabbit_queues::{self, DONE, EXCHANGE, KEY, READY};
use super::rows::{self, Id, Stored};

/// Publishes in flight, as many as in the loop by which the goals were set.
const WINDOW: usize = 1_000;
/// The prefetch it has for the drain.
const PREFETCH: u16 = 500;
/// Batches of deliveries that are answered at once: all of the prefetch.
const ANSWERED: usize = 500;

/// The connections, and what goes over them.
pub(super) struct Rabbit {
    runtime: Runtime,
    hands: Hands,
}

struct Hands {
    publishing: Channel,
    consuming: Channel,
    /// Once somebody works.
    consumer: Option<Consumer>,
    ledger: Option<Ledger>,
    writes: Writes,
    batch: usize,
    idle: Duration,
    job: Vec<u8>,
    result: Vec<u8>,
    /// They close with these.
    connections: [Connection; 2],
}

impl Rabbit {
    pub(super) fn connect(setting: &Setting) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let hands = runtime.block_on(Hands::connect(setting))?;
        Ok(Self { runtime, hands })
    }
}

impl Contestant for Rabbit {
    fn enqueue(&mut self, jobs: usize) -> anyhow::Result<()> {
        self.runtime.block_on(self.hands.put(jobs))
    }

    fn work(&mut self, jobs: usize) -> anyhow::Result<()> {
        self.runtime.block_on(async {
            let mut consumer = self.hands.consumer().await?;
            self.hands.take(&mut consumer, jobs).await?;
            self.hands.consumer = Some(consumer);
            Ok(())
        })
    }

    fn live(&mut self, jobs: usize) -> anyhow::Result<()> {
        self.runtime.block_on(async {
            let mut consumer = self.hands.consumer().await?;
            tokio::try_join!(self.hands.put(jobs), self.hands.take(&mut consumer, jobs))?;
            self.hands.consumer = Some(consumer);
            Ok(())
        })
    }

    fn settled(&mut self) -> anyhow::Result<usize> {
        self.runtime.block_on(async {
            ensure!(self.hands.connections.iter().all(|one| one.status().connected()), "a connection is lost");
            let done = rabbit_queues::count(&self.hands.consuming, DONE).await?;
            if let Some(ledger) = &self.hands.ledger {
                let ended = ledger.ended().await?;
                ensure!(ended == done, "{done} results at RabbitMQ, and {ended} in the ledger");
            }
            Ok(done)
        })
    }
}

impl Hands {
    async fn connect(setting: &Setting) -> anyhow::Result<Self> {
        let (one, publishing) = connect(&setting.url).await?;
        let (other, consuming) = connect(&setting.url).await?;
        rabbit_queues::declare(&publishing, setting).await?;
        let (job, result) = match setting.writes {
            Writes::Bare => rows::texts(),
            Writes::Promptq => {
                let stored = Stored::new()?;
                (stored.whole(), stored.announcement)
            }
        };
        let ledger = match &setting.ledger {
            Some(url) => Some(Ledger::connect(url).await?),
            None => None,
        };
        let (writes, batch, idle) = (setting.writes, setting.batch, Duration::from_secs(setting.idle.into()));
        let connections = [one, other];
        Ok(Self { publishing, consuming, consumer: None, ledger, writes, batch, idle, job, result, connections })
    }

    async fn consumer(&mut self) -> anyhow::Result<Consumer> {
        if let Some(consumer) = self.consumer.take() {
            return Ok(consumer);
        }
        self.consuming.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
        let options = BasicConsumeOptions::default();
        Ok(self.consuming.basic_consume(READY.into(), "limit".into(), options, FieldTable::default()).await?)
    }

    async fn put(&self, jobs: usize) -> anyhow::Result<()> {
        let (mut left, mut under_way) = (jobs, FuturesOrdered::new());
        while left > 0 || !under_way.is_empty() {
            while left > 0 && (under_way.len() + 1) * self.batch <= WINDOW.max(self.batch) {
                let count = left.min(self.batch);
                under_way.push_back(self.put_batch(count));
                left -= count;
            }
            if let Some(done) = under_way.next().await {
                done?;
            }
        }
        Ok(())
    }

    async fn put_batch(&self, count: usize) -> anyhow::Result<()> {
        let ids: Vec<Id> = (0..count).map(|_| rows::next_id()).collect();
        if let Some(ledger) = &self.ledger {
            ledger.register(&ids).await?;
        }
        let to = if self.writes == Writes::Bare { ("", READY) } else { (EXCHANGE, KEY) };
        let jobs = ids.iter().map(|id| Publishing::new(self, to, &self.job, self.job_properties(id)));
        confirmed(jobs.collect()).await?;
        if let Some(ledger) = &self.ledger {
            ledger.confirm(&ids).await?;
        }
        Ok(())
    }

    async fn take(&self, consumer: &mut Consumer, jobs: usize) -> anyhow::Result<()> {
        let (mut left, mut under_way) = (jobs, FuturesOrdered::new());
        let most = ANSWERED.div_ceil(self.batch);
        while left > 0 || !under_way.is_empty() {
            tokio::select! {
                biased;
                deliveries = self.next(consumer, left.min(self.batch)), if left > 0 && under_way.len() < most => {
                    let deliveries = deliveries?;
                    left -= deliveries.len();
                    under_way.push_back(self.answer(deliveries));
                }
                Some(tag) = under_way.next(), if !under_way.is_empty() => {
                    let acking = self.consuming.basic_ack(tag?, BasicAckOptions { multiple: true });
                    // The first look at it sends it. The last one has to be there when this returns.
                    if left == 0 && under_way.is_empty() {
                        acking.await?;
                    } else if let Some(acked) = acking.now_or_never() {
                        acked?;
                    }
                }
            }
        }
        Ok(())
    }

    /// What has been delivered, at least one and at most so many. Cancel-safe: nothing is awaited once there is one.
    async fn next(&self, consumer: &mut Consumer, most: usize) -> anyhow::Result<Vec<Delivery>> {
        let first = tokio::time::timeout(self.idle, consumer.next()).await;
        let first = first.map_err(|_| anyhow::anyhow!("no job has come within {:?}", self.idle))?;
        let mut deliveries = vec![first.context("the consumer ended")??];
        while deliveries.len() < most
            && let Some(Some(delivery)) = consumer.next().now_or_never()
        {
            deliveries.push(delivery?);
        }
        Ok(deliveries)
    }

    /// Everything up to the acknowledgement; the tag of the last.
    async fn answer(&self, deliveries: Vec<Delivery>) -> anyhow::Result<u64> {
        let mut ids = Vec::new();
        for delivery in &deliveries {
            ensure!(delivery.data.len() == self.job.len(), "a job of {} bytes", delivery.data.len());
            if self.ledger.is_some() {
                ids.push(Ledger::id_of(delivery)?);
            }
        }
        if let Some(ledger) = &self.ledger {
            let leases = ledger.open(&ids).await?;
            ledger.end(&leases).await?;
        }
        let results = deliveries.iter().map(|delivery| {
            let name = delivery.properties.message_id().clone();
            let properties = BasicProperties::default().with_delivery_mode(2);
            let properties = match name.filter(|_| self.writes == Writes::Promptq) {
                Some(name) => properties.with_content_type("application/json".into()).with_message_id(name),
                None => properties,
            };
            Publishing::new(self, ("", DONE), &self.result, properties)
        });
        confirmed(results.collect()).await?;
        if let Some(ledger) = &self.ledger {
            ledger.announced(&ids).await?;
        }
        deliveries.last().map(|delivery| delivery.delivery_tag).context("no deliveries")
    }

    fn job_properties(&self, id: &Id) -> BasicProperties {
        let properties = BasicProperties::default().with_delivery_mode(2);
        if self.writes == Writes::Bare {
            return properties;
        }
        let mut headers = FieldTable::default();
        headers.insert("pq-epoch".into(), AMQPValue::LongUInt(0));
        headers.insert("pq-attempts".into(), AMQPValue::LongUInt(0));
        properties
            .with_content_type("application/x-promptq-job".into())
            .with_headers(headers)
            .with_message_id(rows::name(*id).into())
            .with_timestamp(u64::try_from(rows::now() / 1_000).unwrap_or(0))
    }
}

/// A message on its way: its frames are in lapin's hands from the start.
enum Publishing<'a> {
    Sending(Pin<Box<dyn Future<Output = lapin::Result<PublisherConfirm>> + 'a>>),
    Sent(lapin::Result<PublisherConfirm>),
}

impl<'a> Publishing<'a> {
    fn new(hands: &'a Hands, (exchange, key): (&str, &str), body: &'a [u8], properties: BasicProperties) -> Self {
        let options =
            BasicPublishOptions { mandatory: hands.writes == Writes::Promptq, ..BasicPublishOptions::default() };
        let mut sending =
            Box::pin(hands.publishing.basic_publish(exchange.into(), key.into(), options, body, properties));
        match sending.as_mut().now_or_never() {
            Some(sent) => Self::Sent(sent),
            None => Self::Sending(sending),
        }
    }

    async fn sent(self) -> lapin::Result<PublisherConfirm> {
        match self {
            Self::Sending(sending) => sending.await,
            Self::Sent(sent) => sent,
        }
    }
}

/// Waits until all are confirmed. From the last to the first: once that is sent or confirmed the others usually are, and
/// need no wake-up.
async fn confirmed(publishing: Vec<Publishing<'_>>) -> anyhow::Result<()> {
    let mut confirms = Vec::with_capacity(publishing.len());
    for one in publishing.into_iter().rev() {
        confirms.push(one.sent().await?);
    }
    for confirm in confirms {
        let answer = confirm.await?;
        ensure!(matches!(answer, Confirmation::Ack(None)), "a publish was answered {answer:?}");
    }
    Ok(())
}

async fn connect(url: &str) -> anyhow::Result<(Connection, Channel)> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await.context("connect to RabbitMQ")?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    Ok((connection, channel))
}
