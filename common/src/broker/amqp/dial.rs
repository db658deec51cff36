//! One connection: how it is made, what becomes of it, how it is closed. Runs on the link's own thread, and whatever
//! way it is left, its socket is shut, so that the driver's thread behind it ends too.

use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::{FutureExt, Stream, StreamExt};
use lapin::{AsyncTcpStream, Connection, ConnectionProperties, Event};
use rand::RngExt;
use tokio::time::{sleep, timeout};

use super::address::{OP, Target};
use crate::error::{Error, Result};

/// For name, TCP, TLS and login together; a server in order needs milliseconds.
pub(super) const CONNECT: Duration = Duration::from_secs(10);
/// A server in order says goodbye at once, and one that is not is not waited for.
pub(super) const CLOSE: Duration = Duration::from_secs(2);
/// How often the state is looked at besides what is told: a close without an error is not told.
const LOOK: Duration = Duration::from_secs(1);
/// A server that restarts is back after seconds; one that does so under a whole fleet must not be met by all at once.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// An open connection.
pub(super) struct Line {
    connection: Arc<Connection>,
    events: Pin<Box<dyn Stream<Item = Event>>>,
    _socket: Cut,
}

/// What is new about a connection.
pub(super) enum News {
    /// The server takes nothing, for this reason.
    Blocked(String),
    /// It takes what is published again.
    Unblocked,
    /// It is gone.
    Lost(Error),
}

impl Line {
    /// Connects once. `role` is what the server's list of connections shows it as.
    ///
    /// # Errors
    /// `Config` for login, virtual host and certificates; `Unavailable` or `TimedOut` when it may work later.
    pub(super) async fn dial(target: &Target, role: &str) -> Result<Self> {
        // Of the thread it is called on: the driver's heartbeat runs there.
        let runtime = lapin::runtime::default_runtime().map_err(|error| target.peer.lift_dial(OP, &error))?;
        let socket = Cut(Arc::default());
        let (tls, held, user) = (target.tls.clone(), Arc::clone(&socket.0), target.users.clone());
        let connecting = Connection::connector(
            target.uri.clone(),
            runtime,
            async move |uri, runtime| {
                // Goes with what is called here, which is with the driver's thread.
                let _user = &user;
                let (host, port) = (uri.authority.host, uri.authority.port);
                let connecting = async {
                    let address = runtime.to_socket_addrs((host.clone(), port));
                    let stream = AsyncTcpStream::connect(&runtime, address).await?;
                    if let AsyncTcpStream::Plain(plain) = &stream {
                        hold(&held, plain.get_ref().as_fd().try_clone_to_owned()?.into());
                    }
                    match &tls {
                        None => Ok(stream),
                        Some(tls) => stream.into_rustls(tls, &host).await,
                    }
                };
                // Here too, as this goes on when nobody waits for it any more.
                let in_time = timeout(CONNECT, connecting).await;
                Ok(in_time.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))?)
            },
            properties(role),
        );
        match timeout(CONNECT, connecting).await {
            Ok(Ok(connection)) => {
                let events = Box::pin(connection.events_listener());
                Ok(Self { connection: Arc::new(connection), events, _socket: socket })
            }
            Ok(Err(error)) => Err(target.peer.lift_dial(OP, &error)),
            Err(_) => Err(target.peer.silent(OP)),
        }
    }

    /// Connects again, for as long as it takes. Tells in the log why it fails, each reason once.
    pub(super) async fn redial(target: &Target, role: &str) -> Self {
        let (mut pause, mut told) = (BACKOFF.0, String::new());
        loop {
            let share = rand::rng().random_range(0.5..=1.0);
            sleep(pause.mul_f64(share)).await;
            match Self::dial(target, role).await {
                Ok(line) => {
                    tracing::info!("{}: connected again ({role})", target.peer.shown);
                    return line;
                }
                Err(error) => {
                    let why = error.to_string();
                    if why != told {
                        tracing::warn!("{why}; trying again");
                    }
                    told = why;
                }
            }
            pause = BACKOFF.1.min(pause * 2);
        }
    }

    pub(super) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// Waits for news of it. Cancel-safe.
    pub(super) async fn news(&mut self, target: &Target) -> News {
        loop {
            if !self.connection.status().connected() {
                return News::Lost(self.obituary(target));
            }
            match timeout(LOOK, self.events.next()).await {
                Ok(Some(Event::ConnectionBlocked(why))) => return News::Blocked(why),
                Ok(Some(Event::ConnectionUnblocked)) => return News::Unblocked,
                Ok(Some(Event::Error(error))) if !self.connection.status().connected() => {
                    return News::Lost(target.peer.lost(LOST, &error));
                }
                // A channel's error is its owner's affair.
                Ok(Some(_)) | Err(_) => {}
                Ok(None) => return News::Lost(self.obituary(target)),
            }
        }
    }

    /// Says goodbye, if the server still listens.
    pub(super) async fn close(self) {
        let status = self.connection.status();
        // What blocks, blocks the goodbye too.
        if status.connected() && !status.blocked() {
            let goodbye = timeout(CLOSE, self.connection.close(200, "bye".into())).await;
            if !matches!(goodbye, Ok(Ok(()))) {
                tracing::debug!("a connection to RabbitMQ did not close in order");
            }
        }
    }

    /// The last that was told before it ended.
    fn obituary(&mut self, target: &Target) -> Error {
        let mut last = None;
        while let Some(Some(event)) = self.events.next().now_or_never() {
            if let Event::Error(error) = event {
                last = Some(error);
            }
        }
        let closed = || lapin::ErrorKind::InvalidConnectionState(lapin::ConnectionState::Closed).into();
        target.peer.lost(LOST, &last.unwrap_or_else(closed))
    }
}

pub(super) const LOST: &str = "talk to RabbitMQ";

fn properties(role: &str) -> ConnectionProperties {
    let name = format!("promptq {} {role}", crate::config::host());
    ConnectionProperties::default()
        .with_connection_name(name.into())
        .with_client_property("product".into(), "promptq".into())
        .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into())
}

/// The socket of a connection, shut when this is dropped.
struct Cut(Arc<Mutex<Socket>>);

#[derive(Default)]
enum Socket {
    /// Not connected yet.
    #[default]
    Awaited,
    Held(TcpStream),
    /// Nobody waits for it any more.
    Unwanted,
}

fn hold(socket: &Mutex<Socket>, stream: TcpStream) {
    let mut held = socket.lock().unwrap_or_else(PoisonError::into_inner);
    if matches!(*held, Socket::Unwanted) {
        shut(&stream);
    } else {
        *held = Socket::Held(stream);
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Socket::Held(stream) = std::mem::replace(&mut *held, Socket::Unwanted) {
            shut(&stream);
        }
    }
}

fn shut(stream: &TcpStream) {
    if let Err(error) = stream.shutdown(Shutdown::Both) {
        tracing::trace!("a socket was shut before: {error}");
    }
}
