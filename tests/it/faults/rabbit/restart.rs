//! A RabbitMQ that is killed and comes back: under idle workers, under a producer, while jobs run, or not at all; and the
//! same of its ledger.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use promptq_common::broker::{Access, Beside, Broker, Settled};
use promptq_common::job::{Job, JobId, Queue};
use promptq_common::record::End;
use promptq_tests::backends::terms;
use promptq_tests::farm::{Farm, LANE};
use promptq_tests::proxy::{Network, Proxy};
use promptq_tests::rabbit::RawClient;
use promptq_tests::site::{Setup, jobs, put, records, until};
use promptq_tests::steps::{Worker, end};
use tokio::task::JoinSet;

use super::{RECOVERY, SHORT, all_end_once, all_paid_once, called, running};

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_without_jobs_outlives_its_rabbitmq() {
    let mut farm = Farm::private(20..=20).await;
    let worker = farm.worker(1, &farm.setup());
    put(&farm.broker().await, &jobs(1..=1)).await;
    called(&farm, 1).await;
    for round in 2..=3 {
        farm.restart();
        let began = Instant::now();
        put(&farm.broker().await, &jobs(round..=round)).await;
        called(&farm, usize::try_from(round).unwrap()).await;
        assert!(began.elapsed() < RECOVERY, "{:?}: {}", began.elapsed(), worker.log());
    }
    all_paid_once(&farm, 3).await;
    worker.leaves();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_confirmed_job_is_there_after_a_kill() {
    let mut farm = Farm::private(20..=20).await;
    let broker = farm.broker().await;
    let mut producers = JoinSet::new();
    for producer in 0..4_u64 {
        let broker = broker.clone();
        producers.spawn(async move {
            let (mut confirmed, mut failures, mut round) = (Vec::<JobId>::new(), 0_u32, 0);
            while round < 400 && failures < 3 {
                let first = producer * 100_000 + round * 10 + 1;
                // Without a batch and a key nothing but the message knows of it.
                let jobs: Vec<Job> =
                    jobs(first..=first + 9).into_iter().map(|job| Job { batch: None, ..job }).collect();
                match broker.enqueue(&jobs).await {
                    Ok(_) => confirmed.extend(jobs.iter().map(|job| job.id)),
                    Err(_) => failures += 1,
                }
                round += 1;
            }
            confirmed
        });
    }
    until("some are in", async || (tokio::task::block_in_place(|| farm.host.counts(LANE)).0 > 300).then_some(())).await;
    assert!(producers.try_join_next().is_none(), "they are to be in the middle of it");
    farm.restart();
    let mut confirmed = HashSet::new();
    while let Some(of_one) = producers.join_next().await {
        confirmed.extend(of_one.unwrap().iter().map(ToString::to_string));
    }
    assert!(confirmed.len() > 300, "{}", confirmed.len());
    let there: HashSet<String> = RawClient::connect(&farm.host.url()).await.drain(LANE).await.into_iter().collect();
    let lost = confirmed.difference(&there).count();
    assert_eq!(lost, 0, "of {} confirmed jobs", confirmed.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_run_meanwhile_are_attached_to_their_messages() {
    let mut farm = Farm::private(20..=20).await;
    farm.provider.hold();
    put(&farm.broker().await, &jobs(1..=4)).await;
    // None of its hands is free: it consumes nothing but for these.
    let worker = farm.worker(1, &Setup { slots: 4, ..farm.setup() });
    called(&farm, 4).await;
    farm.restart();
    farm.until_queue(LANE, 0, 4).await;
    assert!(records(&farm.ledger().await).await.is_empty(), "they still run");
    farm.provider.go_on();
    all_paid_once(&farm, 4).await;
    worker.leaves();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_worker_that_gets_their_messages_is_told_that_they_are_taken() {
    let farm = Farm::shared(20..=20).await;
    farm.provider.hold();
    let proxy = Proxy::before(farm.rabbit.port()).await;
    put(&farm.broker().await, &jobs(1..=4)).await;
    let lease = Duration::from_secs(4);
    let busy = farm.worker(1, &Setup { slots: 4, lease, ..farm.setup_through(proxy.port()) });
    called(&farm, 4).await;
    let idle = farm.worker(2, &Setup { slots: 4, lease, ..farm.setup() });
    until("it waits for jobs", async || idle.log().contains("taking jobs").then_some(())).await;
    proxy.set(Network::Cut);
    until("the other one has them wait", async || {
        (tokio::task::block_in_place(|| farm.host.counts("pq1.delay.")).0 > 2).then_some(())
    })
    .await;
    assert!(records(&farm.ledger().await).await.is_empty(), "they still run");
    farm.provider.go_on();
    let records = all_paid_once(&farm, 4).await;
    assert!(records.iter().all(|record| record.worker.as_ref().is_some_and(|worker| worker.starts_with("w1-"))));
    proxy.set(Network::Whole);
    busy.leaves();
    idle.leaves();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_gives_up_in_the_end_and_keeps_what_it_has_paid_for() {
    let mut farm = Farm::private(4_000..=4_000).await;
    put(&farm.broker().await, &jobs(1..=2)).await;
    let mut setup = Setup { slots: 2, ..farm.setup() };
    setup.environment.push(("PROMPTQ__WORKER__GIVE_UP".to_owned(), "6s".to_owned()));
    let mut worker = farm.worker(1, &setup);
    called(&farm, 2).await;
    tokio::task::block_in_place(|| farm.rabbit.kill());
    all_end_once(&farm.ledger().await, 2).await;
    let code = until("it gives up", async || worker.code()).await;
    assert_eq!(code, Some(7), "{}", worker.log());
    farm.restart();
    // Their messages came back; nobody pays for them again.
    let worker = farm.worker(2, &farm.setup());
    all_paid_once(&farm, 2).await;
    worker.leaves();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_is_killed_costs_nothing_but_time() {
    let mut farm = Farm::shared(500..=500).await;
    put(&farm.broker().await, &jobs(1..=30)).await;
    let worker = farm.worker(1, &Setup { slots: 4, ..farm.setup() });
    called(&farm, 6).await;
    farm.redis().kill();
    let (began, had) = (Instant::now(), farm.provider.calls().len());
    until("a while has passed", async || (began.elapsed() > SHORT * 3).then_some(())).await;
    assert!(farm.provider.calls().len() <= had + 4, "nothing new is started without a claim");
    farm.redis().restart();
    running(&farm, 4).await;
    all_paid_once(&farm, 30).await;
    worker.leaves();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_outlasts_its_lease_while_the_ledger_is_away_is_paid_for_once() {
    let farm = Farm::shared(0..=0).await;
    put(&farm.broker().await, &jobs(1..=1)).await;
    let line = Proxy::before(farm.server.port()).await;
    let beside = Access::new(&format!("redis://127.0.0.1:{}", line.port())).unwrap();
    let access = Access { beside: Beside::Ledger(Box::new(beside)), ..Access::new(&farm.host.url()).unwrap() };
    let queues = [(Queue::standard(), 1)];
    let mut here = Worker::on(&Broker::connect(&access).await.unwrap(), terms(&queues, SHORT)).await;
    let job = here.one().await;
    // From now on its lane is the other one's alone.
    here.consumer.close().await.unwrap();
    let mut other = Worker::on(&farm.broker().await, terms(&queues, SHORT)).await;
    line.set(Network::Stalled);
    let mut ending = Box::pin(end(job, End::Succeeded));
    let asking = async {
        let began = Instant::now();
        while began.elapsed() < SHORT * 3 {
            other.finds_nothing().await;
        }
    };
    tokio::select! {
        settled = &mut ending => panic!("{settled:?} by a ledger that is away"),
        () = asking => line.set(Network::Whole),
    }
    assert_ne!(ending.await, Settled::Stale);
    assert_eq!(records(&farm.ledger().await).await.len(), 1);
    // Its message may come back only now, to whoever asks.
    let asking = async {
        loop {
            other.finds_nothing().await;
        }
    };
    tokio::select! {
        () = farm.tidy() => {}
        () = asking => {}
    }
}
