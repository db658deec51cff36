//! The gateway's life: it takes connections, reaches its broker, and leaves in order: no new connections, requests
//! finished, and at the last moment those that are not are answered all the same.

use std::convert::Infallible;
use std::io::Write as _;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use promptq_common::telemetry::health::Health;
use promptq_worker::stop::{Phase, Stop};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OnceCell, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::auth::Rates;
use super::guard::raw;
use super::keyring::Ring;
use super::patient::{Busy, Patient};
use super::room::Room;
use super::waiting::{Looker, waiting};
use super::watched::{self, Watched};
use super::{Gateway, Shared, route};
use crate::command::exporter::named;
use crate::context::Context;
use crate::problem::{Exit, Problem, Result};

/// The most connections; more are told to come again.
const CONNECTIONS: usize = 4_096;
/// A connection without a request is kept for so long: longer than the minute that proxies keep theirs.
const IDLE: Duration = Duration::from_secs(75);
/// What is read ahead of a connection at most, and so of the head of a request; `guard.rs` takes less of it.
const READ_AHEAD: usize = 64 << 10;
/// How long answers of the last moment may take to be sent.
const LAST_MOMENT: Duration = Duration::from_secs(1);
/// Between two tries to reach the broker.
const AGAIN: Duration = Duration::from_secs(1);

/// Serves until it is told to stop and everything is answered.
///
/// # Errors
/// The broker or the store is not usable as configured.
pub async fn serve(cx: Context, listener: TcpListener, (ring, health): (Ring, Health), stop: Stop) -> Result<Exit> {
    raise_limit();
    let is_local = listener.local_addr().is_ok_and(|address| address.ip().to_canonical().is_loopback());
    let (waiting, looker) = waiting();
    let rates = Rates::new(cx.config.gateway.rate_per_key);
    let drain = cx.config.gateway.drain_timeout;
    let (room, broker, watched) = (Room::new(), OnceCell::new(), Watched::new(named(cx.config.broker.url.scheme())));
    let gateway =
        Shared::new(Gateway { cx, broker, ring, is_local, rates, room, waiting, watched, stop: stop.clone() });
    let router = route::router(Shared::clone(&gateway));
    tokio::select! {
        biased;
        signals = stop.on_signals() => signals.map(|()| Exit::Interrupted).map_err(Problem::from),
        () = connections(listener, router, (&stop, &health), drain) => Ok(Exit::Done),
        failed = beside(&gateway, &health, looker) => match failed {
            Err(problem) => Err(problem),
            Ok(never) => match never {},
        },
    }
}

/// Asks for as many open files as this process may have: many systems give it a quarter of [`CONNECTIONS`] unless asked.
fn raise_limit() {
    let most = getrlimit(Resource::Nofile).maximum;
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }) {
        tracing::debug!(%error, "the limit of open files stays as it was");
    }
}

/// What goes on as long as the gateway does.
async fn beside(gateway: &Gateway, health: &Health, looker: Looker) -> Result<Infallible> {
    let clients = async {
        let broker = reach(gateway).await?;
        looker.look(broker).await;
        std::future::pending::<Result<Infallible>>().await
    };
    tokio::select! {
        failed = clients => failed,
        () = gateway.ring.follow() => std::future::pending().await,
        () = watched::tell(gateway, health) => std::future::pending().await,
    }
}

/// Connects to the broker, however long it is away.
async fn reach(gateway: &Gateway) -> Result<&promptq_common::broker::Broker> {
    let mut is_told = false;
    loop {
        match gateway.cx.broker().await {
            Ok(broker) => {
                tracing::info!("the broker is reached");
                return Ok(gateway.broker.get_or_init(async || broker.clone()).await);
            }
            Err(problem) if problem.exit == Exit::Unreachable => {
                if !std::mem::replace(&mut is_told, true) {
                    tracing::warn!(%problem, "the broker cannot be reached; trying on");
                }
                sleep(AGAIN).await;
            }
            Err(problem) => return Err(problem),
        }
    }
}

async fn connections(listener: TcpListener, router: Router, (stop, health): (&Stop, &Health), drain: Duration) {
    let mut open = JoinSet::new();
    let mut phase = stop.watch();
    loop {
        tokio::select! {
            biased;
            _ = phase.wait_for(|phase| *phase >= Phase::Draining) => break,
            Some(_) = open.join_next(), if !open.is_empty() => {}
            taken = listener.accept() => match taken {
                Ok((socket, _)) if open.len() < CONNECTIONS => {
                    open.spawn(connection(socket, router.clone(), stop.watch()));
                }
                Ok((socket, _)) => turn_away(socket),
                Err(error) => {
                    // Out of file descriptors, as a rule: those who leave give some back.
                    tracing::warn!(%error, "cannot take a connection");
                    sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
    drop(listener);
    health.draining();
    tracing::info!(connections = open.len(), "leaving: no new connections");
    let ended = async |open: &mut JoinSet<()>| while open.join_next().await.is_some() {};
    let until = Instant::now() + drain.saturating_sub(LAST_MOMENT);
    tokio::select! {
        () = ended(&mut open) => return,
        () = sleep_until(until) => stop.now(),
    }
    if timeout(LAST_MOMENT, ended(&mut open)).await.is_err() {
        tracing::warn!(connections = open.len(), "left before every client had its answer");
    }
}

/// Says so to one connection too many, as far as that needs no waiting.
fn turn_away(socket: TcpStream) {
    let busy = raw(super::problem::Problem::new("busy", "as many connections are open as may be"));
    drop(socket.into_std().and_then(|mut socket| socket.write(&busy)));
}

async fn connection(socket: TcpStream, router: Router, mut phase: watch::Receiver<Phase>) {
    // An answer is one piece; without this the next request's would wait for its confirmation.
    drop(socket.set_nodelay(true));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(IDLE).max_header_size(READ_AHEAD).max_buf_size(READ_AHEAD);
    let busy = Busy::default();
    let (io, router) = (TokioIo::new(Patient::new(socket, busy.clone())), TowerToHyperService::new(router));
    let served = http.serve_connection(
        io,
        service_fn(move |request| {
            busy.set(true);
            let (busy, answer) = (busy.clone(), router.call(request));
            async move {
                let answer = answer.await;
                busy.set(false);
                answer
            }
        }),
    );
    let mut served = pin!(served);
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = async { drop(phase.wait_for(|phase| *phase >= Phase::Draining).await) } => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke off");
    }
}
