//! Traces: what a span is, which are kept, and how they get from whoever makes them to `export.rs`. Nothing is traced
//! until somebody names a collector; a place in a trace travels with its job whether or not.

mod context;
mod export;
pub mod name;
mod otlp;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime};

use tokio::sync::mpsc;

use super::metric as m;
use super::recorder::{self, Counter};
pub use context::Context;
pub use export::{Exporter, close};

/// Which new traces are kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    /// Whether a caller's decision stands.
    pub by_parent: bool,
    /// The share of the others that are kept, 0 to 1.
    pub share: f64,
}

impl Sampler {
    fn keeps(&self, parent: Option<Context>, place: &Context) -> bool {
        /// What all dice are below: 2^32.
        const ALL: f64 = 4_294_967_296.0;
        let dice = || f64::from(place.dice()) < self.share * ALL;
        parent.filter(|_| self.by_parent).map_or_else(dice, |parent| parent.is_sampled())
    }
}

/// What is on the other side of a span.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Nobody.
    #[default]
    Internal = 1,
    /// Somebody who is asked.
    Client = 3,
    /// Somebody who takes what is made here, later.
    Producer = 4,
    /// Somebody who made what is taken here.
    Consumer = 5,
}

/// What an attribute says.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A word.
    Text(String),
    /// Words.
    Texts(Vec<String>),
    /// A whole number.
    Number(i64),
    /// A fraction.
    Fraction(f64),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

/// Makes spans; there is one in a process, or none.
#[derive(Debug)]
pub struct Tracer {
    sampler: Sampler,
    queue: mpsc::Sender<Data>,
    tally: Arc<Tally>,
}

static INSTALLED: OnceLock<Tracer> = OnceLock::new();

/// What becomes of a span, in the order of the metric's label.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// The collector has it.
    Sent,
    /// The collector did not take it.
    Lost,
    /// There was no room in the queue, or no time at the end.
    Dropped,
}

/// What became of spans so far, also where nobody can ask for numbers.
#[derive(Debug, Default)]
struct Tally([AtomicU64; 3]);

impl Tally {
    fn add(&self, fate: Fate, spans: usize) {
        self.0[fate as usize].fetch_add(spans as u64, Ordering::Relaxed);
        if let Some(counters) = counters() {
            counters[fate as usize].increment(spans as u64);
        }
    }

    fn of(&self, fate: Fate) -> u64 {
        self.0[fate as usize].load(Ordering::Relaxed)
    }
}

/// One for each fate.
type Counters = [Counter; 3];

/// Where they are counted, if the process keeps numbers; there from the moment on when it both traces and keeps some.
pub(super) fn counters() -> Option<&'static Counters> {
    static COUNTERS: OnceLock<Counters> = OnceLock::new();
    let recorder = recorder::installed().filter(|_| INSTALLED.get().is_some())?;
    Some(COUNTERS.get_or_init(|| recorder.counters(&m::TRACE_SPANS, &[])))
}

/// The process's tracer, if it traces.
pub fn tracer() -> Option<&'static Tracer> {
    INSTALLED.get()
}

impl Tracer {
    /// Something new below `parent`, or in a trace of its own (whose id is `trace` where that is said): its place, which is
    /// to travel on, and the span, if its trace is kept. It begins now.
    pub fn begin(
        &'static self,
        parent: Option<Context>,
        trace: Option<[u8; 16]>,
        (kind, name): (Kind, String),
    ) -> (Context, Option<Box<Span>>) {
        let place = parent.map_or_else(|| Context::root(trace, false), |parent| parent.child());
        let place = place.sampled(self.sampler.keeps(parent, &place));
        let begun = || {
            let data = Data { place: Some(place), parent, kind, name, start: now(), ..Data::default() };
            Box::new(Span { tracer: self, begun: Instant::now(), data, is_whole: false })
        };
        (place, place.is_sampled().then(begun))
    }

    fn take(&self, data: Data) {
        if self.queue.try_send(data).is_err() {
            self.tally.add(Fate::Dropped, 1);
        }
    }
}

/// Nanoseconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Something that takes time, told when it ends, or is dropped: then it was given up. What it says is never a prompt, an
/// answer or a secret.
#[derive(Debug)]
#[must_use = "it lasts as long as it is kept"]
pub struct Span {
    tracer: &'static Tracer,
    begun: Instant,
    data: Data,
    is_whole: bool,
}

/// What a span comes to.
#[derive(Clone, Debug, Default)]
struct Data {
    place: Option<Context>,
    parent: Option<Context>,
    kind: Kind,
    name: String,
    start: u64,
    nanos: u64,
    attributes: Vec<(&'static str, Value)>,
    links: Vec<Context>,
    failed: bool,
}

impl Span {
    /// Where what it causes belongs.
    pub fn place(&self) -> Option<Context> {
        self.data.place
    }

    /// Says something of it.
    pub fn set(&mut self, name: &'static str, value: impl Into<Value>) {
        self.data.attributes.push((name, value.into()));
    }

    /// Where in other traces that is from what it works on; of many only the first.
    pub fn link(&mut self, to: Context) {
        /// As many as `OpenTelemetry`'s own tools keep.
        const MOST: usize = 128;
        if self.data.links.len() < MOST {
            self.data.links.push(to);
        }
    }

    /// It failed, in this way.
    pub fn fail(&mut self, class: &str) {
        self.set(name::ERROR, class);
        self.data.failed = true;
    }

    /// It went on to its end, well or not.
    pub fn end(mut self) {
        self.is_whole = true;
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if !self.is_whole && !self.data.failed {
            self.fail(name::INTERRUPTED);
        }
        let mut data = std::mem::take(&mut self.data);
        data.nanos = u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.tracer.take(data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{JobId, Queue};

    /// A tracer with room for so many spans, and the other end of its queue.
    fn traced(room: usize) -> (&'static Tracer, mpsc::Receiver<Data>) {
        let (queue, spans) = mpsc::channel(room);
        let sampler = Sampler { by_parent: true, share: 1.0 };
        (Box::leak(Box::new(Tracer { sampler, queue, tally: Arc::default() })), spans)
    }

    #[test]
    fn a_span_that_finds_no_room_is_counted_though_nobody_keeps_numbers() {
        let (tracer, mut spans) = traced(2);
        for _ in 0..5 {
            drop(tracer.begin(None, None, (Kind::Internal, "x".into())));
        }
        let fates = [Fate::Sent, Fate::Lost, Fate::Dropped].map(|fate| tracer.tally.of(fate));
        assert_eq!((spans.try_recv().is_ok(), fates), (true, [0, 0, 3]));
    }

    #[test]
    fn a_span_points_to_so_many_others_and_no_more() {
        let (tracer, mut spans) = traced(1);
        let (place, span) = tracer.begin(None, None, (Kind::Internal, "x".into()));
        let mut span = span.unwrap();
        (0..200).for_each(|_| span.link(place));
        span.end();
        assert_eq!(spans.try_recv().unwrap().links.len(), 128);
    }

    #[test]
    fn what_is_dropped_before_its_end_was_given_up() {
        let (tracer, mut spans) = traced(3);
        let begin = || tracer.begin(None, None, (Kind::Internal, "x".into())).1.unwrap();
        begin().end();
        drop(begin());
        let mut known = begin();
        known.fail("fatal");
        drop(known);
        let mut next = || {
            let data = spans.try_recv().unwrap();
            (data.failed, data.attributes)
        };
        let class = |class: &str| vec![(name::ERROR, Value::from(class))];
        assert_eq!(next(), (false, Vec::new()));
        assert_eq!(next(), (true, class(name::INTERRUPTED)));
        assert_eq!(next(), (true, class("fatal")), "what went wrong before is what is told");
    }

    #[test]
    fn a_share_of_new_traces_is_kept_and_a_callers_decision_stands() {
        let kept = |sampler: Sampler, root: &dyn Fn(u32) -> Option<[u8; 16]>| {
            (0..4_000).filter(|n| sampler.keeps(None, &Context::root(root(*n), false))).count()
        };
        let share = |share| Sampler { by_parent: true, share };
        let derived = |n: u32| Some(*JobId::derived(&Queue::standard(), None, &n.to_string()).as_bytes());
        let roots: [&dyn Fn(u32) -> Option<[u8; 16]>; 3] = [&|_| None, &|_| Some(*JobId::fresh().as_bytes()), &derived];
        for root in roots {
            assert!((800..1_200).contains(&kept(share(0.25), root)), "{}", kept(share(0.25), root));
            assert_eq!((kept(share(0.0), root), kept(share(1.0), root)), (0, 4_000));
        }
        let [yes, no] = [true, false].map(|sampled| Context::root(None, sampled));
        let of = |by_parent, share, parent: Context| Sampler { by_parent, share }.keeps(Some(parent), &parent.child());
        assert_eq!(
            [of(true, 0.0, yes), of(true, 1.0, no), of(false, 0.0, yes), of(false, 1.0, no)],
            [true, false, false, true]
        );
    }
}
