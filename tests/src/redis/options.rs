//! How a test's Redis is set up: what it keeps and how surely, what it listens on, and how slow its disk is.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::certificates;

/// A server's settings; from one of the constructors, with more lines where a test needs them.
#[derive(Clone, Debug)]
pub struct Options {
    lines: Vec<String>,
    pub(super) tls: bool,
    fsync_delay: Option<Duration>,
}

impl Options {
    /// Keeps nothing over a restart: the quickest.
    pub fn cheap() -> Self {
        Self::of(&["appendonly no"])
    }

    /// What is answered is on the disk: what the promises are made for.
    pub fn durable() -> Self {
        Self::of(&["appendonly yes", "appendfsync always"])
    }

    /// On the disk once a second.
    pub fn every_second() -> Self {
        Self::of(&["appendonly yes", "appendfsync everysec"])
    }

    fn of(lines: &[&str]) -> Self {
        let lines = lines.iter().map(|line| (*line).to_owned()).collect();
        Self { lines, tls: false, fsync_delay: None }
    }

    /// One more line of its configuration (`requirepass …`, `maxmemory 8mb`, `user … on …`); a later one wins.
    pub fn with(mut self, line: &str) -> Self {
        self.lines.push(line.to_owned());
        self
    }

    /// Listens with TLS too, under a certificate for `localhost` that `ca.pem` in its folder has signed.
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// Each write to the disk takes so much longer, from a process's third on: the first ones belong to its start.
    pub fn slow_disk(mut self, delay: Duration) -> Self {
        self.fsync_delay = Some(delay);
        self
    }

    pub(super) fn config(&self, folder: &Path, port: u16, more: &[&str]) -> String {
        let at = |name: &str| folder.join(name).display().to_string();
        let mut text = format!(
            "bind 127.0.0.1\nport {port}\nunixsocket {}\nunixsocketperm 700\ndir {}\nlogfile {}\npidfile {}\nsave \"\"\n",
            at("socket"),
            folder.display(),
            at("log"),
            at("pid"),
        );
        if self.tls {
            let (cert, key, ca) = (at("server.pem"), at("server.key"), at("ca.pem"));
            write!(text, "tls-port {}\ntls-auth-clients no\n", port + 1).expect("a string takes all");
            write!(text, "tls-cert-file {cert}\ntls-key-file {key}\ntls-ca-cert-file {ca}\n").expect("likewise");
        }
        for line in self.lines.iter().map(String::as_str).chain(more.iter().copied()) {
            text.push_str(line);
            text.push('\n');
        }
        text
    }

    /// Starts the program; an error says how to install what is missing.
    pub(super) fn program(&self, config: &Path) -> Result<Child, String> {
        let (name, mut command) = match self.fsync_delay {
            None => ("redis-server", Command::new("redis-server")),
            Some(delay) => {
                let mut command = Command::new("strace");
                let inject = format!("inject=fdatasync:delay_enter={}:when=3+", delay.as_micros());
                command.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", &inject, "redis-server"]);
                ("strace", command)
            }
        };
        command.arg(config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().map_err(|error| {
            let hint = format!("run: apt-get install {name}");
            format!("{name} cannot be started: {error}; if it is not installed, {hint}")
        })
    }

    /// What TLS needs, where it is spoken.
    pub(super) fn write_certificates(&self, folder: &Path) {
        if self.tls {
            certificates::write(folder);
        }
    }
}
