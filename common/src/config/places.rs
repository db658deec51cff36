//! The sections that name a place to connect to: `broker`, `ledger` and `store`, with their logins and defaults.
//! Whether they fit together is `check.rs`.

use std::path::{Path, PathBuf, absolute};
use std::time::Duration;

use percent_encoding::percent_decode_str;
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::address::{Address, redact_url};
use super::layer::Sources;
use super::reader::Reader;
use super::resolve::LONGEST;
use super::{Broker, Ledger, Store};
use crate::broker::{Durability, QueueType, Settings, default_path, is_local, sqlite_path};
use crate::store::key_part;
use crate::time::{format_duration, parse_duration};

/// The most delay levels: each is a queue that every node of the server keeps a copy of.
const MOST_LEVELS: usize = 16;
/// The shortest delay that a server can measure.
const SHORTEST_LEVEL: Duration = Duration::from_millis(1);
/// The longest delay level: a job due later goes round again, four times a day, and a level that is taken out of the
/// settings is empty so soon.
const LONGEST_LEVEL: Duration = Duration::from_secs(6 * 3_600);
/// What the longest level must be at least: a job due in a week would go round all the time otherwise.
const ROUND: Duration = Duration::from_secs(1);

/// Where jobs wait, where records are kept if that is elsewhere, and where large answers go.
pub(super) fn places(r: &mut Reader<'_>, sources: &Sources<'_>) -> (Broker, Option<Ledger>, Store) {
    let broker = broker(r, sources);
    let ledger = ledger(r);
    let store_said = address(r, &["store", "url"]);
    // Only a store that somebody named may become the ledger.
    let ledger = match (ledger, &store_said) {
        (None, Some(_)) if is_rabbitmq(&broker.url) => {
            r.stands_for(&["ledger", "url"], STORE);
            Some(Ledger::Store)
        }
        (ledger, _) => ledger,
    };
    let store = store(r, sources, (&broker, ledger.as_ref()), store_said);
    (broker, ledger, store)
}

/// Whether it only carries jobs, and needs a ledger beside it.
pub(super) fn is_rabbitmq(url: &Address) -> bool {
    matches!(url.scheme(), "amqp" | "amqps")
}

/// What `ledger` says for "the store".
const STORE: &str = "store";

fn address(r: &mut Reader<'_>, path: &[&str]) -> Option<Address> {
    let text = r.masked(path, redact_url)?;
    match Address::new(&text) {
        Ok(address) => Some(address),
        Err(why) => {
            r.wrong(path, &why);
            None
        }
    }
}

fn broker(r: &mut Reader<'_>, sources: &Sources<'_>) -> Broker {
    let said = address(r, &["broker", "url"]);
    let url = said.unwrap_or_else(|| default_broker(sources));
    r.stands_for(&["broker", "url"], url.to_string());
    let (url, tls_ca) = access(r, "broker", url);
    Broker { local: is_local(url.expose()), url, tls_ca, durability: durability(r), amqp: amqp(r) }
}

fn ledger(r: &mut Reader<'_>) -> Option<Ledger> {
    let path = ["ledger", "url"];
    // A word, not a secret: an address that is none stays masked.
    let show = |text: &str| if text == STORE { STORE.to_owned() } else { redact_url(text) };
    let said = r.masked(&path, show);
    let url = said.as_deref().filter(|text| *text != STORE).and_then(|text| match Address::new(text) {
        Ok(url) => Some(url),
        Err(why) => {
            r.wrong(&path, &format!("{why}, nor \"store\""));
            None
        }
    });
    let Some(url) = url else {
        let (user, password) = login(r, "ledger");
        let tls_ca = r.path(&["ledger", "tls_ca"]);
        let lonely = [("user", user.is_some()), ("password", password.is_some()), ("tls_ca", tls_ca.is_some())];
        for (option, _) in lonely.iter().filter(|(_, is_said)| *is_said) {
            r.wrong(&["ledger", *option], "is of no use: ledger.url names no server");
        }
        return said.filter(|text| text == STORE).map(|_| Ledger::Store);
    };
    let (url, tls_ca) = access(r, "ledger", url);
    Some(Ledger::Elsewhere { url, tls_ca })
}

/// The address with the login that was given apart, and whose certificates are trusted.
fn access(r: &mut Reader<'_>, section: &'static str, url: Address) -> (Address, Option<PathBuf>) {
    let (user, password) = login(r, section);
    let secret = password.as_ref().map(SecretString::expose_secret);
    let url = match url.clone().with_login(user.as_deref(), secret) {
        Ok(url) => url,
        Err(why) => {
            let setting = if user.is_some() { "user" } else { "password" };
            r.wrong(&[section, setting], &format!("is of no use: {why}"));
            url
        }
    };
    let tls_ca = r.path(&[section, "tls_ca"]);
    if tls_ca.is_some() && !matches!(url.scheme(), "rediss" | "amqps") {
        r.wrong(&[section, "tls_ca"], &format!("is of no use: the {section}'s URL names no TLS, as rediss:// does"));
    }
    (url, tls_ca)
}

fn login(r: &mut Reader<'_>, section: &'static str) -> (Option<String>, Option<SecretString>) {
    (r.text(&[section, "user"]), r.secret(&[section, "password"]))
}

fn durability(r: &mut Reader<'_>) -> Option<Durability> {
    r.parsed(&["broker", "durability"], None, |word| {
        let known = [Durability::Relaxed, Durability::Strict];
        let meant = known.into_iter().find(|durability| durability.as_str() == word);
        meant.ok_or_else(|| "must be \"relaxed\" or \"strict\"".to_owned())
    })
}

fn amqp(r: &mut Reader<'_>) -> Settings {
    let standard = Settings::default();
    let queues = r.parsed(&["broker", "queue_type"], Some(standard.queues), |word| {
        let known = [QueueType::Quorum, QueueType::Classic];
        let meant = known.into_iter().find(|kind| kind.as_str() == word);
        meant.ok_or_else(|| "must be \"quorum\" or \"classic\"".to_owned())
    });
    Settings {
        queues: queues.unwrap_or(standard.queues),
        // Long deliveries are changed at half of it: below a second workers would do nothing else.
        consumer_timeout: r.duration(
            &["broker", "consumer_timeout"],
            Duration::from_secs(1)..=LONGEST,
            standard.consumer_timeout,
        ),
        levels: levels(r, standard.levels),
        // `Config::access` takes them from the queues' own sections.
        models: standard.models,
    }
}

fn levels(r: &mut Reader<'_>, standard: Vec<Duration>) -> Vec<Duration> {
    let path = ["broker", "delay_levels"];
    let Some(list) = r.list(&path) else {
        r.stands_for(&path, standard.iter().map(|level| format_duration(*level)).collect::<Vec<_>>());
        return standard;
    };
    let levels = match list.iter().map(|level| parse_duration(level)).collect::<Result<Vec<_>, _>>() {
        Ok(levels) => levels,
        Err(why) => {
            r.wrong(&path, &format!("holds what is none: {why}"));
            return standard;
        }
    };
    let is_counted = (1..=MOST_LEVELS).contains(&levels.len());
    let is_within = levels.iter().all(|level| (SHORTEST_LEVEL..=LONGEST_LEVEL).contains(level));
    if !is_counted || !is_within {
        let (least, most) = (format_duration(SHORTEST_LEVEL), format_duration(LONGEST_LEVEL));
        r.wrong(&path, &format!("must be 1 to {MOST_LEVELS} lengths of time from {least} to {most}"));
    } else if !levels.is_sorted_by(|shorter, longer| shorter < longer) {
        r.wrong(&path, "must rise: each longer than the one before");
    } else if levels.last().is_none_or(|longest| *longest < ROUND) {
        r.wrong(&path, "must end with 1s or more: a job due later than the last goes round until it is");
    }
    levels
}

/// `$XDG_STATE_HOME/promptq/default.db`, as a URL.
fn default_broker(sources: &Sources<'_>) -> Address {
    let url = file_url(&state(sources)).map(|url| url.replacen("file:", "sqlite:", 1));
    url.and_then(|url| Address::new(&url)).unwrap_or_else(|_| memory())
}

/// The embedded file's path when nothing is said.
pub(super) fn state(sources: &Sources<'_>) -> PathBuf {
    let said = |name: &str| sources.environment.get(name).map(String::as_str).filter(|value| !value.is_empty());
    sources.folder.join(default_path(said("XDG_STATE_HOME"), said("HOME")))
}

fn memory() -> Address {
    Address::new("memory:").unwrap_or_else(|why| unreachable!("{why}"))
}

fn file_url(path: &Path) -> Result<String, String> {
    let path = absolute(path).map_err(|error| error.to_string())?;
    Url::from_file_path(&path).map(String::from).map_err(|()| format!("{} has no URL", path.display()))
}

fn store(
    r: &mut Reader<'_>,
    sources: &Sources<'_>,
    (broker, ledger): (&Broker, Option<&Ledger>),
    said: Option<Address>,
) -> Store {
    let mut url = said;
    let named = url.is_some();
    // Whoever reads a ledger that is elsewhere does not see a folder of this machine.
    let elsewhere = |ledger: &Ledger| matches!(ledger, Ledger::Elsewhere { url, .. } if !is_local(url.expose()));
    if !named && broker.local && !ledger.is_some_and(elsewhere) {
        url = beside(&broker.url, sources);
        r.stands_for(&["store", "url"], url.as_ref().map(ToString::to_string));
    }
    Store {
        url,
        named,
        shared: r.boolean(&["store", "shared"], false),
        // Protocol, section 8; above 8 MiB a record would outgrow a broker's message.
        inline_up_to: r.size(&["store", "inline_up_to"], 8 << 20, 64 << 10),
    }
}

/// A folder of this machine: `/x/default.db` keeps its answers in `/x/default.db.store/`, a server on loopback beside
/// the embedded file, wherever its clients were started.
fn beside(broker: &Address, sources: &Sources<'_>) -> Option<Address> {
    let url = Url::parse(broker.expose()).ok()?;
    let mut file = match url.scheme() {
        "memory" => return Some(memory()),
        "sqlite" => sources.folder.join(sqlite_path(&url).ok()?),
        _ => state(sources).with_file_name(server_name(&url)),
    }
    .into_os_string();
    file.push(".store");
    Address::new(&file_url(&PathBuf::from(file)).ok()?).ok()
}

/// One name for each server, by its port, and database or virtual host, however that is written.
fn server_name(url: &Url) -> String {
    let (kind, port) = match url.scheme() {
        "amqps" => ("rabbitmq", 5_671),
        "amqp" => ("rabbitmq", 5_672),
        _ => ("redis", 6_379),
    };
    let port = url.port().unwrap_or(port);
    let said = percent_decode_str(url.path().trim_matches('/')).decode_utf8_lossy();
    let name = match kind {
        "redis" => said.trim_start_matches('0'),
        _ if said == "/" => "",
        _ => &*said,
    };
    if name.is_empty() { format!("{kind}-{port}") } else { format!("{kind}-{port}-{}", key_part(name)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_has_one_name_however_its_address_is_written() {
        let long = "x".repeat(255);
        let name = |url: &str| server_name(&Url::parse(url).unwrap());
        for (urls, expected) in [
            (["amqp://h", "amqp://h/"], "rabbitmq-5672"),
            (["amqp://h/%2f", "amqp://u:p@h:5672/%2F?heartbeat=5s"], "rabbitmq-5672"),
            (["amqp://h/%2Fprod", "amqp://h/%2fpr%6fd"], "rabbitmq-5672-%2Fprod"),
            (["amqp://h/0", "amqp://h/%30"], "rabbitmq-5672-0"),
            (["redis://h", "redis://h/0"], "redis-6379"),
            (["redis://h/3", "rediss://h/03"], "redis-6379-3"),
        ] {
            assert_eq!(urls.map(name), [expected; 2], "{urls:?}");
        }
        assert!(name(&format!("amqp://h/{long}")).len() < 200, "file systems take 255 bytes");
    }
}
