//! From an [`Access`] to what the driver dials: host, port, virtual host, login, heartbeat and trusted certificates,
//! checked first. `amqp[s]://[user:password@]host[:port][/vhost][?heartbeat=10s]`; connects to nothing.

use std::path::PathBuf;

use lapin::tcp::{RustlsConnector, RustlsConnectorConfig};
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use percent_encoding::percent_decode_str;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::sync::mpsc;
use url::Url;

use super::fault::Peer;
use crate::broker::{Access, is_local};
use crate::error::{Error, Kind, Result};
use crate::tls;

pub(super) const OP: &str = "connect to RabbitMQ";

/// What the server's own clients use: a connection that is silent for twice as long is given up by either side.
const HEARTBEAT: u16 = 10;
/// The longest, in seconds: until twice that has passed nobody gets the jobs of a worker whose host died.
const LONGEST_HEARTBEAT: u16 = 300;
/// The driver keeps 64 frames' room for each connection, which is 8 MiB with the 128 KiB that servers propose. Where
/// clients that are not ours cannot send anything, a quarter will do; elsewhere their headers have to fit.
const SMALL_FRAME: u32 = 32 << 10;
/// What servers know without being told; they let it in from their own host only.
const GUEST: &str = "guest";

/// What to dial, and how to speak of it. Holds the password: never shown.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) uri: AMQPUri,
    /// `None` without TLS.
    pub(super) tls: Option<RustlsConnector>,
    pub(super) peer: Peer,
    /// Held by each thread of the driver's that may still use the runtime it was dialled on.
    pub(super) users: Option<mpsc::Sender<()>>,
}

impl Target {
    /// Checks the address and reads the certificates; connects to nothing.
    ///
    /// # Errors
    /// `Config` for what a person has to mend.
    pub(super) async fn new(access: &Access) -> Result<Self> {
        let url = Url::parse(access.url.expose()).map_err(|_| bad("the address is not a URL"))?;
        let uri = read(&url)?;
        let is_tls = uri.scheme == AMQPScheme::AMQPS;
        if uri.authority.userinfo.username == GUEST && !is_local(access.url.expose()) {
            return Err(bad("servers refuse the user guest from elsewhere; set broker.user and broker.password"));
        }
        let peer = Peer {
            shown: shown(&url),
            user: uri.authority.userinfo.username.clone(),
            vhost: uri.vhost.clone(),
            is_tls,
        };
        let tls = match (&access.tls_ca, is_tls) {
            (Some(_), false) => return Err(bad("tls_ca is of no use without TLS; write amqps://")),
            (None, false) => None,
            (ca, true) => {
                let ca = ca.clone();
                let made = tokio::task::spawn_blocking(move || connector(ca)).await;
                Some(made.map_err(|error| bad(&error.to_string()))??)
            }
        };
        Ok(Self { uri, tls, peer, users: None })
    }

    /// The same for a connection over which nothing comes but what was sent by it.
    pub(super) fn with_small_frames(&self) -> Self {
        let mut target = self.clone();
        target.uri.query.frame_max = Some(SMALL_FRAME);
        target
    }
}

/// The parts of the address, each decoded; `Err` for what the driver would take in silence.
fn read(url: &Url) -> Result<AMQPUri> {
    let scheme = match url.scheme() {
        "amqp" => AMQPScheme::AMQP,
        "amqps" => AMQPScheme::AMQPS,
        scheme => return Err(bad(&format!("{scheme}:// is not RabbitMQ"))),
    };
    let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() {
        return Err(bad("no host is named"));
    }
    if url.fragment().is_some() {
        return Err(bad("it takes no # part; write # as %23"));
    }
    let port = url.port().unwrap_or_else(|| scheme.default_port());
    Ok(AMQPUri {
        authority: AMQPAuthority { userinfo: login(url)?, host: decoded("the host", host)?, port },
        vhost: vhost(url.path())?,
        query: AMQPQueryString { heartbeat: Some(heartbeat(url)?), ..AMQPQueryString::default() },
        scheme,
    })
}

fn login(url: &Url) -> Result<AMQPUserInfo> {
    let username = decoded("the user", url.username())?;
    match (username.is_empty(), url.password()) {
        (true, None) => Ok(AMQPUserInfo { username: GUEST.to_owned(), password: GUEST.to_owned() }),
        (true, Some(_)) => Err(bad("a password without a user; set broker.user")),
        (false, None) => Err(bad("a user without a password; set broker.password")),
        (false, Some(password)) => Ok(AMQPUserInfo { username, password: decoded("the password", password)? }),
    }
}

/// One path part; without any it is `/`, as servers have it.
fn vhost(path: &str) -> Result<String> {
    let part = path.strip_prefix('/').unwrap_or(path);
    if part.is_empty() {
        return Ok("/".to_owned());
    }
    if part.contains('/') {
        return Err(bad("what follows the host is the name of one virtual host; write a slash in it as %2F"));
    }
    let name = decoded("the virtual host", part)?;
    // The protocol counts its length in one byte.
    if name.len() > 255 { Err(bad("the name of the virtual host is longer than 255 bytes")) } else { Ok(name) }
}

fn heartbeat(url: &Url) -> Result<u16> {
    const TAKES: &str = "after ? it takes heartbeat=<seconds> alone, 1s to 300s";
    let mut found = HEARTBEAT;
    for (name, value) in url.query_pairs() {
        let seconds = value.strip_suffix('s').unwrap_or(&value).parse::<u16>().ok();
        found = seconds
            .filter(|seconds| name == "heartbeat" && (1..=LONGEST_HEARTBEAT).contains(seconds))
            .ok_or_else(|| bad(TAKES))?;
    }
    Ok(found)
}

fn decoded(what: &str, text: &str) -> Result<String> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map(Into::into).map_err(|_| bad(&format!("{what} is not UTF-8")))
}

/// The address as it may be shown; the query is no secret here and says what is wrong when it is.
fn shown(url: &Url) -> String {
    let mut plain = url.clone();
    plain.set_query(None);
    crate::config::redact_url(plain.as_str())
}

/// Trusts what the file holds and nothing else, or what the system trusts.
fn connector(ca: Option<PathBuf>) -> Result<RustlsConnector> {
    tls::install();
    let config = match ca {
        None => RustlsConnectorConfig::new_with_native_certs()
            .map_err(|error| bad(&format!("the system's certificates cannot be read ({error}); set tls_ca")))?,
        Some(path) => {
            let unreadable = |why: String| bad(&format!("cannot read tls_ca {}: {why}", path.display()));
            let pem = std::fs::read(&path).map_err(|error| unreadable(error.to_string()))?;
            let certificates = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
            let certificates = certificates.map_err(|error| unreadable(error.to_string()))?;
            if certificates.is_empty() {
                return Err(bad(&format!("tls_ca {} holds no PEM certificate", path.display())));
            }
            RustlsConnectorConfig::default().with_parsable_certificates(certificates)
        }
    };
    let unusable = |error| bad(&format!("the certificates cannot be used: {error}"));
    config.connector_with_no_client_auth().map_err(unusable)
}

/// The URL itself stays out: it may hold a password.
fn bad(why: &str) -> Error {
    let form = "amqp://[user:password@]host[:port][/vhost], or amqps://";
    Error::new(Kind::Config, OP, format!("{why}; write {form}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn target(url: &str) -> Result<Target> {
        Target::new(&Access::new(url).unwrap()).await
    }

    #[tokio::test]
    async fn urls_name_host_vhost_and_login_with_any_character_in_them() {
        let made = target("amqp://m%40e:p%2Fa%3Ass%25%23%20%C3%A9@h:7000/team%2Fa%20b?heartbeat=7s").await.unwrap();
        let (authority, login) = (&made.uri.authority, &made.uri.authority.userinfo);
        assert_eq!((authority.host.as_str(), authority.port), ("h", 7000));
        assert_eq!((login.username.as_str(), login.password.as_str()), ("m@e", "p/a:ss%# é"));
        assert_eq!((made.uri.vhost.as_str(), made.uri.query.heartbeat), ("team/a b", Some(7)));
        assert_eq!(made.peer.shown, "amqp://m%40e:***@h:7000/team%2Fa%20b");
        for (url, host, port, vhost) in [
            ("amqp://localhost", "localhost", 5672, "/"),
            ("amqp://localhost/", "localhost", 5672, "/"),
            ("amqp://127.0.0.1/%2F", "127.0.0.1", 5672, "/"),
            ("amqp://[::1]/v", "::1", 5672, "v"),
        ] {
            let made = target(url).await.unwrap();
            let authority = &made.uri.authority;
            assert_eq!(
                (authority.host.as_str(), authority.port, made.uri.vhost.as_str()),
                (host, port, vhost),
                "{url}"
            );
            assert_eq!((authority.userinfo.username.as_str(), made.uri.query.heartbeat), (GUEST, Some(10)), "{url}");
        }
    }

    #[tokio::test]
    async fn what_the_driver_would_take_in_silence_is_refused() {
        let long = format!("amqp://u:secret@h/{}", "v".repeat(256));
        for (url, word) in [
            ("amqp://", "no host"),
            ("amqp://u@h", "without a password"),
            ("amqp://:secret@h", "without a user"),
            ("amqp://u:secret@h/a/b", "%2F"),
            ("amqp://u:secret@h/#v", "%23"),
            ("amqp://u:secret@h?frame_max=4096", "heartbeat=<seconds>"),
            ("amqp://u:secret@h?heartbeat=0", "heartbeat=<seconds>"),
            ("amqp://u:secret@h?heartbeat=ten", "heartbeat=<seconds>"),
            ("amqp://u:%ff@h", "not UTF-8"),
            ("amqp://h", "guest from elsewhere"),
            ("amqp://guest:secret@192.0.2.1", "guest from elsewhere"),
            ("redis://u:secret@h", "not RabbitMQ"),
            (&long, "255 bytes"),
        ] {
            let error = target(url).await.map(|_| ()).unwrap_err();
            assert_eq!(error.kind(), Kind::Config, "{url}");
            let text = error.to_string();
            assert!(text.contains(word) && !text.contains("secret"), "{url}: {text}");
        }
    }

    #[tokio::test]
    async fn certificates_that_are_none_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let ca = folder.path().join("ca.pem");
        let access = |url: &str| Access { tls_ca: Some(ca.clone()), ..Access::new(url).unwrap() };
        let refused = async |url: &str| Target::new(&access(url)).await.map(|_| ()).unwrap_err().to_string();
        assert!(refused("amqps://u:p@h").await.contains("cannot read tls_ca"));
        std::fs::write(&ca, "not a certificate").unwrap();
        assert!(refused("amqps://u:p@h").await.contains("holds no PEM certificate"));
        assert!(refused("amqp://u:p@h").await.contains("write amqps://"));
    }
}
