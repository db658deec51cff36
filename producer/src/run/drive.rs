//! The loop of a run: enqueueing, workers, results and signals at once; decides when to leave and with what.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use promptq_common::broker::{Broker, WorkerId};
use promptq_common::error::Kind;
use promptq_common::job::{BatchName, Queue};
use promptq_common::ledger::BatchView;
use promptq_common::outcome::FailureClass;
use promptq_common::store::Store;
use promptq_common::time::Timestamp;
use promptq_worker::rollup;
use promptq_worker::status::{Blocked, BlockedBy, Board, Status};
use promptq_worker::stop::{Phase, Stop};
use promptq_worker::{Drained, Parts};
use tokio::task::JoinSet;

use super::ends::{broke_off, left};
use super::follow::{Copied, Follower};
use super::summary::{causes, summary};
use crate::budget;
use crate::command::run::RunArgs;
use crate::context::Context;
use crate::input::Input;
use crate::limits::follow::{Waits, reason};
use crate::problem::{Exit, Problem, Result};
use crate::progress::Progress;
use crate::submit::{self, Ahead, Checked, Tally, Terms};

/// Between two looks at the batch.
const LOOK: Duration = Duration::from_millis(200);
/// How long nothing may move for a reason only a person can change (protocol of `run`).
const STUCK: Duration = Duration::from_secs(60);
/// How long it may not have moved for want of money: that does not come by itself.
const BROKE: Duration = Duration::from_secs(2);
/// How long the ledger may be out of reach before the run gives up.
const PATIENCE: Duration = Duration::from_secs(30);

/// A run under way.
pub(super) struct Drive<'a> {
    cx: &'a Context,
    args: &'a RunArgs,
    follower: Follower,
    progress: Progress,
    batch: BatchName,
    queue: Queue,
    stop: Stop,
    board: Option<Board>,
    /// Where the batch is rolled up once it has ended, and as whom.
    roll_up: Option<(Store, WorkerId)>,
    /// Whether the queue is this run's alone.
    is_own: bool,
    tally: Option<Tally>,
    total: u64,
    dead_before: Option<u64>,
    view: Option<BatchView>,
    looked: Option<Instant>,
    /// With how many lines it looked early: once for each.
    looked_with: Option<u64>,
    failing: Option<Instant>,
    /// Limit keys whose account does not work, and was told of.
    refused: BTreeSet<String>,
    waits: Waits,
}

/// Why a run leaves.
#[derive(Debug)]
enum Leave {
    Finished,
    Interrupted,
    TooManyDead,
    Stuck(Blocked),
    /// For want of money; what a worker says of it.
    Broke(Option<Blocked>),
    WorkersLeft(Problem),
    Failed(Problem),
}

impl<'a> Drive<'a> {
    pub(super) fn new(cx: &'a Context, args: &'a RunArgs, follower: Follower, batch: BatchName, queue: Queue) -> Self {
        let progress = Progress::new(args.progress, cx.printer);
        let stop = Stop::new();
        Self {
            cx,
            args,
            follower,
            progress,
            batch,
            queue,
            stop,
            board: None,
            roll_up: None,
            is_own: false,
            tally: None,
            total: 0,
            dead_before: None,
            view: None,
            looked: None,
            looked_with: None,
            failing: None,
            refused: BTreeSet::new(),
            waits: Waits::default(),
        }
    }

    /// Enqueues and, with `parts`, works; copies results until every job has ended or something stops it.
    pub(super) async fn finish(
        mut self,
        broker: &Broker,
        input: Arc<Input>,
        (terms, checked): (Terms, Option<Checked>),
        parts: Option<Parts>,
    ) -> Result<Exit> {
        self.total = checked.as_ref().map_or(0, |checked| checked.rows - checked.repeated);
        self.dead_before = broker.ledger().batch(&self.batch).await?.map(|view| view.counts.dead).or(Some(0));
        let mut signals = JoinSet::new();
        let stop = self.stop.clone();
        signals.spawn(async move { stop.on_signals().await });
        let mut enqueueing = JoinSet::new();
        let submitter = broker.clone();
        // A stream's rows go as they come: whoever sends them waits for nobody.
        let own = parts.as_ref().filter(|_| checked.is_some());
        let ahead = own.map(|parts| Ahead::of(&parts.board, parts.settings.concurrency));
        enqueueing.spawn(async move { submit::enqueue(&input, &submitter, terms, checked.as_ref(), ahead).await });
        let mut workers = JoinSet::new();
        if let Some(parts) = parts {
            self.is_own = true;
            self.board = Some(parts.board.clone());
            let store = parts.store.clone().filter(|_| parts.settings.roll_up);
            self.roll_up = store.map(|store| (store, parts.settings.worker.clone()));
            workers.spawn(promptq_worker::run(parts, self.stop.clone()));
        }
        let leave = self.drive(broker, &mut enqueueing, &mut workers).await;
        enqueueing.abort_all();
        let leave = self.drain(broker, leave, &mut workers).await;
        self.progress.clear();
        let (cx, batch, total) = (self.cx, self.batch.clone(), self.total);
        match self.told(broker, leave).await {
            Err(problem) if problem.is_reader_gone() => reader_gone(cx, broker, (&batch, total)).await,
            told => told,
        }
    }

    async fn drive(
        &mut self,
        broker: &Broker,
        enqueueing: &mut JoinSet<Result<Tally>>,
        workers: &mut JoinSet<anyhow::Result<Drained>>,
    ) -> Leave {
        let mut phase = self.stop.watch();
        loop {
            let enqueued = self.tally.is_some();
            tokio::select! {
                biased;
                _ = phase.wait_for(|phase| *phase > Phase::Running) => return Leave::Interrupted,
                Some(ended) = enqueueing.join_next(), if !enqueued => match ended {
                    Ok(Ok(tally)) => self.enqueued(tally),
                    Ok(Err(problem)) => return Leave::Failed(problem),
                    Err(_) => return Leave::Failed(broke_off("enqueueing")),
                },
                Some(ended) = workers.join_next() => return Leave::WorkersLeft(left(ended)),
                advanced = self.advance(broker) => match advanced {
                    Ok(None) => {}
                    Ok(Some(leave)) => return leave,
                    Err(problem) => return Leave::Failed(problem),
                },
            }
        }
    }

    fn enqueued(&mut self, tally: Tally) {
        if tally.known + tally.invalid + tally.conflicts + tally.repeated > 0 {
            self.cx.printer.say(&tally.summary());
        }
        self.total = tally.new + tally.known;
        self.tally = Some(tally);
        self.looked = None;
    }

    /// Copies a page of results, looks at the batch now and then. Cancel-safe.
    async fn advance(&mut self, broker: &Broker) -> Result<Option<Leave>> {
        let all_ended = self.has_ended();
        let copied = match self.follower.step().await {
            Ok(copied) => copied,
            Err(problem) if problem.exit == Exit::Unreachable => {
                if self.failing.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
                    return Err(problem);
                }
                tokio::time::sleep(LOOK).await;
                return Ok(None);
            }
            Err(problem) => return Err(problem),
        };
        self.failing = None;
        if all_ended && copied == Copied::Nothing {
            return Ok(Some(Leave::Finished));
        }
        // A line for each job: that may have been the last.
        let lines = self.follower.position().lines;
        let complete = self.tally.is_some() && !all_ended && lines >= self.total && self.looked_with != Some(lines);
        if complete || self.looked.is_none_or(|looked| looked.elapsed() >= LOOK) {
            let leave = self.look(broker).await?;
            if complete {
                self.looked_with = Some(lines);
            }
            if leave.is_some() || !complete {
                return Ok(leave);
            }
        }
        if copied != Copied::Full && !self.has_ended() {
            tokio::time::sleep(LOOK / 4).await;
        }
        Ok(None)
    }

    /// Whether every job of the batch has ended, as of the last look.
    fn has_ended(&self) -> bool {
        let ended = |view: &BatchView| view.sealed && view.counts.ended() >= view.counts.total;
        self.tally.is_some() && self.view.as_ref().is_some_and(ended)
    }

    async fn look(&mut self, broker: &Broker) -> Result<Option<Leave>> {
        self.view = broker.ledger().batch(&self.batch).await?;
        self.looked = Some(Instant::now());
        let status = self.board.as_ref().map(Board::now).unwrap_or_default();
        self.tell_refusals(&status);
        let Some(view) = &self.view else { return Ok(None) };
        let own = self.board.is_some().then_some(&status);
        let blocked = self.waits.line(broker.ledger(), view, own).await;
        self.progress.show(view, self.total, blocked.as_deref());
        if let Some(news) = self.waits.news() {
            self.progress.hide(|| self.cx.printer.say(&news));
        }
        let dead = view.counts.dead.saturating_sub(self.dead_before.unwrap_or_default());
        if self.args.max_errors.is_some_and(|most| most.reached(dead, self.total.max(view.counts.total))) {
            return Ok(Some(Leave::TooManyDead));
        }
        if let Some(blocked) = status.broke(BROKE, Timestamp::now()) {
            return Ok(Some(Leave::Broke(Some(blocked.clone()))));
        }
        if !self.is_own
            && self.tally.is_some()
            && let Some(short) = budget::spent(broker, view).await?
        {
            return Ok(Some(Leave::Broke(short.0)));
        }
        Ok(status.stuck(STUCK, Timestamp::now()).cloned().map(Leave::Stuck))
    }

    /// An account that does not work is told of at once: only a person can mend it, and the run ends for it soon.
    fn tell_refusals(&mut self, status: &Status) {
        for blocked in &status.blocked {
            let BlockedBy::Limit { key, class: FailureClass::Account } = &blocked.by else { continue };
            if self.refused.insert(key.clone()) {
                self.progress.hide(|| {
                    let still = "asking again; with nothing else to run the run stops after";
                    self.cx.printer.warn(&format!("{}; {still} {} s", reason(blocked), STUCK.as_secs()));
                });
            }
        }
    }

    /// Lets the workers finish what they run, still copying results; a second signal makes them leave at once.
    async fn drain(&mut self, broker: &Broker, leave: Leave, workers: &mut JoinSet<anyhow::Result<Drained>>) -> Leave {
        self.stop.drain();
        let gone = matches!(&leave, Leave::Failed(problem) if problem.is_reader_gone());
        if (gone || matches!(leave, Leave::Interrupted)) && !workers.is_empty() {
            self.progress.clear();
            let running = submit::jobs(u64::from(self.board.as_ref().map_or(0, |board| board.now().running)));
            let again = if gone { "" } else { " again" };
            self.cx.printer.say(&format!("finishing {running} that run; Ctrl-C{again} leaves them for the next run"));
        }
        let mut leave = leave;
        loop {
            tokio::select! {
                biased;
                ended = workers.join_next() => match ended {
                    None => break,
                    Some(Ok(Ok(_))) => {}
                    Some(ended) => if matches!(leave, Leave::Finished) { leave = Leave::WorkersLeft(left(ended)) },
                },
                advanced = self.advance(broker) => if let Err(problem) = advanced {
                    if matches!(leave, Leave::Finished) { leave = Leave::Failed(problem) }
                    while workers.join_next().await.is_some() {}
                    return leave;
                },
            }
        }
        leave
    }

    /// Every job has ended and every result was read. What does not go can be left: the results are here.
    async fn retire(&self, broker: &Broker) {
        let again = "the same command again takes it away";
        match broker.retire(&self.queue).await {
            Ok(left) => left.iter().for_each(|remark| {
                self.cx.printer.say(&format!("{} is left at the broker: {}; {again}", remark.name, remark.why));
            }),
            Err(error) if error.kind() == Kind::Denied => tracing::debug!(%error, "the run's queue stays"),
            Err(error) => {
                self.cx.printer.say(&format!("the queue {} is left at the broker: {error}; {again}", self.queue));
            }
        }
    }

    /// The last results, the summary and the exit code.
    async fn told(mut self, broker: &Broker, leave: Leave) -> Result<Exit> {
        if let Leave::Failed(problem) = leave {
            return Err(problem.hint("the same command again goes on where this one stopped"));
        }
        while self.follower.step().await? != Copied::Nothing {}
        let Some(view) = broker.ledger().batch(&self.batch).await? else {
            if matches!(leave, Leave::Interrupted) {
                self.cx.printer.say("stopped before anything was enqueued");
                return Ok(Exit::Interrupted);
            }
            if let Leave::WorkersLeft(problem) = leave {
                return Err(problem);
            }
            return Err(Problem::new(Exit::NotFound, "not-found", format!("batch {} is gone", self.batch)));
        };
        let finished = matches!(leave, Leave::Finished);
        let (lines, ended) = (self.follower.position().lines, view.counts.ended());
        if finished && lines != ended {
            // Fewer: a ledger without an order of its own may list an end where this file had been before.
            self.follower.rewrite(lines < ended).await?;
        }
        if let Some((store, worker)) = self.roll_up.take().filter(|_| finished) {
            // Its workers have left before their next round of upkeep came.
            rollup::step(broker, &store, &worker).await?;
        }
        if finished && self.is_own {
            self.retire(broker).await;
        }
        let how = if finished { "done" } else { "stopped" };
        let say = |line: &str| self.cx.printer.say(line);
        say(&summary(how, &view, &self.follower.tally(), self.progress.elapsed(), &self.args.output));
        budget::unaccounted(broker.ledger(), &view, self.is_own).await?.iter().for_each(|more| say(more));
        let lines = self.follower.position().lines;
        if finished && lines < view.counts.ended() {
            let gone = submit::grouped(view.counts.ended() - lines);
            say(&format!("{gone} results are past their retention and gone"));
        }
        if view.counts.dead > 0 {
            if let Some(causes) = causes(broker.ledger(), &self.batch).await? {
                say(&causes);
            }
            say(&format!("dead: promptq dead groups -Q {}   again: --retry-dead", self.queue));
        }
        let left = view.counts.total.max(self.total) - view.counts.ended();
        let go_on = format!("{} left; the same command goes on where this one stopped", submit::jobs(left));
        match leave {
            Leave::Finished if view.counts.succeeded == view.counts.total => Ok(Exit::Done),
            Leave::Finished if self.args.allow_failures => Ok(Exit::Done),
            Leave::Finished => Ok(Exit::SomeDead),
            Leave::Interrupted => {
                say(&go_on);
                Ok(Exit::Interrupted)
            }
            Leave::TooManyDead => {
                let what = format!("--max-errors stopped the run at {} dead", submit::grouped(view.counts.dead));
                Err(Problem::new(Exit::Stopped, "max-errors", what).hint(go_on))
            }
            Leave::Broke(blocked) => Err(budget::stopped(broker, &view, blocked.as_ref()).await?),
            Leave::Stuck(blocked) => Err(stuck(&blocked).hint(go_on)),
            Leave::WorkersLeft(problem) | Leave::Failed(problem) => Err(problem.hint(go_on)),
        }
    }
}

/// The end of a run whose results nobody reads any more.
async fn reader_gone(cx: &Context, broker: &Broker, (batch, total): (&BatchName, u64)) -> Result<Exit> {
    let view = broker.ledger().batch(batch).await?;
    let left = submit::jobs(view.map_or(total, |view| view.counts.total.max(total) - view.counts.ended()));
    cx.printer.say(&format!("stopped: the reader of the results has gone; {left} left; the same command goes on"));
    Ok(Exit::ReaderGone)
}

fn stuck(blocked: &Blocked) -> Problem {
    let (exit, slug) = match &blocked.by {
        BlockedBy::Limit { class: FailureClass::Account, .. } => (Exit::NotAllowed, "account"),
        BlockedBy::Limit { .. } => (Exit::Unreachable, "provider-unreachable"),
        BlockedBy::Settling | BlockedBy::Broker => (Exit::Unreachable, "unreachable"),
        BlockedBy::Memory | BlockedBy::Disk => (Exit::Failed, "no-room"),
    };
    Problem::new(exit, slug, format!("nothing has moved for {} s: {}", STUCK.as_secs(), reason(blocked)))
}
