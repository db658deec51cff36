//! What a worker does beside its jobs: readings of the machine, reports of itself, and sweeps by one worker at a time.

use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use promptq_common::broker::{Broker, HoldKey, WorkerId};
use promptq_common::config;
use promptq_common::error::{Kind, Result};
use promptq_common::job::Queue;
use promptq_common::ledger::{HELD_KEYS, HELD_LANES, HeldKey, JobFilter, WorkerReport};
use promptq_common::limits::{Bounded, Cap, CapView, Held, Limits, Measure, forget, look};
use promptq_common::outcome::FailureClass;
use promptq_common::record::State;
use promptq_common::store::{REUSE_FOLDER, Store};
use promptq_common::telemetry::health::Health;
use promptq_common::time::Timestamp;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use crate::admission::{self, Shortage};
use crate::meter::Meter;
use crate::rollup;
use crate::settings::Settings;
use crate::status::{Blocked, BlockedBy, Board, Status};

const DAY: Duration = Duration::from_secs(86_400);
/// Forgotten answers deleted in one go: their names are about 1 MB.
const ORPHANS: usize = 10_000;
const READ: Duration = Duration::from_secs(1);
const REPORT: Duration = Duration::from_secs(10);
const SWEEP: Duration = Duration::from_secs(30);
/// Two sweeps and a half: a holder that died is followed within that.
const LOCK: Duration = Duration::from_secs(75);
/// Waiting jobs looked at for hold keys, a queue: a key that holds jobs back holds many.
const HELD: usize = 1_000;
const LOCK_NAME: &str = "upkeep";
/// The most characters reported of what the other side said of a held key.
const DETAIL: usize = 300;
/// Sweeps in a row while there is more to do, so that reports of others are not held up.
const ROUNDS: u32 = 100;

/// Reads the machine each second, and tells what it is short of.
pub(crate) async fn sample(disks: Vec<PathBuf>, shortage: watch::Sender<Option<Shortage>>) {
    let mut tick = every(READ);
    loop {
        tick.tick().await;
        let disks = disks.clone();
        let Ok(readings) = tokio::task::spawn_blocking(move || admission::read(&disks)).await else { return };
        let found = admission::judge(&readings, shortage.borrow().as_ref());
        if let (Some(Shortage::Memory(figure) | Shortage::Disk(figure)), None) = (&found, &*shortage.borrow()) {
            tracing::warn!(figure, "taking no more jobs: this machine runs short");
        }
        shortage.send_replace(found);
        if shortage.is_closed() {
            return;
        }
    }
}

/// Tells the ledger every few seconds that this worker lives, and what it does; sooner when a provider or an account
/// fails or works again, or money is spent or there again, as only people may mend that.
pub(crate) async fn reports(broker: Broker, limits: Limits, settings: Settings, (board, meter): (Board, Arc<Meter>)) {
    let (mut tick, started_at, host) = (every(REPORT), Timestamp::now(), config::host());
    let (mut shown, mut told) = (board.watch(), BTreeSet::new());
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = turned(&mut shown, &told) => {}
        }
        let status = board.now();
        told = failing(&status);
        let held = limits.held().into_iter().map(|held| held_key(held, &limits));
        let bounded = limits.bounded().into_iter().map(|bounded| bounded_key(bounded, &limits));
        let held = held.chain(bounded).take(HELD_KEYS).collect();
        let report = WorkerReport { held, paces: meter.paces(), ..report(&settings, &status, started_at, &host) };
        if let Err(error) = broker.ledger().report(&report).await {
            tracing::debug!(%error, "reporting failed; trying again");
        }
        // What fails and works again all the time is told once a second.
        tokio::time::sleep(READ).await;
    }
}

/// Tells probes whether all of this worker's queues are paused: it takes nothing then.
#[expect(clippy::infinite_loop, reason = "ends with the JoinSet that holds it")]
pub(crate) async fn pauses(broker: Broker, settings: Settings, health: Health) {
    let mut tick = every(REPORT);
    loop {
        tick.tick().await;
        let mut paused = Vec::new();
        for (queue, _) in &settings.queues {
            match broker.paused(queue).await {
                Ok(Some(_)) => paused.push(queue.as_str()),
                Ok(None) | Err(_) => break,
            }
        }
        let is_idle = paused.len() == settings.queues.len();
        let why = format!("paused: {}", paused.join(", "));
        health.report("queues", if is_idle { Err(&why) } else { Ok(()) });
    }
}

/// Waits until other keys fail than were told of. Cancel-safe.
async fn turned(shown: &mut watch::Receiver<Status>, told: &BTreeSet<String>) {
    // An error means that nothing is shown any more.
    if shown.wait_for(|status| failing(status) != *told).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// The keys whose provider or account does not work, or that have no money left.
fn failing(status: &Status) -> BTreeSet<String> {
    let key = |blocked: &Blocked| match &blocked.by {
        BlockedBy::Limit { key, class: FailureClass::Account | FailureClass::Capacity } => Some(key.clone()),
        BlockedBy::Limit { .. } | BlockedBy::Memory | BlockedBy::Disk | BlockedBy::Settling | BlockedBy::Broker => None,
    };
    status.blocked.iter().filter_map(key).chain(status.spent.iter().cloned()).collect()
}

fn held_key(held: Held, limits: &Limits) -> HeldKey {
    let (lanes, detail) = (lanes_behind(&held.key, limits), held.detail.chars().take(DETAIL).collect());
    let Held { key, class, since, until, probing, cap, .. } = held;
    HeldKey { key, class, detail, since, until, probing, lanes, at_once: None, cap }
}

fn bounded_key(bounded: Bounded, limits: &Limits) -> HeldKey {
    HeldKey {
        lanes: lanes_behind(&bounded.key, limits),
        class: FailureClass::Capacity,
        detail: "it has too much to do".to_owned(),
        since: bounded.since,
        until: Timestamp::now(),
        probing: false,
        key: bounded.key,
        at_once: Some(bounded.at_once),
        cap: None,
    }
}

fn lanes_behind(key: &str, limits: &Limits) -> Vec<(Queue, Option<String>)> {
    let lanes = limits.lanes_behind(key, HELD_LANES).into_iter();
    lanes.map(|(queue, model)| (queue, model.map(|model| model.as_str().to_owned()))).collect()
}

/// Asks for this worker's parts of the limits, for what people have released, and for what others were refused.
pub(crate) async fn limits(broker: Broker, limits: Limits, share: f64) {
    let ledger = broker.ledger();
    tokio::join!(limits.keep_asking(ledger, share), limits.keep_opening(ledger), limits.keep_freezing(ledger));
}

fn report(settings: &Settings, status: &Status, started_at: Timestamp, host: &str) -> WorkerReport {
    WorkerReport {
        id: settings.worker.clone(),
        host: host.to_owned(),
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at,
        seen_at: Timestamp::now(),
        slots: settings.concurrency,
        running: status.running,
        queues: settings.queues.iter().map(|(queue, weight)| format!("{queue}:{weight}")).collect(),
        draining: status.draining,
        blocked: status.blocked.first().map(|blocked| match &blocked.by {
            BlockedBy::Limit { key, class } => format!("{class} {key}: {}", blocked.detail),
            BlockedBy::Memory | BlockedBy::Disk | BlockedBy::Settling | BlockedBy::Broker => blocked.detail.clone(),
        }),
        held: Vec::new(),
        paces: Vec::new(),
    }
}

/// Wakes what earlier workers held back under a limit key: this one knows nothing against any key, and it may have been
/// started because a person has mended the account. What it finds shut all the same it holds back anew. Those that wait for
/// flex room have turns that come within minutes; however many they are, they would be leased together in vain.
pub(crate) async fn wake_held(broker: Broker, settings: Settings) {
    let mut keys = HashSet::new();
    for (queue, _) in &settings.queues {
        let filter = JobFilter { queue: Some(queue.clone()), states: vec![State::Queued], ..JobFilter::default() };
        match broker.ledger().list(&filter, None, HELD).await {
            Ok(page) => {
                let holds = page.items.into_iter().filter_map(|job| job.hold);
                keys.extend(holds.filter(|hold| hold.flex().is_none()));
            }
            Err(error) => tracing::debug!(%error, %queue, "looking for held jobs failed; they wake by themselves"),
        }
    }
    for key in keys {
        if is_spent(&broker, &settings, &key).await {
            continue;
        }
        if let Err(error) = broker.wake(&key).await {
            tracing::debug!(%error, "waking held jobs failed; they wake by themselves");
        }
    }
}

/// Whether the money that jobs wait for is spent, by this worker's settings too: they would all be leased in vain.
async fn is_spent(broker: &Broker, settings: &Settings, hold: &HoldKey) -> bool {
    let Ok(Some(view)) = look(broker.ledger(), &hold.limit_key()).await else { return false };
    let is_meant = |own: &Cap, cap: &CapView| *own == Cap { most: cap.configured, ..cap.cap };
    let stands = |cap: &&CapView| match hold {
        _ if cap.cap.measure != Measure::Usd => false,
        HoldKey::Batch(_) => true,
        HoldKey::Budget(name) => {
            settings.budgets.iter().any(|(queue, own)| queue.as_str() == name && is_meant(own, cap))
        }
        HoldKey::Limit(key) => {
            settings.limits.iter().any(|rule| rule.key == *key && rule.caps.iter().any(|own| is_meant(own, cap)))
        }
    };
    let is_used_up = |cap: &CapView| cap.used.saturating_add(cap.held) >= cap.cap.most - cap.cap.most / 20;
    let is_own = !matches!(hold, HoldKey::Limit(_));
    view.caps.iter().filter(stands).any(|cap| view.lacks.is_some() || (is_own && is_used_up(cap)))
}

/// Sweeps, rolls batches up and deletes forgotten outputs, whenever this worker holds the lock.
#[expect(clippy::infinite_loop, reason = "ends with the JoinSet that holds it")]
pub(crate) async fn sweeps(broker: Broker, store: Option<Store>, settings: Settings) {
    let mut tick = every(SWEEP);
    loop {
        tick.tick().await;
        if let Err(error) = sweep(&broker, store.as_ref(), &settings).await {
            tracing::debug!(%error, "upkeep failed; trying again");
        }
        let Some(store) = store.as_ref().filter(|_| settings.roll_up) else { continue };
        if let Err(error) = rollup::step(&broker, store, &settings.worker).await {
            tracing::warn!(%error, "rolling batches up failed; trying again");
        }
    }
}

/// Once a day, deletes stored answers that no record can name any more (what a death between storing an answer and its
/// record has left, or one between forgetting a record and deleting its answer), and those too old to be given again.
#[expect(clippy::infinite_loop, reason = "ends with the JoinSet that holds it")]
pub(crate) async fn orphans(broker: Broker, store: Store, settings: Settings) {
    let mut tick = every(DAY);
    loop {
        tick.tick().await;
        if let Err(error) = delete_orphans(&broker, &store, &settings).await {
            tracing::warn!(%error, "deleting forgotten answers failed; trying again tomorrow");
        }
    }
}

async fn delete_orphans(broker: &Broker, store: &Store, settings: &Settings) -> Result<()> {
    // Kept until it runs out: other workers need not look again today.
    if !broker.ledger().lock("orphans", &settings.worker, DAY.mul_f64(0.9)).await? {
        return Ok(());
    }
    let before = Timestamp::now() - settings.retention.tombstones;
    while store.delete_older("out", before, ORPHANS).await? >= ORPHANS {}
    let before = Timestamp::now() - settings.reuse_kept;
    while store.delete_older(REUSE_FOLDER, before, ORPHANS).await? >= ORPHANS {}
    Ok(())
}

/// Once a day, forgets the caps on what batches cost that are past their retention, and keys that were frozen once.
#[expect(clippy::infinite_loop, reason = "ends with the JoinSet that holds it")]
pub(crate) async fn caps(broker: Broker, settings: Settings) {
    let mut tick = every(DAY);
    loop {
        tick.tick().await;
        if let Err(error) = forget_caps(&broker, &settings).await {
            tracing::debug!(%error, "forgetting the caps of old batches failed; trying again tomorrow");
        }
    }
}

async fn forget_caps(broker: &Broker, settings: &Settings) -> Result<()> {
    let ledger = broker.ledger();
    let keys = match ledger.limits().await {
        Err(error) if error.kind() == Kind::Unsupported => return Ok(()),
        keys => keys?,
    };
    // Kept until it runs out: other workers need not look again today.
    if !ledger.lock("caps", &settings.worker, DAY.mul_f64(0.9)).await? {
        return Ok(());
    }
    for key in keys {
        let Ok(HoldKey::Batch(name)) = key.parse() else {
            if let Err(error) = forget(ledger, &key).await {
                tracing::debug!(%error, %key, "what is shared of a limit cannot be read; it stays");
            }
            continue;
        };
        if ledger.batch(&name).await?.is_none() {
            let kept = ledger.limit(&key).await?;
            ledger.swap_limit(&key, &kept.bytes, &[]).await?;
        }
    }
    Ok(())
}

async fn sweep(broker: &Broker, store: Option<&Store>, settings: &Settings) -> Result<()> {
    for _ in 0..ROUNDS {
        if !broker.ledger().lock(LOCK_NAME, &settings.worker, LOCK).await? {
            return Ok(());
        }
        let swept = broker.sweep(&settings.retention).await?;
        if let Some(store) = store.filter(|_| !swept.outputs.is_empty()) {
            store.delete(&swept.outputs).await?;
        }
        if !swept.more {
            return Ok(());
        }
    }
    Ok(())
}

/// Tells that this worker has left, and lets another do the upkeep at once. Its reports must have ended.
pub(crate) async fn leave(broker: &Broker, worker: &WorkerId) {
    if let Err(error) = broker.ledger().leave(worker).await {
        tracing::debug!(%error, "this worker counts as alive for a minute more");
    }
    if let Err(error) = broker.ledger().unlock(LOCK_NAME, worker).await {
        tracing::debug!(%error, "the upkeep's lock runs out by itself");
    }
}

fn every(length: Duration) -> tokio::time::Interval {
    let mut tick = interval(length);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick
}

#[cfg(test)]
mod tests {
    use promptq_common::broker::LeaseId;
    use promptq_common::job::JobId;
    use promptq_common::outcome::Body;
    use tokio::time::Instant;

    use super::*;

    #[tokio::test]
    async fn the_cap_of_a_batch_goes_with_it() {
        let broker = Broker::memory();
        let settings = Settings::standard(WorkerId::random("w"), vec![(Queue::standard(), 1)]);
        let (gone, here) = ("batch:gone", "batch:here");
        for key in [gone, here, "acme"] {
            assert!(broker.ledger().swap_limit(key, &[], &[1]).await.unwrap());
        }
        let name = promptq_common::job::BatchName::new("here").unwrap();
        broker.ledger().seal(&name, &Queue::standard()).await.unwrap();
        forget_caps(&broker, &settings).await.unwrap();
        assert_eq!(broker.ledger().limits().await.unwrap(), ["acme", here]);
        broker.ledger().swap_limit(gone, &[], &[1]).await.unwrap();
        let other = Settings { worker: WorkerId::random("v"), ..settings };
        forget_caps(&broker, &other).await.unwrap();
        assert_eq!(broker.ledger().limits().await.unwrap().len(), 3, "somebody has looked today");
    }

    #[tokio::test]
    async fn answers_kept_for_others_go_by_their_own_age() {
        let (broker, store) = (Broker::memory(), Store::memory());
        store.put("reuse/x", Vec::new()).await.unwrap();
        let settings = |reuse_kept| {
            let settings = Settings::standard(WorkerId::random("w"), vec![(Queue::standard(), 1)]);
            Settings { reuse_kept, ..settings }
        };
        let first = settings(DAY);
        delete_orphans(&broker, &store, &first).await.unwrap();
        let old = Settings { worker: first.worker, ..settings(Duration::ZERO) };
        let there = async || store.get("reuse/x", 1).await.unwrap().is_some();
        assert!(there().await, "young enough");
        let begun = Instant::now();
        while there().await {
            assert!(begun.elapsed() < Duration::from_secs(5), "it stays");
            delete_orphans(&broker, &store, &old).await.unwrap();
        }
    }

    #[tokio::test]
    async fn answers_that_no_record_can_name_go_by_age_once_a_day() {
        let (broker, store) = (Broker::memory(), Store::memory());
        let young = store.put_output(JobId::fresh(), LeaseId::random(), &Body::Text("x".into())).await.unwrap();
        let settings = |tombstones| {
            let mut settings = Settings::standard(WorkerId::random("w"), vec![(Queue::standard(), 1)]);
            settings.retention.tombstones = tombstones;
            settings
        };
        let first = settings(DAY);
        delete_orphans(&broker, &store, &first).await.unwrap();
        assert!(store.get_output(&young).await.is_ok(), "a record may still come to name it");
        delete_orphans(&broker, &store, &settings(Duration::ZERO)).await.unwrap();
        assert!(store.get_output(&young).await.is_ok(), "another worker has looked today");
        let old = Settings { worker: first.worker, ..settings(Duration::ZERO) };
        let begun = Instant::now();
        // Old is a millisecond from now.
        while store.get_output(&young).await.map_err(|error| error.kind()) != Err(Kind::NotFound) {
            assert!(begun.elapsed() < Duration::from_secs(5), "it stays");
            delete_orphans(&broker, &store, &old).await.unwrap();
        }
    }
}
