//! A RabbitMQ that runs or ran in a folder: how it is asked, watched, signalled and found dead. Who ends it is
//! `keeper.sh`'s affair.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use rand::RngExt as _;
use rustix::process::{Pid, Signal, kill_process};

use super::options::{LOGIN, Options, PORTS};

/// How long a server may take until it answers: 4 s alone, much more beside other tests.
const READY: Duration = Duration::from_secs(90);

/// Longer than anything takes that a test asks of it.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where it is.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) folder: PathBuf,
    pub(super) port: u16,
}

/// Why a server is not there.
pub(super) enum Failure {
    /// Somebody else has one of its ports.
    PortTaken,
    Other(String),
}

impl Node {
    /// Starts one in its folder, on ports that are free, and waits until it answers. `keep` starts the keeper.
    pub(super) fn start(
        folder: PathBuf,
        options: &Options,
        keep: impl Fn(std::process::Command) -> Child,
    ) -> (Self, Child) {
        let mut node = Self { folder, port: 0 };
        for _ in 0..20 {
            node.port = free_ports();
            match node.run(options, &keep) {
                Ok(child) => return (node, child),
                Err(Failure::PortTaken) => {}
                Err(Failure::Other(why)) => panic!("{why}"),
            }
        }
        panic!("no free ports were found for a RabbitMQ");
    }

    /// Runs it on its port and waits until it answers.
    pub(super) fn run(
        &self,
        options: &Options,
        keep: impl Fn(std::process::Command) -> Child,
    ) -> Result<Child, Failure> {
        for name in ["pids", "control", "log", "out"] {
            drop(std::fs::remove_file(self.folder.join(name)));
        }
        let mut child = keep(options.prepare(&self.folder, self.port));
        match self.until_ready() {
            Ok(()) => Ok(child),
            Err(why) => {
                self.kill();
                drop(child.stdin.take());
                child.wait().expect("the keeper ends");
                Err(why)
            }
        }
    }

    /// Waits until it answers.
    pub(super) fn until_ready(&self) -> Result<(), Failure> {
        let began = Instant::now();
        loop {
            if self.evaluate("rabbit:is_running().").is_ok_and(|said| said == "true") {
                return Ok(());
            }
            if self.pids().is_some_and(|(server, _)| is_dead(server)) {
                return Err(self.failure());
            }
            assert!(began.elapsed() < READY, "rabbitmq-server does not come up:\n{}", self.log());
            wait_a_little();
        }
    }

    fn failure(&self) -> Failure {
        let log = self.log();
        let taken = ["eaddrinuse", "address already in use", "seems to be in use by another"];
        if taken.iter().any(|words| log.to_lowercase().contains(words)) {
            return Failure::PortTaken;
        }
        let hint = "if it is not installed, run: apt-get install rabbitmq-server";
        Failure::Other(format!("rabbitmq-server ended at once; {hint}\n{log}"))
    }

    pub(super) fn url(&self, login: [&str; 2], host: &str, tls: bool) -> String {
        let [user, password] = login;
        let host = if host == "/" { "%2f" } else { host };
        if tls {
            format!("amqps://{user}:{password}@localhost:{}/{host}", self.port + 1)
        } else {
            format!("amqp://{user}:{password}@127.0.0.1:{}/{host}", self.port)
        }
    }

    pub(super) fn harness_url(&self, host: &str, tls: bool) -> String {
        self.url(LOGIN, host, tls)
    }

    /// Evaluates Erlang expressions in it; an error is what they threw, or that it cannot be reached.
    pub(super) fn evaluate(&self, expressions: &str) -> Result<String, String> {
        self.evaluate_within(expressions, PATIENCE)
    }

    /// With less patience.
    pub(super) fn evaluate_within(&self, expressions: &str, patience: Duration) -> Result<String, String> {
        let answer = self.ask(expressions, patience).map_err(|error| format!("no answer: {error}"))?;
        match answer.split_at_checked(3) {
            Some(("ok ", value)) => Ok(value.to_owned()),
            _ => Err(answer),
        }
    }

    fn ask(&self, expressions: &str, patience: Duration) -> std::io::Result<String> {
        let mut stream = UnixStream::connect(self.folder.join("control"))?;
        stream.set_read_timeout(Some(patience))?;
        let length = u32::try_from(expressions.len()).expect("a short request");
        stream.write_all(&length.to_be_bytes())?;
        stream.write_all(expressions.as_bytes())?;
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let mut answer = vec![0; usize::try_from(u32::from_be_bytes(length)).expect("64 bits")];
        stream.read_exact(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    pub(super) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("rabbitmq-server can be signalled");
    }

    pub(super) fn pid(&self) -> Pid {
        self.pids().expect("rabbitmq-server runs").0
    }

    /// Kills it and its epmd, if they run, and waits until the server is dead.
    pub(super) fn kill(&self) {
        let Some((server, epmd)) = self.pids() else { return };
        for pid in [server, epmd].into_iter().filter(|pid| self.owns(*pid)) {
            // It may have ended meanwhile.
            kill_process(pid, Signal::KILL).unwrap_or_default();
        }
        let began = Instant::now();
        while self.owns(server) && !is_dead(server) {
            assert!(began.elapsed() < PATIENCE, "{server:?} outlives being killed");
            wait_a_little();
        }
    }

    /// Whether a process is this server's, and not one that has got its number since.
    fn owns(&self, pid: Pid) -> bool {
        let line = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        line.contains(&*self.folder.to_string_lossy()) || line.contains(&format!("epmd\0-port\0{}", self.port + 3))
    }

    /// The server and its epmd.
    fn pids(&self) -> Option<(Pid, Pid)> {
        let text = std::fs::read_to_string(self.folder.join("pids")).ok()?;
        let mut pids = text.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?));
        Some((pids.next()?, pids.next()?))
    }

    /// The end of what it wrote.
    pub(super) fn log(&self) -> String {
        let text = ["out", "log"].map(|name| std::fs::read_to_string(self.folder.join(name)).unwrap_or_default());
        let ends = text.iter().map(|text| {
            let lines: Vec<_> = text.lines().rev().take(25).collect();
            lines.into_iter().rev().collect::<Vec<_>>().join("\n")
        });
        ends.collect::<Vec<_>>().join("\n")
    }
}

/// Whether it is gone, or only waits for its keeper to notice.
fn is_dead(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    stat.map_or(true, |stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z')))
}

fn free_ports() -> u16 {
    loop {
        let port = rand::rng().random_range(10_000..30_000);
        if (port..port + PORTS).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            return port;
        }
    }
}

/// Between two looks at something that is waited for.
pub(super) fn wait_a_little() {
    std::thread::park_timeout(Duration::from_millis(20));
}
