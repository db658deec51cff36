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

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::io::ErrorKind;
    use std::path::Path;

    use promptq_common::config::{Sources, resolve};
    use tokio::time::{Instant, sleep};

    use super::*;
    use crate::printer::Printer;

    /// One that has reached nothing.
    fn gateway() -> Gateway {
        let read = |_: &Path| Err(ErrorKind::NotFound.into());
        let environment = [("HOME".to_owned(), "/home/me".to_owned())].into();
        let (files, flags, folder) = (Vec::new(), Vec::new(), "/run".into());
        let config = resolve(&Sources { files, environment, flags, folder, read: &read }).unwrap();
        Gateway {
            ring: Ring::open(config.gateway.keys.clone()).unwrap(),
            cx: Context::new(config, Printer::default()),
            broker: OnceCell::new(),
            is_local: true,
            rates: Rates::new(1),
            room: Room::new(),
            waiting: waiting::waiting().0,
            watched: Watched::new("memory"),
            stop: Stop::new(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_broker_that_never_answers_is_waited_for_as_long_as_a_call_may_take() {
        let (gateway, begun) = (gateway(), Instant::now());
        let told = gateway.call(pending::<Result<()>>()).await.unwrap_err();
        assert_eq!((told.status().as_u16(), begun.elapsed()), (503, CALL));
    }

    #[tokio::test(start_paused = true)]
    async fn in_the_last_moment_what_is_there_is_answered_and_nothing_is_waited_for() {
        let gateway = gateway();
        let slow = async || {
            sleep(Duration::from_secs(1)).await;
            Ok::<_, Problem>(7)
        };
        gateway.stop.drain();
        assert_eq!((gateway.call(slow()).await.unwrap(), gateway.coming(slow()).await.unwrap()), (7, 7));
        gateway.stop.now();
        assert_eq!(gateway.call(async { Ok::<_, Problem>(7) }).await.unwrap(), 7);
        let begun = Instant::now();
        for told in [gateway.call(slow()).await, gateway.coming(slow()).await] {
            assert!(told.unwrap_err().body().contains("\"code\":\"stopping\""));
        }
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }
}
