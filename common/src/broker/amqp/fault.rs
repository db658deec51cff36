//! What the driver's and the server's errors mean: whether to try again, and what a person should read. Keeps what was
//! sent, and every password, out of the words.

use std::io::{
    self,
    ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, TimedOut, UnexpectedEof},
};

use lapin::ErrorKind;
use rustls::CertificateError;

use super::topology;
use crate::error::{Error, Kind};

/// Whom an error is about, as it may be shown.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    /// The URL without its password.
    pub(super) shown: String,
    pub(super) user: String,
    pub(super) vhost: String,
    pub(super) is_tls: bool,
}

impl Peer {
    /// The error of this crate for one of the driver's, on a connection that was open.
    pub(super) fn lift(&self, op: &'static str, error: &lapin::Error) -> Error {
        let (kind, why) = self.reading(error);
        self.error(kind, op, &why)
    }

    /// The same for what a connection ended with: another one is made, so that it may work later.
    pub(super) fn lost(&self, op: &'static str, error: &lapin::Error) -> Error {
        self.error(Kind::Unavailable, op, &self.reading(error).1)
    }

    fn reading(&self, error: &lapin::Error) -> (Kind, String) {
        let plain = |text: &str| (Kind::Unavailable, text.to_owned());
        if let ErrorKind::ProtocolError(said) = error.kind() {
            self.refusal(said.get_id(), said.get_message().as_str())
        } else if let ErrorKind::IOError(cause) = error.kind() {
            (Kind::Unavailable, format!("the connection failed ({cause})"))
        } else if let ErrorKind::MissingHeartbeatError = error.kind() {
            plain("the server gave no sign of life for two heartbeats")
        } else if let ErrorKind::ChannelsLimitReached = error.kind() {
            plain("the server lets this connection have no more channels; raise its channel_max")
        } else if let ErrorKind::ParsingError(_) | ErrorKind::SerialisationError(_) = error.kind() {
            (Kind::Corrupt, format!("what was said cannot be read: {error}"))
        } else {
            // A channel or connection that was closed before; why, was told to whom it happened.
            plain("the connection was lost")
        }
    }

    /// The error of this crate for one of the driver's while it connects.
    pub(super) fn lift_dial(&self, op: &'static str, error: &lapin::Error) -> Error {
        let (kind, why) = if let ErrorKind::IOError(cause) = error.kind() {
            self.unreached(cause)
        } else if let ErrorKind::ParsingError(_) | ErrorKind::InvalidProtocolVersion(_) = error.kind() {
            (Kind::Unavailable, format!("what answers there is not RabbitMQ{}", self.perhaps_tls()))
        } else if let ErrorKind::InvalidConnectionState(_) = error.kind() {
            (Kind::Unavailable, format!("the server hung up while connecting{}", self.perhaps_tls()))
        } else {
            self.reading(error)
        };
        self.error(kind, op, &why)
    }

    /// An error about this server in words of our own.
    pub(super) fn error(&self, kind: Kind, op: &'static str, why: &str) -> Error {
        Error::new(kind, op, format!("{}: {why}", self.shown))
    }

    /// No answer within the time that connecting may take.
    pub(super) fn silent(&self, op: &'static str) -> Error {
        self.error(Kind::TimedOut, op, &format!("no answer in time{}{}", self.perhaps_tls(), self.perhaps_plain()))
    }

    fn unreached(&self, cause: &io::Error) -> (Kind, String) {
        if let Some(broken) = cause.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            return (Kind::Config, of_tls(broken));
        }
        let kind = cause.kind();
        if kind == ConnectionRefused {
            let why = "nothing listens there (connection refused); start RabbitMQ, or check host and port";
            (Kind::Unavailable, why.to_owned())
        } else if kind == TimedOut {
            (Kind::TimedOut, format!("no answer in time; check host, port and firewall{}", self.perhaps_plain()))
        } else if [ConnectionAborted, ConnectionReset, UnexpectedEof].contains(&kind) {
            let hint = if self.is_tls { self.perhaps_plain() } else { self.perhaps_tls() };
            (Kind::Unavailable, format!("the server hung up while connecting{hint}"))
        } else {
            (Kind::Unavailable, format!("it cannot be reached ({cause})"))
        }
    }

    /// What the server closed a channel or a connection with.
    fn refusal(&self, code: u16, said: &str) -> (Kind, String) {
        let told = quotable(said);
        match code {
            403 if said.contains("Login was refused") || said.contains("login refused") => (
                Kind::Denied,
                format!("the server refuses user {} or the password; check broker.user and broker.password", self.user),
            ),
            403 => (Kind::Denied, self.lacks(&told)),
            402 | 530 if said.contains("limit") => (Kind::Unavailable, format!("the server takes no more: {told}")),
            402 | 530 if said.contains("vhost") => self.bad_vhost(said, &told),
            404 => {
                let queue = named(said).and_then(topology::queue_of_lane).map_or_else(String::new, |q| format!(" {q}"));
                (Kind::NotFound, format!("{told}; `promptq queues declare{queue}` makes what is not there yet"))
            }
            405 => (Kind::Conflict, format!("another connection has it for itself: {told}")),
            406 => precondition(said, &told),
            311 => (Kind::TooLarge, format!("the server takes nothing so large: {told}")),
            320 => (Kind::Unavailable, format!("the server closes its connections: {told}")),
            503 | 530 | 540 => (Kind::Unsupported, format!("the server will not do it: {told}")),
            // 501 to 506 and 541: whatever it was, a new connection is the way on.
            _ => (Kind::Unavailable, format!("the server gave the connection up: {told}")),
        }
    }

    fn lacks(&self, told: &str) -> String {
        let (user, vhost) = (&self.user, &self.vhost);
        format!("user {user} has too few rights in virtual host {vhost:?}: {told}; give it those of its kind, {RIGHTS}")
    }

    fn bad_vhost(&self, said: &str, told: &str) -> (Kind, String) {
        let (user, vhost) = (&self.user, &self.vhost);
        if said.contains("not found") {
            let mend = format!("add it (rabbitmqctl add_vhost {vhost}), or name another one in the URL: {HOW}");
            (Kind::Config, format!("there is no virtual host {vhost:?}; {mend}"))
        } else if said.contains("refused") {
            let mend = format!("give it rights there (rabbitmqctl set_permissions -p {vhost} {user} …, {RIGHTS})");
            (Kind::Denied, format!("user {user} may not use virtual host {vhost:?}; {mend}"))
        } else {
            (Kind::Config, format!("the server lets nobody into virtual host {vhost:?}: {told}"))
        }
    }

    /// A port with TLS hangs up on what is none, or answers with an alert.
    fn perhaps_tls(&self) -> &'static str {
        if self.is_tls { "" } else { "; if the port speaks TLS, write amqps://" }
    }

    fn perhaps_plain(&self) -> &'static str {
        if self.is_tls { "; if the port speaks no TLS, write amqp://" } else { "" }
    }
}

/// Where the virtual host stands in an address.
const HOW: &str = "amqp://host/vhost";
/// Where the rights of each kind of user are written down.
const RIGHTS: &str = "see deploy/rabbitmq/README.md";

fn precondition(said: &str, told: &str) -> (Kind, String) {
    if said.contains("timed out") {
        let mend = "set broker.consumer_timeout to what the server's consumer_timeout is";
        (Kind::Unavailable, format!("a delivery stayed open for longer than the server allows; {mend}"))
    } else if said.contains("larger than") {
        (Kind::TooLarge, format!("the server takes nothing so large: {told}"))
    } else if said.contains("inequivalent arg") {
        (Kind::Conflict, format!("it is there with other arguments: {told}; delete it, or use another virtual host"))
    } else if said.contains("unknown delivery tag") {
        (Kind::Unavailable, "the delivery is no longer ours".to_owned())
    } else {
        (Kind::Unsupported, format!("the server refuses it: {told}"))
    }
}

/// What the server closed with, if it did.
pub(super) fn code(error: &lapin::Error) -> Option<u16> {
    if let ErrorKind::ProtocolError(said) = error.kind() { Some(said.get_id()) } else { None }
}

/// Whose fault it is that a channel or connection ended on which messages were published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Blame {
    /// No message's.
    Nobody,
    /// One of them; the server does not say which.
    Someone,
    /// Those that went to this exchange.
    Exchange(String),
}

/// Whose fault `error` is.
pub(super) fn blame(error: &lapin::Error) -> Blame {
    let ErrorKind::ProtocolError(said) = error.kind() else { return Blame::Nobody };
    // Closed by a person or by trouble of the server's own.
    if [320, 541].contains(&said.get_id()) {
        return Blame::Nobody;
    }
    let rest = said.get_message().as_str().split_once("exchange '").map(|(_, rest)| rest);
    let named = rest.and_then(|rest| rest.split_once('\'')).map(|(name, _)| name.to_owned());
    // Where rights are concerned, the exchange without a name has this one.
    named.map_or(Blame::Someone, |name| Blame::Exchange(if name == "amq.default" { String::new() } else { name }))
}

/// The name of what a server has an opinion on: the first that it puts in quotes.
fn named(said: &str) -> Option<&str> {
    said.split('\'').nth(1)
}

/// What a server said, not endlessly and on one line.
fn quotable(said: &str) -> String {
    said.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect()
}

fn of_tls(error: &rustls::Error) -> String {
    use CertificateError::{NotValidForName, NotValidForNameContext};
    if let rustls::Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. }) = error {
        "the server's certificate is for another host name; use the name it is for".to_owned()
    } else if let rustls::Error::InvalidCertificate(why) = error {
        format!("the server's certificate is not trusted ({why:?}); set broker.tls_ca to the file of its CA")
    } else if let rustls::Error::InvalidMessage(_) = error {
        "the port speaks no TLS; write amqp://".to_owned()
    } else {
        format!("TLS: {error}")
    }
}

#[cfg(test)]
mod tests {
    use lapin::protocol::AMQPError;

    use super::*;

    fn peer() -> Peer {
        let shown = "amqp://me:***@h/team".to_owned();
        Peer { shown, user: "me".to_owned(), vhost: "team".to_owned(), is_tls: false }
    }

    fn said(code: u16, text: &str) -> lapin::Error {
        ErrorKind::ProtocolError(AMQPError::from_id(code, text.into()).unwrap()).into()
    }

    #[test]
    fn what_a_server_refuses_with_has_a_kind_and_a_word() {
        for (code, text, kind, word) in [
            (403, "ACCESS_REFUSED - Login was refused using PLAIN", Kind::Denied, "broker.password"),
            (403, "ACCESS_REFUSED - access to queue 'pq1.dead' in vhost 'team' refused", Kind::Denied, "'pq1.dead'"),
            (530, "NOT_ALLOWED - vhost team not found", Kind::Config, "add_vhost"),
            (530, "NOT_ALLOWED - access to vhost 'team' refused for user 'me'", Kind::Denied, "set_permissions"),
            (530, "NOT_ALLOWED - access to vhost 'team' refused: connection limit (1)", Kind::Unavailable, "no more"),
            (404, "NOT_FOUND - no queue 'pq1.dead' in vhost 'team'", Kind::NotFound, "`promptq queues declare`"),
            (404, "NOT_FOUND - no queue 'pq1.q.a._.low' in vhost", Kind::NotFound, "`promptq queues declare a`"),
            (405, "RESOURCE_LOCKED - cannot obtain exclusive access", Kind::Conflict, "for itself"),
            (406, "PRECONDITION_FAILED - inequivalent arg 'x-max-length'", Kind::Conflict, "other arguments"),
            (406, "PRECONDITION_FAILED - message size 9 is larger than", Kind::TooLarge, "so large"),
            (
                406,
                "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out",
                Kind::Unavailable,
                "timeout",
            ),
            (406, "PRECONDITION_FAILED - unknown delivery tag 3", Kind::Unavailable, "no longer ours"),
            (406, "PRECONDITION_FAILED - invalid arg", Kind::Unsupported, "invalid arg"),
            (320, "CONNECTION_FORCED - shutdown", Kind::Unavailable, "shutdown"),
            (540, "NOT_IMPLEMENTED - immediate=true", Kind::Unsupported, "immediate"),
            (541, "INTERNAL_ERROR", Kind::Unavailable, "INTERNAL_ERROR"),
            (501, "FRAME_ERROR\n- second line", Kind::Unavailable, "FRAME_ERROR - second"),
        ] {
            let error = peer().lift("try", &said(code, text));
            assert_eq!(error.kind(), kind, "{text}");
            let shown = error.to_string();
            assert!(shown.contains(word) && shown.contains("amqp://me:***@h/team"), "{text}: {shown}");
        }
    }

    #[test]
    fn a_lost_connection_may_always_come_back() {
        for error in [said(403, "ACCESS_REFUSED"), said(404, "NOT_FOUND"), ErrorKind::MissingHeartbeatError.into()] {
            assert_eq!(peer().lost("try", &error).kind(), Kind::Unavailable, "{error}");
        }
    }

    #[test]
    fn only_a_message_is_blamed_for_what_messages_do() {
        let named = said(404, "NOT_FOUND - no exchange 'a.b' in vhost 'team'");
        assert_eq!(blame(&named), Blame::Exchange("a.b".to_owned()));
        let nameless = said(403, "ACCESS_REFUSED - write access to exchange 'amq.default' in vhost 'team' refused");
        assert_eq!(blame(&nameless), Blame::Exchange(String::new()));
        assert_eq!(blame(&said(406, "PRECONDITION_FAILED - invalid expiration")), Blame::Someone);
        for innocent in [said(320, "CONNECTION_FORCED"), said(541, "x"), ErrorKind::MissingHeartbeatError.into()] {
            assert_eq!(blame(&innocent), Blame::Nobody);
        }
    }

    #[test]
    fn what_keeps_a_connection_from_being_made_says_how_to_mend_it() {
        let dialled = |error: io::Error| peer().lift_dial("try", &lapin::Error::from(error));
        let broken = |error: rustls::Error| dialled(io::Error::new(io::ErrorKind::InvalidData, error));
        for (error, kind, word) in [
            (dialled(ConnectionRefused.into()), Kind::Unavailable, "start RabbitMQ"),
            (dialled(TimedOut.into()), Kind::TimedOut, "firewall"),
            (dialled(ConnectionReset.into()), Kind::Unavailable, "amqps://"),
            (dialled(io::Error::other("no such host")), Kind::Unavailable, "no such host"),
            (broken(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)), Kind::Config, "broker.tls_ca"),
            (
                broken(rustls::Error::InvalidCertificate(CertificateError::NotValidForName)),
                Kind::Config,
                "another host",
            ),
        ] {
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
