//! An OpenAI-compatible provider that answers late and writes down who called for what and when.

use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// One call, as it was met.
#[derive(Clone, Debug)]
pub struct Call {
    /// Which job it was for.
    pub job: u64,
    /// Which worker process made it.
    pub generation: u64,
    /// When its body had arrived.
    pub started: Instant,
    /// Whether an answer was sent, heard or not.
    pub answered: bool,
}

/// The server; gone with this value.
#[derive(Debug)]
pub struct Provider {
    port: u16,
    calls: Arc<Mutex<Vec<Call>>>,
    /// Whether it answers at all.
    answers: watch::Sender<bool>,
    _server: JoinSet<()>,
}

impl Provider {
    /// Answers each call after a time within `latency`, drawn from the seed and the job: the same however often it is
    /// called.
    ///
    /// # Errors
    /// When it cannot listen.
    pub async fn start(seed: u64, latency: RangeInclusive<u64>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let calls = Arc::new(Mutex::new(Vec::new()));
        let (answers, may_answer) = watch::channel(true);
        let mut server = JoinSet::new();
        server.spawn(accept(listener, Arc::clone(&calls), Latency { seed, millis: latency, may_answer }));
        Ok(Self { port, calls, answers, _server: server })
    }

    /// Keeps every answer back until [`Provider::go_on`]: its calls take as long as a test needs, and no longer.
    pub fn hold(&self) {
        self.answers.send_replace(false);
    }

    /// Answers again.
    pub fn go_on(&self) {
        self.answers.send_replace(true);
    }

    /// What a worker process is told, so that its calls can be told apart.
    pub fn base_url(&self, generation: u64) -> String {
        format!("http://127.0.0.1:{}/{generation}/v1", self.port)
    }

    /// Every call so far, in the order they came.
    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Calls of a worker process that have no answer yet.
    pub fn open_calls(&self, generation: u64) -> u32 {
        let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let open = calls.iter().filter(|call| call.generation == generation && !call.answered).count();
        u32::try_from(open).unwrap_or(u32::MAX)
    }
}

async fn accept(listener: TcpListener, calls: Arc<Mutex<Vec<Call>>>, drawn: Latency) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { return };
                connections.spawn(serve(stream, Arc::clone(&calls), drawn.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Answers one connection's calls until it ends; a caller that was killed just ends it.
async fn serve(stream: TcpStream, calls: Arc<Mutex<Vec<Call>>>, mut drawn: Latency) {
    let mut stream = BufReader::new(stream);
    while let Some((generation, job)) = read_call(&mut stream).await {
        let at = {
            let mut calls = calls.lock().unwrap_or_else(PoisonError::into_inner);
            calls.push(Call { job, generation, started: Instant::now(), answered: false });
            calls.len() - 1
        };
        tokio::time::sleep(latency(&drawn, job)).await;
        if drawn.may_answer.wait_for(|may| *may).await.is_err() {
            return;
        }
        calls.lock().unwrap_or_else(PoisonError::into_inner)[at].answered = true;
        if stream.write_all(answer(job).as_bytes()).await.is_err() {
            return;
        }
    }
}

/// How long calls take: milliseconds, and until answers are let go.
#[derive(Clone, Debug)]
struct Latency {
    seed: u64,
    millis: RangeInclusive<u64>,
    may_answer: watch::Receiver<bool>,
}

fn latency(of: &Latency, job: u64) -> Duration {
    let mixed = (of.seed ^ job.wrapping_mul(0x9E37_79B9_7F4A_7C15)).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 33;
    Duration::from_millis(of.millis.start() + mixed % (of.millis.end() - of.millis.start() + 1))
}

/// The worker process and the job of the next call; `None` when the connection is over or speaks something else.
async fn read_call(stream: &mut BufReader<TcpStream>) -> Option<(u64, u64)> {
    let mut line = String::new();
    stream.read_line(&mut line).await.ok()?;
    let generation = line.strip_prefix("POST /")?.split('/').next()?.parse().ok()?;
    let mut length = 0;
    loop {
        line.clear();
        stream.read_line(&mut line).await.ok()?;
        match line.trim_end().to_ascii_lowercase().split_once(": ") {
            Some(("content-length", value)) => length = value.parse().ok()?,
            Some(_) => {}
            None => break,
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    let body: serde_json::Value = serde_json::from_slice(&body).ok()?;
    let text = body["messages"].as_array()?.last()?["content"].as_str()?;
    Some((generation, text.strip_prefix("job ")?.parse().ok()?))
}

fn answer(job: u64) -> String {
    let body = serde_json::json!({
        "id": format!("call-{job}"),
        "object": "chat.completion",
        "created": 0,
        "model": "storm",
        "choices": [{
            "index": 0,
            "message": { "role": "assistant", "content": format!("answer {job}") },
            "finish_reason": "stop",
        }],
        "usage": { "prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4 },
    })
    .to_string();
    format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}
