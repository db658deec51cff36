//! The Redis ledger: each question is a script call or a plain command. Lists are `list`, batches and the dead set
//! `account`; what belongs to no queue `global`.

use std::sync::LazyLock;
use std::time::Duration;

use async_trait::async_trait;
use deadpool_redis::redis::{Value, cmd};

use super::admin::{asked, one};
use super::global::{self, act, everywhere};
use super::hold::{millis, text};
use super::script::Script;
use super::wire::{Places, Seen, prefix, state_of, strange};
use super::{BOOK, Redis, account, admin, book_script, check_count, list};
use crate::broker::WorkerId;
use crate::error::{Error, Kind, Result};
use crate::job::{BatchName, Fingerprint, JobId, Queue};
use crate::ledger::{
    BatchView, Cursor, DeadGroup, JobFilter, JobView, KeptLimit, Known, Ledger, Page, RESULT_BYTES, Results, Scope,
    WorkerReport, check_limit,
};
use crate::time::Timestamp;

pub(super) static READ: LazyLock<Script> = book_script!("read");

/// The longest name of a lock, in characters.
const LOCK_NAME: usize = 200;
/// The largest note, in bytes.
const NOTE: usize = 64 << 10;
/// How many jobs one script call looks up: their records, of up to 64 KiB each where there is a store, come along.
const FETCHED: usize = 100;

#[async_trait]
impl Ledger for Redis {
    async fn known(&self, keys: &[(JobId, Fingerprint)]) -> Result<Vec<Known>> {
        const OP: &str = "look up known jobs";
        check_count(OP, keys.len())?;
        let ids: Vec<JobId> = keys.iter().map(|(id, _)| *id).collect();
        let mut known = vec![Known::New; keys.len()];
        for (_, answer) in everywhere(&self.link, OP, &READ, asked("known", &ids)).await? {
            let mut answers = Places::of(answer)?;
            for (place, (_, fingerprint)) in known.iter_mut().zip(keys) {
                if let Some(found) = known_from(&answers.bytes()?, *fingerprint)? {
                    *place = found;
                }
            }
        }
        Ok(known)
    }

    async fn fetch(&self, ids: &[JobId]) -> Result<Vec<Option<JobView>>> {
        let mut found = Vec::with_capacity(ids.len());
        for ids in ids.chunks(FETCHED) {
            let mut views = vec![None; ids.len()];
            for (queue, answer) in everywhere(&self.link, "fetch jobs", &READ, asked("fetch", ids)).await? {
                let mut answer = Places::of(answer)?;
                let paused = Some(answer.text()?).filter(|reason| !reason.is_empty());
                let mut jobs = answer.list()?;
                for view in &mut views {
                    if let Value::Array(job) = jobs.value()? {
                        let mut job = Places::of(Value::Array(job))?;
                        let state = state_of(&job.text()?)?;
                        *view = Some(Seen::read(&queue, job.value()?)?.into_view(state, paused.clone())?);
                    }
                }
            }
            found.append(&mut views);
        }
        Ok(found)
    }

    async fn payload(&self, id: JobId) -> Result<Option<Vec<u8>>> {
        for (_, answer) in everywhere(&self.link, "read a job", &READ, asked("payload", &[id])).await? {
            let payload = one(answer)?.bytes()?;
            if !payload.is_empty() {
                return Ok(Some(payload));
            }
        }
        Ok(None)
    }

    async fn list(&self, filter: &JobFilter, cursor: Option<&str>, limit: usize) -> Result<Page<JobView>> {
        check_count("list jobs", limit)?;
        list::list(&self.link, filter, cursor, limit.max(1)).await
    }

    async fn results(&self, scope: &Scope, cursor: Cursor, limit: usize) -> Result<Results> {
        const OP: &str = "read results";
        check_count(OP, limit)?;
        let (queue, batch) = match scope {
            Scope::Queue(queue) => (queue.clone(), ""),
            Scope::Batch(name) => match global::owner(&self.link, name).await? {
                Some(queue) => (queue, name.as_str()),
                None => return Ok(Results { next: cursor, ..Results::default() }),
            },
        };
        let args = vec!["results".into(), batch.into(), text(cursor.0), text(limit.max(1)), text(RESULT_BYTES)];
        let mut answer = Places::of(self.link.call(OP, &READ, &[prefix(&queue)], args).await?)?;
        let (next, more, mut rows) = (Cursor(answer.number()?), answer.flag()?, answer.list()?);
        let mut page = Results { records: Vec::with_capacity(rows.left()), next, more };
        while rows.left() > 0 {
            let mut row = rows.list()?;
            let place = Cursor(row.number()?);
            let record =
                Seen::read(&queue, row.value()?)?.record()?.ok_or_else(|| strange("a job without a record"))?;
            page.records.push((place, record));
        }
        Ok(page)
    }

    async fn batch(&self, name: &BatchName) -> Result<Option<BatchView>> {
        account::batch(&self.link, name).await
    }

    async fn batches(&self, limit: usize) -> Result<Vec<BatchView>> {
        account::batches(&self.link, limit).await
    }

    async fn seal(&self, name: &BatchName, queue: &Queue) -> Result<()> {
        let owner = global::claim_batch(&self.link, name, queue).await?;
        if owner != *queue {
            let why = format!("batch {name} belongs to queue {owner}");
            return Err(Error::new(Kind::Conflict, "seal a batch", why));
        }
        global::touch(&self.link, queue).await?;
        admin::seal(&self.link, name, queue).await
    }

    async fn dead_groups(&self, queue: Option<&Queue>) -> Result<Vec<DeadGroup>> {
        account::dead_groups(&self.link, queue).await
    }

    async fn report(&self, worker: &WorkerReport) -> Result<()> {
        const OP: &str = "report a worker";
        let body = serde_json::to_vec(worker)
            .map_err(|error| Error::new(Kind::Corrupt, OP, "the report cannot be written down").because(error))?;
        act(&self.link, OP, vec!["report".into(), worker.id.as_str().into(), body]).await.map(drop)
    }

    async fn leave(&self, worker: &WorkerId) -> Result<()> {
        act(&self.link, "forget a worker", vec!["leave".into(), worker.as_str().into()]).await.map(drop)
    }

    async fn workers(&self) -> Result<Vec<WorkerReport>> {
        let mut found = Places::of(act(&self.link, "list workers", vec!["workers".into()]).await?)?;
        let mut reports: Vec<WorkerReport> = Vec::with_capacity(found.left());
        while found.left() > 0 {
            // A report of another version that this one cannot read is left out.
            reports.extend(serde_json::from_slice(&found.bytes()?).ok());
        }
        reports.sort_unstable_by(|one, other| one.id.cmp(&other.id));
        Ok(reports)
    }

    async fn lock(&self, name: &str, owner: &WorkerId, length: Duration) -> Result<bool> {
        const OP: &str = "take a lock";
        if name.chars().count() > LOCK_NAME {
            return Err(Error::new(Kind::TooLarge, OP, format!("its name is above {LOCK_NAME} characters")));
        }
        // Redis takes no life time of zero.
        let length = millis(length.max(Duration::from_millis(1)));
        let args = vec!["lock".into(), name.into(), owner.as_str().into(), length];
        one(act(&self.link, OP, args).await?)?.flag()
    }

    async fn unlock(&self, name: &str, owner: &WorkerId) -> Result<()> {
        let args = vec!["unlock".into(), name.into(), owner.as_str().into()];
        act(&self.link, "let go of a lock", args).await.map(drop)
    }

    async fn note(&self, key: &str) -> Result<Option<String>> {
        self.link.query("read a note", cmd("GET").arg(note_key(key))).await
    }

    async fn set_note(&self, key: &str, value: Option<&str>) -> Result<()> {
        const OP: &str = "keep a note";
        if value.is_some_and(|value| value.len() > NOTE) {
            return Err(Error::new(Kind::TooLarge, OP, format!("it is above {NOTE} bytes")));
        }
        match value {
            Some(value) => self.link.query::<()>(OP, cmd("SET").arg(note_key(key)).arg(value)).await,
            None => self.link.query::<()>(OP, cmd("DEL").arg(note_key(key))).await,
        }
    }

    async fn limit(&self, key: &str) -> Result<KeptLimit> {
        let mut found = Places::of(act(&self.link, "read a limit", vec!["limit".into(), key.into()]).await?)?;
        let now: i64 = found.text()?.parse().map_err(|_| strange("a time"))?;
        Ok(KeptLimit { now: Timestamp::from_millis(now), bytes: found.bytes()? })
    }

    async fn swap_limit(&self, key: &str, old: &[u8], new: &[u8]) -> Result<bool> {
        const OP: &str = "change a limit";
        check_limit(OP, new)?;
        one(act(&self.link, OP, vec!["swap".into(), key.into(), old.into(), new.into()]).await?)?.flag()
    }

    async fn limits(&self) -> Result<Vec<String>> {
        let mut keys: Vec<String> = self.link.query("list limits", cmd("HKEYS").arg(LIMITS)).await?;
        keys.sort_unstable();
        Ok(keys)
    }
}

/// What is kept of each limit key.
const LIMITS: &str = "{pq}:limits";

fn note_key(key: &str) -> String {
    format!("{{pq}}:note:{key}")
}

/// A state's letter and a fingerprint; nothing for an id that is not known.
fn known_from(answer: &[u8], asked: Fingerprint) -> Result<Option<Known>> {
    let Some((letter, fingerprint)) = answer.split_first() else { return Ok(None) };
    let state = state_of(&char::from(*letter).to_string())?;
    let same = *fingerprint == asked.0;
    Ok(Some(if same { Known::Same(state) } else { Known::Conflict(state) }))
}
