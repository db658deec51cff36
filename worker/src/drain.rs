//! Leaving: what runs may finish in time, what does not is handed back, and nothing is waited for longer than said.

use std::time::Duration;

use promptq_common::broker::Consumer;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::intake::Intake;
use crate::stop::{Phase, Stop};
use crate::upkeep;
use crate::{Drained, StopReason};

/// After the drain time, jobs that were cut may settle for so long: with the default of 25 s, what is left of the 30 s
/// that a container is commonly given.
const HAND_BACK: Duration = Duration::from_secs(4);
/// Told to leave at once, they may for so long: a person waits at the keyboard, and each job dropped unsettled would
/// count a death.
const AT_ONCE: Duration = Duration::from_secs(1);
/// The subscription and the locks are given back, and the worker's report taken back, within this, or left to run out.
const LET_GO: Duration = Duration::from_secs(2);
/// The same when told to leave at once.
const LET_GO_AT_ONCE: Duration = Duration::from_millis(250);

/// Sees every running job off.
pub(crate) async fn drain(
    mut intake: Intake,
    consumer: Consumer,
    reason: StopReason,
    (stop, cut): (&Stop, watch::Sender<bool>),
) -> Drained {
    intake.draining = true;
    intake.show();
    let mut closing = JoinSet::new();
    closing.spawn(async move {
        if let Err(error) = consumer.close().await {
            tracing::warn!(%error, "giving back what was not started failed; its leases run out");
        }
    });
    let mut phase = stop.watch();
    let mut reason = reason;
    let mut handed_back = 0;
    let mut deadline = Instant::now() + intake.desk.settings.drain_timeout;
    let (mut out_of_time, mut at_once) = (false, false);
    while !intake.running.is_empty() {
        tokio::select! {
            biased;
            _ = phase.wait_for(|phase| *phase == Phase::Stopping), if !at_once => {
                (reason, out_of_time, at_once) = (StopReason::Now, true, true);
                deadline = Instant::now() + AT_ONCE;
                cut.send_replace(true);
            }
            Some(finished) = intake.running.join_next() => {
                handed_back += u64::from(matches!(finished, Ok(crate::execute::Did::Cut)));
                intake.note(finished);
                intake.show_soon();
            }
            _ = intake.tick.tick() => intake.show(),
            () = sleep_until(deadline) => {
                if out_of_time {
                    break;
                }
                out_of_time = true;
                deadline = Instant::now() + HAND_BACK;
                cut.send_replace(true);
            }
        }
    }
    handed_back += intake.running.len() as u64;
    if reason == StopReason::Signal && out_of_time {
        reason = StopReason::DeadlinePassed;
    }
    intake.running.shutdown().await;
    let_go(&mut intake, closing, if reason == StopReason::Now { LET_GO_AT_ONCE } else { LET_GO }).await;
    intake.show();
    intake.desk.meter.leaves(reason);
    Drained { finished: intake.finished, handed_back, reason }
}

/// Leaves without ever having taken a job.
pub(crate) async fn unsubscribed(mut intake: Intake) {
    let_go(&mut intake, JoinSet::new(), LET_GO).await;
}

/// Ends the chores, the reports among them, and gives back what is held in this worker's name.
async fn let_go(intake: &mut Intake, mut closing: JoinSet<()>, within: Duration) {
    intake.chores.shutdown().await;
    let end = Instant::now() + within;
    let closed = timeout_at(end, async { while closing.join_next().await.is_some() {} }).await;
    let given_back = timeout_at(end, intake.desk.limits.stop_asking(intake.broker.ledger())).await;
    let left = timeout_at(end, upkeep::leave(&intake.broker, &intake.desk.settings.worker)).await;
    if closed.is_err() || left.is_err() || given_back.is_err() {
        tracing::warn!("the broker did not take back the subscription in time; its leases run out");
    }
}
