//! Putting jobs in: what has a key or a batch is entered in the ledger first, then its message is published, then the
//! ledger is told that it is durable. What has neither is only published.

use std::collections::{HashMap, HashSet};

use super::post::Post;
use super::publisher::Sent;
use super::wire::{self, Parcel};
use crate::broker::backend::{Enqueued, Envelope, Head, Refusal};
use crate::error::{Kind, Result};
use crate::job::{BatchName, JobId, Queue};
use crate::ledger::Registered;
use crate::record::State;

/// Whether the ledger has to know a job before its message is met.
fn is_registered(head: &Head) -> bool {
    head.keyed || head.batch.is_some() || head.epoch > 0 || head.attempts > 0
}

/// One answer each, in order; see [`crate::broker::Backend::enqueue`]. With `lost`, the messages of those that are known
/// and have not ended are published again. `nowhere` is which queues there are not: of their jobs nothing is noted.
pub(super) async fn enqueue(
    post: &Post,
    mut batch: Vec<Envelope>,
    (lost, nowhere): (bool, &HashSet<Queue>),
) -> Result<Vec<Enqueued>> {
    let mut answers: Vec<Option<Enqueued>> = refused(&batch, nowhere);
    post.look_at_lanes(&batch);
    let mut again = vec![false; batch.len()];
    let mut missed: Vec<Option<State>> = vec![None; batch.len()];
    let registered: Vec<usize> =
        (0..batch.len()).filter(|place| answers[*place].is_none() && is_registered(&batch[*place].head)).collect();
    let heads: Vec<&Head> = registered.iter().map(|place| &batch[*place].head).collect();
    if !heads.is_empty() {
        for (place, said) in registered.iter().zip(post.claims.register(&heads).await?) {
            answers[*place] = match said {
                Registered::New => None,
                Registered::Again => {
                    again[*place] = true;
                    None
                }
                // One that runs may have ended since the backup that its ledger came from; a copy too many finds its end.
                Registered::Known(state) if lost && !state.is_ended() => {
                    (again[*place], missed[*place]) = (true, Some(state));
                    None
                }
                Registered::Known(state) => Some(Enqueued::Known(state)),
                Registered::Conflict => Some(Enqueued::Refused(Refusal::Conflict)),
                Registered::OtherQueue(queue) => Some(Enqueued::Refused(Refusal::OtherQueue(queue))),
            };
        }
    }
    crate::crash_point!("amqp.enqueue.after_register");
    if lost {
        bring_up_to_date(post, &mut batch, &mut missed).await?;
    }
    let (mut places, mut parcels) = (Vec::new(), Vec::new());
    for (place, envelope) in batch.into_iter().enumerate() {
        if answers[place].is_none() {
            places.push(place);
            parcels.push(Parcel { envelope, reply: None, named: false, again: again[place] });
        }
    }
    let missing = |place: &usize| missed[*place].is_some();
    let parcels = Sending { known: places.iter().map(missing).collect(), places, parcels };
    publish(post, &parcels, &mut answers).await?;
    let here = |state: Option<State>| state.map_or(Enqueued::New, Enqueued::Known);
    Ok(answers.into_iter().zip(missed).map(|(answer, state)| answer.unwrap_or_else(|| here(state))).collect())
}

/// The queues for which `unseen` holds that these jobs need: not those of jobs that are refused, which would stay behind
/// with nothing in them.
pub(super) async fn asked_for(
    post: &Post,
    batch: &[Envelope],
    unseen: impl Fn(&Queue) -> bool,
) -> Result<HashSet<Queue>> {
    let mut queues = HashSet::new();
    let mut owners: HashMap<&BatchName, Option<Queue>> = HashMap::new();
    for Envelope { head, payload } in batch {
        let queue = &head.lane.queue;
        if payload.len() > wire::LARGEST || queues.contains(queue) || !unseen(queue) {
            continue;
        }
        if let Some(name) = &head.batch {
            if !owners.contains_key(name) {
                owners.insert(name, post.ledger().batch(name).await?.map(|view| view.queue));
            }
            if owners[name].as_ref().is_some_and(|owner| owner != queue) {
                continue;
            }
        }
        queues.insert(queue.clone());
    }
    Ok(queues)
}

/// Gives jobs that are known the epoch and attempts they have by now, or their messages would be stale. What earlier
/// attempts of this epoch have cost was in the lost message.
async fn bring_up_to_date(post: &Post, batch: &mut [Envelope], missed: &mut [Option<State>]) -> Result<()> {
    let places: Vec<usize> = (0..batch.len()).filter(|place| missed[*place].is_some()).collect();
    let ids: Vec<JobId> = places.iter().map(|place| batch[*place].head.id).collect();
    for (place, view) in places.into_iter().zip(post.ledger().fetch(&ids).await?) {
        let Some(view) = view else { continue };
        let head = &mut batch[place].head;
        (head.epoch, head.attempts, head.not_before) = (view.epoch, view.attempts, view.due);
        head.deadline = head.deadline.max(view.deadline);
        missed[place] = Some(view.state);
    }
    Ok(())
}

/// What is published, and where each stands in the call.
struct Sending {
    places: Vec<usize>,
    parcels: Vec<Parcel>,
    /// Which are known to the ledger as durable.
    known: Vec<bool>,
}

/// What needs no asking: jobs that are too large or have no queue, and repetitions within the call.
fn refused<'a>(batch: &'a [Envelope], nowhere: &HashSet<Queue>) -> Vec<Option<Enqueued>> {
    let mut first = HashMap::<JobId, &Head>::new();
    let one = |envelope: &'a Envelope| {
        let Envelope { head, payload } = envelope;
        if payload.len() > wire::LARGEST {
            return Some(Enqueued::Refused(Refusal::TooLarge(payload.len())));
        }
        if nowhere.contains(&head.lane.queue) {
            return Some(Enqueued::Refused(Refusal::NoSuchQueue));
        }
        match first.insert(head.id, head) {
            Some(earlier) if earlier.fingerprint != head.fingerprint => Some(Enqueued::Refused(Refusal::Conflict)),
            Some(_) => Some(Enqueued::Known(State::Queued)),
            None => None,
        }
    };
    batch.iter().map(one).collect()
}

async fn publish(post: &Post, sending: &Sending, answers: &mut [Option<Enqueued>]) -> Result<()> {
    let Sending { places, parcels, known } = sending;
    let mut messages = Vec::with_capacity(parcels.len());
    for parcel in parcels {
        messages.push(post.to_lane(parcel, post.wait(&parcel.envelope.head))?);
    }
    let sent = post.link.publisher().publish_all(messages).await;
    crate::crash_point!("amqp.enqueue.after_publish");
    let (mut durable, mut nowhere, mut trouble) = (Vec::new(), Vec::new(), None);
    for (((place, parcel), known), sent) in places.iter().zip(parcels).zip(known).zip(sent) {
        let head = &parcel.envelope.head;
        let refusal = match sent {
            Ok(Sent::Taken) => {
                durable.extend(is_registered(head).then_some(head));
                continue;
            }
            Ok(Sent::Returned) => Refusal::NoSuchQueue,
            // A server that takes less than any does as it comes.
            Err(error) if error.kind() == Kind::TooLarge => Refusal::TooLarge(parcel.envelope.payload.len()),
            Err(error) => {
                trouble = Some(error);
                continue;
            }
        };
        answers[*place] = Some(Enqueued::Refused(refusal));
        nowhere.extend((is_registered(head) && !known).then_some((head.id, head.epoch)));
    }
    if !durable.is_empty() {
        post.claims.confirm(&durable).await?;
    }
    crate::crash_point!("amqp.enqueue.after_confirm");
    if !nowhere.is_empty() {
        post.claims.forget(&nowhere).await?;
    }
    // What was taken is noted all the same, so that a repetition publishes the others alone.
    trouble.map_or(Ok(()), Err)
}
