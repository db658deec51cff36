//! Tests of rate limits of keys without a rule: who tells of them, who learns, who asks, and what a person's release ends.

use std::time::Duration;

use tokio::time::sleep;

use crate::broker::memory::Memory;
use crate::job::{Band, JobId, Lane, ModelName, Queue};
use crate::ledger::Ledger;
use crate::limits::{Limits, Pool, change, forget, look};
use crate::outcome::{Failure, FailureClass, Outcome, Reply};

const SECOND: Duration = Duration::from_secs(1);
const KEY: &str = "acme/fast";

fn lane() -> Lane {
    Lane { queue: Queue::standard(), model: Some(ModelName::new("fast")), band: Band::Normal }
}

async fn with<T>(ledger: &Memory, workers: &[&Limits], doing: impl Future<Output = T>) -> T {
    let sharing = workers.iter().map(|limits| async move {
        tokio::join!(limits.keep_opening(ledger), limits.keep_freezing(ledger));
    });
    tokio::select! {
        done = doing => done,
        _ = futures_util::future::join_all(sharing) => panic!("they go on"),
    }
}

/// One call that is refused, for so many seconds.
fn refused(limits: &Limits, seconds: u64) {
    let failure = Failure::new(FailureClass::Throttled, "rate_limit", "slow down");
    let failure = Failure { retry_after: Some(Duration::from_secs(seconds)), status_code: Some(429), ..failure };
    limits.admit(&lane(), KEY).expect("its gate is open").report(JobId::fresh(), &Outcome::Failure(failure));
}

fn answered(limits: &Limits) -> bool {
    let pass = limits.admit(&lane(), KEY);
    pass.map(|pass| pass.report(JobId::fresh(), &Outcome::Success(Reply::default()))).is_ok()
}

/// For how many seconds a worker's lane is shut yet.
fn shut(limits: &Limits) -> u64 {
    limits.take_opened();
    limits.admit(&lane(), KEY).err().map_or(0, |refused| refused.wait.as_secs())
}

#[tokio::test(start_paused = true)]
async fn who_was_refused_lately_waits_for_the_refusals_of_all() {
    let ledger = Memory::new();
    let (a, b, c) = (Limits::new(), Limits::new(), Limits::new());
    with(&ledger, &[&a, &b, &c], async {
        assert!([&a, &b, &c].into_iter().all(answered));
        sleep(5 * SECOND).await;
        assert!(ledger.limits().await.unwrap().is_empty(), "nobody asks for what was never frozen");
        refused(&a, 30);
        sleep(SECOND).await;
        let view = look(&ledger, KEY).await.unwrap().unwrap();
        assert!((28_000..=30_000).contains(&view.frozen_for), "{view:?}");
        assert_eq!((view.why.as_deref(), view.rate), (Some("rate_limit: slow down"), 1.0));
        assert_eq!(shut(&b), 0, "it has never met one");
        refused(&b, 2);
        sleep(SECOND).await;
        assert!((26..=28).contains(&shut(&b)), "{} s", shut(&b));
        let held = b.held();
        assert_eq!((held[0].key.as_str(), held[0].class), (KEY, FailureClass::Throttled));
        // Over: and the next one is everybody's who has met one within ten minutes and calls.
        sleep(30 * SECOND).await;
        assert!(shut(&a) == 0 && shut(&b) == 0);
        refused(&a, 20);
        for _ in 0..5 {
            sleep(SECOND / 2).await;
            answered(&b);
            answered(&c);
        }
        assert!((15..=18).contains(&shut(&b)) && shut(&c) == 0, "{} and {}", shut(&b), shut(&c));
        assert_eq!(b.held()[0].detail, "rate_limit: slow down");
        sleep(700 * SECOND).await;
        assert!(shut(&b) == 0 && answered(&b) && b.table().frosts.is_empty(), "it looks no more");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_person_ends_a_freeze_for_all_of_them_and_nobody_finds_it_again() {
    let ledger = Memory::new();
    let (a, b) = (Limits::new(), Limits::new());
    with(&ledger, &[&a, &b], async {
        refused(&b, 1);
        sleep(3 * SECOND).await;
        assert_eq!(shut(&b), 0);
        refused(&a, 600);
        for _ in 0..4 {
            sleep(SECOND / 2).await;
            answered(&b);
        }
        assert!(shut(&a) > 500 && shut(&b) > 500);
        change(&ledger, KEY, Pool::release).await.unwrap();
        sleep(6 * SECOND).await;
        assert_eq!((shut(&a), shut(&b)), (0, 0));
        for _ in 0..6 {
            sleep(SECOND / 2).await;
            assert!(answered(&a) && answered(&b));
        }
        let view = look(&ledger, KEY).await.unwrap().unwrap();
        assert_eq!((view.frozen_for, view.why), (0, None));
    })
    .await;
    forget(&ledger, KEY).await.unwrap();
    assert_eq!(ledger.limits().await.unwrap(), [KEY], "a worker may look yet");
}

#[test]
fn what_was_frozen_long_ago_is_forgotten_and_what_has_limits_is_not() {
    let mut pool = Pool::default();
    assert_eq!(pool.freeze(1_000, 30_000, &"x".repeat(999)).frozen_for, 30_000);
    assert_eq!(pool.freeze(2_000, 9_000, "shorter").why.map(|why| why.len()), Some(200), "the longer one's reason");
    assert_eq!((pool.view(31_000).frozen_for, pool.view(31_000).why), (0, None));
    assert!(!pool.is_blank(31_000) && pool.is_blank(31_000 + 3_600_001));
    pool.release(40_000);
    assert!(!pool.is_blank(3_640_000) && pool.is_blank(3_640_001));
    pool.set(50_000, crate::limits::Measure::Requests, crate::limits::Per::Minute, Some(9));
    assert!(!pool.is_blank(9_000_000));
}
