//! A worker's subscription: asks for a lease when there is something to lease, watches the file when there is not.
//! Idle, only the watcher's thread stirs; nothing is written until something is due.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rand::RngExt as _;
use rusqlite::Connection;
use tokio::sync::watch;
use tokio::time::Instant;

use super::file::{self, lift};
use super::hold::{Desk, Granted, RowHold};
use super::lanes::Names;
use super::lease::{LeasedRow, Memory, Taken, lease};
use super::reader::Reader;
use super::settle::{Ending, settle};
use super::turned::Turned;
use super::tx::Tx;
use super::watcher;
use super::writer::{Answer, Writer, gone};
use crate::broker::LeaseId;
use crate::broker::backend::{Leased, RawDelivery, Source, Terms, Want};
use crate::error::{Error, Kind, Result};
use crate::job::Lane;
use crate::time::Timestamp;

const OP: &str = "lease jobs";
/// An empty call lasts at most this long.
const PATIENCE: Duration = Duration::from_secs(1);
/// What is due is asked for at most this often, in case the file disagrees that it is.
const PAUSE: Duration = Duration::from_millis(10);
/// How many lanes a caller is told of.
const LANES: usize = 1_000;

pub(super) struct RowSource {
    desk: Arc<Desk>,
    /// For looking without writing.
    view: Connection,
    terms: Arc<Terms>,
    names: Names,
    memory: Arc<Mutex<Memory>>,
    /// The answer to a lease in flight when a call was dropped.
    pending: Option<Answer<Taken>>,
    /// That answer, while what does not fit the new call goes back.
    held: Option<Taken>,
    /// When that lease was asked for, or the last one.
    asked: Instant,
    /// Not before this, so that other processes get their turn.
    rested: Option<Instant>,
    /// Whether the last lease found something.
    flowing: bool,
    /// Changes with each commit to the file.
    commits: watch::Receiver<i64>,
}

impl std::fmt::Debug for RowSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RowSource").field("terms", &self.terms).finish_non_exhaustive()
    }
}

/// What a look at the file saw.
#[derive(Default)]
struct Look {
    /// All of them, as a lease would see them: any may be the one that is open.
    lanes: Vec<Lane>,
    due: Option<Timestamp>,
}

impl RowSource {
    /// A subscription to the file at `path`. `Config` when a queue is named twice.
    pub(super) fn new(writer: Writer, reader: Reader, path: &Path, terms: Terms) -> Result<Self> {
        let mut seen = HashSet::new();
        if let Some((twice, _)) = terms.queues.iter().find(|(queue, _)| !seen.insert(queue)) {
            return Err(Error::new(Kind::Config, "subscribe", format!("queue {twice} is named twice")));
        }
        let names = Names::of(&terms)?;
        Ok(Self {
            desk: Arc::new(Desk {
                turned: Turned::new(path, Arc::clone(&writer.turned))?,
                writer,
                reader,
                length: terms.lease,
            }),
            view: file::open_reader(path)?,
            terms: Arc::new(terms),
            memory: Arc::new(Mutex::new(Memory::new(names.clone()))),
            names,
            pending: None,
            held: None,
            asked: Instant::now(),
            rested: None,
            flowing: false,
            commits: watcher::commits(path)?,
        })
    }

    /// The answer to the lease in flight, asked for now if none is.
    async fn taken(&mut self, want: &Want) -> Result<Taken> {
        if self.pending.is_none() {
            let (terms, memory, want) = (Arc::clone(&self.terms), Arc::clone(&self.memory), want.clone());
            let mut mark = None;
            let work = move |tx: &mut Tx<'_>| {
                let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
                memory.begin(&mut mark);
                lease(tx, &terms, &want, &mut memory)
            };
            let answer = self.desk.writer.submit_light("lease", work).await?;
            self.asked = Instant::now();
            self.pending = Some(answer);
        }
        let Some(answer) = &mut self.pending else { return Err(gone(OP)) };
        let taken = answer.await;
        self.pending = None;
        taken.map_err(|_| gone(OP))?
    }

    /// What of an earlier call's lease fits this one; the rest goes back at once, ahead of its lane.
    async fn left_over(&mut self, want: &Want) -> Result<Option<Leased>> {
        if self.pending.is_some() {
            let taken = self.taken(want).await?;
            self.held = Some(taken);
        }
        let Some(held) = &self.held else { return Ok(None) };
        let fits = if self.asked.elapsed() > self.terms.lease / 2 {
            vec![false; held.jobs.len()]
        } else {
            want.fitting(held.jobs.iter().map(|job| &job.head.lane))
        };
        let returned =
            held.jobs.iter().zip(&fits).filter(|(_, fits)| !**fits).map(|(job, _)| (job.spot.seq, job.lease));
        let returned: Vec<_> = returned.collect();
        // Until they are handed in everything stays held: this future may be dropped while it waits for room.
        if !returned.is_empty() {
            drop(release(self.desk.writer.clone(), returned).await?);
        }
        let Some(mut held) = self.held.take() else { return Ok(None) };
        let mut fits = fits.into_iter();
        held.jobs.retain(|_| fits.next().unwrap_or(false));
        Ok((!held.jobs.is_empty()).then(|| self.deliver(held)))
    }

    fn deliver(&self, taken: Taken) -> Leased {
        let turned = taken.turned;
        let hold = |job: &LeasedRow| RowHold {
            desk: Arc::clone(&self.desk),
            spot: job.spot,
            epoch: job.head.epoch,
            lease: job.lease,
            granted: Granted::new(job.deaths, job.until, turned),
        };
        let deliveries = taken
            .jobs
            .into_iter()
            .map(|job| {
                let hold = Box::new(hold(&job));
                RawDelivery { head: job.head, payload: job.payload, lease: job.lease, hold }
            })
            .collect();
        Leased { deliveries, lanes_seen: taken.lanes_seen }
    }

    /// Looks at the file without writing: which lanes have ready jobs, and when something is due next.
    fn look(&mut self) -> Result<Look> {
        self.commits.mark_unchanged();
        self.look_at_lanes().map_err(|error| lift(OP, error.into()))
    }

    fn look_at_lanes(&self) -> rusqlite::Result<Look> {
        let mut look = Look::default();
        let lanes = self.names.lanes(&self.view, &self.terms)?;
        look.lanes = lanes.into_iter().filter(|lane| !lane.paused).map(|lane| lane.lane).collect();
        let due: Option<i64> = self
            .view
            .prepare_cached(
                "SELECT min(due) FROM (
                   SELECT (SELECT min(j.ready_at) FROM job j WHERE j.lane = l.id AND j.state = 1) AS due
                     FROM lane l WHERE l.delayed > 0
                   UNION ALL SELECT min(expires_at) FROM job WHERE state = 2)",
            )?
            .query_row([], |row| row.get(0))?;
        look.due = due.map(Timestamp::from_millis);
        Ok(look)
    }

    /// Waits until the file changes, something is due, or `until`.
    async fn wait(&mut self, until: Instant, due: Option<Timestamp>) -> Result<()> {
        let due = due.map(|at| Instant::now() + at.since(Timestamp::now()));
        let end = due.map_or(until, |due| due.min(until));
        tokio::select! {
            () = tokio::time::sleep_until(end) => Ok(()),
            () = self.desk.writer.ready.notified() => Ok(()),
            commit = self.commits.changed() => commit.map_err(|_| gone(OP)),
        }
    }
}

impl Look {
    /// Whether a lease would find something now.
    fn offers(&self, want: &Want) -> bool {
        if want.total == 0 {
            return false;
        }
        let closed: HashMap<&Lane, u32> = want.caps.iter().map(|(lane, cap)| (lane, *cap)).collect();
        let open = |lane: &Lane| closed.get(lane).copied().unwrap_or(want.rest) > 0;
        self.lanes.iter().any(open) || self.due.is_some_and(|due| due <= Timestamp::now())
    }
}

#[async_trait]
impl Source for RowSource {
    async fn next(&mut self, want: &Want) -> Result<Leased> {
        let until = Instant::now() + PATIENCE;
        if let Some(leased) = self.left_over(want).await? {
            return Ok(leased);
        }
        if let Some(rested) = self.rested {
            tokio::time::sleep_until(rested).await;
            self.rested = None;
        }
        loop {
            let look = if self.flowing { None } else { Some(self.look()?) };
            if want.total > 0 && look.as_ref().is_none_or(|look| look.offers(want)) {
                if self.flowing {
                    // What is about to end makes room for more: the caller may ask for that at once instead.
                    tokio::task::yield_now().await;
                }
                let taken = self.taken(want).await?;
                self.flowing = !taken.jobs.is_empty();
                if self.flowing {
                    if taken.contended && taken.jobs.len() >= want.total as usize {
                        let pause = rand::rng().random_range(1_000..5_000);
                        self.rested = Some(Instant::now() + Duration::from_micros(pause));
                    }
                    return Ok(self.deliver(taken));
                }
            }
            self.flowing = false;
            let Some(mut look) = look else { continue };
            if Instant::now() >= until {
                look.lanes.truncate(LANES);
                return Ok(Leased { deliveries: Vec::new(), lanes_seen: look.lanes });
            }
            self.wait(until, look.due.map(|due| due.max(Timestamp::now() + PAUSE))).await?;
        }
    }

    async fn close(mut self: Box<Self>) -> Result<()> {
        if self.pending.is_some() {
            let taken = self.taken(&Want::default()).await?;
            self.held = Some(taken);
        }
        let held = self.held.take().unwrap_or_default();
        if held.jobs.is_empty() {
            return Ok(());
        }
        let leases = held.jobs.iter().map(|job| (job.spot.seq, job.lease)).collect();
        release(self.desk.writer.clone(), leases).await?.await.map_err(|_| gone(OP))?
    }
}

/// Hands leases in to be released; done once handed in, whether or not the answer is waited for.
async fn release(writer: Writer, leases: Vec<(i64, LeaseId)>) -> Result<Answer<()>> {
    let ending = Ending::Release { after: 0, hold: None };
    let work =
        move |tx: &mut Tx<'_>| leases.iter().try_for_each(|&(seq, lease)| settle(tx, seq, lease, &ending).map(drop));
    writer.submit("settle", 0, work).await
}
