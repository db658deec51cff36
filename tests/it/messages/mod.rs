//! Random lives of messages over a ledger that serves another broker, beside a small independent model: any copy may
//! surface again at any time, claims run out, retries and redrives die between their steps. After each step every job is
//! looked at: it is in one state, no success is replaced, some copy of what waits may still run, batch counts are sums.

mod crash;
mod script;
mod world;

use promptq_tests::backends::Fixture;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use script::Script;

/// How many steps a script has; long enough for a job to die, be redriven and end again.
const STEPS: usize = 50;

/// How many scripts run unless `PROPTEST_CASES` says otherwise.
const CASES: u32 = 64;

/// One step. Numbers choose among what is there, modulo how much there is.
#[derive(Clone, Copy, Debug)]
enum Op {
    /// A job of a batch: registered, published once or twice, and confirmed or not.
    Register {
        batch: u8,
        copies: usize,
        confirm: bool,
    },
    /// A job that is published without having been registered.
    Publish,
    Open {
        copy: usize,
        worker: usize,
        brief: bool,
    },
    Beat {
        lease: usize,
    },
    Settle {
        lease: usize,
        how: How,
    },
    /// A retry whose worker dies between publishing the copy and ending its claim.
    HalfRetry {
        lease: usize,
    },
    Keep {
        copy: usize,
    },
    Announce {
        job: usize,
    },
    Cancel {
        job: usize,
    },
    CancelBatch {
        batch: u8,
    },
    Purge,
    /// A redrive that dies after its first step, after its second, or not.
    Raise {
        job: usize,
        steps: u8,
    },
    Drop {
        job: usize,
    },
    Recover {
        worker: usize,
    },
    Sweep,
}

/// A verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Succeeded,
    Dead,
    Cancelled,
    Retry,
    Release,
}

fn op() -> impl Strategy<Value = Op> {
    let any = || 0..1_000_usize;
    let how = prop_oneof![
        3 => Just(How::Succeeded),
        4 => Just(How::Dead),
        1 => Just(How::Cancelled),
        3 => Just(How::Retry),
        2 => Just(How::Release),
    ];
    prop_oneof![
        4 => (0..2_u8, 0..3_usize, proptest::bool::weighted(0.7))
            .prop_map(|(batch, copies, confirm)| Op::Register { batch, copies, confirm }),
        3 => Just(Op::Publish),
        16 => (any(), 0..2_usize, proptest::bool::weighted(0.3))
            .prop_map(|(copy, worker, brief)| Op::Open { copy, worker, brief }),
        2 => any().prop_map(|lease| Op::Beat { lease }),
        12 => (any(), how).prop_map(|(lease, how)| Op::Settle { lease, how }),
        2 => any().prop_map(|lease| Op::HalfRetry { lease }),
        3 => any().prop_map(|copy| Op::Keep { copy }),
        3 => any().prop_map(|job| Op::Announce { job }),
        3 => any().prop_map(|job| Op::Cancel { job }),
        1 => (0..2_u8).prop_map(|batch| Op::CancelBatch { batch }),
        2 => Just(Op::Purge),
        7 => (any(), 1..4_u8).prop_map(|(job, steps)| Op::Raise { job, steps }),
        1 => any().prop_map(|job| Op::Drop { job }),
        1 => (0..2_usize).prop_map(|worker| Op::Recover { worker }),
        1 => Just(Op::Sweep),
    ]
}

#[test]
fn memory_does_what_the_model_does() {
    agree(|| Box::pin(Fixture::memory()));
}

#[test]
fn sqlite_does_what_the_model_does() {
    agree(|| Box::pin(Fixture::sqlite()));
}

#[test]
fn redis_does_what_the_model_does() {
    agree(|| Box::pin(Fixture::redis()));
}

type Fresh = fn() -> std::pin::Pin<Box<dyn Future<Output = Fixture>>>;

fn agree(fresh: Fresh) {
    let cases = Config::default().cases;
    // 256 is the crate's own default: nobody asked for another number.
    let cases = if cases == 256 { CASES } else { cases };
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 400, ..Config::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let outcome = TestRunner::new(config).run(&vec(op(), 1..=STEPS), |ops: Vec<Op>| {
        let run = async {
            let mut script = Script::new(fresh().await);
            for (step, op) in ops.into_iter().enumerate() {
                script.step(&op).await.map_err(|why| TestCaseError::fail(format!("step {step}, {op:?}: {why}")))?;
            }
            Ok(())
        };
        runtime.block_on(run)
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}
