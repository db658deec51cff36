//! What a script is made of, and how scripts come about. Numbers choose among what is there, modulo how much there is.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

/// One step.
#[derive(Clone, Copy, Debug)]
pub(super) enum Op {
    Enqueue {
        key: Option<u8>,
        body: u8,
        batch: u8,
        delayed: bool,
    },
    Lease {
        worker: usize,
        count: u32,
    },
    /// Leases with a lease that has run out by the next step.
    Lapse {
        count: u32,
    },
    Beat {
        lease: usize,
    },
    Claim {
        lease: usize,
    },
    Settle {
        lease: usize,
        how: How,
    },
    Cancel {
        job: usize,
    },
    CancelBatch {
        batch: u8,
    },
    PauseAndResume,
    Purge,
    Redrive {
        job: usize,
    },
    Wake {
        key: u8,
    },
    Drop {
        job: usize,
    },
    Recover {
        worker: usize,
    },
}

/// A verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    Succeeded,
    Dead,
    Cancelled,
    RetryNow,
    RetryLater,
    ReleaseNow,
    Hold(u8),
}

pub(super) fn script(steps: usize) -> impl Strategy<Value = Vec<Op>> {
    vec(op(), 1..=steps)
}

fn op() -> impl Strategy<Value = Op> {
    let any = || 0..1_000_usize;
    prop_oneof![
        8 => (proptest::option::of(0..4_u8), 0..2_u8, 0..3_u8, proptest::bool::weighted(0.15))
            .prop_map(|(key, body, batch, delayed)| Op::Enqueue { key, body, batch, delayed }),
        6 => (0..2_usize, 1..4_u32).prop_map(|(worker, count)| Op::Lease { worker, count }),
        2 => (1..3_u32).prop_map(|count| Op::Lapse { count }),
        2 => any().prop_map(|lease| Op::Beat { lease }),
        2 => any().prop_map(|lease| Op::Claim { lease }),
        12 => (any(), how()).prop_map(|(lease, how)| Op::Settle { lease, how }),
        2 => any().prop_map(|job| Op::Cancel { job }),
        1 => (0..3_u8).prop_map(|batch| Op::CancelBatch { batch }),
        1 => Just(Op::PauseAndResume),
        1 => Just(Op::Purge),
        4 => any().prop_map(|job| Op::Redrive { job }),
        2 => (0..2_u8).prop_map(|key| Op::Wake { key }),
        1 => any().prop_map(|job| Op::Drop { job }),
        1 => (0..2_usize).prop_map(|worker| Op::Recover { worker }),
    ]
}

fn how() -> impl Strategy<Value = How> {
    let plain = vec![How::Succeeded, How::Succeeded, How::Dead, How::Dead, How::Cancelled, How::RetryNow];
    prop_oneof![
        6 => select(plain),
        3 => select(vec![How::RetryLater, How::ReleaseNow]),
        2 => (0..2_u8).prop_map(How::Hold),
    ]
}
