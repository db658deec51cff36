//! Calls against a small HTTP server played by the test: what is sent, and what becomes of every way a call can end.

use promptq_common::broker::{LeaseId, WorkerId};
use promptq_common::job::{Band, Lane, Queue};
use promptq_common::limits::{Cap, Limits, Measure, Per, Rule, Size, look};
use promptq_common::outcome::FailureClass::{Account, Capacity, Fatal, Throttled, Transient, UnknownBilled};
use promptq_common::work::Work;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::*;

pub(super) const KEY: &str = "sk-very-secret";
pub(super) const HELLO: &str = r#"{"id":"c1","model":"m1","choices":[{"message":{"content":"Hello"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":1}}"#;

/// A server that gives every connection's first request the same bytes, then hangs up (or hangs).
pub(super) struct Server {
    pub(super) base_url: String,
    pub(super) seen: mpsc::Receiver<String>,
    _running: JoinSet<()>,
}

impl Server {
    pub(super) async fn answering(answer: impl Into<String>) -> Self {
        Self::start(answer.into(), false).await
    }

    /// Holds the connection after its bytes.
    async fn stalling(answer: &str) -> Self {
        Self::start(answer.to_owned(), true).await
    }

    async fn hanging() -> Self {
        Self::stalling("").await
    }

    async fn start(answer: String, hold: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base_url = format!("http://{}/v1", listener.local_addr().unwrap());
        let (see, seen) = mpsc::channel(16);
        let mut running = JoinSet::new();
        running.spawn(async move {
            let mut kept = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let request = request(&mut stream).await;
                see.send(request).await.unwrap();
                // Who was told enough may have hung up.
                stream.write_all(answer.as_bytes()).await.ok();
                kept.extend(hold.then_some(stream));
            }
        });
        Self { base_url, seen, _running: running }
    }
}

pub(super) async fn request(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap_or("0");
            if body.len() >= length.parse::<usize>().unwrap() {
                return text;
            }
        }
        assert_ne!(stream.read_buf(&mut bytes).await.unwrap(), 0, "a request without its end: {text}");
    }
}

pub(super) fn http(status: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n{headers}\r\n{body}")
}

fn chat(base_url: &str) -> Chat {
    let settings = ProviderSettings {
        api: Api::OpenAi,
        stream_above: u64::MAX,
        traceparent: true,
        base_url: base_url.to_owned(),
        api_key: Some(KEY.into()),
        default_model: Some("small".to_owned()),
    };
    Chat::new("local", settings, client().unwrap()).unwrap()
}

async fn run(base_url: &str, work: Work, timeout: Duration) -> Result<Reply, Failure> {
    call(&chat(base_url), work, timeout).await
}

#[tokio::test]
async fn only_a_provider_that_may_know_is_told_where_in_a_trace_a_call_is() {
    let trace = Place::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    for traceparent in [true, false] {
        let mut server = Server::answering(http("200 OK", "", HELLO)).await;
        let mut chat = chat(&server.base_url);
        chat.settings.traceparent = traceparent;
        let worker = WorkerId::random("w");
        let cx = RunContext { attempt: 1, lease: LeaseId::random(), worker, ear: None, stream: false, trace };
        drop(chat.run(&Job::new(Queue::standard(), Work::prompt(None, "Say hello")), &cx).await);
        let seen = server.seen.recv().await.unwrap();
        assert_eq!(seen.contains(&format!("traceparent: {}\r\n", trace.unwrap())), traceparent, "{seen}");
    }
}

pub(super) async fn call(chat: &Chat, work: Work, timeout: Duration) -> Result<Reply, Failure> {
    call_again(chat, work, timeout, false).await
}

/// Calls, for a stream if one can be had.
pub(super) async fn call_again(chat: &Chat, work: Work, timeout: Duration, stream: bool) -> Result<Reply, Failure> {
    let mut job = Job::new(Queue::standard(), work);
    job.policy.timeout = timeout;
    let cx = RunContext {
        attempt: 1,
        lease: LeaseId::random(),
        worker: WorkerId::random("w"),
        ear: None,
        stream,
        trace: None,
    };
    match chat.run(&job, &cx).await {
        Outcome::Success(reply) => Ok(reply),
        Outcome::Failure(failure) => Err(failure),
    }
}

async fn ask(base_url: &str) -> Result<Reply, Failure> {
    run(base_url, Work::prompt(Some("local/m"), "Say hello to everybody in the room"), Duration::from_secs(10)).await
}

#[tokio::test]
async fn a_prompt_is_sent_as_a_chat_and_its_answer_read() {
    let mut server = Server::answering(http("200 OK", "x-request-id: req_9\r\n", HELLO)).await;
    let reply = ask(&server.base_url).await.unwrap();
    assert_eq!((reply.text.as_deref(), reply.request_id.as_deref()), (Some("Hello"), Some("req_9")));
    assert_eq!((reply.usage.input_tokens, reply.usage.output_tokens), (3, 1));
    let seen = server.seen.recv().await.unwrap();
    assert!(seen.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"), "{seen}");
    assert!(seen.contains("authorization: Bearer sk-very-secret\r\n"), "{seen}");
    assert!(seen.contains(r#"{"model":"m","messages":[{"role":"user","content":"Say hello"#), "{seen}");
}

#[tokio::test]
async fn a_ready_made_request_goes_to_its_own_url_untouched() {
    let answer = r#"{"id":"r","status":"completed","output":[{"type":"message","content":[{"text":"Hi"}]}]}"#;
    let mut server = Server::answering(http("200 OK", "", answer)).await;
    let body = r#"{ "model" : "m",  "input": "x" }"#;
    let input = Input::Request { url: "/v1/responses".into(), body: body.into() };
    let work = Work { model: Some("m".into()), input };
    let reply = run(&format!("{}/", server.base_url), work, Duration::from_secs(10)).await.unwrap();
    assert_eq!(reply.text.as_deref(), Some("Hi"));
    let seen = server.seen.recv().await.unwrap();
    assert!(seen.starts_with("POST /v1/responses HTTP/1.1\r\n") && seen.ends_with(body), "{seen}");
}

#[tokio::test]
async fn each_refusal_has_its_class_and_wait() {
    for (status, headers, body, class, wait) in [
        ("429 Too Many Requests", "retry-after: 2\r\n", "", Throttled, Some(2)),
        ("429 Too Many Requests", "", r#"{"error":{"code":"insufficient_quota"}}"#, Account, None),
        ("401 Unauthorized", "", r#"{"error":{"message":"Incorrect key sk-very-secret"}}"#, Account, None),
        ("400 Bad Request", "", r#"{"error":{"message":"what is 'hello to everybody in the room'"}}"#, Fatal, None),
        ("500 Internal Server Error", "", "", Transient, None),
        ("503 Service Unavailable", "retry-after-ms: 3000\r\n", "", Capacity, Some(3)),
        ("307 Temporary Redirect", "location: http://127.0.0.1:1/\r\n", "", Fatal, None),
        ("200 OK", "", r#"{"error":{"code":429,"message":"slow"}}"#, Throttled, None),
    ] {
        let server = Server::answering(http(status, headers, body)).await;
        let failure = ask(&server.base_url).await.unwrap_err();
        assert_eq!((failure.class, failure.retry_after.map(|wait| wait.as_secs())), (class, wait), "{status} {body}");
        assert!(!failure.detail.contains("sk-very") && !failure.detail.contains("everybody"), "{}", failure.detail);
    }
}

#[tokio::test]
async fn a_call_that_never_began_is_capacity() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = format!("http://{}/v1", listener.local_addr().unwrap());
    drop(listener);
    // One that speaks no TLS, one that has no address, one that refuses.
    let plain = Server::answering(http("200 OK", "", HELLO)).await;
    let no_tls = plain.base_url.replace("http:", "https:");
    for base_url in [closed.as_str(), "http://no-such-host.invalid/v1", &no_tls] {
        let failure = run(base_url, Work::prompt(None, "Hi"), Duration::from_secs(5)).await.unwrap_err();
        assert_eq!(failure.class, Capacity, "{base_url}: {failure:?}");
        assert_eq!(failure.usage.input_tokens, 0);
    }
}

#[tokio::test]
async fn a_call_cut_after_it_was_sent_may_have_been_billed() {
    let mut begun = vec![
        ("connection_lost", Server::answering("").await),
        ("connection_lost", Server::answering("HTTP/1.1 200").await),
        ("answer_cut", Server::answering(http("200 OK", "", HELLO).trim_end_matches('}')).await),
        ("invalid_answer", Server::answering(http("200 OK", "", "")).await),
        ("invalid_answer", Server::answering(http("200 OK", "", HELLO.split_at(40).0)).await),
        ("invalid_answer", Server::answering(http("200 OK", "", "<html>Welcome</html>")).await),
    ];
    for (code, server) in begun.drain(..) {
        let failure = ask(&server.base_url).await.unwrap_err();
        assert_eq!((failure.class, failure.code.as_str()), (UnknownBilled, code));
        assert!(failure.usage.input_tokens > 10 && failure.usage.output_tokens > 0, "{failure:?}");
    }
}

#[tokio::test]
async fn a_call_is_cut_at_the_jobs_timeout() {
    // Neither a word, nor the end of an answer.
    for server in [Server::hanging().await, Server::stalling(http("200 OK", "", HELLO).trim_end_matches('}')).await] {
        let call = run(&server.base_url, Work::prompt(None, "Hi"), Duration::from_millis(300));
        let failure = tokio::time::timeout(Duration::from_secs(10), call).await.expect("ends in time").unwrap_err();
        assert_eq!((failure.class, failure.code.as_str()), (UnknownBilled, "timeout"));
        assert!(failure.usage.output_tokens > 0, "{failure:?}");
    }
}

#[tokio::test]
async fn a_refusal_is_not_waited_for_to_its_end() {
    let long = http("500 Internal Server Error", "", &"x".repeat(2 * ERROR_MAX));
    let server = Server::stalling(long.split_at(long.len() - ERROR_MAX / 2).0).await;
    let call = run(&server.base_url, Work::prompt(None, "Hi"), Duration::from_secs(5));
    assert_eq!(call.await.unwrap_err().class, Transient);
}

#[tokio::test]
async fn a_refusal_that_stalls_keeps_its_class() {
    let whole = http("429 Too Many Requests", "retry-after: 2\r\n", "{\"error\":{}}");
    let server = Server::stalling(whole.trim_end_matches('}')).await;
    let call = run(&server.base_url, Work::prompt(None, "Hi"), Duration::from_millis(300));
    let failure = tokio::time::timeout(Duration::from_secs(20), call).await.expect("ends in time").unwrap_err();
    assert_eq!((failure.class, failure.retry_after), (Throttled, Some(Duration::from_secs(2))));
}

#[tokio::test]
async fn usage_that_nobody_told_is_estimated() {
    let silent = HELLO.replace(r#","usage":{"prompt_tokens":3,"completion_tokens":1}"#, "");
    let server = Server::answering(http("200 OK", "", &silent)).await;
    let Reply { usage, origin, .. } = ask(&server.base_url).await.unwrap();
    assert!(usage.input_tokens > 10 && usage.output_tokens > 0, "{usage:?}");
    assert_eq!(origin.unwrap().cost_source, Some(CostSource::Estimate));
}

#[test]
fn a_job_is_paid_for_at_the_provider_and_model_it_goes_to() {
    let plain = chat("https://example.com/v1");
    let alias = plain.called("fast", &Model { provider: "local".into(), model: "claude-x-20260101".into() });
    for (chat, model, paid) in [
        (&plain, Some("local/m-2026-09-01"), "m-2026-09-01"),
        (&plain, Some("meta/m"), "meta/m"),
        (&plain, None, "small"),
        (&alias, Some("fast"), "claude-x-20260101"),
    ] {
        let job = Job::new(Queue::standard(), Work::prompt(model, "Hi"));
        assert_eq!(chat.priced_as(&job), Some(("local".to_owned(), paid.to_owned())), "{model:?}");
    }
}

#[tokio::test]
async fn a_redirect_is_refused_and_not_followed() {
    let mut elsewhere = Server::answering(http("200 OK", "", HELLO)).await;
    let location = format!("location: {}\r\n", elsewhere.base_url);
    for status in ["301 Moved Permanently", "302 Found", "303 See Other", "307 Temporary Redirect"] {
        let server = Server::answering(http(status, &location, "")).await;
        let failure = ask(&server.base_url).await.unwrap_err();
        assert_eq!((failure.class, failure.code.as_str()), (Fatal, "redirect_refused"), "{status}");
    }
    assert!(elsewhere.seen.try_recv().is_err());
}

#[tokio::test]
async fn an_answer_over_the_limit_is_refused() {
    let long = format!(r#"{{"choices":[{{"message":{{"content":"{}"}}}}]}}"#, "x".repeat(ANSWER_MAX));
    let server = Server::answering(http("200 OK", "", &long)).await;
    let failure = ask(&server.base_url).await.unwrap_err();
    assert_eq!((failure.class, failure.code.as_str()), (Fatal, "output_too_large"));
}

#[tokio::test]
async fn one_run_is_one_request() {
    let mut server = Server::answering(http("503 Service Unavailable", "", "")).await;
    drop(ask(&server.base_url).await);
    assert!(server.seen.recv().await.is_some());
    assert!(server.seen.try_recv().is_err());
}

#[test]
fn a_provider_never_shows_its_key() {
    let chat = chat("https://example.com/v1?key=hush");
    assert_eq!(format!("{chat:?}"), r#"Chat { name: "local", at: "https://example.com", .. }"#);
}

/// What the fleet takes for the limit after a call to that server, which need not have ended.
async fn learned(server: &Server) -> Option<i64> {
    let (broker, chat) = (crate::tests::broker(), chat(&server.base_url));
    let caps = vec![Cap { measure: Measure::Requests, per: Per::Minute, most: 600 }];
    let limits = Limits::ruled(vec![Rule { key: "local".into(), caps, adaptive: false }]);
    let lane = Lane { queue: Queue::standard(), model: None, band: Band::Normal };
    let called = async {
        let pass = limits.admit_call(&lane, "local/m", chat.endpoint().unwrap()).unwrap();
        let pass = limits.reserve(pass, &lane, Size { bytes: 9, max_tokens: None }).await.unwrap();
        let job = Job::new(Queue::standard(), Work::prompt(Some("local/m"), "Hi"));
        let worker = WorkerId::random("w");
        let cx =
            RunContext { attempt: 1, lease: LeaseId::random(), worker, ear: pass.ear(), stream: false, trace: None };
        drop(chat.run(&job, &cx).await);
        std::future::pending::<()>().await;
    };
    let told = async {
        loop {
            let view = look(broker.ledger(), "local").await.unwrap();
            if let Some(most) = view.and_then(|view| view.caps[0].learned) {
                return most;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        told = tokio::time::timeout(Duration::from_secs(10), told) => told.ok(),
        () = called => None,
        () = limits.keep_asking(broker.ledger(), 1.0) => None,
    }
}

#[tokio::test]
async fn what_headers_say_of_a_limit_is_heard_whatever_becomes_of_the_answer() {
    let headers = "x-ratelimit-limit-requests: 70\r\nx-ratelimit-remaining-requests: 69\r\n";
    for answer in [
        http("200 OK", headers, HELLO),
        http("429 Too Many Requests", headers, "{}"),
        http("400 Bad Request", headers, "{}"),
        http("500 Internal Server Error", headers, ""),
    ] {
        assert_eq!(learned(&Server::answering(answer.clone()).await).await, Some(70), "{answer}");
    }
    let unfinished = format!("HTTP/1.1 200 OK\r\ncontent-length: 900\r\n{headers}\r\n");
    assert_eq!(learned(&Server::stalling(&unfinished).await).await, Some(70), "before the body comes");
}
