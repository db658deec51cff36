//! The commands as scripts meet them: streams, JSON shapes, exit codes, and what they do to jobs of other processes.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;

use promptq_common::broker::{Beat, Broker, Claim, WorkerId};
use promptq_common::job::{Job, JobId};
use promptq_common::ledger::JobFilter;
use promptq_common::record::{End, State};
use promptq_common::work::Work;
use promptq_tests::fixture::{batch, job, job_of, queue};
use promptq_tests::process::Home;
use promptq_tests::steps::{Worker, put, put_one, see, state};
use rustix::process::{Pid, Signal, kill_process};

async fn worker(broker: &Broker) -> Worker {
    let terms = promptq_common::broker::Terms {
        worker: WorkerId::random("test"),
        queues: vec![(queue("default"), 1)],
        lease: std::time::Duration::from_secs(30),
    };
    Worker::on(broker, terms).await
}

/// Jobs that died, so many.
async fn dead(broker: &Broker, count: usize) -> Vec<JobId> {
    let mut worker = worker(broker).await;
    let mut ids = Vec::new();
    for _ in 0..count {
        put_one(broker, job()).await;
        ids.push(worker.ends_one(End::Dead).await);
    }
    worker.consumer.close().await.unwrap();
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn data_goes_to_stdout_and_problems_to_stderr() {
    let home = Home::new();
    let _broker = home.broker().await;
    let list = home.promptq(&["jobs", "list", "--json"]).ends(0);
    assert_eq!(list.json(), serde_json::json!({ "items": [], "next_cursor": null, "truncated": false }));
    assert_eq!(list.stderr, "");
    let missing = home.promptq(&["status", "nothing"]).ends(5);
    assert_eq!(missing.stdout, "");
    assert!(missing.stderr.starts_with("error[not-found]: there is no batch or job \"nothing\"\n  hint: "));
    let missing = home.promptq(&["status", "nothing", "--json"]).ends(5);
    assert_eq!((missing.stdout.as_str(), &missing.problem()["type"]), ("", &"/problems/not-found".into()));
    let wrong = home.promptq(&["jobs", "list", "--json", "--lmit", "3"]).ends(2);
    assert_eq!((wrong.stdout.as_str(), &wrong.problem()["exit"]), ("", &2.into()));
    assert!(home.promptq(&["--help"]).ends(0).stdout.lines().count() < 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn looking_makes_nothing() {
    let home = Home::new();
    let id = JobId::fresh().to_string();
    for arguments in [
        &["status"][..],
        &["status", "nov"],
        &["results", "nov"],
        &["jobs", "list"],
        &["jobs", "why", &id],
        &["queues", "list"],
        &["queues", "pause", "default"],
        &["queues", "resume", "default"],
        &["queues", "purge", "default", "--yes"],
        &["dead", "groups"],
        &["dead", "redrive", "--all", "--yes"],
        &["cancel", &id],
        &["cancel", "--batch", "nov", "--yes"],
        &["retry", &id],
        &["workers", "list"],
        &["limits", "list"],
        &["limits", "show", "openai"],
        &["limits", "set", "openai", "requests=9"],
        &["limits", "release", "openai"],
    ] {
        home.promptq(arguments).ends(5).says(&[
            "error[not-found]: there is no queue at /",
            "promptq submit",
            "--broker",
        ]);
    }
    let broker = home.broker().await;
    put_one(&broker, job()).await;
    home.promptq(&["jobs", "show", "nope"]).ends(5).says(&["there is no job \"nope\""]);
    home.promptq(&["queues", "pause", "defualt"]).ends(5).says(&["no queue \"defualt\"", "did you mean default?"]);
    home.promptq(&["queues", "purge", "other", "--yes"]).ends(5);
    assert_eq!(home.promptq(&["queues", "list", "--json"]).ends(0).json()["items"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_list_is_printed_a_page_at_a_time() {
    let home = Home::new();
    let broker = home.broker().await;
    for _ in 0..6 {
        put(&broker, &(0..1_000).map(|_| job()).collect::<Vec<_>>()).await;
    }
    for shape in ["--json", "--jsonl"] {
        let mut child = home.start(&["jobs", "list", "--limit", "0", shape]);
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut first = String::new();
        out.read_line(&mut first).unwrap();
        // It waits for its reader now, with whatever it holds.
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
        let rest: String = first + &std::io::read_to_string(out).unwrap();
        assert!(child.wait().unwrap().success());
        assert!(peak < 70_000, "{peak} kB for {shape}");
        let items = match shape {
            "--json" => {
                let list: serde_json::Value = serde_json::from_str(&rest).unwrap();
                assert_eq!((&list["next_cursor"], &list["truncated"]), (&serde_json::Value::Null, &false.into()));
                list["items"].as_array().unwrap().len()
            }
            _ => rest.lines().count(),
        };
        assert_eq!(items, 6_000);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_settings_end_with_2_and_are_all_named() {
    let home = Home::new();
    let mut command = home.program("promptq", &["status"]);
    promptq_tests::process::Said::of(command.env("PROMPTQ_WORKER_CONCURRENCY", "8"))
        .ends(2)
        .says(&["env PROMPTQ_WORKER_CONCURRENCY", "did you mean PROMPTQ__WORKER__CONCURRENCY?"]);
    home.write("promptq.toml", "[worker]\nlease = \"soon\"\nlaese = 3\n");
    let said = home.promptq(&["queues", "list"]).ends(2);
    assert_eq!(said.stdout, "");
    said.says(&["2 settings are wrong", "promptq.toml:2:9", "promptq.toml:3:9", "did you mean worker.lease?"]);
    let elsewhere = home.write("other.toml", "worker.lease = \"50s\"");
    let shown = home.promptq(&["config", "show", "--origin", "--config", elsewhere.to_str().unwrap()]).ends(0);
    shown.prints(&["worker.lease\t50s\t", "other.toml:1:16", "env PROMPTQ_BROKER"]);
    home.promptq(&["config", "check", "--config", "gone.toml"]).ends(2).says(&["cannot read gone.toml"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_says_when_there_is_more_and_goes_on_there() {
    let home = Home::new();
    let broker = home.broker().await;
    put(&broker, &[job(), job(), job()]).await;
    let first = home.promptq(&["jobs", "list", "--limit", "2", "--json", "--fields", "id,state"]).ends(0);
    let list = first.json();
    assert_eq!((list["items"].as_array().unwrap().len(), &list["truncated"]), (2, &true.into()));
    assert_eq!(list["items"][0].as_object().unwrap().len(), 2);
    first.says(&["showing 2, more follow"]);
    let cursor = list["next_cursor"].as_str().unwrap();
    let rest = home.promptq(&["jobs", "list", "--cursor", cursor, "--json"]).ends(0).json();
    assert_eq!((rest["items"].as_array().unwrap().len(), &rest["truncated"]), (1, &false.into()));
    let plain = home.promptq(&["jobs", "list", "--limit", "0"]).ends(0).stdout;
    assert_eq!(plain.lines().count(), 4);
    assert!(plain.lines().all(|line| line.matches('\t').count() == 7));
    let lines = home.promptq(&["jobs", "list", "--jsonl"]).ends(0).stdout;
    assert_eq!(lines.lines().filter(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()).count(), 3);
    home.promptq(&["jobs", "list", "--fields", "sate"]).ends(2).says(&["did you mean state?"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_finds_what_it_says_and_nothing_else() {
    let home = Home::new();
    let broker = home.broker().await;
    let mut tagged = Job { work: Work::prompt(Some("gpt-large"), "x"), ..job() };
    tagged.tags.insert("run".into(), "42".into());
    put(&broker, &[tagged.clone(), job()]).await;
    let find = |text: &str| {
        let found = home.promptq(&["jobs", "list", "--where", text, "--json", "--fields", "id"]).ends(0).json();
        found["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| item["id"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let text = "state in (queued, running) and model=gpt* and tag.run=42 and age<1h";
    assert_eq!(find(text), [tagged.id.to_string()]);
    assert_eq!(find("not model=gpt*").len(), 1);
    assert_eq!(find("state=dead").len(), 0);
    home.promptq(&["jobs", "list", "--where", "state=ded"]).ends(2).says(&["column 7", "is not a state"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_stops_waiting_and_running_jobs_of_other_processes() {
    let home = Home::new();
    let broker = home.broker().await;
    let mut worker = worker(&broker).await;
    let running = put_one(&broker, job()).await;
    let held = worker.one().await;
    assert!(matches!(held.lease.claim().await.unwrap(), Claim::Fresh { .. }));
    let waiting = put_one(&broker, job()).await;
    let (a, b) = (running.to_string(), waiting.to_string());
    let said = home.promptq(&["cancel", &a, &b, "--reason", "wrong prompt", "--json"]).ends(0);
    assert_eq!(
        said.json(),
        serde_json::json!({ "cancelled": 1, "stopping": 1, "already": 0, "unseen": [], "unknown": [] })
    );
    assert_eq!(said.audits("cancel")[0].2, "wrong prompt");
    assert_eq!(state(&broker, waiting).await, State::Cancelled);
    assert_eq!(held.lease.beat().await.unwrap(), Beat::Cancelled);
    home.promptq(&["jobs", "why", &a]).ends(0).prints(&["told to stop it"]);
    home.promptq(&["cancel", &b]).ends(0).prints(&["already finished 1"]);
    let unknown = JobId::fresh().to_string();
    assert_eq!(home.promptq(&["cancel", &unknown, "--json"]).ends(5).stdout, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_batch_says_so_when_it_is_submitted_again_and_is_put_back_as_a_whole() {
    let home = Home::new();
    home.write("in.txt", "one\ntwo\n");
    home.write("more.txt", "one\ntwo\nthree\n");
    let submit = |file: &str| home.promptq(&["submit", file, "--in", "lines", "-m", "mock", "--batch", "a b"]).ends(0);
    assert!(!submit("in.txt").stderr.contains("cancelled"));
    home.promptq(&["cancel", "--batch", "a b", "--yes"]).ends(0).prints(&["cancelled 2"]);
    submit("in.txt").says(&["2 already known", "2 jobs of this batch were cancelled", "promptq retry --batch 'a b'"]);
    submit("more.txt").says(&["1 new", "what is new in it is too"]);
    let broker = home.broker().await;
    let put_back = async || {
        let filter = JobFilter { batch: Some(batch("a b")), ..JobFilter::default() };
        let page = broker.ledger().list(&filter, None, 10).await.unwrap();
        page.items.iter().filter(|job| job.state == State::Queued && job.epoch > 0).count()
    };
    let retry = |more: &[&str]| home.promptq(&[&["retry", "--batch", "a b"], more].concat());
    retry(&["--dry-run"]).ends(0).prints(&["would retry 2 jobs of batch a b"]);
    retry(&[]).ends(2).says(&["needs a yes"]);
    assert_eq!(put_back().await, 0);
    let done = retry(&["--yes", "--reason", "meant another", "--json"]).ends(0);
    assert_eq!(done.json()["queued"], 2);
    assert_eq!((done.audits("retry")[0].1.as_str(), done.audits("retry")[0].3), ("batch a b", 2));
    assert_eq!(put_back().await, 2);
    home.promptq(&["retry", "--batch", "none"]).ends(5).says(&["there is no batch \"none\""]);
    home.promptq(&["retry"]).ends(2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_destroys_needs_a_yes_and_can_be_tried_first() {
    let home = Home::new();
    let broker = home.broker().await;
    let name = batch("nov");
    put(&broker, &[job_of(&name), job_of(&name), job_of(&name)]).await;
    let by_filter = ["cancel", "--where", "batch=nov"];
    let tried = home.promptq(&[&by_filter[..], &["--dry-run"]].concat()).ends(0);
    tried.prints(&["would cancel 3 jobs that fit", "queued in default"]);
    home.promptq(&by_filter).ends(2).says(&["needs a yes", "--yes"]);
    home.promptq(&["queues", "purge", "default", "--no-input"]).ends(2).says(&["--dry-run"]);
    home.promptq(&["cancel", "--batch", "nov"]).ends(2);
    assert_eq!(home.promptq(&["status", "nov", "--json"]).ends(0).json()["counts"]["queued"], 3);
    let done = home.promptq(&[&by_filter[..], &["--yes", "--reason", "x", "--json"]].concat()).ends(0);
    assert_eq!(done.json()["cancelled"], 3);
    assert_eq!(done.audits("cancel"), [(done.audits("cancel")[0].0.clone(), "batch=nov".into(), "x".into(), 3)]);
    assert!(done.audits("cancel")[0].0.starts_with("tester@"));
    put_one(&broker, job()).await;
    let purged = home.promptq(&["queues", "purge", "default", "-y"]).ends(0);
    assert_eq!((purged.audits("purge")[0].3, purged.stdout.contains("purged 1 ")), (1, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_queue_hands_out_nothing_until_it_is_resumed() {
    let home = Home::new();
    let broker = home.broker().await;
    let mut worker = worker(&broker).await;
    let said = home.promptq(&["queues", "pause", "default", "--reason", "provider is down"]).ends(0);
    assert_eq!(said.audits("pause").len(), 1);
    let id = put_one(&broker, job()).await.to_string();
    worker.finds_nothing().await;
    home.promptq(&["jobs", "why", &id]).ends(0).prints(&["paused (provider is down)", "queues resume default"]);
    let list = home.promptq(&["queues", "list", "--json"]).ends(0).json();
    assert_eq!((&list["items"][0]["state"], &list["items"][0]["ready"]), (&"paused".into(), &1.into()));
    assert_eq!(home.promptq(&["queues", "resume", "default"]).ends(0).audits("resume").len(), 1);
    let _held = worker.one().await;
    home.promptq(&["jobs", "why", &id, "--json"]).ends(0).prints(&["It runs on test-"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dead_are_grouped_put_back_and_forgotten() {
    let home = Home::new();
    let broker = home.broker().await;
    let ids = dead(&broker, 3).await;
    let groups = home.promptq(&["dead", "groups", "--json"]).ends(0).json();
    assert_eq!((&groups["items"][0]["code"], &groups["items"][0]["count"]), (&"broken".into(), &3.into()));
    assert!(groups["items"][0]["suggestion"].as_str().unwrap().contains("then redrive"));
    home.promptq(&["dead", "redrive", "--code", "other", "--dry-run"]).ends(0).prints(&["would redrive 0 dead jobs"]);
    home.promptq(&["dead", "redrive"]).ends(2).says(&["--all means all"]);
    let one = ids[0].to_string();
    assert_eq!(home.promptq(&["dead", "redrive", &one, "--json"]).ends(0).json()["queued"], 1);
    assert_eq!((see(&broker, ids[0]).await.state, see(&broker, ids[0]).await.epoch), (State::Queued, 1));
    let dropped = home.promptq(&["dead", "drop", &ids[1].to_string(), "--reason", "spam"]).ends(0);
    assert_eq!(dropped.audits("drop"), [(dropped.audits("drop")[0].0.clone(), ids[1].to_string(), "spam".into(), 1)]);
    let left = home.promptq(&["dead", "list", "--json", "--fields", "id"]).ends(0).json();
    assert_eq!(left["items"], serde_json::json!([{ "id": ids[2].to_string() }]));
    let all = home.promptq(&["dead", "redrive", "-Q", "default", "--yes", "--json"]).ends(0);
    assert_eq!((&all.json()["queued"], all.audits("redrive")[0].3), (&1.into(), 1));
    home.promptq(&["retry", &ids[1].to_string()]).ends(5).says(&["error[gone]"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dead_come_back_no_faster_than_asked() {
    let home = Home::new();
    let broker = home.broker().await;
    dead(&broker, 6).await;
    home.promptq(&["dead", "redrive", "--all", "--yes", "--rate", "5"]).ends(2).says(&["5/s"]);
    let began = std::time::Instant::now();
    let all = home.promptq(&["dead", "redrive", "--all", "--yes", "--rate", "5/s", "--json"]).ends(0).json();
    assert_eq!(all["queued"], 6);
    assert!(began.elapsed().as_millis() >= 1_000, "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_success_is_never_retried() {
    let home = Home::new();
    let broker = home.broker().await;
    let id = put_one(&broker, job()).await;
    worker(&broker).await.ends_one(End::Succeeded).await;
    home.promptq(&["retry", &id.to_string()]).ends(6).says(&["error[succeeded]", "submit it again"]);
    assert_eq!(state(&broker, id).await, State::Succeeded);
    home.promptq(&["jobs", "show", &id.to_string()]).ends(0).prints(&["succeeded", "7 tokens in / 3 out", "attempt 1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn results_come_once_each_and_only_as_they_stand() {
    let home = Home::new();
    let broker = home.broker().await;
    let name = batch("nov");
    put(&broker, &[job_of(&name), job_of(&name)]).await;
    let mut worker = worker(&broker).await;
    let first = worker.ends_one(End::Dead).await;
    worker.ends_one(End::Succeeded).await;
    let lines = |arguments: &[&str]| {
        let said = home.promptq(&[&["results", "nov"], arguments].concat()).ends(0);
        (said.stdout.lines().count(), said.stdout)
    };
    assert_eq!(lines(&[]).0, 2);
    assert_eq!(lines(&["--state", "dead"]).0, 1);
    assert_eq!(lines(&["--text-only"]).1, "an answer\n");
    home.promptq(&["results", "nov", "-o", "."]).ends(2);
    home.promptq(&["results", "nov", "-o", "gone/out.jsonl"]).ends(2);
    home.promptq(&["status", "nov"]).ends(0).prints(&["still being submitted, or its submit was interrupted"]);
    let pending = put_one(&broker, job()).await.to_string();
    home.promptq(&["results", &pending]).ends(8).says(&["error[pending]"]);
    home.promptq(&["retry", &first.to_string()]).ends(0);
    assert_eq!(lines(&[]).0, 1, "what was put back is no result");
    worker.ends_one(End::Cancelled).await;
    let cursor = promptq_tests::steps::results(&broker, &name).await[1].0.0.to_string();
    home.promptq(&["results", "nov", "--after", &cursor, "-o", "rest.jsonl"]).ends(0).says(&["read up to cursor"]);
    assert_eq!(std::fs::metadata(home.path("rest.jsonl")).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test(flavor = "multi_thread")]
async fn following_ends_with_the_batch_and_tells_of_failures() {
    let home = Home::new();
    let broker = home.broker().await;
    let name = batch("nov");
    put(&broker, &[job_of(&name), job_of(&name)]).await;
    broker.ledger().seal(&name, &queue("default")).await.unwrap();
    let mut follower = home.start(&["results", "nov", "--follow"]);
    let mut filing = home.start(&["results", "nov", "--follow", "-o", "out.jsonl"]);
    let mut worker = worker(&broker).await;
    worker.ends_one(End::Succeeded).await;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let written = || std::fs::read_to_string(home.path("out.jsonl")).is_ok_and(|text| text.lines().count() == 1);
    while !written() && std::time::Instant::now() < deadline {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    if !written() {
        // Neither would end by itself.
        follower.kill().unwrap();
        filing.kill().unwrap();
        panic!("nothing was written before the end");
    }
    worker.ends_one(End::Dead).await;
    assert_eq!(filing.wait().unwrap().code(), Some(3));
    assert_eq!(std::fs::read_to_string(home.path("out.jsonl")).unwrap().lines().count(), 2);
    let output = follower.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stdout).lines().count()), (Some(3), 2));
    let status = home.promptq(&["status", "nov"]).ends(0);
    status.prints(&["BATCH nov  finished  100%", "succeeded 1  dead 1", "tokens 14 in / 6 out", "1x broken"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_ends_with_130_and_a_gone_reader_with_0() {
    let home = Home::new();
    let broker = home.broker().await;
    let name = batch("nov");
    put(&broker, &[job_of(&name), job_of(&name)]).await;
    worker(&broker).await.ends_one(End::Succeeded).await;
    let mut follower = home.start(&["results", "nov", "--follow"]);
    let mut line = String::new();
    BufReader::new(follower.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("an answer"));
    kill_process(Pid::from_child(&follower), Signal::INT).unwrap();
    assert_eq!(follower.wait().unwrap().code(), Some(130));
    let mut listing = home.start(&["config", "show", "--json"]);
    drop(listing.stdout.take());
    let output = listing.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), ""));
}
