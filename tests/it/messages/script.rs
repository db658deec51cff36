//! Plays a script on a ledger and on the model side by side, and compares the two after every step.

use std::time::Duration;

use promptq_common::broker::{Cancel, Claim, Envelope, Head, LeaseId, Retention, Settled, Verdict, WorkerId};
use promptq_common::job::{BatchName, Job, JobId, Queue};
use promptq_common::ledger::{Announced, Asked, Claims, Raised, Registered};
use promptq_common::outcome::FailureClass;
use promptq_common::record::{End, State};
use promptq_tests::backends::{Fixture, LONG};
use promptq_tests::fixture::{self, USAGE};
use promptq_tests::messages::{message, run_out};

use super::world::{Model, Place, Raise, Token, World};
use super::{How, Op};

/// A claim that has run out by the next step.
const BRIEF: Duration = Duration::from_millis(1);

type Check = Result<(), String>;

macro_rules! same {
    ($found:expr, $expected:expr, $what:expr) => {
        match (&$found, &$expected) {
            (found, expected) if found == expected => {}
            (found, expected) => return Err(format!("{}: found {found:?}, the model says {expected:?}", $what)),
        }
    };
}

/// Both sides, and what is under way between them.
pub(super) struct Script {
    f: Fixture,
    world: World,
    ids: Vec<JobId>,
    /// Every message that was ever published: any of them may surface at any time.
    copies: Vec<Envelope>,
    workers: [WorkerId; 2],
    runs: Vec<Run>,
}

/// A claim, kept for ever, and the verdict it was settled with.
struct Run {
    token: Token,
    message: Envelope,
    verdict: Option<(Verdict, Settled)>,
}

impl Script {
    pub(super) fn new(f: Fixture) -> Self {
        let workers = [WorkerId::random("one"), WorkerId::random("other")];
        Self { f, world: World::default(), ids: Vec::new(), copies: Vec::new(), workers, runs: Vec::new() }
    }

    fn claims(&self) -> &dyn Claims {
        &**self.f.claims.as_ref().expect("a ledger that serves another broker")
    }

    pub(super) async fn step(&mut self, op: &Op) -> Check {
        self.world.now += 1;
        match *op {
            Op::Register { batch, copies, confirm } => self.register(batch, copies, confirm).await?,
            Op::Publish => {
                let message = message(&fixture::job());
                self.ids.push(message.head.id);
                self.world.jobs.insert(message.head.id, Model::new(None, false, self.world.now));
                self.copies.push(message);
            }
            Op::Open { copy, worker, brief } => self.open(copy, worker, brief).await?,
            Op::Beat { lease } => self.beat(lease).await?,
            Op::Settle { lease, how } => self.settle(lease, how).await?,
            Op::HalfRetry { lease } => {
                if let Some(run) = at(&self.runs, lease) {
                    self.copies.push(run.retry().0);
                }
            }
            Op::Keep { copy } => {
                let Some(copy) = at(&self.copies, copy) else { return Ok(()) };
                let found = self.claims().keep(&copy.head, &copy.payload).await.unwrap();
                let token = token(&copy.head, LeaseId::NONE);
                same!(found, self.world.keep(&token), "keep");
            }
            Op::Announce { .. }
            | Op::Cancel { .. }
            | Op::CancelBatch { .. }
            | Op::Purge
            | Op::Raise { .. }
            | Op::Drop { .. }
            | Op::Recover { .. }
            | Op::Sweep => self.steer(op).await?,
        }
        self.compare().await
    }

    /// What people and successors ask for.
    async fn steer(&mut self, op: &Op) -> Check {
        match *op {
            Op::Announce { job } => self.announce(job).await?,
            Op::Cancel { job } => {
                let Some(&id) = at(&self.ids, job) else { return Ok(()) };
                let found = self.claims().cancel(&[id], &[Queue::standard()]).await.unwrap();
                same!(found, [self.world.cancel(id)], "cancel");
            }
            Op::CancelBatch { batch } => self.cancel_batch(batch).await?,
            Op::Purge => {
                run_out(BRIEF).await;
                let found = self.claims().purge(&Queue::standard()).await.unwrap();
                same!(found, self.world.purge(), "purged");
                run_out(BRIEF).await;
            }
            Op::Raise { job, steps } => self.raise(job, steps).await?,
            Op::Drop { job } => {
                let Some(&id) = at(&self.ids, job) else { return Ok(()) };
                same!(self.claims().drop_dead(&[id]).await.unwrap(), self.world.drop_dead(id), "dropped");
            }
            Op::Recover { worker } => {
                let found = self.claims().recover(&self.workers[worker]).await.unwrap();
                same!(found, self.world.recover(worker), "recovered");
            }
            Op::Sweep => {
                self.claims().sweep(&Retention::standard()).await.unwrap();
                self.world.reclaim();
            }
            Op::Register { .. }
            | Op::Publish
            | Op::Open { .. }
            | Op::Beat { .. }
            | Op::Settle { .. }
            | Op::HalfRetry { .. }
            | Op::Keep { .. } => {}
        }
        Ok(())
    }

    async fn register(&mut self, batch: u8, copies: usize, confirm: bool) -> Check {
        let message = message(&Job { batch: Some(name(batch)), ..fixture::job() });
        let id = message.head.id;
        same!(self.claims().register(&[&message.head]).await.unwrap(), [Registered::New], "register");
        self.ids.push(id);
        let mut model = Model::new(Some(batch), true, self.world.now);
        if confirm && copies > 0 {
            self.claims().confirm(&[&message.head]).await.unwrap();
            model.unconfirmed = false;
        }
        self.world.jobs.insert(id, model);
        let again = self.claims().register(&[&message.head]).await.unwrap();
        let expected = if confirm && copies > 0 { Registered::Known(State::Queued) } else { Registered::Again };
        same!(again, [expected], "registered again");
        self.copies.extend(std::iter::repeat_n(message, copies));
        Ok(())
    }

    async fn open(&mut self, copy: usize, worker: usize, brief: bool) -> Check {
        let Some(copy) = at(&self.copies, copy) else { return Ok(()) };
        let (message, lease) = (copy.clone(), LeaseId::random());
        let length = if brief { BRIEF } else { LONG };
        let asked = Asked { lease, worker: &self.workers[worker], length, redelivered: false };
        let found = self.claims().open(&message.head, &asked).await.unwrap();
        let token = token(&message.head, lease);
        let (claim, announce, keep) = self.world.open(&token, worker, brief);
        match (&found.claim, &claim) {
            (Claim::Taken { .. }, Claim::Taken { .. }) => {}
            (found, expected) => same!(found, expected, "open"),
        }
        same!((found.announce, found.keep), (announce, keep), "announce, keep");
        if matches!(claim, Claim::Fresh { .. }) {
            self.runs.push(Run { token, message, verdict: None });
        }
        if brief {
            run_out(BRIEF).await;
        }
        Ok(())
    }

    async fn beat(&mut self, lease: usize) -> Check {
        let Some(run) = at(&self.runs, lease) else { return Ok(()) };
        let lapsed = matches!(self.world.jobs[&run.token.job].place, Place::Running { lapsed: true, .. });
        let length = if lapsed { BRIEF } else { LONG };
        let found = self.claims().beat(&run.message.head, run.token.lease, length).await.unwrap();
        same!(found, self.world.beat(&run.token), "beat");
        if lapsed {
            run_out(BRIEF).await;
        }
        Ok(())
    }

    async fn settle(&mut self, lease: usize, how: How) -> Check {
        let Some(run) = at(&self.runs, lease) else { return Ok(()) };
        let (head, payload) = (&run.message.head, Some(&*run.message.payload));
        if let Some((verdict, was)) = &run.verdict {
            // Repeating may be told as applied, or as stale once the job has moved on; never as something new.
            let again = self.claims().settle(head, run.token.lease, verdict, payload).await.unwrap();
            let success = matches!(verdict, Verdict::End(record) if record.end == End::Succeeded);
            let fine = again == *was
                || (again == Settled::Stale && !success)
                || (*was == Settled::Kept && again == Settled::Applied);
            return if fine { Ok(()) } else { Err(format!("settled {was:?}, then {again:?}")) };
        }
        let (copy, verdict) = match how {
            How::Succeeded => (None, fixture::end(head, run.token.lease, End::Succeeded)),
            How::Dead => (None, fixture::end(head, run.token.lease, End::Dead)),
            How::Cancelled => (None, fixture::end(head, run.token.lease, End::Cancelled)),
            How::Retry => {
                let (copy, verdict) = run.retry();
                (Some(copy), verdict)
            }
            How::Release => (None, fixture::release()),
        };
        let found = self.claims().settle(head, run.token.lease, &verdict, payload).await.unwrap();
        same!(found, self.world.settle(&run.token, how), "settle");
        self.copies.extend(copy);
        if let Some(place) = place(self.runs.len(), lease) {
            self.runs[place].verdict = Some((verdict, found));
        }
        Ok(())
    }

    async fn announce(&mut self, job: usize) -> Check {
        let Some(&id) = at(&self.ids, job) else { return Ok(()) };
        let record = self.f.ledger().fetch(&[id]).await.unwrap().remove(0).and_then(|view| view.record);
        same!(record.is_some(), self.world.announce(id), "a record to announce");
        if let Some(record) = record {
            self.claims().announced(&[Announced::of(&record)]).await.unwrap();
        }
        Ok(())
    }

    async fn cancel_batch(&mut self, batch: u8) -> Check {
        let counts = self.claims().cancel_batch(&name(batch)).await.unwrap();
        let (mut ended, mut flagged) = (0, 0);
        for id in self.ids.clone() {
            if self.world.jobs[&id].batch == Some(batch) {
                self.world.cancelled.insert(batch);
                match self.world.cancel(id) {
                    Cancel::Ended => ended += 1,
                    Cancel::Flagged => flagged += 1,
                    Cancel::Already(_) | Cancel::Unknown => {}
                }
            }
        }
        same!((counts.ended, counts.flagged), (ended, flagged), "batch cancelled");
        Ok(())
    }

    async fn raise(&mut self, job: usize, steps: u8) -> Check {
        let Some(&id) = at(&self.ids, job) else { return Ok(()) };
        let found = self.claims().raise(&[id]).await.unwrap().remove(0);
        let told = match &found {
            Raised::Publish(message) => Raise::Publish(message.head.epoch),
            Raised::Restored { .. } => Raise::Restored,
            Raised::Waiting => Raise::Waiting,
            Raised::Succeeded => Raise::Succeeded,
            Raised::Gone => Raise::Gone,
            Raised::Unknown => Raise::Unknown,
        };
        same!(told, self.world.raise(id), "raise");
        let Raised::Publish(message) = found else { return Ok(()) };
        if steps > 1 {
            self.copies.push((*message).clone());
        }
        if steps > 2 {
            self.claims().published(&[&message.head]).await.unwrap();
            self.world.jobs.get_mut(&id).unwrap().raised = false;
        }
        Ok(())
    }

    /// Looks at every job, every batch and the queue.
    async fn compare(&self) -> Check {
        let views = self.f.ledger().fetch(&self.ids).await.unwrap();
        for (id, view) in self.ids.iter().zip(views) {
            let model = &self.world.jobs[id];
            same!(view.is_some(), model.known, format!("{id} known"));
            let Some(view) = view else { continue };
            let record = view.record.as_deref();
            match model.place {
                Place::Away => {
                    let waiting = matches!(view.state, State::Queued | State::Scheduled | State::Retrying);
                    same!((waiting, record.is_none()), (true, true), format!("{id} waits, is {}", view.state));
                    self.can_run(*id, model)?;
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
            let payload = self.f.ledger().payload(*id).await.unwrap().is_some();
            same!(payload, model.payload, format!("{id} payload"));
        }
        self.compare_counts().await
    }

    /// Whatever waits, some message can still run it: or whoever was to publish one will be told to do so again.
    fn can_run(&self, id: JobId, model: &Model) -> Check {
        let runs = |copy: &&Envelope| {
            copy.head.id == id && (copy.head.epoch, copy.head.attempts) >= (model.epoch, model.attempts)
        };
        if model.unconfirmed || model.raised || self.copies.iter().any(|copy| runs(&copy)) {
            return Ok(());
        }
        Err(format!("{id} is lost: no message of it can run"))
    }

    async fn compare_counts(&self) -> Check {
        for batch in 0..2 {
            let Some(view) = self.f.ledger().batch(&name(batch)).await.unwrap() else {
                same!(self.world.count(batch).0.total, 0, format!("batch {batch} is unknown"));
                continue;
            };
            let mut counts = view.counts;
            counts.queued += std::mem::take(&mut counts.delayed);
            let (expected, units) = self.world.count(batch);
            same!(counts, expected, format!("batch {batch}"));
            same!(view.usage.input_tokens, units * USAGE.input_tokens, format!("batch {batch} usage"));
        }
        let depth = self.claims().standing(&Queue::standard()).await.unwrap().depth;
        let count = |fits: fn(&&Model) -> bool| self.world.jobs.values().filter(fits).count() as u64;
        let running = count(|job| matches!(job.place, Place::Running { .. }));
        let dead = count(|job| job.place == Place::Ended(End::Dead) && job.payload);
        same!((depth.running, depth.dead, depth.ready + depth.delayed), (running, dead, 0), "standing");
        Ok(())
    }
}

impl Run {
    fn retry(&self) -> (Envelope, Verdict) {
        let mut copy = self.message.clone();
        let attempt = fixture::attempt(&copy.head, Some(FailureClass::Transient));
        copy.head.attempts += 1;
        copy.head.history.push(attempt.clone());
        (copy, Verdict::Retry { after: Duration::ZERO, attempt: Box::new(attempt) })
    }
}

/// Every other number means one of the newest few: what is about one job then meets more often.
fn place(len: usize, n: usize) -> Option<usize> {
    let among = if n.is_multiple_of(2) { len.min(3) } else { len };
    (len > 0).then(|| len - 1 - (n / 2) % among)
}

fn at<T>(all: &[T], n: usize) -> Option<&T> {
    place(all.len(), n).map(|place| &all[place])
}

fn token(head: &Head, lease: LeaseId) -> Token {
    Token { job: head.id, lease, epoch: head.epoch, attempts: head.attempts }
}

fn name(batch: u8) -> BatchName {
    fixture::batch(&format!("batch-{batch}"))
}
