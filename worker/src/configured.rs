//! From the configuration to what a worker is made of: settings, runners, connections.

use std::path::PathBuf;

use promptq_common::broker::{Broker, WorkerId};
use promptq_common::config::{Address, Config, Ledger};
use promptq_common::error::Result;
use promptq_common::store::Store;
use promptq_common::time::format_duration;
use url::Url;

use crate::runner::{ExecSettings, MockSettings, ProviderSettings, RunnerSettings};
use crate::settings::Settings;

/// A worker's settings, under a new identity.
pub fn settings(config: &Config) -> Settings {
    let worker = &config.worker;
    let identity = WorkerId::random(&worker.name);
    let ledger = match &config.ledger {
        Some(Ledger::Elsewhere { url, .. }) => Some(url),
        Some(Ledger::Store) | None => None,
    };
    let disks = [Some(&config.broker.url), ledger, config.store.url.as_ref()].into_iter().flatten().filter_map(folder);
    Settings {
        concurrency: worker.concurrency,
        lease: worker.lease,
        heartbeat: worker.heartbeat,
        drain_timeout: worker.drain_timeout,
        max_deaths: worker.max_deaths,
        give_up: worker.give_up,
        inline_limit: config.store.inline_up_to,
        retention: config.retention,
        reuse_kept: config.reuse_kept,
        limits: config.limits.clone(),
        budgets: config.queues.iter().filter_map(|(name, queue)| Some((name.clone(), queue.budget?))).collect(),
        limit_share: worker.limit_share,
        prices: config.prices.clone(),
        disks: disks.collect(),
        ..Settings::standard(identity, worker.queues.clone())
    }
}

/// Tells the log which platform the drain time is from, and what told that, unless somebody said it.
pub fn tell_preset(config: &Config) {
    if let Some((platform, variable)) = config.worker.drain_preset.filter(|(_, variable)| !variable.is_empty()) {
        let drain_timeout = format_duration(config.worker.drain_timeout);
        tracing::info!(%platform, variable, drain_timeout, "running jobs may go on for so long after SIGTERM");
    }
}

/// What a worker may run.
pub fn runners(config: &Config) -> RunnerSettings {
    let provider = |(name, provider): (&String, &promptq_common::config::Provider)| {
        let settings = ProviderSettings {
            api: provider.api,
            stream_above: provider.stream_above,
            base_url: provider.base_url.clone(),
            api_key: provider.api_key.clone(),
            default_model: provider.default_model.clone(),
            traceparent: provider.traceparent,
        };
        (name.clone(), settings)
    };
    RunnerSettings {
        providers: config.providers.iter().map(provider).collect(),
        models: config.models.clone(),
        exec: ExecSettings {
            named: config.runners.clone(),
            allow_inline: config.worker.allow_exec,
            environment: config.exec.environment.clone(),
            max_output: usize::try_from(config.exec.max_output).unwrap_or(usize::MAX),
        },
        mock: MockSettings {
            seed: config.mock.seed,
            latency: config.mock.latency,
            errors: config.mock.errors,
            throttled: config.mock.throttled,
            ..MockSettings::standard()
        },
    }
}

/// Opens the store when one is configured, and connects to the broker and its ledger. What that ledger cannot promise
/// is logged, and where large answers go if nobody has said so.
///
/// # Errors
/// `Config` for what a person has to mend; `Unavailable` when it may work later.
pub async fn connect(config: &Config) -> Result<(Broker, Option<Store>)> {
    let store = match &config.store.url {
        Some(url) => Some(Store::open(url.expose()).await?),
        None => None,
    };
    let access = config.access(store.as_ref());
    let broker = Broker::connect(&access).await?;
    if let Some(caveat) = access.caveat() {
        tracing::warn!("{caveat}");
    }
    if let Some(place) = unnamed_store(config) {
        tracing::info!("{place}");
    }
    Ok((broker, store))
}

/// Where large answers go that nobody named a place for, where others may look for them.
fn unnamed_store(config: &Config) -> Option<String> {
    if config.store.named || !matches!(config.broker.url.scheme(), "redis" | "rediss" | "amqp" | "amqps") {
        return None;
    }
    Some(match &config.store.url {
        None => {
            "no store is named: answers stay in their records up to 8 MiB, and a larger one makes its job dead".into()
        }
        Some(url) => {
            let most = config.store.inline_up_to >> 10;
            format!("no store is named: answers above {most} KiB go to {url}, which other hosts do not see")
        }
    })
}

/// The folder of this machine that an address writes into, if it does.
fn folder(address: &Address) -> Option<PathBuf> {
    let as_file = match address.scheme() {
        "sqlite" => address.expose().replacen("sqlite:", "file:", 1),
        "file" => address.expose().to_owned(),
        _ => return None,
    };
    // An address relative to the current folder has no path that a URL knows.
    Some(Url::parse(&as_file).ok()?.to_file_path().unwrap_or_else(|()| PathBuf::from(".")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_databases_have_a_folder() {
        let folder = |url: &str| folder(&Address::new(url).unwrap());
        assert_eq!(folder("sqlite:///var/lib/q%20x.db"), Some("/var/lib/q x.db".into()));
        assert_eq!(folder("file:///data/store"), Some("/data/store".into()));
        assert_eq!(folder("sqlite://q.db"), Some(".".into()));
        assert_eq!(folder("s3://bucket/prefix"), None);
    }
}
