//! The sections, one function each: every setting's name, kind, bounds and default. What names a place to connect to
//! is `places.rs`; providers and models are `provider.rs`, commands `runner.rs`.

use std::collections::BTreeMap;
use std::time::Duration;

use tracing::level_filters::LevelFilter;

use super::environment::host_of;
use super::error::{ConfigErrors, Origin};
use super::gateway::gateway;
use super::layer::{Sources, merge};
use super::limits::{limits, spending};
use super::platform::Platform;
use super::prices::prices;
use super::reader::Reader;
use super::runner::runners;
use super::traces::traces;
use super::{Config, Exec, LogFormat, Mock, QueuePolicy, Telemetry, Worker, check, places, provider};
use crate::broker::Retention;
use crate::job::{Backoff, ModelName, Queue, Reuse};
use crate::line::MAX_REPAIRS;
use crate::telemetry::admin::Listen;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);
/// The longest time `parse_duration` takes.
pub(super) const LONGEST: Duration = Duration::from_secs(10 * 365 * 86_400);

/// Everything that was said as one [`Config`], or everything that is wrong with it; keys of providers that cannot be had are
/// that for [`Config::callable`] alone. Reads nothing but `sources`.
pub fn resolve(sources: &Sources<'_>) -> Result<Config, ConfigErrors> {
    let mut errors = Vec::new();
    let layers = merge(sources, &mut errors);
    let mut r = Reader::new(sources, layers, errors);
    let r = &mut r;
    let (broker, ledger, store) = places::places(r, sources);
    let models = provider::models(r);
    let providers = provider::providers(r, &models);
    let retention = retention(r);
    let config = Config {
        worker: worker(r, sources),
        retention,
        // By then the job that an answer came from is forgotten.
        reuse_kept: r.duration(&["retention", "reuse"], SECOND..=LONGEST, retention.succeeded),
        queues: queues(r),
        prices: prices(r, &providers),
        providers,
        models,
        limits: limits(r),
        runners: runners(r),
        exec: Exec {
            environment: r.list(&["exec", "environment"]).unwrap_or_default(),
            // As much as one record may hold without object storage.
            max_output: r.size(&["exec", "max_output"], 1 << 30, 8 << 20),
        },
        mock: mock(r),
        gateway: gateway(r, sources),
        telemetry: telemetry(r),
        broker,
        ledger,
        store,
        settings: Vec::new(),
        keyless: Vec::new(),
        files: sources.files.iter().map(|(path, _)| path.clone()).collect(),
    };
    r.unknown();
    check::check(&config, r);
    if r.errors.iter().all(|error| error.key_of.is_some()) {
        r.settings.sort_by(|a, b| a.name.cmp(&b.name));
        let (settings, keyless) = (std::mem::take(&mut r.settings), std::mem::take(&mut r.errors));
        return Ok(Config { settings, keyless, ..config });
    }
    Err(ConfigErrors(std::mem::take(&mut r.errors)))
}

fn worker(r: &mut Reader<'_>, sources: &Sources<'_>) -> Worker {
    let at = |name: &'static str| ["worker", name];
    let name = r.text(&at("name")).unwrap_or_else(|| host_of(&sources.environment));
    r.stands_for(&at("name"), name.clone());
    let platform = Platform::of(&sources.environment);
    let is_preset = matches!(r.origin(&at("drain_timeout")), Origin::Default);
    Worker {
        queues: served(r),
        // Mostly waiting for others: more than the cores, few enough for a small provider account.
        concurrency: r.integer(&at("concurrency"), 1..=20_000, 16),
        lease: r.duration(&at("lease"), SECOND..=HOUR, 45 * SECOND),
        heartbeat: r.duration(&at("heartbeat"), Duration::from_millis(100)..=HOUR, 10 * SECOND),
        drain_timeout: r.duration(&at("drain_timeout"), Duration::ZERO..=DAY, platform.0.drain()),
        drain_preset: is_preset.then_some(platform),
        max_deaths: r.integer(&at("max_deaths"), 1..=1_000, 3),
        // A broker's upgrade takes a minute or two; an orchestrator should see a worker that is cut off for longer.
        give_up: r.duration(&at("give_up"), SECOND..=DAY, 300 * SECOND),
        // A fleet of eight stays within what all of it may use.
        limit_share: r.float(&at("limit_share"), 0.001..=1.0, 0.125),
        allow_exec: r.boolean(&at("allow_exec"), false),
        name,
    }
}

/// `["default:5", "vision"]`: queues with their share, 1 unless said.
fn served(r: &mut Reader<'_>) -> Vec<(Queue, u32)> {
    let path = ["worker", "queues"];
    let Some(list) = r.list(&path) else {
        r.stands_for(&path, vec![Queue::standard().to_string()]);
        return vec![(Queue::standard(), 1)];
    };
    let mut queues = Vec::with_capacity(list.len());
    for item in &list {
        let (name, weight) = item.split_once(':').unwrap_or((item, "1"));
        match (Queue::new(name), weight.parse::<u32>()) {
            (Ok(queue), Ok(weight @ 1..=1_000)) if queues.iter().all(|(other, _)| *other != queue) => {
                queues.push((queue, weight));
            }
            (Ok(_), Ok(1..=1_000)) => r.wrong(&path, &format!("names {name} twice")),
            (Ok(_), _) => r.wrong(&path, &format!("gives {name} the share {weight:?}; shares are 1 to 1000")),
            (Err(bad), _) => r.wrong(&path, &format!("cannot be used: {bad}")),
        }
    }
    if list.is_empty() {
        r.wrong(&path, "names no queue");
    }
    queues
}

fn retention(r: &mut Reader<'_>) -> Retention {
    let standard = Retention::standard();
    let at = |name: &'static str| ["retention", name];
    Retention {
        succeeded: r.duration(&at("succeeded"), SECOND..=LONGEST, standard.succeeded),
        dead: r.duration(&at("dead"), SECOND..=LONGEST, standard.dead),
        bytes: r.size(&at("bytes"), i64::MAX.unsigned_abs(), standard.bytes),
        tombstones: r.duration(&at("tombstones"), SECOND..=LONGEST, standard.tombstones),
    }
}

fn queues(r: &mut Reader<'_>) -> BTreeMap<Queue, QueuePolicy> {
    let mut queues = BTreeMap::new();
    for name in r.names("queues") {
        let standard = QueuePolicy::standard();
        let at = |setting: &'static str| ["queues", name.as_str(), setting];
        let in_backoff = |setting: &'static str| ["queues", name.as_str(), "backoff", setting];
        let policy = QueuePolicy {
            attempts: r.integer(&at("attempts"), 1..=1_000, standard.attempts),
            repair_attempts: r.integer(&at("repair_attempts"), 0..=MAX_REPAIRS.into(), standard.repair_attempts),
            backoff: Backoff {
                first: r.duration(&in_backoff("first"), Duration::ZERO..=DAY, standard.backoff.first),
                max: r.duration(&in_backoff("max"), Duration::ZERO..=DAY, standard.backoff.max),
                factor: r.float(&in_backoff("factor"), 1.0..=100.0, standard.backoff.factor),
            },
            timeout: r.duration(&at("timeout"), SECOND..=DAY, standard.timeout),
            deadline: r.duration(&at("deadline"), SECOND..=LONGEST, standard.deadline),
            protected: r.boolean(&at("protected"), standard.protected),
            models: models(r, &at("models")),
            budget: r.amount(&at("budget"), spending),
            reuse: r.parsed(&at("reuse"), None, str::parse::<Reuse>).and_then(Reuse::age),
        };
        match Queue::new(&name) {
            Ok(queue) => drop(queues.insert(queue, policy)),
            Err(bad) => r.wrong(&["queues", &name, "attempts"], &format!("cannot be used: {bad}")),
        }
    }
    queues
}

/// Models that get lanes of their own.
fn models(r: &mut Reader<'_>, path: &[&str]) -> Vec<ModelName> {
    /// Every model costs a RabbitMQ cluster three replicated queues, of which it is to have less than 5,000.
    const MOST: usize = 256;
    let names = r.list(path).unwrap_or_default();
    if names.len() > MOST {
        r.wrong(path, &format!("names more than {MOST} models; the others can share the lane of all models"));
    }
    if let Some(twice) =
        names.iter().enumerate().find_map(|(place, name)| names[..place].contains(name).then_some(name))
    {
        r.wrong(path, &format!("names {twice} twice"));
    }
    names.iter().map(|name| ModelName::new(name)).collect()
}

fn mock(r: &mut Reader<'_>) -> Mock {
    let path = ["mock", "latency"];
    let standard = (Duration::from_millis(5), Duration::from_millis(50));
    let latency = match r.list(&path) {
        None => {
            r.stands_for(&path, vec!["5ms", "50ms"]);
            Some(standard)
        }
        Some(ends) => match ends.iter().map(|end| crate::time::parse_duration(end)).collect::<Result<Vec<_>, _>>() {
            Ok(ends) if ends.len() == 2 && ends[0] <= ends[1] => Some((ends[0], ends[1])),
            Ok(_) | Err(_) => None,
        },
    };
    if latency.is_none() {
        r.wrong(&path, "must be the least and the most time, such as [\"5ms\", \"50ms\"]");
    }
    Mock {
        seed: r.integer(&["mock", "seed"], 0..=i64::MAX, 0),
        latency: latency.unwrap_or(standard),
        errors: r.float(&["mock", "errors"], 0.0..=1.0, 0.0),
        throttled: r.float(&["mock", "throttled"], 0.0..=1.0, 0.0),
    }
}

fn telemetry(r: &mut Reader<'_>) -> Telemetry {
    let log = r.parsed(&["telemetry", "log"], None, |word| {
        let level = matches!(word, "off" | "error" | "warn" | "info" | "debug" | "trace");
        level
            .then(|| word.parse::<LevelFilter>().ok())
            .flatten()
            .ok_or_else(|| "must be off, error, warn, info, debug or trace".to_owned())
    });
    let format = r.parsed(&["telemetry", "log_format"], Some("auto".to_owned()), |word| match word {
        "auto" | "text" | "json" => Ok(word.to_owned()),
        _ => Err("must be auto, text or json".to_owned()),
    });
    let log_format = match format.as_deref() {
        Some("text") => LogFormat::Text,
        Some("json") => LogFormat::Json,
        Some(_) | None => LogFormat::Auto,
    };
    Telemetry { log, log_format, admin: admin(r), traces: traces(r) }
}

/// Served at the standard address unless said: where that is another's, not at all.
fn admin(r: &mut Reader<'_>) -> Listen {
    let path = ["telemetry", "admin"];
    let said = r.parsed(&path, None, str::parse::<Listen>);
    if said.is_none() {
        r.stands_for(&path, Listen::Standard.to_string());
    }
    said.unwrap_or(Listen::Standard)
}
