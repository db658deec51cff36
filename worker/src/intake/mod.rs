//! THE loop: takes jobs as there is room, and leaves when told to. It owns all that changes in a worker.
//! What one job goes through is `execute.rs`; leaving is `drain.rs`; when nothing is left to wait for, `idle.rs`; what is shown
//! meanwhile, `show.rs`; how much there is room for, `want.rs`; what goes on beside it, `chores.rs`.

mod chores;
mod idle;
mod show;
mod want;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use promptq_common::broker::{Broker, Consumer, Deliveries, Terms, Want};
use promptq_common::error::{Kind, Result};
use promptq_common::job::Lane;
use promptq_common::limits::Limits;
use promptq_common::record::End;
use promptq_common::time::Timestamp;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until};

use crate::admission::Shortage;
use crate::execute::{Desk, Did, execute};
use crate::meter::{Meter, Now};
use crate::reuse::Shelf;
use crate::route::Nevers;
use crate::status::{Board, Finished};
use crate::stop::{Phase, Stop};
use crate::tier::Full;
use crate::{Parts, StopReason};
use idle::Waits;

/// The waits between tries to reach the broker.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// The status is shown at most this often.
const SHOW: Duration = Duration::from_millis(100);

/// A worker at work.
#[derive(Debug)]
pub(crate) struct Intake {
    pub(crate) broker: Broker,
    pub(crate) desk: Arc<Desk>,
    pub(crate) board: Board,
    /// The jobs that run.
    pub(crate) running: JoinSet<Did>,
    /// Upkeep, readings and wakes: whatever is not a job.
    pub(crate) chores: JoinSet<()>,
    pub(crate) finished: Finished,
    pub(crate) draining: bool,
    phase: watch::Receiver<Phase>,
    shortage: watch::Receiver<Option<Shortage>>,
    pub(crate) tick: Interval,
    shown_at: Instant,
    /// Something worth showing has happened since.
    dirty: bool,
    progress_at: Option<Timestamp>,
    retries_until: Option<Timestamp>,
    short_since: Option<Timestamp>,
    idle_since: Option<Instant>,
    failing: Option<Failing>,
    heard: Heard,
    /// Jobs that are ready and may not run.
    waits: Waits,
}

/// What the broker has said so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Heard {
    Nothing,
    Answers,
    Jobs,
}

/// The broker is out of reach.
#[derive(Debug)]
struct Failing {
    since: (Instant, Timestamp),
    pause: Duration,
    again: Instant,
    detail: String,
}

/// What the loop wakes for.
enum Event {
    Phase(Phase),
    Finished(std::result::Result<Did, JoinError>),
    Room,
    Second,
    Show,
    Answer(Result<Deliveries>),
}

/// What an event leads to.
enum Next {
    /// Wait on; the question to the broker stands if it still fits.
    Wait,
    /// Ask the broker anew.
    Ask,
    /// Nothing was there to run for so long, which is as long as this worker was told to wait.
    Idle(Duration),
    /// Nothing is ready but in these lanes, which may not run now, and it was told to run once.
    Over(Vec<Lane>),
    /// Take no more.
    Leave(StopReason),
}

impl Intake {
    /// Readies everything but the subscription; starts readings and upkeep. `cut` tells running jobs to give up.
    pub(crate) fn new(parts: Parts, stop: &Stop, cut: watch::Receiver<bool>) -> Self {
        let Parts { broker, store, runners, settings, board } = parts;
        let (readings, shortage) = watch::channel(None);
        let limits = Limits::ruled(settings.limits.clone());
        let meter = Arc::new(Meter::new(&settings, broker.backend_name(), runners.configured_keys()));
        let (backend, slots) = (broker.backend_name(), settings.concurrency);
        Now { meter: Arc::clone(&meter), board: board.clone(), backend, slots }.show();
        let desk = Arc::new(Desk {
            settings,
            runners,
            shelf: Shelf::new(store.clone()),
            store,
            limits,
            nevers: Nevers::default(),
            full: Full::default(),
            meter,
            system: backend,
            cut,
        });
        let mut tick = interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut intake = Self {
            broker,
            desk,
            board,
            running: JoinSet::new(),
            chores: JoinSet::new(),
            finished: Finished::default(),
            draining: false,
            phase: changed(stop.watch()),
            shortage,
            tick,
            shown_at: Instant::now(),
            dirty: false,
            progress_at: None,
            retries_until: None,
            short_since: None,
            idle_since: None,
            failing: None,
            heard: Heard::Nothing,
            waits: Waits::default(),
        };
        intake.start_chores(readings);
        intake
    }

    /// Opens the subscription, trying again for as long as `give_up` and the stop allow.
    ///
    /// # Errors
    /// What a person has to mend, or the last error when the broker stayed out of reach.
    pub(crate) async fn subscribe(&self, stop: &Stop) -> Result<Option<Consumer>> {
        let settings = &self.desk.settings;
        let (started, mut pause, mut phase) = (Instant::now(), RECONNECT.0, stop.watch());
        loop {
            let (worker, queues, lease) = (settings.worker.clone(), settings.queues.clone(), settings.lease);
            match self.broker.consume(Terms { worker, queues, lease }).await {
                Ok(consumer) => return Ok(Some(consumer)),
                Err(error) if !error.is_transient() || started.elapsed() >= settings.give_up => return Err(error),
                Err(error) => tracing::warn!(%error, "the broker is out of reach; trying again"),
            }
            tokio::select! {
                () = tokio::time::sleep(jittered(pause)) => pause = (pause * 2).min(RECONNECT.1),
                _ = phase.wait_for(|phase| *phase > Phase::Running) => return Ok(None),
            }
        }
    }

    /// Takes jobs until there is a reason to leave.
    pub(crate) async fn take_jobs(&mut self, consumer: &mut Consumer) -> StopReason {
        loop {
            if let Next::Leave(reason) = self.all_that_finish().await {
                return reason;
            }
            let want = self.want();
            let mut answer = std::pin::pin!(ask(consumer, &want, self.failing.as_ref().map(|failing| failing.again)));
            loop {
                let event = self.event(answer.as_mut()).await;
                match self.handle(event) {
                    Next::Leave(reason) => return reason,
                    Next::Idle(idle) => match self.nothing_is_left(idle).await {
                        Some(reason) => return reason,
                        None => break,
                    },
                    Next::Over(lanes) => return self.over(&lanes).await,
                    Next::Ask => break,
                    Next::Wait if self.outgrown(&want) => break,
                    Next::Wait => {}
                }
            }
        }
    }

    /// Counts jobs that could leave their slots now and are only behind this loop: what is settled together is asked for
    /// together. Those of one answer come in the first passes, one for each step from there to their slots; of many short
    /// jobs one more ends in every pass for ever, and neither a stop is heard nor a free slot filled meanwhile.
    async fn all_that_finish(&mut self) -> Next {
        for _ in 0..8 {
            tokio::task::yield_now().await;
            let Some(finished) = self.running.try_join_next() else { break };
            self.note(finished);
            while let Some(finished) = self.running.try_join_next() {
                self.note(finished);
            }
        }
        self.enough()
    }

    /// Waits for whatever comes first; nothing is lost when several come at once.
    async fn event<A: Future<Output = Result<Deliveries>>>(&mut self, answer: Pin<&mut A>) -> Event {
        let show_at = self.shown_at + SHOW;
        tokio::select! {
            biased;
            Ok(()) = self.phase.changed() => Event::Phase(*self.phase.borrow()),
            Some(finished) = self.running.join_next() => Event::Finished(finished),
            () = self.desk.limits.changed() => Event::Room,
            _ = self.tick.tick() => Event::Second,
            answer = answer => Event::Answer(answer),
            () = sleep_until(show_at), if self.dirty => Event::Show,
        }
    }

    /// The whole policy, without waiting.
    fn handle(&mut self, event: Event) -> Next {
        match event {
            Event::Phase(Phase::Running) => Next::Wait,
            Event::Phase(Phase::Draining) => Next::Leave(StopReason::Signal),
            Event::Phase(Phase::Stopping) => Next::Leave(StopReason::Now),
            Event::Finished(finished) => {
                self.note(finished);
                while let Some(finished) = self.running.try_join_next() {
                    self.note(finished);
                }
                self.enough()
            }
            Event::Room => {
                self.wake_opened();
                self.dirty = true;
                Next::Wait
            }
            Event::Second => {
                while self.chores.try_join_next().is_some() {}
                self.wake_opened();
                self.show();
                self.given_up()
            }
            Event::Show => {
                self.show();
                Next::Wait
            }
            Event::Answer(Ok(deliveries)) => self.start(deliveries),
            // Starting it again would not help, nor waiting.
            Event::Answer(Err(error)) if self.heard < Heard::Jobs && error.kind() == Kind::Denied => {
                tracing::error!(%error, "jobs may not be taken");
                Next::Leave(StopReason::Refused)
            }
            Event::Answer(Err(error)) => {
                let now = Instant::now();
                // Nobody knows what there was to run meanwhile.
                self.idle_since = None;
                let failing = self.failing.take();
                let since = failing.as_ref().map_or((now, Timestamp::now()), |failing| failing.since);
                let pause = failing.map_or(RECONNECT.0, |failing| (failing.pause * 2).min(RECONNECT.1));
                tracing::warn!(%error, "taking jobs failed; trying again");
                self.failing = Some(Failing { since, pause, again: now + jittered(pause), detail: error.to_string() });
                Next::Ask
            }
        }
    }

    /// Starts what was leased.
    fn start(&mut self, answer: Deliveries) -> Next {
        if self.failing.take().is_some() {
            self.desk.meter.reconnected();
        }
        if self.heard == Heard::Nothing {
            (self.heard, self.dirty) = (Heard::Answers, true);
        }
        let Deliveries { deliveries, lanes_seen } = answer;
        self.note_lanes(&lanes_seen, &deliveries);
        if !deliveries.is_empty() {
            self.idle_since = None;
            self.dirty = true;
            (self.heard, self.waits.since) = (Heard::Jobs, None);
            for delivery in deliveries {
                let expected = self.desk.limits.expect(&delivery.head.lane);
                self.running.spawn(execute(delivery, expected, Arc::clone(&self.desk)));
            }
            return Next::Ask;
        }
        if !self.running.is_empty() {
            self.idle_since = None;
            return Next::Ask;
        }
        // What is ready and closed for a moment alone is no reason to leave it.
        if self.desk.settings.once && !self.desk.limits.opens_soon(&lanes_seen) {
            return Next::Over(lanes_seen);
        }
        // Jobs behind a shut limit are work to wait for.
        if !lanes_seen.is_empty() {
            self.idle_since = None;
            return self.waits_with(&lanes_seen).map_or(Next::Ask, Next::Leave);
        }
        let idle = self.idle_since.get_or_insert_with(Instant::now).elapsed();
        match self.desk.settings.exit_when_idle {
            Some(length) if idle >= length => Next::Idle(idle),
            _ => Next::Ask,
        }
    }

    /// Jobs that were run here, as `max_jobs` counts them.
    fn ran(&self) -> u64 {
        self.finished.ended() + self.finished.retried
    }

    fn enough(&self) -> Next {
        match self.desk.settings.max_jobs {
            Some(most) if self.running.is_empty() && self.ran() >= most => Next::Leave(StopReason::MaxJobs),
            _ => Next::Wait,
        }
    }

    fn given_up(&self) -> Next {
        let taking = self.failing.as_ref().map(|failing| failing.since.0.elapsed());
        // With every slot waiting to settle, nothing is asked for that could fail.
        let out_of_reach = taking.max(self.broker.settle_trouble());
        if out_of_reach.is_some_and(|since| since >= self.desk.settings.give_up) {
            return Next::Leave(StopReason::BackendLost);
        }
        Next::Wait
    }

    /// Counts a job that has left its slot.
    pub(crate) fn note(&mut self, finished: std::result::Result<Did, JoinError>) {
        let did = finished.unwrap_or_else(|error| {
            if error.is_panic() {
                tracing::error!("a job broke the worker's own code; its lease runs out and it is tried again");
            }
            Did::Dropped
        });
        self.dirty = true;
        let counts = &mut self.finished;
        match did {
            Did::Ended(End::Succeeded) => counts.succeeded += 1,
            Did::Ended(End::Dead) => counts.dead += 1,
            Did::Ended(End::Cancelled) => counts.cancelled += 1,
            Did::Ended(End::Expired) => counts.expired += 1,
            Did::Retried(until) => {
                counts.retried += 1;
                self.retries_until = self.retries_until.max(Some(until));
            }
            Did::Released | Did::Cut => counts.released += 1,
            Did::Dropped => counts.dropped += 1,
        }
        if matches!(did, Did::Ended(_) | Did::Retried(_)) {
            self.progress_at = Some(Timestamp::now());
        }
    }
}

/// Asks the broker, not before `at`; never when nothing is wanted.
async fn ask(consumer: &mut Consumer, want: &Want, at: Option<Instant>) -> Result<Deliveries> {
    if want.total == 0 {
        return std::future::pending().await;
    }
    if let Some(at) = at {
        sleep_until(at).await;
    }
    consumer.next(want).await
}

/// Seen anew, so that a stop asked for earlier is heard too.
fn changed(mut phase: watch::Receiver<Phase>) -> watch::Receiver<Phase> {
    phase.mark_changed();
    phase
}

/// Between half of it and all of it, so that a fleet does not come back at once.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)
}
