//! What a worker counts of its jobs: for its reports, which say how fast each queue goes, and for its metrics, where they
//! are kept. Handles are made when a queue or a model is first met; a job costs no more than adding to them.

mod calls;
mod now;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use promptq_common::broker::Head;
use promptq_common::job::Queue;
use promptq_common::ledger::{PACE_KEYS, PACES, Pace};
use promptq_common::outcome::{Failure, Outcome, Reply};
use promptq_common::record::Output;
use promptq_common::telemetry::metric as m;
use promptq_common::telemetry::recorder::{self, Counter, Histogram, Recorder};
use promptq_common::time::Timestamp;
use tokio::time::Instant;

use crate::StopReason;
use crate::settings::Settings;
use calls::Providers;

pub(crate) use now::Now;

/// What was done of late is what was done within so many samples, each of so long.
const SAMPLES: usize = 30;
const SAMPLE: Duration = Duration::from_secs(9);

/// What a worker counts.
#[derive(Debug)]
pub(crate) struct Meter {
    lines: HashMap<Queue, Line>,
    samples: Mutex<VecDeque<(Instant, HashMap<Queue, Sample>)>>,
    kept: Option<Kept>,
}

/// Of one queue.
#[derive(Debug, Default)]
struct Line {
    ended: AtomicU64,
    calls: AtomicU64,
    call_ms: AtomicU64,
    input_tokens: AtomicU64,
    output_tokens: AtomicU64,
    /// The longest wait for a start since the last sample.
    waited_ms: AtomicU64,
    /// The limit keys that its jobs have come under.
    keys: Mutex<BTreeSet<String>>,
    kept: Option<KeptLine>,
}

/// Totals of one queue at a moment, and the longest wait since the moment before.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    ended: u64,
    calls: u64,
    call_ms: u64,
    input_tokens: u64,
    output_tokens: u64,
    waited_ms: u64,
}

/// The metrics of one queue.
#[derive(Debug)]
struct KeptLine {
    started: Counter,
    wait: Histogram,
    interrupted: [Counter; 3],
    hands: Mutex<Hands>,
}

/// Since when each slot has its job, and which have none: as many as there ever were at once.
#[derive(Debug, Default)]
struct Hands {
    since: Vec<Option<Instant>>,
    free: Vec<usize>,
}

/// The metrics beside.
#[derive(Debug)]
struct Kept {
    providers: Providers,
    shutdowns: [Counter; 3],
    reconnects: Counter,
    writes: [Counter; 2],
    write_duration: Histogram,
    bytes: Histogram,
}

/// Why a run was given up in the middle.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Interrupted {
    DrainDeadline,
    LeaseLost,
    Crashed,
}

impl Meter {
    /// For a worker with these settings over this kind of broker; `named` are the limit keys that its settings name.
    pub(crate) fn new(settings: &Settings, backend: &'static str, named: BTreeSet<String>) -> Self {
        let recorder = recorder::installed();
        let line = |queue: &Queue| Line { kept: recorder.map(|r| KeptLine::new(r, queue)), ..Line::default() };
        Self {
            lines: settings.queues.iter().map(|(queue, _)| (queue.clone(), line(queue))).collect(),
            samples: Mutex::default(),
            kept: recorder
                .map(|recorder| Kept::new(recorder, backend, Providers::new(recorder, named, settings.prices.clone()))),
        }
    }

    /// A job has come into this worker's hands, until what this gives is dropped.
    pub(crate) fn takes(&self, queue: &Queue) -> Option<Hand<'_>> {
        let hands = &self.lines.get(queue)?.kept.as_ref()?.hands;
        let mut taken = lock(hands);
        let place = taken.free.pop().unwrap_or_else(|| {
            taken.since.push(None);
            taken.since.len() - 1
        });
        taken.since[place] = Some(Instant::now());
        Some(Hand { hands, place })
    }

    /// The first call of a lease begins.
    pub(crate) fn starts(&self, head: &Head, deaths: u32) {
        let Some(line) = self.lines.get(&head.lane.queue) else { return };
        // Of a job that comes again nobody knows since when it could run.
        let is_first = head.attempts == 0 && head.epoch == 0 && deaths == 0;
        let ready_at = head.not_before.map_or(head.created_at, |not_before| not_before.max(head.created_at));
        let waited = is_first.then(|| Timestamp::now().since(ready_at));
        line.waited_ms.fetch_max(millis(waited.unwrap_or_default()), Ordering::Relaxed);
        if let Some(kept) = &line.kept {
            kept.started.increment(1);
            if let Some(waited) = waited {
                kept.wait.record(waited);
            }
        }
    }

    /// A call under a limit key has come to its end.
    pub(crate) fn called(&self, queue: &Queue, key: &str, outcome: &Outcome, took: Duration) {
        if let Some(line) = self.lines.get(queue) {
            line.calls.fetch_add(1, Ordering::Relaxed);
            line.call_ms.fetch_add(millis(took), Ordering::Relaxed);
            let (Outcome::Success(Reply { usage, .. }) | Outcome::Failure(Failure { usage, .. })) = outcome;
            line.input_tokens.fetch_add(usage.input_tokens, Ordering::Relaxed);
            line.output_tokens.fetch_add(usage.output_tokens, Ordering::Relaxed);
            let mut keys = lock(&line.keys);
            if keys.len() < PACE_KEYS && !keys.contains(key) {
                keys.insert(key.to_owned());
            }
        }
        if let Some(kept) = &self.kept {
            kept.providers.called(key, outcome, took);
        }
    }

    /// A run was given up in the middle.
    pub(crate) fn interrupted(&self, queue: &Queue, why: Interrupted) {
        if let Some(kept) = self.lines.get(queue).and_then(|line| line.kept.as_ref()) {
            kept.interrupted[why as usize].increment(1);
        }
    }

    /// A job of the queue has ended here.
    pub(crate) fn ended(&self, queue: &Queue) {
        if let Some(line) = self.lines.get(queue) {
            line.ended.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A job had to wait so long for the limits of its key.
    pub(crate) fn waited(&self, key: &str, length: Duration) {
        if let Some(kept) = &self.kept {
            kept.providers.waited(key, length);
        }
    }

    /// A large answer was put into object storage, or could not be, after so long.
    pub(crate) fn stored(&self, output: Option<&Output>, took: Duration) {
        let Some(kept) = &self.kept else { return };
        let Some(Output::Stored(stored)) = output else { return kept.writes[1].increment(1) };
        kept.writes[0].increment(1);
        kept.write_duration.record(took);
        #[expect(clippy::cast_precision_loss, reason = "a bucket for a size")]
        kept.bytes.record(stored.bytes as f64);
    }

    /// The broker answers again.
    pub(crate) fn reconnected(&self) {
        if let Some(kept) = &self.kept {
            kept.reconnects.increment(1);
        }
    }

    /// The worker leaves, for this reason at last.
    pub(crate) fn leaves(&self, reason: StopReason) {
        let result = match reason {
            StopReason::Signal | StopReason::Idle | StopReason::Broke | StopReason::MaxJobs | StopReason::Once => 0,
            StopReason::DeadlinePassed => 1,
            StopReason::Now | StopReason::BackendLost | StopReason::Refused => 2,
        };
        if let Some(kept) = &self.kept {
            kept.shutdowns[result].increment(1);
        }
    }

    /// How fast each queue went of late, those that moved.
    pub(crate) fn paces(&self) -> Vec<Pace> {
        let (now, mut samples) = (Instant::now(), lock(&self.samples));
        let current = self.lines.iter().map(|(queue, line)| (queue.clone(), line.sample())).collect();
        if samples.is_empty() {
            samples.push_back((now, HashMap::new()));
        }
        let (since, before) = samples.front().cloned().unwrap_or((now, HashMap::new()));
        let mut paces: Vec<Pace> = self
            .lines
            .iter()
            .filter_map(|(queue, line)| {
                let waits = samples.iter().skip(1).filter_map(|(_, sample)| Some(sample.get(queue)?.waited_ms));
                let waited_ms = waits.max().unwrap_or_default().max(line.waited_ms.load(Ordering::Relaxed));
                line.pace(queue, before.get(queue).copied().unwrap_or_default(), waited_ms, now - since)
            })
            .collect();
        if samples.back().is_none_or(|(at, _)| now - *at >= SAMPLE) {
            for line in self.lines.values() {
                line.waited_ms.store(0, Ordering::Relaxed);
            }
            samples.push_back((now, current));
            if samples.len() > SAMPLES {
                samples.pop_front();
            }
        }
        paces.sort_by_key(|pace| std::cmp::Reverse(pace.ended));
        paces.truncate(PACES);
        paces
    }
}

impl Line {
    fn sample(&self) -> Sample {
        let read = |number: &AtomicU64| number.load(Ordering::Relaxed);
        Sample {
            ended: read(&self.ended),
            calls: read(&self.calls),
            call_ms: read(&self.call_ms),
            input_tokens: read(&self.input_tokens),
            output_tokens: read(&self.output_tokens),
            waited_ms: read(&self.waited_ms),
        }
    }

    fn pace(&self, queue: &Queue, before: Sample, waited_ms: u64, over: Duration) -> Option<Pace> {
        let now = self.sample();
        let pace = Pace {
            queue: queue.clone(),
            over_ms: millis(over),
            ended: now.ended - before.ended,
            calls: now.calls - before.calls,
            call_ms: now.call_ms - before.call_ms,
            input_tokens: now.input_tokens - before.input_tokens,
            output_tokens: now.output_tokens - before.output_tokens,
            waited_ms,
            keys: lock(&self.keys).iter().cloned().collect(),
        };
        (pace.calls > 0 || pace.ended > 0).then_some(pace)
    }
}

impl KeptLine {
    fn new(recorder: &Recorder, queue: &Queue) -> Self {
        let queue = queue.as_str();
        Self {
            started: recorder.counter(&m::STARTED, &[queue]),
            wait: recorder.histogram(&m::QUEUE_WAIT, &[queue]),
            interrupted: recorder.counters(&m::INTERRUPTED, &[queue]),
            hands: Mutex::default(),
        }
    }
}

impl Kept {
    fn new(recorder: &'static Recorder, backend: &'static str, providers: Providers) -> Self {
        Self {
            providers,
            shutdowns: recorder.counters(&m::SHUTDOWNS, &[]),
            reconnects: recorder.counter(&m::RECONNECTS, &[backend]),
            writes: recorder.counters(&m::RESULT_WRITES, &["object_store"]),
            write_duration: recorder.histogram(&m::RESULT_DURATION, &["object_store"]),
            bytes: recorder.histogram(&m::RESULT_BYTES, &["object_store"]),
        }
    }
}

/// A job in a worker's hands.
#[derive(Debug)]
pub(crate) struct Hand<'a> {
    hands: &'a Mutex<Hands>,
    place: usize,
}

impl Drop for Hand<'_> {
    fn drop(&mut self) {
        let mut hands = lock(self.hands);
        hands.since[self.place] = None;
        hands.free.push(self.place);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn millis(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use promptq_common::broker::WorkerId;
    use promptq_common::job::Job;
    use promptq_common::work::Work;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn paces_are_of_the_last_minutes_and_of_queues_that_moved() {
        let (busy, idle) = (Queue::new("busy").unwrap(), Queue::new("idle").unwrap());
        let settings = Settings::standard(WorkerId::random("w"), vec![(busy.clone(), 1), (idle, 1)]);
        let meter = Meter::new(&settings, "memory", BTreeSet::new());
        assert_eq!(meter.paces(), []);
        let mut head = promptq_common::broker::envelope(&Job::new(busy.clone(), Work::prompt(None, "x"))).unwrap().head;
        head.created_at = Timestamp::now() - Duration::from_secs(40);
        for _ in 0..3 {
            meter.starts(&head, 0);
            meter.called(&busy, "acme/fast", &Outcome::Success(Reply::default()), Duration::from_secs(2));
            meter.ended(&busy);
        }
        meter.starts(&head, 1);
        tokio::time::advance(Duration::from_secs(10)).await;
        let [pace] = meter.paces().try_into().unwrap();
        assert_eq!((pace.over_ms, pace.ended, pace.calls, pace.call_ms), (10_000, 3, 3, 6_000));
        assert_eq!((pace.keys, pace.waited_ms / 1_000), (vec!["acme/fast".to_owned()], 40));
        for _ in 0..=SAMPLES {
            tokio::time::advance(Duration::from_secs(10)).await;
            meter.paces();
        }
        assert_eq!(meter.paces(), [], "five minutes later");
    }
}
