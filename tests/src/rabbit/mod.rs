//! Real RabbitMQ servers: one that all tests share, where each has a virtual host of its own, and private ones, killed,
//! stopped and started again on demand, and gone with the test however that ends.

mod host;
mod node;
mod options;
mod raw;
mod shared;

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;

pub use host::{QueueSeen, VirtualHost};
pub use options::Options;
pub use raw::{RawClient, RawMessage};

use node::{Failure, Node};

/// A server. Dropping a private one ends the process and removes the data; the shared one stays while others use it.
#[derive(Debug)]
pub struct RabbitServer {
    node: Node,
    tls: bool,
    owned: Owned,
}

#[derive(Debug)]
enum Owned {
    /// Its lock.
    Shared { _users: File },
    /// Its folder, its settings and whoever ends it when this process is gone.
    Private { _folder: TempDir, options: Options, keeper: Option<Child> },
}

/// A resource whose shortage makes a server stop listening to publishers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// Memory.
    Memory,
    /// Room on the disk.
    Disk,
}

impl RabbitServer {
    /// The one that all tests share: for whatever happens in a virtual host. Blocks for some seconds where it is not up.
    ///
    /// # Panics
    /// When it is not installed or does not come up, saying why.
    pub fn shared() -> Self {
        let (node, users) = shared::join();
        Self { node, tls: false, owned: Owned::Shared { _users: users } }
    }

    /// Starts one for this test alone, on disk. It costs seconds: for tests that do something to the server itself.
    ///
    /// # Panics
    /// When it is not installed or does not come up, saying why.
    pub fn start(options: Options) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let (node, keeper) = Node::start(folder.path().join("node"), &options, piped);
        Self { node, tls: options.tls, owned: Owned::Private { _folder: folder, options, keeper: Some(keeper) } }
    }

    /// A new virtual host, gone when dropped.
    pub fn host(&self) -> VirtualHost {
        VirtualHost::new(self.node.clone(), self.tls)
    }

    /// The address of its first virtual host, for the harness's own account, which may do everything: `amqp://`, or
    /// `amqps://` when it was started with TLS.
    pub fn url(&self) -> String {
        self.node.harness_url("/", self.tls)
    }

    /// Without TLS, whatever else it speaks.
    pub fn plain_url(&self) -> String {
        self.node.harness_url("/", false)
    }

    /// Where it listens without TLS; one above, with.
    pub fn port(&self) -> u16 {
        self.node.port
    }

    /// Its process.
    ///
    /// # Panics
    /// When it does not run.
    pub fn pid(&self) -> u32 {
        self.node.pid().as_raw_nonzero().get().unsigned_abs()
    }

    /// Its private folder: data, log, certificates (`ca.pem`, `other-ca.pem`).
    pub fn folder(&self) -> &Path {
        &self.node.folder
    }

    /// Evaluates Erlang expressions in it (`rabbit:is_running().`), and gives the value as Erlang prints it, or the text
    /// in a `{text, …}`.
    ///
    /// # Errors
    /// What they threw, or that it cannot be reached.
    pub fn evaluate(&self, expressions: &str) -> Result<String, String> {
        self.node.evaluate(expressions)
    }

    /// As [`RabbitServer::evaluate`], of what must not fail.
    ///
    /// # Panics
    /// When it does.
    pub fn must(&self, expressions: &str) -> String {
        self.evaluate(expressions).unwrap_or_else(|why| panic!("{expressions}: {why}\n{}", self.log()))
    }

    /// Raises an alarm: whoever publishes is blocked from now on.
    ///
    /// # Panics
    /// On the shared server.
    pub fn raise(&self, alarm: Alarm) {
        self.assert_private();
        self.must(&format!("rabbit_alarm:set_alarm({{{{resource_limit, {}, node()}}, []}}).", alarm.resource()));
    }

    /// Ends an alarm.
    ///
    /// # Panics
    /// On the shared server.
    pub fn clear(&self, alarm: Alarm) {
        self.assert_private();
        self.must(&format!("rabbit_alarm:clear_alarm({{resource_limit, {}, node()}}).", alarm.resource()));
    }

    /// Kills it with -9; its data stay. Where the newest quorum queue is kept is saved first: RabbitMQ writes it up to 3 s
    /// after the queue was declared, and a server that is killed before has forgotten what the queue held, confirmed or
    /// not. Queues that promptq made or that are in use for longer do not need it.
    ///
    /// # Panics
    /// On the shared server.
    pub fn kill(&mut self) {
        // Fails where it is down or paused.
        drop(self.node.evaluate_within("[dets:sync(Table) || Table <- dets:all()].", Duration::from_secs(1)));
        self.kill_rashly();
    }

    /// As [`RabbitServer::kill`], with no warning whatsoever.
    ///
    /// # Panics
    /// On the shared server.
    pub fn kill_rashly(&mut self) {
        let Owned::Private { keeper, .. } = &mut self.owned else { panic!("others need the shared server") };
        self.node.kill();
        end(keeper);
    }

    /// Starts it again, on the same port and data, and waits until it answers. Kills it first when it still runs.
    ///
    /// # Panics
    /// When it does not come up, or on the shared server.
    pub fn restart(&mut self) {
        self.kill();
        let Owned::Private { keeper, options, .. } = &mut self.owned else { panic!("others need the shared server") };
        match self.node.run(options, piped) {
            Ok(child) => *keeper = Some(child),
            Err(Failure::PortTaken) => panic!("somebody took port {} of a RabbitMQ that was down", self.node.port),
            Err(Failure::Other(why)) => panic!("{why}"),
        }
    }

    /// Stops it in its tracks (SIGSTOP): connections stay, nothing answers.
    ///
    /// # Panics
    /// On the shared server.
    pub fn pause(&self) {
        self.assert_private();
        self.node.signal(Signal::STOP);
    }

    /// Lets it go on.
    ///
    /// # Panics
    /// On the shared server.
    pub fn resume(&self) {
        self.assert_private();
        self.node.signal(Signal::CONT);
    }

    /// The end of what it wrote.
    pub fn log(&self) -> String {
        self.node.log()
    }

    fn assert_private(&self) {
        assert!(matches!(self.owned, Owned::Private { .. }), "others need the shared server");
    }
}

impl Drop for RabbitServer {
    fn drop(&mut self) {
        if let Owned::Private { keeper, .. } = &mut self.owned {
            self.node.kill();
            end(keeper);
        }
    }
}

impl Alarm {
    fn resource(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Disk => "disk",
        }
    }
}

/// Waits at the end of a pipe that only this process holds: so the server goes with a test that is killed itself.
fn piped(mut keeper: Command) -> Child {
    keeper.stdin(Stdio::piped()).spawn().expect("a shell starts")
}

fn end(keeper: &mut Option<Child>) {
    if let Some(mut keeper) = keeper.take() {
        drop(keeper.stdin.take());
        keeper.wait().expect("the keeper ends");
    }
}

#[cfg(test)]
mod tests;
