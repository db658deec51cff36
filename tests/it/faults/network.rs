//! A network that cuts, stalls or loses connections between a worker and Redis while jobs run.

use std::time::{Duration, Instant};

use promptq_tests::proxy::{Network, Proxy};
use promptq_tests::redis::Options;
use promptq_tests::site::{Setup, Site, jobs, put, records, until};

use super::all_end_once;

const SLOTS: u32 = 4;
const JOBS: usize = 150;

/// A call is given up by the driver after 10 s without an answer; then come the pauses between attempts, and a machine
/// that runs other tests.
const RECOVERY: Duration = Duration::from_secs(25);

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_goes_on_after_a_cut() {
    weathers(Network::Cut, Duration::from_millis(1_500)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_goes_on_after_a_stall() {
    weathers(Network::Stalled, Duration::from_secs(3)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_goes_on_after_answers_were_held_back() {
    weathers(Network::Deaf, Duration::from_secs(3)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_leaves_connections_that_dangle() {
    weathers(Network::HalfOpen, Duration::from_secs(1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_goes_on_while_connections_break_again_and_again() {
    let (site, proxy) = site().await;
    let broker = site.broker().await;
    put(&broker, &jobs(1..=JOBS as u64)).await;
    let worker = worker(&site, &proxy);
    let (mut cuts, begun) = (0, Instant::now());
    while records(&broker).await.len() < JOBS {
        assert!(begun.elapsed() < Duration::from_secs(90), "{}", worker.log());
        let network = if proxy.open() > 0 { Network::Cut } else { Network::Whole };
        cuts += usize::from(network == Network::Cut);
        proxy.set(network);
        tokio::time::sleep(Duration::from_millis(if network == Network::Cut { 20 } else { 300 })).await;
    }
    proxy.set(Network::Whole);
    all_end_once(&broker, JOBS).await;
    assert!(cuts > 5, "{cuts} cuts");
    worker.leaves();
}

async fn site() -> (Site, Proxy) {
    let site = Site::new(Options::durable(), 20..=200).await;
    let proxy = Proxy::before(site.server.port()).await;
    (site, proxy)
}

fn worker(site: &Site, proxy: &Proxy) -> promptq_tests::site::Hand {
    let url = format!("redis://127.0.0.1:{}", proxy.port());
    site.worker(1, &Setup { url, slots: SLOTS, lease: Duration::from_secs(6), ..site.setup() })
}

/// Trouble in the middle of the work: afterwards the worker goes on by itself soon, everything ends once, and at most
/// what it had at that time is called for a second time.
async fn weathers(network: Network, length: Duration) {
    let (site, proxy) = site().await;
    let broker = site.broker().await;
    put(&broker, &jobs(1..=JOBS as u64)).await;
    let worker = worker(&site, &proxy);
    until("it works", async || (records(&broker).await.len() >= 20).then_some(())).await;
    proxy.set(network);
    let began = Instant::now();
    until("the trouble is over", async || (began.elapsed() >= length).then_some(())).await;
    let before = records(&broker).await.len();
    assert!(before < JOBS, "it had nothing to do any more");
    proxy.set(Network::Whole);
    let over = Instant::now();
    until("it goes on", async || (records(&broker).await.len() > before).then_some(())).await;
    assert!(over.elapsed() < RECOVERY, "it took {:?} to go on: {}", over.elapsed(), worker.log());
    all_end_once(&broker, JOBS).await;
    let extra = site.provider.calls().len() - JOBS;
    assert!(extra <= SLOTS as usize, "{extra} calls too many");
    worker.leaves();
}
