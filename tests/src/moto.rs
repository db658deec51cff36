//! A real S3 server for one test (moto), gone with the test.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use promptq_common::store::Store;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

/// An S3 server with one bucket, `jobs`; gone with this value.
#[derive(Debug)]
pub struct Moto {
    port: u16,
    _server: Child,
}

impl Moto {
    /// Starts it on a port of its own.
    ///
    /// # Panics
    /// When it is not installed, or does not come up within a minute.
    pub async fn start() -> Self {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/moto/bin/moto_server");
        assert!(
            program.exists(),
            "the S3 server for tests is not installed; run tests/run, which puts moto into target/tools/moto"
        );
        let port = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a server that answers")
            .local_addr()
            .expect("a server that answers")
            .port();
        let server = Command::new(program)
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("a server that answers");
        let moto = Self { port, _server: server };
        let begun = Instant::now();
        while moto.make_bucket().await.is_err() {
            assert!(begun.elapsed() < Duration::from_secs(60), "moto did not come up within a minute");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        moto
    }

    async fn make_bucket(&self) -> std::io::Result<()> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        let request = format!(
            "PUT /jobs HTTP/1.1\r\nhost: 127.0.0.1:{}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
            self.port
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        if answer.starts_with("HTTP/1.1 200") { Ok(()) } else { Err(std::io::Error::other(answer)) }
    }

    /// The store at `s3://jobs` and what may follow.
    ///
    /// # Panics
    /// When the URL is none.
    pub async fn store(&self, url: &str) -> Store {
        let endpoint = format!("http://127.0.0.1:{}", self.port);
        let settings = [
            ("aws_endpoint", endpoint.as_str()),
            ("aws_allow_http", "true"),
            ("aws_access_key_id", "test"),
            ("aws_secret_access_key", "test"),
            ("aws_region", "us-east-1"),
        ];
        Store::open_with(url, &settings).await.expect("a server that answers")
    }
}
