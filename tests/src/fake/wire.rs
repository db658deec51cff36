//! HTTP/1.1 on one connection: requests in, whole answers, streams and broken ones out. Written here and not taken from a
//! library, because half of its work is to break what a library keeps whole.

use std::fmt::Write as _;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// The most bytes of a request's head.
const HEAD_MAX: usize = 64 << 10;
/// The most bytes of a request's body: Anthropic's limit, the smallest of the three.
const BODY_MAX: usize = 32 << 20;
/// The most headers of a request.
const HEADERS_MAX: usize = 100;

/// A connection.
#[derive(Debug)]
pub(super) struct Wire {
    stream: TcpStream,
    /// Received and not yet looked at.
    buffer: Vec<u8>,
}

/// A request, whole.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) method: String,
    /// Without the query.
    pub(super) path: String,
    pub(super) query: String,
    headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

/// Why there is no request.
#[derive(Debug)]
pub(super) enum NoRequest {
    /// The connection is over.
    Over,
    /// What came is not HTTP/1.1.
    Malformed,
    /// Its body is too large; the request without it.
    TooLarge(Box<Request>),
}

/// The other side has hung up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gone;

impl Request {
    /// A header, by its name in small letters.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// A value of the query, as it is written there.
    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        self.query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
    }

    /// Whether the connection ends with the answer.
    pub(super) fn is_last(&self) -> bool {
        self.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }
}

impl Wire {
    pub(super) fn new(stream: TcpStream) -> Self {
        // A chunk of a stream is not to wait for the next.
        stream.set_nodelay(true).ok();
        Self { stream, buffer: Vec::new() }
    }

    /// The next request.
    pub(super) async fn request(&mut self) -> Result<Request, NoRequest> {
        let (mut request, length) = loop {
            if let Some((request, length)) = self.head()? {
                break (request, length);
            }
            if self.buffer.len() > HEAD_MAX {
                return Err(NoRequest::Malformed);
            }
            self.more().await?;
        };
        if request.header("expect").is_some_and(|expect| expect.eq_ignore_ascii_case("100-continue")) {
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n").await.map_err(|Gone| NoRequest::Over)?;
        }
        let body = match length {
            Some(length) if length > BODY_MAX => None,
            Some(length) => Some(self.exactly(length).await?),
            None => self.chunks().await?,
        };
        let Some(body) = body else { return Err(NoRequest::TooLarge(Box::new(request))) };
        request.body = body;
        Ok(request)
    }

    /// The head at the buffer's beginning, when it is all there, and its body's length; `None` for one in chunks.
    fn head(&mut self) -> Result<Option<(Request, Option<usize>)>, NoRequest> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut parsed = httparse::Request::new(&mut headers);
        let taken = match parsed.parse(&self.buffer).map_err(|_| NoRequest::Malformed)? {
            httparse::Status::Complete(taken) => taken,
            httparse::Status::Partial => return Ok(None),
        };
        let (path, query) =
            parsed.path.unwrap_or_default().split_once('?').unwrap_or((parsed.path.unwrap_or_default(), ""));
        let header = |header: &httparse::Header<'_>| {
            (header.name.to_ascii_lowercase(), String::from_utf8_lossy(header.value).trim().to_owned())
        };
        let request = Request {
            method: parsed.method.unwrap_or_default().to_owned(),
            path: path.to_owned(),
            query: query.to_owned(),
            headers: parsed.headers.iter().map(header).collect(),
            body: Vec::new(),
        };
        self.buffer.drain(..taken);
        let in_chunks = request.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked"));
        let length = request.header("content-length").map_or(Ok(0), str::parse).map_err(|_| NoRequest::Malformed)?;
        Ok(Some((request, (!in_chunks).then_some(length))))
    }

    async fn exactly(&mut self, length: usize) -> Result<Vec<u8>, NoRequest> {
        while self.buffer.len() < length {
            self.more().await?;
        }
        let rest = self.buffer.split_off(length);
        Ok(std::mem::replace(&mut self.buffer, rest))
    }

    /// A body in chunks; `None` when it is too large.
    async fn chunks(&mut self) -> Result<Option<Vec<u8>>, NoRequest> {
        let mut body = Vec::new();
        loop {
            let (taken, size) = loop {
                match httparse::parse_chunk_size(&self.buffer).map_err(|_| NoRequest::Malformed)? {
                    httparse::Status::Complete((taken, size)) => {
                        break (taken, usize::try_from(size).unwrap_or(usize::MAX));
                    }
                    httparse::Status::Partial => self.more().await?,
                }
            };
            if body.len().saturating_add(size) > BODY_MAX {
                return Ok(None);
            }
            self.buffer.drain(..taken);
            body.extend(self.exactly(size).await?);
            self.exactly(2).await?;
            if size == 0 {
                return Ok(Some(body));
            }
        }
    }

    async fn more(&mut self) -> Result<(), NoRequest> {
        match self.stream.read_buf(&mut self.buffer).await {
            Ok(0) | Err(_) => Err(NoRequest::Over),
            Ok(_) => Ok(()),
        }
    }

    /// Sends bytes.
    pub(super) async fn write(&mut self, bytes: &[u8]) -> Result<(), Gone> {
        self.stream.write_all(bytes).await.map_err(|_| Gone)
    }

    /// Sends a chunk of a body whose length nobody knows; an empty one is none.
    pub(super) async fn chunk(&mut self, text: &str) -> Result<(), Gone> {
        if text.is_empty() {
            return Ok(());
        }
        self.write(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes()).await
    }

    /// Ends such a body.
    pub(super) async fn last_chunk(&mut self) -> Result<(), Gone> {
        self.write(b"0\r\n\r\n").await
    }

    /// Waits until then, or until the other side has hung up.
    pub(super) async fn rest_until(&mut self, at: Instant) -> Result<(), Gone> {
        if at <= Instant::now() {
            return Ok(());
        }
        let rest = tokio::time::sleep_until(at);
        tokio::pin!(rest);
        loop {
            tokio::select! {
                () = &mut rest => return Ok(()),
                // What comes early is the next request; more of it than a head has to wait.
                more = self.stream.read_buf(&mut self.buffer), if self.buffer.len() <= HEAD_MAX => match more {
                    Ok(0) | Err(_) => return Err(Gone),
                    Ok(_) => {}
                },
            }
        }
    }

    /// Says that no more comes, and reads what the other side still sends to nobody.
    pub(super) async fn drain(&mut self) {
        if self.stream.shutdown().await.is_ok() {
            while self.more().await.is_ok() {
                self.buffer.clear();
            }
        }
    }

    /// Waits until the other side has hung up.
    pub(super) async fn rest(&mut self) -> Gone {
        /// Nobody waits for so long.
        const AGES: Duration = Duration::from_secs(30 * 86_400);
        self.rest_until(Instant::now() + AGES).await.err().unwrap_or(Gone)
    }
}

/// The head of an answer: `length` of its body, or in chunks.
pub(super) fn head(status: u16, content_type: &str, length: Option<usize>, headers: &[(String, String)]) -> String {
    let mut head = format!("HTTP/1.1 {status} {}\r\ncontent-type: {content_type}\r\n", reason(status));
    for (name, value) in headers {
        write!(head, "{name}: {value}\r\n").ok();
    }
    match length {
        Some(length) => write!(head, "content-length: {length}\r\n\r\n").ok(),
        None => write!(head, "transfer-encoding: chunked\r\n\r\n").ok(),
    };
    head
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        413 => "Content Too Large",
        422 => "Unprocessable Content",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Other",
    }
}
