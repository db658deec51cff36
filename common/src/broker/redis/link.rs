//! Calls to one Redis server over a few connections that all callers share. Repeats by itself only what certainly did
//! not run: a script the server does not know. Everything else is the caller's to repeat, with its own patience.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use deadpool_redis::redis::aio::MultiplexedConnection;
use deadpool_redis::redis::{self, AsyncConnectionConfig, Cmd, FromRedisValue, RedisError, RedisResult, Value};
use deadpool_redis::{Connection, Manager, Pool, Runtime};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::address::{OP, Target};
use super::blocker::Blocker;
use super::check;
use super::fault::{Peer, breaks, is_unknown_script};
use super::script::Script;
use crate::broker::Access;
use crate::error::{Error, Kind, Result};

/// So that a large answer on its way does not hold up every other call; more would only spread what one connection
/// sends in one piece.
const LINES: usize = 3;
/// A script over a full batch takes milliseconds; a server that is silent for so long is in trouble, and what was
/// called may have run. The driver's own 500 ms would give up on any busy server.
pub(super) const RESPONSE: Duration = Duration::from_secs(10);
pub(super) const CONNECT: Duration = Duration::from_secs(5);
/// A connection that answered nothing for so long is asked for a sign of life before it is trusted with a call:
/// servers and firewalls close idle ones, which the driver notices only by failing.
const STALE: Duration = Duration::from_secs(5);

/// The way to a Redis server. Cheap to clone; its connections are shared by all clones and made when needed.
#[derive(Clone)]
pub(super) struct Link(Arc<Shared>);

struct Shared {
    target: Target,
    /// Makes connections, and tries idle ones before they are used again.
    pool: Pool,
    lines: [Line; LINES],
    /// Numbers the connections.
    made: AtomicU64,
    /// What `Line::answered` counts from.
    started: Instant,
    /// Calls that may have changed what was said of leases, and calls that failed.
    turns: AtomicU64,
    /// What [`Link::tell`] has not said yet.
    untold: std::sync::Mutex<Option<String>>,
}

/// One connection's place, and the way back to it after it broke.
#[derive(Default)]
struct Line {
    state: Mutex<State>,
    in_flight: AtomicUsize,
    /// The highest number of a connection of this line that broke.
    broken: AtomicU64,
    /// When it last answered, in milliseconds since the start.
    answered: AtomicU64,
}

#[derive(Default)]
struct State {
    held: Option<(u64, Connection)>,
    /// Why the last attempt to connect failed, and when it ended.
    failed: Option<(Instant, RedisError)>,
}

impl Link {
    /// Connects, and looks at the server: version, eviction, durability.
    ///
    /// # Errors
    /// `Config` or `Unsupported` for what a person has to mend; `Unavailable` or `TimedOut` when it may work later.
    pub(super) async fn connect(access: &Access) -> Result<Self> {
        let link = Self::new(Target::new(access).await?)?;
        let survey = check::look(&link).await?;
        *link.0.untold.lock().unwrap_or_else(PoisonError::into_inner) = survey.admit(access)?;
        Ok(link)
    }

    /// Says in the log, once, what the server's word is worth when that is less than it seems: for those who are about
    /// to rely on it.
    pub(super) fn tell(&self) {
        if let Some(worth) = self.0.untold.lock().unwrap_or_else(PoisonError::into_inner).take() {
            tracing::warn!("{worth}");
        }
    }

    /// Connects to nothing yet.
    pub(super) fn new(target: Target) -> Result<Self> {
        let unusable = |error: &dyn fmt::Display| Error::new(Kind::Config, OP, error.to_string());
        let config =
            AsyncConnectionConfig::new().set_response_timeout(Some(RESPONSE)).set_connection_timeout(Some(CONNECT));
        let manager = Manager::new_with_config(target.info(), config).map_err(|error| unusable(&error))?;
        let pool = Pool::builder(manager)
            .max_size(LINES)
            .runtime(Runtime::Tokio1)
            .recycle_timeout(Some(CONNECT))
            .build()
            .map_err(|error| unusable(&error))?;
        Ok(Self(Arc::new(Shared {
            target,
            pool,
            lines: Default::default(),
            made: AtomicU64::new(1),
            started: Instant::now(),
            turns: AtomicU64::new(0),
            untold: std::sync::Mutex::default(),
        })))
    }

    /// Runs a script; one that the server does not know (restarted, flushed) is sent whole.
    ///
    /// After `Unavailable` and `TimedOut` it may have run or not. Dropping the future does not keep it from running.
    pub(super) async fn call(
        &self,
        op: &'static str,
        script: &'static Script,
        keys: &[Vec<u8>],
        args: Vec<Vec<u8>>,
    ) -> Result<Value> {
        let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
        self.call_with(op, script, &keys, &args.iter().map(Vec::as_slice).collect::<Vec<_>>()).await
    }

    /// As [`Self::call`], of arguments that stay the caller's.
    pub(super) async fn call_with(
        &self,
        op: &'static str,
        script: &'static Script,
        keys: &[&[u8]],
        args: &[&[u8]],
    ) -> Result<Value> {
        let known = command("EVALSHA", &script.sha, keys, args);
        let call = async |mut connection: MultiplexedConnection| {
            let answer = known.query_async(&mut connection).await;
            if !answer.as_ref().is_err_and(is_unknown_script) {
                return answer;
            }
            tracing::debug!(script = script.name, "the Redis server does not know a script; sending it whole");
            // In one command: scripts flushed between its loading and its running would stop a large call for ever.
            command("EVAL", &script.text, keys, args).query_async(&mut connection).await
        };
        let answer = self.on_a_line(call).await;
        if answer.is_err() || !script.is_everyday() {
            self.turn();
        }
        answer.map_err(|error| self.peer().lift(op, &error))
    }

    /// Another number as soon as this process has called for, and heard of, anything that may have changed what it was
    /// told of leases before.
    pub(super) fn turns(&self) -> u64 {
        self.0.turns.load(Relaxed)
    }

    fn turn(&self) {
        self.0.turns.fetch_add(1, Relaxed);
    }

    /// Runs one command.
    ///
    /// # Errors
    /// Also `Corrupt` when the answer is not a `T`.
    pub(super) async fn query<T: FromRedisValue>(&self, op: &'static str, cmd: &Cmd) -> Result<T> {
        let call = async |mut connection: MultiplexedConnection| cmd.query_async(&mut connection).await;
        let value = self.on_a_line(call).await;
        self.turn();
        let value: Value = value.map_err(|error| self.peer().lift(op, &error))?;
        T::from_redis_value(value).map_err(|error| self.peer().unexpected(op, &error.to_string()))
    }

    /// Runs commands in order in one round trip, others' in between: one answer each.
    ///
    /// # Errors
    /// Of the whole when nothing is known of any of them.
    pub(super) async fn pipe(&self, op: &'static str, cmds: &[Cmd]) -> Result<Vec<Result<Value>>> {
        if cmds.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipeline = redis::Pipeline::with_capacity(cmds.len());
        for cmd in cmds {
            pipeline.add_command(cmd.clone());
        }
        pipeline.ignore_errors();
        let call = async |mut connection: MultiplexedConnection| {
            pipeline.query_async::<Vec<RedisResult<Value>>>(&mut connection).await
        };
        let answers = self.on_a_line(call).await;
        self.turn();
        let answers = answers.map_err(|error| self.peer().lift(op, &error))?;
        Ok(answers.into_iter().map(|answer| answer.map_err(|error| self.peer().lift(op, &error))).collect())
    }

    /// A connection of its own for waiting on lists; connects when first asked.
    pub(super) fn blocker(&self) -> Blocker {
        Blocker::new(self.0.target.clone())
    }

    pub(super) fn peer(&self) -> &Peer {
        &self.0.target.peer
    }

    async fn on_a_line<T>(&self, call: impl AsyncFnOnce(MultiplexedConnection) -> RedisResult<T>) -> RedisResult<T> {
        let line = self.0.least_busy();
        let _counted = InFlight::on(line);
        let (number, connection) = self.0.connection(line).await?;
        let answer = call(connection).await;
        match &answer {
            Err(error) if breaks(error) => _ = line.broken.fetch_max(number, Relaxed),
            Ok(_) | Err(_) => line.answered.store(self.0.millis(), Relaxed),
        }
        answer
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Link").field(&self.peer().shown).finish()
    }
}

impl Shared {
    /// The first line with the fewest calls in flight: whoever calls one at a time stays on one connection.
    fn least_busy(&self) -> &Line {
        let [first, others @ ..] = &self.lines;
        others.iter().fold(
            first,
            |best, line| {
                if line.in_flight.load(Relaxed) < best.in_flight.load(Relaxed) { line } else { best }
            },
        )
    }

    /// The line's connection, made or tried anew where that is due. Callers that wait for the same attempt share its
    /// failure. Cancel-safe.
    async fn connection(&self, line: &Line) -> RedisResult<(u64, MultiplexedConnection)> {
        let asked = Instant::now();
        let mut state = line.state.lock().await;
        if let Some((at, error)) = &state.failed
            && *at >= asked
        {
            return Err(error.clone());
        }
        if let Some((number, connection)) = state.held.take() {
            let quiet = Duration::from_millis(self.millis().saturating_sub(line.answered.load(Relaxed)));
            if number <= line.broken.load(Relaxed) {
                // Out of the pool, which would try it again.
                drop(Connection::take(connection));
            } else if quiet < STALE || line.in_flight.load(Relaxed) > 1 {
                let shared = connection.clone();
                state.held = Some((number, connection));
                return Ok((number, shared));
            }
        }
        match self.pool.get().await {
            Ok(connection) => {
                let number = self.made.fetch_add(1, Relaxed);
                let shared = MultiplexedConnection::clone(&connection);
                line.answered.store(self.millis(), Relaxed);
                *state = State { held: Some((number, connection)), failed: None };
                Ok((number, shared))
            }
            Err(error) => {
                let error = Peer::lift_pool(error);
                state.failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Counts one call on a line for as long as it lives.
struct InFlight<'a>(&'a AtomicUsize);

impl<'a> InFlight<'a> {
    fn on(line: &'a Line) -> Self {
        line.in_flight.fetch_add(1, Relaxed);
        Self(&line.in_flight)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

fn command(name: &str, script: &str, keys: &[&[u8]], args: &[&[u8]]) -> Cmd {
    let bytes = keys.iter().chain(args).map(|word| word.len()).sum::<usize>();
    let mut cmd = Cmd::with_capacity(3 + keys.len() + args.len(), 64 + script.len() + bytes);
    cmd.arg(name).arg(script).arg(keys.len()).arg(keys).arg(args);
    cmd
}
