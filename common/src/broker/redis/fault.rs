//! What the driver's and the server's errors mean: whether to try again, and what a person should read. Keeps what
//! was sent, and every password, out of the words.

use std::error::Error as StdError;
use std::io;
use std::sync::Arc;

use deadpool_redis::PoolError;
use deadpool_redis::redis::{ErrorKind, RedisError};

use crate::broker::Section;
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
    /// The section of the settings that names it.
    pub(super) section: Section,
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
            return Error::new(Kind::Config, op, format!("{at}: {}", self.of_tls(broken)));
        }
        let kind = error.kind();
        if kind == ErrorKind::AuthenticationFailed {
            Error::new(Kind::Denied, op, format!("{at}: {}", self.bad_password()))
        } else if error.is_timeout() {
            Error::new(Kind::TimedOut, op, format!("{at}: no answer in time{}", self.perhaps_plain()))
        } else if error.is_connection_refusal() {
            let why = "nothing listens there (connection refused); start Redis, or check host and port";
            Error::new(Kind::Unavailable, op, format!("{at}: {why}"))
        } else if kind == ErrorKind::Io {
            let why = format!("{at}: the connection failed{}", self.perhaps_tls(error));
            // As text: the driver names each cause twice.
            Error::new(Kind::Unavailable, op, why).because(error.to_string())
        } else if kind == ErrorKind::Parse {
            let why = format!("{at}: what answers there is not Redis{}", if self.is_tls { "" } else { SPEAKS_TLS });
            Error::new(Kind::Unavailable, op, why)
        } else if kind == ErrorKind::InvalidClientConfig {
            Error::new(Kind::Config, op, format!("{at}: {error}"))
        } else {
            Error::new(Kind::Corrupt, op, format!("{at}: {error}"))
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
            "NOAUTH" => (Kind::Denied, self.wants_password()),
            "WRONGPASS" => (Kind::Denied, self.bad_password()),
            "NOPERM" => (Kind::Denied, self.lacks(detail)),
            "DENIED" => (Kind::Denied, "the Redis server is in protected mode; give it a password".to_owned()),
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
            (Kind::Denied, self.wants_password())
        } else if detail.contains("ACL failure in script") || detail.contains("executing the script can't") {
            (Kind::Denied, self.lacks(detail))
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

    fn bad_password(&self) -> String {
        let (user, of) = (self.user(), self.section);
        format!("the server refuses the password of user {user}; check {of}.user and {of}.password")
    }

    fn wants_password(&self) -> String {
        if self.has_password {
            format!("the Redis server does not know user {} any more", self.user())
        } else {
            let of = self.section;
            format!("the Redis server wants a password; set {of}.password, and {of}.user where it is not \"default\"")
        }
    }

    fn lacks(&self, detail: &str) -> String {
        format!(
            "user {} has too few rights: {}; give it those of deploy/redis/users.acl",
            self.user(),
            quotable(detail)
        )
    }

    fn of_tls(&self, error: &rustls::Error) -> String {
        if let rustls::Error::InvalidCertificate(why) = error {
            let of = self.section;
            format!("the server's certificate is not trusted ({why:?}); set {of}.tls_ca to the file of its CA")
        } else if let rustls::Error::InvalidMessage(_) = error {
            "the port speaks no TLS; write redis://".to_owned()
        } else {
            format!("TLS: {error}")
        }
    }

    /// A plain port waits for the rest of what it takes for a line.
    fn perhaps_plain(&self) -> &'static str {
        if self.is_tls { "; if the port speaks no TLS, write redis://" } else { "" }
    }

    /// A port with TLS hangs up on what is none.
    fn perhaps_tls(&self, error: &RedisError) -> &'static str {
        let hung_up = error.is_connection_dropped() && !error.is_connection_refusal();
        if self.is_tls || !hung_up { "" } else { SPEAKS_TLS }
    }
}

pub(super) const CLUSTER: &str = "Redis Cluster is not supported by this version; use a single server";
pub(super) const SPEAKS_TLS: &str = "; if it speaks TLS, write rediss://";

/// Whether the connection it came over should not be used again.
pub(super) fn breaks(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Io | ErrorKind::Parse | ErrorKind::AuthenticationFailed)
        || matches!(error.code(), Some("READONLY" | "MASTERDOWN" | "NOAUTH" | "UNBLOCKED"))
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
    // The driver shares its sources, so that its errors can be cloned.
    let shared = error.source()?.downcast_ref::<Arc<dyn StdError + Send + Sync>>()?;
    let inner = shared.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    inner.and_then(|inner| inner.downcast_ref()).or_else(|| shared.downcast_ref())
}

#[cfg(test)]
mod tests {
    use deadpool_redis::redis::parse_redis_value;

    use super::*;

    fn peer() -> Peer {
        let (shown, user) = ("redis://me:***@h".to_owned(), Some("me".to_owned()));
        Peer { shown, user, has_password: true, is_tls: false, section: Section::Broker }
    }

    fn answered(line: &str) -> RedisError {
        parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap().extract_error().unwrap_err()
    }

    #[test]
    fn what_a_server_refuses_with_has_a_kind_and_a_word() {
        for (line, kind, word) in [
            ("LOADING Redis is loading the dataset in memory", Kind::Unavailable, "loading"),
            ("BUSY Redis is busy running a script.", Kind::Unavailable, "busy"),
            ("READONLY You can't write against a read only replica.", Kind::Unavailable, "replica"),
            ("MASTERDOWN Link with MASTER is down", Kind::Unavailable, "role"),
            ("CLUSTERDOWN The cluster is down", Kind::Unavailable, "not ready"),
            ("TRYAGAIN Multiple keys request during rehashing of slot", Kind::Unavailable, "not ready"),
            ("MISCONF Errors writing to the AOF file", Kind::Unavailable, "disk"),
            ("OOM command not allowed when used memory > 'maxmemory'.", Kind::Unavailable, "is full (maxmemory)"),
            ("ERR max number of clients reached", Kind::Unavailable, "maxclients"),
            ("MOVED 3999 127.0.0.1:6381", Kind::Unsupported, "Cluster"),
            ("NOAUTH Authentication required.", Kind::Denied, "does not know user me"),
            ("WRONGPASS invalid username-password pair", Kind::Denied, "password of user me"),
            ("NOPERM this user has no permissions to run the 'evalsha' command", Kind::Denied, "user me has too few"),
            ("ERR The user executing the script can't run this command or subcommand", Kind::Denied, "too few rights"),
            ("ERR DB index is out of range", Kind::Config, "DB index"),
            ("DENIED Redis is running in protected mode", Kind::Denied, "protected mode"),
            ("WRONGTYPE Operation against a key holding the wrong kind of value", Kind::Corrupt, "something else"),
            ("ERR unknown command 'EVALSHA', with args beginning with: 'hunter2'", Kind::Unsupported, "EVALSHA"),
            ("ERR Error running script", Kind::Corrupt, "Error running script"),
            ("NEWCODE something", Kind::Corrupt, "NEWCODE something"),
        ] {
            let error = peer().lift("try", &answered(line));
            assert_eq!(error.kind(), kind, "{line}");
            let text = error.to_string();
            assert!(text.contains(word) && text.contains("redis://me:***@h"), "{line}: {text}");
            assert!(!text.contains("hunter2"), "{text}");
        }
    }

    #[test]
    fn broken_connections_and_demoted_servers_are_left() {
        let io = |kind: io::ErrorKind| RedisError::from(io::Error::from(kind));
        for kind in [io::ErrorKind::TimedOut, io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset] {
            assert!(breaks(&io(kind)), "{kind}");
        }
        assert!(breaks(&answered("READONLY x")) && breaks(&answered("NOAUTH x")));
        assert!(!breaks(&answered("OOM x")) && !breaks(&answered("NOSCRIPT x")) && !breaks(&answered("ERR x")));
        assert!(is_unknown_script(&answered("NOSCRIPT x")) && !is_unknown_script(&answered("ERR NOSCRIPT")));
        assert_eq!(peer().lift("try", &io(io::ErrorKind::TimedOut)).kind(), Kind::TimedOut);
        assert_eq!(peer().lift("try", &io(io::ErrorKind::BrokenPipe)).kind(), Kind::Unavailable);
    }

    #[test]
    fn a_certificate_nobody_trusts_is_for_a_person() {
        let broken = |error: rustls::Error| RedisError::from(io::Error::new(io::ErrorKind::InvalidData, error));
        let untrusted = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let error = peer().lift("try", &broken(untrusted));
        assert_eq!(error.kind(), Kind::Config);
        assert!(error.to_string().contains("broker.tls_ca"), "{error}");
        let plain = broken(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType));
        assert!(peer().lift("try", &plain).to_string().contains("speaks no TLS"));
    }
}
