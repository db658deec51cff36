//! Every case on those pairs of queues and ledgers of RabbitMQ that run some of them otherwise. Minutes each, so only when
//! asked for: `cargo nextest run -p promptq-tests --ignore-default-filter -E 'test(/everywhere::/)'`.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use promptq_tests::backends::Fixture;
use promptq_tests::s3::S3;
use tokio::time::timeout;

/// A case of the suite.
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) run: fn(Fixture) -> LocalBoxFuture<'static, ()>,
}

/// These cases as a list of that name.
macro_rules! list {
    ($name:ident $($area:ident $case:ident)*) => {
        fn $name() -> Vec<everywhere::Case> {
            vec![$(everywhere::Case {
                name: concat!(stringify!($area), "::", stringify!($case)),
                run: |fixture| Box::pin($area::$case(fixture)),
            },)*]
        }
    };
}
pub(super) use list;

/// How many run at once: most of the time they wait.
const AT_ONCE: usize = 4;
/// How long a case may take: one that hangs is named too.
const LONGEST: Duration = Duration::from_secs(120);

/// Runs them all, each on a thread and a fixture of its own, and names those that fail.
async fn pass(cases: Vec<Case>, fixture: impl Fn() -> LocalBoxFuture<'static, Fixture> + Clone + Send + 'static) {
    let runs = cases.into_iter().map(|Case { name, run }| {
        let fixture = fixture.clone();
        let run = tokio::task::spawn_blocking(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let case = async { timeout(LONGEST, run(fixture().await)).await.expect("it is to end") };
            runtime.block_on(case);
        });
        async move { (name, run.await) }
    });
    let runs: Vec<_> = stream::iter(runs).buffer_unordered(AT_ONCE).collect().await;
    let failed: Vec<_> = runs.iter().filter(|(_, ran)| ran.is_err()).map(|(name, _)| *name).collect();
    assert!(failed.is_empty(), "{} of {} fail: {failed:#?}", failed.len(), runs.len());
}

macro_rules! pairs {
    ($($name:ident $cases:ident)*) => {$(
        #[tokio::test]
        async fn $name() {
            pass(super::$cases(), || Fixture::$name().boxed_local()).await;
        }
    )*};
}

pairs! {
    quorum_sqlite all
    classic_sqlite all
    classic_redis all
    classic_store of_a_store
}

macro_rules! pairs_in_buckets {
    ($($name:ident $fixture:ident $server:ident)*) => {$(
        #[tokio::test]
        async fn $name() {
            let server = Arc::new(S3::$server().await);
            let fixture = move || {
                let server = Arc::clone(&server);
                async move { Fixture::$fixture(&server).await }.boxed_local()
            };
            pass(super::of_a_store(), fixture).await;
        }
    )*};
}

pairs_in_buckets! {
    quorum_moto quorum_s3 moto
    classic_moto classic_s3 moto
    quorum_s3s quorum_s3 s3s
    classic_s3s classic_s3 s3s
}
