//! What the driver's and the server's errors mean: whether to try again, and what a person should read. Keeps what
//! was sent, and every password, out of the words.

use std::error::Error as _;
use std::io;

use deadpool_redis::PoolError;
use deadpool_redis::redis::{ErrorKind, RedisError};

use crate::error::{Error, Kind};

/// Whom an error is about, as it may be shown.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    /// The URL without its password.
    pub(super) shown: String,
    /// The user named; `None` is Redis's `default`.
    pub(super) user: Option<String>,
    pub(super) has_password: bool,
    pub(super) is_tls: bool,
}

impl Peer {
    /// The error of this crate for one of the driver's.
    pub(super) fn lift(&self, op: &'static str, error: &RedisError) -> Error {
        if let Some(code) = error.code() {
            let (kind, why) = self.refusal(code, error.detail().unwrap_or_default());
            return Error::new(kind, op, why);
        }
        let at = &self.shown;
        if let Some(broken) = tls_error(error) {
            return Error::new(Kind::Config, op, format!("{at}: {}", of_tls(broken)));
        }
        match error.kind() {
            ErrorKind::AuthenticationFailed => Error::new(
                Kind::Config,
                op,
                format!(
                    "{at}: the server refuses the password of user {}; check broker.user and broker.password",
                    self.user()
                ),
            ),
            _ if error.is_timeout() => {
                Error::new(Kind::TimedOut, op, format!("{at}: no answer in time{}", self.perhaps_plain()))
            }
            ErrorKind::Io => {
                Error::new(Kind::Unavailable, op, format!("{at}: the connection failed")).because(error.clone())
            }
            ErrorKind::InvalidClientConfig | ErrorKind::Client => {
                Error::new(Kind::Config, op, format!("{at}: {error}"))
            }
            ErrorKind::Parse => Error::new(
                Kind::Unavailable,
                op,
                format!("{at}: what answers there is not Redis{}", if self.is_tls { "" } else { SPEAKS_TLS }),
            ),
            _ => Error::new(Kind::Corrupt, op, format!("{at}: {error}")),
        }
    }

    /// The error of this crate for one of the pool's.
    pub(super) fn lift_pool(error: PoolError) -> RedisError {
        match error {
            PoolError::Backend(error) => error,
            PoolError::Timeout(_) => io::Error::from(io::ErrorKind::TimedOut).into(),
            PoolError::Closed | PoolError::NoRuntimeSpecified | PoolError::PostCreateHook(_) => {
                io::Error::other(error.to_string()).into()
            }
        }
    }

    /// An answer that is not what the call expects: an older or newer promptq, or another program's keys.
    pub(super) fn unexpected(&self, op: &'static str, why: &str) -> Error {
        Error::new(Kind::Corrupt, op, format!("{}: an answer that cannot be read: {why}", self.shown))
    }

    /// The words for an error that the server answered with.
    fn refusal(&self, code: &str, detail: &str) -> (Kind, String) {
        let at = &self.shown;
        let (kind, why) = match code {
            "LOADING" => (Kind::Unavailable, "the Redis server is loading its data".to_owned()),
            "BUSY" => (Kind::Unavailable, "a script keeps the Redis server busy".to_owned()),
            "READONLY" => (Kind::Unavailable, "the Redis server is a replica and takes no writes".to_owned()),
            "MASTERDOWN" | "NOREPLICAS" | "UNBLOCKED" => {
                (Kind::Unavailable, "the Redis server is changing its role, or waits for its replicas".to_owned())
            }
            "MISCONF" => (
                Kind::Unavailable,
                "the Redis server cannot write to its disk and takes nothing until it can".to_owned(),
            ),
            "OOM" => (
                Kind::Unavailable,
                "the Redis server is full (maxmemory); workers make room, or raise maxmemory".to_owned(),
            ),
            "NOSCRIPT" => (Kind::Unavailable, "the Redis server keeps forgetting its scripts".to_owned()),
            "CLUSTERDOWN" | "TRYAGAIN" => (Kind::Unavailable, "the Redis Cluster is not ready".to_owned()),
            "MOVED" | "ASK" | "CROSSSLOT" => (Kind::Unsupported, CLUSTER.to_owned()),
            "NOAUTH" => (Kind::Config, self.wants_password()),
            "WRONGPASS" => (
                Kind::Config,
                format!(
                    "the server refuses the password of user {}; check broker.user and broker.password",
                    self.user()
                ),
            ),
            "NOPERM" => (Kind::Config, self.lacks(detail)),
            "DENIED" => (Kind::Config, "the Redis server is in protected mode; give it a password".to_owned()),
            "WRONGTYPE" => {
                (Kind::Corrupt, "a key of promptq's holds something else; use a database of its own".to_owned())
            }
            _ => self.other(code, detail),
        };
        (kind, format!("{at}: {why}"))
    }

    /// `ERR`, and codes that no release we know uses.
    fn other(&self, code: &str, detail: &str) -> (Kind, String) {
        let said = || format!("the Redis server refused it: {code} {}", quotable(detail));
        if detail.contains("max number of clients") {
            (Kind::Unavailable, "the Redis server takes no more connections (maxclients)".to_owned())
        } else if detail.contains("Authentication required") {
            (Kind::Config, self.wants_password())
        } else if detail.contains("ACL failure in script") || detail.contains("executing the script can't") {
            (Kind::Config, self.lacks(detail))
        } else if detail.contains("DB index") {
            (Kind::Config, said())
        } else if detail.contains("unknown command") || detail.contains("unknown subcommand") {
            (Kind::Unsupported, said())
        } else {
            (Kind::Corrupt, said())
        }
    }

    fn user(&self) -> &str {
        self.user.as_deref().unwrap_or("default")
    }

    fn wants_password(&self) -> String {
        if self.has_password {
            format!("the Redis server does not know user {} any more", self.user())
        } else {
            "the Redis server wants a password; set broker.password, and broker.user where it is not \"default\""
                .to_owned()
        }
    }

    fn lacks(&self, detail: &str) -> String {
        format!(
            "user {} has too few rights: {}; give it those of deploy/redis/users.acl",
            self.user(),
            quotable(detail)
        )
    }

    /// A plain port waits for the rest of what it takes for a line.
    fn perhaps_plain(&self) -> &'static str {
        if self.is_tls { "; if the port speaks no TLS, write redis://" } else { "" }
    }
}

pub(super) const CLUSTER: &str = "Redis Cluster is not supported by this version; use a single server";
pub(super) const SPEAKS_TLS: &str = "; if it speaks TLS, write rediss://";

/// Whether the connection it came over should not be used again.
pub(super) fn breaks(error: &RedisError) -> bool {
    match error.kind() {
        ErrorKind::Io | ErrorKind::Parse | ErrorKind::AuthenticationFailed => true,
        _ => matches!(error.code(), Some("READONLY" | "MASTERDOWN" | "NOAUTH" | "UNBLOCKED")),
    }
}

/// Whether the server did not know the script, so that certainly nothing ran.
pub(super) fn is_unknown_script(error: &RedisError) -> bool {
    error.code() == Some("NOSCRIPT")
}

/// What a server said, without what it repeats of arguments, and not endlessly.
fn quotable(detail: &str) -> String {
    let own = detail.split(", with args beginning with").next().unwrap_or_default();
    own.chars().take(200).collect()
}

fn tls_error(error: &RedisError) -> Option<&rustls::Error> {
    let source = error.source()?;
    let inner = source.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    inner.and_then(|inner| inner.downcast_ref()).or_else(|| source.downcast_ref())
}

fn of_tls(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(why) => {
            format!("the server's certificate is not trusted ({why:?}); set broker.tls_ca to the file of its CA")
        }
        rustls::Error::InvalidMessage(_) => "the port speaks no TLS; write redis://".to_owned(),
        rustls::Error::AlertReceived(alert) => format!("the server ended the TLS handshake ({alert:?})"),
        _ => format!("TLS: {error}"),
    }
}
