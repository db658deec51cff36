//! A real small LLM behind llama.cpp's own OpenAI-compatible server, one process a test, gone with the test.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

/// How long a server may take to load its model: half a second alone, much more on a machine that runs other tests.
const READY: Duration = Duration::from_secs(60);
const SCRIPT: &str = include_str!("llm.py");

/// A running server. Dropping it ends the process.
#[derive(Debug)]
pub struct Llm {
    child: Child,
    address: String,
}

impl Llm {
    /// The model's name there; the server answers to any.
    pub const MODEL: &str = "smollm2";

    /// Starts a server on a free port and waits until it can answer.
    ///
    /// # Errors
    /// When it is not installed, or does not come up; the error says which command installs it.
    pub async fn start() -> anyhow::Result<Self> {
        let python = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/tools/llm/bin/python");
        if !python.exists() {
            bail!("the LLM server is not installed (target/tools/llm); hint: run tests/run, which installs it");
        }
        let mut child = Command::new(&python)
            .args(["-c", SCRIPT])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", python.display()))?;
        let mut lines = BufReader::new(child.stdout.take().context("no standard output")?).lines();
        let line = timeout(READY, lines.next_line()).await.context("the LLM server did not come up in time")??;
        let address = line.as_deref().and_then(|line| line.strip_prefix("http://")).map(str::to_owned);
        let address = address.context("the LLM server ended at once; hint: delete target/tools/llm, run tests/run")?;
        Ok(Self { child, address })
    }

    /// Where its API is, including the version.
    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// Waits until it works on a call.
    ///
    /// # Errors
    /// When that takes longer than half a minute.
    pub async fn busy(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !self.get("/slots").await?.contains("\"is_processing\":true") {
            if Instant::now() > deadline {
                bail!("the LLM server had nothing to do for half a minute");
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Kills it, as a crash would.
    ///
    /// # Errors
    /// When the process cannot be killed.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        Ok(self.child.kill().await?)
    }

    async fn get(&self, path: &str) -> anyhow::Result<String> {
        let mut stream = TcpStream::connect(&self.address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", self.address);
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }
}
