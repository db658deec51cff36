//! The store against a real S3 server (moto), started here on a port of its own.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use promptq_common::broker::LeaseId;
use promptq_common::error::Kind;
use promptq_common::job::JobId;
use promptq_common::outcome::Body;
use promptq_common::store::{PutNew, Store};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

/// An S3 server with one bucket, `jobs`; gone with this value.
struct Moto {
    port: u16,
    _server: Child,
}

impl Moto {
    async fn start() -> Self {
        let program = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/tools/moto/bin/moto_server");
        assert!(
            program.exists(),
            "the S3 server for tests is not installed; run tests/run, which puts moto into target/tools/moto"
        );
        let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let server = Command::new(program)
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
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

    async fn store(&self, url: &str) -> Store {
        let endpoint = format!("http://127.0.0.1:{}", self.port);
        let settings = [
            ("aws_endpoint", endpoint.as_str()),
            ("aws_allow_http", "true"),
            ("aws_access_key_id", "test"),
            ("aws_secret_access_key", "test"),
            ("aws_region", "us-east-1"),
        ];
        Store::open_with(url, &settings).await.unwrap()
    }
}

#[tokio::test]
async fn s3_keeps_outputs_small_and_in_parts() {
    let moto = Moto::start().await;
    let store = moto.store("s3://jobs/team a").await;
    let job = JobId::fresh();
    // 20 MiB goes in three parts.
    for body in [Body::Text("grüße".into()), Body::Json(format!("\"{}\"", "x".repeat(20 << 20)))] {
        let lease = LeaseId::random();
        let stored = store.put_output(job, lease, &body).await.unwrap();
        assert_eq!(stored, store.put_output(job, lease, &body).await.unwrap(), "a repeat changes nothing");
        assert_eq!(store.get_output(&stored).await.unwrap(), body);
        store.delete(&[stored.key.clone(), "out/never/was".into()]).await.unwrap();
        assert_eq!(store.get_output(&stored).await.unwrap_err().kind(), Kind::NotFound);
    }
}

#[tokio::test]
async fn s3_creates_once_and_says_so() {
    let moto = Moto::start().await;
    let store = moto.store("s3://jobs").await;
    assert!(store.probe().await.unwrap(), "moto honours If-None-Match");
    assert_eq!(store.put_new("ends/a%2Fb", b"1".to_vec()).await.unwrap(), PutNew::Ours);
    assert_eq!(store.put_new("ends/a%2Fb", b"1".to_vec()).await.unwrap(), PutNew::Ours);
    assert_eq!(store.put_new("ends/a%2Fb", b"2".to_vec()).await.unwrap(), PutNew::Theirs(b"1".to_vec()));
    let missing = moto.store("s3://no-such-bucket").await;
    assert_eq!(missing.put("x", b"1".to_vec()).await.unwrap_err().kind(), Kind::Config);
    assert_eq!(missing.get("x", 9).await.unwrap(), None);
}
