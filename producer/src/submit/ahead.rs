//! How far the enqueueing of a run goes ahead of its own workers. What waits long leaves every cache and is read from
//! the disk again, and until all of it is in, little else is written.

use std::time::Duration;

use promptq_worker::status::{Board, Status};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// Twice as many as the fastest workers end between two looks at what they show.
const FEW: u64 = 6_000;
/// While more than that wait, a window comes this often all the same: behind thousands of rows whose limit is shut may
/// stand those of another that is open.
const STEP: Duration = Duration::from_millis(50);

/// What the enqueueing of a run goes by.
#[derive(Debug)]
pub struct Ahead {
    shown: watch::Receiver<Status>,
    most: u64,
    step: Duration,
    next: Instant,
}

impl Ahead {
    /// Ahead of workers with so many slots, who show on this board what they have done.
    pub fn of(board: &Board, slots: u32) -> Self {
        Self { shown: board.watch(), most: FEW.max(2 * u64::from(slots)), step: STEP, next: Instant::now() }
    }

    /// Comes when a window may go behind so many new jobs. Cancel-safe.
    pub(super) async fn opens(&mut self, new: u64) {
        while new.saturating_sub(self.shown.borrow_and_update().finished.ended()) > self.most {
            tokio::select! {
                biased;
                () = sleep_until(self.next) => break,
                // Who has left ends nothing more; the run learns of that by itself.
                changed = self.shown.changed() => if changed.is_err() { break },
            }
        }
    }

    /// A window has gone.
    pub(super) fn went(&mut self) {
        self.next = Instant::now() + self.step;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use promptq_worker::status::Finished;
    use tokio::time::timeout;

    use super::*;
    use crate::submit::tests::{Fixture, rows};
    use crate::submit::{AT_ONCE, Terms, check, enqueue};

    fn ended(succeeded: u64, dead: u64) -> Status {
        Status { finished: Finished { succeeded, dead, ..Finished::default() }, ..Status::default() }
    }

    #[tokio::test]
    async fn a_submission_goes_no_further_ahead_than_it_is_told() {
        const WINDOWS: u64 = 6;
        let fixture = Fixture::new();
        let input = fixture.input(&rows(1..=WINDOWS * 1_000), &[]);
        let checked = check(&input, &fixture.broker, Terms::default(), None).await.unwrap();
        let (board, shown) = watch::channel(Status::default());
        let ahead = Ahead { shown, most: 0, step: Duration::from_secs(600), next: Instant::now() };
        let mut putting = Box::pin(enqueue(&input, &fixture.broker, Terms::default(), Some(&checked), Some(ahead)));
        timeout(Duration::from_secs(1), &mut putting).await.unwrap_err();
        let waiting = fixture.broker.ledger().batch(input.batch()).await.unwrap().unwrap().counts.total;
        assert!((1..=AT_ONCE as u64 * 1_000).contains(&waiting), "{waiting}");
        board.send_replace(ended(WINDOWS * 1_000, 0));
        assert_eq!(putting.await.unwrap().new, WINDOWS * 1_000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_window_goes_behind_few_that_wait_and_behind_many_now_and_then() {
        let (board, shown) = watch::channel(Status::default());
        let mut ahead = Ahead { shown, most: 10, step: STEP, next: Instant::now() };
        ahead.went();
        ahead.opens(10).now_or_never().unwrap();
        let shortly = STEP.mul_f64(0.9);
        timeout(shortly, ahead.opens(11)).await.unwrap_err();
        timeout(STEP, ahead.opens(11)).await.expect("at its time, though nothing has ended");
        ahead.went();
        timeout(shortly, ahead.opens(11)).await.unwrap_err();
        ahead.went();
        board.send_replace(ended(3, 2));
        ahead.opens(15).now_or_never().expect("those that ended wait no more");
        assert!(ahead.opens(16).now_or_never().is_none());
        drop(board);
        ahead.opens(16).now_or_never().expect("nobody is waited for who has left");
    }
}
