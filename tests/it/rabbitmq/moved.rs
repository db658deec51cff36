//! `promptq broker move` to RabbitMQ and away from it, as processes: jobs arrive as they were, and a kill at any moment
//! neither loses one nor leaves it at both ends.

use std::collections::{BTreeMap, HashSet};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use promptq_common::broker::{Access, Beside, Broker, Envelope};
use promptq_common::job::{Job, JobId, Queue};
use promptq_common::time::Timestamp;
use promptq_common::work::Work;
use promptq_tests::backends::{LONG, terms};
use promptq_tests::fixture::{batch, job, job_of, keyed, retry};
use promptq_tests::process::{Home, Said};
use promptq_tests::rabbit::{RabbitServer, VirtualHost};
use promptq_tests::redis::{Options, RedisServer};
use promptq_tests::steps::{PATIENCE, Worker, eventually, put, view};
use rand::RngExt as _;
use tokio::time::sleep;

const HOUR: Duration = Duration::from_secs(3_600);
/// How many jobs go there and back while moves are killed.
const JOBS: usize = 40;
/// How many kills have to meet a move between its first job and its last, each way.
const KILLS: u32 = 3;

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
async fn kills_in_the_middle_lose_nothing_there_and_back() {
    let ends = Ends::new();
    let (from, name) = (ends.home.broker().await, batch("nov"));
    // So large that each is a page of its own.
    let work = || Work::prompt(Some("mock"), "x".repeat(700_000));
    let sent: Vec<Job> = (0..JOBS).map(|_| Job { work: work(), ..job_of(&name) }).collect();
    put(&from, &sent).await;
    let there = async || ends.host.counts("pq1.q.").0;
    under_kills(&from, || ends.command("--from", &ends.home.url()), there).await;
    assert_eq!(whole(&from).await.len(), 0);
    let (rabbit, to) = (ends.rabbit().await, ends.target().await);
    let there = async || to.depth(&Queue::standard()).await.unwrap().ready;
    under_kills(&rabbit, || ends.command("--to", &ends.target), there).await;
    ends.is_empty().await;
    let ran = Worker::on(&to, terms(&[(Queue::standard(), 1)], LONG)).await.drain().await;
    let expected: HashSet<JobId> = sent.iter().map(|job| job.id).collect();
    assert_eq!((ran.len(), ran.into_iter().collect::<HashSet<_>>()), (JOBS, expected));
}

/// Runs a move again and again, each time killed soon after it has put more jobs in at its target, until some kills have
/// met it between its first job and its last; then it gets through.
async fn under_kills(source: &Broker, command: impl Fn() -> Command, there: impl AsyncFn() -> u64) {
    let (began, mut dice) = (Instant::now(), rand::rng());
    let mut amid = 0;
    while amid < KILLS {
        assert!(began.elapsed() < PATIENCE * 4, "{amid} kills in the middle, and not done");
        let mut child = command().stdout(Stdio::null()).spawn().unwrap();
        let before = there().await;
        while there().await == before && child.try_wait().unwrap().is_none() {
            sleep(Duration::from_millis(1)).await;
        }
        sleep(Duration::from_millis(dice.random_range(0..50))).await;
        child.kill().unwrap();
        assert!(!child.wait().unwrap().success(), "it got through after {amid} kills in the middle");
        let arrived = there().await;
        assert!(arrived >= before, "{arrived} jobs after {before}");
        let views = source.queues().await.unwrap();
        let paused = views.into_iter().find(|view| view.queue == Queue::standard()).and_then(|view| view.paused);
        assert!(paused.is_some_and(|reason| reason.starts_with("moving to ")), "both ends may give them out");
        amid += u32::from(arrived > before && arrived < JOBS as u64);
    }
    Said::of(&mut command()).ends(0);
}
