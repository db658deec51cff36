//! Random scripts of operations against a small independent model of states and counts, on every backend. After each
//! step every job is looked at: a success is never replaced, each job is in one state, no job is lost, counts fit.

mod ops;
mod script;
mod world;

use promptq_tests::backends::Fixture;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use ops::{Op, script};
use script::Script;

/// How many steps a script has; long enough for a job to die, be redriven and end again.
const STEPS: usize = 40;

/// How many scripts run unless `PROPTEST_CASES` says otherwise.
const CASES: u32 = 64;

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

#[test]
fn redis_does_what_the_model_does_while_its_scripts_are_flushed() {
    agree(|| Box::pin(Fixture::redis_flushed()));
}

type Fresh = fn() -> std::pin::Pin<Box<dyn Future<Output = Fixture>>>;

fn agree(fresh: Fresh) {
    let cases = Config::default().cases;
    // 256 is the crate's own default: nobody asked for another number.
    let cases = if cases == 256 { CASES } else { cases };
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 400, ..Config::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let outcome = TestRunner::new(config).run(&script(STEPS), |ops: Vec<Op>| {
        let run = async {
            let mut script = Script::new(fresh().await).await;
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
