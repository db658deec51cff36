//! Why a job waits that asks for the flex tier, where there is no room: until when, what becomes of it then, and whether
//! anybody is there to do it.

use promptq_common::broker::HoldKey;
use promptq_common::codec::decode_job;
use promptq_common::ledger::{JobView, Ledger, WorkerReport};
use promptq_common::time::{Timestamp, format_duration};
use promptq_worker::tier::waits_until;

use super::why::unserved;
use crate::limits::waits::serves;
use crate::problem::Result;

/// The sentence for such a job; `None` for any other.
pub(super) async fn explain(ledger: &dyn Ledger, job: &JobView, workers: &[WorkerReport]) -> Result<Option<String>> {
    let Some(key) = job.hold.as_ref().and_then(HoldKey::flex) else { return Ok(None) };
    // Where messages are kept apart the ledger does not have it.
    let payload = ledger.payload(job.id).await?;
    let until = payload.and_then(|payload| decode_job(&payload).ok()).map(|job| waits_until(&job));
    let mut says = sentence(key, until, job.due, Timestamp::now());
    if !workers.iter().any(|worker| serves(worker, &job.queue)) {
        says = format!("{says} {}", unserved(job));
    }
    Ok(Some(says))
}

fn sentence(key: &str, until: Option<Timestamp>, due: Option<Timestamp>, now: Timestamp) -> String {
    let left = |moment: Timestamp| format_duration(moment.since(now));
    let until = match until {
        Some(until) if until > now => format!("until {until} (for {})", left(until)),
        Some(_) | None => "until its deadline is near".to_owned(),
    };
    let next =
        due.filter(|due| *due > now).map(|due| format!(" Its next turn to ask comes in {} at the latest.", left(due)));
    format!(
        "It waits for flex room at {key} {until}, then it is called in the standard tier.{}",
        next.unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use promptq_common::broker::{Broker, Terms, Verdict, Want, WorkerId};
    use promptq_common::job::{Job, Queue};
    use promptq_common::work::Work;

    use super::*;
    use crate::limits::tests::worker;

    const HOUR: Duration = Duration::from_secs(3_600);

    #[tokio::test]
    async fn a_job_that_waits_for_flex_room_says_until_when_and_what_then() {
        let broker = Broker::memory();
        let mut job = Job::new(Queue::standard(), Work::prompt(Some("m"), "x"));
        job.deadline = job.created_at + HOUR * 24;
        job.policy.timeout = HOUR;
        let id = job.id;
        broker.enqueue(&[job]).await.unwrap();
        let view = async || broker.ledger().fetch(&[id]).await.unwrap().remove(0).unwrap();
        let workers = [worker("w", Vec::new())];
        assert_eq!(explain(broker.ledger(), &view().await, &workers).await.unwrap(), None);
        let terms = Terms { worker: WorkerId::random("w"), queues: vec![(Queue::standard(), 1)], lease: HOUR };
        let mut consumer = broker.consume(terms).await.unwrap();
        let leased = consumer.next(&Want { total: 1, caps: Vec::new(), rest: 1 }).await.unwrap();
        let wait = Verdict::Release { after: HOUR / 2, hold: Some(HoldKey::of_flex("acme/m")) };
        leased.deliveries.into_iter().next().unwrap().lease.settle(wait).await.unwrap();
        let said = explain(broker.ledger(), &view().await, &workers).await.unwrap().unwrap();
        assert!(said.starts_with("It waits for flex room at acme/m until 2"), "{said}");
        assert!(said.contains(" (for 22h5") && said.contains("m), then it is called in the standard tier."), "{said}");
        assert!(said.contains(" Its next turn to ask comes in ") && !said.contains("No worker"), "{said}");
        let said = explain(broker.ledger(), &view().await, &[]).await.unwrap().unwrap();
        assert!(said.contains(" comes in ") && said.contains(". No worker has served queue default within"), "{said}");
    }

    #[test]
    fn a_job_that_nobody_can_read_is_called_in_the_standard_tier_once_its_deadline_is_near() {
        let now = Timestamp::from_millis(0);
        let said = sentence("acme/m", None, Some(now), now);
        assert_eq!(
            said,
            "It waits for flex room at acme/m until its deadline is near, then it is called in the standard tier."
        );
    }
}
