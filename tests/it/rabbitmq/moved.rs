//! `promptq broker move` to RabbitMQ and away from it, as processes: jobs arrive as they were, and a kill at any moment
//! neither loses one nor leaves it at both ends.

use std::collections::{BTreeMap, HashSet};
use std::process::Command;
use std::time::{Duration, Instant};

use promptq_common::broker::{Access, Beside, Broker, Envelope};
use promptq_common::job::{Job, JobId, Queue};
use promptq_common::time::Timestamp;
use promptq_tests::backends::{LONG, terms};
use promptq_tests::fixture::{batch, job, job_of, keyed, retry};
use promptq_tests::process::{Home, Said};
use promptq_tests::rabbit::{RabbitServer, VirtualHost};
use promptq_tests::redis::{Options, RedisServer};
use promptq_tests::steps::{PATIENCE, Worker, eventually, put, view};
use rand::RngExt as _;
use tokio::time::sleep;

const HOUR: Duration = Duration::from_secs(3_600);

/// A home whose file jobs come from, a RabbitMQ with a ledger beside it, and another file.
struct Ends {
    home: Home,
    host: VirtualHost,
    ledger: RedisServer,
    target: String,
    _server: RabbitServer,
}

impl Ends {
    fn new() -> Self {
        let (server, home) = (RabbitServer::shared(), Home::new());
        let target = format!("sqlite://{}", home.path("target.db").display());
        Self { host: server.host(), ledger: RedisServer::start(Options::cheap()), home, target, _server: server }
    }

    async fn rabbit(&self) -> Broker {
        let beside = Beside::Ledger(Box::new(Access::new(&self.ledger.url()).unwrap()));
        Broker::connect(&Access { beside, ..Access::new(&self.host.url()).unwrap() }).await.unwrap()
    }

    async fn target(&self) -> Broker {
        Broker::connect(&Access::new(&self.target).unwrap()).await.unwrap()
    }

    /// A move of which RabbitMQ is the end that is not named.
    fn command(&self, option: &str, url: &str) -> Command {
        let mut command = self.home.program("promptq", &["broker", "move", "--yes", option, url]);
        command.env("PROMPTQ_BROKER", self.host.url()).env("PROMPTQ_LEDGER", self.ledger.url());
        command
    }

    /// Once the server has taken back what killed processes held.
    async fn is_empty(&self) {
        let none = || ["pq1.q.", "pq1.delay.", "pq1.dead"].iter().all(|prefix| self.host.counts(prefix) == (0, 0));
        eventually("no message is left", || async { none().then_some(()) }).await;
    }
}

async fn whole(broker: &Broker) -> BTreeMap<JobId, Envelope> {
    let page = broker.waiting(&Queue::standard(), None, 1_000).await.unwrap();
    page.items.into_iter().map(|job| (job.head.id, job)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_go_to_rabbitmq_and_come_back_as_they_were() {
    let ends = Ends::new();
    let (from, name) = (ends.home.broker().await, batch("nov"));
    let later = Job { not_before: Some(Timestamp::now() + HOUR), tenant: Some("t".into()), ..job_of(&name) };
    put(&from, &[keyed("a", "text"), job(), job_of(&name), later]).await;
    from.ledger().seal(&name, &Queue::standard()).await.unwrap();
    let tried = Worker::on(&from, terms(&[(Queue::standard(), 1)], LONG)).await.one().await;
    let verdict = retry(&tried.head, HOUR);
    tried.lease.settle(verdict).await.unwrap();
    let before = whole(&from).await;
    Said::of(&mut ends.command("--from", &ends.home.url())).ends(0).prints(&["4 jobs moved"]);
    assert_eq!(whole(&from).await.len(), 0);
    let rabbit = ends.rabbit().await;
    assert_eq!((whole(&rabbit).await, view(&rabbit, &name).await.sealed), (before.clone(), true));
    // What looks at messages has them in hand.
    drop(rabbit);
    eventually("they are back", || async { (ends.host.counts("pq1.").1 == 0).then_some(()) }).await;
    Said::of(&mut ends.command("--to", &ends.target)).ends(0).prints(&["4 jobs moved"]);
    let to = ends.target().await;
    assert_eq!((whole(&to).await, view(&to, &name).await.sealed), (before, true));
    ends.is_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_at_any_moment_lose_nothing_there_and_back() {
    const JOBS: usize = 300;
    let ends = Ends::new();
    let (from, name) = (ends.home.broker().await, batch("nov"));
    let sent: Vec<Job> = (0..JOBS).map(|_| job_of(&name)).collect();
    for part in sent.chunks(100) {
        put(&from, part).await;
    }
    let kills = under_kills(|| ends.command("--from", &ends.home.url())).await;
    assert_eq!(whole(&from).await.len(), 0, "after {kills} kills");
    let kills = under_kills(|| ends.command("--to", &ends.target)).await;
    ends.is_empty().await;
    let to = ends.target().await;
    let ran = Worker::on(&to, terms(&[(Queue::standard(), 1)], LONG)).await.drain().await;
    let expected: HashSet<JobId> = sent.iter().map(|job| job.id).collect();
    assert_eq!((ran.len(), ran.into_iter().collect::<HashSet<_>>()), (JOBS, expected), "after {kills} kills");
}

/// Runs a move again and again, each time killed a little later at the latest, until one gets through.
async fn under_kills(command: impl Fn() -> Command) -> u32 {
    let (began, mut dice) = (Instant::now(), rand::rng());
    let mut kills = 0;
    loop {
        assert!(began.elapsed() < PATIENCE * 4, "{kills} kills and not done");
        let mut child = command().stdout(std::process::Stdio::null()).spawn().unwrap();
        let longest = Duration::from_millis(200) + Duration::from_millis(200) * kills;
        let deadline = Instant::now() + longest.mul_f64(dice.random_range(0.0..1.0));
        while Instant::now() < deadline && child.try_wait().unwrap().is_none() {
            sleep(Duration::from_millis(1)).await;
        }
        child.kill().unwrap();
        if child.wait().unwrap().success() {
            return kills;
        }
        kills += 1;
    }
}
