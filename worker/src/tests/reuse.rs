//! Stored answers given again: who gets one, who does not, and what a store in trouble changes (nothing).

use std::time::Instant;

use promptq_common::job::Extras;
use promptq_common::limits::{Cap, Measure, Per, Rule};
use promptq_common::outcome::Usd;
use promptq_common::record::Output;
use promptq_common::store::Kept;
use promptq_common::time::Timestamp;
use promptq_common::work::{Input, Prompt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::reuse::plain_key;

const HOUR: Duration = Duration::from_secs(3_600);

/// A job that takes a stored answer of the last hour.
fn asking(text: &str) -> Job {
    Job { extras: Extras { reuse: Some(HOUR), ..Extras::default() }.kept(), ..job("m", text) }
}

/// A worker whose model `m` answers with the prompt and how often it was called, on this store.
fn rig(store: &Store) -> (Rig, Arc<Scripted>) {
    let mut rig = Rig::new();
    rig.store = Some(store.clone());
    let calls = AtomicU32::new(0);
    let script = move |job: &Job, _: &RunContext| {
        let Input::Prompt(prompt) = &job.work.input else { panic!("not a prompt") };
        Play::Answer(format!("{}: {}", prompt.text, calls.fetch_add(1, Ordering::SeqCst) + 1))
    };
    let runner = rig.runs("m", Scripted::new("m", script));
    (rig, runner)
}

/// The job's record, once it has ended.
async fn answered(rig: &Rig, job: &Job) -> Record {
    rig.broker.enqueue(std::slice::from_ref(job)).await.unwrap();
    assert_eq!(rig.ends(&[job.id]).await, [End::Succeeded]);
    rig.record(job.id).await
}

/// The same, once its answer is there for others.
async fn answered_and_kept(rig: &Rig, store: &Store, job: &Job) -> Record {
    let record = answered(rig, job).await;
    let kept =
        async || store.reusable(&plain_key(job)).await.is_ok_and(|kept| kept.is_some_and(|kept| kept.job == job.id));
    rig.until(kept).await;
    record
}

fn source(record: &Record) -> Option<JobId> {
    record.answer.as_ref()?.origin.as_ref()?.reused_from
}

fn text(record: &Record) -> &str {
    match &record.answer.as_ref().unwrap().output {
        Output::Inline(Body::Text(text)) => text,
        Output::Inline(Body::Json(_)) | Output::Stored(_) => panic!("no text in the record"),
    }
}

#[tokio::test(start_paused = true)]
async fn the_same_question_is_called_once_and_then_free() {
    let store = Store::memory();
    let (mut rig, runner) = rig(&store);
    rig.start();
    let (first, again) = (asking("q"), asking("q"));
    let paid = answered_and_kept(&rig, &store, &first).await;
    let free = answered(&rig, &again).await;
    assert_eq!((runner.started(), text(&paid), text(&free)), (1, "q: 1", "q: 1"));
    assert_eq!((source(&paid), source(&free)), (None, Some(first.id)));
    assert_eq!((free.history.cost, free.history.usage), (Some(Usd::default()), Usage::default()));
    assert_eq!((free.history.recent.len(), free.history.recent[0].cost), (1, Some(Usd::default())));
    let third = answered(&rig, &asking("q")).await;
    assert_eq!(source(&third), Some(first.id), "as old as it is, however often it is given");
}

#[tokio::test(start_paused = true)]
async fn another_question_another_tenant_and_who_does_not_ask_are_called() {
    let store = Store::memory();
    let (mut rig, runner) = rig(&store);
    let other = rig.runs("m2", Scripted::new("m2", |_, _| Play::Answer("other".into())));
    rig.start();
    answered_and_kept(&rig, &store, &asking("q")).await;
    let prompt = |change: fn(&mut Prompt)| {
        let mut job = asking("q");
        let Input::Prompt(prompt) = &mut job.work.input else { panic!("not a prompt") };
        change(prompt);
        job
    };
    let questions = [
        asking("Q"),
        prompt(|prompt| prompt.params = r#"{"temperature":0}"#.into()),
        prompt(|prompt| prompt.params = r#"{"temperature":0.0}"#.into()),
        prompt(|prompt| prompt.system = Some(String::new())),
        Job { tenant: Some("acme".into()), ..asking("q") },
    ];
    for (calls, job) in (2..).zip(&questions) {
        assert_eq!((source(&answered_and_kept(&rig, &store, job).await), runner.started()), (None, calls), "{calls}");
    }
    assert_eq!((source(&answered(&rig, &job("m", "q")).await), runner.started()), (None, 7));
    let same = prompt(|prompt| prompt.params = "{\"temperature\" : 0}".into());
    assert_eq!(source(&answered(&rig, &same).await), Some(questions[1].id), "written in another way");
    let mut moved = asking("q");
    moved.work.model = Some("m2".into());
    answered(&rig, &moved).await;
    assert_eq!((runner.started(), other.started()), (7, 1));
}

#[tokio::test(start_paused = true)]
async fn what_is_too_old_is_called_anew_and_replaced() {
    let store = Store::memory();
    let (mut rig, runner) = rig(&store);
    rig.start();
    let (strict, paid) = (asking("q"), JobId::fresh());
    let mut easy = asking("q");
    easy.extras.as_mut().unwrap().reuse = Some(HOUR * 3);
    let body = Body::Text("old".into());
    let at = Timestamp::now() - HOUR * 2;
    let old = Kept { job: paid, at, status_code: 200, model: Some("m-1".into()), finish_reason: None, body };
    store.keep_reusable(&plain_key(&easy), &old).await.unwrap();
    let free = answered(&rig, &easy).await;
    assert_eq!((source(&free), text(&free), runner.started()), (Some(paid), "old", 0));
    assert_eq!(free.answer.unwrap().model.as_deref(), Some("m-1"));
    assert_eq!(source(&answered_and_kept(&rig, &store, &strict).await), None);
    assert_eq!((source(&answered(&rig, &asking("q")).await), runner.started()), (Some(strict.id), 1));
}

#[tokio::test(start_paused = true)]
async fn what_is_damaged_is_called_anew_and_replaced() {
    let store = Store::memory();
    let (mut rig, runner) = rig(&store);
    rig.start();
    answered_and_kept(&rig, &store, &asking("q")).await;
    let names = store.list("reuse", None, 9).await.unwrap();
    store.put(&format!("reuse/{}", names[0].name), b"promptq-reuse-1 half of".to_vec()).await.unwrap();
    let second = asking("q");
    assert_eq!(source(&answered_and_kept(&rig, &store, &second).await), None);
    assert_eq!((source(&answered(&rig, &asking("q")).await), runner.started()), (Some(second.id), 2));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_kept_of_jobs_that_do_not_ask_or_fail() {
    let store = Store::memory();
    let (mut rig, _) = rig(&store);
    rig.start();
    answered(&rig, &job("m", "q")).await;
    let mut strange = asking("q");
    strange.work.model = Some("no such model".into());
    rig.broker.enqueue(std::slice::from_ref(&strange)).await.unwrap();
    assert_eq!(rig.ends(&[strange.id]).await, [End::Dead]);
    rig.drain().await;
    assert_eq!(store.list("reuse", None, 9).await.unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn a_large_answer_is_copied_for_whom_it_is_given_to() {
    let store = Store::memory();
    let (mut rig, runner) = rig(&store);
    rig.start();
    let long = "x".repeat(70_000);
    let first = asking(&long);
    let paid = answered_and_kept(&rig, &store, &first).await;
    let free = answered(&rig, &asking(&long)).await;
    assert_eq!((source(&free), runner.started()), (Some(first.id), 1));
    let place = |record: &Record| match record.answer.clone().unwrap().output {
        Output::Stored(stored) => stored,
        Output::Inline(_) => panic!("it is in the record"),
    };
    assert_ne!(place(&paid).key, place(&free).key);
    store.delete(&[place(&paid).key]).await.unwrap();
    assert_eq!(store.get_output(&place(&free)).await.unwrap(), Body::Text(format!("{long}: 1")));
}

#[tokio::test(start_paused = true)]
async fn a_stored_answer_takes_nothing_of_a_limit() {
    let store = Store::memory();
    let mut rig = Rig::new();
    rig.store = Some(store.clone());
    let runner = rig.runs("m", Scripted::new("m", |_, _| Play::Answer("ok".into())));
    let cap = Cap { measure: Measure::Requests, per: Per::Minute, most: 10 };
    rig.settings.limits = vec![Rule { key: "m".into(), caps: vec![cap], adaptive: false }];
    rig.start();
    let begun = tokio::time::Instant::now();
    answered_and_kept(&rig, &store, &asking("q")).await;
    let again: Vec<_> = (0..30).map(|_| asking("q")).collect();
    rig.broker.enqueue(&again).await.unwrap();
    let ids: Vec<_> = again.iter().map(|job| job.id).collect();
    assert_eq!(rig.ends(&ids).await, [End::Succeeded; 30]);
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    assert_eq!(runner.started(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_store_in_trouble_makes_a_call_of_it_and_is_left_alone() {
    let home = tempfile::tempdir().unwrap();
    let store = Store::open(&format!("file://{}", home.path().display())).await.unwrap();
    // What should be a folder is a file: neither reading nor writing works there.
    std::fs::write(home.path().join("reuse"), b"").unwrap();
    let (mut rig, runner) = rig(&store);
    rig.start();
    for calls in 1..=2 {
        assert_eq!((source(&answered(&rig, &asking("q")).await), runner.started()), (None, calls));
    }
    std::fs::remove_file(home.path().join("reuse")).unwrap();
    answered(&rig, &asking("q")).await;
    assert!(!home.path().join("reuse").exists(), "it is left alone for a while");
    sleep(Duration::from_secs(31)).await;
    let fourth = asking("q");
    answered_and_kept(&rig, &store, &fourth).await;
    assert_eq!((source(&answered(&rig, &asking("q")).await), runner.started()), (Some(fourth.id), 4));
}

#[tokio::test(start_paused = true)]
async fn a_worker_without_a_store_calls() {
    let mut rig = Rig::new();
    let runner = rig.runs("m", Scripted::new("m", |_, _| Play::Answer("ok".into())));
    rig.start();
    for calls in 1..=2 {
        assert_eq!((source(&answered(&rig, &asking("q")).await), runner.started()), (None, calls));
    }
}

/// An S3 server that has nothing and never answers a write.
async fn stuck() -> (Store, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let mut server = JoinSet::new();
    server.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(serve(stream));
        }
    });
    let settings = [
        ("aws_endpoint", endpoint.as_str()),
        ("aws_access_key_id", "x"),
        ("aws_secret_access_key", "x"),
        ("aws_region", "us-east-1"),
        ("aws_allow_http", "true"),
    ];
    (Store::open_with("s3://bucket", &settings).await.unwrap(), server)
}

async fn serve(mut stream: TcpStream) {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while stream.read_exact(&mut byte).await.is_ok() {
        head.push(byte[0]);
        if !head.ends_with(b"\r\n\r\n") {
            continue;
        }
        if !head.starts_with(b"GET") {
            std::future::pending::<()>().await;
        }
        head.clear();
        stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    }
}

/// In real time: in paused time a clock that nobody waits for runs ahead of the network.
#[tokio::test]
async fn keeping_an_answer_comes_after_its_record_and_delays_nobody() {
    let (store, _server) = stuck().await;
    let (mut rig, runner) = rig(&store);
    rig.start();
    let begun = Instant::now();
    answered(&rig, &asking("q")).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "the record does not wait for it: {:?}", begun.elapsed());
    assert_eq!((runner.started(), rig.board.now().finished.succeeded), (1, 0), "the slot still tries to keep it");
    rig.stop.now();
    let drained = rig.left().await;
    assert!(begun.elapsed() < Duration::from_secs(9), "told to leave, it gives that up: {:?}", begun.elapsed());
    assert_eq!((drained.finished.succeeded, drained.handed_back), (1, 0));
}
