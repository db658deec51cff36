//! Which lanes of a subscription have ready jobs: one statement however many queues it has, and for many of them not in
//! every lease.

use std::collections::HashMap;
use std::time::Duration;

use rusqlite::{Connection, params};
use tokio::time::Instant;

use super::turned::turned;
use super::tx::band_from;
use crate::broker::backend::{Terms, Want};
use crate::broker::rounds::Open;
use crate::error::{Error, Kind, Result};
use crate::job::{Lane, ModelName, Queue};

/// A look at so many queues takes about as long as leasing one job; what more of them have is looked at less often.
const MANY: usize = 32;
/// For how long a look at many queues is good while it promises enough. A look at a thousand of them takes half a
/// millisecond: a fiftieth of this.
const FRESH: Duration = Duration::from_millis(25);
/// How many lanes a look sees: of a file with more of them that have ready jobs, those of the queues named first.
const SEEN: u32 = 10_000;

/// The lanes with ready jobs of these queues, in their order.
pub(super) const LOOK: &str = "SELECT l.id, l.model, l.band, l.ready, q.paused IS NOT NULL, q.id, n.key
     FROM json_each(?1) n CROSS JOIN queue q ON q.name = n.value CROSS JOIN lane l ON l.queue = q.id
     WHERE l.ready > 0 LIMIT ?2";

/// A lane with ready jobs.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) id: i64,
    pub(super) queue: i64,
    pub(super) lane: Lane,
    pub(super) ready: u32,
    pub(super) paused: bool,
}

/// The queues of a subscription as a statement takes them.
#[derive(Clone, Debug)]
pub(super) struct Names(String);

/// The lanes of a subscription as of its last look.
#[derive(Debug)]
pub(super) struct Lanes {
    names: Names,
    pub(super) list: Vec<Candidate>,
    /// When that was, and the file's count of what had turned, if it is good for longer.
    looked: Option<(Instant, i64)>,
}

impl Names {
    pub(super) fn of(terms: &Terms) -> Result<Self> {
        let names: Vec<&str> = terms.queues.iter().map(|(queue, _)| queue.as_str()).collect();
        let text = serde_json::to_string(&names);
        text.map(Self).map_err(|error| Error::new(Kind::Config, "subscribe", format!("no list of queues: {error}")))
    }

    /// Lanes with ready jobs, in the order of the queues.
    pub(super) fn lanes(&self, conn: &Connection, terms: &Terms) -> rusqlite::Result<Vec<Candidate>> {
        let mut statement = conn.prepare_cached(LOOK)?;
        let mut rows = statement.query(params![self.0, SEEN])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            let Some((queue, _)) = terms.queues.get(row.get::<_, u32>(6)? as usize) else { continue };
            found.push(Candidate {
                id: row.get(0)?,
                lane: lane_of(queue, row.get(1)?, row.get(2)?),
                ready: u32::try_from(row.get::<_, i64>(3)?).unwrap_or(u32::MAX),
                paused: row.get(4)?,
                queue: row.get(5)?,
            });
        }
        Ok(found)
    }
}

impl Lanes {
    pub(super) fn new(names: Names) -> Self {
        Self { names, list: Vec::new(), looked: None }
    }

    /// Looks anew, unless the last look is still good: nothing has turned since, as a pause does. Whether it looked.
    pub(super) fn look(&mut self, conn: &Connection, terms: &Terms) -> rusqlite::Result<bool> {
        let turned = if terms.queues.len() > MANY { Some(turned(conn)?) } else { None };
        if self.looked.is_some_and(|(at, then)| at.elapsed() < FRESH && turned == Some(then)) {
            return Ok(false);
        }
        self.list = self.names.lanes(conn, terms)?;
        self.looked = turned.map(|turned| (Instant::now(), turned));
        Ok(true)
    }

    /// The next look looks anew.
    pub(super) fn spoil(&mut self) {
        self.looked = None;
    }

    /// How many jobs each lane may give, of which some were had.
    pub(super) fn open(&self, want: &Want, had: &HashMap<i64, u32>) -> Vec<Open> {
        let caps: HashMap<&Lane, u32> = want.caps.iter().map(|(lane, cap)| (lane, *cap)).collect();
        let open = |lane: &Candidate| {
            let cap = if caps.is_empty() { want.rest } else { caps.get(&lane.lane).copied().unwrap_or(want.rest) };
            let left = cap.saturating_sub(had.get(&lane.id).copied().unwrap_or(0));
            let room = if lane.paused { 0 } else { left.min(lane.ready) };
            Open { lane: lane.lane.clone(), room }
        };
        self.list.iter().map(open).collect()
    }
}

pub(super) fn lane_of(queue: &Queue, model: Option<String>, band: i64) -> Lane {
    Lane { queue: queue.clone(), model: model.map(|model| ModelName::new(&model)), band: band_from(band) }
}
