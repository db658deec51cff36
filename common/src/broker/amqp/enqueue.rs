//! Putting jobs in: what has a key or a batch is entered in the ledger first, then its message is published, then the
//! ledger is told that it is durable. What has neither is only published.

use std::collections::HashMap;

use super::post::Post;
use super::publisher::Sent;
use super::wire::{self, Parcel};
use crate::broker::backend::{Enqueued, Envelope, Head, Refusal};
use crate::error::{Kind, Result};
use crate::job::JobId;
use crate::ledger::Registered;
use crate::record::State;

/// Whether the ledger has to know a job before its message is met.
fn is_registered(head: &Head) -> bool {
    head.keyed || head.batch.is_some() || head.epoch > 0 || head.attempts > 0
}

/// One answer each, in order; see [`crate::broker::Backend::enqueue`].
pub(super) async fn enqueue(post: &Post, batch: Vec<Envelope>) -> Result<Vec<Enqueued>> {
    let mut answers: Vec<Option<Enqueued>> = refused(&batch);
    let mut again = vec![false; batch.len()];
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
                Registered::Known(state) => Some(Enqueued::Known(state)),
                Registered::Conflict => Some(Enqueued::Refused(Refusal::Conflict)),
                Registered::OtherQueue(queue) => Some(Enqueued::Refused(Refusal::OtherQueue(queue))),
            };
        }
    }
    crate::crash_point!("amqp.enqueue.after_register");
    let (mut places, mut parcels) = (Vec::new(), Vec::new());
    for (place, envelope) in batch.into_iter().enumerate() {
        if answers[place].is_none() {
            places.push(place);
            parcels.push(Parcel { envelope, reply: None, named: false, again: again[place] });
        }
    }
    publish(post, &places, &parcels, &mut answers).await?;
    Ok(answers.into_iter().map(|answer| answer.unwrap_or(Enqueued::New)).collect())
}

/// What needs no asking: jobs that are too large, and repetitions within the call.
fn refused<'a>(batch: &'a [Envelope]) -> Vec<Option<Enqueued>> {
    let mut first = HashMap::<JobId, &Head>::new();
    let one = |envelope: &'a Envelope| {
        let Envelope { head, payload } = envelope;
        if payload.len() > wire::LARGEST {
            return Some(Enqueued::Refused(Refusal::TooLarge(payload.len())));
        }
        match first.insert(head.id, head) {
            Some(earlier) if earlier.fingerprint != head.fingerprint => Some(Enqueued::Refused(Refusal::Conflict)),
            Some(_) => Some(Enqueued::Known(State::Queued)),
            None => None,
        }
    };
    batch.iter().map(one).collect()
}

async fn publish(post: &Post, places: &[usize], parcels: &[Parcel], answers: &mut [Option<Enqueued>]) -> Result<()> {
    let mut messages = Vec::with_capacity(parcels.len());
    for parcel in parcels {
        messages.push(post.to_lane(parcel, post.wait(&parcel.envelope.head))?);
    }
    let sent = post.link.publisher().publish_all(messages).await;
    crate::crash_point!("amqp.enqueue.after_publish");
    let (mut durable, mut nowhere, mut trouble) = (Vec::new(), Vec::new(), None);
    for ((place, parcel), sent) in places.iter().zip(parcels).zip(sent) {
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
        nowhere.extend(is_registered(head).then_some((head.id, head.epoch)));
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
