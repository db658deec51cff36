//! Keeps a lease while something runs under it, and says when it is no longer to be kept.

use std::time::Duration;

use promptq_common::broker::{Beat, Lease};
use tokio::time::{Instant, sleep, timeout};

/// Why a lease is not kept any longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Another copy has ended the job.
    Ended,
    /// A user cancelled it.
    Cancelled,
    /// Somebody else has it, or may have: no beat got through for the whole length of the lease.
    Lost,
}

/// How a lease is kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rhythm {
    /// Between two beats.
    pub(crate) every: Duration,
    /// How long the lease lasts without one.
    pub(crate) lease: Duration,
}

/// Beats until the lease is not to be kept any longer. The first beat comes after one interval, so that short jobs
/// cost none; each interval is up to a fifth shorter by chance, so that jobs started together do not beat together.
/// A beat that fails is repeated until the lease's own time is over. Dropping it stops the beating.
pub(crate) async fn keep(lease: &Lease, rhythm: Rhythm) -> Fate {
    let mut kept = Instant::now();
    loop {
        sleep(rhythm.every.mul_f64(1.0 - rand::random::<f64>() / 5.0)).await;
        let mut pause = Duration::from_millis(250);
        loop {
            let left = rhythm.lease.saturating_sub(kept.elapsed());
            if left.is_zero() {
                return Fate::Lost;
            }
            let asked = Instant::now();
            match timeout(left, lease.beat()).await {
                Ok(Ok(Beat::Kept)) => {
                    kept = asked;
                    break;
                }
                Ok(Ok(Beat::Ended)) => return Fate::Ended,
                Ok(Ok(Beat::Cancelled)) => return Fate::Cancelled,
                Ok(Ok(Beat::Lost)) | Err(_) => return Fate::Lost,
                Ok(Err(error)) => tracing::warn!(%error, lease = %lease.id(), "a heartbeat failed; trying again"),
            }
            sleep(pause.min(rhythm.lease.saturating_sub(kept.elapsed()))).await;
            pause = (pause * 2).min(rhythm.every);
        }
    }
}

/// One beat, between two things that are each kept by their own; `kept` is when the lease was kept last. Whether it is now;
/// if not, the next one may do.
///
/// # Errors
/// As [`keep`]: why the lease is not to be kept any longer.
pub(crate) async fn once(lease: &Lease, rhythm: Rhythm, kept: Instant) -> Result<bool, Fate> {
    let left = rhythm.lease.saturating_sub(kept.elapsed());
    match timeout(left, lease.beat()).await {
        Ok(Ok(Beat::Kept)) => Ok(true),
        Ok(Ok(Beat::Ended)) => Err(Fate::Ended),
        Ok(Ok(Beat::Cancelled)) => Err(Fate::Cancelled),
        Ok(Ok(Beat::Lost)) | Err(_) => Err(Fate::Lost),
        Ok(Err(error)) => {
            tracing::warn!(%error, lease = %lease.id(), "a heartbeat failed; trying again");
            Ok(false)
        }
    }
}

/// Runs `work` to its end, beating meanwhile; a lease that is lost only stops the beating.
pub(crate) async fn during<T>(lease: &Lease, rhythm: Rhythm, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    tokio::select! {
        biased;
        done = &mut work => done,
        _ = keep(lease, rhythm) => work.await,
    }
}
