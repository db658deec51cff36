//! What promptq wants to find at a server: each exchange and queue with its arguments and bindings, as data.
//! Arguments are for ever: another value would need another name, hence the version in every name.

use std::time::Duration;

use lapin::ExchangeKind;
use lapin::options::ExchangeDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};

pub(super) use super::names::LEDGER;
use super::names::{self, DEAD, DELAY, IN, REST};
use crate::broker::WorkerId;
use crate::broker::amqp::{QueueType, Settings};
use crate::job::{Band, Lane, ModelName, Queue};
use crate::ledger::LedgerId;

/// The shortest stay in a hold queue: what was published there has to be fetched.
const HOLD_TTL: Duration = Duration::from_secs(1);
/// How long an announcement of a result is kept; it can be read from the ledger for longer.
const RESULT_TTL: Duration = Duration::from_secs(86_400);
/// The most bytes of announcements a queue keeps, the newest: they can be made again, and may not fill a server's disk.
const RESULT_BYTES: i64 = 1 << 30;
/// What servers from 3.12 on may be told about how long a delivery may take: the longest time-out a job can have (a
/// day) and an hour to end it.
const CONSUMER_TIMEOUT: Duration = Duration::from_secs(25 * 3_600);
/// How long a queue is left that its maker died over.
const PASSING: Duration = Duration::from_secs(60);
/// How often a quorum queue may deliver a message: without end, as nearly as all servers let it be said. To 4.x it could
/// be -1; to 3.10 that is a limit which the first return is above. It is our ledger that stops what kills its workers.
const DELIVERIES: i64 = 1 << 31;

/// An exchange.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) name: String,
    pub(super) kind: ExchangeKind,
    pub(super) options: ExchangeDeclareOptions,
    pub(super) arguments: FieldTable,
}

/// A queue and what leads to it.
#[derive(Debug)]
pub(super) struct WantedQueue {
    pub(super) name: String,
    pub(super) arguments: FieldTable,
    pub(super) bindings: Vec<Binding>,
}

/// A way from an exchange to a queue.
#[derive(Debug)]
pub(super) struct Binding {
    pub(super) exchange: String,
    pub(super) key: String,
    pub(super) arguments: FieldTable,
}

/// The exchanges of all queues.
pub(super) fn exchanges() -> Vec<Exchange> {
    let rest = ExchangeDeclareOptions { durable: true, internal: true, ..ExchangeDeclareOptions::default() };
    let plain = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    vec![
        exchange(REST, ExchangeKind::Topic, rest, FieldTable::default()),
        exchange(IN, ExchangeKind::Direct, plain, table([("alternate-exchange", text(REST))])),
        exchange(DELAY, ExchangeKind::Headers, plain, FieldTable::default()),
    ]
}

/// The exchange that knows the ledger; without one, for whoever only looks. Its alternate is a name and nothing else:
/// of all arguments an exchange may have, a server compares that one.
pub(super) fn ledger(of: Option<LedgerId>) -> Exchange {
    let internal = ExchangeDeclareOptions { durable: true, internal: true, ..ExchangeDeclareOptions::default() };
    let arguments = of.map_or_else(FieldTable::default, |ledger| {
        table([("alternate-exchange", text(&format!("{LEDGER}.{ledger}")))])
    });
    exchange(LEDGER, ExchangeKind::Fanout, internal, arguments)
}

/// Every queue that one of ours needs: what all share, then its lanes and its results.
pub(super) fn all(queue: &Queue, models: &[ModelName], settings: &Settings) -> Vec<WantedQueue> {
    shared(settings).into_iter().chain(of_queue(queue, models, settings)).collect()
}

/// The queues that lanes of all queues share: what was rejected, and one per delay level.
fn shared(settings: &Settings) -> Vec<WantedQueue> {
    let dead = WantedQueue { name: DEAD.to_owned(), arguments: uncounted(settings), bindings: Vec::new() };
    let delays = settings.levels.iter().map(|level| {
        let mut arguments = dead_lettering(settings, IN);
        arguments.insert("x-message-ttl".into(), millis(*level));
        let by_level = table([("x-match", text("all")), names::delay_header(*level)]);
        let bindings = vec![Binding { exchange: DELAY.to_owned(), key: String::new(), arguments: by_level }];
        WantedQueue { name: names::delay_queue(*level), arguments, bindings }
    });
    std::iter::once(dead).chain(delays).collect()
}

/// The queues of one queue: its results, the lanes of jobs without a model of the topology, and of each of `models`.
pub(super) fn of_queue(queue: &Queue, models: &[ModelName], settings: &Settings) -> Vec<WantedQueue> {
    lanes(queue, models, settings).chain([results(queue, settings)]).collect()
}

/// The lanes of a queue.
pub(super) fn lanes(queue: &Queue, models: &[ModelName], settings: &Settings) -> impl Iterator<Item = WantedQueue> {
    super::lanes::of(queue, models).map(|one| lane(&one, settings))
}

/// A worker's hold: what it publishes there keeps the key of its lane and goes back to it when nobody holds it, once it
/// is as old as a lease: its time runs from when it was published, and until then the dead worker's claim stands anyway.
pub(super) fn hold(worker: &WorkerId, lease: Duration, settings: &Settings) -> (Exchange, WantedQueue) {
    let name = names::hold_name(worker);
    // The exchange goes with the queue, so that whoever cleans up has one thing to delete.
    let options = ExchangeDeclareOptions { durable: true, auto_delete: true, ..ExchangeDeclareOptions::default() };
    let mut arguments = dead_lettering(settings, IN);
    arguments.insert("x-message-ttl".into(), millis(lease.max(HOLD_TTL)));
    arguments.insert("x-consumer-timeout".into(), millis(CONSUMER_TIMEOUT));
    without_limit(&mut arguments, settings);
    let bindings = vec![Binding { exchange: name.clone(), key: String::new(), arguments: FieldTable::default() }];
    (exchange(&name, ExchangeKind::Fanout, options, FieldTable::default()), WantedQueue { name, arguments, bindings })
}

/// A quorum queue that is made to be deleted again; should nobody come to that, the server does it.
pub(super) fn passing(name: &str) -> WantedQueue {
    let arguments = table([("x-queue-type", text("quorum")), ("x-expires", millis(PASSING))]);
    WantedQueue { name: name.to_owned(), arguments, bindings: Vec::new() }
}

/// A lane with the ways from [`IN`] to it, and for one without a model those from [`REST`].
pub(super) fn lane(lane: &Lane, settings: &Settings) -> WantedQueue {
    let binding =
        |exchange: &str, key| Binding { exchange: exchange.to_owned(), key, arguments: FieldTable::default() };
    let mut bindings = vec![binding(IN, names::key(lane))];
    if lane.model.is_none() {
        bindings.push(binding(REST, names::any_model(&lane.queue, lane.band)));
        if lane.band == Band::Normal {
            bindings.push(binding(REST, names::bare_key(&lane.queue)));
        }
    }
    let mut arguments = dead_lettering(settings, "");
    arguments.insert("x-dead-letter-routing-key".into(), text(DEAD));
    arguments.insert("x-consumer-timeout".into(), millis(CONSUMER_TIMEOUT));
    without_limit(&mut arguments, settings);
    WantedQueue { name: names::lane_queue(lane), arguments, bindings }
}

fn results(queue: &Queue, settings: &Settings) -> WantedQueue {
    let mut arguments = uncounted(settings);
    arguments.insert("x-message-ttl".into(), millis(RESULT_TTL));
    arguments.insert("x-max-length-bytes".into(), AMQPValue::LongLongInt(RESULT_BYTES));
    arguments.insert("x-overflow".into(), text("drop-head"));
    WantedQueue { name: names::results_queue(queue), arguments, bindings: Vec::new() }
}

/// A queue that passes on what leaves it otherwise than by an acknowledgement, under the key it came with.
fn dead_lettering(settings: &Settings, exchange: &str) -> FieldTable {
    let mut arguments = table([kind(settings), ("x-dead-letter-exchange", text(exchange))]);
    if settings.queues == QueueType::Quorum {
        // It keeps a message until where it goes to has confirmed it, which needs this overflow.
        arguments.insert("x-dead-letter-strategy".into(), text("at-least-once"));
        arguments.insert("x-overflow".into(), text("reject-publish"));
    }
    arguments
}

/// A queue that keeps a message however often it was given back.
fn uncounted(settings: &Settings) -> FieldTable {
    let mut arguments = table([kind(settings)]);
    without_limit(&mut arguments, settings);
    arguments
}

/// Servers before 4.3 count what a worker gives back in order, and from 4.0 on drop a message at the 20th time.
fn without_limit(arguments: &mut FieldTable, settings: &Settings) {
    if settings.queues == QueueType::Quorum {
        arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(DELIVERIES));
    }
}

fn kind(settings: &Settings) -> (&'static str, AMQPValue) {
    let kind = match settings.queues {
        QueueType::Quorum => "quorum",
        QueueType::Classic => "classic",
    };
    ("x-queue-type", text(kind))
}

fn exchange(name: &str, kind: ExchangeKind, options: ExchangeDeclareOptions, arguments: FieldTable) -> Exchange {
    Exchange { name: name.to_owned(), kind, options, arguments }
}

fn table<const N: usize>(entries: [(&'static str, AMQPValue); N]) -> FieldTable {
    entries.into_iter().fold(FieldTable::default(), |mut table, (key, value)| {
        table.insert(key.into(), value);
        table
    })
}

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

fn millis(length: Duration) -> AMQPValue {
    AMQPValue::LongLongInt(i64::try_from(length.as_millis()).unwrap_or(i64::MAX))
}
