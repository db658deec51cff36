//! What a command works with: settings, the printer, and connections made when first asked for.

use std::sync::{Arc, OnceLock};

use promptq_common::broker::{Access, Beside, Broker, embedded_file};
use promptq_common::config::{Address, Config, Ledger};
use promptq_common::store::Store;
use tokio::sync::OnceCell;

use crate::printer::Printer;
use crate::problem::{Exit, Problem, Result};
use crate::submit::Fit;

/// What a command works with.
#[derive(Debug)]
pub struct Context {
    /// Everything that was said.
    pub config: Config,
    /// The only way to print.
    pub printer: Printer,
    broker: OnceCell<Broker>,
    store: OnceCell<Store>,
    fit: OnceLock<Option<Arc<Fit>>>,
}

impl Context {
    /// Nothing is connected yet.
    pub fn new(config: Config, printer: Printer) -> Self {
        Self { config, printer, broker: OnceCell::new(), store: OnceCell::new(), fit: OnceLock::new() }
    }

    /// The broker, connected on first use. Cancel-safe.
    pub async fn broker(&self) -> Result<&Broker> {
        self.broker.get_or_try_init(async || connect(self.access().await?).await).await
    }

    /// What to connect to the broker with, its ledger's store opened. Cancel-safe.
    pub async fn access(&self) -> Result<Access> {
        let store = match &self.config.ledger {
            Some(Ledger::Store) => Some(self.store().await?),
            Some(Ledger::Elsewhere { .. }) | None => None,
        };
        Ok(self.config.access(store))
    }

    /// The broker, for a command that only looks or acts on what is there: an embedded file must exist. Cancel-safe.
    ///
    /// # Errors
    /// `NotFound` when nothing was ever submitted there.
    pub async fn existing(&self) -> Result<&Broker> {
        must_exist(&self.config.broker.url)?;
        self.broker().await
    }

    /// Whether the broker keeps messages of which nothing can be known but their number: RabbitMQ.
    pub fn keeps_messages_apart(&self) -> bool {
        self.config.broker.url.expose().starts_with("amqp")
    }

    /// What the settings tell of the workers of a fleet, if anything.
    pub fn fit(&self) -> Option<&Arc<Fit>> {
        self.fit.get_or_init(|| Fit::fleet(&self.config).map(Arc::new)).as_ref()
    }

    /// The store, opened on first use. Cancel-safe.
    pub async fn store(&self) -> Result<&Store> {
        let Some(url) = &self.config.store.url else {
            return Err(Problem::new(Exit::Usage, "store-missing", "no store is configured for this broker")
                .hint("name one that every host reaches, such as --store s3://bucket/prefix"));
        };
        self.store.get_or_try_init(|| Store::open(url.expose())).await.map_err(|error| {
            Problem::from(error).detail(format!("store: {url}")).hint("`promptq doctor` shows what can be reached")
        })
    }
}

/// Connects to a broker, whatever it is used for. Cancel-safe.
pub async fn connect(access: Access) -> Result<Broker> {
    Broker::connect(&access).await.map_err(|error| {
        let problem = Problem::from(error).detail(format!("broker: {}", access.url));
        let problem = match &access.beside {
            Beside::Ledger(ledger) => problem.detail(format!("ledger: {}", ledger.url)),
            Beside::Store(_) | Beside::Nothing => problem,
        };
        problem.hint("`promptq doctor` shows what can be reached")
    })
}

/// Fails with `NotFound` for an embedded file that is not there: connecting would make it.
pub fn must_exist(url: &Address) -> Result<()> {
    let Some(path) = embedded_file(url.expose()).filter(|path| !path.exists()) else { return Ok(()) };
    Err(Problem::new(Exit::NotFound, "not-found", format!("there is no queue at {}", path.display()))
        .hint("promptq submit and promptq run make one; for one elsewhere, name it by --broker"))
}
