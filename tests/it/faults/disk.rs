//! What a Redis with a slow disk loses when it is killed: nothing that was confirmed with `appendfsync always`; with
//! `everysec` the last two seconds at the most, as README says.

use std::time::{Duration, Instant};

use promptq_common::broker::{Access, Broker};
use promptq_common::job::JobId;
use promptq_tests::redis::{Options, RedisServer};
use promptq_tests::site::jobs;

/// How long one write to the disk takes: nearly as long as Redis puts up with before it waits.
const DELAY: Duration = Duration::from_millis(1_900);
/// How long is submitted before the kill.
const LENGTH: Duration = Duration::from_secs(9);
/// What README promises of `everysec`, 2 s, and the second between two writes to the disk.
const WINDOW: Duration = Duration::from_secs(3);

struct Confirmed {
    jobs: Vec<(JobId, Instant)>,
    killed: Instant,
    lost: Vec<Instant>,
}

/// Submits without a pause, kills the server, and looks for what it had confirmed.
async fn submit_and_kill(options: Options) -> Confirmed {
    let mut server = RedisServer::start(options.slow_disk(DELAY));
    let connect = async |server: &RedisServer| {
        let url = Access::new(&server.url()).expect("an address");
        Broker::connect(&url).await.expect("connects")
    };
    let broker = connect(&server).await;
    let (begun, mut confirmed, mut number) = (Instant::now(), Vec::new(), 0);
    while begun.elapsed() < LENGTH {
        number += 1;
        let jobs = jobs(number * 20..=number * 20 + 19);
        broker.enqueue(&jobs).await.expect("enqueues");
        let at = Instant::now();
        confirmed.extend(jobs.iter().map(|job| (job.id, at)));
    }
    let killed = Instant::now();
    server.kill();
    server.restart();
    let broker = connect(&server).await;
    let mut lost = Vec::new();
    for chunk in confirmed.chunks(500) {
        let ids: Vec<_> = chunk.iter().map(|(id, _)| *id).collect();
        let found = broker.ledger().fetch(&ids).await.expect("fetches");
        lost.extend(chunk.iter().zip(&found).filter(|(_, found)| found.is_none()).map(|((_, at), _)| *at));
    }
    Confirmed { jobs: confirmed, killed, lost }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_disk_and_a_kill_lose_nothing_that_was_synced_always() {
    let confirmed = submit_and_kill(Options::durable()).await;
    assert!(confirmed.jobs.len() >= 40, "only {} jobs", confirmed.jobs.len());
    assert!(confirmed.lost.is_empty(), "{} of {} jobs", confirmed.lost.len(), confirmed.jobs.len());
}

#[expect(clippy::print_stdout, reason = "how much was lost is for people")]
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_disk_and_a_kill_lose_two_seconds_of_what_is_synced_every_second() {
    let confirmed = submit_and_kill(Options::every_second()).await;
    let oldest = confirmed.lost.iter().map(|at| confirmed.killed.duration_since(*at)).max().unwrap_or_default();
    println!(
        "everysec, fsync of {DELAY:?}: {} of {} confirmed jobs lost, the oldest confirmed {oldest:?} before the kill",
        confirmed.lost.len(),
        confirmed.jobs.len(),
    );
    assert!(confirmed.jobs.len() > 1_000, "only {} jobs", confirmed.jobs.len());
    assert!(oldest <= WINDOW, "lost what was confirmed {oldest:?} before the kill");
}
