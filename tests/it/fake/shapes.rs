//! Answers in one piece: read by promptq's own client where it has one, field by field elsewhere.

use std::collections::BTreeMap;

use promptq_common::broker::{LeaseId, WorkerId};
use promptq_common::config::Api;
use promptq_common::job::{Job, Queue};
use promptq_common::outcome::{Body, Failure, FailureClass, Outcome, Reply, Usage};
use promptq_common::work::{Input, Prompt, Work};
use promptq_tests::fake::Fake;
use promptq_tests::fake::ledger::End;
use promptq_worker::runner::{ExecSettings, MockSettings, ProviderSettings, RunContext, RunnerSettings, Runners};
use serde_json::{Value, json};

use super::raw::{get, post, send};
use super::{CHAT, MESSAGES, chat, contents, fake, message};

const SPLIT: &str = "[answer]\noutput = { fixed = 40 }\ncached = 0.5\nreasoning = 0.25";

async fn run(fake: &Fake, work: Work) -> Result<Reply, Failure> {
    let base_url = fake.base_url_for("w7");
    let local = ProviderSettings {
        api: Api::OpenAi,
        base_url,
        api_key: Some("sk-a".into()),
        default_model: None,
        stream_above: u64::MAX,
    };
    let settings = RunnerSettings {
        providers: [("openai".to_owned(), local)].into(),
        models: BTreeMap::new(),
        exec: ExecSettings { named: BTreeMap::new(), allow_inline: false, environment: Vec::new(), max_output: 0 },
        mock: MockSettings::standard(),
    };
    let (job, runners) = (Job::new(Queue::standard(), work), Runners::new(settings).unwrap());
    let cx = RunContext { attempt: 1, lease: LeaseId::random(), worker: WorkerId::random("fake") };
    match runners.pick(&job)?.run(&job, &cx).await {
        Outcome::Success(reply) => Ok(reply),
        Outcome::Failure(failure) => Err(failure),
    }
}

fn prompt(text: &str, params: &str) -> Work {
    let prompt = Prompt { text: text.to_owned(), system: None, params: params.to_owned() };
    Work { model: Some("gpt-4o".to_owned()), input: Input::Prompt(prompt) }
}

fn request(url: &str, body: &Value) -> Work {
    Work { model: None, input: Input::Request { url: url.to_owned(), body: body.to_string() } }
}

#[tokio::test]
async fn our_own_client_reads_every_shape_that_it_knows() {
    let fake = fake(SPLIT);
    let usage = Usage { input_tokens: 3, output_tokens: 40, cached_tokens: 2, reasoning_tokens: 10 };

    let reply = run(&fake, prompt("twelve bytes", "")).await.unwrap();
    assert_eq!((reply.usage, reply.finish_reason.as_deref()), (usage, Some("stop")));
    assert_eq!(reply.text.unwrap().split(' ').count(), 30);
    assert!(reply.request_id.unwrap().starts_with("req_"));

    let cut = run(&fake, prompt("twelve bytes", r#"{"max_tokens":8}"#)).await.unwrap();
    assert_eq!((cut.usage.output_tokens, cut.finish_reason.as_deref()), (8, Some("length")));

    let body = json!({ "model": "gpt-4o", "input": "twelve bytes", "max_output_tokens": 8 });
    let reply = run(&fake, request("/v1/responses", &body)).await.unwrap();
    assert_eq!((reply.usage.output_tokens, reply.finish_reason.as_deref()), (8, Some("max_output_tokens")));

    let body = json!({ "model": "e", "input": ["one", "two"], "dimensions": 4 });
    let reply = run(&fake, request("/v1/embeddings", &body)).await.unwrap();
    let Body::Json(body) = reply.body else { panic!("no JSON") };
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((body["data"].as_array().unwrap().len(), reply.usage.input_tokens), (2, 2));
    assert_eq!(body["data"][1]["embedding"].as_array().unwrap().len(), 4);

    let calls = fake.calls(0);
    assert_eq!(calls.len(), 4);
    assert!(calls.iter().all(|call| call.caller.as_deref() == Some("w7") && call.end == End::Answered));
}

#[tokio::test]
async fn our_own_client_classes_what_it_is_told() {
    for (kind, class) in [
        ("rate_limited", FailureClass::Throttled),
        ("overloaded", FailureClass::Capacity),
        ("flex_unavailable", FailureClass::Capacity),
        ("capacity_exceeded", FailureClass::Capacity),
        ("insufficient_quota", FailureClass::Account),
        ("spend_limit", FailureClass::Account),
        ("invalid_key", FailureClass::Account),
        ("billing", FailureClass::Account),
        ("request_too_large", FailureClass::Fatal),
        ("context_length", FailureClass::Fatal),
        ("model_not_found", FailureClass::Fatal),
        ("content", FailureClass::Content),
        ("moderated", FailureClass::Content),
        ("server_error", FailureClass::Transient),
        ("bad_gateway", FailureClass::Transient),
        ("malformed_json", FailureClass::UnknownBilled),
        ("empty_body", FailureClass::UnknownBilled),
        ("cut_in_body", FailureClass::UnknownBilled),
        ("cut_before_headers", FailureClass::UnknownBilled),
        ("error_inside", FailureClass::Capacity),
    ] {
        let fake = fake(&format!("[[faults]]\nkind = \"{kind}\""));
        let failure = run(&fake, prompt("hi", "")).await.unwrap_err();
        let call = &fake.calls(0)[0];
        assert_eq!(call.fault.as_deref(), Some(kind));
        assert_eq!(failure.class, class, "{kind}: {failure:?}");
    }
}

#[tokio::test]
async fn a_limit_is_told_so_that_our_own_client_waits_as_long() {
    let fake = fake("minute = \"30s\"\n[[limits]]\nminute = { requests = 1 }");
    run(&fake, prompt("hi", "")).await.unwrap();
    let failure = run(&fake, prompt("hi", "")).await.unwrap_err();
    assert_eq!(failure.class, FailureClass::Throttled);
    let wait = failure.retry_after.unwrap().as_secs_f64();
    assert!((20.0..=30.0).contains(&wait), "{wait}");
}

#[tokio::test]
async fn anthropic_and_gemini_answer_in_their_shapes() {
    let fake = fake(SPLIT);
    let said = post(&fake, MESSAGES, "k", &message("twelve bytes")).await;
    let body = said.json();
    assert_eq!((said.status, &body["type"], &body["stop_reason"]), (200, &json!("message"), &json!("end_turn")));
    assert_eq!(body["usage"]["input_tokens"], 1, "what was not cached");
    assert_eq!((&body["usage"]["cache_read_input_tokens"], &body["usage"]["output_tokens"]), (&json!(2), &json!(40)));
    assert!(body["content"][0]["text"].as_str().unwrap().len() > 30);
    assert!(said.header("request-id").unwrap().starts_with("req_"));
    let mut short = message("x");
    short["max_tokens"] = 5.into();
    assert_eq!(post(&fake, MESSAGES, "k", &short).await.json()["stop_reason"], "max_tokens");

    let path = "/v1beta/models/gemini-2.5-pro:generateContent";
    let body = post(&fake, path, "k", &contents("twelve bytes")).await.json();
    let usage = &body["usageMetadata"];
    assert_eq!((&usage["promptTokenCount"], &usage["cachedContentTokenCount"]), (&json!(3), &json!(2)));
    assert_eq!((&usage["candidatesTokenCount"], &usage["thoughtsTokenCount"]), (&json!(30), &json!(10)));
    assert_eq!(body["candidates"][0]["finishReason"], "STOP");
    assert_eq!(body["modelVersion"], "gemini-2.5-pro");
}

#[tokio::test]
async fn the_same_seed_and_request_give_the_same_answer() {
    let config = "[answer]\noutput = { lognormal = { median = 50, sigma = 0.8, max = 400 } }";
    let text = |body: Value| body["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    let (one, two) = (fake(config), fake(config));
    let mut seen = Vec::new();
    for prompt in ["a", "b", "c"] {
        let first = post(&one, CHAT, "k", &chat(prompt)).await.json();
        for again in [post(&one, CHAT, "k", &chat(prompt)).await, post(&two, CHAT, "other", &chat(prompt)).await] {
            assert_eq!((&again.json()["usage"], text(again.json())), (&first["usage"], text(first.clone())));
        }
        seen.push(text(first));
    }
    seen.dedup();
    assert_eq!(seen.len(), 3, "prompts differ, and so do answers");
}

#[tokio::test]
async fn keys_and_models_are_checked_where_they_are_listed() {
    let fake = fake("only_listed_models = true\n[accounts]\nteam = \"sk-a\"\n[[models]]\nname = \"gpt-4o*\"");
    assert_eq!(post(&fake, CHAT, "sk-a", &chat("x")).await.status, 200);
    assert_eq!(post(&fake, CHAT, "sk-b", &chat("x")).await.json()["error"]["code"], "invalid_api_key");
    assert_eq!(post(&fake, MESSAGES, "sk-a", &message("x")).await.json()["error"]["type"], "not_found_error");
    assert_eq!(get(&fake, "/v1/models").await.json()["data"][0]["id"], "gpt-4o*");
    assert_eq!(post(&fake, CHAT, "sk-a", &json!({ "model": "gpt-4o" })).await.status, 400);
    assert_eq!(get(&fake, "/v1/nothing").await.status, 404);
}

#[tokio::test]
async fn requests_come_in_every_form_that_http_has() {
    let fake = fake("");
    let body = chat("x").to_string();
    let (one, two) = body.split_at(10);
    let head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n";
    let chunked = format!(
        "{head}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{one}\r\n{:x}\r\n{two}\r\n0\r\n\r\n",
        one.len(),
        two.len()
    );
    assert_eq!(send(&fake, &chunked).await.status, 200);
    let expecting = format!("{head}Expect: 100-continue\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    assert_eq!(send(&fake, &expecting).await.status, 100);
    let again = format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let last = again.replace("host: x", "connection: close");
    let both = send(&fake, &(again + &last)).await;
    assert_eq!(both.body.matches("chatcmpl-").count(), 2, "one connection, two calls");
    assert_eq!(send(&fake, "nonsense\r\n\r\n").await.status, 400);
    let large = format!("POST {MESSAGES} HTTP/1.1\r\ncontent-length: 99999999\r\n\r\n");
    assert_eq!(send(&fake, &large).await.json()["error"]["type"], "request_too_large");
}
