//! What each route answers.

use std::time::{Duration, Instant};

use promptq_tests::gateway::{Ask, Gateway};
use promptq_tests::process::Home;
use promptq_tests::rabbit::RabbitServer;
use promptq_tests::redis::{Options, RedisServer};
use promptq_tests::site::until;
use serde_json::json;

use super::{job, lines, worker};

async fn gateway(home: &Home) -> Gateway {
    Gateway::start(home, &[]).await.ready().await
}

#[tokio::test]
async fn a_job_is_known_by_its_key_and_its_result_is_waited_for() {
    let home = Home::new();
    let gateway = gateway(&home).await;
    let ask = |prompt: &str| Ask::post("/v1/jobs", job(prompt)).with("idempotency-key", "\"r-1@nov\"");
    let made = gateway.ask(ask("hello")).await.is(201);
    let id = made.text("id");
    assert_eq!((made.header("location"), made.text("state").as_str()), (&*format!("/v1/jobs/{id}"), "queued"));
    assert_eq!(made.text("idempotency_key"), "r-1@nov");
    let again = gateway.ask(ask("hello")).await.is(200);
    assert_eq!((again.text("id"), &again.body["new"]), (id.clone(), &json!(false)));
    let other = gateway.ask(ask("other")).await.fails(409, "conflict");
    assert!(!other.text("hint").contains("on_conflict"), "that is for batches: {}", other.body);
    let path = format!("/v1/jobs/{id}/result");
    let early = gateway.ask(Ask::get(&path)).await.is(202);
    assert_eq!((early.text("state").as_str(), early.header("retry-after")), ("queued", "1"));
    let (begun, short) = (Instant::now(), format!("{path}?wait=1s"));
    assert_eq!(gateway.ask(Ask::get(&short)).await.is(202).text("state"), "queued");
    let took = begun.elapsed();
    assert!(Duration::from_secs(1) <= took && took < Duration::from_secs(20), "{took:?}");
    let waiting = format!("{path}?wait=50s");
    let worker = async { worker(&home) };
    let (ended, _worker) = tokio::join!(gateway.ask(Ask::get(&waiting)), worker);
    let ended = ended.is(200);
    assert_eq!(ended.body["promptq"]["state"], "succeeded");
    assert!(ended.body["response"]["body"].is_object() && ended.body["promptq"]["text"].is_string());
    let shown = gateway.ask(Ask::get(&format!("/v1/jobs/{id}"))).await.is(200);
    assert_eq!(shown.text("state"), "succeeded");
    assert!(!shown.body.to_string().contains("hello"), "a job is shown without its prompt");
    assert_eq!(gateway.ask(ask("hello")).await.is(200).text("state"), "succeeded");
}

#[tokio::test]
async fn a_job_without_a_key_gets_one() {
    let home = Home::new();
    let gateway = gateway(&home).await;
    let made = gateway.ask(Ask::post("/v1/jobs", job("x"))).await.is(201);
    let again = Ask::post("/v1/jobs", job("x")).with("idempotency-key", made.text("idempotency_key"));
    assert_eq!(gateway.ask(again).await.is(200).text("id"), made.text("id"));
    assert_ne!(gateway.ask(Ask::post("/v1/jobs", job("x"))).await.is(201).text("id"), made.text("id"));
    let own = json!({ "prompt": "x", "promptq": { "idempotency_key": "own" } }).to_string();
    gateway.ask(Ask::post("/v1/jobs", own.clone())).await.is(201);
    gateway.ask(Ask::post("/v1/jobs", own.clone()).with("idempotency-key", "own")).await.is(200);
    gateway.ask(Ask::post("/v1/jobs", own).with("idempotency-key", "other")).await.fails(422, "bad-row");
}

#[tokio::test]
async fn what_a_job_leaves_out_its_queue_says() {
    let home = Home::new();
    home.write("promptq.toml", "[queues.slow]\ndeadline = \"1h\"\n");
    let gateway = gateway(&home).await;
    let body = json!({ "prompt": "x", "promptq": { "queue": "slow", "delay": "10m" } });
    let made = gateway.ask(Ask::post("/v1/jobs", body.to_string())).await.is(201);
    assert_eq!((made.text("queue").as_str(), made.text("state").as_str()), ("slow", "scheduled"));
    let shown = gateway.ask(Ask::get(made.header("location"))).await.is(200).body;
    let at = |name: &str| shown[name].as_str().unwrap().parse::<promptq_common::time::Timestamp>().unwrap();
    assert_eq!(at("deadline").since(at("created_at")).as_secs(), 4_200, "{shown}");
}

#[tokio::test]
async fn a_wrong_job_is_told_where_it_is_wrong_and_nothing_is_enqueued() {
    let home = Home::new();
    let gateway = gateway(&home).await;
    for (body, word) in [
        ("{\"prompt\":\"x\",\"modle\":\"m\"}", "modle"),
        ("{\"prompt\":\"\"}", "empty"),
        ("{\"prompt\":", "EOF"),
        ("[]", "object"),
        ("", "EOF"),
    ] {
        let told = gateway.ask(Ask::post("/v1/jobs", body)).await.fails(422, "bad-row");
        assert!(told.text("detail").contains(word), "{}", told.body);
    }
    let told = gateway.ask(Ask::post("/v1/jobs", "{\"prompt\":\"x\",\"modle\":\"m\"}")).await;
    assert_eq!(told.body["where"]["column"], 23, "{}", told.body);
    assert!(told.text("hint").contains("model"), "{}", told.body);
    let stats = gateway.ask(Ask::get("/v1/queues/default/stats")).await.is(200);
    assert_eq!(stats.body["unfinished"], 0);
}

#[tokio::test]
async fn a_batch_is_checked_whole_and_the_same_one_again_is_known() {
    let home = Home::new();
    let gateway = gateway(&home).await;
    let wrong = lines(1..=3) + "{\"prompt\":\n" + &lines(4..=4);
    let told = gateway.ask(Ask::post("/v1/batches?batch=nov", wrong.clone())).await.fails(422, "bad-row");
    assert!(told.body["details"].to_string().contains(":4:"), "{}", told.body);
    assert!(!told.body.to_string().contains("--skip"), "a client has no flags: {}", told.body);
    assert!(told.body["hint"].to_string().contains("?skip_invalid=true"), "{}", told.body);
    let told = gateway.ask(Ask::post("/v1/batches?batch=nov", "{\"prompt\":\n")).await.fails(422, "bad-row");
    assert!(!told.body.to_string().contains("skip_invalid"), "there is no other line: {}", told.body);
    gateway.ask(Ask::post("/v1/batches?batch=nov", "")).await.fails(422, "no-rows");
    let stats = gateway.ask(Ask::get("/v1/queues/default/stats")).await.is(200);
    assert_eq!(stats.body["ready"], 0, "a wrong line keeps all out");
    let some = gateway.ask(Ask::post("/v1/batches?batch=nov&skip_invalid=true", wrong)).await.is(201);
    assert_eq!((&some.body["new"], &some.body["invalid"]), (&json!(4), &json!(1)));
    let more = gateway.ask(Ask::post("/v1/batches", lines(1..=1_500)).with("idempotency-key", "nov")).await.is(201);
    assert_eq!((&more.body["new"], &more.body["known"]), (&json!(1_496), &json!(4)));
    let again = gateway.ask(Ask::post("/v1/batches?batch=nov", lines(1..=1_500))).await.is(200);
    assert_eq!((&again.body["new"], &again.body["known"]), (&json!(0), &json!(1_500)));
    let other = json!({ "prompt": "other", "model": "mock", "id": "r7" }).to_string();
    gateway.ask(Ask::post("/v1/batches?batch=nov", other.clone())).await.fails(409, "conflict");
    let kept = gateway.ask(Ask::post("/v1/batches?batch=nov&on_conflict=skip", other)).await.is(200);
    assert_eq!((&kept.body["new"], &kept.body["conflicts"]), (&json!(0), &json!(1)));
    let told = gateway.ask(Ask::post("/v1/batches?batch=nov&queue=b", lines(1..=1))).await.fails(409, "other-queue");
    assert!(!told.body.to_string().contains("default"), "a key need not see that queue: {}", told.body);
    gateway.ask(Ask::post("/v1/batches?batch=nov", lines([1, 1]))).await.fails(422, "duplicate-id");
    let alone = gateway.ask(Ask::post("/v1/batches", lines(1..=2))).await.is(201);
    assert_eq!(alone.body["new"], 2, "without a name it is a batch of its own");
    home.promptq(&["status", "nov", "--json"]).ends(0).prints(&["\"sealed\": true", "\"total\": 1500"]);
}

#[tokio::test]
async fn no_route_takes_a_parameter_that_it_does_not_know_or_cannot_read() {
    let home = Home::new();
    let gateway = gateway(&home).await;
    let made = gateway.ask(Ask::post("/v1/jobs", job("x"))).await.is(201);
    let of_job = |rest: &str| format!("{}{rest}", made.header("location"));
    let none = "is no parameter of this; it takes none";
    for (method, path, says) in [
        ("POST", "/v1/jobs?on_conflict=skip".to_owned(), none),
        ("GET", of_job("?wait=1s"), none),
        ("POST", of_job("/cancel?reason=x"), none),
        ("GET", "/v1/queues/default/stats?queue=other".to_owned(), none),
        ("GET", "/openapi.json?x=1".to_owned(), none),
        ("GET", of_job("/result?wiat=1s"), "\"wiat\" is no parameter of this; it takes wait"),
        ("GET", of_job("/result?wait=1s&wait=2s"), "wait is given twice"),
        (
            "GET",
            of_job("/result?wait=soon"),
            "wait is \"soon\", not a length of time such as 30s; none is longer than 55s",
        ),
        ("GET", of_job("/result?wait=99999999999999999999s"), "not a length of time such as 30s"),
        ("POST", "/v1/batches?bach=nov".to_owned(), "it takes batch, queue, skip_invalid, on_conflict"),
        ("POST", "/v1/batches?queue=a&queue=b".to_owned(), "queue is given twice"),
        ("POST", "/v1/batches?skip_invalid=1".to_owned(), "skip_invalid is \"1\", not true or false"),
        ("POST", "/v1/batches?queue=a%20b".to_owned(), "queue name \"a b\" may hold only"),
    ] {
        let ask = if method == "GET" { Ask::get(&path) } else { Ask::post(&path, lines(1..=1)) };
        let told = gateway.ask(ask).await.fails(400, "bad-request");
        assert!(told.text("detail").contains(says), "{path}: {}", told.body);
    }
    let stats = gateway.ask(Ask::get("/v1/queues/default/stats")).await.is(200);
    assert_eq!(stats.body["ready"], 1, "nothing came of it");
}

#[tokio::test]
async fn a_cancelled_job_is_told_as_its_result() {
    let home = Home::new();
    let gateway = gateway(&home).await;
    let id = gateway.ask(Ask::post("/v1/jobs", job("x"))).await.is(201).text("id");
    let cancel = format!("/v1/jobs/{id}/cancel");
    assert_eq!(gateway.ask(Ask::post(&cancel, "")).await.is(200).text("state"), "cancelled");
    assert_eq!(gateway.ask(Ask::post(&cancel, "")).await.is(200).text("state"), "cancelled");
    let result = gateway.ask(Ask::get(&format!("/v1/jobs/{id}/result?wait=5s"))).await.is(200);
    assert_eq!(result.body["promptq"]["state"], "cancelled");
    for id in ["019abcde-0123-7abc-8def-0123456789ab", "nonsense", "%FF"] {
        gateway.ask(Ask::post(&format!("/v1/jobs/{id}/cancel"), "")).await.fails(404, "not-found");
        gateway.ask(Ask::get(&format!("/v1/jobs/{id}"))).await.fails(404, "not-found");
        gateway.ask(Ask::get(&format!("/v1/jobs/{id}/result?wait=1s"))).await.fails(404, "not-found");
    }
    assert!(gateway.hand.log().contains("promptq::audit"), "{}", gateway.hand.log());
}

#[tokio::test]
async fn a_queue_is_counted_with_its_workers_and_what_holds_it() {
    let server = RedisServer::start(Options::durable());
    let home = Home::new();
    home.write("promptq.toml", "[queues.ours]\nprotected = true\n[worker]\nqueues = [\"served:3\"]\n");
    let gateway = Gateway::start(&home, &[("PROMPTQ_BROKER", &server.url())]).await.ready().await;
    gateway.ask(Ask::post("/v1/batches?queue=q&batch=b", lines(1..=7))).await.is(201);
    let mut pause = home.program("promptq", &["queues", "pause", "q", "--reason", "night"]);
    assert!(pause.env("PROMPTQ_BROKER", server.url()).status().unwrap().success());
    let stats = gateway.ask(Ask::get("/v1/queues/q/stats")).await.is(200).body;
    for (name, value) in [("ready", 7), ("running", 0), ("dead", 0), ("unfinished", 7), ("consumers", 0)] {
        assert_eq!(stats[name], value, "{name} of {stats}");
    }
    assert_eq!(
        (&stats["queue"], &stats["backend"], &stats["age_source"]),
        (&json!("q"), &json!("redis"), &json!("exact"))
    );
    assert!(stats["oldest_ready_age_seconds"].is_number(), "{stats}");
    assert_eq!((&stats["blocked"][0]["reason"], &stats["blocked"][0]["jobs"]), (&json!("paused"), &json!(7)));
    gateway.ask(Ask::get("/v1/queues/unused/stats")).await.fails(404, "no-queue");
    for named in ["default", "ours", "served"] {
        let empty = gateway.ask(Ask::get(&format!("/v1/queues/{named}/stats"))).await.is(200).body;
        assert_eq!((&empty["unfinished"], &empty["blocked"]), (&json!(0), &json!([])));
    }
    for unnamed in ["a%20b", "%FF"] {
        gateway.ask(Ask::get(&format!("/v1/queues/{unnamed}/stats"))).await.fails(404, "no-queue");
    }
}

#[tokio::test]
async fn a_queue_is_there_once_it_is_used_or_served() {
    let home = Home::new();
    let gateway = gateway(&home).await;
    let (used, served) = ("/v1/queues/used/stats", "/v1/queues/served/stats");
    for path in [used, served] {
        gateway.ask(Ask::get(path)).await.fails(404, "no-queue");
    }
    let lines = json!({ "prompt": "x", "model": "mock" }).to_string();
    let batch = gateway.ask(Ask::post("/v1/batches?queue=used", lines)).await.is(201);
    assert_eq!(gateway.ask(Ask::get(used)).await.is(200).body["unfinished"], 1);
    let command = home.program("promptq-worker", &["--queues=used,served", "--admin=off"]);
    let _worker = promptq_tests::site::Hand::start(command, home.path("worker.log"));
    let stats = async |path| gateway.ask(Ask::get(path)).await;
    until("a worker serves it", async || (stats(served).await.status == 200).then_some(())).await;
    until("its job has ended", async || (stats(used).await.body["unfinished"] == 0).then_some(())).await;
    stats(used).await.is(200);
    assert_eq!(batch.body["new"], 1);
}

#[tokio::test]
async fn a_large_answer_comes_out_of_the_store_whole_or_breaks_off() {
    let home = Home::new();
    home.write("promptq.toml", "[store]\ninline_up_to = \"1KiB\"\n");
    let gateway = gateway(&home).await;
    let prompt = "grüße \"und\" \\ mehr\n".repeat(60_000);
    let body = json!({ "prompt": prompt, "model": "exec:cat" }).to_string();
    let id = gateway.ask(Ask::post("/v1/jobs", body)).await.is(201).text("id");
    let _worker = worker(&home);
    let path = format!("/v1/jobs/{id}/result?wait=50s");
    let ended = gateway.ask(Ask::get(&path)).await.is(200);
    assert_eq!(ended.body["promptq"]["state"], "succeeded", "{}", ended.body["error"]);
    assert_eq!(ended.body["promptq"]["output"]["bytes"], prompt.trim_end().len() as u64);
    assert_eq!(ended.body["response"]["body"].as_str().map(str::len), Some(prompt.trim_end().len()));
    assert!(ended.body["response"]["body"] == prompt.trim_end());
    let key = ended.body["promptq"]["output"]["key"].as_str().unwrap();
    let file = home.path("q.db.store").join(key);
    let other = std::fs::read_to_string(&file).unwrap().replace('g', "G");
    std::fs::write(&file, other).unwrap();
    assert!(gateway.try_ask(Ask::get(&path)).await.is_none(), "another answer must not look like a whole one");
    std::fs::remove_file(&file).unwrap();
    gateway.ask(Ask::get(&path)).await.fails(410, "answer-gone");
}

#[tokio::test]
async fn what_is_not_there_is_a_problem_and_every_answer_is_safe_in_a_browser() {
    let home = Home::new();
    let gateway = gateway(&home).await;
    let specification = gateway.ask(Ask::get("/openapi.json")).await.is(200);
    assert_eq!(specification.body["openapi"], "3.1.0");
    let answers = [
        specification,
        gateway.ask(Ask::get("/")).await.fails(404, "not-found"),
        gateway.ask(Ask::get("/v1/jobs")).await.fails(405, "bad-method"),
        gateway.ask(Ask::get("/v1/queues/default/stats")).await.is(200),
    ];
    for answer in &answers {
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("cache-control", "no-store"),
            ("referrer-policy", "no-referrer"),
            ("x-frame-options", "DENY"),
        ] {
            assert_eq!(answer.header(name), value);
        }
        assert!(answer.header("content-security-policy").contains("default-src 'none'"));
        assert_eq!(answer.header("x-request-id").len(), 36);
    }
    assert_eq!(answers[2].header("allow"), "POST");
}

#[tokio::test]
async fn at_rabbitmq_a_job_is_known_as_soon_as_it_is_taken() {
    let (rabbit, redis) = (RabbitServer::shared(), RedisServer::start(Options::durable()));
    let (host, home) = (rabbit.host(), Home::new());
    let places = [("PROMPTQ_BROKER", host.url()), ("PROMPTQ_LEDGER", redis.url())];
    let places = places.each_ref().map(|(name, url)| (*name, url.as_str()));
    let gateway = Gateway::start(&home, &places).await.ready().await;
    let made = gateway.ask(Ask::post("/v1/jobs", job("x"))).await.is(201);
    assert_eq!(gateway.ask(Ask::get(made.header("location"))).await.is(200).text("state"), "queued");
    let stats = gateway.ask(Ask::get("/v1/queues/default/stats")).await.is(200).body;
    assert_eq!((&stats["ready"], &stats["backend"]), (&json!(1), &json!("rabbitmq")));
    assert_eq!(stats["age_source"], "estimate");
    let declared = Ask::get("/v1/queues/declared/stats");
    gateway.ask(declared.clone()).await.fails(404, "no-queue");
    let mut declare = home.program("promptq", &["queues", "declare", "declared"]);
    assert!(declare.envs(places.iter().copied()).status().unwrap().success());
    assert_eq!(gateway.ask(declared).await.is(200).body["unfinished"], 0);
    let batch = gateway.ask(Ask::post("/v1/batches?batch=b", lines(1..=20))).await.is(201);
    assert_eq!(batch.body["new"], 20);
    let id = made.text("id");
    gateway.ask(Ask::post(&format!("/v1/jobs/{id}/cancel"), "")).await;
    let again = Ask::post("/v1/jobs", job("x")).with("idempotency-key", made.text("idempotency_key"));
    assert_eq!(gateway.ask(again).await.is(200).text("id"), id);
}
