//! URL to backend: the only place that lists them.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;

use url::Url;

use super::amqp::Amqp;
use super::memory::Memory;
use super::redis::Redis;
use super::sqlite::{FileState, Sqlite};
use super::{Access, Backend, Beside, Broker, Survey, redis};
use crate::error::{Error, Kind, Result};
use crate::ledger::Claims;
use crate::ledger::object::ObjectLedger;

const OP: &str = "connect to the broker";

impl Broker {
    /// Connects to what `access` names: `sqlite:///path/to/file.db` (made when missing),
    /// `redis://[user:password@]host[:port][/database]`, `amqp://[user:password@]host[:port][/vhost]` with a ledger
    /// beside it, `rediss://` and `amqps://` for the same over TLS, or `memory://`.
    ///
    /// # Errors
    /// `Config` for an address, file system or right a person has to mend; `Unavailable` when it may work later.
    pub async fn connect(access: &Access) -> Result<Self> {
        let parsed = Url::parse(access.url.expose())
            .map_err(|error| Error::new(Kind::Config, OP, "the address is not a URL").because(error))?;
        match parsed.scheme() {
            "sqlite" => {
                let sqlite = Arc::new(Sqlite::open(&sqlite_path(&parsed)?).await?);
                Ok(Self::new(Arc::clone(&sqlite) as Arc<dyn Backend>, sqlite))
            }
            "memory" => Ok(Self::memory()),
            "redis" | "rediss" => {
                let redis = Arc::new(Redis::connect(access).await?);
                Ok(Self::new(Arc::clone(&redis) as Arc<dyn Backend>, redis))
            }
            "amqp" | "amqps" => {
                let ledger = ledger(access).await?;
                let amqp = Arc::new(Amqp::connect(access, Arc::clone(&ledger)).await?);
                Ok(Self::new(amqp, ledger))
            }
            scheme => Err(Error::new(
                Kind::Config,
                OP,
                format!("no broker speaks {scheme}://; use sqlite://, redis:// or amqp://"),
            )),
        }
    }
}

/// Connects to the ledger that `access` names beside a broker which keeps no records. Each call is a connection of its
/// own; one in memory is gone with it.
///
/// # Errors
/// `Config` where none is named, or it cannot be one; else as [`Broker::connect`].
pub async fn ledger(access: &Access) -> Result<Arc<dyn Claims>> {
    const OP: &str = "connect to the ledger";
    let ledger = match &access.beside {
        Beside::Ledger(ledger) => ledger,
        Beside::Store(store) => return Ok(Arc::new(ObjectLedger::open(store.clone()).await?)),
        Beside::Nothing => {
            let what = "RabbitMQ keeps no records: name a ledger (--ledger redis://HOST:6379) or a store";
            return Err(Error::new(Kind::Config, OP, what));
        }
    };
    match ledger.url.scheme() {
        "redis" | "rediss" => Ok(Arc::new(Redis::connect(ledger).await?)),
        "memory" => Ok(Arc::new(Memory::new())),
        "sqlite" => {
            let parsed =
                Url::parse(ledger.url.expose()).map_err(|_| Error::new(Kind::Config, OP, "it is not a URL"))?;
            Ok(Arc::new(Sqlite::open(&sqlite_path(&parsed)?).await?))
        }
        scheme => Err(Error::new(Kind::Config, OP, format!("{scheme}:// cannot be one; use redis:// or sqlite://"))),
    }
}

/// What the server that `access` names says of itself, whether it may be used or not; `None` where there is none.
///
/// # Errors
/// As [`Broker::connect`], but for what the answer says.
pub async fn survey(access: &Access) -> Result<Option<Survey>> {
    match access.url.scheme() {
        "redis" | "rediss" => redis::survey(access).await.map(Some),
        _ => Ok(None),
    }
}

/// The commands that promptq needs of the server that `access` names and its user may not use; none where there is no
/// such server. Leaves nothing behind.
///
/// # Errors
/// As [`survey`].
pub async fn lacking(access: &Access) -> Result<Vec<String>> {
    match access.url.scheme() {
        "redis" | "rediss" => redis::lacking(access).await,
        _ => Ok(Vec::new()),
    }
}

/// What is found where `access` names a file, which is looked at and not changed; `None` where it names none.
///
/// # Errors
/// As [`Broker::connect`].
pub async fn look(access: &Access) -> Result<Option<FileState>> {
    let url = Url::parse(access.url.expose()).ok().filter(|url| url.scheme() == "sqlite");
    let Some(url) = url else { return Ok(None) };
    Sqlite::look(&sqlite_path(&url)?).await.map(Some)
}

/// The embedded file every command uses unless told otherwise: `$XDG_STATE_HOME/promptq/default.db`.
pub fn default_path(state_home: Option<&str>, home: Option<&str>) -> PathBuf {
    let base = match (state_home.filter(|path| path.starts_with('/')), home) {
        (Some(state), _) => PathBuf::from(state),
        (None, Some(home)) => PathBuf::from(home).join(".local/state"),
        (None, None) => PathBuf::from("."),
    };
    base.join("promptq/default.db")
}

/// The embedded file that `url` names; `None` for any other broker.
pub fn embedded_file(url: &str) -> Option<PathBuf> {
    let url = Url::parse(url).ok().filter(|url| url.scheme() == "sqlite")?;
    sqlite_path(&url).ok()
}

/// Whether everything behind the broker's URL is on this machine: an embedded file, memory, or a loopback address.
pub fn is_local(url: &str) -> bool {
    let Ok(parsed) = Url::parse(url) else { return false };
    if matches!(parsed.scheme(), "sqlite" | "memory") {
        return true;
    }
    match parsed.host() {
        None => true,
        // To a URL whose scheme it does not know, 127.0.0.1 is a name like any other.
        Some(url::Host::Domain(name)) => {
            name.is_empty() || name == "localhost" || name.parse::<Ipv4Addr>().is_ok_and(|ip| ip.is_loopback())
        }
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
    }
}

/// `sqlite:///abs/path` is absolute; `sqlite://rel/path` and `sqlite:rel/path` are below the current folder.
pub(crate) fn sqlite_path(url: &Url) -> Result<PathBuf> {
    let bad = |why: &str| Error::new(Kind::Config, OP, format!("{url}: {why}; write sqlite:///path/to/file.db"));
    if url.query().is_some() || url.fragment().is_some() {
        return Err(bad("takes no ? or # part"));
    }
    let path =
        percent_encoding::percent_decode_str(url.path()).decode_utf8().map_err(|_| bad("the path is not UTF-8"))?;
    let path = match url.host_str() {
        Some(host) => format!("{host}{path}"),
        None => path.into_owned(),
    };
    if path.is_empty() || path.ends_with('/') {
        return Err(bad("no file is named"));
    }
    Ok(PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqlite_urls_name_files() {
        let path = |url: &str| sqlite_path(&Url::parse(url).unwrap()).ok();
        assert_eq!(path("sqlite:///var/q.db"), Some("/var/q.db".into()));
        assert_eq!(path("sqlite://q.db"), Some("q.db".into()));
        assert_eq!(path("sqlite:///a%20b.db"), Some("/a b.db".into()));
        assert_eq!(path("sqlite:///dir/"), None);
        assert_eq!(path("sqlite:///q.db?mode=ro"), None);
    }
    #[test]
    fn what_is_behind_a_loopback_address_is_on_this_machine() {
        for url in ["redis://127.0.0.1:6379", "rediss://127.8.0.1", "redis://localhost/3", "redis://[::1]", "memory://"]
        {
            assert!(is_local(url), "{url}");
        }
        for url in ["redis://10.0.0.1", "redis://127.0.0.1.example.org", "redis://[::2]", "redis://redis", "no URL"] {
            assert!(!is_local(url), "{url}");
        }
    }
}
