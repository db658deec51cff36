//! How a broker is reached: its address with the login in it, whose certificates are trusted, what a confirmation must
//! be worth. What an address means is the affair of the backend it names.

use std::fmt;
use std::path::PathBuf;

use super::amqp;
use crate::config::Address;
use crate::error::{Error, Kind, Result};
use crate::store::Store;

/// Everything that is needed to connect to a broker.
#[derive(Clone, Debug)]
pub struct Access {
    /// The address, user and password in it; shown without the password.
    pub url: Address,
    /// A file of PEM certificates to trust instead of the system's.
    pub tls_ca: Option<PathBuf>,
    /// What a confirmation must be worth; `None` is [`Durability::Relaxed`] that nobody asked for, which is told.
    pub durability: Option<Durability>,
    /// What is particular to RabbitMQ.
    pub amqp: amqp::Settings,
    /// Where records are kept, for a broker that keeps none.
    pub beside: Beside,
    /// Which settings it was read from: what a person is told to mend.
    pub section: Section,
}

/// A section of the settings that names a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Section {
    /// `broker`.
    #[default]
    Broker,
    /// `ledger`.
    Ledger,
}

/// The ledger beside a broker that is not its own.
#[derive(Clone, Debug, Default)]
pub enum Beside {
    /// None was named.
    #[default]
    Nothing,
    /// A Redis server or an embedded file.
    Ledger(Box<Access>),
    /// Object storage, which cannot claim.
    Store(Store),
}

/// What a confirmed job must survive, on brokers where that is a setting of theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Whatever the broker is set to.
    Relaxed,
    /// A loss of power: connecting to a broker that does not promise it, or does not tell, is refused.
    Strict,
}

impl Access {
    /// Access by the URL alone.
    ///
    /// # Errors
    /// `Config` when it is no URL; the text is not repeated, as it may hold a password.
    pub fn new(url: &str) -> Result<Self> {
        let url = Address::new(url).map_err(|why| {
            Error::new(
                Kind::Config,
                "connect to the broker",
                format!("the address {why}; write one such as sqlite:///var/lib/promptq.db or redis://host:6379"),
            )
        })?;
        Ok(Self {
            url,
            tls_ca: None,
            durability: None,
            amqp: amqp::Settings::default(),
            beside: Beside::Nothing,
            section: Section::Broker,
        })
    }
}

impl Access {
    /// What the ledger beside this broker cannot promise, in a sentence; `None` where there is nothing to say.
    pub fn caveat(&self) -> Option<&'static str> {
        match &self.beside {
            _ if !matches!(self.url.scheme(), "amqp" | "amqps") => None,
            Beside::Store(_) => Some(
                "records are kept in object storage, which cannot say who runs a job: two copies of one message may \
                 both be paid, a job submitted again while it waits is not recognised, and one that kills its workers \
                 is given up a death later; a Redis server as ledger promises all three",
            ),
            Beside::Ledger(ledger) if ledger.url.scheme() == "sqlite" => Some(
                "records are kept in a file of this host: every worker and every command for this broker must run \
                 here; a Redis server as ledger serves any number of hosts",
            ),
            Beside::Nothing | Beside::Ledger(_) => None,
        }
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Broker => "broker",
            Self::Ledger => "ledger",
        })
    }
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Durability {
    /// The setting's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Relaxed => "relaxed",
            Self::Strict => "strict",
        }
    }
}
