//! One delivery, step by step: open, claim, look for a stored answer, run (`route.rs`, `call.rs`), settle.
//! It owns nothing that outlives the job; what is taken and when to leave is `intake.rs`.

use std::sync::Arc;
use std::time::Duration;

use promptq_common::broker::{Delivery, Head, Lease, Settled, Verdict};
use promptq_common::codec::decode_job;
use promptq_common::error::Error;
use promptq_common::job::Job;
use promptq_common::limits::{Expected, Limits};
use promptq_common::outcome::FailureClass;
use promptq_common::record::End;
use promptq_common::store::Store;
use promptq_common::telemetry::trace::{Context, Span};
use promptq_common::time::Timestamp;
use tokio::sync::watch;

use crate::claim::claim;
use crate::heartbeat::{self, Rhythm};
use crate::meter::Meter;
use crate::reuse::{self, Fresh, Shelf};
use crate::route::{self, Nevers};
use crate::runner::{Runner, Runners};
use crate::settings::Settings;
use crate::tier::Full;
use crate::traced::{self, Traced};
use crate::verdict::{Case, release};

/// What every job of a worker shares.
#[derive(Debug)]
pub(crate) struct Desk {
    pub(crate) settings: Settings,
    pub(crate) runners: Arc<Runners>,
    pub(crate) store: Option<Store>,
    pub(crate) limits: Limits,
    pub(crate) shelf: Shelf,
    pub(crate) nevers: Nevers,
    pub(crate) full: Full,
    pub(crate) meter: Arc<Meter>,
    /// What kind of broker its jobs are from.
    pub(crate) system: &'static str,
    /// True once running jobs are to be given up: the drain time is over.
    pub(crate) cut: watch::Receiver<bool>,
}

/// A job under its lease, on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Errand<'a> {
    pub(crate) job: &'a Job,
    pub(crate) case: Case<'a>,
    pub(crate) lease: &'a Lease,
    pub(crate) desk: &'a Desk,
}

/// What became of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Did {
    /// The job ended here.
    Ended(End),
    /// It spent an attempt, and waits until then.
    Retried(Timestamp),
    /// It was given back.
    Released,
    /// It was cut by the end of the drain time, and given back.
    Cut,
    /// It is not this worker's any more, or can never be settled.
    Dropped,
}

/// Takes a delivery to its end. Panics in the runner are failures; nothing here fails for what a job says. Each slot has
/// one of these: what few jobs need, or only for a moment, is in boxes; an `async fn` would hold the delivery twice.
pub(crate) fn execute(
    delivery: Delivery,
    expected: Option<Expected>,
    desk: Arc<Desk>,
) -> impl Future<Output = Did> + Send + 'static {
    let Delivery { head, payload, lease } = delivery;
    async move {
        let hand = desk.meter.takes(&head.lane.queue);
        let opened = decode_job(&payload).map(Box::new);
        drop(payload);
        let mut traced = Traced::begin(&head, opened.as_deref().ok(), &desk).map(Box::new);
        let place = traced.as_ref().map(|traced| traced.place());
        let (mut verdict, was_cut, fresh) = match verdict_on((&head, &lease), opened, expected, (&*desk, place)).await {
            Step::Settle(verdict) => (verdict, false, None),
            Step::Share(verdict, fresh) => (verdict, false, Some(fresh)),
            Step::Cut(verdict) => (verdict, true, None),
            Step::Go { .. } | Step::Drop => {
                if let Some(traced) = traced {
                    traced.did(Did::Dropped);
                }
                return Did::Dropped;
            }
        };
        if let Some(traced) = &mut traced {
            traced.judged(&mut verdict);
        }
        let span = traced.as_ref().and_then(|traced| traced.settles(&head, &desk));
        let did = settle(lease, verdict, was_cut, span).await;
        if let Some(traced) = traced {
            traced.did(did);
        }
        if matches!(did, Did::Ended(_)) {
            desk.meter.ended(&head.lane.queue);
        }
        if let (Some(fresh), Did::Ended(End::Succeeded)) = (fresh, did) {
            Box::pin(async {
                tokio::select! { () = desk.shelf.keep(*fresh) => {}, () = cut(&desk) => {} }
            })
            .await;
        }
        drop(hand);
        did
    }
}

/// What is to become of it.
async fn verdict_on(
    (head, lease): (&Head, &Lease),
    opened: Result<Box<Job>, Error>,
    expected: Option<Expected>,
    (desk, place): (&Desk, Option<&Context>),
) -> Step {
    let started_at = Timestamp::now();
    let moved = false;
    let case = Case { head, lease: lease.id(), worker: &desk.settings.worker, started_at, deaths: 0, moved, place };
    match opened {
        Ok(job) => match claim(&case, lease, desk).await {
            Step::Go { deaths } => Box::pin(work(job, expected, &Case { deaths, ..case }, lease, desk)).await,
            stop @ (Step::Settle(_) | Step::Share(..) | Step::Cut(_) | Step::Drop) => stop,
        },
        Err(error) => Step::Settle(case.dead(FailureClass::Fatal, "undecodable", &error.to_string())),
    }
}

/// What comes next.
#[derive(Debug)]
pub(crate) enum Step {
    /// The next step, of a job that so many workers have died of.
    Go { deaths: u32 },
    /// The end of the lease.
    Settle(Verdict),
    /// The end of the lease by an answer, which is then kept for jobs that ask the same.
    Share(Verdict, Box<Fresh>),
    /// The end of the lease, because the drain time is over.
    Cut(Verdict),
    /// Nothing: the job is somebody else's, or has ended.
    Drop,
}

/// Runs the job, and turns what came of it into a verdict.
async fn work(job: Box<Job>, expected: Option<Expected>, case: &Case<'_>, lease: &Lease, desk: &Desk) -> Step {
    if desk.settings.own_batch.as_ref().is_some_and(|own| case.head.batch.as_ref() != Some(own)) {
        let detail = "this worker runs only the jobs of its own batch";
        return Step::Settle(case.dead(FailureClass::Fatal, "other_batch", detail));
    }
    let runners = match desk.runners.routes(&job) {
        Ok(runners) => runners,
        Err(failure) => return Step::Settle(case.dead(failure.class, &failure.code, &failure.detail)),
    };
    if let Some(step) = reused(&job, &runners, case, lease, desk).await {
        return step;
    }
    route::go(Errand { job: &job, case: *case, lease, desk }, &runners, expected).await
}

/// Ends a job with a stored answer, if it takes one and there is one: nothing is called, and no limit is asked.
async fn reused(job: &Job, runners: &[Arc<dyn Runner>], case: &Case<'_>, lease: &Lease, desk: &Desk) -> Option<Step> {
    job.extras.as_ref()?.reuse?;
    let finding = Box::pin(reuse::found(job, runners, case, desk));
    tokio::select! {
        found = heartbeat::during(lease, rhythm(desk), finding) => found.map(Step::Settle),
        () = cut(desk) => Some(Step::Cut(release(Duration::ZERO, None))),
    }
}

/// Ends the lease; waits for as long as that takes, keeping its slot.
async fn settle(lease: Lease, verdict: Verdict, was_cut: bool, span: Option<Box<Span>>) -> Did {
    let id = lease.id();
    let did = match &verdict {
        Verdict::End(record) => Did::Ended(record.end),
        Verdict::Retry { .. } | Verdict::Release { .. } if was_cut => Did::Cut,
        Verdict::Retry { after, .. } => Did::Retried(Timestamp::now() + *after),
        Verdict::Release { .. } => Did::Released,
    };
    let answer = lease.settle(verdict).await;
    traced::settled(span, &answer);
    match answer {
        Ok(Settled::Applied | Settled::Kept) => did,
        Ok(Settled::Stale) => Did::Dropped,
        Err(error) => {
            tracing::error!(%error, lease = %id, "a job's end can never be stored; it will run again");
            Did::Dropped
        }
    }
}

/// Comes when running jobs are to be given up.
pub(crate) async fn cut(desk: &Desk) {
    // An error means that nobody can ask for it any more.
    if desk.cut.clone().wait_for(|cut| *cut).await.is_err() {
        std::future::pending::<()>().await;
    }
}

pub(crate) fn rhythm(desk: &Desk) -> Rhythm {
    Rhythm { every: desk.settings.heartbeat, lease: desk.settings.lease }
}
