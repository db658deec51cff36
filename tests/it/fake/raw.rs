//! A client that hides nothing: what came over the wire, also when it is half of an answer.

use std::time::Duration;

use promptq_tests::fake::Fake;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// What came until the connection ended.
#[derive(Debug)]
pub(super) struct Raw {
    /// 0 when no whole head came.
    pub(super) status: u16,
    pub(super) head: String,
    /// Out of its chunks, if it came in some.
    pub(super) body: String,
    /// Whether all came that the head promised.
    pub(super) is_whole: bool,
    /// Whether the other side ended it; otherwise nothing came for a while.
    pub(super) has_ended: bool,
}

impl Raw {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    /// The events of a stream: name, data.
    pub(super) fn events(&self) -> Vec<(String, String)> {
        let body = self.body.replace("\r\n", "\n");
        let line = |event: &str, name: &str| event.lines().find_map(|line| line.strip_prefix(name).map(str::to_owned));
        let events = body.split("\n\n").filter(|event| !event.is_empty());
        events.map(|event| (line(event, "event: ").unwrap_or_default(), line(event, "data: ").unwrap())).collect()
    }
}

/// How long an answer may be silent that is to come.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long one must be silent that is not to come.
const SILENCE: Duration = Duration::from_millis(300);

/// Sends a body with a key to a path.
pub(super) async fn post(fake: &Fake, path: &str, key: &str, body: &Value) -> Raw {
    send(fake, &request(path, key, body)).await
}

/// The same, for what never ends.
pub(super) async fn post_in_vain(fake: &Fake, path: &str, key: &str, body: &Value) -> Raw {
    exchange(fake, &request(path, key, body), SILENCE).await
}

fn request(path: &str, key: &str, body: &Value) -> String {
    let body = body.to_string();
    let head = format!("authorization: Bearer {key}\r\ncontent-length: {}\r\n", body.len());
    format!("POST {path} HTTP/1.1\r\nhost: fake\r\nconnection: close\r\n{head}\r\n{body}")
}

pub(super) async fn get(fake: &Fake, path: &str) -> Raw {
    send(fake, &format!("GET {path} HTTP/1.1\r\nhost: fake\r\nconnection: close\r\n\r\n")).await
}

/// Sends bytes and takes what comes.
pub(super) async fn send(fake: &Fake, request: &str) -> Raw {
    exchange(fake, request, PATIENCE).await
}

async fn exchange(fake: &Fake, request: &str, patience: Duration) -> Raw {
    let mut stream = TcpStream::connect(fake.origin().trim_start_matches("http://")).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    let has_ended = loop {
        match timeout(patience, stream.read_buf(&mut bytes)).await {
            Ok(Ok(0) | Err(_)) => break true,
            Ok(Ok(_)) => {}
            Err(_) => break false,
        }
    };
    read(&String::from_utf8(bytes).unwrap(), has_ended)
}

fn read(text: &str, has_ended: bool) -> Raw {
    let Some((head, rest)) = text.split_once("\r\n\r\n") else {
        return Raw { status: 0, head: text.to_owned(), body: String::new(), is_whole: false, has_ended };
    };
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let head = head.to_owned();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let (body, is_whole) = match length {
        Some(length) => (rest.to_owned(), rest.len() == length.parse::<usize>().unwrap()),
        None => unchunked(rest),
    };
    Raw { status, head, body, is_whole, has_ended }
}

fn unchunked(mut rest: &str) -> (String, bool) {
    let mut body = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let Ok(size) = usize::from_str_radix(size, 16) else { break };
        let (Some(chunk), Some(next)) = (after.get(..size), after.get(size + 2..)) else { break };
        if size == 0 {
            return (body, true);
        }
        body.push_str(chunk);
        rest = next;
    }
    (body, false)
}
