//! What the ledger tells: a job by its id, lists of what has ended, results by cursor. Jobs that wait are not told of.

use std::collections::BTreeMap;

use futures_util::{StreamExt, TryStreamExt as _, stream};

use super::keys::{self, Kind as Sort, Mark};
use super::stone::{Fate, Stone, What, raised};
use super::tally::Folder;
use super::{AT_ONCE, ObjectLedger, all};
use crate::broker::Head;
use crate::codec;
use crate::error::{Error, Kind, Result};
use crate::job::{JobId, Queue};
use crate::ledger::{Cursor, DeadGroup, JobFilter, JobView, Page, RESULT_BYTES, Results, Scope};
use crate::record::{End, Record, State};

/// The most items of one answer.
const PAGE: usize = 1_000;

/// Marks read at a time.
const MARKS: usize = 5_000;

/// The most dead jobs that are grouped: as many reads.
const DEAD: usize = 10_000;

/// What stands in a job's objects.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Its success.
    pub(super) done: Option<Stone>,
    /// The epoch it is in.
    pub(super) epoch: u32,
    /// What stands in that epoch, if anything.
    pub(super) current: Option<Stone>,
    /// The end of the epoch before.
    pub(super) before: Option<Stone>,
}

impl Found {
    /// How it ended, if it has.
    pub(super) fn state(&self) -> Option<State> {
        self.done.as_ref().or(self.current.as_ref()).and_then(Stone::state)
    }

    fn view(self) -> Option<JobView> {
        let state = self.state();
        let (stopped, stone) = (self.is_stopped(), self.done.or(self.current));
        match stone.map(|stone| (stone.what, stone.at)) {
            Some((What::Ended { head, record, fate }, _)) => {
                let mut view = view(&head, state.unwrap_or(State::Queued));
                (view.attempts, view.epoch) = (record.attempts, record.epoch);
                view.dropped = fate == Fate::Dropped;
                view.record = Some(record);
                Some(view)
            }
            Some((What::Spared { head }, at)) => {
                let head = head?;
                let deadline = super::stone::renewed(&head, at);
                Some(JobView { deadline, ..view(&head, State::Queued) })
            }
            Some((What::Forgotten { .. }, _)) => None,
            // Known only where it was put back in line.
            Some((What::Stopped, _)) | None => match self.before.map(|stone| stone.what) {
                Some(What::Ended { head, fate: Fate::Raised { at, .. }, .. }) => {
                    Some(JobView { cancel_requested: stopped, ..view(&raised(&head, at), State::Queued) })
                }
                _ => None,
            },
        }
    }

    fn is_stopped(&self) -> bool {
        self.done.is_none() && self.current.as_ref().is_some_and(|stone| stone.what == What::Stopped)
    }
}

impl ObjectLedger {
    /// What stands in a job's objects: two reads in one round trip, and one for each time it was redriven.
    pub(super) async fn find(&self, id: JobId) -> Result<Found> {
        let (done, current) = tokio::try_join!(self.stone_at(keys::success(id)), self.stone_at(keys::other(id, 0)))?;
        let mut found = Found { done, current, ..Found::default() };
        while found.current.as_ref().is_some_and(Stone::is_raised) {
            found.before = found.current.take();
            found.epoch += 1;
            found.current = self.stone(&keys::other(id, found.epoch)).await?;
        }
        Ok(found)
    }

    pub(super) async fn view(&self, id: JobId) -> Result<Option<JobView>> {
        let Some(mut view) = self.find(id).await?.view() else { return Ok(None) };
        let paused = self.flags.get(keys::queue(&view.queue, "pause"), self.ages.flags).await?;
        view.paused = paused.as_deref().map(super::opening::text);
        Ok(Some(view))
    }

    /// The newest of the folder's ends first. Every mark is listed for each page, a record read only where it fits.
    pub(super) async fn list_jobs(
        &self,
        filter: &JobFilter,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page<JobView>> {
        let bad = || Error::new(Kind::Config, "list jobs", "not a cursor of ours");
        let mut before = match cursor {
            None => u64::MAX,
            Some(text) => u64::from_str_radix(text, 16).map_err(|_| bad())?,
        };
        let Some(folder) = self.folder_of(filter).await? else { return Ok(Page { items: Vec::new(), next: None }) };
        let limit = limit.clamp(1, PAGE);
        let mut newest: BTreeMap<(u64, JobId), Mark> = BTreeMap::new();
        self.each_mark(&folder, None, |mark| {
            if mark.place < before && may_fit(filter, &mark) {
                newest.insert((mark.place, mark.id), mark);
                if newest.len() > limit {
                    newest.pop_first();
                }
            }
            true
        })
        .await?;
        let more = newest.len() == limit;
        before = newest.first_key_value().map_or(0, |((place, _), _)| *place);
        let views = newest.into_values().rev().map(|mark| async move {
            let view = self.view(mark.id).await?;
            // The mark of an end that was taken back, or overtaken, is not the job's any more.
            Ok::<_, Error>(view.filter(|view| mark.is_of(view) && fits(filter, view)))
        });
        let views: Vec<Option<JobView>> = all(views.collect()).await?;
        let next = more.then(|| format!("{before:016x}"));
        Ok(Page { items: views.into_iter().flatten().collect(), next })
    }

    async fn folder_of(&self, filter: &JobFilter) -> Result<Option<String>> {
        let Some(batch) = &filter.batch else {
            return Ok(Some(filter.queue.as_ref().map_or_else(|| "ledger/marks".to_owned(), keys::marks_of_queue)));
        };
        let owner = self.owner(batch).await?;
        let ours = owner.filter(|owner| filter.queue.as_ref().is_none_or(|queue| queue == owner));
        Ok(ours.map(|queue| keys::marks(&queue, Some(batch))))
    }

    /// Every mark of a folder after a name, in the order of names, until `take` has enough.
    async fn each_mark(
        &self,
        folder: &str,
        mut after: Option<String>,
        mut take: impl FnMut(Mark) -> bool + Send,
    ) -> Result<()> {
        loop {
            let page = self.store.list(folder, after.as_deref(), MARKS).await?;
            for mark in page.iter().filter_map(|listed| Mark::parse(&listed.name)) {
                if !take(mark) {
                    return Ok(());
                }
            }
            after = page.last().map(|listed| listed.name.clone());
            if page.len() < MARKS {
                return Ok(());
            }
        }
    }

    /// Records in the order of their marks; one whose mark came late comes after those that were told before.
    pub(super) async fn page_of(&self, scope: &Scope, cursor: Cursor, limit: usize) -> Result<Results> {
        let none = Results { next: cursor, ..Results::default() };
        let folder = match scope {
            Scope::Batch(name) => match self.owner(name).await? {
                Some(queue) => Self::marks_of(&queue, name),
                None => return Ok(none),
            },
            Scope::Queue(queue) => Folder { name: keys::marks_of_queue(queue), ordered: false },
        };
        let tally = self.tallies.of(&folder.name);
        let mut tally = tally.lock().await;
        if tally.is_old(self.ages.counts) {
            tally.reopen(&self.store, &folder).await?;
            tally.refresh(&self.store, &folder, (&self.ages, self.clock.now())).await?;
        }
        let limit = limit.clamp(1, PAGE);
        let late = tally.late.range(cursor.0.saturating_add(1)..).take(limit + 1);
        let mut marks: BTreeMap<u64, Mark> = late.map(|(place, mark)| (*place, *mark)).collect();
        if cursor.0 < tally.frontier {
            let from = folder.ordered.then(|| keys::after(cursor.0));
            self.each_mark(&folder.name, from, |mark| {
                let told = matches!(mark.kind, Sort::Ended(_)) && !mark.forgotten && !tally.is_late(&mark);
                if told && mark.place > cursor.0 && mark.place <= tally.frontier {
                    marks.insert(mark.place, mark);
                }
                if marks.len() > limit + 1 {
                    marks.pop_last();
                }
                // Names in order: whatever comes now comes after all of these.
                let is_full =
                    marks.len() > limit && marks.last_key_value().is_some_and(|(last, _)| mark.place >= *last);
                !(folder.ordered && is_full)
            })
            .await?;
        }
        drop(tally);
        self.records(marks, none, limit).await
    }

    async fn records(&self, marks: BTreeMap<u64, Mark>, mut page: Results, limit: usize) -> Result<Results> {
        let (count, mut bytes) = (marks.len(), 0);
        let reads = marks.into_iter().map(|(place, mark)| async move {
            let stone = self.stone_at(mark.key()).await?;
            let record = stone.filter(|stone| stone.mark().is_some_and(|now| now.place == mark.place));
            Ok::<_, Error>((place, record.and_then(Stone::into_record)))
        });
        let mut reads = stream::iter(reads.collect::<Vec<_>>()).buffered(AT_ONCE);
        for n in 0..count.min(limit) {
            let Some((place, record)) = reads.try_next().await? else { break };
            if let Some(record) = record {
                bytes += codec::encode_record(&record)?.len();
                if bytes > RESULT_BYTES && !page.records.is_empty() {
                    page.more = true;
                    return Ok(page);
                }
                page.records.push((Cursor(place), record));
            }
            page.next = Cursor(place);
            page.more = n + 1 < count;
        }
        Ok(page)
    }

    /// Marks of the dead set, oldest first.
    pub(super) async fn dead_marks(&self, queue: Option<&Queue>, limit: usize) -> Result<Vec<Mark>> {
        let folder = queue.map_or_else(|| "ledger/dead".to_owned(), keys::dead);
        let listed = self.store.list(&folder, None, limit).await?;
        Ok(listed.iter().filter_map(|listed| Mark::parse(&listed.name)).collect())
    }

    /// By cause; of at most 10,000 dead jobs, since each is read.
    pub(super) async fn group_dead(&self, queue: Option<&Queue>) -> Result<Vec<DeadGroup>> {
        let marks = self.dead_marks(queue, DEAD).await?;
        let reads: Vec<_> = marks.into_iter().map(|mark| self.find(mark.id)).collect();
        let mut reads = stream::iter(reads).buffered(AT_ONCE);
        let mut groups: Vec<DeadGroup> = Vec::new();
        while let Some(found) = reads.try_next().await? {
            let Some(Stone { what: What::Ended { record, fate: Fate::Stands, .. }, .. }) =
                found.current.filter(|_| found.done.is_none())
            else {
                continue;
            };
            let group = group(&record);
            let same = |other: &&mut DeadGroup| {
                (&other.queue, &other.model, other.class, &other.code)
                    == (&group.queue, &group.model, group.class, &group.code)
            };
            match groups.iter_mut().find(same) {
                Some(known) => {
                    known.count += 1;
                    (known.first, known.last) = (known.first.min(group.first), known.last.max(group.last));
                }
                None => groups.push(group),
            }
        }
        groups.sort_by_key(|group| std::cmp::Reverse(group.count));
        groups.truncate(PAGE);
        Ok(groups)
    }
}

impl Stone {
    fn is_raised(&self) -> bool {
        matches!(self.what, What::Ended { fate: Fate::Raised { .. }, .. })
    }

    fn into_record(self) -> Option<Record> {
        match self.what {
            What::Ended { record, .. } => Some(*record),
            What::Stopped | What::Spared { .. } | What::Forgotten { .. } => None,
        }
    }
}

impl Mark {
    /// Where the end that it lists stands.
    pub(super) fn key(&self) -> String {
        match self.kind {
            Sort::Ended(End::Succeeded) => keys::success(self.id),
            Sort::Ended(_) | Sort::Raised | Sort::Restored => keys::other(self.id, self.epoch),
        }
    }

    /// Whether it is of what the job is now.
    fn is_of(&self, view: &JobView) -> bool {
        match (self.kind, &view.record) {
            (Sort::Ended(end), Some(record)) => {
                (end, self.epoch) == (record.end, record.epoch) && view.state.is_ended()
            }
            (Sort::Raised | Sort::Restored, _) => !view.state.is_ended() && self.epoch == view.epoch,
            (Sort::Ended(_), None) => false,
        }
    }
}

fn group(record: &Record) -> DeadGroup {
    let class = record.cause.as_ref().and_then(|cause| cause.class);
    let (code, detail) = record.cause.as_ref().map_or(("", ""), |cause| (&cause.code, &cause.detail));
    DeadGroup {
        queue: record.queue.clone(),
        model: record.model.clone(),
        class,
        code: code.to_owned(),
        count: 1,
        first: record.ended_at,
        last: record.ended_at,
        sample: record.id,
        detail: detail.to_owned(),
    }
}

/// What can be told by the mark alone.
fn may_fit(filter: &JobFilter, mark: &Mark) -> bool {
    let state = match mark.kind {
        Sort::Ended(end) => end.into(),
        Sort::Raised | Sort::Restored => State::Queued,
    };
    !mark.forgotten && (filter.states.is_empty() || filter.states.contains(&state))
}

fn fits(filter: &JobFilter, job: &JobView) -> bool {
    let code = || job.record.as_ref()?.cause.as_ref().map(|cause| &cause.code);
    (filter.states.is_empty() || filter.states.contains(&job.state))
        && filter.code.as_ref().is_none_or(|asked| code() == Some(asked))
}

fn view(head: &Head, state: State) -> JobView {
    JobView {
        id: head.id,
        queue: head.lane.queue.clone(),
        model: head.lane.model.as_ref().map(|model| model.as_str().to_owned()),
        priority: head.priority.get(),
        batch: head.batch.clone(),
        row: head.row,
        custom_id: head.custom_id.clone(),
        tenant: head.tenant.clone(),
        tags: head.tags.clone(),
        state,
        epoch: head.epoch,
        attempts: head.attempts,
        deaths: 0,
        created_at: head.created_at,
        deadline: head.deadline,
        due: None,
        hold: None,
        worker: None,
        leased_at: None,
        cancel_requested: false,
        dropped: false,
        paused: None,
        record: None,
    }
}
