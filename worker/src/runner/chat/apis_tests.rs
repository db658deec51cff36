//! Calls to each API against a small server: headers and paths, streams and how they end, one connection for many calls.

use promptq_common::outcome::FailureClass::{Account, Capacity, Content, Fatal, Throttled, Transient, UnknownBilled};
use promptq_common::work::{Prompt, Work};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::tests::{HELLO, KEY, Server, call, call_again, http, request};
use super::*;

const LONG: Duration = Duration::from_secs(10);
const MESSAGE: &str = r#"{"id":"msg_1","model":"claude-x","content":[{"type":"text","text":"Hello"}],"stop_reason":"end_turn","usage":{"input_tokens":3,"output_tokens":1,"cache_read_input_tokens":4,"service_tier":"standard"}}"#;
const CONTENT: &str = r#"{"candidates":[{"content":{"parts":[{"text":"Hello"}]},"finishReason":"STOP"}],"usageMetadata":{"promptTokenCount":7,"candidatesTokenCount":1},"modelVersion":"g","responseId":"r"}"#;

const START: &str = r#"{"type":"message_start","message":{"id":"m","content":[],"stop_reason":null,"usage":{"input_tokens":3,"output_tokens":1}}}"#;
const BLOCK: &str = r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#;
const DELTA: &str = r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hi"}}"#;

fn provider(api: Api, base_url: &str, stream_above: u64) -> Chat {
    let settings = ProviderSettings {
        api,
        base_url: base_url.to_owned(),
        api_key: Some(KEY.into()),
        default_model: Some("small".to_owned()),
        stream_above,
        traceparent: false,
    };
    Chat::new("near", settings, client().unwrap()).unwrap()
}

fn work(params: &str) -> Work {
    let text = "Say hello to everybody in the room".to_owned();
    Work { model: Some("near/m".into()), input: Input::Prompt(Prompt { text, system: None, params: params.into() }) }
}

fn events(events: &[&str]) -> String {
    events.iter().flat_map(|event| ["event: x\ndata: ", event, "\n\n"]).collect()
}

/// A stream's answer; its end is the connection's.
fn streamed(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\nconnection: close\r\n\r\n{body}")
}

#[tokio::test]
async fn each_api_has_its_path_and_carries_its_key_where_it_wants_it() {
    let headers = [
        (Api::OpenAi, HELLO, "POST /v1/chat/completions ", vec!["authorization: Bearer sk-very-secret\r\n"]),
        (
            Api::Anthropic,
            MESSAGE,
            "POST /v1/messages ",
            vec!["x-api-key: sk-very-secret\r\n", "anthropic-version: 2023-06-01\r\n"],
        ),
        (Api::Gemini, CONTENT, "POST /v1/models/m:generateContent ", vec!["x-goog-api-key: sk-very-secret\r\n"]),
    ];
    for (api, answer, path, carried) in headers {
        let mut server = Server::answering(http("200 OK", "request-id: req_7\r\n", answer)).await;
        let reply = call(&provider(api, &server.base_url, 1_000), work(""), LONG).await.unwrap();
        assert_eq!(
            (reply.text.as_deref(), reply.usage.input_tokens),
            (Some("Hello"), if api == Api::OpenAi { 3 } else { 7 })
        );
        assert_eq!(reply.request_id.as_deref(), Some("req_7"));
        let seen = server.seen.recv().await.unwrap();
        assert!(seen.starts_with(path), "{seen}");
        assert!(carried.iter().all(|line| seen.contains(line)), "{seen}");
        assert_eq!(seen.matches(KEY).count(), 1, "nowhere else: {seen}");
    }
}

#[tokio::test]
async fn each_apis_refusal_has_its_class_and_names_no_secret() {
    for (api, status, headers, body, class, wait) in [
        (
            Api::Anthropic,
            "529 Overloaded",
            "",
            r#"{"error":{"type":"overloaded_error","message":"no"}}"#,
            Capacity,
            None,
        ),
        (Api::Anthropic, "429 No", "retry-after: 9\r\n", "", Throttled, Some(9)),
        (
            Api::Anthropic,
            "400 Bad Request",
            "",
            r#"{"error":{"type":"invalid_request_error","message":"credit balance is too low for sk-very-secret"}}"#,
            Account,
            None,
        ),
        (Api::Gemini, "503 Unavailable", "", "", Capacity, None),
        (Api::Gemini, "500 Internal", "", r#"{"error":{"message":"hello to everybody in the room"}}"#, Transient, None),
        (Api::Gemini, "200 OK", "", r#"{"promptFeedback":{"blockReason":"SAFETY"}}"#, Content, None),
    ] {
        let server = Server::answering(http(status, headers, body)).await;
        let failure = call(&provider(api, &server.base_url, 1_000), work(""), LONG).await.unwrap_err();
        assert_eq!((failure.class, failure.retry_after.map(|wait| wait.as_secs())), (class, wait), "{status} {body}");
        assert!(!failure.detail.contains("sk-very") && !failure.detail.contains("everybody"), "{}", failure.detail);
    }
}

#[tokio::test]
async fn a_streamed_answer_is_as_a_whole_one() {
    let chat = events(&[
        r#"{"id":"c","model":"m1","choices":[{"index":0,"delta":{"content":"Hel"}}]}"#,
        r#"{"id":"c","model":"m1","choices":[{"index":0,"delta":{"content":"lo"},"finish_reason":"stop"}]}"#,
        r#"{"id":"c","model":"m1","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}"#,
        "[DONE]",
    ]);
    let message = events(&[
        r#"{"type":"message_start","message":{"id":"msg_1","model":"claude-x","content":[],"stop_reason":null,"usage":{"input_tokens":3,"output_tokens":1}}}"#,
        r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#,
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hello"}}"#,
        r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":2}}"#,
        r#"{"type":"message_stop"}"#,
    ]);
    let content = events(&[
        r#"{"candidates":[{"content":{"parts":[{"text":"Hel"}]},"index":0}],"usageMetadata":{"promptTokenCount":3}}"#,
        r#"{"candidates":[{"content":{"parts":[{"text":"lo"}]},"finishReason":"STOP","index":0}],"usageMetadata":{"promptTokenCount":3,"candidatesTokenCount":2}}"#,
    ]);
    for (api, body, path) in [
        (Api::OpenAi, chat, "POST /v1/chat/completions "),
        (Api::Anthropic, message, "POST /v1/messages "),
        (Api::Gemini, content, "POST /v1/models/m:streamGenerateContent?alt=sse "),
    ] {
        let mut server = Server::answering(streamed(&body)).await;
        let chat = provider(api, &server.base_url, 1_000);
        let reply = call(&chat, work(r#"{"max_tokens":1001}"#), LONG).await.unwrap();
        assert_eq!((reply.text.as_deref(), reply.usage.input_tokens, reply.usage.output_tokens), (Some("Hello"), 3, 2));
        assert!(reply.detail.is_some_and(|detail| detail.first_piece.is_some()), "{api:?}");
        let seen = server.seen.recv().await.unwrap();
        assert!(seen.starts_with(path) && seen.contains("accept: text/event-stream\r\n"), "{seen}");
        assert_eq!(seen.contains(r#""stream":true"#), api != Api::Gemini, "{seen}");
        // A short one is not asked for as a stream, and a server may answer whole all the same.
        let answer = match api {
            Api::OpenAi => HELLO,
            Api::Anthropic => MESSAGE,
            Api::Gemini => CONTENT,
        };
        for params in [r#"{"max_tokens":1000}"#, r#"{"max_tokens":1001}"#] {
            let server = Server::answering(http("200 OK", "", answer)).await;
            let reply = call(&provider(api, &server.base_url, 1_000), work(params), LONG).await.unwrap();
            assert_eq!(reply.text.as_deref(), Some("Hello"));
        }
    }
}

#[tokio::test]
async fn what_took_too_long_to_come_whole_is_asked_for_as_a_stream() {
    for (api, answer, mark) in
        [(Api::Anthropic, MESSAGE, r#""stream":true"#), (Api::Gemini, CONTENT, "m:streamGenerateContent?alt=sse")]
    {
        for stream in [false, true] {
            let mut server = Server::answering(http("200 OK", "", answer)).await;
            let chat = provider(api, &server.base_url, 1_000);
            call_again(&chat, work(r#"{"max_tokens":9}"#), LONG, stream).await.unwrap();
            let seen = server.seen.recv().await.unwrap();
            assert_eq!(seen.contains(mark), stream, "{seen}");
        }
    }
}

#[tokio::test]
async fn a_stream_that_ends_early_may_have_been_billed_and_an_error_in_it_has_its_class() {
    let start = r#"{"type":"message_start","message":{"id":"m","content":[],"stop_reason":null,"usage":{}}}"#;
    let error = |kind: &str| format!(r#"{{"type":"error","error":{{"type":"{kind}","message":"said so"}}}}"#);
    for (body, class, code) in [
        (events(&[start]), UnknownBilled, "answer_cut"),
        (String::new(), UnknownBilled, "answer_cut"),
        ("data: {\"type\":\"message_st".to_owned(), UnknownBilled, "answer_cut"),
        (events(&[start, "no event at all"]), UnknownBilled, "invalid_answer"),
        (events(&[start, &error("overloaded_error")]), Capacity, "overloaded_error"),
        (events(&[start, &error("rate_limit_error")]), Throttled, "rate_limit_error"),
        (events(&[&error("api_error")]), Transient, "api_error"),
        (events(&[start, BLOCK, DELTA, &error("overloaded_error")]), UnknownBilled, "overloaded_error"),
        (events(&[start, BLOCK, DELTA, &error("invalid_request_error")]), Fatal, "invalid_request_error"),
        (events(&[&error("authentication_error")]), Account, "authentication_error"),
    ] {
        let server = Server::answering(streamed(&body)).await;
        let chat = provider(Api::Anthropic, &server.base_url, 0);
        let failure = call(&chat, work(""), LONG).await.unwrap_err();
        assert_eq!((failure.class, failure.code.as_str()), (class, code), "{body}");
        assert_eq!(failure.usage.input_tokens > 0, matches!(class, UnknownBilled | Fatal), "{body}");
    }
}

/// Gives every connection its pieces one after the other, `pause` apart, and holds it.
async fn paced(pieces: Vec<String>, pause: Duration) -> (String, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base_url = format!("http://{}/v1", listener.local_addr().unwrap());
    let mut running = JoinSet::new();
    running.spawn(async move {
        let mut kept = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            request(&mut stream).await;
            let mut paces = tokio::time::interval(pause);
            for piece in &pieces {
                paces.tick().await;
                if stream.write_all(piece.as_bytes()).await.is_err() {
                    break;
                }
            }
            kept.push(stream);
        }
    });
    (base_url, running)
}

#[tokio::test]
async fn a_stream_is_waited_for_while_something_comes_and_not_for_ever() {
    let opening = streamed(&events(&[START, BLOCK]));
    let end = events(&[r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"}}"#, r#"{"type":"message_stop"}"#]);
    let limit = Duration::from_millis(500);
    let mut long = vec![opening.clone()];
    long.extend(vec![events(&[DELTA]); 10]);
    long.push(end);
    let (base_url, _running) = paced(long, limit / 5).await;
    let began = tokio::time::Instant::now();
    let reply = call(&provider(Api::Anthropic, &base_url, 0), work(""), limit).await.unwrap();
    assert!(reply.text.unwrap().len() == 20 && began.elapsed() > limit * 2, "{:?}", began.elapsed());
    let silent = vec![opening.clone(), events(&[DELTA])];
    let pings = [vec![opening], vec![": still here\n".to_owned(); 1_000]].concat();
    for (pieces, least) in [(silent, limit), (pings, limit * 6)] {
        let (base_url, _running) = paced(pieces, limit / 10).await;
        let began = tokio::time::Instant::now();
        let chat = provider(Api::Anthropic, &base_url, 0);
        let cut = tokio::time::timeout(LONG, call(&chat, work(""), limit)).await.expect("ends in time").unwrap_err();
        assert_eq!((cut.class, cut.code.as_str(), cut.usage.input_tokens), (UnknownBilled, "timeout", 3));
        assert!(began.elapsed() >= least && cut.usage.output_tokens > 1, "{:?} {cut:?}", began.elapsed());
    }
}

#[tokio::test]
async fn a_streams_last_event_needs_no_blank_line() {
    let events = events(&[START, BLOCK, DELTA, r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"}}"#]);
    let server = Server::answering(streamed(events.trim_end())).await;
    let reply = call(&provider(Api::Anthropic, &server.base_url, 0), work(""), LONG).await.unwrap();
    assert_eq!(reply.text.as_deref(), Some("Hi"));
}

#[tokio::test]
async fn a_stream_over_the_limit_is_refused() {
    let part = format!(
        r#"data: {{"type":"content_block_delta","index":0,"delta":{{"type":"text_delta","text":"{}"}}}}"#,
        "x".repeat(1 << 20)
    );
    let begin = events(&[
        r#"{"type":"message_start","message":{"content":[],"stop_reason":null}}"#,
        r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#,
    ]);
    let body = begin + &format!("{part}\n\n").repeat(17);
    let server = Server::answering(streamed(&body)).await;
    let failure = call(&provider(Api::Anthropic, &server.base_url, 0), work(""), LONG).await.unwrap_err();
    assert_eq!((failure.class, failure.code.as_str()), (Fatal, "output_too_large"));
}

/// Answers every request on every connection, and says how many connections there were.
async fn counting(answer: String) -> (String, tokio::sync::watch::Receiver<usize>, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base_url = format!("http://{}/v1", listener.local_addr().unwrap());
    let (count, counted) = tokio::sync::watch::channel(0);
    let mut running = JoinSet::new();
    running.spawn(async move {
        let mut open = JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            count.send_modify(|count| *count += 1);
            let answer = answer.clone();
            open.spawn(async move {
                // Between two requests there may be the end.
                while stream.readable().await.is_ok() && stream.peek(&mut [0]).await.is_ok_and(|read| read > 0) {
                    request(&mut stream).await;
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            });
        }
    });
    (base_url, counted, running)
}

#[tokio::test]
async fn many_calls_take_one_connection_whole_and_streamed() {
    let whole = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{MESSAGE}", MESSAGE.len());
    let body = events(&[
        r#"{"type":"message_start","message":{"content":[],"stop_reason":"end_turn"}}"#,
        r#"{"type":"message_stop"}"#,
    ]);
    let chunked = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let stream =
        format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n{chunked}");
    for (answer, stream_above) in [(whole, u64::MAX), (stream, 0)] {
        let (base_url, counted, _running) = counting(answer).await;
        let chat = provider(Api::Anthropic, &base_url, stream_above);
        for _ in 0..20 {
            call(&chat, work(""), LONG).await.unwrap();
        }
        assert_eq!(*counted.borrow(), 1);
    }
}

#[test]
fn only_the_model_named_so_has_the_alias() {
    let model = Model { provider: "near".into(), model: "claude-x-20260101".into() };
    let chat = provider(Api::Anthropic, "http://127.0.0.1:9/v1", 0).called("fast", &model);
    let key =
        |model: &str| chat.limit_key(&Job::new(promptq_common::job::Queue::standard(), Work::prompt(Some(model), "")));
    assert_eq!((key("fast"), key("near/slow")), ("near/claude-x".to_owned(), "near/slow".to_owned()));
}
