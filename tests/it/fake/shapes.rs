//! Answers in one piece, field by field, and requests in every form that HTTP has.

use promptq_tests::fake::ledger::End;
use serde_json::{Value, json};

use super::raw::{get, post, send};
use super::{CHAT, MESSAGES, SPLIT, chat, contents, fake, message};

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
    let calls = fake.calls(0);
    assert_eq!(calls.len(), 5, "what is no HTTP is no call");
    assert_eq!((calls[4].status, calls[4].end), (413, End::Refused), "and one that is too large is");
}
