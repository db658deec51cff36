//! Real S3 servers for tests, gone with them: moto, which takes any password, and s3s-fs, which checks signatures. Both
//! refuse a second creation of an object; of two at the same moment s3s-fs may take both.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use promptq_common::store::Store;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

/// Who may come in, and by which password.
const LOGIN: [&str; 2] = ["test", "of-a-test-and-nothing-else"];

/// How long a server may take to come up, on a machine that runs others.
const PATIENCE: Duration = Duration::from_secs(60);

/// An S3 server; gone with this value.
#[derive(Debug)]
pub struct S3 {
    port: u16,
    /// How many buckets it has.
    buckets: AtomicUsize,
    /// Where s3s-fs keeps its buckets, a folder each; moto keeps its own in memory.
    folder: Option<TempDir>,
    _server: Child,
}

impl S3 {
    /// Starts moto on a port of its own.
    ///
    /// # Panics
    /// When it is not installed, or does not come up within a minute.
    pub async fn moto() -> Self {
        let port = free_port().await;
        let server = start("moto", "moto_server", &["-H", "127.0.0.1", "-p", &port.to_string()]);
        Self { port, buckets: AtomicUsize::new(0), folder: None, _server: server }.up().await
    }

    /// Starts s3s-fs on a port of its own.
    ///
    /// # Panics
    /// When it is not installed, or does not come up within a minute.
    pub async fn s3s() -> Self {
        let (port, folder) = (free_port().await, TempDir::new().expect("a temporary folder"));
        let (number, root, [user, password]) = (port.to_string(), folder.path().display().to_string(), LOGIN);
        let login = ["--access-key", user, "--secret-key", password];
        let arguments = [&["--host", "127.0.0.1", "--port", &number][..], &login, &[&root]].concat();
        let server = start("s3s", "s3s-fs", &arguments);
        Self { port, buckets: AtomicUsize::new(0), folder: Some(folder), _server: server }.up().await
    }

    async fn up(self) -> Self {
        let began = Instant::now();
        while let Err(error) = TcpStream::connect(("127.0.0.1", self.port)).await {
            assert!(began.elapsed() < PATIENCE, "the S3 server did not come up within a minute: {error}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self
    }

    /// Makes a bucket, and tells its address.
    ///
    /// # Panics
    /// When the server does not make it.
    pub async fn bucket(&self) -> String {
        let name = format!("jobs-{}", self.buckets.fetch_add(1, Ordering::Relaxed));
        match &self.folder {
            Some(folder) => std::fs::create_dir(folder.path().join(&name)).expect("a new folder"),
            None => self.put_bucket(&name).await.expect("moto makes a bucket"),
        }
        format!("s3://{name}")
    }

    /// Without a signature, which moto does not ask for.
    async fn put_bucket(&self, name: &str) -> std::io::Result<()> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        let request = format!(
            "PUT /{name} HTTP/1.1\r\nhost: 127.0.0.1:{}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
            self.port
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        if answer.starts_with("HTTP/1.1 200") { Ok(()) } else { Err(std::io::Error::other(answer)) }
    }

    /// What a client is told besides the address of a bucket; in capitals, the variables of a process.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        let [user, password] = LOGIN.map(str::to_owned);
        vec![
            ("aws_endpoint", format!("http://127.0.0.1:{}", self.port)),
            ("aws_allow_http", "true".to_owned()),
            ("aws_access_key_id", user),
            ("aws_secret_access_key", password),
            ("aws_region", "us-east-1".to_owned()),
        ]
    }

    /// The store at an address here.
    ///
    /// # Panics
    /// When the address is none.
    pub async fn store(&self, url: &str) -> Store {
        open(url, &self.settings()).await
    }
}

/// The store at an address, with settings for whom it is on a server.
///
/// # Panics
/// When the address is none.
pub async fn open(url: &str, settings: &[(&'static str, String)]) -> Store {
    let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    Store::open_with(url, &settings).await.expect("an address")
}

/// A program below `target/tools`, with these arguments.
fn start(tool: &str, program: &str, arguments: &[&str]) -> Child {
    let tools = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/tools");
    let path = tools.join(tool).join("bin").join(program);
    assert!(path.exists(), "{program}, an S3 server, is not installed; hint: run tests/install/{tool}.sh");
    let mut command = Command::new(path);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    command.spawn().expect("the S3 server starts")
}

async fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    listener.local_addr().expect("a free port").port()
}
