//! What a worker does beside its jobs: readings of the machine, reports of itself, and sweeps by one worker at a time.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use promptq_common::broker::{Broker, HoldKey, WorkerId};
use promptq_common::config;
use promptq_common::error::Result;
use promptq_common::ledger::{JobFilter, WorkerReport};
use promptq_common::record::State;
use promptq_common::store::Store;
use promptq_common::time::Timestamp;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use crate::admission::{self, Shortage};
use crate::rollup;
use crate::settings::Settings;
use crate::status::{BlockedBy, Board, Status};

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

/// Tells the ledger every few seconds that this worker lives, and what it does.
#[expect(clippy::infinite_loop, reason = "ends with the JoinSet that holds it")]
pub(crate) async fn reports(broker: Broker, settings: Settings, board: Board) {
    let (mut tick, started_at, host) = (every(REPORT), Timestamp::now(), config::host());
    loop {
        tick.tick().await;
        let report = report(&settings, &board.now(), started_at, &host);
        if let Err(error) = broker.ledger().report(&report).await {
            tracing::debug!(%error, "reporting failed; trying again");
        }
    }
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
    }
}

/// Wakes what earlier workers held back under a limit key: this one knows nothing against any key, and it may have been
/// started because a person has mended the account. What it finds shut all the same it holds back anew.
pub(crate) async fn wake_held(broker: Broker, settings: Settings) {
    let mut keys = BTreeSet::new();
    for (queue, _) in &settings.queues {
        let filter = JobFilter { queue: Some(queue.clone()), states: vec![State::Queued], ..JobFilter::default() };
        match broker.ledger().list(&filter, None, HELD).await {
            Ok(page) => keys.extend(page.items.into_iter().filter_map(|job| match job.hold {
                Some(HoldKey::Limit(key)) => Some(key),
                Some(HoldKey::Batch(_) | HoldKey::Budget(_)) | None => None,
            })),
            Err(error) => tracing::debug!(%error, %queue, "looking for held jobs failed; they wake by themselves"),
        }
    }
    for key in keys {
        if let Err(error) = broker.wake(&HoldKey::Limit(key)).await {
            tracing::debug!(%error, "waking held jobs failed; they wake by themselves");
        }
    }
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

/// Once a day, deletes stored answers that no record can name any more: what a death between storing an answer and its
/// record has left, or one between forgetting a record and deleting its answer.
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
    use promptq_common::error::Kind;
    use promptq_common::job::{JobId, Queue};
    use promptq_common::outcome::Body;
    use tokio::time::Instant;

    use super::*;

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
