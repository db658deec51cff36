//! A chat provider that answers every call after the same time, tells when calls come, and counts how many are open at
//! once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Callers that may wait to be let in, at once.
const WAITING: u32 = 16_384;

/// What a job's model is called that is asked here.
pub(crate) const MODEL: &str = "far";

const BODY: &str = r#"{"id":"call","object":"chat.completion","created":0,"model":"far","choices":[{"index":0,"message":{"role":"assistant","content":"an answer"},"finish_reason":"stop"}],"usage":{"prompt_tokens":2,"completion_tokens":2,"total_tokens":4}}"#;

/// The server; gone with this value.
#[derive(Debug)]
pub(crate) struct Provider {
    port: u16,
    calls: mpsc::Receiver<Instant>,
    counts: Arc<Counts>,
    _server: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Counts {
    open: AtomicU64,
    most: AtomicU64,
}

impl Provider {
    /// One that takes this long for each call. It remembers when the first so many came.
    pub(crate) fn start(latency: Duration, remembered: usize) -> anyhow::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(([127, 0, 0, 1], 0).into())?;
        let listener = socket.listen(WAITING)?;
        let port = listener.local_addr()?.port();
        let (came, calls) = mpsc::channel(remembered);
        let counts = Arc::new(Counts::default());
        let mut server = JoinSet::new();
        server.spawn(accept(listener, latency, came, Arc::clone(&counts)));
        Ok(Self { port, calls, counts, _server: server })
    }

    /// What promptq's programs are told.
    pub(crate) fn environment(&self) -> [(String, String); 2] {
        let url = format!("http://127.0.0.1:{}/v1", self.port);
        [("OPENAI_BASE_URL".to_owned(), url), ("OPENAI_API_KEY".to_owned(), "not-a-key".to_owned())]
    }

    /// When the next call came.
    pub(crate) async fn call(&mut self) -> Option<Instant> {
        self.calls.recv().await
    }

    /// The most calls that were open at once.
    pub(crate) fn most(&self) -> u64 {
        self.counts.most.load(Relaxed)
    }
}

async fn accept(listener: TcpListener, latency: Duration, came: mpsc::Sender<Instant>, counts: Arc<Counts>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { return };
                stream.set_nodelay(true).ok();
                connections.spawn(serve(stream, latency, came.clone(), Arc::clone(&counts)));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(stream: TcpStream, latency: Duration, came: mpsc::Sender<Instant>, counts: Arc<Counts>) {
    let answer =
        format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{BODY}", BODY.len());
    let mut stream = BufReader::with_capacity(2_048, stream);
    while read_call(&mut stream).await.is_some() {
        // Full when nobody asks for more.
        came.try_send(Instant::now()).ok();
        let open = counts.open.fetch_add(1, Relaxed) + 1;
        counts.most.fetch_max(open, Relaxed);
        tokio::time::sleep(latency).await;
        counts.open.fetch_sub(1, Relaxed);
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// Reads one call to its end; `None` when the connection is over or speaks something else.
async fn read_call(stream: &mut BufReader<TcpStream>) -> Option<()> {
    let mut line = String::new();
    let mut length = 0;
    loop {
        line.clear();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        match line.trim_end().to_ascii_lowercase().split_once(": ") {
            Some(("content-length", value)) => length = value.parse().ok()?,
            None if line.trim_end().is_empty() => break,
            Some(_) | None => {}
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some(())
}
