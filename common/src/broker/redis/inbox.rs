//! The inbox of a queue: lines that foreign clients pushed become jobs here, each taken out and put in by one script, so
//! that a death between neither loses nor doubles one. What a line may say is `broker/foreign.rs`.

use std::sync::LazyLock;

use deadpool_redis::redis::cmd;

use super::enqueue::ADMIT;
use super::hold::text;
use super::link::Link;
use super::script::{Script, When};
use super::stored::item;
use super::wire::{Places, prefix};
use super::{BOOK, global};
use crate::broker::backend::Envelope;
use crate::broker::foreign::{Arrival, KEPT_BYTES};
use crate::codec;
use crate::error::Result;
use crate::job::{JobId, Queue};
use crate::result_line::announcement;
use crate::time::Timestamp;

static LOOK: LazyLock<Script> =
    LazyLock::new(|| Script::new("inbox_look", When::Always, &[include_str!("scripts/inbox_look.lua")]));
static TAKE: LazyLock<Script> =
    LazyLock::new(|| Script::new("inbox", When::Room, &[BOOK, ADMIT, include_str!("scripts/inbox.lua")]));

/// A script keeps everybody else waiting: at most this many lines a call …
const CALL_LINES: usize = 200;
/// … or bytes of them, unless one alone is longer.
const CALL_BYTES: usize = 1 << 20;

/// A line as it stands in the inbox.
#[derive(Debug)]
pub(super) struct Standing {
    digest: Vec<u8>,
    arrival: Arrival,
    /// Whether its id follows from what it says, so that a repeat is the same job.
    derived: bool,
}

/// Takes in the lines at the head of the inbox, and says how many. What stays is met by the next call.
pub(super) async fn take_in(link: &Link, queue: &Queue) -> Result<usize> {
    let standing = look(link, queue).await?;
    if standing.is_empty() {
        return Ok(0);
    }
    // Long after it was subscribed to, a queue that nobody used may be on no list any more.
    global::touch(link, queue).await?;
    let mut answers = take(link, queue, &standing).await?;
    let mut taken = answers.iter().filter(|answer| *answer != "C").count();
    if let Some(conflict) = answers.iter().position(|answer| answer == "C") {
        // The lines before it are gone, so it is the first one now.
        let stands = standing.into_iter().nth(conflict).map(Standing::conflicting);
        answers = take(link, queue, stands.as_slice()).await?;
        taken += answers.len();
    }
    tracing::debug!(queue = queue.as_str(), taken, "took in jobs of foreign clients");
    Ok(taken)
}

/// Takes in all that stands in the inbox now.
pub(super) async fn take_all(link: &Link, queue: &Queue) -> Result<()> {
    let key = [prefix(queue), b":inbox".to_vec()].concat();
    let mut left: usize = link.query("look into an inbox", cmd("LLEN").arg(key)).await?;
    while left > 0 {
        match take_in(link, queue).await? {
            0 => break,
            taken => left = left.saturating_sub(taken),
        }
    }
    Ok(())
}

pub(super) async fn look(link: &Link, queue: &Queue) -> Result<Vec<Standing>> {
    let args = [CALL_LINES, CALL_BYTES, codec::MAX_BYTES, KEPT_BYTES].map(text).to_vec();
    let mut found = Places::of(link.call("look into an inbox", &LOOK, &[prefix(queue)], args).await?)?;
    let now = Timestamp::now();
    let mut standing = Vec::with_capacity(found.left() / 3);
    while found.left() > 0 {
        let (digest, bytes, content) = (found.bytes()?, found.number::<usize>()?, found.bytes()?);
        let arrival = if bytes > codec::MAX_BYTES {
            Arrival::too_large(&content, bytes, queue, now)
        } else {
            Arrival::read(&content, queue, now)
        };
        let derived = arrival.envelope.head.keyed;
        standing.push(Standing { digest, arrival, derived });
    }
    Ok(standing)
}

impl Standing {
    fn conflicting(self) -> Self {
        Self { arrival: self.arrival.conflicting(JobId::fresh(), Timestamp::now()), derived: false, ..self }
    }

    fn args(&self) -> Result<Vec<Vec<u8>>> {
        let (body, code, told) = match &self.arrival.dead {
            Some(record) => {
                let code = record.cause.as_ref().map(|cause| cause.code.clone()).unwrap_or_default();
                (codec::encode_record(record)?, code, announcement(record))
            }
            None => (Vec::new(), String::new(), String::new()),
        };
        let mut args =
            vec![self.digest.clone(), text(u8::from(self.derived)), body, code.into_bytes(), told.into_bytes()];
        let Envelope { head, payload } = &self.arrival.envelope;
        args.extend(item(head, payload)?);
        Ok(args)
    }
}

/// What became of each, as far as the lines were still there.
pub(super) async fn take(link: &Link, queue: &Queue, standing: &[Standing]) -> Result<Vec<String>> {
    let mut args = Vec::new();
    for line in standing {
        args.extend(line.args()?);
    }
    crate::crash_point!("redis.inbox.before_call");
    let answer = link.call("take jobs out of an inbox", &TAKE, &[prefix(queue)], args).await?;
    crate::crash_point!("redis.inbox.after_call");
    let mut places = Places::of(answer)?;
    std::iter::from_fn(|| (places.left() > 0).then(|| places.text())).collect()
}
