//! One virtual host, one ledger: a process that names another is told so before it does anything, whichever came first
//! stays, and an administrator may change it while nobody works.

use std::collections::BTreeSet;

use promptq::stats::look;
use promptq_common::broker::{self, Access, Beside, Broker, Enqueued, Refusal};
use promptq_common::error::Kind;
use promptq_common::job::Queue;
use promptq_tests::backends::{LONG, terms};
use promptq_tests::fixture::{job, queue, release};
use promptq_tests::process::{Home, Said};
use promptq_tests::rabbit::{RabbitServer, RawClient, VirtualHost};
use promptq_tests::redis::{Options, RedisServer};
use promptq_tests::steps::{Worker, put_one};

/// What a user of an older installation may configure, write and read: nothing that has to do with the ledger.
const OLDER: [&str; 3] = [r"^pq1\.hold\.", r"^(pq1\.(in|rest|delay|q\..*|results\..*)|amq\.default)$", r"^pq1\.q\."];

/// The rights of the shipped producer.
const PRODUCER: [&str; 3] = [
    r"^pq1\.ledger$",
    r"^(pq1\.(in|rest|delay|dead|ledger.*|q\..*|results\..*)|amq\.default)$",
    r"^pq1\.(ledger|results\..*)$",
];

/// A virtual host, two servers that could be its ledger, and where programs run.
struct Place {
    home: Home,
    host: VirtualHost,
    first: RedisServer,
    other: RedisServer,
    server: RabbitServer,
}

impl Place {
    fn new() -> Self {
        let server = RabbitServer::shared();
        let redis = || RedisServer::start(Options::cheap());
        Self { home: Home::new(), host: server.host(), first: redis(), other: redis(), server }
    }

    /// A program at the virtual host, its records in this ledger (nothing: in the store).
    fn say(&self, ledger: &str, words: &[&str]) -> Said {
        let (name, words) = match words {
            ["promptq-worker", rest @ ..] => ("promptq-worker", rest),
            words => ("promptq", words),
        };
        let mut command = self.home.program(name, words);
        command.env("PROMPTQ_BROKER", self.host.url()).env("PROMPTQ_LEDGER", ledger);
        if ledger.is_empty() {
            command.env("PROMPTQ_STORE", format!("file://{}", self.home.path("store").display()));
        }
        Said::of(&mut command)
    }

    /// This process, its records in that ledger.
    async fn broker(&self, url: &str, ledger: &RedisServer) -> promptq_common::error::Result<Broker> {
        Broker::connect(&access(url, ledger)).await
    }
}

fn access(url: &str, ledger: &RedisServer) -> Access {
    let beside = Beside::Ledger(Box::new(Access::new(&ledger.url()).unwrap()));
    Access { beside, ..Access::new(url).unwrap() }
}

const WORK: &[&str] = &["promptq-worker", "--exit-when-idle", "500ms"];

#[test]
fn whoever_names_another_ledger_is_told_before_it_does_anything() {
    let place = Place::new();
    place.home.write("rows.txt", "one\n");
    let submit: &[&str] = &["submit", "rows.txt", "-m", "mock", "--batch", "b"];
    place.say(&place.first.url(), submit).ends(0);
    // By another name and path it is the same one.
    let alias = place.first.url().replace("127.0.0.1", "localhost");
    place.say(&alias, submit).ends(0);

    let told = &["another ledger", place.host.name(), "same [ledger]", "promptq queues declare --new-ledger"];
    for ledger in [place.other.url(), String::new()] {
        for words in [submit, &["queues", "declare"], &["results", "b"], WORK] {
            place.say(&ledger, words).ends(2).says(told);
        }
    }
    assert_eq!(place.other.must(&["DBSIZE"]).number(), 1, "nothing is kept there but who it is");
    place.say(&alias, WORK).ends(0);
    place.say(&place.first.url(), &["results", "b"]).ends(0);

    // One that was restored empty is another one, though its address is the same.
    place.first.must(&["FLUSHALL"]);
    place.say(&place.first.url(), WORK).ends(2).says(&["or has lost its data"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_start_at_once_one_has_the_virtual_host() {
    let place = tokio::task::spawn_blocking(Place::new).await.unwrap();
    for round in 0..4 {
        let host = place.server.host();
        let url = host.url();
        let (one, other) =
            (place.broker(&url, &place.first).await.unwrap(), place.broker(&url, &place.other).await.unwrap());
        let (queues, jobs) = ([(Queue::standard(), 1)], [job()]);
        // A worker and a producer: whichever is first.
        let (works, puts) = tokio::join!(one.consume(terms(&queues, LONG)), other.enqueue(&jobs));
        let refused: Vec<_> = [works.err(), puts.err()].into_iter().flatten().collect();
        let [error] = &refused[..] else { panic!("round {round}: {refused:?}") };
        assert!(error.kind() == Kind::Config && error.to_string().contains("another ledger"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ledger_is_changed_by_who_says_so_and_while_nobody_works() {
    let place = tokio::task::spawn_blocking(Place::new).await.unwrap();
    let url = place.host.url();
    let old = place.broker(&url, &place.first).await.unwrap();
    let id = put_one(&old, job()).await;
    let mut worker = Worker::on(&old, terms(&[(Queue::standard(), 1)], LONG)).await;
    let taken = worker.one().await;
    let renew = &["queues", "declare", "--new-ledger"];
    let change = |code| place.say(&place.other.url(), renew).ends(code);
    tokio::task::block_in_place(|| change(6)).says(&["workers take from", "stop them"]);
    place.broker(&url, &place.first).await.unwrap();

    taken.lease.settle(release()).await.unwrap();
    worker.consumer.close().await.unwrap();
    drop(old);
    tokio::task::block_in_place(|| {
        // Who may put jobs in may not say whose they are.
        let producer = place.host.url_of("producer", PRODUCER);
        let mut command = place.home.program("promptq", renew);
        Said::of(command.env("PROMPTQ_BROKER", producer).env("PROMPTQ_LEDGER", place.other.url())).ends(4);
        place.say(&place.first.url(), &["queues", "list"]).ends(0);
        let said = change(0).prints(&["pq1.ledger", "records are kept in the ledger"]);
        assert_eq!(said.audits("new-ledger").len(), 1);
        place.say(&place.first.url(), WORK).ends(2);
        place.say(&place.other.url(), WORK).ends(0);
    });
    let new = place.broker(&url, &place.other).await.unwrap();
    assert!(new.ledger().fetch(&[id]).await.unwrap()[0].is_some(), "what waited ran, and its record is in the new one");
    let file = Said::of(&mut place.home.program("promptq", renew)).ends(2);
    file.says(&["other brokers are their own ledgers"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_finds_its_queue_gone_asks_again_whose_the_virtual_host_is() {
    let place = tokio::task::spawn_blocking(Place::new).await.unwrap();
    let url = place.host.url();
    let old = place.broker(&url, &place.first).await.unwrap();
    put_one(&old, job()).await;
    let access = access(&url, &place.other);
    let ledger = broker::ledger(&access).await.unwrap();
    broker::renew_ledger(&access, &*ledger, &[Queue::standard()]).await.unwrap();
    let client = RawClient::connect(&url).await;
    for queue in tokio::task::block_in_place(|| place.host.queues()) {
        client.delete(&queue.name).await;
    }
    assert_eq!(old.enqueue(&[job()]).await.unwrap(), [Enqueued::Refused(Refusal::NoSuchQueue)]);
    let error = old.enqueue(&[job()]).await.unwrap_err();
    assert!(error.kind() == Kind::Config && error.to_string().contains("another ledger"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_may_not_ask_goes_on_and_the_doctor_says_so() {
    let place = tokio::task::spawn_blocking(Place::new).await.unwrap();
    let url = place.host.url_of("older", OLDER);
    let broker = place.broker(&place.host.url(), &place.first).await.unwrap();
    put_one(&broker, job()).await;
    put_one(&place.broker(&url, &place.first).await.unwrap(), job()).await;
    // As before there was anything to ask.
    put_one(&place.broker(&url, &place.other).await.unwrap(), job()).await;
    let doctor = |broker: &str, ledger: &RedisServer| {
        let mut command = place.home.program("promptq", &["doctor"]);
        Said::of(command.env("PROMPTQ_BROKER", broker).env("PROMPTQ_LEDGER", ledger.url()))
    };
    tokio::task::block_in_place(|| {
        doctor(&url, &place.other).prints(&["warn    identity: this user may not ask", "deploy/rabbitmq"]);
        doctor(&place.host.url(), &place.other).ends(1).prints(&["FAILED  identity: ", "another ledger"]);
        doctor(&place.host.url(), &place.first).ends(0).prints(&["ok      identity: ", "is this ledger's"]);
        // Who puts jobs in is told once, who looks is not.
        place.home.write("rows.txt", "one\n");
        let told = |words: &[&str]| {
            let mut command = place.home.program("promptq", words);
            let said = Said::of(command.env("PROMPTQ_BROKER", &url).env("PROMPTQ_LEDGER", place.first.url())).ends(0);
            said.stderr.matches("may not ask").count()
        };
        assert_eq!((told(&["queues", "list"]), told(&["submit", "rows.txt", "-m", "mock"])), (0, 1));
    });
}

#[test]
fn large_answers_stay_in_a_ledger_that_is_elsewhere() {
    let place = Place::new();
    let words = r#"[runners.large]
argv = ["/bin/sh", "-c", "head -c 200000 /dev/zero | tr '\\0' x"]
"#;
    place.home.write("promptq.toml", words);
    place.home.write("rows.txt", "one\n");
    // Loopback, and yet no name of it.
    let elsewhere = place.first.url().replace("127.0.0.1", "[::ffff:127.0.0.1]");
    for (ledger, batch, folders) in [(elsewhere, "far", 0), (place.first.url(), "near", 1)] {
        place.say(&ledger, &["submit", "rows.txt", "-m", "large", "--batch", batch]).ends(0);
        let said = place.say(&ledger, WORK).ends(0);
        let told = if folders == 0 { "stay in their records" } else { "rabbitmq-" };
        assert!(said.stderr.contains("no store is named") && said.stderr.contains(told), "{}", said.stderr);
        let state = place.home.path(".local/state/promptq");
        let found =
            std::fs::read_dir(state).map_or(0, |folder| folder.flatten().filter(|one| one.path().is_dir()).count());
        assert_eq!(found, folders, "{ledger}");
        let answer = place.say(&ledger, &["results", batch, "-o", "-"]).ends(0).stdout;
        assert!(answer.len() > 200_000, "{} bytes of results", answer.len());
    }
}

/// Commands that a ledger has carried out.
fn commands(ledger: &RedisServer) -> u64 {
    let said = ledger.must(&["INFO", "stats"]).text();
    let count = said.lines().find_map(|line| line.strip_prefix("total_commands_processed:"));
    count.unwrap().trim().parse().unwrap()
}

#[tokio::test]
async fn what_the_ledger_knows_of_all_queues_is_read_once_however_many_are_looked_at() {
    const QUEUES: u64 = 40;
    let place = Place::new();
    let broker = place.broker(&place.host.url(), &place.first).await.unwrap();
    let queues: Vec<Queue> = (0..QUEUES).map(|n| queue(&format!("q-{n}"))).collect();
    for queue in &queues {
        // Known from then on, and empty.
        broker.pause(queue, Some("for a moment")).await.unwrap();
        broker.pause(queue, None).await.unwrap();
    }
    let asked = async |queues: &[Queue]| {
        let before = commands(&place.first);
        let seen = look(&broker, queues, &BTreeSet::new(), 16).await.unwrap();
        assert_eq!((seen.queues.len(), seen.unknown), (queues.len(), Vec::new()));
        commands(&place.first) - before
    };
    broker.declare(&queues[0], &[], false).await.unwrap();
    let (one, two, all) = (asked(&queues[..1]).await, asked(&queues[..2]).await, asked(&queues).await);
    assert!(one < QUEUES, "{one} commands for one queue");
    assert!(two >= QUEUES, "{two} commands for two: all are read");
    // Of each queue there is a note of its lanes beside that.
    assert!(all < two + 2 * QUEUES, "{all} commands for {QUEUES} queues, {two} for two");
}
