//! Many callers, one script call: what arrived during the previous round trip becomes the next one. No timers, so a
//! caller alone waits for nobody. What is asked and answered is the callers' affair.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use deadpool_redis::redis::Value;
use futures_util::future::join_all;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::link::Link;
use super::script::Script;
use super::wire::{Places, strange};
use crate::error::{Error, Kind, Result};

/// Protocol, section 5: a call is at most this many requests …
const CALL_REQUESTS: usize = 200;
/// … or bytes.
const CALL_BYTES: usize = 1 << 20;
/// How often callers that are only behind are waited for: those of one round of jobs come in the first passes, one for
/// each step to here, and where one more comes in every pass the first would wait for a whole call of them.
const PASSES: usize = 8;

/// Callers of one script that answers each item of its arguments with one item of a list, or one letter of a text, which
/// its caller gets as the letter's number.
#[derive(Debug)]
pub(super) struct Gather {
    op: &'static str,
    asks: mpsc::Sender<Ask>,
    /// Ends with the gather.
    _carrier: Mutex<JoinSet<()>>,
}

/// What a script is told about one item: its share of the first argument, where all items have one of the same length,
/// and arguments of its own.
#[derive(Debug, Default)]
pub(super) struct Item {
    pub(super) fixed: Vec<u8>,
    pub(super) words: Vec<Vec<u8>>,
}

/// One caller's item.
#[derive(Debug)]
struct Ask {
    key: Arc<[u8]>,
    item: Item,
    reply: oneshot::Sender<Result<Value>>,
}

impl Ask {
    fn bytes(&self) -> usize {
        self.item.fixed.len() + self.item.words.iter().map(Vec::len).sum::<usize>()
    }
}

impl Gather {
    /// Starts gathering for `script`; must be called within a runtime.
    pub(super) fn start(link: Link, op: &'static str, script: &'static Script) -> Self {
        let (asks, inbox) = mpsc::channel(CALL_REQUESTS);
        let mut carrier = JoinSet::new();
        carrier.spawn(carry(link, op, script, inbox));
        Self { op, asks, _carrier: Mutex::new(carrier) }
    }

    /// The script's answer to one item under the queue prefix `key`. Dropped before it returns: unknown whether it ran.
    pub(super) async fn ask(&self, key: Arc<[u8]>, item: Item) -> Result<Value> {
        let (reply, answer) = oneshot::channel();
        self.asks.send(Ask { key, item, reply }).await.map_err(|_| gone(self.op))?;
        answer.await.map_err(|_| gone(self.op))?
    }
}

fn gone(op: &'static str) -> Error {
    Error::new(Kind::Closed, op, "the connection to Redis was closed")
}

async fn carry(link: Link, op: &'static str, script: &'static Script, mut inbox: mpsc::Receiver<Ask>) {
    let mut waiting = Vec::new();
    while !waiting.is_empty() || inbox.recv_many(&mut waiting, CALL_REQUESTS).await > 0 {
        all_that_come(&mut waiting, &mut inbox).await;
        let mut bytes = 0;
        let has_room = |ask: &&Ask| {
            let has_room = bytes < CALL_BYTES;
            bytes += ask.bytes();
            has_room
        };
        let count = waiting.iter().take_while(has_room).count();
        let asks: Vec<Ask> = waiting.drain(..count).collect();
        // Most workers have one queue.
        if asks.iter().all(|ask| ask.key == asks[0].key) {
            serve(&link, op, script, asks).await;
            continue;
        }
        let mut groups: HashMap<Arc<[u8]>, Vec<Ask>> = HashMap::new();
        for ask in asks {
            groups.entry(Arc::clone(&ask.key)).or_default().push(ask);
        }
        join_all(groups.into_values().map(|group| serve(&link, op, script, group))).await;
    }
}

/// Waits for callers that could run now and are only behind this one: those of one round of jobs come together.
async fn all_that_come(waiting: &mut Vec<Ask>, inbox: &mut mpsc::Receiver<Ask>) {
    for _ in 0..PASSES {
        let before = waiting.len();
        tokio::task::yield_now().await;
        while waiting.len() < CALL_REQUESTS {
            let Ok(ask) = inbox.try_recv() else { break };
            waiting.push(ask);
        }
        if waiting.len() == before || waiting.len() >= CALL_REQUESTS {
            return;
        }
    }
}

/// One call for the group; when it is refused for something that may be one item's fault, one call for each.
async fn serve(link: &Link, op: &'static str, script: &'static Script, group: Vec<Ask>) {
    match call(link, op, script, &group).await {
        Ok(answers) => {
            for (ask, answer) in group.into_iter().zip(answers) {
                // The caller may have gone; what was done stays done.
                drop(ask.reply.send(Ok(answer)));
            }
        }
        Err(error) if error.is_transient() || group.len() == 1 => {
            for ask in group {
                drop(ask.reply.send(Err(error.shared())));
            }
        }
        Err(_) => {
            for ask in group {
                let answer = call(link, op, script, std::slice::from_ref(&ask)).await;
                drop(ask.reply.send(answer.and_then(|answers| answers.into_iter().next().ok_or_else(|| gone(op)))));
            }
        }
    }
}

async fn call(link: &Link, op: &'static str, script: &'static Script, group: &[Ask]) -> Result<Vec<Value>> {
    let Some(first) = group.first() else { return Ok(Vec::new()) };
    let fixed = group.iter().map(|ask| ask.item.fixed.as_slice()).collect::<Vec<_>>().concat();
    let words = group.iter().flat_map(|ask| ask.item.words.iter().map(Vec::as_slice));
    let args: Vec<&[u8]> = Some(fixed.as_slice()).filter(|fixed| !fixed.is_empty()).into_iter().chain(words).collect();
    let answer = link.call_with(op, script, &[&first.key], &args).await?;
    if let Value::BulkString(letters) = &answer {
        return each_letter(letters, group.len());
    }
    let mut answers = Places::of(answer)?;
    if answers.left() != group.len() {
        return Err(strange("another number of answers"));
    }
    group.iter().map(|_| answers.value()).collect()
}

fn each_letter(letters: &[u8], count: usize) -> Result<Vec<Value>> {
    if letters.len() != count {
        return Err(strange("another number of answers"));
    }
    Ok(letters.iter().map(|letter| Value::Int(i64::from(*letter))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_call_does_not_wait_for_all_when_one_more_always_comes() {
        let (asks, mut inbox) = mpsc::channel(CALL_REQUESTS);
        let mut callers = JoinSet::new();
        callers.spawn(ask_for_ever(asks));
        let mut waiting = Vec::new();
        all_that_come(&mut waiting, &mut inbox).await;
        assert!((1..=2 * PASSES).contains(&waiting.len()), "waited for {} callers", waiting.len());
    }

    async fn ask_for_ever(asks: mpsc::Sender<Ask>) {
        loop {
            let (reply, _) = oneshot::channel();
            let ask = Ask { key: Arc::from([0_u8].as_slice()), item: Item::default(), reply };
            let Ok(()) = asks.send(ask).await else { return };
            tokio::task::yield_now().await;
        }
    }
}
