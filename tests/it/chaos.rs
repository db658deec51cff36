//! A small kill storm; the full one is `tests/chaos`.

use promptq_tests::chaos::{Plan, storm};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_kills_loses_nothing_and_pays_little_twice() {
    let report = storm(Plan { jobs: 2_000, workers: 3, slots: 8, kills: 6, seed: 7 }).await.unwrap();
    assert!(report.broken.is_empty(), "{report}");
}
