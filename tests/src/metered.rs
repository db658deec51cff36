//! A small installation under limits: a fake provider in this process that counts as real ones do, a broker of any kind, and
//! worker processes with rules.

use std::process::Command;

use promptq_common::broker::{Access, Beside, Broker};
use promptq_common::job::{Job, Queue};
use promptq_common::limits::{PoolView, look};
use promptq_common::work::Work;

use crate::fake::Fake;
use crate::fake::config::Config;
use crate::fake::ledger::Call;
use crate::process::Home;
use crate::rabbit::{RabbitServer, VirtualHost};
use crate::redis::{Options, RedisServer};
use crate::site::{Hand, until};

/// The installation; everything in it ends with it.
#[derive(Debug)]
pub struct Metered {
    /// Who answers its jobs and counts them.
    pub fake: Fake,
    /// Where they wait.
    pub place: Place,
    home: Home,
}

/// A broker, and where its limits are shared.
#[derive(Debug)]
pub enum Place {
    /// A file.
    File,
    /// A Redis.
    Redis(RedisServer),
    /// A virtual host of the RabbitMQ that tests share, and a Redis.
    Rabbit {
        /// Where the queues are.
        host: VirtualHost,
        /// Keeps the server up.
        server: RabbitServer,
        /// Where records and limits are.
        ledger: RedisServer,
    },
}

impl Place {
    /// A Redis that keeps nothing over a restart.
    pub fn redis() -> Self {
        Self::Redis(RedisServer::start(Options::cheap()))
    }

    /// A virtual host, and a Redis beside it.
    pub fn rabbit() -> Self {
        let server = tokio::task::block_in_place(RabbitServer::shared);
        Self::Rabbit { host: server.host(), server, ledger: RedisServer::start(Options::cheap()) }
    }
}

impl Metered {
    /// With the fake provider's configuration and promptq's own. Nobody works there yet.
    ///
    /// # Panics
    /// When something of it does not come up; so do its other calls.
    pub fn new(place: Place, provider: &str, config: &str) -> Self {
        let provider: Config = toml::from_str(provider).expect("a configuration");
        let home = Home::new();
        home.write("promptq.toml", config);
        Self { fake: Fake::start(provider, 7).expect("a fake provider"), place, home }
    }

    /// One of the programs there; the fake provider's ledger calls it so.
    pub fn program(&self, name: &str, caller: &str, arguments: &[&str]) -> Command {
        let mut command = self.home.program(name, arguments);
        command.env("OPENAI_BASE_URL", self.fake.base_url_for(caller)).env("OPENAI_API_KEY", "not-a-key");
        match &self.place {
            Place::File => {}
            Place::Redis(server) => {
                command.env("PROMPTQ_BROKER", server.url());
            }
            Place::Rabbit { host, ledger, server: _ } => {
                command.env("PROMPTQ_BROKER", host.url()).env("PROMPTQ_LEDGER", ledger.url());
            }
        }
        command
    }

    /// Keeps a file in its home, where programs run.
    pub fn write(&self, name: &str, text: &str) {
        self.home.write(name, text);
    }

    /// Starts a worker that the fake provider knows as `w` and its number.
    pub fn worker(&self, number: usize, arguments: &[&str]) -> Hand {
        let name = format!("w{number}");
        let arguments = [&["--name", name.as_str()][..], arguments].concat();
        let command = self.program("promptq-worker", &name, &arguments);
        Hand::start(command, self.home.path(&format!("{name}.log")))
    }

    /// The broker, for this process.
    pub async fn broker(&self) -> Broker {
        let url = match &self.place {
            Place::File => self.home.url(),
            Place::Redis(server) => server.url(),
            Place::Rabbit { host, .. } => host.url(),
        };
        let mut access = Access::new(&url).expect("an address");
        if let Place::Rabbit { ledger, .. } = &self.place {
            access.beside = Beside::Ledger(Box::new(Access::new(&ledger.url()).expect("an address")));
        }
        Broker::connect(&access).await.expect("connects")
    }

    /// What the workers believe of a limit key.
    pub async fn believed(&self, key: &str) -> PoolView {
        let broker = self.broker().await;
        look(broker.ledger(), key).await.expect("reads a limit").expect("somebody has used it")
    }

    /// The calls that have ended, once there are so many.
    pub async fn called(&self, count: usize) -> Vec<Call> {
        until(&format!("{count} calls have ended"), async || {
            let calls = self.fake.calls(0);
            (calls.len() >= count).then_some(calls)
        })
        .await
    }
}

/// So many jobs of a queue for a model, no two of them alike.
pub fn jobs(queue: &str, model: &str, count: usize) -> Vec<Job> {
    let queue = Queue::new(queue).expect("a good name");
    let job = |n| Job::new(queue.clone(), Work::prompt(Some(model), format!("{model}, number {n}")));
    (0..count).map(job).collect()
}
