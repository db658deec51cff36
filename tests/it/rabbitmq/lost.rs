//! Jobs whose messages are gone from RabbitMQ, and what is left behind of what it or the ledger did not take.

use std::time::Duration;

use promptq_common::broker::amqp::QueueType;
use promptq_common::broker::{
    Access, Beside, Broker, Enqueued, Head, PAGE_BYTES, QueueView, Redriven, Refusal, Retention,
};
use promptq_common::error::Kind;
use promptq_common::job::{Job, JobId, Queue};
use promptq_common::ledger::JobFilter;
use promptq_common::record::{End, State};
use promptq_common::time::Timestamp;
use promptq_common::work::Work;
use promptq_tests::backends::{LONG, terms};
use promptq_tests::carrier::Carrier;
use promptq_tests::fixture::{batch, job, job_in, job_of, keyed, queue, registered, retry};
use promptq_tests::process::{Home, Said};
use promptq_tests::rabbit::RawClient;
use promptq_tests::steps::{end, list, put, put_one, see, state, sweep};

const HOUR: Duration = Duration::from_secs(3_600);
const LANE: &str = "pq1.q.default._.normal";

async fn place(carrier: Carrier) -> (Carrier, Broker) {
    let (backend, ledger) = carrier.connect().await;
    (carrier, Broker::new(backend, ledger))
}

/// Does what somebody may do in the management page.
async fn purge_by_hand(carrier: &Carrier) -> usize {
    RawClient::connect(&carrier.host.url()).await.take_all(LANE).await.len()
}

async fn runs(carrier: &Carrier) -> Vec<JobId> {
    let mut worker = carrier.worker(terms(&[(Queue::standard(), 1)], LONG)).await;
    let ran = worker.drain().await;
    // Or what comes next might be given to it.
    worker.consumer.close().await.unwrap();
    ran
}

/// What a worker is given to run; it succeeds.
async fn take(carrier: &Carrier, count: usize) -> Vec<Head> {
    let mut worker = carrier.worker(terms(&[(Queue::standard(), 1)], LONG)).await;
    let mut heads = Vec::new();
    for delivery in worker.take(count).await {
        heads.push(delivery.head.clone());
        end(delivery, End::Succeeded).await;
    }
    worker.consumer.close().await.unwrap();
    heads
}

async fn dies(carrier: &Carrier) {
    let mut worker = carrier.worker(terms(&[(Queue::standard(), 1)], LONG)).await;
    worker.ends_one(End::Dead).await;
    worker.consumer.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_message_is_gone_is_published_again_and_runs_once() {
    for carrier in [Carrier::with_redis(QueueType::Quorum), Carrier::with_sqlite(QueueType::Classic)] {
        let (carrier, broker) = place(carrier).await;
        let jobs = [registered(), registered()];
        put(&broker, &jobs).await;
        assert_eq!(purge_by_hand(&carrier).await, 2);
        let known = [Enqueued::Known(State::Queued), Enqueued::Known(State::Queued)];
        assert_eq!(broker.enqueue(&jobs).await.unwrap(), known);
        assert!(runs(&carrier).await.is_empty(), "nothing is published for what is known");
        // One was cancelled meanwhile, and is taken back: its message is to run, and there is none.
        broker.cancel(&[jobs[1].id]).await.unwrap();
        assert_eq!(broker.redrive(&[jobs[1].id]).await.unwrap(), [Redriven::Queued { epoch: 0 }]);
        for _ in 0..2 {
            assert_eq!(broker.republish(&jobs).await.unwrap(), known);
        }
        let (mut ran, mut sent) = (runs(&carrier).await, jobs.each_ref().map(|job| job.id));
        ran.sort_unstable();
        sent.sort_unstable();
        assert_eq!(ran, sent, "each once, of two messages");
        assert_eq!(broker.republish(&jobs).await.unwrap(), [(); 2].map(|()| Enqueued::Known(State::Succeeded)));
        assert!(runs(&carrier).await.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_published_again_as_it_is_by_now() {
    let (carrier, broker) = place(Carrier::with_redis(QueueType::Quorum)).await;
    let tried = registered();
    put_one(&broker, tried.clone()).await;
    let mut worker = carrier.worker(terms(&[(Queue::standard(), 1)], LONG)).await;
    let delivery = worker.one().await;
    let verdict = retry(&delivery.head, Duration::ZERO);
    delivery.lease.settle(verdict).await.unwrap();
    worker.consumer.close().await.unwrap();
    // One that expired and was put back has a later deadline than it came with.
    let now = Timestamp::now();
    let late = Job { created_at: now - HOUR, deadline: now - LONG, ..registered() };
    put_one(&broker, late.clone()).await;
    sweep(&broker, &Retention::standard()).await;
    assert_eq!(broker.redrive(&[late.id]).await.unwrap(), [Redriven::Queued { epoch: 0 }]);
    assert_eq!(purge_by_hand(&carrier).await, 2);
    broker.republish(&[tried.clone(), late.clone()]).await.unwrap();
    let mut heads = take(&carrier, 2).await;
    heads.sort_unstable_by_key(|head| head.attempts);
    assert_eq!((heads[0].id, heads[0].deadline), (late.id, see(&broker, late.id).await.deadline));
    assert_eq!((heads[1].id, heads[1].attempts), (tried.id, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_published_again_is_known_all_the_same() {
    let (carrier, broker) = place(Carrier::with_redis(QueueType::Quorum)).await;
    let job = registered();
    put_one(&broker, job.clone()).await;
    RawClient::connect(&carrier.host.url()).await.delete(LANE).await;
    let nowhere = Enqueued::Refused(Refusal::NoSuchQueue);
    assert_eq!(broker.republish(std::slice::from_ref(&job)).await.unwrap(), [nowhere]);
    assert_eq!(state(&broker, job.id).await, State::Queued);
    // By now it looks for the queue first, and makes it.
    assert_eq!(broker.republish(std::slice::from_ref(&job)).await.unwrap(), [Enqueued::Known(State::Queued)]);
    assert_eq!(runs(&carrier).await, [job.id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redriven_job_whose_message_is_gone_is_published_from_the_ledger() {
    let (carrier, broker) = place(Carrier::with_redis(QueueType::Quorum)).await;
    let id = put_one(&broker, job()).await;
    dies(&carrier).await;
    assert_eq!(broker.redrive(&[id]).await.unwrap(), [Redriven::Queued { epoch: 1 }]);
    assert_eq!(purge_by_hand(&carrier).await, 1);
    assert_eq!(broker.redrive(&[id]).await.unwrap(), [Redriven::Waiting]);
    let heads = take(&carrier, 1).await;
    assert_eq!((heads[0].id, heads[0].deadline), (id, see(&broker, id).await.deadline));
    // What its attempts have cost since then is in its message alone.
    let id = put_one(&broker, job()).await;
    dies(&carrier).await;
    broker.redrive(&[id]).await.unwrap();
    let mut worker = carrier.worker(terms(&[(Queue::standard(), 1)], LONG)).await;
    let delivery = worker.one().await;
    let verdict = retry(&delivery.head, Duration::ZERO);
    delivery.lease.settle(verdict).await.unwrap();
    worker.consumer.close().await.unwrap();
    assert_eq!(purge_by_hand(&carrier).await, 1);
    assert_eq!(broker.redrive(&[id]).await.unwrap(), [Redriven::Waiting]);
    assert_eq!(purge_by_hand(&carrier).await, 0);
    // Where nothing tells copies apart, there is to be no second one.
    let (carrier, broker) = place(Carrier::with_folder(QueueType::Quorum)).await;
    let id = put_one(&broker, job()).await;
    dies(&carrier).await;
    for _ in 0..2 {
        broker.redrive(&[id]).await.unwrap();
    }
    assert_eq!(purge_by_hand(&carrier).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delayed_job_that_was_cancelled_and_put_back_says_until_when_it_waits() {
    for carrier in [Carrier::with_redis(QueueType::Quorum), Carrier::with_sqlite(QueueType::Quorum)] {
        let (_carrier, broker) = place(carrier).await;
        let due = Timestamp::now() + HOUR;
        let id = put_one(&broker, Job { not_before: Some(due), ..registered() }).await;
        broker.cancel(&[id]).await.unwrap();
        assert_eq!(see(&broker, id).await.due, None);
        assert_eq!(broker.redrive(&[id]).await.unwrap(), [Redriven::Queued { epoch: 0 }]);
        let seen = see(&broker, id).await;
        assert_eq!((seen.state, seen.due), (State::Scheduled, Some(due)));
        // Again, since nothing was lost of it.
        broker.cancel(&[id]).await.unwrap();
        broker.redrive(&[id]).await.unwrap();
        assert_eq!(see(&broker, id).await.due, Some(due));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn people_are_told_what_cannot_be_seen() {
    let carrier = Carrier::with_redis(QueueType::Quorum);
    let (broker, home) = (carrier.as_people_do().await, Home::new());
    let command = |arguments: &[&str]| {
        let mut command = home.program("promptq", arguments);
        Said::of(command.env("PROMPTQ_BROKER", carrier.host.url()).env("PROMPTQ_LEDGER", carrier.ledger_url()))
    };
    let rows = home.write("rows.jsonl", "{\"id\":\"a\",\"prompt\":\"say\",\"model\":\"mock\"}\n");
    let rows = rows.to_str().unwrap();
    command(&["submit", rows, "--batch", "nov"]).ends(0).says(&["1 new"]);
    let filter = JobFilter { batch: Some(batch("nov")), ..JobFilter::default() };
    let id = list(&broker, &filter, 10).await[0].id.to_string();
    assert_eq!(purge_by_hand(&carrier).await, 1);
    command(&["jobs", "why", &id]).ends(0).prints(&["no message ready", "--republish", "promptq cancel"]);
    command(&["retry", &id]).ends(0).prints(&["back in line 0  already waiting 1"]).says(&["--republish"]);
    command(&["submit", rows, "--batch", "nov"]).ends(0).says(&["0 new, 1 already known"]);
    command(&["submit", rows, "--batch", "nov", "--republish"]).ends(0).says(&["1 of them had not ended"]);
    assert_eq!(runs(&carrier).await.len(), 1);
    let later = put_one(&broker, Job { not_before: Some(Timestamp::now() + HOUR), ..registered() }).await;
    command(&["cancel", &later.to_string()]).ends(0);
    command(&["retry", &later.to_string()]).ends(0).says(&["1 run when their messages come up"]);
    let nobody = JobId::fresh().to_string();
    command(&["cancel", &nobody]).ends(0).prints(&["cancelled 0  stopping 0"]).says(&["nobody has seen", &nobody]);
    command(&["jobs", "why", &later.to_string()]).ends(0).prints(&["may start in 59m"]);
    command(&["jobs", "show", &later.to_string()]).ends(0).prints(&["due", "in 59m"]);
    command(&["queues", "list"]).ends(0).says(&["jobs that have ended since"]);
    let elsewhere = Said::of(&mut home.program("promptq", &["submit", rows, "--batch", "nov", "--republish"]));
    elsewhere.ends(2).says(&["keeps its jobs together"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_holds_no_more_than_it_says_of_what_has_to_stay() {
    // Eight of a mebibyte each are enough, and a thousand of any size.
    for (count, bytes) in [(9, PAGE_BYTES), (1_000, 1)] {
        let (carrier, broker) = place(Carrier::with_redis(QueueType::Quorum)).await;
        // By its submitter's clock it came after the purge.
        let later = || Job {
            created_at: Timestamp::now() + HOUR,
            work: Work::prompt(Some("mock"), "x".repeat(bytes)),
            ..job()
        };
        let jobs: Vec<Job> = (0..count).map(|_| later()).collect();
        for part in jobs.chunks((8 * PAGE_BYTES / bytes).min(500)) {
            put(&broker, part).await;
        }
        let last = put_one(&broker, job()).await;
        assert_eq!(broker.purge(&Queue::standard()).await.unwrap(), 0, "{count}");
        if count < 10 {
            assert_eq!(runs(&carrier).await.len(), count);
            assert_eq!(state(&broker, last).await, State::Cancelled, "it met the purge when it surfaced");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_of_a_submission_that_was_refused() {
    let (carrier, broker) = place(Carrier::with_redis(QueueType::Quorum)).await;
    let (name, ghost) = (batch("nov"), queue("ghost"));
    put_one(&broker, job_of(&name)).await;
    let large = Work::prompt(Some("mock"), "x".repeat((16 << 20) - (200 << 10)));
    let refused = [
        (Job { queue: ghost.clone(), ..job_of(&name) }, Refusal::OtherQueue(Queue::standard())),
        (Job { work: large, ..job_in(&ghost) }, Refusal::TooLarge(0)),
    ];
    for (job, why) in refused {
        match (&broker.enqueue(&[job]).await.unwrap()[..], why) {
            ([Enqueued::Refused(Refusal::TooLarge(_))], Refusal::TooLarge(_)) => {}
            (answers, why) => assert_eq!(answers, [Enqueued::Refused(why)]),
        }
    }
    put_one(&broker, keyed("key", "one")).await;
    let clash = Job { batch: Some(batch("clash")), ..keyed("key", "two") };
    assert_eq!(broker.enqueue(&[clash]).await.unwrap(), [Enqueued::Refused(Refusal::Conflict)]);
    let names = |views: Vec<QueueView>| views.into_iter().map(|view| view.queue).collect::<Vec<_>>();
    assert_eq!(names(broker.queues().await.unwrap()), [Queue::standard()]);
    assert_eq!(carrier.host.counts("pq1.q.ghost"), (0, 0));
    assert!(carrier.host.queue("pq1.q.ghost._.normal").is_none());
    // Of one that may not make queues.
    let mut access = Access::new(&carrier.host.url_of("producer", ["^$", ".*", ".*"])).unwrap();
    access.beside = Beside::Ledger(Box::new(Access::new(&carrier.ledger_url()).unwrap()));
    let producer = Broker::connect(&access).await.unwrap();
    let answers = producer.enqueue(&[Job { queue: ghost, ..job_of(&batch("ghosts")) }]).await.unwrap();
    assert_eq!(answers, [Enqueued::Refused(Refusal::NoSuchQueue)]);
    assert_eq!(names(producer.queues().await.unwrap()), [Queue::standard()]);
    let batches: Vec<_> = producer.ledger().batches(10).await.unwrap().into_iter().map(|view| view.name).collect();
    assert_eq!(batches, [name]);
    assert_eq!(Broker::memory().republish(&[job()]).await.unwrap_err().kind(), Kind::Unsupported);
}
