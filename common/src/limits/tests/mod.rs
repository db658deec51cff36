//! Tests of a worker's limits: its gates, what it shares over a ledger, and by which rules; a fleet simulated.

mod changes;
mod fleet;
mod frozen;
mod gates;
mod learning;
mod money;
mod nested;
mod shared;
mod sharing;
mod simulation;

use crate::broker::memory::Memory;
use crate::job::{Band, Lane, ModelName, Queue};
use crate::limits::{Counts, Denied, Limits, Pass, Size};

fn lane(model: &str) -> Lane {
    Lane { queue: Queue::standard(), model: Some(ModelName::new(model)), band: Band::Normal }
}

/// Does something while these workers ask for their parts, by such a share where there is no ledger, and for what was
/// released, and share what they were refused for.
async fn with<T>(ledger: &Memory, share: f64, workers: &[&Limits], doing: impl Future<Output = T>) -> T {
    let asking = workers.iter().map(|limits| async move {
        tokio::join!(limits.keep_asking(ledger, share), limits.keep_opening(ledger), limits.keep_freezing(ledger));
    });
    tokio::select! {
        done = doing => done,
        _ = futures_util::future::join_all(asking) => panic!("they go on asking"),
    }
}

/// A call of 200 tokens to `acme/MODEL`, as far as its reservation.
async fn reserve(limits: &Limits, model: &str) -> Result<Pass, (Denied, String)> {
    let (lane, key) = (lane(model), format!("acme/{model}"));
    limits.seen(std::iter::once(&lane), |_| Some(key.clone()));
    let pass = limits.admit_call(&lane, &key, Counts::default()).expect("its gate is open");
    limits.reserve(pass, &lane, Size { bytes: 720, max_tokens: Some(1) }).await
}
