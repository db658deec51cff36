//! Batches: whose they are, which jobs were registered into them, and what they look like.

use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};

use super::tally::{Folder, Tally};
use super::{LARGEST, ObjectLedger, keys, lock};
use crate::broker::LeaseId;
use crate::error::{Error, Kind, Result};
use crate::job::{BatchName, JobId, Queue};
use crate::ledger::{BatchView, Cursor};
use crate::store::PutNew;
use crate::time::Timestamp;

/// The most objects of one batch read at once: a registration's worth of ids each, so 10 million jobs.
const WINDOWS: usize = 10_000;

/// More than the batches that one process submits to or looks at; beyond, they are read anew.
const KNOWN: usize = 10_000;

/// How much older than usual a finished batch may be in a list of many.
const LAX: u32 = 10;

/// Begins the name of ids that have gone elsewhere.
const GONE: &str = "gone/";

/// What is kept of a batch when it is made.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Made {
    name: BatchName,
    queue: Queue,
    at: Timestamp,
}

impl ObjectLedger {
    /// Makes a batch unless there is one, and says whose it is.
    pub(super) async fn ensure_batch(&self, name: &BatchName, queue: &Queue) -> Result<Queue> {
        if let Some(owner) = lock(&self.known).batches.get(name) {
            return Ok(owner.clone());
        }
        let made = match self.made(name).await? {
            Some(made) => made,
            None => self.make(Made { name: name.clone(), queue: queue.clone(), at: self.clock.now() }).await?,
        };
        let newest = keys::newest_first(made.at, name.as_str());
        self.store.put(&newest, name.as_str().into()).await?;
        let mut known = lock(&self.known);
        if known.batches.len() >= KNOWN {
            known.batches.clear();
        }
        known.batches.insert(name.clone(), made.queue.clone());
        Ok(made.queue)
    }

    async fn make(&self, made: Made) -> Result<Made> {
        let (key, bytes) = (keys::batch(&made.name, "made"), json(&made)?);
        if !self.conditional {
            return self.store.put(&key, bytes).await.map(|()| made);
        }
        match self.store.put_new(&key, bytes).await? {
            PutNew::Ours => Ok(made),
            PutNew::Theirs(bytes) => from_json(&bytes),
        }
    }

    async fn made(&self, name: &BatchName) -> Result<Option<Made>> {
        self.store.get(&keys::batch(name, "made"), LARGEST).await?.map(|bytes| from_json(&bytes)).transpose()
    }

    /// Notes that these jobs are of the batch: one object for all of them.
    pub(super) async fn note_jobs(&self, name: &BatchName, ids: &[JobId]) -> Result<()> {
        let key = keys::batch(name, &format!("in/{}", self.window()));
        let bytes = ids.iter().flat_map(|id| *id.as_bytes()).collect();
        self.store.put(&key, bytes).await
    }

    /// Notes that these jobs have gone elsewhere, whatever batch they were of.
    pub(super) async fn note_gone(&self, ids: &[JobId]) -> Result<()> {
        if ids.is_empty() {
            return Ok(());
        }
        let name = self.window();
        let bytes = ids.iter().flat_map(|id| *id.as_bytes()).collect();
        self.store.put(&format!("ledger/gone/{name}"), bytes).await?;
        self.flags.set("ledger/gone-last".into(), Some(name.into_bytes())).await
    }

    /// A name that sorts by time.
    fn window(&self) -> String {
        format!("{:016x}.{}", self.clock.now().as_millis(), LeaseId::random())
    }

    /// The folder of a batch's marks.
    pub(super) fn marks_of(queue: &Queue, name: &BatchName) -> Folder {
        Folder { name: keys::marks(queue, Some(name)), ordered: true }
    }

    /// A batch as it is; a finished one among many may be told as it was some minutes ago.
    pub(super) async fn batch_view(&self, name: &BatchName, lax: bool) -> Result<Option<BatchView>> {
        let Some(made) = self.made(name).await? else { return Ok(None) };
        let folder = Self::marks_of(&made.queue, name);
        let tally = self.tallies.of(&folder.name);
        let mut tally = tally.lock().await;
        let age = if lax && tally.is_closed() { self.ages.whole * LAX } else { self.ages.counts };
        if tally.is_old(age) {
            tally.reopen(&self.store, &folder).await?;
            // Before the marks: an end that is counted is of a job that is counted.
            tally.flags = self.objects_of(name, &mut tally).await?;
            tally.refresh(&self.store, &folder, (&self.ages, self.clock.now())).await?;
        }
        let (sealed, cancelled) = tally.flags;
        let counts = tally.account.counts(tally.total());
        if sealed && counts.ended() == counts.total {
            tally.close();
        }
        Ok(Some(BatchView {
            name: made.name,
            queue: made.queue,
            created_at: made.at,
            sealed,
            cancelled,
            counts,
            usage: tally.account.usage(),
            cost: tally.account.cost(),
            cost_unknown: tally.account.cost_unknown,
            last: Cursor(tally.frontier),
        }))
    }

    /// Reads what is new of registered ids; whether the batch is sealed, and cancelled.
    async fn objects_of(&self, name: &BatchName, tally: &mut Tally) -> Result<(bool, bool)> {
        let folder = keys::batch(name, "");
        let folder = folder.trim_end_matches('/');
        let (mut flags, mut after, mut new) = ((false, false), None::<String>, Vec::new());
        loop {
            let page = self.store.list(folder, after.as_deref(), WINDOWS).await?;
            for listed in &page {
                match listed.name.as_str() {
                    "sealed" => flags.0 = true,
                    "cancelled" => flags.1 = true,
                    name if name.contains('/') && !tally.windows.contains(name) => new.push(name.to_owned()),
                    _ => {}
                }
            }
            after = page.last().map(|listed| listed.name.clone());
            if page.len() < WINDOWS {
                break;
            }
        }
        if !new.is_empty() && tally.is_closed() {
            *tally = Tally::default();
            return Box::pin(self.objects_of(name, tally)).await;
        }
        let gone = self.flags.get("ledger/gone-last".into(), self.ages.counts).await?;
        if gone != tally.gone {
            let listed = self.store.list("ledger/gone", None, WINDOWS).await?;
            let names = listed.into_iter().map(|listed| format!("{GONE}{}", listed.name));
            new.extend(names.filter(|name| !tally.windows.contains(name)));
            tally.gone = gone;
        }
        // By time: a job that has gone may come back.
        new.sort_unstable_by(|a, b| a.split('/').next_back().cmp(&b.split('/').next_back()));
        let read = new.into_iter().map(|window| async move {
            let key = match window.strip_prefix(GONE) {
                Some(name) => format!("ledger/gone/{name}"),
                None => format!("{folder}/{window}"),
            };
            let bytes = self.store.get(&key, LARGEST).await?;
            Ok::<_, Error>((window, bytes.unwrap_or_default()))
        });
        let mut read = stream::iter(read.collect::<Vec<_>>()).buffered(super::AT_ONCE);
        while let Some((window, ids)) = read.try_next().await? {
            if window.starts_with(GONE) {
                tally.remove(&ids);
            } else {
                tally.register(&ids);
            }
            tally.windows.insert(window);
        }
        Ok(flags)
    }

    /// The newest batches, newest first.
    pub(super) async fn newest_batches(&self, limit: usize) -> Result<Vec<BatchView>> {
        /// Lists of as many batches at once.
        const AT_ONCE: usize = 8;
        let listed = self.store.list("ledger/newest", None, limit).await?;
        let views = listed.iter().map(|listed| async move {
            let name = self.store.get(&format!("ledger/newest/{}", listed.name), LARGEST).await?;
            let name = name.and_then(|name| BatchName::new(std::str::from_utf8(&name).ok()?).ok());
            match name {
                Some(name) => self.batch_view(&name, true).await,
                None => Ok(None),
            }
        });
        let views: Vec<Option<BatchView>> =
            stream::iter(views.collect::<Vec<_>>()).buffered(AT_ONCE).try_collect().await?;
        Ok(views.into_iter().flatten().collect())
    }

    /// Says that no more jobs will come.
    pub(super) async fn seal_batch(&self, name: &BatchName, queue: &Queue) -> Result<()> {
        let owner = self.ensure_batch(name, queue).await?;
        if owner != *queue {
            let why = format!("batch {name} belongs to queue {owner}");
            return Err(Error::new(Kind::Conflict, "seal a batch", why));
        }
        self.store.put(&keys::batch(name, "sealed"), Vec::new()).await
    }

    /// Whose batch it is, if there is one.
    pub(super) async fn owner(&self, name: &BatchName) -> Result<Option<Queue>> {
        if let Some(owner) = lock(&self.known).batches.get(name) {
            return Ok(Some(owner.clone()));
        }
        Ok(self.made(name).await?.map(|made| made.queue))
    }
}

/// As JSON, for objects that a person may want to read.
pub(super) fn json<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| Error::new(Kind::Corrupt, "write an object", "").because(error))
}

/// From such an object.
pub(super) fn from_json<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| Error::new(Kind::Corrupt, "read an object", "").because(error))
}
