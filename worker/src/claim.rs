//! The ledger's word that a leased job may run now, and what to do with one that may not.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use promptq_common::broker::{Claim, Lease};
use promptq_common::outcome::{Failure, FailureClass};
use promptq_common::time::Timestamp;
use tokio::time::timeout;

use crate::execute::{Desk, Step, cut};
use crate::verdict::{Case, release};

/// How long a job of a paused queue is kept away, as long as a pause takes to be seen everywhere.
const PAUSED: Duration = Duration::from_secs(5);

/// Asks the ledger whether this lease may run the job now; repeats what fails until the lease's own time is over.
pub(crate) async fn claim(case: &Case<'_>, lease: &Lease, desk: &Desk) -> Step {
    let mut asking = std::pin::pin!(lease.claim());
    // Mostly it is known at once; only else there is something to wait for.
    let first = poll_fn(|cx| Poll::Ready(asking.as_mut().poll(cx))).await;
    let claim = if let Poll::Ready(Ok(claim)) = first {
        Ok(claim)
    } else {
        let asked = async {
            let mut pause = Duration::from_millis(100);
            let mut answer = if let Poll::Ready(answer) = first { answer } else { asking.await };
            loop {
                match answer {
                    Ok(claim) => return claim,
                    Err(error) => tracing::warn!(%error, job = %case.head.id, "a claim failed; trying again"),
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(2));
                answer = lease.claim().await;
            }
        };
        let within = timeout(desk.settings.lease, asked);
        let claimed = async {
            tokio::select! { claim = within => Some(claim), () = cut(desk) => None }
        };
        let Some(claim) = Box::pin(claimed).await else { return Step::Cut(release(Duration::ZERO, None)) };
        claim
    };
    match claim {
        Ok(Claim::Fresh { deaths }) if deaths >= desk.settings.max_deaths => {
            let detail = format!("{deaths} workers died, or lost their lease, while running it");
            Step::Settle(case.lost(deaths, &Failure::new(FailureClass::Crashed, "crash_loop", &detail)))
        }
        Ok(Claim::Fresh { deaths }) => Step::Go { deaths },
        Ok(Claim::Cancelled) => Step::Settle(case.cancelled(None)),
        Ok(Claim::Paused { .. }) => Step::Settle(release(PAUSED, None)),
        Ok(Claim::Taken { until }) => {
            let wait = until.since(Timestamp::now()).max(Duration::from_secs(1));
            Step::Settle(release(wait, None))
        }
        Ok(Claim::Ended(_) | Claim::Stale) | Err(_) => Step::Drop,
    }
}
