//! How many unanswered deliveries each lane queue may have at a worker: pure arithmetic.

use std::time::Duration;

/// What is known of one lane queue.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lane {
    /// Whether the worker takes anything from it.
    pub(super) open: bool,
    /// Whether it delivered something lately that could be started.
    pub(super) active: bool,
    /// Whether it delivered something lately that had to be passed on.
    pub(super) passed: bool,
    /// Jobs of it that run here.
    pub(super) running: u32,
    /// How much of the worker it is to have beside others: its queue's weight times its band's.
    pub(super) weight: u32,
}

/// What is known of the worker.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Worker {
    /// Jobs it could start now.
    pub(super) free: u32,
    /// Jobs it can run at once.
    pub(super) slots: u32,
    /// How long its jobs take on average.
    pub(super) usual: Duration,
    /// How large they are on average, in bytes.
    pub(super) bytes: usize,
}

/// A lane that delivered within this is active. Protocol, section 2.
pub(super) const ACTIVE: Duration = Duration::from_secs(2);
/// Jobs shorter than this are fetched ahead, as many again as the worker has slots: the way to the server and back would
/// be a good part of what they take. Longer ones stay where an idle worker can have them.
const SHORT: Duration = Duration::from_secs(1);
/// So many messages of a lane that have to wait elsewhere are passed on at once, none of which waits for another: enough
/// that a confirm of some 20 ms leaves 10,000 a second, more than a server takes.
const PASSING: u32 = 200;
/// Deliveries that nobody has started take at most about so much memory.
const AHEAD_BYTES: usize = 64 << 20;

/// The prefetch of each lane; `None` for one that is closed.
pub(super) fn prefetch(worker: &Worker, lanes: &[Lane]) -> Vec<Option<u16>> {
    let active = lanes.iter().filter(|lane| lane.open && lane.active).map(|lane| u64::from(lane.weight)).sum::<u64>();
    let ahead = if worker.usual < SHORT { worker.slots } else { 0 };
    let fits = AHEAD_BYTES / worker.bytes.max(1);
    let unstarted = (worker.free + ahead).min(u32::try_from(fits).unwrap_or(u32::MAX));
    let share = |lane: &Lane| (u64::from(unstarted) * u64::from(lane.weight)).div_ceil(active.max(1)).max(1);
    let passing = PASSING.min(u32::try_from(fits).unwrap_or(u32::MAX));
    let one = |lane: &Lane| {
        let started = u64::from(lane.running) + if lane.active { share(lane) } else { 1 };
        let room = started + if lane.passed { u64::from(passing) } else { 0 };
        u16::try_from(room).unwrap_or(u16::MAX)
    };
    lanes.iter().map(|lane| lane.open.then(|| one(lane))).collect()
}

/// Whether a prefetch is so far from what it should be that consuming anew is worth it: always where what runs leaves no
/// room for the next job.
pub(super) fn is_off(now: u16, wanted: u16, running: u32) -> bool {
    let (now, wanted) = (u32::from(now), u32::from(wanted));
    wanted > now + now / 4 || wanted * 2 < now || wanted > now && now <= running
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Worker = Worker { free: 16, slots: 16, usual: Duration::from_secs(60), bytes: 1_000 };

    fn open(active: bool, running: u32) -> Lane {
        Lane { open: true, active, passed: false, running, weight: 3 }
    }

    #[test]
    fn lanes_that_deliver_share_the_free_slots_and_the_others_hold_one() {
        let lanes = [open(true, 0), open(false, 0), open(true, 0), Lane::default()];
        assert_eq!(prefetch(&LONG, &lanes), [Some(8), Some(1), Some(8), None]);
    }

    #[test]
    fn lanes_that_deliver_share_by_their_weight() {
        let lane = |weight| Lane { weight, ..open(true, 0) };
        let worker = Worker { free: 12, slots: 12, ..LONG };
        assert_eq!(prefetch(&worker, &[lane(8), lane(3), lane(1)]), [Some(8), Some(3), Some(1)]);
        assert_eq!(prefetch(&worker, &[lane(1), Lane { weight: 8, ..open(false, 0) }]), [Some(12), Some(1)]);
    }

    #[test]
    fn what_runs_does_not_keep_the_next_job_away() {
        let busy = Worker { free: 0, ..LONG };
        assert_eq!(prefetch(&busy, &[open(true, 16), open(false, 0)]), [Some(17), Some(1)]);
        let one_free = Worker { free: 1, ..LONG };
        assert_eq!(prefetch(&one_free, &[open(true, 15)]), [Some(16)]);
    }

    #[test]
    fn short_jobs_are_fetched_ahead_and_large_ones_are_not() {
        let short = Worker { free: 0, usual: Duration::from_millis(20), ..LONG };
        assert_eq!(prefetch(&short, &[open(true, 16)]), [Some(32)]);
        let large = Worker { bytes: 16 << 20, ..LONG };
        assert_eq!(prefetch(&large, &[open(true, 0)]), [Some(4)]);
    }

    #[test]
    fn what_has_to_be_passed_on_takes_nothing_from_what_can_be_started() {
        let early = Lane { passed: true, ..open(false, 0) };
        assert_eq!(prefetch(&LONG, &[early, open(true, 0)]), [Some(201), Some(16)]);
        let full = Worker { free: 0, ..LONG };
        assert_eq!(prefetch(&full, &[Lane { passed: true, ..open(true, 16) }]), [Some(217)]);
        let large = Worker { bytes: 16 << 20, ..LONG };
        assert_eq!(prefetch(&large, &[early]), [Some(5)]);
    }

    #[test]
    fn small_changes_are_not_worth_a_new_consumer() {
        assert!(!is_off(16, 17, 15) && !is_off(16, 8, 0) && !is_off(1, 1, 1));
        assert!(is_off(16, 21, 0) && is_off(16, 7, 0) && is_off(1, 2, 0));
        // Its slots would stay empty beside jobs that wait.
        assert!(is_off(16, 17, 16));
    }
}
