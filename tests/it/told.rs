//! What is told at once and not when a job has died of it: models that nobody has, jobs that no cap lets through, keys that
//! are missing; and what is not told to who asked for silence or calls nobody.

use promptq_tests::gateway::{Ask, Gateway};
use promptq_tests::process::{Home, Said};
use serde_json::{Value, json};

const ACME: &str = "[providers.acme]\nbase_url = \"http://127.0.0.1:9/v1\"\n";

fn with(settings: &str) -> Home {
    let home = Home::new();
    home.write("promptq.toml", settings);
    home.write("in.txt", "Hi\nHo\n");
    home
}

fn submit(home: &Home, more: &[&str]) -> Said {
    home.promptq(&[&["submit", "in.txt", "--in", "lines"], more].concat())
}

#[test]
fn a_model_that_no_settings_know_is_refused_and_one_that_workers_may_have_is_doubted() {
    let home = with(ACME);
    submit(&home, &["-m", "gpt-none"]).ends(2).says(&[
        "error[no-runner]: -m: no runner knows the model \"gpt-none\": there are mock, exec:COMMAND, acme/MODEL",
        "nothing was enqueued",
        "hint: ",
    ]);
    submit(&home, &["-m", "gpt-none", "--dry-run"]).ends(2);
    assert!(!home.path("q.db").exists(), "nothing was enqueued");
    home.write("rows.jsonl", "{\"prompt\":\"a\",\"model\":\"acme/m\"}\n{\"prompt\":\"b\",\"model\":\"acne/m\"}\n");
    let rows = |more: &[&str]| home.promptq(&[&["submit", "rows.jsonl"], more].concat());
    rows(&[]).ends(2).says(&["rows.jsonl:2", "knows the model \"acne/m\"", "1 other row is fine"]);
    rows(&["--skip-invalid", "--dry-run"]).ends(0).prints(&["would enqueue 1 job to", "left out: 1 invalid"]);
    // With -Q a run is for a fleet's workers too.
    let run = ["run", "in.txt", "--in", "lines", "-o", "out.jsonl", "-Q", "default", "-m", "gpt-none"];
    home.promptq(&run).ends(2).says(&["error[no-runner]"]);

    let home = with("[worker]\nconcurrency = 4\n");
    let note = "note: 2 jobs: nothing here knows the model \"fast\": a worker that does not either ends them dead, as no_provider";
    submit(&home, &["-m", "fast", "--dry-run"]).ends(0).says(&[note]);
    submit(&home, &["-m", "fast"]).ends(0).says(&[note]);
    let silent = submit(&home, &["-m", "fast", "-q"]).ends(0).stderr;
    assert_eq!(silent, "");
    for known in ["gpt-4o", "mock", "mock/fast"] {
        let said = submit(&home, &["-m", known]).ends(0).stderr;
        assert!(!said.contains("note:"), "{known}: {said}");
    }
    submit(&home, &["-m", "mock:speed=9"]).ends(2).says(&["unknown parameter \"speed\""]);
}

#[test]
fn a_ready_made_request_for_a_model_that_nothing_names_is_noted() {
    let home = with(ACME);
    let line =
        r#"{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"model":"gpt-none","messages":[]}}"#;
    home.write("batch.jsonl", &format!("{line}\n{line}\n").replacen("\"a\"", "\"b\"", 1));
    let note = "note: 2 jobs: nothing here knows the model \"gpt-none\": it is asked of acme, the only provider here of that API";
    for command in ["submit", "run"] {
        home.promptq(&[command, "batch.jsonl", "--dry-run"]).ends(0).says(&[note]);
    }
    home.promptq(&["submit", "batch.jsonl"]).ends(0).says(&[note]);
}

#[test]
fn a_job_that_no_cap_lets_through_is_told_before_it_is_enqueued() {
    let price = "[prices.\"acme/m\"]\ninput = \"1\"\noutput = \"1\"\n";
    let home = with(&format!("{ACME}{price}"));
    submit(&home, &["-m", "acme/m", "--max-cost", "1"]).ends(2).says(&["nobody bounds its answer", "--max-tokens N"]);
    submit(&home, &["-m", "acme/m", "--max-cost", "1", "--max-tokens", "9"]).ends(0);
    submit(&home, &["-m", "acme/m"]).ends(0);
    let home = with("");
    let dead = "nobody knows how long the answer may be (--max-tokens)";
    submit(&home, &["-m", "gpt-4o", "--max-cost", "1", "--dry-run"])
        .ends(0)
        .prints(&[
            "none of 2 jobs can be called",
            "money   never called while cost is limited: 2 jobs, dead, as no_max_tokens",
            dead,
        ])
        .says(&["they end dead, as no_max_tokens"]);
}

#[tokio::test]
async fn the_gateway_refuses_what_its_settings_know_to_be_in_vain() {
    let home = with(ACME);
    let gateway = Gateway::start(&home, &[]).await.ready().await;
    let job = |model: &str| json!({ "prompt": "Hi", "model": model }).to_string();
    gateway.ask(Ask::post("/v1/jobs", job("acme/m"))).await.is(201);
    let told = gateway.ask(Ask::post("/v1/jobs", job("gpt-none"))).await.fails(422, "bad-row");
    assert!(told.text("detail").starts_with("no runner knows the model \"gpt-none\""), "{}", told.body);
    assert!(!told.body.to_string().contains("_API_KEY"), "a client has no settings: {}", told.body);
    let lines = format!("{}\n{}\n", job("acme/m"), job("gpt-none"));
    let told = gateway.ask(Ask::post("/v1/batches?batch=b", lines.clone())).await.fails(422, "bad-row");
    assert!(told.body["details"].to_string().contains(":2"), "{}", told.body);
    let is_theirs = |body: &Value| {
        ["_API_KEY", "providers", "settings", "--s", "retention"].iter().all(|word| !body.to_string().contains(word))
    };
    assert!(is_theirs(&told.body), "a client has no settings: {}", told.body);
    let old = json!({ "prompt": "Hi", "model": "acme/m", "promptq": { "reuse": "900d" } }).to_string();
    for path in ["/v1/jobs", "/v1/batches?batch=c"] {
        let told = gateway.ask(Ask::post(path, old.clone())).await.fails(422, "bad-row");
        assert!(is_theirs(&told.body) && !told.text("hint").is_empty(), "{}", told.body);
    }
    let some = gateway.ask(Ask::post("/v1/batches?batch=b&skip_invalid=true", lines)).await.is(201);
    assert_eq!((&some.body["new"], &some.body["invalid"]), (&json!(1), &json!(1)));
    assert_eq!(some.body["notes"], json!([]));
}

#[tokio::test]
async fn the_gateway_notes_what_may_come_to_nothing() {
    let home = with("");
    let gateway = Gateway::start(&home, &[]).await.ready().await;
    let note = "no model is named: a worker without a default one ends them dead, as no_model";
    let ask = || Ask::post("/v1/jobs", json!({ "prompt": "Hi" }).to_string()).with("idempotency-key", "k");
    let made = gateway.ask(ask()).await.is(201);
    assert_eq!(made.body["notes"], json!([note]));
    assert_eq!(gateway.ask(ask()).await.is(200).body["notes"], json!([]), "of a job that was there, its state tells");
    let shown = gateway.ask(Ask::get(&format!("/v1/jobs/{}", made.text("id")))).await.is(200);
    assert_eq!((&shown.body["cost_partial"], &shown.body["cost_source"]), (&Value::Null, &Value::Null));
    let known = json!({ "prompt": "Hi", "model": "mock" }).to_string();
    assert_eq!(gateway.ask(Ask::post("/v1/jobs", known.clone())).await.is(201).body["notes"], json!([]));
    let lines = format!("{{\"prompt\":\"a\"}}\n{{\"prompt\":\"b\"}}\n{known}\n");
    let batch = || Ask::post("/v1/batches?batch=b", lines.clone());
    assert_eq!(gateway.ask(batch()).await.is(201).body["notes"], json!([format!("2 jobs: {note}")]));
    assert_eq!(gateway.ask(batch()).await.is(200).body["notes"], json!([]));
}

#[test]
fn only_who_calls_a_provider_needs_its_key() {
    let home = with(&format!("{ACME}api_key = {{ env = \"ACME_KEY\" }}\n"));
    submit(&home, &["-m", "acme/m", "--batch", "b"]).ends(0);
    for words in [
        &["status", "b"][..],
        &["jobs", "list"],
        &["results", "b"],
        &["limits", "list"],
        &["queues", "list"],
        &["dead", "list"],
        &["dead", "groups"],
        &["workers"],
        &["cancel", "--batch", "b", "-y"],
    ] {
        let said = home.promptq(words);
        assert!(!said.stderr.contains("ACME_KEY"), "{words:?}: {}", said.stderr);
    }
    submit(&home, &["-m", "acme/m", "--dry-run"]).ends(0);
    let run = ["run", "in.txt", "--in", "lines", "-m", "acme/m", "-o", "out.jsonl"];
    home.promptq(&[&run[..], &["--dry-run"]].concat()).ends(0);
    let missing = "promptq.toml:3:19: providers.acme.api_key: the variable ACME_KEY is not set";
    let named = ["promptq.toml:3:19", "providers.acme.api_key: the variable ACME_KEY is not set"];
    home.promptq(&run).ends(2).says(&named);
    home.promptq(&["config", "check"]).ends(2).says(&named);
    home.promptq(&["config", "show", "--json"]).ends(0);
    Said::of(&mut home.program("promptq-worker", &["--once"])).ends(2).says(&[missing]);
    let doctor = home.promptq(&["doctor"]).ends(1);
    doctor.prints(&[&format!("FAILED  provider: {missing}"), "hint: nothing else needs it"]);
    let checked: Value = home.promptq(&["doctor", "--json"]).ends(1).json();
    let providers = checked["checks"].as_array().unwrap().iter().filter(|of| of["check"] == "provider");
    assert_eq!(providers.count(), 1, "nobody asks a provider without its key: {checked}");
}

#[test]
fn who_asked_for_silence_reads_no_audit_lines() {
    let home = with("");
    submit(&home, &["-m", "mock", "--batch", "b"]).ends(0);
    let loud = home.promptq(&["queues", "pause", "default"]).ends(0);
    assert_eq!(loud.audits("pause").len(), 1);
    for words in [&["queues", "resume", "default", "-q"][..], &["-q", "queues", "pause", "default"]] {
        let said = home.promptq(words).ends(0);
        assert_eq!((said.stderr.as_str(), said.stdout.is_empty()), ("", false), "{words:?}");
    }
}
