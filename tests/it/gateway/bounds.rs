//! What is bounded: sizes, heads, slow clients, connections.

use std::time::{Duration, Instant};

use promptq_tests::gateway::{Ask, Gateway, key};
use promptq_tests::process::Home;
use promptq_tests::site::until;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::{job, lines};

async fn gateway(home: &Home) -> Gateway {
    Gateway::start(home, &[]).await.ready().await
}

/// Says something on a connection of its own and gives it back.
async fn say(gateway: &Gateway, text: &str) -> TcpStream {
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    stream
}

/// What comes until the other side hangs up.
async fn rest(mut stream: TcpStream) -> String {
    let mut text = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut text)).await;
    drop(read.expect("the other side hangs up"));
    String::from_utf8_lossy(&text).into_owned()
}

#[tokio::test]
async fn what_is_too_large_is_refused() {
    let home = Home::new();
    home.write("promptq.toml", "[gateway]\nmax_batch = \"1MiB\"\n");
    let gateway = gateway(&home).await;
    let large = gateway.ask(Ask::post("/v1/jobs", job(&"x".repeat(17 << 20)))).await.fails(413, "too-large");
    assert_eq!(large.body["limit"], 16 << 20);
    gateway.ask(Ask::post("/v1/jobs", job(&"x".repeat(15 << 20)))).await.is(201);
    gateway.ask(Ask::post("/v1/batches", lines(1..=40_000))).await.fails(413, "too-large");
    let chunked = "POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    let mut stream = say(&gateway, chunked).await;
    let piece = format!("{:x}\r\n{}\r\n", 1 << 20, "x".repeat(1 << 20));
    for _ in 0..20 {
        if stream.write_all(piece.as_bytes()).await.is_err() {
            break;
        }
    }
    assert!(rest(stream).await.starts_with("HTTP/1.1 413"));
    gateway.ask(Ask::get(&format!("/{}", "x".repeat(5_000)))).await.fails(414, "uri-too-long");
    let head = Ask::get("/openapi.json").with("x-long", "x".repeat(20_000));
    gateway.ask(head).await.fails(431, "head-too-large");
    assert_eq!(gateway.ask(Ask::get("/v1/queues/default/stats")).await.is(200).body["ready"], 1);
}

#[tokio::test]
async fn what_is_no_request_is_answered_with_a_problem_too() {
    let home = Home::new();
    let gateway = gateway(&home).await;
    let many = (0..200).fold(String::new(), |head, n| head + &format!("x-{n}: 1\r\n"));
    for (text, status, code) in [
        ("GET / nonsense\r\n\r\n".to_owned(), "400 Bad Request", "bad-request"),
        ("GET /\u{1} HTTP/1.1\r\n\r\n".to_owned(), "400 Bad Request", "bad-request"),
        (format!("GET / HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "y".repeat(100_000)), "431", "head-too-large"),
        (format!("GET / HTTP/1.1\r\nhost: localhost\r\n{many}\r\n"), "431", "head-too-large"),
    ] {
        let answer = rest(say(&gateway, &text).await).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
        assert!(head.contains("application/problem+json") && head.contains("x-request-id"), "{answer}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(body).unwrap()["code"], code, "{answer}");
    }
}

/// So many connections that send a large job but for its last byte, as whoever has this secret.
async fn nearly(gateway: &Gateway, secret: &str, count: usize) -> Vec<TcpStream> {
    let (body, mut open) = (job(&"x".repeat(100 << 10)), Vec::new());
    for _ in 0..count {
        let head = format!(
            "POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {secret}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len() + 1
        );
        open.push(say(gateway, &(head + &body)).await);
    }
    open
}

#[tokio::test]
async fn one_key_cannot_hold_all_places_for_large_jobs_and_batches() {
    let home = Home::new();
    let [greedy, other] =
        ["greedy", "other"].map(|name| key(&home, &[name, "--role", "submitter", "--rate", "100000"]));
    let gateway = gateway(&home).await;
    let large = || Ask::post("/v1/jobs", job(&"x".repeat(100 << 10)));
    let mut open = nearly(&gateway, &greedy, 16).await;
    // What asks may take the place of one of them for a moment: so there is always one more.
    let full = until("it has what it may have", async || {
        open.extend(nearly(&gateway, &greedy, 1).await);
        Some(gateway.ask(large().by(&greedy)).await).filter(|answer| answer.status == 503)
    });
    full.await.fails(503, "busy");
    gateway.ask(large().by(&other)).await.is(201);
    gateway.ask(Ask::post("/v1/jobs", job("small")).by(&greedy)).await.is(201);
    drop(open);
    until("it has left", async || (gateway.ask(large().by(&greedy)).await.status == 201).then_some(())).await;
    let half = format!(
        "POST /v1/batches HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {greedy}\r\ncontent-type: application/x-ndjson\r\ncontent-length: 90\r\n\r\n{{"
    );
    let mut halves = Vec::new();
    let batch = |secret: &str| Ask::post("/v1/batches", lines(1..=2)).by(secret);
    let full = until("it has its batches", async || {
        halves.push(say(&gateway, &half).await);
        Some(gateway.ask(batch(&greedy)).await).filter(|answer| answer.status == 503)
    });
    full.await.fails(503, "busy");
    gateway.ask(batch(&other)).await.is(201);
}

#[tokio::test]
async fn slow_clients_are_given_up_and_keep_nobody_else_waiting() {
    let home = Home::new();
    let gateway = gateway(&home).await;
    let begun = Instant::now();
    let heads = ["GET /openapi.json HTT", "POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\n"];
    let body =
        "POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 90\r\n\r\n{";
    let mut slow = JoinSet::new();
    for n in 0..100 {
        let stream = say(&gateway, [heads[0], heads[1], body][n % 3]).await;
        slow.spawn(rest(stream));
    }
    let mut took = Vec::new();
    for n in 0..100 {
        let one = Instant::now();
        gateway.ask(Ask::post("/v1/jobs", job(&format!("job {n}")))).await.is(201);
        took.push(one.elapsed());
    }
    took.sort_unstable();
    assert!(took[94] < Duration::from_millis(500), "beside slow clients: {took:?}");
    let ends = slow.join_all().await;
    let elapsed = begun.elapsed();
    assert!(elapsed < Duration::from_secs(30), "given up after {elapsed:?}");
    let told = ends.iter().filter(|text| text.starts_with("HTTP/1.1 408")).count();
    assert!(told >= 33, "whoever sends a body slowly is told so: {told} of {ends:?}");
}

#[tokio::test]
async fn who_reads_no_answer_is_given_up() {
    let home = Home::new();
    let gateway = gateway(&home).await;
    let ask = "GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    // Requests one after the other, and not one answer read: at some time nothing fits in any more.
    let begun = Instant::now();
    let filled = async { while stream.write_all(ask.repeat(100).as_bytes()).await.is_ok() {} };
    let given_up = tokio::time::timeout(Duration::from_secs(60), filled).await;
    assert!(given_up.is_ok(), "the connection is open after {:?}", begun.elapsed());
}

#[tokio::test]
async fn one_connection_too_many_is_told_to_come_again() {
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }).unwrap();
    let home = Home::new();
    let gateway = gateway(&home).await;
    let mut open = Vec::new();
    for _ in 0..4_096 {
        open.push(TcpStream::connect(gateway.address).await.unwrap());
    }
    let refused = rest(TcpStream::connect(gateway.address).await.unwrap()).await;
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("retry-after"), "{refused}");
    assert!(refused.contains("application/problem+json") && refused.contains("\"busy\""), "{refused}");
    drop(open);
    until("there is room again", async || {
        gateway.try_ask(Ask::get("/openapi.json")).await.is_some_and(|answer| answer.status == 200).then_some(())
    })
    .await;
}
