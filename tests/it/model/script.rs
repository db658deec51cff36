//! Plays a script on a backend and on the model side by side, and compares the two after every step.

use std::time::Duration;

use promptq_common::broker::{
    Cancel, Claim, Enqueued, HoldKey, RawDelivery, Refusal, Settled, Source, Terms, Verdict, WorkerId,
};
use promptq_common::job::{BatchName, Job, JobId, Queue};
use promptq_common::record::{End, State};
use promptq_common::time::Timestamp;
use promptq_tests::backends::{Fixture, LONG};
use promptq_tests::fixture::{self, USAGE};
use promptq_tests::steps::want;

use super::ops::{How, Op};
use super::world::{Model, Place, Token, World};

/// A lease that has run out by the next step.
const BRIEF: Duration = Duration::from_millis(1);

/// Which of the sources leases briefly.
const LAPSING: usize = 2;

type Check = Result<(), String>;

macro_rules! same {
    ($found:expr, $expected:expr, $what:expr) => {
        match (&$found, &$expected) {
            (found, expected) if found == expected => {}
            (found, expected) => return Err(format!("{}: found {found:?}, the model says {expected:?}", $what)),
        }
    };
}

/// Both sides, and what the workers hold.
pub(super) struct Script {
    f: Fixture,
    world: World,
    ids: Vec<JobId>,
    sources: Vec<(WorkerId, Box<dyn Source>)>,
    leases: Vec<Held>,
}

/// A delivery, kept for ever, and the verdict it was settled with.
struct Held {
    token: Token,
    delivery: RawDelivery,
    brief: bool,
    verdict: Option<(Verdict, Settled)>,
}

impl Script {
    pub(super) async fn new(f: Fixture) -> Self {
        let mut sources = Vec::new();
        for lease in [LONG, LONG, BRIEF] {
            let worker = WorkerId::random("model");
            let terms = Terms { worker: worker.clone(), queues: vec![(Queue::standard(), 1)], lease };
            sources.push((worker, f.backend.subscribe(terms).await.unwrap()));
        }
        Self { f, world: World::default(), ids: Vec::new(), sources, leases: Vec::new() }
    }

    pub(super) async fn step(&mut self, op: &Op) -> Check {
        match *op {
            Op::Enqueue { key, body, batch, delayed } => self.enqueue(key, body, (batch, delayed)).await?,
            Op::Lease { worker, count } => self.lease(worker, count).await?,
            Op::Lapse { count } => self.lease(LAPSING, count).await?,
            Op::Beat { lease } => self.beat(lease).await?,
            Op::Claim { lease } => self.claim(lease).await?,
            Op::Settle { lease, how } => self.settle(lease, how).await?,
            Op::CancelBatch { batch } => self.cancel_batch(batch).await?,
            Op::PauseAndResume => self.pause_and_resume().await?,
            Op::Purge => self.purge().await?,
            Op::Wake { key } => self.wake(key).await?,
            Op::Recover { worker } => {
                let found = self.f.backend.recover(&self.sources[worker].0).await.unwrap();
                same!(found, self.world.recover(worker), "recovered");
            }
            Op::Cancel { job } => {
                let Some(id) = self.job(job) else { return Ok(()) };
                same!(self.f.backend.cancel(&[id]).await.unwrap(), [self.world.cancel(id)], "cancel");
            }
            Op::Redrive { job } => {
                let Some(id) = self.job(job) else { return Ok(()) };
                same!(self.f.backend.redrive(&[id]).await.unwrap(), [self.world.redrive(id)], "redrive");
            }
            Op::Drop { job } => {
                let Some(id) = self.job(job) else { return Ok(()) };
                let job = self.world.jobs.get_mut(&id).unwrap();
                let dead = job.place == Place::Ended(End::Dead) && !job.dropped;
                job.dropped |= dead;
                same!(self.f.backend.drop_dead(&[id]).await.unwrap(), u64::from(dead), "dropped");
            }
        }
        self.compare().await?;
        same!(self.f.faults(), Vec::<String>::new(), "what does not fit together");
        Ok(())
    }

    fn job(&self, n: usize) -> Option<JobId> {
        (!self.ids.is_empty()).then(|| self.ids[n % self.ids.len()])
    }

    async fn enqueue(&mut self, key: Option<u8>, body: u8, (batch, delayed): (u8, bool)) -> Check {
        let job = match key {
            Some(key) => fixture::keyed(&key.to_string(), &body.to_string()),
            None => fixture::job(),
        };
        let not_before = delayed.then(|| Timestamp::now() + LONG);
        let job = Job { batch: Some(name(batch)), not_before, ..job };
        let expected = match self.world.jobs.get(&job.id) {
            Some(known) if known.body != body => Enqueued::Refused(Refusal::Conflict),
            Some(_) => Enqueued::Known(self.state(job.id).await),
            None => {
                self.ids.push(job.id);
                self.world.jobs.insert(job.id, Model::new(batch, body, delayed));
                Enqueued::New
            }
        };
        same!(self.f.broker.enqueue(&[job]).await.unwrap(), [expected], "enqueue");
        Ok(())
    }

    async fn state(&self, id: JobId) -> State {
        promptq_tests::steps::state(&self.f.broker, id).await
    }

    async fn lease(&mut self, worker: usize, count: u32) -> Check {
        let mut after = World { jobs: self.world.jobs.clone(), cancelled: self.world.cancelled.clone() };
        after.reclaim();
        if !after.jobs.keys().any(|id| after.is_ready(*id)) {
            return Ok(());
        }
        self.world = after;
        let leased = self.sources[worker].1.next(&want(count as usize)).await.unwrap();
        if leased.deliveries.is_empty() || leased.deliveries.len() > count as usize {
            return Err(format!("{} leased of {count} wanted, some ready", leased.deliveries.len()));
        }
        for delivery in leased.deliveries {
            let (job, lease) = (delivery.head.id, delivery.lease);
            if !self.world.is_ready(job) {
                return Err(format!("{job} was leased, the model has it {:?}", self.world.jobs[&job]));
            }
            let model = self.world.jobs.get_mut(&job).unwrap();
            same!((delivery.head.epoch, delivery.head.attempts), (model.epoch, model.attempts), "head");
            same!(delivery.head.history.usage.input_tokens, u64::from(model.attempts) * USAGE.input_tokens, "history");
            let brief = worker == LAPSING;
            model.place = Place::Running { lease, worker, lapsed: brief, stop: false };
            let token = Token { job, lease, epoch: model.epoch, attempts: model.attempts };
            self.leases.push(Held { token, delivery, brief, verdict: None });
        }
        if worker == LAPSING {
            run_out().await;
        }
        self.meet_doom().await
    }

    /// Leasing may have ended jobs of a cancelled batch, or not yet.
    async fn meet_doom(&mut self) -> Check {
        for id in self.ids.clone() {
            if self.world.is_doomed(&self.world.jobs[&id]) && self.state(id).await == State::Cancelled {
                same!(self.world.cancel(id), Cancel::Ended, "doomed");
            }
        }
        Ok(())
    }

    async fn beat(&mut self, lease: usize) -> Check {
        if self.leases.is_empty() {
            return Ok(());
        }
        let held = &self.leases[lease % self.leases.len()];
        same!(held.delivery.hold.beat().await.unwrap(), self.world.beat(&held.token), "beat");
        if held.brief {
            run_out().await;
        }
        Ok(())
    }

    async fn claim(&mut self, lease: usize) -> Check {
        if self.leases.is_empty() {
            return Ok(());
        }
        let held = &self.leases[lease % self.leases.len()];
        let claim = held.delivery.hold.claim().await.unwrap();
        let model = &self.world.jobs[&held.token.job];
        match model.place {
            // Whoever comes too late may be turned away although nobody else has leased the job yet.
            Place::Running { lease, lapsed: true, .. } if lease == held.token.lease && claim == Claim::Stale => {}
            Place::Running { lease, stop, .. } if lease == held.token.lease => {
                let expected = if stop { Claim::Cancelled } else { Claim::Fresh { deaths: model.deaths } };
                same!(claim, expected, "claim");
            }
            Place::Ended(End::Succeeded) => same!(claim, Claim::Ended(State::Succeeded), "claim"),
            Place::Ended(_) | Place::Ready | Place::Waiting { .. } | Place::Running { .. } => {
                if matches!(claim, Claim::Fresh { .. } | Claim::Cancelled) {
                    return Err(format!("a stale lease was told {claim:?}"));
                }
            }
        }
        Ok(())
    }

    async fn settle(&mut self, lease: usize, how: How) -> Check {
        if self.leases.is_empty() {
            return Ok(());
        }
        let place = lease % self.leases.len();
        let held = &mut self.leases[place];
        if let Some((verdict, was)) = &held.verdict {
            // Repeating may be told as applied, or as stale once the job has moved on; never as something new.
            let again = held.delivery.hold.settle(verdict).await.unwrap();
            let fine = again == *was
                || (again == Settled::Stale && !matches!(verdict, Verdict::End(r) if r.end == End::Succeeded));
            let fine = fine || (*was == Settled::Kept && again == Settled::Applied);
            return if fine { Ok(()) } else { Err(format!("settled {was:?}, then {again:?}")) };
        }
        let verdict = verdict(&held.delivery, how);
        let found = held.delivery.hold.settle(&verdict).await.unwrap();
        held.verdict = Some((verdict, found));
        same!(found, self.world.settle(&held.token, how), "settle");
        Ok(())
    }

    async fn cancel_batch(&mut self, batch: u8) -> Check {
        let known = self.world.jobs.values().any(|job| job.batch == batch);
        let counts = self.f.backend.cancel_batch(&name(batch)).await.unwrap();
        if !known {
            return Ok(());
        }
        let (mut ended, mut flagged) = (0, 0);
        for id in self.ids.clone() {
            if self.world.jobs[&id].batch == batch {
                match self.world.cancel(id) {
                    Cancel::Ended => ended += 1,
                    Cancel::Flagged => flagged += 1,
                    Cancel::Already(_) | Cancel::Unknown => {}
                }
            }
        }
        self.world.cancelled.insert(batch);
        same!((counts.ended, counts.flagged), (ended, flagged), "batch cancelled");
        Ok(())
    }

    /// While paused, `next` is asked and dropped; nothing may come of it.
    async fn pause_and_resume(&mut self) -> Check {
        if self.world.jobs.values().any(|job| matches!(job.place, Place::Running { lapsed: true, .. })) {
            return Ok(());
        }
        let queue = Queue::standard();
        self.f.backend.pause(&queue, Some("a test")).await.unwrap();
        let (_, source) = &mut self.sources[0];
        let asked = tokio::time::timeout(Duration::from_millis(10), source.next(&want(3))).await;
        if asked.is_ok_and(|leased| !leased.unwrap().deliveries.is_empty()) {
            return Err("a paused queue gave a lease".to_owned());
        }
        self.f.backend.pause(&queue, None).await.unwrap();
        self.meet_doom().await
    }

    async fn purge(&mut self) -> Check {
        let found = self.f.backend.purge(&Queue::standard()).await.unwrap();
        let mut expected = 0;
        for id in self.ids.clone() {
            if self.world.jobs[&id].is_waiting() {
                self.world.cancel(id);
                expected += 1;
            }
        }
        same!(found, expected, "purged");
        Ok(())
    }

    async fn wake(&mut self, key: u8) -> Check {
        let found = self.f.backend.wake(&hold_key(key)).await.unwrap();
        let mut expected = 0;
        for job in self.world.jobs.values_mut().filter(|job| job.place == Place::Waiting { hold: Some(key) }) {
            job.place = Place::Ready;
            expected += 1;
        }
        same!(found, expected, "woken");
        Ok(())
    }

    /// Looks at every job, every batch and the queue.
    async fn compare(&self) -> Check {
        let views = self.f.ledger().fetch(&self.ids).await.unwrap();
        for (id, view) in self.ids.iter().zip(views) {
            let Some(view) = view else { return Err(format!("{id} is lost")) };
            let model = &self.world.jobs[id];
            let record = view.record.as_deref();
            match model.place {
                Place::Ready | Place::Waiting { .. } => {
                    let waiting = matches!(view.state, State::Queued | State::Scheduled | State::Retrying);
                    same!((waiting, record.is_none()), (true, true), format!("{id} waits, is {}", view.state));
                }
                Place::Running { stop, .. } => {
                    same!((view.state, record.is_none()), (State::Running, true), id);
                    same!(view.cancel_requested, stop, format!("{id} cancel requested"));
                }
                Place::Ended(end) => {
                    same!((view.state, record.map(|record| record.end)), (end.into(), Some(end)), id);
                    let winner = record.filter(|record| record.end == End::Succeeded).map(|record| record.lease);
                    same!(winner, model.winner, format!("{id} its success"));
                }
            }
            same!((view.epoch, view.attempts), (model.epoch, model.attempts), format!("{id} epoch, attempts"));
            let deaths = if view.state.is_ended() { view.deaths } else { model.deaths };
            same!(view.deaths, deaths, format!("{id} deaths"));
        }
        self.compare_counts().await
    }

    async fn compare_counts(&self) -> Check {
        for batch in 0..3 {
            let Some(view) = self.f.ledger().batch(&name(batch)).await.unwrap() else {
                same!(self.world.count(batch).0.total, 0, format!("batch {batch} is unknown"));
                continue;
            };
            let mut counts = view.counts;
            counts.queued += std::mem::take(&mut counts.delayed);
            let (expected, units) = self.world.count(batch);
            same!(counts, expected, format!("batch {batch}"));
            same!(view.usage.input_tokens, units * USAGE.input_tokens, format!("batch {batch} usage"));
            let nanos = view.cost.map_or(0, promptq_common::outcome::Usd::as_nanos);
            same!(u64::try_from(nanos), Ok(units * 1_250), format!("batch {batch} cost"));
        }
        let depth = self.f.backend.depth(&Queue::standard()).await.unwrap();
        let count = |fits: fn(&&Model) -> bool| self.world.jobs.values().filter(fits).count() as u64;
        let waiting = count(|job| job.is_waiting());
        let running = count(|job| matches!(job.place, Place::Running { .. }));
        let dead = count(|job| job.place == Place::Ended(End::Dead) && !job.dropped);
        same!((depth.ready + depth.delayed, depth.running, depth.dead), (waiting, running, dead), "depth");
        Ok(())
    }
}

/// Until whatever was leased or extended briefly before this has run out; leases are counted in whole milliseconds.
async fn run_out() {
    let deadline = Timestamp::now() + BRIEF * 2;
    while Timestamp::now() <= deadline {
        tokio::time::sleep(BRIEF).await;
    }
}

fn name(batch: u8) -> BatchName {
    fixture::batch(&format!("batch-{batch}"))
}

fn hold_key(key: u8) -> HoldKey {
    HoldKey::Limit(format!("account-{key}"))
}

fn verdict(delivery: &RawDelivery, how: How) -> Verdict {
    let (head, lease) = (&delivery.head, delivery.lease);
    match how {
        How::Succeeded => fixture::end(head, lease, End::Succeeded),
        How::Dead => fixture::end(head, lease, End::Dead),
        How::Cancelled => fixture::end(head, lease, End::Cancelled),
        How::RetryNow => fixture::retry(head, Duration::ZERO),
        How::RetryLater => fixture::retry(head, LONG),
        How::ReleaseNow => fixture::release(),
        How::Hold(key) => Verdict::Release { after: LONG, hold: Some(hold_key(key)) },
    }
}
