//! One page of jobs on its way: put in at the target, their batches noted, forgotten at the source. In this order, so
//! that a death after any step leaves each job at one of the two or at both, and the next try finds it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use promptq_common::broker::{Broker, Enqueued, Envelope, Refusal};
use promptq_common::job::{BatchName, JobId, Queue};
use promptq_common::ledger::JobView;
use promptq_common::record::State;

use super::{Moved, Open, Refused};
use crate::problem::{Exit, Problem, Result};
use crate::submit::jobs;

/// How many refused jobs are named.
const SAMPLES: usize = 3;

/// Carries a page over and counts it.
pub(super) async fn carry(
    from: &Broker,
    to: &Broker,
    (open, page): (&mut Open, Vec<Envelope>),
    moved: &mut Moved,
) -> Result<()> {
    let mut batches: BTreeMap<JobId, (BatchName, Queue)> = BTreeMap::new();
    let epochs: Vec<(JobId, u32)> = page.iter().map(|envelope| (envelope.head.id, envelope.head.epoch)).collect();
    for head in page.iter().map(|envelope| &envelope.head) {
        batches.extend(head.batch.clone().map(|batch| (head.id, (batch, head.lane.queue.clone()))));
    }
    let answers = if page.is_empty() { Vec::new() } else { to.enqueue_moved(page).await? };
    let behind = behind(to, &epochs, &answers).await?;
    let (mut there, mut known) = (Vec::with_capacity(epochs.len()), 0);
    for ((id, epoch), answer) in epochs.into_iter().zip(answers) {
        match answer {
            Enqueued::Refused(refusal) => moved.refused.note(id, why(&refusal)),
            Enqueued::Known(state) if behind.contains(&id) => {
                moved.refused.note(id, format!("was {} there before it was put back in line here", state.as_str()));
            }
            Enqueued::New => there.push((id, epoch)),
            Enqueued::Known(_) => {
                known += 1;
                there.push((id, epoch));
            }
        }
    }
    open.add(from, to, there.iter().filter_map(|(id, _)| batches.remove(id))).await?;
    let gone = if there.is_empty() { 0 } else { from.forget(&there).await? };
    moved.moved += gone;
    moved.known += known;
    if gone < there.len() as u64 { met_others(from, to, &there).await } else { Ok(()) }
}

/// Jobs that ended there in an earlier epoch than the one they wait in here: somebody redrove them here meanwhile, and
/// the target would never run them.
async fn behind(to: &Broker, epochs: &[(JobId, u32)], answers: &[Enqueued]) -> Result<BTreeSet<JobId>> {
    let unsure: HashMap<JobId, u32> = (epochs.iter().zip(answers))
        .filter(|((_, epoch), answer)| *epoch > 0 && matches!(answer, Enqueued::Known(state) if is_redrivable(*state)))
        .map(|(job, _)| *job)
        .collect();
    if unsure.is_empty() {
        return Ok(BTreeSet::new());
    }
    let ids: Vec<JobId> = unsure.keys().copied().collect();
    let views = to.ledger().fetch(&ids).await?;
    let is_behind = |(id, view): &(&JobId, Option<JobView>)| {
        let epoch = view.as_ref().map_or(0, |view| view.epoch);
        unsure.get(id).is_some_and(|here| epoch < *here)
    };
    Ok(ids.iter().zip(views).filter(is_behind).map(|(id, _)| *id).collect())
}

fn is_redrivable(state: State) -> bool {
    state.is_ended() && state != State::Succeeded
}

fn why(refusal: &Refusal) -> String {
    match refusal {
        Refusal::Conflict => "another job has its id there".to_owned(),
        Refusal::TooLarge(bytes) => format!("is too large there ({bytes} bytes)"),
        Refusal::NoSuchQueue => "there is no such queue there".to_owned(),
        Refusal::OtherQueue(queue) => format!("its batch belongs to queue {queue} there"),
    }
}

impl Refused {
    fn note(&mut self, id: JobId, why: String) {
        self.count += 1;
        if self.samples.len() < SAMPLES {
            self.samples.push((id, why));
        }
    }
}

/// Some jobs no longer waited when they were to be forgotten. Another process with the same command has forgotten them
/// already, which is well; they have ended here, cancelled by a user or answered late, and need not run there; or a worker
/// runs them.
async fn met_others(from: &Broker, to: &Broker, there: &[(JobId, u32)]) -> Result<()> {
    let ids: Vec<JobId> = there.iter().map(|(id, _)| *id).collect();
    let views: Vec<_> = from.ledger().fetch(&ids).await?.into_iter().flatten().collect();
    let ended: Vec<JobId> = views.iter().filter(|view| view.state.is_ended()).map(|view| view.id).collect();
    if !ended.is_empty() {
        to.cancel(&ended).await?;
    }
    let running: Vec<JobId> = views.iter().filter(|view| view.state == State::Running).map(|view| view.id).collect();
    if running.is_empty() {
        return Ok(());
    }
    let what =
        format!("{} began to run here after they had been put in there: both may run them", jobs(running.len() as u64));
    let problem = Problem::new(Exit::Conflict, "resumed", what)
        .hint("somebody resumed the queue; cancel them at one of the two, then run the same command again");
    Err(running.iter().take(SAMPLES).fold(problem, |problem, id| problem.detail(id.to_string())))
}
