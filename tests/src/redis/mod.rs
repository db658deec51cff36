//! A real Redis for one test: on a port of its own, in a private folder, killed, stopped and started again on demand,
//! and gone with the test however that ends.

mod audit;
pub(crate) mod certificates;
mod options;
mod reply;
mod rights;

use std::fs::Permissions;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rand::RngExt as _;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

pub use options::Options;
pub use reply::{Connection, Problem, Reply};
pub use rights::{PASSWORD, shipped};

/// How long a server may take until it answers: 30 ms alone, much more beside other tests or under a slow disk.
const READY: Duration = Duration::from_secs(30);

/// The harness's own account, so that a test may do to the default user whatever it likes.
const LOGIN: [&str; 2] = ["harness", "for-the-harness-alone"];

/// A server and its data. Dropping it ends the process and removes the data.
#[derive(Debug)]
pub struct RedisServer {
    folder: TempDir,
    options: Options,
    port: u16,
    running: Option<Running>,
}

/// The process, and the one that ends it when this process is gone.
#[derive(Debug)]
struct Running {
    child: Child,
    /// The server itself: what is traced is not the process that was started.
    server: Pid,
    watcher: Child,
}

/// Why a server is not there.
enum Failure {
    /// Somebody else has its port.
    PortTaken,
    Other(String),
}

impl RedisServer {
    /// Starts one.
    ///
    /// # Panics
    /// When it is not installed or does not come up, saying why.
    pub fn start(options: Options) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o700)).expect("a private folder");
        options.write_certificates(folder.path());
        let mut server = Self { folder, options, port: 0, running: None };
        for _ in 0..20 {
            server.port = free_port();
            match server.spawn(&[]) {
                Ok(()) => return server,
                Err(Failure::PortTaken) => {}
                Err(Failure::Other(why)) => panic!("{why}"),
            }
        }
        panic!("no free port was found for redis-server");
    }

    /// What a broker is told: `redis://`, or `rediss://` when it was started with TLS.
    pub fn url(&self) -> String {
        if self.options.tls { format!("rediss://localhost:{}", self.port + 1) } else { self.plain_url() }
    }

    /// Without TLS, whatever else it speaks.
    pub fn plain_url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Where it listens without TLS.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its private folder: data, log, certificates (`ca.pem`, `other-ca.pem`).
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// One command by the harness's own account, which may do everything.
    ///
    /// # Errors
    /// What the server refuses it with.
    ///
    /// # Panics
    /// When the server cannot be reached.
    pub fn command(&self, words: &[&str]) -> Result<Reply, String> {
        match self.connection().and_then(|mut connection| connection.call(words)) {
            Ok(reply) => Ok(reply),
            Err(Problem::Refused(why)) => Err(why),
            Err(Problem::Lost(why)) => panic!("redis-server does not answer {words:?}: {why}\n{}", self.log()),
        }
    }

    /// One command that must succeed.
    ///
    /// # Panics
    /// When it does not.
    pub fn must(&self, words: &[&str]) -> Reply {
        self.command(words).unwrap_or_else(|why| panic!("{words:?}: {why}"))
    }

    /// A connection for many commands: one round trip each, without logging in anew.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub fn connection(&self) -> Result<Connection, Problem> {
        let mut connection = Connection::open(&self.socket())?;
        connection.call(&["AUTH", LOGIN[0], LOGIN[1]])?;
        Ok(connection)
    }

    /// Forgets every script that was loaded.
    pub fn flush_scripts(&self) {
        self.must(&["SCRIPT", "FLUSH"]);
    }

    /// Kills it with -9; its data stay.
    pub fn kill(&mut self) {
        drop(self.running.take());
    }

    /// Starts it again, on the same port and data, and waits until it answers. Kills it first when it still runs.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn restart(&mut self) {
        self.start_again(&[]);
        self.until_loaded();
    }

    /// As [`RedisServer::restart`], with more lines in its configuration this time, and without waiting until its data
    /// are loaded.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start_again(&mut self, more: &[&str]) {
        self.kill();
        match self.spawn(more) {
            Ok(()) => {}
            Err(Failure::PortTaken) => panic!("somebody took port {} of a redis-server that was down", self.port),
            Err(Failure::Other(why)) => panic!("{why}"),
        }
    }

    /// Waits until its data are loaded.
    ///
    /// # Panics
    /// When that takes longer than half a minute.
    pub fn until_loaded(&self) {
        let began = Instant::now();
        while let Err(why) = self.command(&["PING"]) {
            assert!(began.elapsed() < READY, "redis-server is not ready: {why}\n{}", self.log());
            wait_a_little();
        }
    }

    /// Stops it in its tracks (SIGSTOP): connections stay, nothing answers.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// The end of its log.
    pub fn log(&self) -> String {
        let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().rev().take(20).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    fn signal(&self, signal: Signal) {
        let running = self.running.as_ref().expect("redis-server runs");
        kill_process(running.server, signal).expect("redis-server can be signalled");
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    fn spawn(&mut self, more: &[&str]) -> Result<(), Failure> {
        let config = self.folder.path().join("redis.conf");
        let user = format!("user {} on >{} ~* &* +@all", LOGIN[0], LOGIN[1]);
        let text = self.options.config(self.folder.path(), self.port, &[&[&*user], more].concat());
        std::fs::write(&config, text).expect("writes the configuration");
        let pidfile = self.folder.path().join("pid");
        drop(std::fs::remove_file(&pidfile));
        drop(std::fs::remove_file(self.folder.path().join("log")));
        let mut child = self.options.program(&config).map_err(Failure::Other)?;
        let began = Instant::now();
        loop {
            // It answers, if only that it is loading; the file of its number is written before.
            let reached = Connection::open(&self.socket()).and_then(|mut connection| connection.call(&["PING"]));
            if let (Ok(_) | Err(Problem::Refused(_)), Some(server)) = (reached, read_pid(&pidfile)) {
                let watcher = watcher(server);
                self.running = Some(Running { child, server, watcher });
                return Ok(());
            }
            let ended = child.try_wait().expect("its state can be read");
            if ended.is_some() && self.log().contains("Address already in use") {
                return Err(Failure::PortTaken);
            }
            if let Some(status) = ended {
                return Err(Failure::Other(format!("redis-server ended at once with {status}:\n{}", self.log())));
            }
            assert!(began.elapsed() < READY, "redis-server does not come up:\n{}", self.log());
            wait_a_little();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // First the watcher, which knows the server by a number that others may have afterwards.
        drop(self.watcher.kill());
        drop(self.watcher.wait());
        kill_process(self.server, Signal::KILL).ok();
        drop(self.child.wait());
    }
}

/// Between two looks at something that has a deadline.
#[expect(clippy::disallowed_methods, reason = "a server is started and looked at outside tokio too")]
fn wait_a_little() {
    std::thread::sleep(Duration::from_millis(1));
}

/// Below the ports that the system hands out by itself: a server that is down keeps its port, and no client that asks
/// for it again and again is ever connected to itself.
fn free_port() -> u16 {
    loop {
        let port = rand::rng().random_range(10_000..30_000);
        let free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if free(port) && free(port + 1) {
            return port;
        }
    }
}

/// A shell that waits for the end of a pipe that only this process holds, and then kills the server: so it goes with a
/// test that is killed itself.
fn watcher(server: Pid) -> Child {
    let mut command = Command::new("sh");
    command.args(["-c", "read -r _; kill -9 \"$1\"", "watcher", &server.as_raw_nonzero().to_string()]);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("a shell starts")
}

fn read_pid(file: &Path) -> Option<Pid> {
    match std::fs::read_to_string(file) {
        Ok(text) => Pid::from_raw(text.trim().parse().ok()?),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => panic!("{}: {error}", file.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_private_answers_and_keeps_its_data() {
        let mut server = RedisServer::start(Options::durable());
        let mode = std::fs::metadata(server.folder()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        server.must(&["SET", "a key", "a value"]);
        let port = server.port();
        server.kill();
        assert!(server.connection().is_err());
        server.restart();
        assert_eq!((server.port(), server.must(&["GET", "a key"]).text()), (port, "a value".to_owned()));
        assert!(server.command(&["NO SUCH"]).unwrap_err().contains("unknown command"));
    }

    #[test]
    fn what_is_paused_answers_later() {
        let server = RedisServer::start(Options::cheap());
        let mut connection = server.connection().unwrap();
        server.pause();
        assert!(matches!(connection.call_within(&["PING"], Duration::from_millis(50)), Err(Problem::Lost(_))));
        server.resume();
        assert_eq!(server.must(&["PING"]).text(), "PONG");
    }

    #[test]
    fn it_ends_when_the_pipe_to_its_watcher_does() {
        let mut server = RedisServer::start(Options::cheap());
        let running = server.running.as_mut().unwrap();
        // As the system does when this process is killed.
        drop(running.watcher.stdin.take());
        let began = Instant::now();
        while running.child.try_wait().unwrap().is_none() {
            assert!(began.elapsed() < READY, "{:?} still runs", running.server);
            wait_a_little();
        }
    }

    #[test]
    fn with_tls_it_listens_beside() {
        let server = RedisServer::start(Options::cheap().tls());
        assert!(server.url().starts_with("rediss://localhost:") && server.folder().join("other-ca.pem").exists());
        let said = Command::new("redis-cli")
            .args(["-u", &server.url(), "--cacert"])
            .arg(server.folder().join("ca.pem"))
            .args(["PING"])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&said.stdout).trim(), "PONG", "{said:?}");
    }

    #[test]
    fn a_slow_disk_slows_what_is_kept_for_sure() {
        let delay = Duration::from_millis(200);
        let server = RedisServer::start(Options::durable().slow_disk(delay));
        let began = Instant::now();
        for n in 0..4 {
            server.must(&["SET", "n", &n.to_string()]);
        }
        assert!(began.elapsed() > delay, "{:?}", began.elapsed());
    }
}
