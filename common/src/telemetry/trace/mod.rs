//! Traces: what a span is, which are kept, and how they get from whoever makes them to `export.rs`. Nothing is traced
//! until somebody names a collector; a place in a trace travels with its job whether or not.

mod context;
mod export;
pub mod name;
mod otlp;

use std::sync::OnceLock;
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
}

static INSTALLED: OnceLock<Tracer> = OnceLock::new();

/// What becomes of spans: sent, lost, dropped.
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
            Box::new(Span { tracer: self, begun: Instant::now(), data })
        };
        (place, place.is_sampled().then(begun))
    }

    fn take(&self, data: Data) {
        if self.queue.try_send(data).is_err()
            && let Some([.., dropped]) = counters()
        {
            dropped.increment(1);
        }
    }
}

/// Nanoseconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Something that takes time, told when it is dropped. What it says is never a prompt, an answer or a secret.
#[derive(Debug)]
#[must_use = "it lasts as long as it is kept"]
pub struct Span {
    tracer: &'static Tracer,
    begun: Instant,
    data: Data,
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
}

impl Drop for Span {
    fn drop(&mut self) {
        let mut data = std::mem::take(&mut self.data);
        data.nanos = u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.tracer.take(data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{JobId, Queue};

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
