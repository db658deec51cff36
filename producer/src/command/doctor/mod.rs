//! `promptq doctor`: tries everything the settings name, at no cost, and leaves nothing behind: broker, store, providers,
//! workers, clock, disk. RabbitMQ and its ledger are `rabbitmq`'s, what is not there yet is `place`'s, providers are
//! `provider`'s, rules of limits `limits`'s, what models cost `price`'s.

mod limits;
mod place;
mod price;
mod provider;
mod rabbitmq;

use std::future::Future;
use std::path::Path;
use std::time::{Duration, Instant};

use promptq_common::broker::{self, Access, Beside, Durability, Fsync, Survey};
use promptq_common::config;
use promptq_common::time::Timestamp;
use serde::Serialize;
use serde_json::json;

use crate::cli::Output;
use crate::context::Context;
use crate::problem::{Exit, Problem, Result};

/// How to show what was found.
#[derive(Debug, clap::Args)]
#[command(
    before_help = "Examples:\n  promptq doctor\n  promptq doctor --broker sqlite:///var/lib/promptq.db --json",
    after_help = "Ends with 0 when all is well, 7 when broker, store or a provider cannot be reached, 1 when anything else is wrong."
)]
pub struct Args {
    /// The shape.
    #[command(flatten)]
    pub output: Output,
}

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Health {
    Ok,
    Warning,
    Failed,
}

/// One check.
#[derive(Clone, Debug, Serialize)]
struct Finding {
    check: &'static str,
    health: Health,
    what: String,
    hint: Option<String>,
    /// Whether what was tried cannot be reached, which another try may mend.
    unreachable: bool,
}

/// The longest any one check may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Below this, workers stop leasing; see the protocol's admission rule.
const DISK_LOW: u64 = 512 << 20;
/// Two clocks further apart than this make times hard to read, and short leases end early.
const CLOCK_APART: Duration = Duration::from_secs(2);

/// Checks everything; code 7 when something cannot be reached, 1 when something else failed.
pub async fn run(cx: &Context, _args: &Args) -> Result<Exit> {
    let store = store(cx).await;
    let mut findings = vec![settings(cx)];
    let is_there = if rabbitmq::is_meant(cx) {
        let (found, is_there) = rabbitmq::checks(cx, &store).await;
        findings.extend(found);
        is_there
    } else {
        let (found, is_there) = broker(cx).await;
        findings.push(found);
        is_there
    };
    let is_well = is_there && findings.iter().all(|finding| finding.health != Health::Failed);
    if is_well {
        findings.push(workers(cx).await);
    }
    findings.extend(limits::checks(cx, is_well).await);
    findings.extend(server(cx).await);
    findings.extend(disk(cx));
    findings.push(store.0);
    findings.extend(cx.config.keyless.iter().map(provider::keyless));
    let is_keyless = |name: &String| cx.config.keyless.iter().any(|error| error.key_of.as_ref() == Some(name));
    for (name, provider) in cx.config.providers.iter().filter(|(name, _)| !is_keyless(name)) {
        findings.push(provider::reach(name, provider).await);
    }
    findings.extend(price::checks(&cx.config));
    let healthy = findings.iter().all(|finding| finding.health != Health::Failed);
    if cx.printer.is_json() {
        cx.printer.json(&json!({ "healthy": healthy, "checks": findings }))?;
    } else {
        for finding in &findings {
            let sign = match finding.health {
                Health::Ok => "ok    ",
                Health::Warning => "warn  ",
                Health::Failed => "FAILED",
            };
            cx.printer.line(&format!("{sign}  {}: {}", finding.check, finding.what))?;
            finding.hint.iter().try_for_each(|hint| cx.printer.line(&format!("        hint: {hint}")))?;
        }
    }
    Ok(if healthy {
        Exit::Done
    } else if findings.iter().any(|finding| finding.unreachable) {
        Exit::Unreachable
    } else {
        Exit::Failed
    })
}

impl Finding {
    fn new(check: &'static str, health: Health, what: impl Into<String>) -> Self {
        Self { check, health, what: what.into(), hint: None, unreachable: false }
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    fn unreachable(check: &'static str, what: impl Into<String>) -> Self {
        Self { unreachable: true, ..Self::new(check, Health::Failed, what) }
    }

    fn failed(check: &'static str, problem: &Problem) -> Self {
        let what = std::iter::once(&problem.what).chain(&problem.details).cloned().collect::<Vec<_>>().join("; ");
        let hint = problem.hints.first().filter(|hint| !hint.contains("doctor")).cloned();
        Self { check, health: Health::Failed, what, hint, unreachable: problem.exit == Exit::Unreachable }
    }
}

fn settings(cx: &Context) -> Finding {
    let files: Vec<_> = cx.config.files.iter().map(|path| path.display().to_string()).collect();
    let files = if files.is_empty() { "no file, defaults".to_owned() } else { files.join(", ") };
    let from_file = |setting: &&config::Setting| matches!(setting.origin, config::Origin::File { .. });
    let plain = cx.config.settings.iter().filter(from_file).find(|setting| setting.value == "***");
    match plain.filter(|_| cx.config.files.iter().any(|path| others_read(path))) {
        Some(setting) => Finding::new(
            "settings",
            Health::Warning,
            format!("{files}; {} is set in a file others can read", setting.name),
        )
        .hint("chmod 600, or name it by { env = \"NAME\" } or { file = \"path\" }"),
        None => Finding::new("settings", Health::Ok, files),
    }
}

fn others_read(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).is_ok_and(|found| found.permissions().mode() & 0o077 != 0)
}

/// Connects and asks for rights; what has not been made yet stays so. Whether there is a broker to ask more.
async fn broker(cx: &Context) -> (Finding, bool) {
    const CHECK: &str = "broker";
    let access = cx.config.access(None);
    match place::of_server(CHECK, &access).await {
        Some(found) => (found, false),
        None => (tried(CHECK, &access, Box::pin(async { cx.broker().await.map(drop) })).await, true),
    }
}

/// What `connecting` comes to, and which rights are missing then.
async fn tried(check: &'static str, access: &Access, connecting: impl Future<Output = Result<()>>) -> Finding {
    let (url, begun) = (&access.url, Instant::now());
    let probe = async {
        connecting.await?;
        Ok::<_, Problem>(Box::pin(broker::lacking(access)).await?)
    };
    match tokio::time::timeout(PATIENCE, probe).await {
        Ok(Ok(lacking)) if lacking.is_empty() => {
            let took = begun.elapsed().as_millis();
            Finding::new(check, Health::Ok, format!("{url}: connected, and may be used, in {took} ms"))
        }
        Ok(Ok(lacking)) => {
            let what = format!("{url}: the user has too few rights: {}", lacking.join(", "));
            Finding::new(check, Health::Failed, what).hint("give it those of deploy/redis/users.acl")
        }
        Ok(Err(problem)) => Finding::failed(check, &problem),
        Err(_) => Finding::unreachable(check, format!("{url}: no answer within 10 s"))
            .hint("is the disk slow, or another process holding the file?"),
    }
}

async fn workers(cx: &Context) -> Finding {
    let seen = match cx.broker().await {
        Ok(broker) => broker.ledger().workers().await.map_err(Problem::from),
        Err(problem) => Err(problem),
    };
    match seen {
        Err(problem) => Finding::failed("workers", &problem),
        Ok(workers) if workers.is_empty() => {
            Finding::new("workers", Health::Warning, "none has reported within the last minute")
                .hint("start promptq-worker; `promptq run` brings its own")
        }
        Ok(workers) => {
            let now = Timestamp::now();
            let ahead = workers.iter().find(|worker| worker.seen_at.since(now) > CLOCK_APART);
            match ahead {
                Some(worker) => {
                    let apart = worker.seen_at.since(now).as_secs();
                    Finding::new("clock", Health::Warning, format!("{} is {apart} s ahead of this host", worker.host))
                        .hint("let NTP set both clocks")
                }
                None => Finding::new("workers", Health::Ok, format!("{} alive", workers.len())),
            }
        }
    }
}

/// What the broker's server says of itself; nothing where there is none, or where it was not reached, which the
/// broker's own check tells.
async fn server(cx: &Context) -> Option<Finding> {
    let access = match cx.config.access(None) {
        Access { beside: Beside::Ledger(ledger), .. } => *ledger,
        access => access,
    };
    let survey = tokio::time::timeout(PATIENCE, broker::survey(&access)).await.ok()?.ok()??;
    let Survey { version, policy, fsync, round_trip, clock_ahead_ms, .. } = &survey;
    let what = format!(
        "Redis {version}, maxmemory-policy {policy}; {}; round trip {:.1} ms, clock {}",
        fsync.meaning(),
        round_trip.as_secs_f64() * 1_000.0,
        clock(*clock_ahead_ms),
    );
    let is_accepted = access.durability == Some(Durability::Relaxed);
    Some(if Duration::from_millis(clock_ahead_ms.unsigned_abs()) > CLOCK_APART {
        Finding::new("server", Health::Warning, what).hint("let NTP set both clocks")
    } else if *fsync != Fsync::Always && !is_accepted {
        Finding::new("server", Health::Warning, what)
            .hint(format!("{}, or broker.durability = \"relaxed\" to accept it", fsync.mend()))
    } else {
        Finding::new("server", Health::Ok, what)
    })
}

fn clock(ahead_ms: i64) -> String {
    match ahead_ms {
        0 => "as ours".to_owned(),
        1.. => format!("{ahead_ms} ms ahead"),
        ..0 => format!("{} ms behind", ahead_ms.unsigned_abs()),
    }
}

/// Free space where the embedded database is.
fn disk(cx: &Context) -> Option<Finding> {
    let ledger = match &cx.config.ledger {
        Some(config::Ledger::Elsewhere { url, .. }) => Some(url),
        Some(config::Ledger::Store) | None => None,
    };
    let urls = [Some(&cx.config.broker.url), ledger].into_iter().flatten();
    let mut urls = urls.filter_map(|url| url::Url::parse(url.expose()).ok());
    let url = urls.find(|url| url.scheme() == "sqlite")?;
    let folder = Path::new(url.path()).parent()?;
    let found = rustix::fs::statvfs(folder).ok()?;
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    let what = format!("{} free at {}", bytesize::ByteSize(free), folder.display());
    Some(if free < DISK_LOW {
        Finding::new("disk", Health::Failed, what).hint("workers lease nothing below 512 MiB: make room")
    } else {
        Finding::new("disk", Health::Ok, what)
    })
}

/// Writes, reads and deletes. And whether there is one.
async fn store(cx: &Context) -> (Finding, bool) {
    const CHECK: &str = "store";
    let Some(url) = &cx.config.store.url else {
        let none = Finding::new(CHECK, Health::Warning, "none: answers above 8 MiB make their jobs dead");
        return (none.hint("--store s3://bucket/prefix"), false);
    };
    if let Some(later) = place::of_store(url) {
        return (of_this_host(cx, later), false);
    }
    let probe = async { cx.store().await?.probe().await.map_err(Problem::from) };
    let found = match tokio::time::timeout(PATIENCE, probe).await {
        Ok(Ok(conditional)) => {
            of_this_host(cx, tried_store(url, conditional, cx.config.ledger == Some(config::Ledger::Store)))
        }
        Ok(Err(problem)) => Finding::failed(CHECK, &problem),
        Err(_) => Finding::unreachable(CHECK, format!("{url}: no answer within 10 s")),
    };
    (found, true)
}

/// Tells where a server's large answers go if nobody named a place that others see too.
fn of_this_host(cx: &Context, finding: Finding) -> Finding {
    let is_server = matches!(cx.config.broker.url.scheme(), "redis" | "rediss" | "amqp" | "amqps");
    if cx.config.store.named || !is_server || finding.health != Health::Ok {
        return finding;
    }
    finding.hint("of this host, as nobody named one: name one by --store if others run workers or read results")
}

/// Of a store that works: what it is worth, above all where records are kept in it.
fn tried_store(url: &config::Address, conditional: bool, is_ledger: bool) -> Finding {
    if conditional {
        return Finding::new("store", Health::Ok, format!("{url}: writes, reads, creates only once"));
    }
    let what = format!("{url}: works, but would replace what is there on a create");
    Finding::new("store", Health::Warning, what).hint(if is_ledger {
        "it is the ledger: two copies of a job that end in the same moment may both be taken for its result, and two \
         workers hold one lock; use a service that honours If-None-Match"
    } else {
        "a second writer is then not noticed; use a service that honours If-None-Match"
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_would_replace_what_is_there_is_told_and_more_so_as_a_ledger() {
        let url = config::Address::new("s3://jobs").unwrap();
        assert_eq!(tried_store(&url, true, true).health, Health::Ok);
        let hint = |is_ledger| {
            let finding = tried_store(&url, false, is_ledger);
            assert_eq!(finding.health, Health::Warning);
            finding.hint.unwrap()
        };
        assert!(hint(true).contains("two copies of a job"), "{}", hint(true));
        assert!(!hint(false).contains("ledger"), "{}", hint(false));
    }
}
