//! A collector of traces: takes spans as OTLP over HTTP has them, and keeps them. Or one that takes them and never answers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::site::until;

/// The server; gone with this value.
#[derive(Debug)]
pub struct Collector {
    port: u16,
    requests: Arc<Mutex<Vec<Request>>>,
    _server: JoinSet<()>,
}

/// One request.
#[derive(Clone, Debug)]
pub struct Request {
    /// Its line and headers.
    pub head: String,
    /// Its body.
    pub body: Value,
}

/// One span, as it was told.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// The trace's id.
    pub trace: String,
    /// Its own.
    pub id: String,
    /// That of the span it is below.
    pub parent: Option<String>,
    /// Its name.
    pub name: String,
    /// Its kind, by its number.
    pub kind: u64,
    /// What it says, numbers as text.
    pub said: BTreeMap<String, String>,
    /// The spans of others that it points to.
    pub links: Vec<String>,
    /// Whether it failed.
    pub failed: bool,
    /// Whose it is.
    pub service: String,
}

impl Span {
    /// What it says under this name; empty if nothing.
    pub fn says(&self, name: &str) -> &str {
        self.said.get(name).map_or("", String::as_str)
    }
}

impl Collector {
    /// One that takes spans.
    ///
    /// # Panics
    /// When it cannot listen; so do its other calls where something else comes than spans.
    pub async fn start() -> Self {
        Self::answering(true).await
    }

    /// One that never answers.
    pub async fn silent() -> Self {
        Self::answering(false).await
    }

    async fn answering(answers: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let mut server = JoinSet::new();
        server.spawn(accept(listener, Arc::clone(&requests), answers));
        Self { port, requests, _server: server }
    }

    /// As `OTEL_EXPORTER_OTLP_ENDPOINT` has it.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Every request so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Every span so far.
    pub fn spans(&self) -> Vec<Span> {
        self.requests().iter().flat_map(|request| spans(&request.body)).collect()
    }

    /// The spans, once there are so many.
    pub async fn told(&self, count: usize) -> Vec<Span> {
        until(&format!("{count} spans are told"), async || {
            let spans = self.spans();
            (spans.len() >= count).then_some(spans)
        })
        .await
    }
}

async fn accept(listener: TcpListener, requests: Arc<Mutex<Vec<Request>>>, answers: bool) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { return };
                connections.spawn(serve(stream, Arc::clone(&requests), answers));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(stream: TcpStream, requests: Arc<Mutex<Vec<Request>>>, answers: bool) {
    let mut stream = BufReader::new(stream);
    while let Some(request) = read(&mut stream).await {
        requests.lock().unwrap_or_else(PoisonError::into_inner).push(request);
        if !answers {
            std::future::pending::<()>().await;
        }
        let answer = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn read(stream: &mut BufReader<TcpStream>) -> Option<Request> {
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let from = head.len();
        stream.read_line(&mut head).await.ok().filter(|bytes| *bytes > 0)?;
        match head.get(from..)?.trim_end().to_ascii_lowercase().split_once(": ") {
            Some(("content-length", value)) => length = value.parse().ok()?,
            None if head.get(from..)?.trim_end().is_empty() => break,
            Some(_) | None => {}
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some(Request { head, body: serde_json::from_slice(&body).ok()? })
}

fn spans(body: &Value) -> Vec<Span> {
    let of = |resource: &Value| {
        let service = said(&resource["resource"]["attributes"]).remove("service.name").unwrap_or_default();
        let scopes = resource["scopeSpans"].as_array().cloned().unwrap_or_default();
        let spans = scopes.into_iter().flat_map(|scope| scope["spans"].as_array().cloned().unwrap_or_default());
        spans.map(|told| span(&told, &service)).collect::<Vec<_>>()
    };
    body["resourceSpans"].as_array().expect("spans of resources").iter().flat_map(of).collect()
}

fn span(told: &Value, service: &str) -> Span {
    let text = |name: &str| told[name].as_str().map(str::to_owned);
    let time = |name: &str| told[name].as_str().and_then(|time| time.parse::<u64>().ok()).expect("a time");
    assert!(time("startTimeUnixNano") > 0 && time("endTimeUnixNano") >= time("startTimeUnixNano"), "{told}");
    let links = told["links"].as_array().cloned().unwrap_or_default();
    Span {
        trace: text("traceId").expect("a trace"),
        id: text("spanId").expect("an id"),
        parent: text("parentSpanId"),
        name: text("name").expect("a name"),
        kind: told["kind"].as_u64().expect("a kind"),
        said: said(&told["attributes"]),
        links: links.iter().filter_map(|link| link["spanId"].as_str().map(str::to_owned)).collect(),
        failed: told["status"]["code"] == 2,
        service: service.to_owned(),
    }
}

fn said(attributes: &Value) -> BTreeMap<String, String> {
    let attributes = attributes.as_array().cloned().unwrap_or_default();
    let one = |attribute: &Value| {
        let value = attribute["value"].as_object()?.values().next()?;
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        Some((attribute["key"].as_str()?.to_owned(), text))
    };
    attributes.iter().filter_map(one).collect()
}
