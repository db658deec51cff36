//! From an [`Access`] to what the driver dials: host, port, database, login and trusted certificates, checked first.
//! `redis://[user[:password]@]host[:port][/database]`, and `rediss://` for the same over TLS.

use std::path::Path;
use std::time::Duration;

use deadpool_redis::redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use deadpool_redis::redis::{Client, ConnectionInfo, IntoConnectionInfo, TlsCertificates};
use url::Url;

use super::fault::Peer;
use crate::broker::{Access, Section};
use crate::error::{Error, Kind, Result};
use crate::tls;

pub(super) const OP: &str = "connect to Redis";

/// Idle connections are probed after this long, so that a firewall neither forgets them (the shortest common memory is
/// 60 s and more) nor a dead peer stays unnoticed.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// The longest that sent bytes may stay unacknowledged before the kernel gives the connection up: the driver's own
/// response timeout (10 s) and half of it again.
const UNACKNOWLEDGED: Duration = Duration::from_secs(15);

/// What to dial, and how to speak of it.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) client: Client,
    pub(super) peer: Peer,
}

impl Target {
    /// Checks the address and reads the certificates; connects to nothing.
    ///
    /// # Errors
    /// `Config` for what a person has to mend.
    pub(super) async fn new(access: &Access) -> Result<Self> {
        let url = Url::parse(access.url.expose()).map_err(|_| bad("the address is not a URL"))?;
        let is_tls = check(&url, access.section)?;
        let info = url.clone().into_connection_info().map_err(|error| bad(&error.to_string()))?;
        let login = info.redis_settings().clone().set_skip_set_lib_name();
        let peer = Peer {
            shown: access.url.to_string(),
            user: login.username().map(str::to_owned),
            has_password: login.password().is_some(),
            is_tls,
            section: access.section,
        };
        let tcp = TcpSettings::default()
            .set_nodelay(true)
            .set_keepalive(TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 3))
            .set_user_timeout(UNACKNOWLEDGED);
        let info = info.set_redis_settings(login).set_tcp_settings(tcp);
        let client = match (&access.tls_ca, is_tls) {
            (Some(_), false) => return Err(bad("tls_ca is of no use without TLS; write rediss://")),
            (None, false) => Client::open(info).map_err(|error| bad(&error.to_string()))?,
            (ca, true) => secured(info, ca.as_deref()).await?,
        };
        Ok(Self { client, peer })
    }

    pub(super) fn info(&self) -> ConnectionInfo {
        self.client.get_connection_info().clone()
    }
}

/// Whether it is TLS; `Err` for what the driver would take in silence or refuse without a hint.
fn check(url: &Url, of: Section) -> Result<bool> {
    let is_tls = match url.scheme() {
        "redis" => false,
        "rediss" => true,
        scheme => return Err(bad(&format!("{scheme}:// is not Redis"))),
    };
    if url.host_str().is_none_or(str::is_empty) {
        return Err(bad("no host is named"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(bad("it takes no ? or # part"));
    }
    let database = url.path().trim_matches('/');
    // 16 is what servers have unless told otherwise; more than that is theirs to refuse.
    if !database.is_empty() && database.parse::<u16>().is_err() {
        return Err(bad("what follows the host is a number, that of the database"));
    }
    if !url.username().is_empty() && url.password().is_none() {
        return Err(bad(&format!("a user without a password; set {of}.password")));
    }
    Ok(is_tls)
}

async fn secured(info: ConnectionInfo, ca: Option<&Path>) -> Result<Client> {
    tls::install();
    let root_cert = match ca {
        None => None,
        Some(path) => {
            let file = path.to_owned();
            let read = tokio::task::spawn_blocking(move || std::fs::read(file)).await;
            let unreadable = |why: String| bad(&format!("cannot read tls_ca {}: {why}", path.display()));
            let pem = read.map_err(|error| unreadable(error.to_string()))?;
            let pem = pem.map_err(|error| unreadable(error.to_string()))?;
            if !pem.windows(CERTIFICATE.len()).any(|part| part == CERTIFICATE) {
                return Err(bad(&format!("tls_ca {} holds no PEM certificate", path.display())));
            }
            Some(pem)
        }
    };
    Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert })
        .map_err(|error| bad(&format!("the certificates of tls_ca cannot be used: {error}")))
}

const CERTIFICATE: &[u8] = b"-----BEGIN CERTIFICATE-----";

/// The URL itself stays out: it may hold a password.
fn bad(why: &str) -> Error {
    Error::new(Kind::Config, OP, format!("{why}; write redis://[user:password@]host[:port][/database], or rediss://"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use deadpool_redis::redis::ConnectionAddr;

    async fn target(url: &str) -> Result<Target> {
        Target::new(&Access::new(url).unwrap()).await
    }

    #[tokio::test]
    async fn urls_name_host_database_and_login() {
        let made = target("redis://me:p%40ss%25@h:7000/3").await.unwrap();
        let info = made.info();
        assert_eq!(*info.addr(), ConnectionAddr::Tcp("h".into(), 7000));
        let login = info.redis_settings();
        assert_eq!((login.db(), login.username(), login.password()), (3, Some("me"), Some("p@ss%")));
        assert_eq!((made.peer.shown.as_str(), made.peer.is_tls), ("redis://me:***@h:7000/3", false));
        let plain = target("redis://:secret@h").await.unwrap();
        assert_eq!(*plain.info().addr(), ConnectionAddr::Tcp("h".into(), 6379));
        assert_eq!(plain.info().redis_settings().username(), None);
        assert!(target("rediss://h").await.unwrap().peer.is_tls);
    }

    #[tokio::test]
    async fn what_the_driver_would_take_in_silence_is_refused() {
        for url in [
            "redis://",
            "redis://u:secret@h/zero",
            "redis://u:secret@h/-1",
            "redis://u:secret@h?protocol=resp3",
            "rediss://u:secret@h/#insecure",
            "redis://secret@h",
        ] {
            let error = target(url).await.map(|_| ()).unwrap_err();
            assert_eq!(error.kind(), Kind::Config, "{url}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    #[tokio::test]
    async fn certificates_that_are_none_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let ca = folder.path().join("ca.pem");
        let access = |url: &str| Access { tls_ca: Some(ca.clone()), ..Access::new(url).unwrap() };
        let refused = async |url: &str| Target::new(&access(url)).await.map(|_| ()).unwrap_err().to_string();
        assert!(refused("rediss://h").await.contains("cannot read tls_ca"));
        std::fs::write(&ca, "not a certificate").unwrap();
        assert!(refused("rediss://h").await.contains("holds no PEM certificate"));
        assert!(refused("redis://h").await.contains("write rediss://"));
    }
}
