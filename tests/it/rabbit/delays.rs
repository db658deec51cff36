//! Jobs that wait on RabbitMQ: thousands that are due in the same moment, one whose two months of hops are made small,
//! and a backlog in a lane that nobody takes from.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use promptq_common::broker::amqp::Settings;
use promptq_common::broker::{self, Access, Beside, Broker, Settled, Want};
use promptq_common::job::{Band, Job, JobId, Lane, ModelName, Queue};
use promptq_common::ledger::Claims;
use promptq_common::record::End;
use promptq_common::time::Timestamp;
use promptq_tests::backends::{LONG, terms};
use promptq_tests::fixture::{self, job, job_for};
use promptq_tests::rabbit::{RabbitServer, RawClient, VirtualHost};
use promptq_tests::redis::{Options, RedisServer};
use promptq_tests::site::until;
use promptq_tests::steps::{PATIENCE, Worker, end, put, put_one, want};
use tokio::task::JoinSet;

use super::all_succeed;

/// Jobs at once in one worker.
const SLOTS: usize = 200;
/// Gets a copy of every message that goes to a delay queue.
const COPIES: &str = "copies";

/// A virtual host of the shared server, and a Redis as ledger beside it.
struct Ground {
    host: VirtualHost,
    server: RabbitServer,
    ledger: RedisServer,
    levels: Vec<Duration>,
}

impl Ground {
    /// With delay queues of so many milliseconds.
    fn new(levels: &[u64]) -> Self {
        let server = tokio::task::block_in_place(RabbitServer::shared);
        let levels = levels.iter().copied().map(Duration::from_millis).collect();
        Self { host: server.host(), server, ledger: RedisServer::start(Options::cheap()), levels }
    }

    fn access(&self) -> Access {
        let beside = Beside::Ledger(Box::new(Access::new(&self.ledger.url()).unwrap()));
        let amqp = Settings { levels: self.levels.clone(), ..Settings::default() };
        Access { amqp, beside, ..Access::new(&self.host.url()).unwrap() }
    }

    /// Two workers that take and end so many jobs, and tell how late after `moment` each was.
    async fn work(&self, count: usize, moment: Timestamp) -> JoinSet<Vec<(JobId, Duration)>> {
        let left = Arc::new(AtomicUsize::new(count));
        let mut workers = JoinSet::new();
        for _ in 0..2 {
            workers.spawn(work(self.broker().await, self.clock().await, moment, Arc::clone(&left)));
        }
        workers
    }

    /// The same place as somebody with other delay levels sees it.
    fn with(&self, levels: &[u64]) -> Access {
        let levels = levels.iter().copied().map(Duration::from_millis).collect();
        let access = self.access();
        Access { amqp: Settings { levels, ..access.amqp.clone() }, ..access }
    }

    /// A connection of its own to both.
    async fn broker(&self) -> Broker {
        Broker::connect(&self.access()).await.unwrap()
    }

    /// The same with a standard queue that has lanes for these models.
    async fn declared(&self, models: &[ModelName]) -> Broker {
        let broker = self.broker().await;
        broker.declare(&Queue::standard(), models, false).await.unwrap();
        broker
    }

    /// The ledger, for the time.
    async fn clock(&self) -> Arc<dyn Claims> {
        broker::ledger(&self.access()).await.unwrap()
    }

    /// How many entries of its log a quorum queue has carried out.
    fn applied(&self, queue: &str) -> u64 {
        let said = self.server.must(&format!(
            "{{ok, Q}} = rabbit_amqqueue:lookup({{resource, <<\"{}\">>, queue, <<\"{queue}\">>}}), \
             {{ok, {{{{Index, _}}, _}}, _}} = ra:local_query(amqqueue:get_pid(Q), fun(_) -> ok end), Index.",
            self.host.name()
        ));
        said.parse().unwrap()
    }

    /// What is in queues whose names begin so: how many messages wait, and how many are with workers.
    fn counts(&self, prefix: &str) -> (u64, u64) {
        tokio::task::block_in_place(|| self.host.counts(prefix))
    }
}

#[expect(clippy::print_stdout, reason = "how late they were is for people")]
fn tell(what: &str) {
    println!("{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_that_are_due_at_once_come_in_that_moment_and_not_before() {
    const COUNT: usize = 10_000;
    let ground = Ground::new(&[20, 100, 500, 2_000]);
    let (broker, clock) = (ground.declared(&[]).await, ground.clock().await);
    // How soon as many are worked off that were never delayed.
    let some = COUNT / 4;
    put(&broker, &fixture::jobs(some)).await;
    let begun = clock.now().await.unwrap();
    let usual = ground.work(some, begun).await.join_all().await.into_iter().flatten();
    let usual = usual.map(|(_, late)| late).max().unwrap() * 4;

    let begun = clock.now().await.unwrap();
    let moment = begun + Duration::from_secs(5);
    let workers = ground.work(COUNT, moment).await;
    let jobs: Vec<Job> = (0..COUNT).map(|_| Job { not_before: Some(moment), ..job() }).collect();
    put(&broker, &jobs).await;
    let sent = clock.now().await.unwrap();
    let mut taken: Vec<_> = workers.join_all().await.into_iter().flatten().collect();
    assert_eq!(taken.len(), COUNT, "handed out");
    assert_eq!(taken.iter().map(|(id, _)| *id).collect::<BTreeSet<_>>().len(), COUNT, "handed out once each");
    all_succeed(&broker, COUNT + some, PATIENCE).await;
    until("no message is left", async || {
        (ground.counts("pq1.q.") == (0, 0) && ground.counts("pq1.delay.") == (0, 0)).then_some(())
    })
    .await;
    taken.sort_unstable_by_key(|(_, late)| *late);
    let late = |percent: usize| taken[(COUNT - 1) * percent / 100].1;
    tell(&format!(
        "{COUNT} jobs put in within {:?}, handed out after their moment: first {:?}, half {:?}, 99 % {:?}, last {:?}; \
         usual {usual:?}",
        sent.since(begun),
        late(0),
        late(50),
        late(99),
        late(100)
    ));
    assert!(late(100) < usual * 2 + Duration::from_secs(5), "the last came {:?} late, usual is {usual:?}", late(100));
}

/// Delay levels are coarse: what waits comes by its lane before it is due, everything that was put in together at once.
#[tokio::test(flavor = "multi_thread")]
async fn thousands_that_come_by_early_hold_up_no_job_behind_them() {
    const COUNT: usize = 10_000;
    const HOUR: Duration = Duration::from_secs(3_600);
    let coarse = Ground::new(&[100, 3_600_000]);
    let worker_side = coarse.declared(&[]).await;
    // With this level alone, they come by after a tenth of a second.
    let fine = Broker::connect(&coarse.with(&[100])).await.unwrap();
    let moment = coarse.clock().await.now().await.unwrap() + HOUR * 2;
    put(&fine, &(0..COUNT).map(|_| Job { not_before: Some(moment), ..job() }).collect::<Vec<_>>()).await;
    until("they are all there, and nobody is", async || (coarse.counts("pq1.q.") == (COUNT as u64, 0)).then_some(()))
        .await;
    let behind = put_one(&fine, job()).await;
    let mut worker = Worker::on(&worker_side, terms(&[(Queue::standard(), 1)], LONG)).await;
    let mut most = 0;
    let watching = async {
        loop {
            most = most.max(coarse.counts("pq1.q.").1);
            tokio::task::yield_now().await;
        }
    };
    let began = Instant::now();
    let delivery = tokio::select! {
        delivery = worker.one() => delivery,
        () = watching => unreachable!("it watches for ever"),
    };
    tell(&format!(
        "the job behind {COUNT} early ones came after {:?}; {most} were with the worker at once",
        began.elapsed()
    ));
    assert_eq!(delivery.head.id, behind);
    assert!(most >= 50, "{most} early jobs were passed on at once");
    assert_eq!(end(delivery, End::Succeeded).await, Settled::Applied);
    let rest = async || (coarse.counts("pq1.delay.") == (COUNT as u64, 0)).then_some(());
    until("every early job waits on", rest).await;
    worker.consumer.close().await.unwrap();
}

/// Takes and ends jobs until none is left; tells how late each was.
async fn work(
    broker: Broker,
    clock: Arc<dyn Claims>,
    moment: Timestamp,
    left: Arc<AtomicUsize>,
) -> Vec<(JobId, Duration)> {
    let mut worker = Worker::on(&broker, terms(&[(Queue::standard(), 1)], LONG)).await;
    let (mut taken, began) = (Vec::new(), Instant::now());
    while left.load(Ordering::Relaxed) > 0 {
        assert!(began.elapsed() < PATIENCE * 6, "{} jobs are left", left.load(Ordering::Relaxed));
        let found = worker.consumer.next(&want(SLOTS)).await.unwrap().deliveries;
        let now = clock.now().await.unwrap();
        assert!(found.is_empty() || now >= moment, "handed out at {now}, due at {moment}");
        taken.extend(found.iter().map(|delivery| (delivery.head.id, now.since(moment))));
        let count = found.len();
        let ended = futures_util::future::join_all(found.into_iter().map(|one| end(one, End::Succeeded))).await;
        assert!(ended.iter().all(|settled| *settled == Settled::Applied), "{ended:?}");
        left.fetch_sub(count, Ordering::Relaxed);
    }
    worker.consumer.close().await.unwrap();
    taken
}

/// At a scale of 1 : 1,000,000, so that the longest levels by default, 6 hours, 1 hour and 10 minutes, become 22, 4 and
/// 1 ms, and the two months a little over 5 s.
#[tokio::test(flavor = "multi_thread")]
async fn two_months_of_hops_end_in_time() {
    const TWO_MONTHS: Duration = Duration::from_millis(60 * 86_400 / 1_000);
    let ground = Ground::new(&[1, 4, 22]);
    let (broker, clock) = (ground.declared(&[]).await, ground.clock().await);
    let client = RawClient::connect(&ground.host.url()).await;
    client.declare(COPIES, &[("x-queue-type", "classic")]).await.unwrap();
    // Bound without a condition, it matches whatever comes by.
    ground.server.must(&format!(
        "V = <<\"{}\">>, rabbit_binding:add({{binding, {{resource, V, exchange, <<\"pq1.delay\">>}}, <<>>, \
         {{resource, V, queue, <<\"{COPIES}\">>}}, []}}, <<\"tests\">>).",
        ground.host.name()
    ));
    let mut worker = Worker::on(&broker, terms(&[(Queue::standard(), 1)], LONG)).await;
    let moment = clock.now().await.unwrap() + TWO_MONTHS;
    let id = put_one(&broker, Job { not_before: Some(moment), ..job() }).await;
    let delivery = worker.one().await;
    let now = clock.now().await.unwrap();
    assert!(now >= moment, "handed out at {now}, due at {moment}");
    assert_eq!(delivery.head.id, id);
    assert_eq!(end(delivery, End::Succeeded).await, Settled::Applied);
    let copies = client.take_all(COPIES).await;
    let hops = |level: &str| copies.iter().filter(|copy| copy.headers["pq-delay"] == level).count();
    let text = format!(
        "{} hops, of 22, 4 and 1 ms: {}, {}, {}; {:?} late",
        copies.len(),
        hops("22"),
        hops("4"),
        hops("1"),
        now.since(moment)
    );
    tell(&text);
    // 235 would come to the whole; each takes longer than it says, many times longer on a machine that runs others.
    assert!((20..=235).contains(&hops("22")), "{text}");
    // After the last long one, those of what is left of it, and a few more should they end a little early.
    assert!(hops("4") + hops("1") <= 40, "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_behind_a_closed_lane_rests_at_the_server() {
    const BACKLOG: usize = 100_000;
    const OPEN: usize = 1_000;
    let ground = Ground::new(&[20, 100, 500, 2_000]);
    let (shut, open) = (ModelName::new("shut"), ModelName::new("open"));
    let broker = ground.declared(&[shut.clone(), open.clone()]).await;
    let began = Instant::now();
    fill(&broker, "shut", BACKLOG).await;
    tell(&format!("{BACKLOG} jobs put in within {:?}", began.elapsed()));
    let all = (BACKLOG as u64, 0);
    assert_eq!(ground.counts("pq1.q.default.shut."), all);

    let mut worker = Worker::on(&broker, terms(&[(Queue::standard(), 1)], LONG)).await;
    let caps = Band::ALL.map(|band| (Lane { queue: Queue::standard(), model: Some(shut.clone()), band }, 0));
    let want = Want { caps: caps.into(), ..want(SLOTS) };
    // What a lane gave before it was closed goes back after 5 s.
    let (mut most, began) = (0, Instant::now());
    while began.elapsed() < Duration::from_secs(5) || ground.counts("pq1.q.default.shut.") != all {
        assert!(began.elapsed() < PATIENCE, "the closed lane is still held");
        most = most.max(ground.counts("pq1.q.default.shut.").1);
        assert_eq!(worker.consumer.next(&want).await.unwrap().deliveries.len(), 0);
    }
    tell(&format!("of the closed lane {most} were with the worker, and went back"));
    assert!(most <= 3, "{most} of the closed lane were fetched, where each of its bands may hold one");

    let rests = ground.applied("pq1.q.default.shut.normal");
    let began = Instant::now();
    fill(&broker, "open", OPEN).await;
    let (mut handed_out, mut calls) = (0, 0);
    while handed_out < OPEN {
        assert!(began.elapsed() < PATIENCE * 2, "{handed_out} of the open lane");
        calls += 1;
        let found = worker.consumer.next(&want).await.unwrap();
        assert!(found.lanes_seen.iter().any(|lane| lane.model.as_ref() == Some(&shut)), "a closed lane is told of");
        handed_out += found.deliveries.len();
        for delivery in &found.deliveries {
            assert_eq!(delivery.head.lane.model.as_ref(), Some(&open), "its lane is closed");
        }
        let ended =
            futures_util::future::join_all(found.deliveries.into_iter().map(|one| end(one, End::Succeeded))).await;
        assert!(ended.iter().all(|settled| *settled == Settled::Applied), "{ended:?}");
    }
    tell(&format!("{OPEN} jobs of the open lane took {calls} calls and {:?}", began.elapsed()));
    // One at a time would be as many calls as jobs.
    assert!(calls <= OPEN / 4, "{calls} calls for {OPEN} jobs");
    // Whatever is given, taken back, acknowledged or consumed is an entry in the log of a quorum queue.
    assert_eq!(ground.applied("pq1.q.default.shut.normal"), rests, "the closed lane was busy");
    assert_eq!(ground.counts("pq1.q.default.shut."), all);
    worker.consumer.close().await.unwrap();
}

/// Puts in many jobs for a model, several calls at a time.
async fn fill(broker: &Broker, model: &str, count: usize) {
    let jobs: Vec<Job> = (0..count).map(|_| job_for(Some(model))).collect();
    futures_util::future::join_all(jobs.chunks(count.div_ceil(4)).map(|jobs| put(broker, jobs))).await;
}
