//! Spans on their way to a collector that a test plays: batches, tries, the end, headers.

use std::sync::Mutex;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::super::{Kind as Side, Sampler};
use super::*;

/// A collector that answers with these statuses in turn, the last one from then on, and what it says; how many spans
/// each request had.
#[derive(Debug)]
struct Played {
    url: String,
    spans: Arc<Mutex<Vec<usize>>>,
    _server: JoinSet<()>,
}

impl Played {
    async fn answering(statuses: &'static [u16]) -> Self {
        Self::saying(statuses, String::new()).await
    }

    async fn saying(statuses: &'static [u16], body: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1/traces", listener.local_addr().unwrap());
        let (spans, mut server) = (Arc::<Mutex<Vec<usize>>>::default(), JoinSet::new());
        let seen = Arc::clone(&spans);
        server.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                serve(stream, (statuses, &body), &seen).await;
            }
        });
        Self { url, spans, _server: server }
    }

    fn spans(&self) -> Vec<usize> {
        self.spans.lock().unwrap().clone()
    }
}

async fn serve(stream: TcpStream, (statuses, says): (&[u16], &str), seen: &Mutex<Vec<usize>>) {
    let mut stream = BufReader::new(stream);
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            match stream.read_line(&mut line).await {
                Ok(0) | Err(_) => return,
                Ok(_) if line.trim().is_empty() => break,
                Ok(_) => {}
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.unwrap();
        let told: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let spans = told["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap().len();
        let place = {
            let mut seen = seen.lock().unwrap();
            seen.push(spans);
            seen.len() - 1
        };
        let status = statuses.get(place).or(statuses.last()).unwrap();
        let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{says}", says.len());
        // Whoever has read enough of it goes.
        drop(stream.write_all(answer.as_bytes()).await);
    }
}

fn settings(endpoint: &str, headers: Option<&str>) -> Traces {
    Traces {
        endpoint: endpoint.to_owned(),
        headers: headers.map(Into::into),
        service: None,
        resource: Vec::new(),
        sampler: Sampler { by_parent: true, share: 1.0 },
        remark: None,
    }
}

/// So many spans to a collector, and the end of the process once so many have met their fate; what became of all, and of one
/// that comes late.
async fn ended(endpoint: &str, spans: usize, pauses: [Duration; 3], wait_for: u64) -> [u64; 3] {
    let (tracer, mut shipping, exporter) = Exporter::parts(&settings(endpoint, None), "test").unwrap();
    shipping.pauses = pauses;
    let tracer: &'static Tracer = Box::leak(Box::new(tracer));
    for _ in 0..spans {
        tracer.begin(None, None, (Side::Internal, "x".into())).1.unwrap().end();
    }
    let (exporter, tally) = (exporter.ship(shipping), Arc::clone(&tracer.tally));
    let fates = || [Fate::Sent, Fate::Lost, Fate::Dropped].map(|fate| tally.of(fate));
    while fates().iter().sum::<u64>() < wait_for {
        tokio::task::yield_now().await;
    }
    exporter.close().await;
    tracer.begin(None, None, (Side::Internal, "late".into())).1.unwrap().end();
    fates()
}

#[tokio::test]
async fn spans_go_in_batches_and_what_is_waiting_goes_at_the_end() {
    let played = Played::answering(&[200]).await;
    assert_eq!(ended(&played.url, 1_100, PAUSES, 0).await, [1_100, 0, 1], "what comes later is not taken");
    assert_eq!(played.spans(), [512, 512, 76]);
}

#[tokio::test]
async fn a_collector_that_is_busy_is_asked_again_and_one_that_refuses_is_not() {
    let tried = async |statuses| {
        let played = Played::answering(statuses).await;
        let fates = ended(&played.url, BATCH, [Duration::from_millis(1); 3], BATCH as u64).await;
        (played.spans().len(), [fates[0], fates[1]])
    };
    assert_eq!(tried(&[503, 429, 200]).await, (3, [512, 0]));
    assert_eq!(tried(&[502, 504, 503, 200]).await, (4, [512, 0]));
    assert_eq!(tried(&[503]).await, (4, [0, 512]), "three more times and no more");
    for refused in [&[400][..], &[401], &[404], &[413], &[500], &[302]] {
        assert_eq!(tried(refused).await, (1, [0, 512]), "{refused:?}");
    }
}

#[tokio::test]
async fn what_a_collector_takes_in_part_is_lost_in_part() {
    let fates = async |says: &str| {
        let played = Played::saying(&[200], says.to_owned()).await;
        let fates = ended(&played.url, BATCH, PAUSES, BATCH as u64).await;
        assert_eq!(played.spans(), [BATCH], "what was rejected is not sent again");
        [fates[0], fates[1]]
    };
    let told = |rejected: &str| format!(r#"{{"partialSuccess":{{"rejectedSpans":{rejected},"errorMessage":"x"}}}}"#);
    for (rejected, fate) in [
        (r#""512""#, [0, 512]),
        ("12", [500, 12]),
        (r#""9999999999999999999999""#, [512, 0]),
        ("9999999", [0, 512]),
        ("0", [512, 0]),
        ("-1", [512, 0]),
        (r#""many""#, [512, 0]),
    ] {
        assert_eq!(fates(&told(rejected)).await, fate, "{rejected}");
    }
    for says in ["{}", "[]", "<html>", r#"{"partialSuccess":{}}"#, &"x".repeat(1 << 20)] {
        assert_eq!(fates(says).await, [512, 0], "{says:.40}");
    }
}

#[tokio::test]
async fn that_a_collector_rejects_some_spans_is_told_once() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let writer = Mutex::new(log.reopen().unwrap());
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(writer).finish();
    let _logged = tracing::subscriber::set_default(subscriber);
    let played = Played::saying(&[200], r#"{"partialSuccess":{"rejectedSpans":"2"}}"#.to_owned()).await;
    assert_eq!(ended(&played.url, 3 * BATCH, PAUSES, 3 * BATCH as u64).await, [1_530, 6, 1]);
    let log = std::fs::read_to_string(log.path()).unwrap();
    assert_eq!(log.matches("rejects others").count(), 1, "{log}");
    assert!(log.contains("rejected=2 spans=512") && log.contains("lost=6"), "{log}");
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_sent_in_time_is_dropped_and_counted() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let begun = tokio::time::Instant::now();
    assert_eq!(ended(&url, 600, PAUSES, 0).await, [0, 0, 601], "those under way, those that wait, and the late one");
    assert_eq!(begun.elapsed().as_secs(), LAST.as_secs());
}

#[tokio::test]
async fn at_the_end_a_collector_that_is_away_is_not_waited_for() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_eq!(ended(&format!("http://{closed}"), 600, PAUSES, 0).await, [0, 600, 1]);
    let busy = Played::answering(&[503]).await;
    assert_eq!(ended(&busy.url, 600, PAUSES, 0).await, [0, 600, 1]);
    assert_eq!(busy.spans(), [512, 88], "each batch is tried once");
}

#[test]
fn headers_are_secrets_whatever_they_hold() {
    let parts = |said: &str| Exporter::parts(&settings("http://c", Some(said)), "test");
    let (.., shipping, _) = parts("authorization=Basic%20hunter2, x-team=hunter2").unwrap();
    assert_eq!(shipping.post.headers["authorization"], "Basic hunter2");
    assert_eq!(shipping.post.headers["content-type"], "application/json");
    assert!(!format!("{shipping:?}").contains("hunter2"), "{shipping:?}");
    for wrong in ["hunter2", "a=hunter2%0a", "hunter2 b=c", "hunter2%ff=%ff"] {
        let error = format!("{:?}", parts(wrong).unwrap_err());
        assert!(error.contains("telemetry.otlp_headers") && !error.contains("hunter2"), "{error}");
    }
}

#[test]
fn who_sends_is_said_and_what_was_said_before_stands() {
    let mut settings = settings("http://c", None);
    let told = |settings: &Traces| resource(settings, "worker");
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let version = pair("service.version", env!("CARGO_PKG_VERSION"));
    assert_eq!(told(&settings), [pair("service.name", "worker"), version.clone()]);
    settings.resource = vec![pair("service.name", "theirs"), pair("zone", "a")];
    assert_eq!(told(&settings), [pair("service.name", "theirs"), pair("zone", "a"), version.clone()]);
    settings.service = Some("nightly".into());
    assert_eq!(told(&settings), [pair("zone", "a"), pair("service.name", "nightly"), version]);
}
