//! A worker that is stopped (SIGSTOP) for longer than its lease, as by a suspended machine, and goes on.

use promptq_common::record::State;
use promptq_tests::redis::Options;
use promptq_tests::site::{Hand, Site, jobs, put, see, until};
use rustix::process::Signal;

use super::{all_end_once, called, hasty};

/// A job in a worker that was stopped during its call, and has become another's.
async fn stopped_and_taken_over() -> (Site, Hand, Hand) {
    let site = Site::new(Options::durable(), 3_000..=3_000).await;
    let broker = site.broker().await;
    let id = put(&broker, &jobs(1..=1)).await[0];
    let stopped = site.worker(1, &hasty(&site));
    called(&site, 1).await;
    stopped.signal(Signal::STOP);
    let other = site.worker(2, &hasty(&site));
    called(&site, 2).await;
    let view = see(&broker, id).await;
    assert_eq!((view.state, view.deaths, view.attempts), (State::Running, 1, 0));
    (site, stopped, other)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_late_answer_of_a_stopped_worker_is_kept_while_there_is_none() {
    let (site, stopped, other) = stopped_and_taken_over().await;
    let broker = site.broker().await;
    stopped.signal(Signal::CONT);
    // It had a second and more of a head start.
    let records = all_end_once(&broker, 1).await;
    assert!(records[0].worker.as_ref().unwrap().starts_with("w1-"), "{:?}", records[0].worker);
    // The other one is told, drops its call and has room again.
    put(&broker, &jobs(2..=3)).await;
    all_end_once(&broker, 3).await;
    assert_eq!(site.provider.calls().iter().filter(|call| call.job == 1).count(), 2);
    let depth = broker.depth(&promptq_common::job::Queue::standard()).await.unwrap();
    assert_eq!((depth.ready, depth.delayed, depth.running, depth.dead), (0, 0, 0, 0));
    stopped.leaves();
    other.leaves();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_late_answer_of_a_stopped_worker_replaces_nothing() {
    let (site, stopped, other) = stopped_and_taken_over().await;
    let broker = site.broker().await;
    let records = all_end_once(&broker, 1).await;
    let (worker, lease) = (records[0].worker.clone().unwrap(), records[0].lease);
    assert!(worker.starts_with("w2-"), "{worker}");
    stopped.signal(Signal::CONT);
    // What it runs next shows that it has done with the old one.
    other.leaves();
    put(&broker, &jobs(2..=2)).await;
    let records = all_end_once(&broker, 2).await;
    assert_eq!((records[0].worker.as_ref(), records[0].lease), (Some(&worker), lease));
    assert!(records[1].worker.as_ref().unwrap().starts_with("w1-"));
    assert_eq!(site.provider.calls().iter().filter(|call| call.job == 1).count(), 2, "nothing was started anew");
    stopped.leaves();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_redis_is_waited_for() {
    let site = Site::new(Options::durable(), 200..=200).await;
    let broker = site.broker().await;
    put(&broker, &jobs(1..=20)).await;
    let worker = site.worker(1, &site.setup());
    called(&site, 5).await;
    site.server.pause();
    let began = std::time::Instant::now();
    until("two seconds have passed", async || (began.elapsed().as_secs() >= 2).then_some(())).await;
    site.server.resume();
    all_end_once(&broker, 20).await;
    assert_eq!(site.provider.calls().len(), 20);
    worker.leaves();
}
