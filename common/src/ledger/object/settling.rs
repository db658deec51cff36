//! How a claim ends: the record first, created once, then the mark that lists it.

use super::keys::{self, Mark};
use super::stone::{Stone, What};
use super::{LARGEST, ObjectLedger, lock};
use crate::broker::{Head, LeaseId, Settled, Verdict};
use crate::error::{Error, Kind, Result};
use crate::ledger::Announced;
use crate::record::{End, Record};
use crate::store::PutNew;

/// How often an object is read anew that others keep changing.
const TRIES: usize = 5;

/// An end that was listed this much later than it was written is listed anew, as of then: less than
/// [`super::Ages::untold`] by as much as clocks may differ.
const LATE: std::time::Duration = std::time::Duration::from_secs(2);

/// What came of writing an end.
#[derive(Debug)]
pub(super) enum Commit {
    /// It stands, written now or by an earlier try: this is what stands there.
    Ours(Stone),
    /// Another stands.
    Theirs(Stone),
}

impl ObjectLedger {
    pub(super) async fn settle_claim(
        &self,
        job: &Head,
        lease: LeaseId,
        verdict: &Verdict,
        payload: Option<&[u8]>,
    ) -> Result<Settled> {
        let settled = match verdict {
            Verdict::End(record) if record.end == End::Succeeded => self.succeed(job, record).await?,
            Verdict::End(record) => self.fail(job, record, payload).await?,
            // The copy carries what a retry spent, and nothing here gives it out.
            Verdict::Retry { .. } | Verdict::Release { .. } => Settled::Applied,
        };
        let start = lock(&self.running).get(&lease).and_then(|run| run.start.clone());
        if let Some(start) = start {
            self.store.delete(&[start]).await?;
        }
        lock(&self.running).remove(&lease);
        Ok(settled)
    }

    async fn succeed(&self, job: &Head, record: &Record) -> Result<Settled> {
        let stone = Stone::ended(job, record, self.clock.now());
        let (success, other) = (keys::success(job.id), keys::other(job.id, job.epoch));
        let (commit, other) = tokio::try_join!(self.commit(&success, stone), self.stone(&other))?;
        let Commit::Ours(stone) = commit else { return Ok(Settled::Stale) };
        self.mark(&stone).await?;
        let Some(Stone { what: What::Ended { .. }, .. }) = &other else { return Ok(Settled::Applied) };
        self.undead(other.as_ref()).await?;
        self.store.delete(&[keys::kept(job.id)]).await?;
        Ok(Settled::Kept)
    }

    async fn fail(&self, job: &Head, record: &Record, payload: Option<&[u8]>) -> Result<Settled> {
        if self.stone(&keys::success(job.id)).await?.is_some() {
            return Ok(Settled::Stale);
        }
        // Before the end, which says that it can be redriven.
        if let Some(payload) = payload {
            self.store.put(&keys::kept(job.id), payload.to_vec()).await?;
        }
        let stone = Stone::ended(job, record, self.clock.now());
        match self.commit(&keys::other(job.id, job.epoch), stone).await? {
            Commit::Ours(stone) => self.mark(&stone).await.map(|()| Settled::Applied),
            Commit::Theirs(_) => Ok(Settled::Stale),
        }
    }

    /// Creates an end, in place of what is none yet. Whose it is when one stands there is told by the lease that wrote it:
    /// an earlier try of ours, whose answer was lost, is ours.
    pub(super) async fn commit(&self, key: &str, mut stone: Stone) -> Result<Commit> {
        for _ in 0..TRIES {
            let bytes = stone.bytes()?;
            let created = if self.conditional {
                self.store.put_new(key, bytes).await?
            } else {
                self.create_unconditionally(key, bytes).await?
            };
            let PutNew::Theirs(bytes) = created else { return Ok(Commit::Ours(stone)) };
            let theirs = Stone::read(&bytes)?;
            if is_same_run(&theirs, &stone) {
                return Ok(Commit::Ours(theirs));
            }
            if !theirs.is_open() {
                return Ok(Commit::Theirs(theirs));
            }
            // Later than what it takes the place of, by whatever clock.
            stone.at = stone.at.max(theirs.at + std::time::Duration::from_millis(1));
            let Some(was) = self.store.get_tagged(key, LARGEST).await? else { continue };
            if was.bytes == bytes && self.store.swap(key, &was, stone.bytes()?).await? {
                return Ok(Commit::Ours(stone));
            }
        }
        Err(busy())
    }

    /// Reads before it writes, and again afterwards: what is left is the moment between.
    async fn create_unconditionally(&self, key: &str, bytes: Vec<u8>) -> Result<PutNew> {
        if let Some(found) = self.store.get(key, LARGEST).await? {
            return Ok(PutNew::Theirs(found));
        }
        self.store.put(key, bytes.clone()).await?;
        match self.store.get(key, LARGEST).await? {
            Some(found) if found != bytes => Ok(PutNew::Theirs(found)),
            Some(_) | None => Ok(PutNew::Ours),
        }
    }

    /// Changes an object unless `change` has nothing to change; what stands there then, if that was changed.
    pub(super) async fn rewrite(
        &self,
        key: String,
        change: impl Fn(&Stone) -> Option<Stone> + Send,
    ) -> Result<Option<Stone>> {
        for _ in 0..TRIES {
            let Some(was) = self.store.get_tagged(&key, LARGEST).await? else { return Ok(None) };
            let Some(new) = change(&Stone::read(&was.bytes)?) else { return Ok(None) };
            if self.store.swap(&key, &was, new.bytes()?).await? {
                return Ok(Some(new));
            }
        }
        Err(busy())
    }

    /// Lists an end, again if need be: the names follow from the end. Whoever has read on to later ones would miss it if
    /// that took long.
    pub(super) async fn mark(&self, stone: &Stone) -> Result<()> {
        self.enlist(stone).await?;
        if self.clock.now().since(stone.at) > LATE { self.list_anew(stone).await } else { Ok(()) }
    }

    async fn enlist(&self, stone: &Stone) -> Result<()> {
        let (Some(record), Some(mark)) = (stone.record(), stone.mark()) else { return Ok(()) };
        if let Some(dead) = stone.dead_mark() {
            self.store.put(&format!("{}/{}", keys::dead(&record.queue), dead.name()), Vec::new()).await?;
        }
        self.store.put(&listed_as(record, &mark), Vec::new()).await?;
        lock(&self.marked).note((record.id, record.epoch, record.end));
        Ok(())
    }

    /// Makes sure that a record is listed, for whoever met it without having written it.
    pub(super) async fn mark_announced(&self, told: &Announced) -> Result<()> {
        if lock(&self.marked).set.contains(&(told.id, told.epoch, told.end)) {
            return Ok(());
        }
        let key = match told.end {
            End::Succeeded => keys::success(told.id),
            End::Dead | End::Cancelled | End::Expired => keys::other(told.id, told.epoch),
        };
        // An end that was taken back or overtaken since is listed as such.
        let Some(stone) = self.stone(&key).await?.filter(|stone| stone.state().is_some()) else { return Ok(()) };
        let (Some(record), Some(mark)) = (stone.record(), stone.mark()) else { return Ok(()) };
        if self.store.modified(&listed_as(record, &mark)).await?.is_none() {
            return self.list_anew(&stone).await;
        }
        lock(&self.marked).note((record.id, record.epoch, record.end));
        Ok(())
    }

    /// Lists an end as of now, which says so itself first: one mark is told of it, whoever wrote which.
    async fn list_anew(&self, stone: &Stone) -> Result<()> {
        let (Some(record), Some(mark)) = (stone.record(), stone.mark()) else { return Ok(()) };
        let anew = self.rewrite(mark.key(), |there| {
            let at = self.clock.now().max(there.at + std::time::Duration::from_millis(1));
            (there.at == stone.at && there.state().is_some()).then(|| Stone { at, ..there.clone() })
        });
        // Another has done so.
        let Some(anew) = anew.await? else { return Ok(()) };
        self.enlist(&anew).await?;
        self.store.delete(&[listed_as(record, &mark)]).await
    }

    /// Takes a job that ended so out of the dead set, if it is there.
    pub(super) async fn undead(&self, stone: Option<&Stone>) -> Result<()> {
        let Some((record, mark)) = stone.and_then(|stone| Some((stone.record()?, stone.dead_mark()?))) else {
            return Ok(());
        };
        self.store.delete(&[format!("{}/{}", keys::dead(&record.queue), mark.name())]).await
    }
}

/// The key of a record's mark.
fn listed_as(record: &Record, mark: &Mark) -> String {
    format!("{}/{}", keys::marks(&record.queue, record.batch.as_ref()), mark.name())
}

fn is_same_run(theirs: &Stone, ours: &Stone) -> bool {
    ours.lease() != LeaseId::NONE && theirs.lease() == ours.lease()
}

fn busy() -> Error {
    Error::new(Kind::Unavailable, "write the end of a job", "others keep changing it")
}
