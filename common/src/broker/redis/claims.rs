//! The Redis ledger in the service of another broker: its jobs are entries of the same book that wait nowhere in it.
//! What is new is asked of `scripts/claims.lua`; the rest is what `hold`, `admin` and `sweep` do for jobs of our own.

use std::collections::HashMap;
use std::sync::LazyLock;
use std::time::Duration;

use async_trait::async_trait;
use deadpool_redis::redis::{Value, cmd};
use futures_util::future::{join_all, try_join_all};

use super::admin::{self, one};
use super::enqueue::ADMIT;
use super::gather::Item;
use super::global::{self, everywhere};
use super::hold::{Elsewhere, Tried, claim_from, letter, millis, text, verdict_words};
use super::script::{Script, When};
use super::stored::item;
use super::sweep;
use super::wire::{Places, Seen, end_letter, end_of, prefix, state_of, strange};
use super::{BOOK, Redis, check_count};
use crate::broker::backend::{
    Beat, Cancel, CancelCounts, Claim, Envelope, Head, LeaseId, QueueView, Retention, Settled, Swept, Verdict, WorkerId,
};
use crate::codec;
use crate::error::{Error, Kind, Result};
use crate::job::{BatchName, JobId, Queue};
use crate::ledger::{Announced, Asked, Claims, LedgerId, Opened, Raised, Registered};
use crate::time::Timestamp;

/// Where a process may be made to die besides [`super::CRASH_POINTS`] of settling; see [`crate::crash_point!`].
pub const CRASH_POINTS: &[&str] = &["redis.open.before_call", "redis.open.after_call"];

const TEXT: &str = include_str!("scripts/claims.lua");

/// Entering jobs takes room.
static REGISTER: LazyLock<Script> = LazyLock::new(|| Script::new("register", When::Room, &[BOOK, ADMIT, TEXT]));
/// Whatever a message is opened for makes room in the end.
pub(super) static CLAIMS: LazyLock<Script> =
    LazyLock::new(|| Script::new("claims", When::Always, &[BOOK, ADMIT, TEXT]));

/// How many jobs one script call is about: some milliseconds' work …
const STEP: usize = 200;
/// … and where payloads come back, each of up to 16 MiB.
const RAISED: usize = 10;

#[async_trait]
impl Claims for Redis {
    async fn identity(&self) -> Result<LedgerId> {
        global::identity(&self.link).await
    }

    async fn register(&self, jobs: &[&Head]) -> Result<Vec<Registered>> {
        const OP: &str = "register jobs";
        check_count(OP, jobs.len())?;
        let mut answers: Vec<Option<Registered>> = vec![None; jobs.len()];
        let mut owners: HashMap<&BatchName, Queue> = HashMap::new();
        let mut ours = Vec::with_capacity(jobs.len());
        for (place, head) in jobs.iter().enumerate() {
            let queue = &head.lane.queue;
            if let Some(name) = &head.batch {
                if !owners.contains_key(name) {
                    owners.insert(name, global::claim_batch(&self.link, name, queue).await?);
                }
                if let Some(owner) = owners.get(name).filter(|owner| *owner != queue) {
                    answers[place] = Some(Registered::OtherQueue(owner.clone()));
                    continue;
                }
            }
            ours.push(place);
        }
        let heads: Vec<&Head> = ours.iter().map(|place| jobs[*place]).collect();
        let said = self.ask_all((OP, &REGISTER, "register"), &heads, message).await?;
        for (place, said) in ours.into_iter().zip(said) {
            answers[place] = Some(registered(&one(said)?.text()?)?);
        }
        Ok(answers.into_iter().flatten().collect())
    }

    async fn confirm(&self, jobs: &[&Head]) -> Result<()> {
        check_count("confirm jobs", jobs.len())?;
        self.ask_all(("confirm jobs", &CLAIMS, "confirm"), jobs, |head| Ok(this_epoch(head))).await.map(drop)
    }

    async fn open(&self, job: &Head, asked: &Asked<'_>) -> Result<Opened> {
        self.touch(&job.lane.queue).await?;
        let words = open_words(job, asked)?;
        crate::crash_point!("redis.open.before_call");
        let answer = self.desk.messages.ask(prefix(&job.lane.queue).into(), Item { words, ..Item::default() }).await?;
        crate::crash_point!("redis.open.after_call");
        opened(answer)
    }

    async fn beat(&self, job: &Head, lease: LeaseId, length: Duration) -> Result<Beat> {
        self.desk.beat(prefix(&job.lane.queue).into(), job.id, lease, length).await
    }

    async fn settle(&self, job: &Head, lease: LeaseId, verdict: &Verdict, payload: Option<&[u8]>) -> Result<Settled> {
        let words = verdict_words(&Tried::from(job), lease, verdict, Some(Elsewhere(payload)))?;
        self.desk.settle(prefix(&job.lane.queue).into(), words).await
    }

    async fn open_all(&self, messages: &[(&Head, Asked<'_>)]) -> Vec<Result<Opened>> {
        let mut answers: Vec<Option<Result<Opened>>> = messages.iter().map(|_| None).collect();
        let calls = by_queue(messages.iter().map(|(job, _)| &job.lane.queue));
        let calls = calls.iter().flat_map(|(queue, places)| places.chunks(STEP).map(move |places| (*queue, places)));
        let said = join_all(calls.map(|(queue, places)| async move {
            let asked: Vec<_> = places.iter().map(|place| &messages[*place]).collect();
            let said = self.open_step(queue, &asked).await;
            if said.as_ref().is_ok_and(|said| said.len() == places.len()) {
                return (places, said.into_iter().flatten().collect());
            }
            // One of them may be to blame.
            (places, join_all(asked.into_iter().map(|(job, asked)| self.open(job, asked))).await)
        }))
        .await;
        for (place, answer) in said.into_iter().flat_map(|(places, said): (_, Vec<_>)| places.iter().zip(said)) {
            answers[*place] = Some(answer);
        }
        answers.into_iter().flatten().collect()
    }

    async fn announced(&self, ends: &[Announced]) -> Result<()> {
        let calls = by_queue(ends.iter().map(|told| &told.queue));
        let calls = calls.iter().flat_map(|(queue, places)| places.chunks(STEP).map(move |places| (*queue, places)));
        let words = |place: &usize| {
            let told = &ends[*place];
            ["announced".into(), told.id.as_bytes().to_vec(), text(told.epoch), end_letter(told.end).into()]
        };
        let calls = calls.map(|(queue, places)| {
            let args = places.iter().flat_map(words).collect();
            async move { self.link.call("note announcements", &CLAIMS, &[prefix(queue)], args).await.map(drop) }
        });
        try_join_all(calls).await.map(drop)
    }

    async fn keep(&self, job: &Head, payload: &[u8]) -> Result<bool> {
        if payload.len() > codec::MAX_BYTES {
            let why = format!("{} bytes; at most {}", payload.len(), codec::MAX_BYTES);
            return Err(Error::new(Kind::TooLarge, "keep a payload", why));
        }
        let words = vec!["keep".into(), job.id.as_bytes().to_vec(), text(job.epoch), payload.to_vec()];
        one(self.desk.messages.ask(prefix(&job.lane.queue).into(), Item { words, ..Item::default() }).await?)?.flag()
    }

    async fn raise(&self, ids: &[JobId]) -> Result<Vec<Raised>> {
        const OP: &str = "raise jobs";
        check_count(OP, ids.len())?;
        let mut raised = Vec::with_capacity(ids.len());
        for ids in ids.chunks(RAISED) {
            let mut step = vec![Raised::Unknown; ids.len()];
            let args = ids.iter().flat_map(|id| ["raise".into(), id.as_bytes().to_vec()]).collect();
            for (queue, answers) in everywhere(&self.link, OP, &CLAIMS, args).await? {
                let mut answers = Places::of(answers)?;
                for place in &mut step {
                    let said = raised_from(&queue, answers.list()?)?;
                    if said != Raised::Unknown {
                        *place = said;
                    }
                }
            }
            raised.append(&mut step);
        }
        Ok(raised)
    }

    async fn published(&self, jobs: &[&Head]) -> Result<()> {
        check_count("mark published jobs", jobs.len())?;
        self.ask_all(("mark published jobs", &CLAIMS, "published"), jobs, |head| Ok(this_epoch(head))).await.map(drop)
    }

    async fn cancel(&self, ids: &[JobId], queues: &[Queue]) -> Result<Vec<Cancel>> {
        const OP: &str = "cancel jobs";
        check_count(OP, ids.len())?;
        let mut answers = admin::cancel(self, ids).await?;
        let unknown: Vec<usize> = (0..ids.len()).filter(|place| answers[*place] == Cancel::Unknown).collect();
        for queue in queues {
            self.touch(queue).await?;
            for places in unknown.chunks(STEP) {
                let asked: Vec<JobId> = places.iter().map(|place| ids[*place]).collect();
                for (place, told) in places.iter().zip(self.cancel_unseen(queue, &asked).await?) {
                    // It has come in since: that queue knows.
                    if matches!(answers[*place], Cancel::Unknown | Cancel::Flagged) {
                        answers[*place] = told;
                    }
                }
            }
        }
        Ok(answers)
    }

    async fn cancel_batch(&self, batch: &BatchName) -> Result<CancelCounts> {
        admin::cancel_batch(self, batch).await
    }

    async fn pause(&self, queue: &Queue, reason: Option<&str>) -> Result<()> {
        self.touch(queue).await?;
        admin::pause(self, queue, reason).await
    }

    async fn purge(&self, queue: &Queue) -> Result<u64> {
        self.touch(queue).await?;
        self.link.call("purge", &CLAIMS, &[prefix(queue)], vec!["purge".into()]).await?;
        admin::purge(self, queue).await
    }

    async fn drop_dead(&self, ids: &[JobId]) -> Result<u64> {
        check_count("drop dead jobs", ids.len())?;
        admin::drop_dead(self, ids).await
    }

    async fn forget(&self, jobs: &[(JobId, u32)]) -> Result<u64> {
        check_count("forget jobs", jobs.len())?;
        admin::forget(self, jobs).await
    }

    async fn recover(&self, worker: &WorkerId) -> Result<u64> {
        admin::recover(self, worker).await
    }

    async fn sweep(&self, retention: &Retention) -> Result<Swept> {
        let mut more = false;
        for (_, ended) in everywhere(&self.link, "sweep", &CLAIMS, vec!["reclaim".into(), text(STEP)]).await? {
            more |= Places::of(ended)?.number::<u64>()? >= STEP as u64;
        }
        let mut swept = sweep::sweep(self, retention).await?;
        swept.more |= more;
        Ok(swept)
    }

    async fn now(&self) -> Result<Timestamp> {
        let (seconds, micros): (i64, i64) = self.link.query("read the ledger's clock", &cmd("TIME")).await?;
        Ok(Timestamp::from_millis(seconds.saturating_mul(1_000).saturating_add(micros / 1_000)))
    }

    async fn touch(&self, queue: &Queue) -> Result<()> {
        Self::touch(self, queue).await
    }

    async fn standing(&self, queue: &Queue) -> Result<QueueView> {
        admin::depth(self, queue).await
    }

    async fn standings(&self) -> Result<Vec<QueueView>> {
        admin::queues(self).await
    }
}

impl Redis {
    /// Opens messages of one queue in one call; not all or nothing, but what is answered holds.
    async fn open_step(&self, queue: &Queue, asked: &[&(&Head, Asked<'_>)]) -> Result<Vec<Result<Opened>>> {
        self.touch(queue).await?;
        let mut args = Vec::with_capacity(asked.len() * 6);
        for (job, asked) in asked {
            args.extend(open_words(job, asked)?);
        }
        crate::crash_point!("redis.open.before_call");
        let mut said = Places::of(self.link.call("open messages", &CLAIMS, &[prefix(queue)], args).await?)?;
        crate::crash_point!("redis.open.after_call");
        asked.iter().map(|_| Ok(said.value().and_then(opened))).collect()
    }

    /// Cancels what the queue may not have seen yet.
    async fn cancel_unseen(&self, queue: &Queue, ids: &[JobId]) -> Result<Vec<Cancel>> {
        let life = millis(Retention::standard().tombstones);
        let args = ids.iter().flat_map(|id| ["cancel".into(), id.as_bytes().to_vec(), life.clone()]).collect();
        let mut said = Places::of(self.link.call("cancel jobs", &CLAIMS, &[prefix(queue)], args).await?)?;
        ids.iter().map(|_| cancelled(&said.text()?)).collect()
    }

    /// Asks the queues of these jobs one thing about each; the answers in order.
    async fn ask_all(
        &self,
        (op, script, word): (&'static str, &'static Script, &str),
        jobs: &[&Head],
        words: fn(&Head) -> Result<Vec<Vec<u8>>>,
    ) -> Result<Vec<Value>> {
        let queues = by_queue(jobs.iter().map(|head| &head.lane.queue));
        let calls = queues.iter().map(|(queue, places)| async move {
            self.touch(queue).await?;
            let mut found = Vec::with_capacity(places.len());
            for places in places.chunks(STEP) {
                let mut args = Vec::new();
                for place in places {
                    args.push(word.into());
                    args.extend(words(jobs[*place])?);
                }
                let mut answers = Places::of(self.link.call(op, script, &[prefix(queue)], args).await?)?;
                for place in places {
                    found.push((*place, answers.value()?));
                }
            }
            Ok(found)
        });
        let mut found: Vec<(usize, Value)> = try_join_all(calls).await?.into_iter().flatten().collect();
        found.sort_unstable_by_key(|(place, _)| *place);
        Ok(found.into_iter().map(|(_, value)| value).collect())
    }
}

/// What is asked of each queue, as places.
fn by_queue<'a>(queues: impl Iterator<Item = &'a Queue>) -> HashMap<&'a Queue, Vec<usize>> {
    let mut places: HashMap<&Queue, Vec<usize>> = HashMap::new();
    for (place, queue) in queues.enumerate() {
        places.entry(queue).or_default().push(place);
    }
    places
}

fn open_words(job: &Head, asked: &Asked<'_>) -> Result<Vec<Vec<u8>>> {
    let mut words = Vec::with_capacity(6);
    words.push("open".into());
    words.extend(message(job)?);
    words.extend([asked.lease.as_bytes().to_vec(), asked.worker.as_str().into(), millis(asked.length)]);
    Ok(words)
}

fn opened(answer: Value) -> Result<Opened> {
    if letter(&answer) == b'Y' {
        return Ok(Opened { claim: Claim::Fresh { deaths: 0 }, announce: false, keep: false });
    }
    let mut answer = Places::of(answer)?;
    Ok(Opened { claim: claim_from(&mut answer)?, announce: answer.flag()?, keep: answer.flag()? })
}

fn message(head: &Head) -> Result<Vec<Vec<u8>>> {
    Ok(item(head, &[])?.into())
}

fn this_epoch(head: &Head) -> Vec<Vec<u8>> {
    vec![head.id.as_bytes().to_vec(), text(head.epoch)]
}

fn registered(said: &str) -> Result<Registered> {
    Ok(match said.split_at_checked(1) {
        Some(("N", _)) => Registered::New,
        Some(("A", _)) => Registered::Again,
        Some(("K", state)) => Registered::Known(state_of(state)?),
        Some(("C", _)) => Registered::Conflict,
        _ => return Err(strange("a registration")),
    })
}

fn cancelled(said: &str) -> Result<Cancel> {
    Ok(match said.split_at_checked(1) {
        Some(("E", _)) => Cancel::Ended,
        Some(("F", _)) => Cancel::Flagged,
        Some(("A", end)) => Cancel::Already(end_of(end)?.into()),
        _ => return Err(strange("a cancel")),
    })
}

fn raised_from(queue: &Queue, mut said: Places) -> Result<Raised> {
    Ok(match said.text()?.as_str() {
        "P" => {
            let Seen { head, payload, .. } = Seen::read(queue, said.value()?)?;
            Raised::Publish(Box::new(Envelope { head: Head { not_before: None, ..head }, payload }))
        }
        "R" => Raised::Restored { epoch: said.number()? },
        "W" => Raised::Waiting,
        "S" => Raised::Succeeded,
        "G" => Raised::Gone,
        "U" => Raised::Unknown,
        _ => return Err(strange("a raised job")),
    })
}
