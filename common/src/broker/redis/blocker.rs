//! A connection of its own that waits on lists of wake-up tokens. What a token means is its owner's affair; it is
//! only a hint, so that one swallowed by a dropped wait or a broken connection costs a poll and nothing else.

use std::time::Duration;

use deadpool_redis::redis::aio::MultiplexedConnection;
use deadpool_redis::redis::{self, AsyncConnectionConfig, RedisError, RedisResult};
use rand::RngExt;
use tokio::time::{Instant, sleep_until, timeout};

use super::address::Target;
use super::link::CONNECT;
use crate::error::Result;

const OP: &str = "wait for jobs in Redis";
/// How much later than promised the server's "nothing came" may arrive before the connection counts as dead.
const GRACE: Duration = Duration::from_secs(2);
/// The first and the longest pause before a connection is tried again; doubled in between, each cut by chance to half
/// at the least, so that a fleet does not come back in step.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Waits on lists, one wait at a time.
pub(super) struct Blocker {
    target: Target,
    /// `None` while a wait is on its way: a dropped wait closes its connection, which ends it at the server too.
    idle: Option<MultiplexedConnection>,
    pause: Duration,
    not_before: Instant,
}

impl Blocker {
    pub(super) fn new(target: Target) -> Self {
        Self { target, idle: None, pause: PAUSES.0, not_before: Instant::now() }
    }

    /// The first token in any of `keys`, with the key it came from; `None` after `patience` (1 ms at the least)
    /// without one. After an error the next call waits a little and connects anew. Cancel-safe but for the token.
    pub(super) async fn pop(&mut self, keys: &[Vec<u8>], patience: Duration) -> Result<Option<(Vec<u8>, Vec<u8>)>> {
        sleep_until(self.not_before).await;
        match self.wait(keys, patience).await {
            Ok(token) => {
                self.pause = PAUSES.0;
                Ok(token)
            }
            Err(error) => {
                let share = rand::rng().random_range(0.5..=1.0);
                self.not_before = Instant::now() + self.pause.mul_f64(share);
                self.pause = (self.pause * 2).min(PAUSES.1);
                Err(self.target.peer.lift(OP, &error))
            }
        }
    }

    async fn wait(&mut self, keys: &[Vec<u8>], patience: Duration) -> RedisResult<Option<(Vec<u8>, Vec<u8>)>> {
        let mut connection = match self.idle.take() {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        // 0 would wait for ever.
        let patience = patience.max(Duration::from_millis(1));
        let mut cmd = redis::cmd("BLPOP");
        cmd.arg(keys).arg(format!("{:.3}", patience.as_secs_f64()));
        let token = timeout(patience + GRACE, cmd.query_async(&mut connection))
            .await
            .map_err(|_| RedisError::from(std::io::Error::from(std::io::ErrorKind::TimedOut)))??;
        self.idle = Some(connection);
        Ok(token)
    }

    async fn connect(&self) -> RedisResult<MultiplexedConnection> {
        let config = AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(Some(CONNECT));
        self.target.client.get_multiplexed_async_connection_with_config(&config).await
    }
}

impl std::fmt::Debug for Blocker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blocker").field("at", &self.target.peer.shown).finish_non_exhaustive()
    }
}
