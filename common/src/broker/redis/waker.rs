//! Wakes an idle subscription: waits at the server for a token, and gives back one that comes when nobody is idle here.
//! A token is a hint; whoever misses one looks by itself a little later.

use std::sync::Mutex;
use std::time::Duration;

use deadpool_redis::redis::cmd;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::link::Link;

/// How long one wait at the server lasts: an idle worker costs a command in this time.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a token says.
#[derive(Debug)]
pub(super) struct Token {
    /// The prefix of the queue it was left in.
    pub(super) key: Vec<u8>,
    /// How often it may still be handed on.
    pub(super) hops: u32,
}

/// The tokens of a subscription's queues, taken only while somebody waits for one.
#[derive(Debug)]
pub(super) struct Waker {
    idle: watch::Sender<bool>,
    tokens: mpsc::Receiver<Token>,
    /// Ends with the waker.
    _waiting: Mutex<JoinSet<()>>,
}

/// Somebody waits, until this is dropped.
struct Idle<'a>(&'a watch::Sender<bool>);

impl Drop for Idle<'_> {
    fn drop(&mut self) {
        self.0.send_replace(false);
    }
}

impl Waker {
    /// For queues with these prefixes; must be called within a runtime.
    pub(super) fn start(link: Link, prefixes: Vec<Vec<u8>>) -> Self {
        let (idle, asked) = watch::channel(false);
        // One: others stay at the server, for whoever is idle, until this one was looked at.
        let (found, tokens) = mpsc::channel(1);
        let mut waiting = JoinSet::new();
        waiting.spawn(wait(link, prefixes, asked, found));
        Self { idle, tokens, _waiting: Mutex::new(waiting) }
    }

    /// The next token. Cancel-safe.
    pub(super) async fn token(&mut self) -> Option<Token> {
        self.idle.send_replace(true);
        let _idle = Idle(&self.idle);
        self.tokens.recv().await
    }
}

async fn wait(link: Link, prefixes: Vec<Vec<u8>>, mut asked: watch::Receiver<bool>, found: mpsc::Sender<Token>) {
    let mut keys: Vec<Vec<u8>> = prefixes.iter().map(|prefix| token_key(prefix)).collect();
    let mut blocker = link.blocker();
    loop {
        let Ok(place) = found.reserve().await else { return };
        if asked.wait_for(|idle| *idle).await.is_err() {
            return;
        }
        // A lost connection is the blocker's to mend; meanwhile the subscription looks by itself.
        let Ok(Some((key, value))) = blocker.pop(&keys, PATIENCE).await else { continue };
        // The server looks at them in this order: whoever had its turn is looked at last.
        let after = keys.iter().position(|each| *each == key).map_or(0, |place| place + 1);
        keys.rotate_left(after);
        let hops: u32 = std::str::from_utf8(&value).ok().and_then(|text| text.parse().ok()).unwrap_or(1);
        let is_idle = *asked.borrow();
        if is_idle {
            let prefix = key.strip_suffix(WAKE.as_slice()).unwrap_or(&key).to_vec();
            place.send(Token { key: prefix, hops });
        } else if hops > 1 {
            let back: Result<i64, _> = link.query("hand a token on", cmd("RPUSH").arg(&key).arg(hops - 1)).await;
            if let Err(error) = back {
                tracing::debug!(%error, "a token could not be handed on; others look by themselves");
            }
        }
    }
}

const WAKE: &[u8; 5] = b":wake";

fn token_key(prefix: &[u8]) -> Vec<u8> {
    [prefix, WAKE].concat()
}
