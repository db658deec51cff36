//! Lanes of models that are no longer declared: nothing is led to them any more, what they hold is worked off, and the
//! empty ones are deleted. A server deletes a queue together with the deliveries that consumers hold, and does not show
//! them, so a lane goes only after nobody has consumed it, nothing has waited in it and no job of it has run for a while.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::lanes::{self, Change, Note};
use super::talk::{Look, Talk};
use super::wanted::WantedQueue;
use super::{Settings, names, or_error, wanted};
use crate::broker::{Declared, Remark};
use crate::error::{Error, Kind, Result};
use crate::job::{Lane, ModelName, Priority, Queue};
use crate::ledger::{JobFilter, Ledger};
use crate::record::State;
use crate::time::Timestamp;

/// How long a lane must have been empty: twice the 5 s for which a worker keeps deliveries of a lane that it no longer
/// takes from.
const QUIET: Duration = Duration::from_secs(10);
/// Workers look every 30 s which lanes there are, and give back what they hold of one that is gone after another 5 s.
const PATIENCE: Duration = Duration::from_secs(50);
/// How often the lanes are looked at.
const EVERY: Duration = Duration::from_secs(1);
/// From when on workers consume the lanes again if this process dies.
const AWAY: Duration = Duration::from_secs(120);

/// Gives up the lanes of all models but `keep`: from here on nothing leads to them or to those given up earlier, and
/// workers do not take from them for as long as the deleting may last. Says which they are.
/// Dead after it: they are consumed again two minutes later, and the next call goes on.
pub(super) async fn begin(
    talk: &mut Talk<'_>,
    change: &Change<'_>,
    keep: &[ModelName],
    settings: &Settings,
) -> Result<Vec<Lane>> {
    let mut note = lanes::read(change.ledger, change.queue).await?;
    note.give_up_all_but(keep);
    // One that comes back is bound by the declaration that follows, or if this process dies by whoever looks next.
    note.take_up(keep);
    note.whole = false;
    if note.leaving.is_empty() {
        return Ok(Vec::new());
    }
    note.quiet_until = Some(Timestamp::now() + AWAY);
    lanes::write(change.ledger, change.queue, &note).await?;
    let lanes = leaving(change.queue, &note);
    for lane in &lanes {
        unbind(talk, &wanted::lane(lane, settings)).await?;
    }
    Ok(lanes)
}

/// Deletes those of the lanes that are empty, and says which are left and why: workers work them off, and the next prune
/// finds them empty.
pub(super) async fn finish(
    talk: &mut Talk<'_>,
    change: &Change<'_>,
    lanes: Vec<Lane>,
    declared: &mut Declared,
) -> Result<()> {
    if lanes.is_empty() {
        return Ok(());
    }
    let suspects = lanes.into_iter().map(Suspect::new).collect();
    let left: Vec<Lane> =
        watch(talk, change, suspects, declared).await?.into_iter().map(|suspect| suspect.tell(declared)).collect();
    let mut note = lanes::read(change.ledger, change.queue).await?;
    note.leaving.retain(|model| left.iter().any(|lane| lane.model_str() == model));
    note.quiet_until = None;
    lanes::write(change.ledger, change.queue, &note).await
}

/// A lane that may go.
struct Suspect {
    lane: Lane,
    /// Since when it has been empty.
    since: Option<Instant>,
    seen: Seen,
}

/// How a lane looks.
#[derive(Clone, Copy)]
enum Seen {
    Waiting(u32),
    Running(u64),
    Consumed(u32),
    Empty,
}

impl Seen {
    fn of(look: Look, running: u64) -> Self {
        match look {
            Look { ready: 1.., .. } => Self::Waiting(look.ready),
            _ if running > 0 => Self::Running(running),
            Look { consumers: 1.., .. } => Self::Consumed(look.consumers),
            _ => Self::Empty,
        }
    }

    /// Whether a moment may change it: jobs are there for longer than anybody would wait for here.
    fn may_pass(self) -> bool {
        matches!(self, Self::Consumed(_) | Self::Empty)
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Waiting(jobs) => write!(f, "jobs wait in it ({jobs})"),
            Self::Running(jobs) => write!(f, "jobs of it run ({jobs})"),
            Self::Consumed(workers) => write!(f, "workers still take from it ({workers})"),
            Self::Empty => f.write_str("it has not been empty for long"),
        }
    }
}

impl Suspect {
    fn new(lane: Lane) -> Self {
        Self { lane, since: None, seen: Seen::Empty }
    }

    fn tell(self, declared: &mut Declared) -> Lane {
        declared.left.push(Remark { name: names::lane_queue(&self.lane), why: self.seen.to_string() });
        self.lane
    }

    /// Takes note of how the lane looks. Whether it has been empty for long enough.
    fn note(&mut self, seen: Seen) -> bool {
        self.seen = seen;
        self.since = matches!(seen, Seen::Empty).then(|| self.since.unwrap_or_else(Instant::now));
        self.since.is_some_and(|since| since.elapsed() >= QUIET)
    }
}

/// Deletes what has been empty for [`QUIET`]; gives back what is not so by [`PATIENCE`].
async fn watch(
    talk: &mut Talk<'_>,
    change: &Change<'_>,
    mut suspects: Vec<Suspect>,
    declared: &mut Declared,
) -> Result<Vec<Suspect>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let running = running(change.ledger, change.queue).await?;
        for mut suspect in std::mem::take(&mut suspects) {
            let name = names::lane_queue(&suspect.lane);
            let Some(look) = talk.look(&name).await? else { continue };
            if suspect.note(Seen::of(look, running.of(&suspect.lane))) {
                or_error(talk.delete(&name).await?)?;
                declared.pruned.push(name);
            } else {
                suspects.push(suspect);
            }
        }
        let hopeful = suspects.iter().any(|suspect| suspect.seen.may_pass());
        if !hopeful || Instant::now() > deadline {
            return Ok(suspects);
        }
        if !change.holds().await? {
            return Err(Error::new(Kind::Conflict, "prune lanes", "another process changes them; run it again"));
        }
        sleep(EVERY).await;
    }
}

/// Takes away every way to a queue.
pub(super) async fn unbind(talk: &mut Talk<'_>, queue: &WantedQueue) -> Result<()> {
    for binding in &queue.bindings {
        match talk.unbind(&queue.name, binding).await? {
            // The queue is gone, and its bindings with it.
            Err(refused) if refused.code == 404 => {}
            answer => or_error(answer)?,
        }
    }
    Ok(())
}

fn leaving(queue: &Queue, note: &Note) -> Vec<Lane> {
    let models: Vec<_> = note.leaving.iter().map(|model| ModelName::new(model)).collect();
    lanes::of(queue, &models).filter(|lane| lane.model.is_some()).collect()
}

/// Running jobs by lane.
struct Running {
    lanes: BTreeMap<Lane, u64>,
    /// Of whatever lane, where the ledger does not tell.
    somewhere: u64,
}

impl Running {
    fn of(&self, lane: &Lane) -> u64 {
        self.lanes.get(lane).copied().unwrap_or(0) + self.somewhere
    }
}

/// What the ledger knows of running jobs. One that does not know while workers say that they run some may not know of
/// jobs of these lanes either.
async fn running(ledger: &dyn Ledger, queue: &Queue) -> Result<Running> {
    let of = |queue: Option<Queue>| JobFilter { queue, states: vec![State::Running], ..JobFilter::default() };
    let mut lanes = BTreeMap::new();
    let mut cursor = None;
    loop {
        let page = ledger.list(&of(Some(queue.clone())), cursor.as_deref(), 1_000).await?;
        for job in page.items {
            let band = Priority::new(job.priority).unwrap_or_default().band();
            let lane = Lane { queue: job.queue, model: job.model.as_deref().map(ModelName::new), band };
            *lanes.entry(lane).or_default() += 1;
        }
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    let told: u64 = ledger.workers().await?.iter().map(|worker| u64::from(worker.running)).sum();
    let knows = told == 0 || !lanes.is_empty() || !ledger.list(&of(None), None, 1).await?.items.is_empty();
    Ok(Running { lanes, somewhere: if knows { 0 } else { told } })
}
