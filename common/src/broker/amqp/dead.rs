//! The dead queue: what RabbitMQ or somebody else's client threw out of a lane. Each message becomes a dead job with the
//! reason and the queue it came from, so that it is seen and redriven like any other.

use std::time::Duration;

use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicGetOptions};
use lapin::types::{AMQPValue, FieldTable};

use super::post::{Notice, Post};
use super::topology;
use super::wire::{self, Read, Reply};
use crate::broker::backend::{Claim, LeaseId, Settled, Verdict, WorkerId};
use crate::error::Result;
use crate::job::Queue;
use crate::ledger::{Asked, Registered};
use crate::outcome::FailureClass;
use crate::record::{Cause, End, Record};

const OP: &str = "take in dead messages";
/// How many are taken in by one call.
const AT_ONCE: usize = 100;
/// How many are looked at by one call: those that have to stay for now, as those of a paused queue have to, are passed
/// by, at a call to the server and one to the ledger each.
const LOOKED_AT: usize = 2_000;
const LEASE: Duration = Duration::from_secs(30);

/// Takes in what lies in the dead queue. Whether there may be more.
pub(super) async fn take_in(post: &Post) -> Result<bool> {
    if topology::ready(&post.link, topology::DEAD).await?.unwrap_or(0) == 0 {
        return Ok(false);
    }
    let channel = post.link.channel().await?;
    let failed = |error: lapin::Error| post.link.peer().lift(OP, &error);
    let worker = WorkerId::random("dead");
    let (mut more, mut taken) = (true, 0_usize);
    for _ in 0..LOOKED_AT {
        let asked = channel.basic_get(topology::DEAD.into(), BasicGetOptions::default());
        let got = post.link.answer(OP, asked).await?.map_err(failed)?;
        let Some(message) = got else {
            more = false;
            break;
        };
        // One that cannot be ended now goes back with the channel, for a later sweep.
        let Some(answer) = bury(post, &worker, &message.delivery).await? else { continue };
        crate::crash_point!("amqp.dead.after_ledger");
        message.delivery.acker.ack(BasicAckOptions::default()).await.map_err(failed)?;
        if let Answer::To(reply, record) = answer {
            post.reply(&reply, &Notice::new(&record)).await;
        }
        taken += 1;
        if taken == AT_ONCE {
            break;
        }
    }
    post.link.answer(OP, channel.close(200, "done".into())).await?.map_err(failed)?;
    Ok(more && taken > 0)
}

/// What is left to do once the message is acknowledged.
enum Answer {
    /// Its client waits for this end.
    To(Reply, Box<Record>),
    Nobody,
}

/// Ends the job of a dead message, unless it has ended. `None`: its queue is paused, or somebody has or had a claim on it
/// that may be a dead worker's, and this message may be all that there is of the job.
async fn bury(post: &Post, worker: &WorkerId, delivery: &Delivery) -> Result<Option<Answer>> {
    let headers = delivery.properties.headers();
    let header = |name: &str| headers.as_ref().and_then(|headers| text(headers, name)).unwrap_or_default();
    let (reason, origin) = (header("x-first-death-reason"), header("x-first-death-queue"));
    let lane_of = topology::queue_of_lane(&origin);
    // What came from no lane was put here by hand: whoever it names for an answer asked nothing of us.
    let asked = lane_of.is_some();
    let mut read = wire::read(delivery, &lane_of.unwrap_or_else(Queue::standard), post.clock.now());
    if read.parcel.named && post.claims.register(&[&read.parcel.envelope.head]).await?.contains(&Registered::Conflict) {
        // Else the job that has its name would end.
        read = Read::conflicting(read.parcel, post.clock.now());
    }
    let head = &read.parcel.envelope.head;
    let lease = LeaseId::random();
    let opened = post.claims.open(head, &Asked { lease, worker, length: LEASE, redelivered: false }).await?;
    match opened.claim {
        Claim::Fresh { .. } | Claim::Cancelled => {}
        Claim::Taken { .. } | Claim::Paused { .. } => return Ok(None),
        Claim::Ended(_) | Claim::Stale => {
            return post.conclude(&read.parcel, &opened).await.map(|()| Some(Answer::Nobody));
        }
    }
    let mut record = read.dead.unwrap_or_else(|| {
        let cause = Cause {
            class: Some(FailureClass::Fatal),
            code: "rejected".to_owned(),
            detail: format!("its message was thrown out of {origin}: {reason}"),
            status_code: None,
        };
        Box::new(Record::unrun(head, End::Dead, Some(cause), post.clock.now()))
    });
    record.lease = lease;
    let verdict = Verdict::End(record.clone());
    let settled = post.claims.settle(head, lease, &verdict, Some(&read.parcel.envelope.payload)).await?;
    if settled == Settled::Stale {
        // The job has ended otherwise meanwhile, or our claim has: this record is nobody's.
        return Ok(None);
    }
    post.announce_one(&Notice::new(&record)).await?;
    let reply = read.parcel.reply.filter(|_| asked);
    Ok(Some(reply.map_or(Answer::Nobody, |reply| Answer::To(reply, record))))
}

#[expect(clippy::wildcard_enum_match_arm, reason = "nothing else is text")]
fn text(headers: &FieldTable, name: &str) -> Option<String> {
    match headers.inner().get(name)? {
        AMQPValue::LongString(text) => Some(text.to_string()),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        _ => None,
    }
}
