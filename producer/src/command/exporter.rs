//! `promptq exporter`: looks at the queues now and then and shows what it saw to Prometheus. What there is to see of a
//! queue is `stats/mod.rs`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use promptq_common::config::Flag;
use promptq_common::job::Queue;
use promptq_common::telemetry::admin::Admin;
use promptq_common::telemetry::exposition::Page;
use promptq_common::telemetry::health::Health;
use promptq_common::telemetry::label::{BLOCKED, DEPTH};
use promptq_common::telemetry::metric as m;
use promptq_common::telemetry::recorder::{self, Piece};
use promptq_common::time::{Timestamp, parse_duration};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::context::Context;
use crate::problem::{Exit, Problem, Result};
use crate::scale::whole_f64;
use crate::stats::{Look, QueueStats, look};

/// What to look at, how often, and where to show it.
#[derive(Debug, clap::Args)]
#[command(
    before_help = "Examples:\n  promptq exporter\n  promptq exporter --queues reviews,other --interval 30s --admin 0.0.0.0:9091"
)]
pub struct Args {
    /// Only these queues [default: those of the settings, then others by name, 200 in all]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub queues: Vec<Queue>,
    /// How often to look
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = parse_duration)]
    pub interval: Duration,
    /// Where metrics and probes are served (`PROMPTQ_ADMIN`) [default: 127.0.0.1:9091]
    #[arg(long, value_name = "ADDR")]
    admin: Option<String>,
}

impl Args {
    /// The settings among its flags.
    pub fn flags(&self) -> Vec<Flag> {
        admin_flag(self.admin.as_ref()).into_iter().collect()
    }
}

/// `--admin`.
pub(super) fn admin_flag(address: Option<&String>) -> Option<Flag> {
    Some(Flag { setting: "telemetry.admin", name: "--admin", value: address?.clone() })
}

/// The shortest time between two looks.
const SHORTEST: Duration = Duration::from_secs(1);
/// A look that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often the loop says that it comes round.
const TICK: Duration = Duration::from_secs(1);

/// Looks until it is told to leave.
pub async fn run(cx: &Context, args: &Args) -> Result<Exit> {
    if args.interval < SHORTEST {
        return Err(Problem::usage("--interval is at least 1s"));
    }
    let health = Health::default();
    health.report("scraping", Err("nothing was looked at yet"));
    let Some(_admin) = Admin::open(cx.config.telemetry.admin, "exporter", &health)? else {
        let what = "the exporter has nowhere to show what it sees";
        return Err(Problem::usage(what).hint("name an address that is free: --admin 127.0.0.1:9092"));
    };
    let seen = Seen::default();
    if let Some(recorder) = recorder::installed() {
        recorder.add(Arc::new(seen.clone()));
    }
    let deaf = |error: std::io::Error| Problem::new(Exit::Failed, "failed", format!("cannot hear signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(deaf)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(deaf)?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        wrong = watch(cx, args, &seen, &health) => return Err(wrong),
    }
    health.draining();
    Ok(Exit::Done)
}

/// Looks again and again; ends with what a person has to mend.
async fn watch(cx: &Context, args: &Args, seen: &Seen, health: &Health) -> Problem {
    let (mut looks, mut ticks) = (interval(args.interval), interval(TICK));
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let mut looking = std::pin::pin!(async {
            looks.tick().await;
            once(cx, args, seen).await
        });
        let looked = loop {
            tokio::select! {
                looked = &mut looking => break looked,
                _ = ticks.tick() => health.tick(),
            }
        };
        health.started();
        match looked {
            Ok(()) => health.report("scraping", Ok(())),
            Err(problem) if problem.exit == Exit::Usage => return problem,
            Err(problem) => {
                tracing::warn!(problem = %problem.what, "the broker could not be looked at; its queues are not shown");
                health.report("scraping", Err(&problem.what));
            }
        }
    }
}

async fn once(cx: &Context, args: &Args, seen: &Seen) -> Result<()> {
    let begun = Instant::now();
    let looked = timeout(PATIENCE, async {
        let broker = cx.existing().await?;
        let config = &cx.config;
        let look = look(broker, &args.queues, &config.named_queues(), config.worker.concurrency).await?;
        Ok::<_, Problem>((look, broker.backend_name()))
    });
    let looked = looked.await.unwrap_or_else(|_| {
        Err(Problem::new(Exit::Unreachable, "unreachable", "the broker did not answer within 30 s"))
    });
    let mut now = seen.lock();
    now.took = begun.elapsed();
    match looked {
        Ok((look, backend)) => {
            if look.left_out > 0 && !std::mem::replace(&mut now.is_told, true) {
                let (shown, left_out) = (look.queues.len(), look.left_out);
                tracing::warn!(
                    shown,
                    left_out,
                    "queues are left out, the last ones by name of those that no setting names; --queues names those to show"
                );
            }
            (now.backend, now.seen_at, now.look) = (backend, Some(Timestamp::now()), Some(look));
            Ok(())
        }
        Err(problem) => {
            // What was so is no longer known: no series is better than one that stands still.
            now.look = None;
            now.backend = named(cx.config.broker.url.scheme());
            Err(problem)
        }
    }
}

/// The kind of broker that an address names.
pub(crate) fn named(scheme: &str) -> &'static str {
    match scheme {
        "sqlite" => "sqlite",
        "redis" | "rediss" => "redis",
        "amqp" | "amqps" => "rabbitmq",
        _ => "memory",
    }
}

/// What was seen last.
#[derive(Clone, Debug, Default)]
struct Seen(Arc<Mutex<Last>>);

#[derive(Debug, Default)]
struct Last {
    backend: &'static str,
    took: Duration,
    seen_at: Option<Timestamp>,
    look: Option<Look>,
    /// Whether it was said that queues are left out.
    is_told: bool,
}

impl Seen {
    fn lock(&self) -> MutexGuard<'_, Last> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Piece for Seen {
    fn write(&self, page: &mut Page) {
        let last = self.lock();
        if last.backend.is_empty() {
            return;
        }
        let backend = [last.backend];
        let works = if last.look.is_some() { 1.0 } else { 0.0 };
        page.family(&m::CONNECTED, [(backend, works)]);
        page.family(&m::SCRAPE_SUCCESS, [(backend, works)]);
        page.family(&m::SCRAPE_DURATION, [(backend, last.took.as_secs_f64())]);
        #[expect(clippy::cast_precision_loss, reason = "the format knows no other numbers")]
        page.family(&m::SCRAPE_AT, last.seen_at.map(|at| (backend, at.as_millis() as f64 / 1_000.0)));
        if let Some(look) = &last.look {
            write(page, look);
        }
    }
}

fn write(page: &mut Page, look: &Look) {
    let queues = || look.queues.iter();
    page.family(&m::MESSAGES, queues().flat_map(messages));
    page.family(
        &m::OLDEST,
        queues().filter_map(|stats| {
            Some(([stats.queue.as_str(), DEPTH.values[0], stats.age_source.as_str()], stats.oldest_ready_age_seconds?))
        }),
    );
    page.family(&m::DRAIN, queues().filter_map(|stats| Some(([stats.queue.as_str()], stats.drain_seconds?))));
    page.family(&m::CONSUMERS, queues().map(|stats| ([stats.queue.as_str()], f64::from(stats.consumers))));
    page.family(&m::PAUSED, queues().map(|stats| ([stats.queue.as_str()], f64::from(u8::from(stats.paused)))));
    page.family(&m::BLOCKED, queues().flat_map(blocked));
    let useful = |stats: &QueueStats| stats.useful_workers.map(whole_f64);
    page.family(&m::USEFUL, queues().filter_map(|stats| Some(([stats.queue.as_str()], useful(stats)?))));
    page.family(&m::DESIRED, queues().map(|stats| ([stats.queue.as_str()], whole_f64(stats.desired_workers))));
    let left = look
        .limits
        .iter()
        .flat_map(|room| room.left.iter().map(|(measure, left)| ([room.key.as_str(), *measure], *left)));
    page.family(&m::AVAILABLE, left);
}

fn messages(stats: &QueueStats) -> impl Iterator<Item = ([&str; 3], f64)> {
    let counts = [Some(stats.ready), Some(stats.running), stats.delayed, Some(stats.dead)];
    let named = DEPTH.values.iter().zip(counts);
    named.filter_map(move |(state, count)| Some(([stats.queue.as_str(), stats.backend, *state], whole_f64(count?))))
}

/// Each reason that there may be, so that none has to be missed.
fn blocked(stats: &QueueStats) -> impl Iterator<Item = ([&str; 2], f64)> {
    BLOCKED.values.iter().map(move |reason| {
        let jobs = stats.blocked.iter().filter(|blocked| blocked.reason == *reason).map(|blocked| blocked.jobs).sum();
        ([stats.queue.as_str(), *reason], whole_f64(jobs))
    })
}
