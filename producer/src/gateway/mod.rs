//! The HTTP gateway: jobs in, results out, for programs of any language. Submitting is `submit`'s affair, as it is for
//! commands. Every request passes `guard.rs`; what each route does is a file of its own.

mod auth;
mod batch;
mod body;
mod guard;
mod job;
pub mod key;
pub mod keyring;
mod listen;
mod openapi;
mod patient;
mod problem;
mod query;
mod result;
mod room;
mod route;
mod server;
mod stats;
mod waiting;
mod watched;

use std::sync::Arc;
use std::time::Duration;

use promptq_common::broker::Broker;
use promptq_worker::stop::{Phase, Stop};
use tokio::sync::OnceCell;

pub use listen::listen;
pub use server::serve;

use crate::context::Context;
use auth::Rates;
use keyring::Ring;
use problem::{Problem, Result};
use room::Room;
use waiting::Waiting;
use watched::Watched;

/// What every request works with. Cheap to clone.
pub(crate) type Shared = Arc<Gateway>;

/// A running gateway.
#[derive(Debug)]
pub(crate) struct Gateway {
    cx: Context,
    /// Once it has been reached.
    broker: OnceCell<Broker>,
    ring: Ring,
    /// Whether it listens on loopback alone.
    is_local: bool,
    rates: Rates,
    room: Room,
    waiting: Waiting,
    watched: Watched,
    stop: Stop,
}

/// The longest that the broker may take for one call, its tries counted in: above what a restart of it takes it away for.
const CALL: Duration = Duration::from_secs(30);

impl Gateway {
    /// The broker, if it has been reached.
    fn broker(&self) -> Result<&Broker> {
        let away =
            || Problem::new("unreachable", "the broker has not been reached yet; the same request may succeed later");
        self.broker.get().ok_or_else(away)
    }

    /// Waits for a call, no longer than the gateway may: neither than one may take, nor into its last moment.
    async fn call<T, E: Into<Problem>>(&self, call: impl Future<Output = Result<T, E>>) -> Result<T> {
        let _place = self.room.call()?;
        tokio::select! {
            biased;
            done = call => done.map_err(Into::into),
            () = self.last_moment() => Err(Problem::new("stopping", "the gateway was stopped before the broker answered")),
            () = tokio::time::sleep(CALL) => {
                Err(Problem::new("unreachable", format!("the broker has not answered within {} s", CALL.as_secs())))
            }
        }
    }

    /// Waits for what a client sends, no longer than into the last moment.
    async fn coming<T>(&self, body: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            biased;
            taken = body => taken,
            () = self.last_moment() => Err(Problem::new("stopping", "the gateway was stopped before it was all there")),
        }
    }

    /// When whatever is not answered by now is answered that nobody knows.
    async fn last_moment(&self) {
        self.phase(Phase::Stopping).await;
    }

    /// When the gateway takes no more.
    async fn leaving(&self) {
        self.phase(Phase::Draining).await;
    }

    async fn phase(&self, least: Phase) {
        // It cannot fail: the other end is held here.
        drop(self.stop.watch().wait_for(|phase| *phase >= least).await);
    }
}
