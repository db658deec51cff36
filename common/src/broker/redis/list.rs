//! Lists of jobs, newest first over all queues: each queue is read back chunk by chunk and the queues are merged by when
//! their jobs came. A page reads a bounded part of them; its cursor says for each queue where to go on.

use std::collections::{HashMap, VecDeque};

use deadpool_redis::redis::cmd;
use futures_util::future::{join_all, try_join_all};

use super::admin::{CHUNK, chunks};
use super::global::{owner, queues};
use super::hold::text;
use super::ledger::READ;
use super::link::Link;
use super::wire::{Places, Seen, prefix, state_letter, state_of};
use crate::error::{Error, Kind, Result};
use crate::job::Queue;
use crate::ledger::{JobFilter, JobView, Page, RESULT_BYTES};
use crate::record::State;
use crate::time::Timestamp;

const OP: &str = "list jobs";
/// How many chunks one script call reads: 2,048 jobs, some five milliseconds' work.
const CHUNKS: usize = 8;
/// How many chunks one page reads before it goes out short: about 130,000 jobs.
const PAGE_CHUNKS: usize = 512;
/// The least each of many queues is asked for at once, in jobs and bytes.
const LEAST: (usize, usize) = (8, 64 << 10);

/// What is left of one queue.
#[derive(Debug)]
struct Line {
    queue: Queue,
    /// Chunks not read yet, the newest last.
    chunks: Vec<u64>,
    /// Jobs above this number are behind.
    to: u64,
    /// Read and not yet shown, newest first.
    rows: VecDeque<Row>,
}

#[derive(Debug)]
struct Row {
    number: u64,
    at: Timestamp,
    bytes: usize,
    view: JobView,
}

/// One page.
///
/// # Errors
/// `Config` for a cursor that is none of ours.
pub(super) async fn list(link: &Link, filter: &JobFilter, cursor: Option<&str>, limit: usize) -> Result<Page<JobView>> {
    let mut lines = lines(link, filter, cursor).await?;
    let (mut items, mut bytes, mut read) = (Vec::new(), 0, 0);
    while items.len() < limit {
        if lines.iter().any(Line::is_empty) {
            if read >= PAGE_CHUNKS {
                break;
            }
            let most = ((limit - items.len()) / lines.len()).max(LEAST.0).min(limit);
            let share = (RESULT_BYTES / lines.len()).max(LEAST.1);
            let fills = lines.iter_mut().filter(|line| line.is_empty());
            read += try_join_all(fills.map(|line| line.fill(link, filter, (most, share)))).await?.iter().sum::<usize>();
            continue;
        }
        // Of jobs that came at the same moment the last queue by name has the newest.
        let newest =
            lines.iter_mut().filter(|line| !line.rows.is_empty()).max_by(|one, other| one.rank().cmp(&other.rank()));
        let Some(row) = newest.and_then(|line| line.take(|row| items.is_empty() || bytes + row.bytes <= RESULT_BYTES))
        else {
            break;
        };
        bytes += row.bytes;
        items.push(row.view);
    }
    Ok(Page { items, next: cursor_of(&lines) })
}

/// The queues to read, each from where the cursor says.
async fn lines(link: &Link, filter: &JobFilter, cursor: Option<&str>) -> Result<Vec<Line>> {
    let mut wanted = match (&filter.batch, &filter.queue) {
        (Some(name), _) => owner(link, name).await?.into_iter().collect(),
        (None, Some(queue)) => vec![queue.clone()],
        (None, None) => queues(link).await?,
    };
    wanted.retain(|queue| filter.queue.as_ref().is_none_or(|only| queue == only));
    let places = cursor.map(places).transpose()?;
    let lines = join_all(wanted.into_iter().map(|queue| async {
        let to = match &places {
            None => u64::MAX,
            // Done with, or newer than the first page.
            Some(places) => *places.get(queue.as_str())?,
        };
        Some(line(link, filter, queue, to).await)
    }));
    lines.await.into_iter().flatten().collect()
}

async fn line(link: &Link, filter: &JobFilter, queue: Queue, to: u64) -> Result<Line> {
    let mut chunks = chunks(link, &queue).await?;
    let (mut first, mut last) = (0, to);
    if let Some(name) = &filter.batch {
        let key = format!("{{pq:{queue}}}:b:{name}");
        let range: Vec<Option<u64>> = link.query(OP, cmd("HMGET").arg(key).arg("first").arg("latest")).await?;
        first = range.first().copied().flatten().unwrap_or(0);
        last = last.min(range.get(1).copied().flatten().unwrap_or(0));
    }
    chunks.retain(|chunk| (chunk + 1) * CHUNK >= first && chunk * CHUNK < last);
    Ok(Line { queue, chunks, to: last, rows: VecDeque::new() })
}

/// Where each queue goes on, from a cursor: `queue=number`, with commas between.
fn places(cursor: &str) -> Result<HashMap<&str, u64>> {
    let bad = || Error::new(Kind::Config, OP, "not a cursor of ours");
    cursor
        .split(',')
        .map(|place| {
            let (queue, number) = place.split_once('=').ok_or_else(bad)?;
            Ok((queue, number.parse().map_err(|_| bad())?))
        })
        .collect()
}

fn cursor_of(lines: &[Line]) -> Option<String> {
    let places: Vec<String> = lines
        .iter()
        .filter_map(|line| {
            let number = line.rows.front().map(|row| row.number).or((!line.chunks.is_empty()).then_some(line.to))?;
            Some(format!("{}={number}", line.queue))
        })
        .collect();
    (!places.is_empty()).then(|| places.join(","))
}

impl Line {
    /// Whether it has to be read before the next job is known.
    fn is_empty(&self) -> bool {
        self.rows.is_empty() && !self.chunks.is_empty()
    }

    fn rank(&self) -> Option<(Timestamp, &Queue)> {
        self.rows.front().map(|row| (row.at, &self.queue))
    }

    fn take(&mut self, fits: impl Fn(&Row) -> bool) -> Option<Row> {
        if fits(self.rows.front()?) { self.rows.pop_front() } else { None }
    }

    /// Reads the next chunks; how many.
    async fn fill(&mut self, link: &Link, filter: &JobFilter, (most, bytes): (usize, usize)) -> Result<usize> {
        let from = self.chunks.len().saturating_sub(CHUNKS);
        let group: Vec<u64> = self.chunks.drain(from..).rev().collect();
        let letters: String = filter.states.iter().copied().map(state_letter).collect();
        let batch = filter.batch.as_ref().map_or("", |name| name.as_str());
        let code = filter.code.as_deref().unwrap_or_default();
        let mut args: Vec<Vec<u8>> = vec!["list".into(), text(self.to), text(most), text(bytes)];
        args.extend([batch.into(), code.into(), letters.into()]);
        args.extend(group.iter().map(text));
        let mut answer = Places::of(link.call(OP, &READ, &[prefix(&self.queue)], args).await?)?;
        let paused = Some(answer.text()?).filter(|reason| !reason.is_empty());
        let next: u64 = answer.number()?;
        let mut rows = answer.list()?;
        while rows.left() > 0 {
            self.rows.push_back(row(&self.queue, rows.list()?, paused.clone())?);
        }
        self.to = if next > 0 { next } else { group.last().map_or(0, |chunk| chunk * CHUNK) };
        self.chunks.extend(group.iter().rev().filter(|chunk| *chunk * CHUNK < next));
        Ok(group.len())
    }
}

fn row(queue: &Queue, mut places: Places, paused: Option<String>) -> Result<Row> {
    let number = places.number()?;
    let state: State = state_of(&places.text()?)?;
    let at = places.time()?;
    let seen = Seen::read(queue, places.value()?)?;
    let bytes = seen.body_len();
    Ok(Row { number, at, bytes, view: seen.into_view(state, paused)? })
}
