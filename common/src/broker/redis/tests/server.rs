//! A Redis server for one test of this folder: in a temporary folder, on a port of its own, gone with the test.

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::broker::Access;

const READY: Duration = Duration::from_secs(30);

pub(super) struct Server {
    folder: TempDir,
    pub(super) port: u16,
    settings: Vec<String>,
    /// A shell that kills the server when the pipe to it closes, however this process ends.
    shell: Option<Child>,
}

impl Server {
    /// With more settings, as on its command line: `["--appendonly", "yes"]`.
    pub(super) fn start(settings: &[&str]) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let settings = settings.iter().map(|word| (*word).to_owned()).collect();
        let mut server = Self { folder: TempDir::new().unwrap(), port, settings, shell: None };
        server.restart();
        server
    }

    pub(super) fn access(&self) -> Access {
        Access::new(&format!("redis://127.0.0.1:{}", self.port)).unwrap()
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(super) fn kill(&mut self) {
        if let Some(mut shell) = self.shell.take() {
            drop(shell.stdin.take());
            shell.wait().unwrap();
        }
    }

    /// Kills it when it runs, and starts it on the same port and data.
    pub(super) fn restart(&mut self) {
        self.kill();
        let mut command = Command::new("sh");
        command.args(["-c", "redis-server \"$@\" & read -r _; kill -9 $!; wait", "server", "--save", ""]);
        command.args(["--port", &self.port.to_string(), "--logfile", "log", "--dir"]).arg(self.folder.path());
        command.args(&self.settings).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        self.shell = Some(command.spawn().unwrap());
        let begun = Instant::now();
        while !self.answers() {
            let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            assert!(begun.elapsed() < READY, "no redis-server; is it installed (apt-get install redis-server)?\n{log}");
            wait_a_little();
        }
    }

    fn answers(&self) -> bool {
        use std::io::Write;
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) else { return false };
        let mut answer = [0; 1];
        stream.write_all(b"PING\r\n").is_ok() && stream.read_exact(&mut answer).is_ok()
    }
}

/// Between two looks at something that has a deadline.
#[expect(clippy::disallowed_methods, reason = "a server is started and looked at outside tokio too")]
fn wait_a_little() {
    std::thread::sleep(Duration::from_millis(2));
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
