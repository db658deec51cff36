//! As much of HTTP/1.1 as a client needs that is not to be in the way of what it measures.

use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A connection that one request after the other goes over.
#[derive(Debug)]
pub(super) struct Line {
    stream: TcpStream,
    read: Vec<u8>,
}

/// What was answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
    /// Whether the connection is good for another request.
    pub(super) stays: bool,
}

impl Line {
    pub(super) async fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, read: Vec::new() })
    }

    /// Sends a request and takes its answer.
    pub(super) async fn ask(&mut self, request: &[u8]) -> anyhow::Result<Answer> {
        self.stream.write_all(request).await?;
        let end = loop {
            if let Some(end) = self.read.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            self.more().await?;
        };
        let head = String::from_utf8_lossy(&self.read[..end]).to_ascii_lowercase();
        let status = head.split(' ').nth(1).context("no status")?.parse()?;
        let field = |name: &str| head.lines().find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()));
        let length: Option<usize> = field("content-length:").map(|length| length.parse()).transpose()?;
        let stays = length.is_some() && field("connection:").is_none_or(|said| said != "close");
        match length {
            Some(length) => {
                while self.read.len() < end + length {
                    self.more().await?;
                }
            }
            None => while self.stream.read_buf(&mut self.read).await? > 0 {},
        }
        let rest = self.read.split_off(length.map_or(self.read.len(), |length| end + length));
        let body = std::mem::replace(&mut self.read, rest).split_off(end);
        Ok(Answer { status, body, stays })
    }

    async fn more(&mut self) -> anyhow::Result<()> {
        ensure!(self.stream.read_buf(&mut self.read).await? > 0, "it hung up");
        Ok(())
    }
}

/// A POST of a job, as whoever has this secret; of a body of so many bytes, of which this is the beginning.
pub(super) fn post(secret: &str, body: &str, bytes: usize) -> Vec<u8> {
    format!(
        "POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {secret}\r\ncontent-type: application/json\r\ncontent-length: {bytes}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// A GET.
pub(super) fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").into_bytes()
}
