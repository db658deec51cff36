//! Limits as people and scripts meet them: listed, shown, set for the fleet, released, told to those who ask why.

use std::process::Child;
use std::time::{Duration, Instant};

use promptq_common::broker::Broker;
use promptq_common::job::{BatchName, Job, JobId, Queue};
use promptq_common::ledger::WorkerReport;
use promptq_common::limits::{self, Amounts, Ask, Cap, Measure, Per};
use promptq_common::outcome::FailureClass;
use promptq_common::work::Work;
use promptq_tests::fixture::held_back;
use promptq_tests::process::{Home, Said};
use promptq_tests::rabbit::RabbitServer;
use promptq_tests::site::{Hand, until};
use promptq_tests::steps::put;
use rustix::process::Signal;
use serde_json::{Value, json};

fn only(home: &Home) -> Value {
    let list = home.promptq(&["limits", "list", "--json"]).ends(0).json();
    assert_eq!(list["items"].as_array().unwrap().len(), 1, "{list}");
    list["items"][0].clone()
}

fn jobs(count: usize) -> Vec<Job> {
    (0..count).map(|n| Job::new(Queue::standard(), Work::prompt(Some("mock"), format!("p{n}")))).collect()
}

fn workers(home: &Home, count: usize, arguments: &[&str]) -> Vec<Child> {
    (0..count).map(|_| home.program("promptq-worker", arguments).spawn().expect("starts")).collect()
}

/// A home whose mock may be called 600 times a minute.
fn limited(requests: &str) -> Home {
    let home = Home::new();
    let text = format!("[limits.mock]\nrequests = \"{requests}\"\n[mock]\nlatency = [\"1ms\", \"1ms\"]\n");
    home.write("promptq.toml", &text);
    home
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_is_kept_by_workers_listed_shown_set_and_released() {
    let home = limited("600/min");
    let broker = home.broker().await;
    let none = home.promptq(&["limits", "list", "--json"]).ends(0);
    let unused = &none.json()["items"][0];
    assert_eq!(
        (&unused["limit"], &unused["used"], &unused["state"]),
        (&json!("600 requests/min"), &json!(0), &json!("open"))
    );
    home.promptq(&["limits", "list", "--fields", "key,brief"]).ends(0).prints(&["mock\tnot used yet"]);
    home.promptq(&["limits", "show", "mock"]).ends(0).prints(&["600 requests/min, not used by any worker yet"]);
    put(&broker, &jobs(90)).await;
    let begun = Instant::now();
    for mut worker in workers(&home, 2, &["--exit-when-idle=1s"]) {
        assert!(worker.wait().unwrap().success());
    }
    // A tenth of a minute's at once, then 11 a second at most.
    assert!(begun.elapsed() > Duration::from_millis(2_500), "{:?}", begun.elapsed());
    let limit = only(&home);
    assert_eq!(
        (&limit["key"], &limit["limit"], &limit["used"]),
        (&json!("mock"), &json!("600 requests/min"), &json!(90))
    );
    assert_eq!((&limit["held"], &limit["state"]), (&json!(0), &json!("open")), "those who left hold nothing");

    // One that no setting names, taken back, is none: not even before a worker asks again.
    home.promptq(&["limits", "set", "mock", "tokens=9/day"]).ends(0).prints(&["mock: no limit → 9 tokens/day"]);
    let off = home.promptq(&["limits", "set", "mock", "tokens=off/day"]).ends(0);
    off.prints(&["mock: 9 tokens/day → no limit, as configured"]);
    assert_eq!(only(&home)["limit"], "600 requests/min");

    let set = home.promptq(&["limits", "set", "mock", "requests=30/min", "--reason", "they asked"]).ends(0);
    set.prints(&["mock: 600 requests/min → 30 requests/min, for every worker, until changed"]);
    let limit = only(&home);
    assert_eq!(
        (&limit["limit"], &limit["set"], &limit["configured"]),
        (&json!("30 requests/min"), &json!(30), &json!(600))
    );
    assert_eq!((&limit["from"], &limit["state"]), (&json!("set"), &json!("full")), "90 of 30 were used");
    home.promptq(&["limits", "show", "mock"]).ends(0).prints(&["30 requests/min, set (600 configured)", "NAME=off"]);
    home.promptq(&["limits", "release", "mock", "--json"]).ends(0);
    let off = home.promptq(&["limits", "set", "mock", "requests=off", "--json"]).ends(0).json();
    assert_eq!((&off["changes"][0]["now"], &off["changes"][0]["set"]), (&json!("600 requests/min"), &json!(false)));
    assert_eq!(only(&home)["limit"], "600 requests/min");
    let table = home.promptq(&["limits", "list", "--fields", "key,limit,used"]).ends(0);
    table.prints(&["KEY\tLIMIT\tUSED\nmock\t600 requests/min\t90"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_meant_changes_nothing() {
    let home = limited("600/min");
    for arguments in [&["limits", "list"][..], &["limits", "set", "mock", "requests=9"], &["limits", "release", "mock"]]
    {
        home.promptq(arguments).ends(5).says(&["error[not-found]: there is no queue at /"]);
    }
    let broker = home.broker().await;
    put(&broker, &jobs(1)).await;
    broker.ledger().seal(&BatchName::new("nov").unwrap(), &Queue::standard()).await.unwrap();
    for (free, cap, hint) in
        [("batch:nov", "usd=40", "--max-cost"), ("budget:default", "usd=9/day", "[queues.default]")]
    {
        let said = home.promptq(&["limits", "set", free, cap]).ends(5);
        said.says(&["error[not-found]", "nothing was changed", hint]);
        home.promptq(&["limits", "set", free, "tokens=9"]).ends(2).says(&["error[bad-limit]", "only usd is limited"]);
    }
    home.promptq(&["limits", "set", "moc", "requests=30/min"]).ends(5).says(&["\"moc\"", "hint: did you mean mock?"]);
    home.promptq(&["limits", "release", "batch:none"]).ends(5).says(&["there are mock"]);
    for (wrong, says) in [
        ("speed=30/min", "there are requests"),
        ("requests", "has no ="),
        ("requests=0", "must be an amount"),
        ("requests=5/s", "must be an amount"),
        ("usd=0", "hint: such as usd=20/day, or usd=off for what the settings say"),
        ("requests=x", "hint: such as requests=300/min, or requests=off for what the settings say"),
    ] {
        let said = home.promptq(&["limits", "set", "mock", "tokens=9", wrong]).ends(2);
        said.says(&["error[bad-limit]", says, "nothing was changed"]);
    }
    let off = home.promptq(&["limits", "set", "batch:nov", "usd=off"]).ends(2);
    off.says(&["cannot be off", "hint: a batch's cap is raised, such as usd=40"]);
    home.promptq(&["limits", "set", "mock"]).ends(2);
    assert_eq!(only(&home)["workers"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_nobody_keeps_to_is_neither_set_nor_released() {
    let home = limited("600/min");
    let (broker, queue, batch) = (home.broker().await, Queue::standard(), BatchName::new("nov").unwrap());
    put(&broker, &[Job { batch: Some(batch.clone()), ..jobs(1).remove(0) }]).await;
    broker.ledger().report(&report(&queue, "acme/gpt-4o", FailureClass::Account, "no credit")).await.unwrap();
    for _ in 0..2 {
        // Were the first to leave a trace, the second would be taken for known.
        home.promptq(&["limits", "release", "acme/gpt-4"]).ends(5).says(&["hint: did you mean acme/gpt-4o?"]);
        home.promptq(&["limits", "release", "acm"]).ends(5).says(&["\"acm\""]);
    }
    home.promptq(&["limits", "release", "acme"]).ends(0);
    for (key, cap, says) in [
        ("acme/gpt-4o", "requests=9", "hint: give it one in the workers' settings, in [limits.\"acme/gpt-4o\"]"),
        ("batch:nov", "usd=4", "the jobs of batch nov were enqueued without a cap"),
        ("budget:default", "usd=4/day", "in [queues.default]"),
    ] {
        home.promptq(&["limits", "set", key, cap]).ends(5).says(&["error[not-found]", says, "nothing was changed"]);
    }
    assert!(limits::look(broker.ledger(), "batch:nov").await.unwrap().is_none());
    home.write("promptq.toml", "[queues.default]\nbudget = \"20/day\"\n");
    home.promptq(&["limits", "show", "budget:default"]).ends(0).prints(&["$20/day, not used by any worker yet"]);
    let set = home.promptq(&["limits", "set", "budget:default", "usd=4/day"]).ends(0);
    set.prints(&["budget:default: $20/day → $4/day, for every worker"]);
    let other = home.promptq(&["limits", "set", "budget:default", "requests=9"]).ends(2);
    other.says(&["of budget:default only usd is limited", "nothing was changed", "usd=40/day"]);
    home.promptq(&["limits", "release", "mock"]).ends(5);
    home.write("promptq.toml", "[providers.far]\nbase_url = \"http://127.0.0.1:9/v1\"\n");
    home.promptq(&["limits", "release", "far"]).ends(0);
}

#[test]
fn a_ledger_that_cannot_share_limits_says_so() {
    let (server, home) = (RabbitServer::shared(), limited("600/min"));
    let host = server.host();
    let promptq = |words: &[&str]| {
        let mut command = home.program("promptq", words);
        let store = format!("file://{}", home.path("store").display());
        let command = command.env("PROMPTQ_BROKER", host.url()).env("PROMPTQ_LEDGER", "store");
        Said::of(command.env("PROMPTQ_STORE", store))
    };
    for words in [&["limits", "set", "mock", "requests=9"][..], &["limits", "release", "mock"]] {
        promptq(words).ends(2).says(&[
            "error[unsupported]",
            "Redis and SQLite",
            "hint: each worker keeps to worker.limit_share",
        ]);
    }
    home.write("in.txt", "a\n");
    let dry = ["submit", "in.txt", "--in", "lines", "-m", "mock", "--dry-run"];
    promptq(&dry).ends(0).prints(&["limits  mock: 600 requests/min: room for all\n"]);
    promptq(&[&dry[..], &["--max-cost", "1"]].concat()).ends(2).says(&["--max-cost cannot be kept"]);
    let list = promptq(&["limits", "list", "--json"]).ends(0);
    assert_eq!(list.json()["items"], json!([]));
    list.says(&["limits are not shared by this ledger"]);
    let doctor = promptq(&["doctor"]);
    doctor.prints(&["warn    limits: mock 600 requests/min; not shared", "keeps to 0.125 of each"]);
}

/// A report of a worker that is held back by a key, for jobs of this queue and of the model `mock`.
fn report(queue: &Queue, key: &str, class: FailureClass, detail: &str) -> WorkerReport {
    held_back(std::slice::from_ref(queue), key, class, detail)
}

/// A key of which all is used.
async fn fill(broker: &Broker, key: &str, seq: u64, refused: Option<(u64, i64)>) {
    let caps = vec![Cap { measure: Measure::Requests, per: Per::Minute, most: 500 }];
    let spent = vec![(0, Amounts { requests: 500, ..Amounts::NONE })];
    let ask = Ask { id: 1, seq, caps, spent, refused, ..Ask::default() };
    limits::change(broker.ledger(), key, |pool, now| pool.ask(now, &ask)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_why_is_told_which_limit_and_until_when() {
    let home = limited("500/min");
    let (broker, queue) = (home.broker().await, Queue::standard());
    let batch = BatchName::new("nov").unwrap();
    let job = Job { batch: Some(batch.clone()), ..jobs(1).remove(0) };
    let id: JobId = job.id;
    put(&broker, &[job]).await;
    broker.ledger().seal(&batch, &queue).await.unwrap();
    let why = || home.promptq(&["jobs", "why", &id.to_string(), "--json"]).ends(0).json();
    assert_eq!(why()["limit"], Value::Null);

    // Nobody has told of it yet: by the settings alone.
    broker
        .ledger()
        .report(&WorkerReport { held: vec![], blocked: None, ..report(&queue, "x", FailureClass::Account, "") })
        .await
        .unwrap();
    fill(&broker, "mock", 1, None).await;
    let full = why();
    let said = full["why"].as_str().unwrap();
    assert!(
        said.contains("500 of 500 requests/min of mock are used") && said.contains("more workers will not help"),
        "{said}"
    );
    assert_eq!((&full["limit"]["key"], &full["limit"]["state"]), (&json!("mock"), &json!("full")));

    let mut used = report(&queue, "mock", FailureClass::Throttled, "all of 500 requests/min is used; …");
    used.held[0].cap = Some(Cap { measure: Measure::Requests, per: Per::Minute, most: 500 });
    broker.ledger().report(&used).await.unwrap();
    let line = "limit-bound: mock 500 of 500 requests/min";
    home.promptq(&["status", "nov"]).ends(0).prints(&[line, "more workers will not help"]);
    home.promptq(&["queues", "list"]).ends(0).prints(&[line]);
    let status = home.promptq(&["status", "nov", "--json"]).ends(0).json();
    assert_eq!((&status["blocked"][0]["key"], &status["blocked"][0]["state"]), (&json!("mock"), &json!("full")));
    let queues = home.promptq(&["queues", "list", "--json"]).ends(0).json();
    assert_eq!(queues["items"][0]["blocked"][0]["caps"][0]["used"], 500);

    fill(&broker, "mock", 2, Some((9, 60_000))).await;
    let frozen = why();
    assert!(frozen["why"].as_str().unwrap().contains("mock refused a call and is frozen for"), "{frozen}");
    home.promptq(&["limits", "release", "mock"]).ends(0).prints(&["mock is released"]);
    assert_eq!(only(&home)["frozen_until"], Value::Null);

    let account = report(&queue, "mock", FailureClass::Account, "insufficient_quota: no credit left");
    broker.ledger().report(&account).await.unwrap();
    let held = why();
    let said = held["why"].as_str().unwrap();
    assert!(
        said.contains("insufficient_quota: no credit left") && said.contains("promptq limits release mock"),
        "{said}"
    );
    assert_eq!(held["limit"]["blocked"][0]["class"], "account");
    home.promptq(&["limits", "show", "mock"]).ends(0).prints(&["account refused, tried again in", "default/mock"]);
    home.promptq(&["status", "nov"]).ends(0).prints(&["account refused: mock (insufficient_quota: no credit left)"]);
    let dated = report(&queue, "acme/gpt-4o", FailureClass::Account, "no credit");
    broker.ledger().report(&dated).await.unwrap();
    home.promptq(&["limits", "set", "acme", "requests=9"]).ends(5).says(&["there are acme/gpt-4o"]);
    let mut slowed = report(&queue, "acme/slow", FailureClass::Capacity, "it has too much to do");
    slowed.held[0].at_once = Some(12);
    broker.ledger().report(&slowed).await.unwrap();
    home.promptq(&["limits", "list"]).ends(0).prints(&["at most 12 at once"]);
    home.promptq(&["limits", "show", "acme/slow"])
        .ends(0)
        .prints(&["it has too much to do, for 2m", "at most 12 calls"]);
    home.promptq(&["limits", "release", "acme"]).ends(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_shows_the_rules_and_names_those_that_no_job_comes_under() {
    let home = limited("600/min");
    home.promptq(&["doctor"]).ends(0).prints(&["ok      limits: mock 600 requests/min; shared by all workers"]);
    let text = "[limits.mock]\nrequests = 9\n[limits.\"acme/fast\"]\nrequests = 9\n";
    home.write("promptq.toml", text);
    let said = home.promptq(&["doctor"]).ends(0);
    said.prints(&["warn    limits: no job comes under [limits.\"acme/fast\"]", "there is no [providers.acme]"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_state_names_the_command_that_mends_it() {
    let home = limited("600/min");
    let broker = home.broker().await;
    put(&broker, &jobs(3)).await;
    assert!(broker.ledger().swap_limit("mock", &[], &[200, 1]).await.unwrap());
    home.promptq(&["limits", "reset", "moc", "--yes"]).ends(5).says(&["did you mean mock?"]);
    for arguments in
        [&["limits", "list"][..], &["limits", "set", "mock", "requests=9"], &["submit", "in.txt", "--dry-run"]]
    {
        home.write("in.txt", "a\nb\n");
        let said = home.promptq(
            &[arguments, if arguments[0] == "submit" { &["--in", "lines", "-m", "mock"] } else { &[] }].concat(),
        );
        said.ends(1).says(&[
            "error[corrupt]",
            "\"mock\" is damaged",
            "hint: ",
            "promptq limits reset \"mock\" begins it anew",
        ]);
    }
    let worker = home.program("promptq-worker", &["--admin=off", "--drain-timeout=1s"]);
    let mut worker = Hand::start(worker, home.path("worker.log"));
    until("it says so", async || worker.log().contains("promptq limits reset").then_some(())).await;
    worker.signal(Signal::TERM);
    let code = until("it has given back what waits for the limit", async || worker.code()).await;
    assert!(matches!(code, Some(0 | 124)), "{code:?}: {}", worker.log());
    home.promptq(&["limits", "reset", "mock"]).ends(2).says(&["reset of 1 limit mock (it cannot be read", "--yes"]);
    home.promptq(&["limits", "reset", "mock", "--dry-run"])
        .ends(0)
        .prints(&["would reset 1 limit mock (it cannot be read"]);
    let reset = home.promptq(&["limits", "reset", "mock", "--yes", "--reason", "damaged"]).ends(0);
    reset.prints(&["mock is reset"]).says(&["warning: mock: it cannot be read: what is used counts from 0 again"]);
    home.promptq(&["limits", "list"]).ends(0);
    home.promptq(&["limits", "reset", "mock", "--yes", "--json"]).ends(0).prints(&["\"reset\": false"]);
    home.program("promptq-worker", &["--once"]).status().unwrap();
    assert_eq!(only(&home)["used"], 3, "workers begin it anew");
}
