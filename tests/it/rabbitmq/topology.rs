//! The queues that promptq makes at a RabbitMQ: made once whoever makes them, each key in its own lane, nothing deleted
//! that holds a job, and one clear word for a user who may not.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use promptq_common::broker::amqp::{Amqp, QueueType, Settings};
use promptq_common::broker::memory::Memory;
use promptq_common::broker::{Access, Beside, Broker, Declared, Enqueued, Refusal};
use promptq_common::error::Kind;
use promptq_common::job::{Job, ModelName, Queue};
use promptq_tests::backends::terms;
use promptq_tests::fixture::{job, job_for};
use promptq_tests::process::{Home, Said};
use promptq_tests::rabbit::{RabbitServer, RawClient, RawMessage, VirtualHost};
use promptq_tests::redis::{Options, RedisServer};
use promptq_tests::steps::{eventually, want};

/// A virtual host, and a ledger that all its clients share.
struct Setup {
    host: VirtualHost,
    ledger: Arc<Memory>,
    queues: QueueType,
    _server: RabbitServer,
}

impl Setup {
    fn new(queues: QueueType) -> Self {
        let server = RabbitServer::shared();
        Self { host: server.host(), ledger: Arc::new(Memory::new()), queues, _server: server }
    }

    /// A process of its own, for the harness's account.
    async fn broker(&self) -> Broker {
        self.broker_as(&self.host.url(), self.queues).await
    }

    async fn broker_as(&self, url: &str, queues: QueueType) -> Broker {
        let levels = vec![Duration::from_secs(1), Duration::from_secs(2)];
        let mut access = Access::new(url).unwrap();
        access.amqp = Settings { queues, levels, ..Settings::default() };
        let amqp = Amqp::connect(&access, Arc::clone(&self.ledger) as _).await.unwrap();
        Broker::new(Arc::new(amqp), Arc::clone(&self.ledger) as _)
    }

    async fn raw(&self) -> RawClient {
        RawClient::connect(&self.host.url()).await
    }

    /// Lanes in which so many messages wait, without `pq1.q.`.
    fn waiting(&self) -> BTreeMap<String, u64> {
        let lanes = self.host.queues().into_iter().filter(|queue| queue.ready > 0);
        lanes.filter_map(|queue| Some((queue.name.strip_prefix("pq1.q.")?.to_owned(), queue.ready))).collect()
    }

    /// Until that is where messages wait.
    async fn until_waiting(&self, lanes: &[(&str, u64)]) {
        let wanted: BTreeMap<String, u64> = lanes.iter().map(|(lane, count)| ((*lane).to_owned(), *count)).collect();
        eventually("the messages are in their lanes", || async { (self.waiting() == wanted).then_some(()) }).await;
    }
}

async fn declare(broker: &Broker, models: &[&str], prune: bool) -> Declared {
    broker.declare(&Queue::standard(), &models_of(models), prune).await.unwrap().expect("RabbitMQ needs it")
}

fn models_of(models: &[&str]) -> Vec<ModelName> {
    models.iter().map(|model| ModelName::new(model)).collect()
}

fn to(exchange: &str, key: &str) -> RawMessage {
    RawMessage { exchange: exchange.to_owned(), routing_key: key.to_owned(), durable: true, ..RawMessage::default() }
}

fn delayed(key: &str, level: &str) -> RawMessage {
    RawMessage { headers: [("pq-delay".to_owned(), level.to_owned())].into(), ..to("pq1.delay", key) }
}

#[tokio::test]
async fn declaring_again_makes_nothing_and_each_kind_of_queue_has_its_arguments() {
    for queues in [QueueType::Quorum, QueueType::Classic] {
        let setup = Setup::new(queues);
        let broker = setup.broker().await;
        let first = declare(&broker, &["m"], false).await;
        // Three exchanges, two levels, the rejected, the results, and two lanes in three bands.
        assert_eq!((first.made.len(), first.there.len()), (3 + 2 + 1 + 1 + 6, 0), "{first:?}");
        let again = declare(&setup.broker().await, &["m"], false).await;
        assert_eq!((again.made, again.there, again.differs), (Vec::new(), first.made, Vec::new()));

        let lane = setup.host.queue("pq1.q.default.m.low").unwrap();
        assert_eq!(lane.quorum, queues == QueueType::Quorum);
        assert_eq!(
            (&*lane.arguments["x-dead-letter-routing-key"], &*lane.arguments["x-dead-letter-exchange"]),
            ("pq1.dead", "")
        );
        assert!(!lane.arguments.keys().any(|key| key.starts_with("x-max-length") || key == "x-message-ttl"));
        let level = setup.host.queue("pq1.delay.2000").unwrap();
        assert_eq!(
            (&*level.arguments["x-message-ttl"], &*level.arguments["x-dead-letter-exchange"]),
            ("2000", "pq1.in")
        );
        assert!(!level.arguments.contains_key("x-dead-letter-routing-key"), "a message keeps the key of its lane");
        for queue in [&lane, &level].into_iter().filter(|queue| queue.quorum) {
            assert_eq!(queue.arguments["x-dead-letter-strategy"], "at-least-once");
            assert_eq!(queue.arguments["x-overflow"], "reject-publish");
        }
        let unlimited = lane.arguments.get("x-delivery-limit").map(String::as_str);
        assert_eq!(
            unlimited,
            (queues == QueueType::Quorum).then_some("2147483648"),
            "what is given back is no failure"
        );
        let results = setup.host.queue("pq1.results.default").unwrap();
        let results = ["x-message-ttl", "x-max-length-bytes", "x-overflow"].map(|key| results.arguments[key].clone());
        assert_eq!(results, ["86400000", "1073741824", "drop-head"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_declare_at_once_make_everything_once_and_forget_no_model() {
    let setup = Setup::new(QueueType::Quorum);
    let (programs, url) = (Programs::new(), setup.host.url());
    let mut running = Vec::new();
    for model in ["a", "b", "c", "d"] {
        programs.home.write(&format!("{model}.toml"), &format!("[queues.default]\nmodels = [{model:?}]\n"));
        let mut command =
            programs.program(&url, &["queues", "declare", "--config", &format!("{model}.toml"), "--json"]);
        running.push(tokio::task::spawn_blocking(move || Said::of(&mut command)));
    }
    let mut made = Vec::new();
    for said in running {
        let said = said.await.unwrap().ends(0);
        let items = said.json()["items"].as_array().unwrap().clone();
        made.extend(items.iter().filter(|item| item["state"] == "made").map(|item| item["name"].to_string()));
    }
    let count = made.len();
    made.sort_unstable();
    made.dedup();
    assert_eq!(count, made.len(), "something was made twice: {made:?}");
    // Three exchanges, seven levels, the rejected, the results, and five lanes in three bands.
    assert_eq!(count, 3 + 7 + 1 + 1 + 15);
    programs.home.write("none.toml", "");
    let said = programs.program(&url, &["queues", "declare", "default", "--config", "none.toml", "--json"]);
    let items = Said::of(&mut { said }).ends(0).json()["items"].as_array().unwrap().len();
    assert_eq!(items, count, "every process's model is known to the others");
}

#[tokio::test]
async fn every_strange_model_has_a_lane_and_no_two_share_one() {
    let setup = Setup::new(QueueType::Classic);
    let broker = setup.broker().await;
    let long = "m".repeat(300);
    let models = ["", "_", "*", "#", "a.b", "a b", "ä", "%5F", "%", "openai/gpt-5.1", "A", "a", &long];
    declare(&broker, &models, false).await;
    let jobs: Vec<Job> = models.iter().map(|model| job_for(Some(model))).chain([job_for(None)]).collect();
    assert_eq!(broker.enqueue(&jobs).await.unwrap(), vec![Enqueued::New; jobs.len()]);
    eventually("they are all there", || async { (setup.waiting().values().sum::<u64>() == 14).then_some(()) }).await;
    let lanes = setup.waiting();
    assert_eq!(lanes.len(), 14, "{lanes:?}");
    assert_eq!(lanes["default._.normal"], 1);
}

#[tokio::test]
async fn a_key_leads_to_its_lane_or_to_the_lane_of_all_models_or_nowhere() {
    for queues in [QueueType::Quorum, QueueType::Classic] {
        let setup = Setup::new(queues);
        declare(&setup.broker().await, &["m"], false).await;
        let raw = setup.raw().await;
        for key in ["default.m.high", "default.other.high", "default._.low", "default"] {
            assert!(raw.publish(&to("pq1.in", key)).await, "{key}");
        }
        setup
            .until_waiting(&[
                ("default.m.high", 1),
                ("default._.high", 1),
                ("default._.low", 1),
                ("default._.normal", 1),
            ])
            .await;
        for key in ["elsewhere.m.high", "elsewhere", "default.m.highest", "default.m", "default.m.high.x"] {
            assert!(!raw.publish(&to("pq1.in", key)).await, "{key} leads nowhere");
        }
        assert!(!raw.publish(&delayed("default.m.high", "3000")).await, "there is no such level");
    }
}

#[tokio::test]
async fn what_waited_comes_back_to_its_own_lane_in_time() {
    for queues in [QueueType::Quorum, QueueType::Classic] {
        let setup = Setup::new(queues);
        declare(&setup.broker().await, &["m"], false).await;
        let raw = setup.raw().await;
        let began = Instant::now();
        for (key, level) in
            [("default.m.high", "2000"), ("default.m.low", "1000"), ("default.other.low", "1000"), ("default", "1000")]
        {
            assert!(raw.publish(&delayed(key, level)).await, "{key}");
        }
        assert_eq!(setup.waiting(), BTreeMap::new());
        let soon = [("default.m.low", 1), ("default._.low", 1), ("default._.normal", 1)];
        setup.until_waiting(&soon).await;
        let (first, all) = (began.elapsed(), [soon.as_slice(), &[("default.m.high", 1)]].concat());
        setup.until_waiting(&all).await;
        let second = began.elapsed();
        assert!(first >= Duration::from_secs(1) && second >= Duration::from_secs(2), "{first:?} {second:?}");
        assert!(second < Duration::from_secs(10), "{second:?}");
        assert_eq!(raw.take("pq1.q.default._.low").await.unwrap().routing_key, "default.other.low");
    }
}

#[tokio::test]
async fn other_arguments_are_told_and_end_nothing() {
    let setup = Setup::new(QueueType::Quorum);
    let (programs, url) = (Programs::new(), setup.host.url());
    programs.declare(&url, "", 0);
    let said = programs.declare(&url, "[broker]\nqueue_type = \"classic\"\n", 2);
    let told = said.says(&["there with other arguments", "hint: ", "rabbitmqctl delete_queue"]);
    assert!(
        told.stdout.contains("pq1.q.default._.high") && told.stdout.contains("x-dead-letter-strategy"),
        "{}",
        told.stdout
    );
    programs.declare(&url, "", 0);

    // A process that would make them differently today works with them as they are.
    let mut access = Access::new(&url).unwrap();
    access.amqp.queues = QueueType::Classic;
    access.beside = Beside::Ledger(Box::new(Access::new(&programs.ledger.url()).unwrap()));
    let other = Broker::connect(&access).await.unwrap();
    assert_eq!(other.enqueue(&[job_for(None)]).await.unwrap(), [Enqueued::New]);
    assert!(setup.host.queue("pq1.q.default._.normal").unwrap().quorum);
}

#[tokio::test]
async fn a_user_who_may_not_declare_is_told_how_it_is_done() {
    let setup = Setup::new(QueueType::Quorum);
    let limited = setup.host.url_of("worker", ["^pq1\\.hold\\.", ".*", ".*"]);
    let broker = setup.broker_as(&limited, QueueType::Quorum).await;
    let error = broker.declare(&Queue::standard(), &[], false).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Denied, "{error}");
    assert!(error.to_string().contains("`promptq queues declare default`"), "{error}");
    let lost = broker.enqueue(&[job()]).await.unwrap_err();
    assert_eq!(lost.kind(), Kind::Denied, "{lost}");
    assert!(lost.to_string().contains("`promptq queues declare default`"), "{lost}");

    declare(&setup.broker().await, &[], false).await;
    assert_eq!(broker.enqueue(&[job()]).await.unwrap(), [Enqueued::New], "what is there may be used by anybody");
    let elsewhere = Job { queue: Queue::new("elsewhere").unwrap(), ..job() };
    assert_eq!(broker.enqueue(&[elsewhere]).await.unwrap(), [Enqueued::Refused(Refusal::NoSuchQueue)]);
}

#[tokio::test]
async fn a_lane_with_a_job_outlives_a_prune_and_its_job_is_not_forgotten() {
    // A prune watches its lanes for a while: both at once.
    tokio::join!(outlives_a_prune(QueueType::Quorum), outlives_a_prune(QueueType::Classic));
}

async fn outlives_a_prune(queues: QueueType) {
    let setup = Setup::new(queues);
    let broker = setup.broker().await;
    declare(&broker, &["old", "kept"], false).await;
    let (before, after) = (job_for(Some("old")), job_for(Some("old")));
    assert_eq!(broker.enqueue(std::slice::from_ref(&before)).await.unwrap(), [Enqueued::New]);
    setup.until_waiting(&[("default.old.normal", 1)]).await;

    let pruned = declare(&broker, &["kept"], true).await;
    assert_eq!(pruned.pruned, ["pq1.q.default.old.high", "pq1.q.default.old.low"]);
    let left: Vec<_> = pruned.left.iter().map(|left| (left.name.as_str(), left.why.as_str())).collect();
    assert_eq!(left, [("pq1.q.default.old.normal", "jobs wait in it (1)")]);

    // Nothing more is led there, and a worker whose settings never named the model works it off.
    assert_eq!(broker.enqueue(std::slice::from_ref(&after)).await.unwrap(), [Enqueued::New]);
    setup.until_waiting(&[("default.old.normal", 1), ("default._.normal", 1)]).await;
    let worker = setup.broker().await;
    let mut consumer = worker.consume(terms(&[(Queue::standard(), 1)], Duration::from_secs(45))).await.unwrap();
    let (mut taken, began) = (Vec::new(), Instant::now());
    while taken.len() < 2 {
        assert!(began.elapsed() < Duration::from_secs(30), "leased {taken:?}");
        taken.extend(consumer.next(&want(2)).await.unwrap().deliveries);
    }
    let ids: Vec<_> = taken.iter().map(|delivery| delivery.head.id).collect();
    assert!(ids.contains(&before.id) && ids.contains(&after.id));
}

#[tokio::test]
async fn a_lane_goes_when_it_is_empty_and_may_come_back() {
    let setup = Setup::new(QueueType::Quorum);
    let broker = setup.broker().await;
    declare(&broker, &["old"], false).await;
    let pruned = declare(&broker, &[], true).await;
    assert_eq!((pruned.pruned.len(), pruned.left), (3, Vec::new()));
    assert!(setup.host.queue("pq1.q.default.old.normal").is_none());
    assert!(declare(&broker, &[], true).await.pruned.is_empty());
    let back = declare(&broker, &["old"], false).await;
    assert_eq!(back.made.len(), 3, "{back:?}");
    assert_eq!(broker.enqueue(&[job_for(Some("old"))]).await.unwrap(), [Enqueued::New]);
    setup.until_waiting(&[("default.old.normal", 1)]).await;
}

#[test]
fn other_brokers_need_nothing_of_the_kind() {
    let home = Home::new();
    home.promptq(&["queues", "declare"]).ends(0).prints(&["nothing to declare"]);
    assert!(!home.path("q.db").exists(), "and nothing is made");
    let items = home.promptq(&["queues", "declare", "--json"]).ends(0).json();
    assert_eq!(items["items"], serde_json::json!([]));
}

/// Where programs run, and their ledger.
struct Programs {
    home: Home,
    ledger: RedisServer,
}

impl Programs {
    fn new() -> Self {
        Self { home: Home::new(), ledger: RedisServer::start(Options::cheap()) }
    }

    /// `promptq` at RabbitMQ.
    fn program(&self, url: &str, arguments: &[&str]) -> std::process::Command {
        let mut command = self.home.program("promptq", arguments);
        command.env("PROMPTQ_BROKER", url).env("PROMPTQ_LEDGER", self.ledger.url());
        command
    }

    /// Declares with these settings.
    fn declare(&self, url: &str, settings: &str, code: i32) -> Said {
        self.home.write("promptq.toml", settings);
        Said::of(&mut self.program(url, &["queues", "declare"])).ends(code)
    }
}
