//! Where numbers are kept until somebody asks for them. A process has one recorder or none; without one every handle does
//! nothing. Handles are made once and kept: making one looks names up, using one does not.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use metrics::{Key, Label as Pair, Level, Metadata, Recorder as _};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use tokio::runtime::RuntimeMetrics;

use super::exposition::Page;
use super::metric::{self as m, Kind, Metric};
use super::process;
use crate::error::{Error, Kind as Fault, Result};

pub use metrics::{Counter, Histogram};

/// What adds its own families to the page each time it is asked for.
pub trait Piece: Send + Sync + fmt::Debug {
    /// Adds them, as they are now.
    fn write(&self, page: &mut Page);
}

/// The numbers of this process.
pub struct Recorder {
    inner: PrometheusRecorder,
    handle: PrometheusHandle,
    component: &'static str,
    runtime: RuntimeMetrics,
    sums: Mutex<Vec<(&'static Metric, Vec<String>, Sum)>>,
    pieces: Mutex<Vec<Arc<dyn Piece>>>,
}

static INSTALLED: OnceLock<Recorder> = OnceLock::new();

/// Begins to keep this process's numbers; a second call gives what there is.
///
/// # Errors
/// `Config` for buckets that are none.
pub(super) fn install(component: &'static str, runtime: RuntimeMetrics) -> Result<&'static Recorder> {
    if INSTALLED.get().is_none() {
        let recorder = Recorder::new(component, runtime)?;
        // Whoever was faster has installed the same.
        drop(INSTALLED.set(recorder));
        super::trace::counters();
    }
    installed().ok_or_else(|| Error::new(Fault::Closed, OP, "nothing was installed"))
}

/// The numbers of this process, if they are kept.
pub fn installed() -> Option<&'static Recorder> {
    INSTALLED.get()
}

const OP: &str = "keep metrics";
const META: Metadata<'static> = Metadata::new("promptq", Level::INFO, None);

impl Recorder {
    fn new(component: &'static str, runtime: RuntimeMetrics) -> Result<Self> {
        let mut builder = PrometheusBuilder::new();
        for metric in m::ALL {
            if let Kind::Histogram(bounds) = metric.kind {
                builder = builder
                    .set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), bounds)
                    .map_err(|error| Error::new(Fault::Config, OP, metric.name).because(error))?;
            }
        }
        let inner = builder.build_recorder();
        for metric in m::ALL {
            let (name, help) = (metric.name.into(), metric.help.into());
            match metric.kind {
                Kind::Counter => inner.describe_counter(name, None, help),
                Kind::Gauge => inner.describe_gauge(name, None, help),
                Kind::Histogram(_) => inner.describe_histogram(name, None, help),
                Kind::Sum => {}
            }
        }
        let handle = inner.handle();
        Ok(Self { inner, handle, component, runtime, sums: Mutex::default(), pieces: Mutex::default() })
    }

    /// A counter of this metric with these values of its labels, in their order.
    pub fn counter(&self, metric: &'static Metric, values: &[&str]) -> Counter {
        self.inner.register_counter(&key(metric, values), &META)
    }

    /// A histogram, likewise.
    pub fn histogram(&self, metric: &'static Metric, values: &[&str]) -> Histogram {
        self.inner.register_histogram(&key(metric, values), &META)
    }

    /// A fraction that only grows, likewise.
    pub fn sum(&self, metric: &'static Metric, values: &[&str]) -> Sum {
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((.., sum)) = sums.iter().find(|(of, said, _)| *of == metric && said == values) {
            return sum.clone();
        }
        let sum = Sum::default();
        sums.push((metric, values.iter().map(ToString::to_string).collect(), sum.clone()));
        sum
    }

    /// A counter for each value of the metric's last label, at 0 from now on; the others have these values.
    pub fn counters<const N: usize>(&self, metric: &'static Metric, values: &[&str]) -> [Counter; N] {
        let last = metric.labels.last().map_or(&[][..], |label| label.values);
        debug_assert_eq!(last.len(), N, "{}", metric.name);
        std::array::from_fn(|place| self.counter(metric, &[values, &last[place..=place]].concat()))
    }

    /// Has the page hold what this says.
    pub fn add(&self, piece: Arc<dyn Piece>) {
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner).push(piece);
    }

    /// Everything, as Prometheus reads it.
    pub fn page(&self) -> String {
        let mut page = Page::after(self.handle.render());
        {
            let sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
            for metric in m::ALL.iter().filter(|metric| metric.kind == Kind::Sum) {
                let of_it = sums.iter().filter(|(of, ..)| of == metric);
                page.family(
                    metric,
                    of_it.map(|(_, said, sum)| (said.iter().map(String::as_str).collect::<Vec<_>>(), sum.value())),
                );
            }
        }
        page.family(&m::BUILD_INFO, [([self.component, VERSION, REVISION], 1.0)]);
        process::kernel(&mut page);
        process::runtime(&mut page, &self.runtime);
        let pieces = self.pieces.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for piece in pieces {
            piece.write(&mut page);
        }
        page.into_text()
    }

    /// Puts what histograms were given into their buckets: until then it is kept one by one.
    pub(super) fn upkeep(&self) {
        self.handle.run_upkeep();
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder").field("component", &self.component).finish_non_exhaustive()
    }
}

pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");
const REVISION: &str = match option_env!("PROMPTQ_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};

/// A fraction that only grows, to the billionth.
#[derive(Clone, Debug, Default)]
pub struct Sum(Arc<AtomicU64>);

impl Sum {
    /// Adds so many billionths.
    pub fn add_nanos(&self, nanos: i64) {
        self.0.fetch_add(u64::try_from(nanos).unwrap_or_default(), Ordering::Relaxed);
    }

    #[expect(clippy::cast_precision_loss, reason = "the format knows no other numbers")]
    fn value(&self) -> f64 {
        self.0.load(Ordering::Relaxed) as f64 / 1e9
    }
}

fn key(metric: &'static Metric, values: &[&str]) -> Key {
    debug_assert_eq!(metric.labels.len(), values.len(), "{}", metric.name);
    let pairs = metric.labels.iter().zip(values).map(|(label, value)| Pair::new(label.name, (*value).to_owned()));
    Key::from_parts(metric.name, pairs.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn everything_that_is_told_is_on_the_page() {
        let recorder = Recorder::new("worker", tokio::runtime::Handle::current().metrics()).unwrap();
        let [confirmed, ..] = recorder.counters::<6>(&m::PUBLISHED, &["default", "sqlite"]);
        confirmed.increment(2);
        recorder.histogram(&m::QUEUE_WAIT, &["default"]).record(70.0);
        for _ in 0..2 {
            recorder.sum(&m::COST, &["acme", "fast"]).add_nanos(250_000_000);
        }
        recorder.upkeep();
        let page = recorder.page();
        let has = |line: &str| assert!(page.lines().any(|told| told == line), "{line} is not in {page}");
        has(
            "# HELP promptq_publish_total Jobs put in, by what came of it: confirmed is new and durable, known was there before.",
        );
        has("promptq_publish_total{queue=\"default\",backend=\"sqlite\",outcome=\"confirmed\"} 2");
        has("promptq_publish_total{queue=\"default\",backend=\"sqlite\",outcome=\"timeout\"} 0");
        has("# TYPE promptq_job_queue_wait_seconds histogram");
        has("promptq_job_queue_wait_seconds_bucket{queue=\"default\",le=\"60\"} 0");
        has("promptq_job_queue_wait_seconds_bucket{queue=\"default\",le=\"80\"} 1");
        has("promptq_cost_usd_total{provider=\"acme\",model=\"fast\"} 0.5");
        has(&format!("promptq_build_info{{component=\"worker\",version=\"{VERSION}\",revision=\"{REVISION}\"}} 1"));
    }
}
