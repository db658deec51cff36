//! Kill storms small enough for every run; the full ones are `tests/chaos`.

use promptq_tests::chaos::{Ledger, Plan, storm};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_kills_loses_nothing_and_pays_little_twice() {
    let report = storm(Plan { jobs: 2_000, kills: 6, seed: 7, ..Plan::sqlite() }).await.unwrap();
    assert!(report.broken.is_empty(), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_that_kills_redis_too_loses_nothing_and_pays_little_twice() {
    let report = storm(Plan { jobs: 6_000, kills: 18, seed: 7, ..Plan::redis() }).await.unwrap();
    assert!(report.broken.is_empty(), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_that_kills_rabbitmq_too_loses_nothing_and_pays_little_twice() {
    let report = storm(Plan { jobs: 6_000, kills: 9, seed: 7, ..Plan::rabbitmq(Ledger::Redis) }).await.unwrap();
    assert!(report.broken.is_empty(), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_over_rabbitmq_and_a_file_loses_nothing_and_pays_little_twice() {
    let report = storm(Plan { seed: 7, ..Plan::rabbitmq_in_brief(Ledger::Sqlite) }).await.unwrap();
    assert!(report.broken.is_empty(), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_over_rabbitmq_and_object_storage_loses_nothing_and_pays_little_twice() {
    let report = storm(Plan { seed: 7, ..Plan::rabbitmq_in_brief(Ledger::Store) }).await.unwrap();
    assert!(report.broken.is_empty(), "{report}");
}
