//! Every metric: name, kind, labels, buckets, help and who has it, as one table. Recording, rendering and
//! `deploy/metrics.md` follow from it.

use std::fmt::Write as _;

use super::label as l;

/// One metric family.
#[derive(Debug, PartialEq)]
pub struct Metric {
    /// With its unit, and `_total` where it only grows.
    pub name: &'static str,
    /// What it is to Prometheus.
    pub kind: Kind,
    /// In the order in which values are given.
    pub labels: &'static [&'static Label],
    /// What it counts, in one line.
    pub help: &'static str,
    /// Who has it.
    pub of: Of,
}

/// What a metric is to Prometheus.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Whole numbers that only grow.
    Counter,
    /// Fractions that only grow: dollars, seconds.
    Sum,
    /// A number as it is now.
    Gauge,
    /// How many values fell below each bound.
    Histogram(&'static [f64]),
}

impl Kind {
    /// As the exposition format has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter | Self::Sum => "counter",
            Self::Gauge => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }
}

/// Which process has a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// All of them.
    Every,
    /// Whoever puts jobs in: the gateway, and `promptq run`.
    Producer,
    /// A worker.
    Worker,
    /// `promptq exporter`.
    Exporter,
}

impl Of {
    const ALL: [Self; 4] = [Self::Producer, Self::Worker, Self::Exporter, Self::Every];

    const fn title(self) -> &'static str {
        match self {
            Self::Every => "Every process",
            Self::Producer => "Producers: the gateway",
            Self::Worker => "Workers",
            Self::Exporter => "The exporter",
        }
    }
}

/// One label.
#[derive(Debug, PartialEq, Eq)]
pub struct Label {
    /// Its name.
    pub name: &'static str,
    /// All it may say; empty where that is not known beforehand.
    pub values: &'static [&'static str],
    /// What bounds it then.
    pub said: &'static str,
}

/// Seconds of a job or a call to a provider.
pub const RUN: &[f64] =
    &[0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 600.0, 1200.0, 3600.0];
/// Seconds that jobs wait.
pub const WAIT: &[f64] = &[
    0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 80.0, 160.0, 300.0, 600.0, 900.0, 1200.0, 1800.0,
    3600.0, 7200.0, 14400.0,
];
/// Seconds of a request to the gateway, and of a write to a broker, a ledger or a store.
pub const REQUEST: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Bytes of a job or an answer.
pub const BYTES: &[f64] = &[256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262_144.0, 1_048_576.0, 4_194_304.0, 16_777_216.0];

const fn row(of: Of, kind: Kind, name: &'static str, labels: &'static [&'static Label], help: &'static str) -> Metric {
    Metric { name, kind, labels, help, of }
}

macro_rules! table {
    ($($id:ident = $of:ident $kind:expr, $name:literal, [$($label:expr),*], $help:literal;)*) => {
        $(#[doc = $help] pub const $id: Metric = row(Of::$of, $kind, $name, &[$(&$label),*], $help);)*
        /// The whole table.
        pub const ALL: &[&Metric] = &[$(&$id),*];
    };
}

use Kind::{Counter, Gauge, Histogram, Sum};

table! {
    HTTP_REQUESTS = Producer Counter, "promptq_http_requests_total", [l::ROUTE, l::METHOD, l::CODE],
        "Requests answered.";
    HTTP_DURATION = Producer Histogram(REQUEST), "promptq_http_request_duration_seconds", [l::ROUTE, l::METHOD],
        "From a request's head to the end of its answer.";
    HTTP_IN_FLIGHT = Producer Gauge, "promptq_http_requests_in_flight", [],
        "Requests being answered.";
    PUBLISHED = Producer Counter, "promptq_publish_total", [l::QUEUE, l::BACKEND, l::PUBLISHED],
        "Jobs put in, by what came of it: confirmed is new and durable, known was there before.";
    PUBLISH_DURATION = Producer Histogram(REQUEST), "promptq_publish_duration_seconds", [l::BACKEND],
        "From handing jobs to the broker until it confirmed them, one call.";
    PUBLISH_BYTES = Producer Histogram(BYTES), "promptq_publish_payload_bytes", [l::QUEUE],
        "Size of a job put in.";
    REJECTED = Producer Counter, "promptq_admission_rejected_total", [l::QUEUE, l::REFUSED],
        "Jobs and requests turned away; queue is _ where none was read.";

    STARTED = Worker Counter, "promptq_jobs_started_total", [l::QUEUE],
        "Jobs whose run began, once for each lease.";
    REDELIVERED = Worker Counter, "promptq_jobs_redelivered_total", [l::QUEUE],
        "Leases of jobs that an earlier worker died with.";
    DUPLICATE = Worker Counter, "promptq_jobs_duplicate_total", [l::QUEUE],
        "Deliveries of jobs that had ended or that another worker ran: not run again.";
    COMPLETED = Worker Counter, "promptq_jobs_completed_total", [l::QUEUE, l::ENDED],
        "Jobs ended by a worker, once their record was durable.";
    RETRIED = Worker Counter, "promptq_jobs_retried_total", [l::QUEUE, l::REASON],
        "Attempts spent and tried again, by what was wrong.";
    RELEASED = Worker Counter, "promptq_jobs_released_total", [l::QUEUE, l::RELEASED],
        "Leases given back without an attempt spent, by what the job waits for.";
    DEAD = Worker Counter, "promptq_jobs_dead_total", [l::QUEUE, l::REASON],
        "Jobs given up, by the class of the last failure.";
    INTERRUPTED = Worker Counter, "promptq_jobs_interrupted_total", [l::QUEUE, l::INTERRUPTED],
        "Runs given up in the middle.";
    QUEUE_WAIT = Worker Histogram(WAIT), "promptq_job_queue_wait_seconds", [l::QUEUE],
        "From when a job could run (submitted, or its start time) to the start of its first attempt.";
    JOB_DURATION = Worker Histogram(RUN), "promptq_job_duration_seconds", [l::QUEUE, l::ENDED],
        "The last attempt of a job, from its start to its end.";
    END_TO_END = Worker Histogram(WAIT), "promptq_job_end_to_end_seconds", [l::QUEUE, l::ENDED],
        "From when a job was submitted to its end.";
    JOBS_RUNNING = Worker Gauge, "promptq_worker_jobs_running", [l::QUEUE],
        "Jobs in hand.";
    CONCURRENCY = Worker Gauge, "promptq_worker_concurrency_limit", [],
        "Jobs this worker runs at once at most.";
    OLDEST_RUNNING = Worker Gauge, "promptq_worker_oldest_inflight_job_age_seconds", [l::QUEUE],
        "How long the job has been in hand that has been for longest; 0 without jobs.";
    WORKER_STATE = Worker Gauge, "promptq_worker_state", [l::STATE],
        "1 for the state it is in, 0 for the others.";
    WORKER_BLOCKED = Worker Gauge, "promptq_worker_blocked", [l::HELD_BY],
        "1 while this keeps jobs from being taken here.";
    SHUTDOWNS = Worker Counter, "promptq_worker_shutdowns_total", [l::SHUTDOWN],
        "How this worker left: with everything finished, at the drain deadline, or at once.";
    LIMIT_WAIT = Worker Histogram(RUN), "promptq_ratelimit_wait_seconds", [l::PROVIDER],
        "From a job's turn to when the limits had room for its call.";
    CALLS = Worker Counter, "promptq_provider_requests_total", [l::PROVIDER, l::MODEL, l::CALLED],
        "Calls by what came of them.";
    CALL_DURATION = Worker Histogram(RUN), "promptq_provider_request_duration_seconds", [l::PROVIDER, l::MODEL],
        "One call, from its start to the end of its answer.";
    FIRST_TOKEN = Worker Histogram(RUN), "promptq_provider_time_to_first_token_seconds", [l::PROVIDER, l::MODEL],
        "From a call's start to the first piece of a streamed answer.";
    TOKENS = Worker Counter, "promptq_tokens_total", [l::PROVIDER, l::MODEL, l::TOKENS],
        "Tokens as providers counted them; cached ones are part of input.";
    COST = Worker Sum, "promptq_cost_usd_total", [l::PROVIDER, l::MODEL],
        "Dollars spent, as far as they are known.";
    PAID_TWICE = Worker Sum, "promptq_paid_twice_usd_total", [l::QUEUE],
        "Dollars, estimated, of calls that were cut before a later one of the same job was answered.";
    RESULT_WRITES = Worker Counter, "promptq_result_writes_total", [l::SINK, l::WRITTEN],
        "Attempts to write a job's end to the ledger, or a large output to object storage.";
    RESULT_DURATION = Worker Histogram(REQUEST), "promptq_result_write_duration_seconds", [l::SINK],
        "Until such a write was durable, its repeats included.";
    RESULT_BYTES = Worker Histogram(BYTES), "promptq_result_bytes", [l::SINK],
        "Size of an answer.";

    MESSAGES = Exporter Gauge, "promptq_queue_messages", [l::QUEUE, l::BACKEND, l::DEPTH],
        "Jobs of a queue by state.";
    OLDEST = Exporter Gauge, "promptq_queue_oldest_message_age_seconds", [l::QUEUE, l::DEPTH, l::SOURCE],
        "How long the oldest ready job has waited, exact or estimated; 0 without ready jobs.";
    DRAIN = Exporter Gauge, "promptq_queue_drain_seconds", [l::QUEUE],
        "How long the unfinished jobs will take at the present rate; no series while nothing moves.";
    CONSUMERS = Exporter Gauge, "promptq_queue_consumers", [l::QUEUE],
        "Workers that take jobs of the queue and do not drain.";
    PAUSED = Exporter Gauge, "promptq_queue_paused", [l::QUEUE],
        "1 while the queue is paused.";
    BLOCKED = Exporter Gauge, "promptq_queue_blocked_jobs", [l::QUEUE, l::BLOCKED],
        "Unfinished jobs behind a pause, a limit, an outage or a spent budget.";
    USEFUL = Exporter Gauge, "promptq_queue_useful_workers", [l::QUEUE],
        "The most workers that limits leave work for.";
    DESIRED = Exporter Gauge, "promptq_queue_desired_workers", [l::QUEUE],
        "Workers that would start every unfinished job in time, no more than are useful; none for jobs that only money helps.";
    AVAILABLE = Exporter Gauge, "promptq_ratelimit_available", [l::KEY, l::MEASURE],
        "What is left of a limit now, in its own unit.";
    SCRAPE_SUCCESS = Exporter Gauge, "promptq_queue_scrape_success", [l::BACKEND],
        "1 if the last look at the broker worked; without it there are no series of queues.";
    SCRAPE_DURATION = Exporter Gauge, "promptq_queue_scrape_duration_seconds", [l::BACKEND],
        "How long that look took.";
    SCRAPE_AT = Exporter Gauge, "promptq_queue_last_scrape_success_timestamp_seconds", [l::BACKEND],
        "When one worked last, in seconds since 1970.";

    BUILD_INFO = Every Gauge, "promptq_build_info", [l::COMPONENT, l::VERSION, l::REVISION],
        "1, with what this process is.";
    CONNECTED = Every Gauge, "promptq_broker_connected", [l::BACKEND],
        "1 while the broker answers.";
    RECONNECTS = Every Counter, "promptq_broker_reconnects_total", [l::BACKEND],
        "How often the broker answered again after it did not.";
    TRACE_SPANS = Every Counter, "promptq_trace_spans_total", [l::SPANS],
        "Spans, where traces are sent to a collector: lost and dropped ones never arrived or were rejected.";
    CPU = Every Sum, "process_cpu_seconds_total", [],
        "Processor time, user and system.";
    RESIDENT = Every Gauge, "process_resident_memory_bytes", [],
        "Resident memory.";
    VIRTUAL = Every Gauge, "process_virtual_memory_bytes", [],
        "Virtual memory.";
    OPEN_FDS = Every Gauge, "process_open_fds", [],
        "Open file descriptors.";
    MAX_FDS = Every Gauge, "process_max_fds", [],
        "The most file descriptors it may open.";
    THREADS = Every Gauge, "process_threads", [],
        "Threads.";
    START_TIME = Every Gauge, "process_start_time_seconds", [],
        "When it started, in seconds since 1970.";
    RUNTIME_BUSY = Every Sum, "promptq_runtime_busy_seconds_total", [],
        "Time the runtime's threads were busy, added up.";
    RUNTIME_THREADS = Every Gauge, "promptq_runtime_threads", [],
        "Threads that run tasks.";
    RUNTIME_TASKS = Every Gauge, "promptq_runtime_tasks", [],
        "Tasks alive.";
    RUNTIME_QUEUE = Every Gauge, "promptq_runtime_queue_depth", [],
        "Tasks ready that no thread has taken.";
}

/// The catalogue for people, as Markdown: `deploy/metrics.md`.
pub fn catalogue() -> String {
    let mut page = HEAD.to_owned();
    for of in Of::ALL {
        add(&mut page, format_args!("\n## {}\n\n| metric | type | labels | what |\n|---|---|---|---|\n", of.title()));
        for metric in ALL.iter().filter(|metric| metric.of == of) {
            let labels: Vec<_> = metric.labels.iter().map(|label| format!("`{}`", label.name)).collect();
            let (kind, labels) = (metric.kind.as_str(), labels.join(", "));
            add(&mut page, format_args!("| `{}` | {kind} | {labels} | {} |\n", metric.name, metric.help));
        }
    }
    page.push_str("\n## Labels\n\n| label | on | values |\n|---|---|---|\n");
    let mut told: Vec<&'static Label> = Vec::new();
    for label in ALL.iter().flat_map(|metric| metric.labels).copied() {
        if !told.contains(&label) {
            told.push(label);
            page.push_str(&label_line(label));
        }
    }
    page.push_str("\n## Buckets\n\n| of | upper bounds |\n|---|---|\n");
    let mut shown: Vec<&'static [f64]> = Vec::new();
    for metric in ALL {
        let Histogram(bounds) = metric.kind else { continue };
        if !shown.contains(&bounds) {
            shown.push(bounds);
            page.push_str(&bucket_line(bounds));
        }
    }
    page
}

const HEAD: &str = "# Metrics

What `/metrics` of a worker, the exporter and the gateway says, on the admin address (`--admin`, 127.0.0.1:9091 unless told otherwise).
This page is made from `common/src/telemetry/metric.rs`; a test compares the two.

No label holds an id, a tenant, a prompt or an answer. A series whose labels are known beforehand is there from the start, at 0, so that `increase()` sees the first event.
For the share of jobs that start in time take the bucket of `promptq_job_queue_wait_seconds` whose bound is the time: `rate(..._bucket{le=\"60\"}[5m]) / rate(..._count[5m])`.
Publishing fails where the outcome is `timeout`, `unavailable` or `error`; `known` and `refused` are answers.
";

fn add(page: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _written = page.write_fmt(text);
}

fn label_line(label: &'static Label) -> String {
    let on: Vec<_> =
        ALL.iter().filter(|metric| metric.labels.contains(&label)).map(|metric| format!("`{}`", metric.name)).collect();
    let on = if on.len() > 3 { format!("{} metrics", on.len()) } else { on.join(", ") };
    let values = if label.values.is_empty() {
        label.said.to_owned()
    } else {
        label.values.iter().map(|value| format!("`{value}`")).collect::<Vec<_>>().join(", ")
    };
    format!("| `{}` | {on} | {values} |\n", label.name)
}

fn bucket_line(bounds: &'static [f64]) -> String {
    let of = ALL.iter().filter(|metric| metric.kind == Histogram(bounds)).map(|metric| format!("`{}`", metric.name));
    let (of, said): (Vec<_>, Vec<_>) = (of.collect(), bounds.iter().map(ToString::to_string).collect());
    format!("| {} | {} |\n", of.join(", "), said.join(" "))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_as_prometheus_wants_them() {
        let mut names = HashSet::new();
        for metric in ALL {
            let Metric { name, kind, labels, help, .. } = metric;
            assert!(names.insert(name), "{name} is there twice");
            assert!(name.starts_with("promptq_") || name.starts_with("process_"), "{name}");
            assert_eq!(name.ends_with("_total"), matches!(kind, Counter | Sum), "{name}");
            assert!(help.ends_with('.') && !help.contains('\n') && !help.contains('|'), "{name}: {help}");
            let distinct: HashSet<_> = labels.iter().map(|label| label.name).collect();
            assert_eq!(distinct.len(), labels.len(), "{name}");
            if let Histogram(bounds) = kind {
                assert!(bounds.windows(2).all(|pair| pair[0] < pair[1]), "{name}");
            }
        }
    }
}
