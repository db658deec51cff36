//! Clients that are not ours on Redis: they push a line of JSON and read results from a stream; whatever they push, no
//! line is lost, doubled or in the way of others.

use std::collections::{BTreeMap, HashSet};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use futures_util::future::join_all;
use promptq_common::broker::{Access, Broker, Retention};
use promptq_common::codec;
use promptq_common::job::{Job, JobId, Queue};
use promptq_common::ledger::JobFilter;
use promptq_common::record::{End, State};
use promptq_common::result_line::{ANNOUNCED_BYTES, result_line};
use promptq_common::work::Input;
use promptq_tests::backends::{LONG, terms};
use promptq_tests::fixture::{job, keyed};
use promptq_tests::process::{Home, Said};
use promptq_tests::redis::{Options, RedisServer};
use promptq_tests::steps::{Worker, eventually, list, put, put_one, record, state};
use serde_json::{Value, json};

const INBOX: &str = "{pq:default}:inbox";

async fn broker(server: &RedisServer) -> Broker {
    Broker::connect(&Access::new(&server.url()).unwrap()).await.unwrap()
}

async fn worker(broker: &Broker) -> Worker {
    Worker::on(broker, terms(&[(Queue::standard(), 1)], LONG)).await
}

fn push(server: &RedisServer, lines: &[&str]) {
    for line in lines {
        server.must(&["RPUSH", INBOX, line]);
    }
    server.must(&["RPUSH", "{pq:default}:wake", "1"]);
}

fn inbox_length(server: &RedisServer) -> i64 {
    server.must(&["LLEN", INBOX]).number()
}

/// What was announced, in order.
fn announced(server: &RedisServer) -> Vec<Value> {
    let entries = server.must(&["XRANGE", "{pq:default}:results", "-", "+"]);
    let texts = entries.list().iter().map(|entry| entry.list()[1].list()[1].text());
    texts.map(|text| serde_json::from_str(&text).unwrap()).collect()
}

#[tokio::test]
async fn a_line_becomes_a_job_and_its_result_is_announced() {
    let server = RedisServer::start(Options::cheap());
    let broker = broker(&server).await;
    push(&server, &[r#"{"id":"a-1","prompt":"hi","model":"m","promptq":{"priority":7,"tags":{"k":"v"}}}"#]);
    let mut worker = worker(&broker).await;
    let delivery = worker.one().await;
    let head = &delivery.head;
    let seen = (head.priority.get(), head.custom_id.as_deref(), head.lane.model_str(), head.keyed);
    assert_eq!(seen, (7, Some("a-1"), "m", true));
    assert_eq!((head.id, &head.tags["k"]), (JobId::derived(&Queue::standard(), None, "a-1"), &"v".to_owned()));
    let id = head.id;
    assert_eq!((delivery.open().unwrap().id, inbox_length(&server)), (id, 0));
    promptq_tests::steps::end(delivery, End::Succeeded).await;
    let line: Value = serde_json::from_str(&result_line(&record(&broker, id).await, None)).unwrap();
    assert_eq!(announced(&server), [line]);
}

#[tokio::test]
async fn a_line_with_an_id_or_a_key_is_one_job_however_often_it_is_pushed() {
    let server = RedisServer::start(Options::cheap());
    let broker = broker(&server).await;
    let named = r#"{"id":"a","prompt":"hi"}"#;
    let with_key = r#"{"prompt":"hi","promptq":{"idempotency_key":"k"}}"#;
    let plain = r#"{"prompt":"hi"}"#;
    push(&server, &[named, named, with_key, with_key, plain, plain, named]);
    let mut worker = worker(&broker).await;
    assert_eq!(worker.drain().await.len(), 4);
    push(&server, &[named, with_key]);
    assert_eq!(worker.drain().await.len(), 0);
    assert_eq!((inbox_length(&server), list(&broker, &JobFilter::default(), 100).await.len()), (0, 4));
    // A line is the same job as a submission under the same key.
    let submitted = put_one(&broker, keyed("submitted", "text")).await;
    push(&server, &[r#"{"prompt":"text","model":"mock","promptq":{"idempotency_key":"submitted"}}"#]);
    assert_eq!(worker.drain().await, [submitted]);
}

#[tokio::test]
async fn what_nobody_can_read_is_dead_with_its_cause_and_holds_up_nobody() {
    let server = RedisServer::start(Options::cheap());
    let broker = broker(&server).await;
    let bad = [
        "not json",
        "",
        "[1]",
        r#"{"id":"mine","prompt":"secret","modle":"m"}"#,
        r#"{"prompt":"hi","promptq":{"queue":"other"}}"#,
        r#"{"prompt":"hi","prompt":"ho"}"#,
    ];
    push(&server, &bad);
    let huge = format!(r#"{{"prompt":"{}"}}"#, "x".repeat(codec::MAX_BYTES));
    push(&server, &[&huge, r#"{"id":"good","prompt":"hi"}"#]);
    let mut worker = worker(&broker).await;
    assert_eq!(worker.one().await.head.custom_id.as_deref(), Some("good"));
    assert_eq!(inbox_length(&server), 0);
    let groups = broker.ledger().dead_groups(None).await.unwrap();
    let counts: Vec<_> = groups.iter().map(|group| (group.code.as_str(), group.count)).collect();
    assert_eq!(counts, [("unreadable_job", 7)]);
    let told = announced(&server);
    let whys: Vec<&str> = told.iter().map(|line| line["error"]["message"].as_str().unwrap()).collect();
    for (place, part) in [(0, "expected"), (3, "modle"), (4, "queue other"), (5, "twice"), (6, "the limit is")] {
        assert!(whys[place].contains(part), "{part}: {whys:?}");
    }
    assert_eq!((&told[3]["custom_id"], &told[3]["promptq"]["state"]), (&"mine".into(), &"dead".into()));
    assert!(!whys.iter().any(|why| why.contains("secret")), "{whys:?}");
    // Put back in line it is given to a worker as it came, who cannot read it either.
    let dead: JobId = told[4]["promptq"]["job_id"].as_str().unwrap().parse().unwrap();
    broker.redrive(&[dead]).await.unwrap();
    let again = worker.one().await;
    assert_eq!((again.head.id, again.open().is_err()), (dead, true));
}

#[tokio::test]
async fn lines_that_nobody_took_in_are_moved_as_well() {
    let server = RedisServer::start(Options::cheap());
    let broker = broker(&server).await;
    let lines: Vec<String> = (0..450).map(|n| json!({ "id": n.to_string(), "prompt": "hi" }).to_string()).collect();
    push(&server, &lines.iter().map(String::as_str).collect::<Vec<_>>());
    put_one(&broker, job()).await;
    let page = broker.waiting(&Queue::standard(), None, 1_000).await.unwrap();
    assert_eq!((page.items.len(), inbox_length(&server)), (451, 0));
}

#[tokio::test]
async fn an_inbox_that_is_no_list_keeps_nobody_from_leasing() {
    let server = RedisServer::start(Options::cheap());
    let broker = broker(&server).await;
    server.must(&["SET", INBOX, "x"]);
    let id = put_one(&broker, job()).await;
    assert_eq!(worker(&broker).await.drain().await, [id]);
}

#[tokio::test]
async fn on_a_full_server_lines_stay_and_jobs_go_on() {
    let server = RedisServer::start(Options::cheap());
    let broker = broker(&server).await;
    let id = put_one(&broker, job()).await;
    push(&server, &[r#"{"id":"a","prompt":"hi"}"#]);
    server.must(&[&["RPUSH", "{pq:default}:wake"][..], &["1"; 200]].concat());
    server.must(&["CONFIG", "SET", "maxmemory", "1"]);
    let mut worker = worker(&broker).await;
    assert_eq!(worker.drain().await, [id]);
    assert_eq!(inbox_length(&server), 1);
    server.must(&["CONFIG", "SET", "maxmemory", "0"]);
    assert_eq!(worker.one().await.head.custom_id.as_deref(), Some("a"));
    assert!(server.must(&["LLEN", "{pq:default}:wake"]).number() <= 65, "tokens pile up");
}

#[tokio::test]
async fn an_id_with_other_content_is_told_apart_and_never_run_by_itself() {
    let server = RedisServer::start(Options::cheap());
    let broker = broker(&server).await;
    let lines = [("a", "one"), ("a", "two"), ("b", "one"), ("a", "three"), ("c", "one")];
    let lines = lines.map(|(id, text)| json!({ "id": id, "prompt": text }).to_string());
    push(&server, &lines.each_ref().map(String::as_str));
    let mut worker = worker(&broker).await;
    assert_eq!((worker.drain().await.len(), inbox_length(&server)), (3, 0));
    let told = announced(&server);
    let refused: Vec<_> = told.iter().filter(|line| line["error"]["code"] == "id_conflict").collect();
    assert_eq!((refused.len(), &refused[0]["custom_id"]), (2, &"a".into()), "{told:?}");
    // Whoever wants it all the same puts it back in line.
    let id: JobId = refused[0]["promptq"]["job_id"].as_str().unwrap().parse().unwrap();
    broker.redrive(&[id]).await.unwrap();
    let delivery = worker.one().await;
    let job = delivery.open().unwrap();
    assert_eq!((job.id, job.keyed, delivery.head.id), (id, false, id));
}

#[tokio::test]
async fn many_workers_take_each_line_once() {
    const LINES: usize = 1_500;
    let server = RedisServer::start(Options::cheap());
    let broker = broker(&server).await;
    let line = json!({ "prompt": "the same" }).to_string();
    for _ in 0..LINES / 500 {
        server.must(&[&["RPUSH", INBOX][..], &vec![line.as_str(); 500]].concat());
    }
    let depth = broker.depth(&Queue::standard()).await.unwrap();
    assert_eq!(depth.ready, LINES as u64, "what has not been taken in is waiting all the same");
    let mut workers = join_all((0..4).map(|_| worker(&broker))).await;
    let ran = join_all(workers.iter_mut().map(Worker::drain)).await.concat();
    assert_eq!((ran.len(), ran.into_iter().collect::<HashSet<_>>().len()), (LINES, LINES));
    assert_eq!(inbox_length(&server), 0);
}

fn prompt(job: Job) -> String {
    let Input::Prompt(prompt) = job.work.input else { panic!("a prompt") };
    prompt.text
}

#[tokio::test]
async fn a_worker_may_die_while_it_takes_lines_in() {
    for armed in
        ["redis.inbox.before_call=return", "redis.inbox.after_call=return", "redis.inbox.after_call=1*off->return"]
    {
        let server = RedisServer::start(Options::cheap());
        let folder = tempfile::tempdir().unwrap();
        let lines: Vec<String> = (0..450).map(|n| json!({ "prompt": format!("{n}") }).to_string()).collect();
        push(&server, &lines.iter().map(String::as_str).collect::<Vec<_>>());
        let mut child = Command::new(env!("CARGO_BIN_EXE_crash_child"));
        child.args([&server.url(), &folder.path().join("log").display().to_string()]).env("FAILPOINTS", armed);
        let said = Said::of(child.stdin(Stdio::null()));
        assert_eq!(said.code, 137, "{armed}: {}", said.stderr);
        let broker = broker(&server).await;
        let mut worker = worker(&broker).await;
        let mut ran: BTreeMap<String, u32> = BTreeMap::new();
        while ran.values().sum::<u32>() < 450 {
            let delivery = worker.one().await;
            let job = delivery.open().unwrap();
            promptq_tests::steps::end(delivery, End::Succeeded).await;
            // What the child submitted by itself has a key.
            if !job.keyed {
                *ran.entry(prompt(job)).or_default() += 1;
            }
        }
        worker.drain().await;
        assert_eq!((ran.len(), inbox_length(&server)), (450, 0), "{armed}");
    }
}

#[tokio::test]
async fn an_end_without_a_worker_is_announced_too() {
    let server = RedisServer::start(Options::cheap());
    let broker = broker(&server).await;
    let rows = [None, Some(7), Some(300), Some(70_000), Some(1 << 40)];
    let jobs: Vec<Job> = (rows.iter().zip(["a", "\"b\" ü", "c", "d", ""]))
        .map(|(row, name)| Job { row: *row, custom_id: Some(name.to_owned()).filter(|name| !name.is_empty()), ..job() })
        .collect();
    put(&broker, &jobs).await;
    push(&server, &[r#"{"id":"late","prompt":"hi","promptq":{"deadline":"2020-01-01T00:00:00Z"}}"#]);
    broker.cancel(&jobs.iter().map(|job| job.id).collect::<Vec<_>>()).await.unwrap();
    let mut worker = worker(&broker).await;
    let late = JobId::derived(&Queue::standard(), None, "late");
    // Taken in all the same, and not leased before it is late.
    broker.pause(&Queue::standard(), Some("until it is late")).await.unwrap();
    worker.finds_nothing().await;
    eventually("the late one has expired", || async {
        broker.sweep(&Retention::standard()).await.unwrap();
        broker.ledger().fetch(&[late]).await.unwrap().remove(0).filter(|job| job.record.is_some()).map(|_| ())
    })
    .await;
    let told = announced(&server);
    for (job, line) in jobs.iter().zip(&told) {
        let whole: Value = serde_json::from_str(&result_line(&record(&broker, job.id).await, None)).unwrap();
        for key in ["id", "custom_id", "response", "error"] {
            assert_eq!(line[key], whole[key], "{key}");
        }
        for key in ["job_id", "batch", "queue", "state", "epoch"] {
            assert_eq!(line["promptq"][key], whole["promptq"][key], "{key}");
        }
    }
    let last = told.last().unwrap();
    let seen = (&last["custom_id"], &last["promptq"]["state"], &last["error"]["code"]);
    assert_eq!(seen, (&"late".into(), &"expired".into(), &"deadline_passed".into()));
}

#[tokio::test]
async fn a_large_answer_is_announced_without_its_body() {
    let server = RedisServer::start(Options::cheap());
    let broker = broker(&server).await;
    push(&server, &[r#"{"id":"a","prompt":"hi"}"#]);
    let mut worker = worker(&broker).await;
    let delivery = worker.one().await;
    let mut ended = promptq_tests::fixture::record(&delivery.head, delivery.lease.id(), End::Succeeded);
    ended.answer = Some(promptq_tests::fixture::answer(&"x".repeat(ANNOUNCED_BYTES)));
    delivery.lease.settle(promptq_common::broker::Verdict::End(Box::new(ended))).await.unwrap();
    let told = announced(&server);
    assert_eq!((&told[0]["response"]["status_code"], &told[0]["response"]["body"]), (&200.into(), &Value::Null));
}

/// redis-py, a real worker and the mock provider.
#[tokio::test(flavor = "multi_thread")]
async fn redis_py_pushes_a_job_and_reads_its_result() {
    let python = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/tools/redis_py/bin/python");
    assert!(python.exists(), "redis-py is not installed (target/tools/redis_py); hint: run tests/install/redis_py.sh");
    let server = RedisServer::start(Options::cheap());
    let home = Home::new();
    let worker = home.program("promptq-worker", &["--broker", &server.url_of("promptq"), "--concurrency", "4"]);
    let mut worker = tokio::process::Command::from(worker);
    let _worker = worker.stderr(Stdio::null()).kill_on_drop(true).spawn().unwrap();
    let mut client = Command::new(python);
    client.args(["-c", include_str!("../src/foreign.py"), &server.url_of("promptq-foreign"), "default", "3"]);
    let mut client = client.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let line = r#"{"id": "twice", "prompt": "Say hello.", "model": "mock"}"#;
    let other = r#"{"prompt": "Sag Grüß Gott.", "model": "mock"}"#;
    let mut input = client.stdin.take().unwrap();
    input.write_all(format!("{line}\n{line}\n").as_bytes()).unwrap();
    input.write_all(b"\xff\xfe garbage\n").unwrap();
    input.write_all(format!("{other}\n").as_bytes()).unwrap();
    drop(input);
    let output = client.wait_with_output().unwrap();
    let broker = broker(&server).await;
    let twice = JobId::derived(&Queue::standard(), None, "twice");
    assert_eq!(state(&broker, twice).await, State::Succeeded);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let results: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |state: &str| results.iter().filter(|line| line["promptq"]["state"] == state).collect::<Vec<_>>();
    assert_eq!((of("succeeded").len(), of("dead").len()), (2, 1), "{said}");
    assert_eq!(of("dead")[0]["error"]["message"], "the line is not UTF-8");
    let named: Vec<_> = results.iter().filter(|line| line["custom_id"] == "twice").collect();
    assert_eq!((named.len(), &named[0]["promptq"]["job_id"]), (1, &twice.to_string().into()));
    assert!(!named[0]["promptq"]["text"].as_str().unwrap().is_empty(), "{said}");
    assert_eq!(list(&broker, &JobFilter::default(), 100).await.len(), 3);
}
