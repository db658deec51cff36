//! The fake provider as a program: started on a port of its own, told other limits meanwhile, asked for its bill; its ledger
//! is read as it grows.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::calls::Call;
use crate::process::{Home, Running, built};

/// How long it may take to come up; some 20 ms alone.
const READY: Duration = Duration::from_secs(20);

/// It runs; gone with this value.
#[derive(Debug)]
pub(super) struct Fake {
    running: Running,
    address: SocketAddr,
    ledger: PathBuf,
    /// How much of the ledger was read, and the calls in that.
    read: u64,
    calls: Vec<Call>,
}

impl Fake {
    /// Starts one with this configuration; its files lie in the home.
    pub(super) async fn start(home: &Home, config: &str) -> anyhow::Result<Self> {
        let (path, ledger) = (home.path().join("fake.toml"), home.path().join("calls.jsonl"));
        std::fs::write(&path, config)?;
        // Somebody else may take the port before it does.
        for _ in 0..5 {
            let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
            let mut command = Command::new(built("fake-provider")?);
            command.args(["--listen", &address.to_string(), "--seed", "7", "--config"]).arg(&path);
            command.arg("--ledger").arg(&ledger);
            let running = home.begin("fake-provider", command)?;
            let mut fake = Self { running, address, ledger: ledger.clone(), read: 0, calls: Vec::new() };
            if fake.is_up().await? {
                return Ok(fake);
            }
        }
        bail!("the fake provider does not come up")
    }

    async fn is_up(&mut self) -> anyhow::Result<bool> {
        let began = Instant::now();
        while self.bill().await.is_err() {
            if self.running.has_left()? {
                let why = self.running.tail();
                ensure!(why.contains("cannot listen"), "the fake provider has left: {why}");
                return Ok(false);
            }
            ensure!(began.elapsed() < READY, "the fake provider does not answer: {}", self.running.tail());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(true)
    }

    /// What promptq's programs are told, so that its ledger names them so.
    pub(super) fn environment(&self, caller: &str) -> Vec<(String, String)> {
        let origin = format!("http://{}/{caller}", self.address);
        let pairs = [
            ("OPENAI_BASE_URL", format!("{origin}/v1")),
            ("OPENAI_API_KEY", "not-a-key".to_owned()),
            ("ANTHROPIC_BASE_URL", origin),
            ("ANTHROPIC_API_KEY", "not-a-key".to_owned()),
        ];
        pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// What calls came to so far.
    pub(super) async fn bill(&self) -> anyhow::Result<Value> {
        self.ask("GET /fake/bill", "").await
    }

    /// Puts other limits in place of those there are.
    pub(super) async fn set_limits(&self, limits: &Value) -> anyhow::Result<()> {
        self.ask("POST /fake/limits", &limits.to_string()).await.map(drop)
    }

    /// Every call that has ended by now.
    pub(super) fn calls(&mut self) -> anyhow::Result<&[Call]> {
        let mut file = std::fs::File::open(&self.ledger)?;
        file.seek(SeekFrom::Start(self.read))?;
        let mut more = String::new();
        file.read_to_string(&mut more)?;
        // The last line may be half there.
        let whole = more.rfind('\n').map_or(0, |end| end + 1);
        for line in more.get(..whole).unwrap_or_default().lines() {
            self.calls.push(serde_json::from_str(line).with_context(|| format!("a line of the ledger: {line}"))?);
        }
        self.read += u64::try_from(whole)?;
        Ok(&self.calls)
    }

    async fn ask(&self, what: &str, body: &str) -> anyhow::Result<Value> {
        let mut stream = TcpStream::connect(self.address).await?;
        let length = body.len();
        let head = format!("{what} HTTP/1.1\r\nhost: fake\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
        stream.write_all(format!("{head}{body}").as_bytes()).await?;
        let mut said = String::new();
        stream.read_to_string(&mut said).await?;
        let (head, body) = said.split_once("\r\n\r\n").context("the fake provider said no HTTP")?;
        ensure!(head.starts_with("HTTP/1.1 200"), "{what}: {body}");
        Ok(serde_json::from_str(body)?)
    }
}

/// Each window of the bill that has a limit.
pub(super) fn windows(bill: &Value) -> Vec<Window> {
    let limits = bill["limits"].as_array().map(Vec::as_slice).unwrap_or_default();
    let window = |line: &Value| {
        line["limit"].as_u64()?;
        Some(Window {
            dimension: line["dimension"].as_str()?.to_owned(),
            used: line["used"].as_u64()?,
            highest_percent: line["highest_percent"].as_f64()?,
        })
    };
    limits.iter().filter_map(window).collect()
}

/// A window of the provider's.
#[derive(Clone, Debug)]
pub(super) struct Window {
    /// Of what.
    pub(super) dimension: String,
    /// What counts now.
    pub(super) used: u64,
    /// The most that ever counted, in percent of the limit of that moment.
    pub(super) highest_percent: f64,
}
