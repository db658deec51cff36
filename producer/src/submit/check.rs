//! The first pass: every row read, made and thrown away; repeated ids found, the ledger asked. Nothing is enqueued.

use std::sync::Arc;

use promptq_common::broker::{Broker, MAX_BATCH};
use promptq_common::job::{Fingerprint, JobId};
use promptq_common::ledger::Known;
use promptq_common::work::Input as Asked;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::{Doubts, Faults, OnConflict, Terms, conflict, grouped};
use crate::forecast::{Forecast, Forecaster, Share};
use crate::input::{Distinct, Input, Item, Made, Print, Reading};
use crate::problem::{Exit, Problem, Result};

/// What an input holds.
#[derive(Debug)]
pub struct Checked {
    /// Rows that become jobs, repeated ones included.
    pub rows: u64,
    /// Rows that are wrong.
    pub invalid: u64,
    /// Rows whose id an earlier row has.
    pub repeated: u64,
    /// Jobs that are there already.
    pub known: u64,
    /// Rows whose id stands for other content submitted before.
    pub conflicts: u64,
    /// The first job.
    pub first: Option<Sample>,
    /// What the jobs that are not there yet will probably take, where that was asked for.
    pub forecast: Option<Forecast>,
    /// Why some of the jobs may come to nothing.
    pub doubts: Doubts,
    /// What the files were.
    pub(super) prints: Vec<Print>,
}

/// A job to show.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The submitter's name for it.
    pub custom_id: Option<String>,
    /// The prompt, or the request's body.
    pub text: String,
}

/// Problems shown of one kind.
const SHOWN: usize = 20;
/// Rows asked about at once, and such windows read ahead.
const AHEAD: usize = 4;

/// Reads the whole input in flat memory, and guesses at its jobs with a `forecaster`. Safe to drop at any point.
///
/// # Errors
/// Rows that are wrong or repeat an id, unless skipped (exit 2); ids that stand for other content already, unless
/// skipped (exit 6); an input without rows (exit 2).
pub async fn check(
    input: &Arc<Input>,
    broker: &Broker,
    terms: Terms,
    forecaster: Option<Forecaster>,
) -> Result<Checked> {
    let ask_all = input.named() && broker.ledger().batch(input.batch()).await?.is_some();
    let (sender, rows) = mpsc::channel(AHEAD);
    let (reading, forecast) = (input.read(), forecaster.as_ref().map(Forecaster::forecast));
    let mut reader = JoinSet::new();
    reader.spawn_blocking(move || read_all(reading, ask_all, forecaster.as_ref(), &sender));
    let met = meet(broker, rows, forecast).await?;
    let seen = ended(reader).await?;
    let nothing = "nothing was enqueued (files are checked whole before the first job)";
    if !terms.skip_invalid && !seen.faults.is_empty() {
        let others = seen.rows;
        let problem = seen.faults.problem(nothing, others > 0);
        return Err(if others > 0 {
            problem.detail(if others == 1 {
                "1 other row is fine".into()
            } else {
                format!("{} other rows are fine", grouped(others))
            })
        } else {
            problem
        });
    }
    let (repeated, pairs) = seen.repeats;
    if repeated > 0 && !terms.skip_invalid {
        let (reading, mut reader) = (input.read(), JoinSet::new());
        reader.spawn_blocking(move || repeats(reading, repeated, &pairs));
        return Err(ended(reader).await?.detail(nothing));
    }
    if met.conflicts > 0 && terms.on_conflict == OnConflict::Fail && !terms.skip_invalid {
        return Err(conflict(met.conflicts, &met.conflict_rows, met.counted).detail(nothing));
    }
    if seen.rows == 0 {
        return Err(Problem::new(Exit::Usage, "no-rows", "there are no rows to submit"));
    }
    let Seen { rows, faults, first, doubts, prints, .. } = seen;
    let Met { known, conflicts, forecast, .. } = met;
    Ok(Checked { rows, invalid: faults.count(), repeated, known, conflicts, first, forecast, doubts, prints })
}

/// What the one reader came to.
async fn ended<T: 'static>(mut reader: JoinSet<Result<T>>) -> Result<T> {
    match reader.join_next().await {
        Some(Ok(read)) => read,
        Some(Err(_)) | None => Err(Problem::new(Exit::Failed, "failed", "reading the input broke off")),
    }
}

/// A job on its way to be asked about.
#[derive(Debug)]
pub(super) struct Ask {
    /// What the ledger may know it by.
    key: Option<(JobId, Fingerprint)>,
    row: u64,
    /// Whether only that number names it.
    by_row: bool,
    share: Option<Share>,
}

/// What the ledger knows of the jobs, and what the others will take.
#[derive(Debug, Default)]
struct Met {
    known: u64,
    conflicts: u64,
    conflict_rows: Vec<u64>,
    /// Whether one of those has nothing but its row to name it.
    counted: bool,
    forecast: Option<Forecast>,
}

async fn meet(broker: &Broker, mut rows: mpsc::Receiver<Vec<Ask>>, forecast: Option<Forecast>) -> Result<Met> {
    let mut met = Met { forecast, ..Met::default() };
    while let Some(window) = rows.recv().await {
        let keys: Vec<_> = window.iter().filter_map(|ask| ask.key).collect();
        let answers = if keys.is_empty() { Vec::new() } else { broker.ledger().known(&keys).await? };
        let (mut answers, mut new) = (answers.into_iter(), Vec::new());
        for ask in window {
            match ask.key.and_then(|_| answers.next()) {
                None | Some(Known::New) => new.extend(ask.share),
                Some(Known::Same(_)) => met.known += 1,
                Some(Known::Conflict(_)) => {
                    met.conflicts += 1;
                    met.counted |= ask.by_row;
                    met.conflict_rows.extend((met.conflict_rows.len() < SHOWN).then_some(ask.row));
                }
            }
        }
        if let Some(forecast) = &mut met.forecast {
            forecast.take(new).await;
        }
    }
    Ok(met)
}

/// What one reading saw.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) rows: u64,
    faults: Faults,
    repeats: (u64, Vec<(u64, u64)>),
    first: Option<Sample>,
    doubts: Doubts,
    prints: Vec<Print>,
}

pub(super) fn read_all(
    mut reading: Reading,
    ask_all: bool,
    forecaster: Option<&Forecaster>,
    sender: &mpsc::Sender<Vec<Ask>>,
) -> Result<Seen> {
    let spill = |error: std::io::Error| {
        Problem::new(Exit::Failed, "spool", format!("cannot keep the ids in a temporary file: {error}"))
            .hint("set TMPDIR to a folder with room")
    };
    let (mut rows, mut faults, mut distinct, mut first) = (0, Faults::default(), Distinct::default(), None);
    let mut window: Vec<Ask> = Vec::new();
    // Without a listener the check was dropped, and so is this.
    while !sender.is_closed()
        && let Some(Item { row, place, made }) = reading.next_item()?
    {
        let made = match made {
            Ok(made) => made,
            Err(fault) => {
                faults.add(row, place, fault);
                continue;
            }
        };
        rows += 1;
        first.get_or_insert_with(|| sample(&made));
        if let Some(id) = made.unique {
            distinct.add(id, row).map_err(spill)?;
        }
        let is_asked = made.job.keyed && (ask_all || made.own_key);
        if is_asked || forecaster.is_some() {
            let key = is_asked.then(|| (made.job.id, made.job.fingerprint()));
            let by_row = made.job.custom_id.is_none() && !made.own_key;
            let share = forecaster.map(|forecaster| forecaster.share(&made.job));
            window.push(Ask { key, row, by_row, share });
        }
        if window.len() >= MAX_BATCH && sender.blocking_send(std::mem::take(&mut window)).is_err() {
            break;
        }
    }
    if !window.is_empty() {
        drop(sender.blocking_send(window));
    }
    let (repeats, doubts) = (distinct.repeats(SHOWN).map_err(spill)?, reading.doubts());
    Ok(Seen { rows, faults, repeats, first, doubts, prints: reading.prints() })
}

fn sample(made: &Made) -> Sample {
    let text = match &made.job.work.input {
        Asked::Prompt(prompt) => &prompt.text,
        Asked::Request { body, .. } => body,
    };
    let short: String = text.chars().take(120).map(|c| if c.is_control() { ' ' } else { c }).collect();
    let text = if text.chars().count() > 120 { format!("{short}…") } else { short };
    Sample { custom_id: made.job.custom_id.clone(), text }
}

/// Reads once more to say where the repeated ids stand.
fn repeats(mut reading: Reading, count: u64, pairs: &[(u64, u64)]) -> Result<Problem> {
    let rows = if count == 1 { "row repeats" } else { "rows repeat" };
    let what = format!("{} {rows} the id of an earlier row", grouped(count));
    let mut problem = Problem::new(Exit::Usage, "duplicate-id", what);
    let last = pairs.iter().map(|(_, later)| *later).max().unwrap_or_default();
    let mut wanted = pairs.to_vec();
    wanted.sort_by_key(|(_, later)| *later);
    let mut wanted = wanted.into_iter().peekable();
    while let Some(item) = reading.next_item()? {
        while let Some((earlier, _)) = wanted.next_if(|(_, later)| *later == item.row) {
            let id = item.made.as_ref().ok().and_then(|made| made.job.custom_id.clone()).unwrap_or_default();
            problem = problem.detail(format!(
                "--> {}:{}  | row {} has the id {id:?} of row {earlier}",
                item.place.file, item.place.line, item.row
            ));
        }
        if item.row >= last {
            break;
        }
    }
    if count > pairs.len() as u64 {
        problem = problem.detail(format!("… and {} more", grouped(count - pairs.len() as u64)));
    }
    Ok(problem.hint("give every row its own id, or pass --skip-invalid to keep the first of each"))
}
