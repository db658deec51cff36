//! Messages as another broker would carry them, over a ledger that serves it: the test decides which copy surfaces when.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use promptq_common::broker::redis::Redis;
use promptq_common::broker::sqlite::Sqlite;
use promptq_common::broker::{Access, Claim, Envelope, Head, LeaseId, Settled, Verdict, WorkerId, envelope};
use promptq_common::job::Job;
use promptq_common::ledger::{Asked, Claims, Opened, Raised, Registered};
use promptq_common::outcome::FailureClass;
use promptq_common::record::End;
use promptq_common::time::Timestamp;

use crate::backends::{Fixture, LONG};
use crate::fixture;

/// A worker of that broker.
#[derive(Debug)]
pub struct Carrier {
    /// The ledger.
    pub claims: Arc<dyn Claims>,
    /// Who it is.
    pub worker: WorkerId,
}

/// A message that may run.
#[derive(Debug)]
pub struct Run<'a> {
    by: &'a Carrier,
    /// The message.
    pub message: Envelope,
    /// Its claim's token.
    pub lease: LeaseId,
}

/// A job as a message.
pub fn message(job: &Job) -> Envelope {
    envelope(job).expect("a job that can travel")
}

impl Carrier {
    /// A worker over the fixture's ledger.
    pub fn on(fixture: &Fixture) -> Self {
        let claims = Arc::clone(fixture.claims.as_ref().expect("a ledger that serves another broker"));
        Self { claims, worker: WorkerId::random("carrier") }
    }

    /// Registers and confirms a job that must be new, and gives its message.
    pub async fn register(&self, job: &Job) -> Envelope {
        let message = message(job);
        let said = self.claims.register(&[&message.head]).await.expect("registers");
        assert_eq!(said, [Registered::New]);
        self.claims.confirm(&[&message.head]).await.expect("confirms");
        message
    }

    /// Opens a message under a new lease of this length.
    pub async fn open_for(&self, message: &Envelope, length: Duration) -> (LeaseId, Opened) {
        let lease = LeaseId::random();
        (lease, self.open_as(message, lease, length).await)
    }

    /// Opens a message under this lease.
    pub async fn open_as(&self, message: &Envelope, lease: LeaseId, length: Duration) -> Opened {
        let asked = Asked { lease, worker: &self.worker, length, redelivered: false };
        self.claims.open(&message.head, &asked).await.expect("opens")
    }

    /// What is said of a message that surfaces now.
    pub async fn told(&self, message: &Envelope) -> Opened {
        self.open_for(message, LONG).await.1
    }

    /// Opens a message that must be allowed to run, after so many deaths.
    pub async fn run_for(&self, message: &Envelope, length: Duration, deaths: u32) -> Run<'_> {
        let (lease, opened) = self.open_for(message, length).await;
        assert_eq!(opened, Opened { claim: Claim::Fresh { deaths }, announce: false, keep: false });
        self.again(message, lease)
    }

    /// Opens a message that must be allowed to run for the first time, with a lease that outlives the test.
    pub async fn run(&self, message: &Envelope) -> Run<'_> {
        self.run_for(message, LONG, 0).await
    }

    /// A message that was opened under this lease.
    pub fn again(&self, message: &Envelope, lease: LeaseId) -> Run<'_> {
        Run { by: self, message: message.clone(), lease }
    }

    /// Raises one job.
    pub async fn raise(&self, message: &Envelope) -> Raised {
        self.claims.raise(&[message.head.id]).await.expect("raises").pop().expect("an answer")
    }

    /// Raises one job whose message must be published anew.
    pub async fn raise_anew(&self, message: &Envelope) -> Envelope {
        let raised = self.raise(message).await;
        let Raised::Publish(message) = raised else { panic!("raised as {raised:?}") };
        *message
    }
}

impl Run<'_> {
    /// Ends the claim.
    pub async fn settle(&self, verdict: &Verdict) -> Settled {
        let Self { by, message, lease } = self;
        by.claims.settle(&message.head, *lease, verdict, Some(&message.payload)).await.expect("settles")
    }

    /// Ends the job so.
    pub async fn end(&self, how: End) -> Settled {
        self.settle(&fixture::end(&self.message.head, self.lease, how)).await
    }

    /// The copy that a retry publishes, and the verdict that comes after it.
    pub fn retry(&self, after: Duration) -> (Envelope, Verdict) {
        let mut copy = self.message.clone();
        let attempt = fixture::attempt(&copy.head, Some(FailureClass::Transient));
        copy.head.attempts += 1;
        copy.head.history.push(attempt.clone());
        (copy, Verdict::Retry { after, attempt: Box::new(attempt) })
    }

    /// Retries at once, and gives the copy.
    pub async fn retries(&self) -> Envelope {
        let (copy, verdict) = self.retry(Duration::ZERO);
        assert_eq!(self.settle(&verdict).await, Settled::Applied);
        copy
    }
}

/// A message that was told of its job's end, and neither has to be announced nor kept.
pub fn ended(how: End) -> Opened {
    Opened { claim: Claim::Ended(how.into()), announce: false, keep: false }
}

/// A message of which the ledger knows a newer one.
pub fn stale() -> Opened {
    Opened { claim: Claim::Stale, announce: false, keep: false }
}

/// The ledger at this address, as the backend of another broker writes into it.
pub async fn ledger(url: &str) -> Arc<dyn Claims> {
    let access = Access::new(url).expect("an address");
    match url.strip_prefix("sqlite://") {
        Some(path) => Arc::new(Sqlite::open(Path::new(path)).await.expect("opens")),
        None => Arc::new(Redis::connect(&access).await.expect("connects")),
    }
}

/// What backends read of a message.
pub fn heads(messages: &[Envelope]) -> Vec<&Head> {
    messages.iter().map(|message| &message.head).collect()
}

/// Until what was claimed for `length` has run out, and what comes is later than what was: times are whole milliseconds.
pub async fn run_out(length: Duration) {
    let deadline = Timestamp::now() + length + Duration::from_millis(2);
    while Timestamp::now() <= deadline {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
