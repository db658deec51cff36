//! Precedence, places and every error, from maps and texts alone.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::ExposeSecret;

use super::*;
use crate::broker::Beside;

const HOME: (&str, &str) = ("HOME", "/home/me");

fn read(path: &Path) -> io::Result<String> {
    match path.to_str() {
        Some("/etc/promptq/key" | "/run/key") => Ok("from-a-file\n".to_owned()),
        _ => Err(io::ErrorKind::NotFound.into()),
    }
}

pub(super) fn given(
    files: &[(&str, &str)],
    env: &[(&str, &str)],
    flags: &[(&'static str, &str)],
) -> Result<Config, String> {
    let own = |(a, b): &(&str, &str)| ((*a).to_owned(), (*b).to_owned());
    let flag = |(setting, value): &(&'static str, &str)| Flag { setting, name: "--flag", value: (*value).to_owned() };
    let environment: BTreeMap<_, _> = env.iter().chain([&HOME]).map(own).collect();
    resolve(&Sources {
        files: files.iter().map(|(path, text)| (PathBuf::from(path), (*text).to_owned())).collect(),
        environment,
        flags: flags.iter().map(flag).collect(),
        folder: PathBuf::from("/run"),
        read: &read,
    })
    .map_err(|errors| errors.to_string())
}

fn file(text: &str) -> Result<Config, String> {
    given(&[("/etc/promptq/config.toml", text)], &[], &[])
}

#[track_caller]
fn refused(result: Result<Config, String>, parts: &[&str]) {
    let errors = result.map(|_| ()).unwrap_err();
    for part in parts {
        assert!(errors.contains(part), "{part:?} is not in:\n{errors}");
    }
}

fn origin(config: &Config, name: &str) -> String {
    config.settings.iter().find(|setting| setting.name == name).map(|setting| setting.origin.to_string()).unwrap()
}

#[test]
fn nothing_said_is_the_embedded_file_and_the_documented_defaults() {
    let config = given(&[], &[], &[]).unwrap();
    assert_eq!(config.broker.url.expose(), "sqlite:///home/me/.local/state/promptq/default.db");
    let store = config.store.url.unwrap();
    assert_eq!(store.expose(), "file:///home/me/.local/state/promptq/default.db.store");
    let worker = config.worker;
    assert_eq!((worker.lease.as_secs(), worker.heartbeat.as_secs(), worker.drain_timeout.as_secs()), (45, 10, 25));
    assert_eq!((worker.max_deaths, worker.queues), (3, vec![(Queue::standard(), 1)]));
    assert!(config.providers.is_empty());
    let elsewhere = given(&[], &[("XDG_STATE_HOME", "/state")], &[]).unwrap();
    assert_eq!(elsewhere.broker.url.expose(), "sqlite:///state/promptq/default.db");
}

#[test]
fn a_flag_beats_a_variable_beats_the_near_file_beats_the_far_one() {
    type Pair = (&'static str, &'static str);
    fn lease(files: &[Pair], env: &[Pair], flags: &[Pair]) -> u64 {
        given(files, env, flags).unwrap().worker.lease.as_secs()
    }
    let far = ("far.toml", "worker.lease = \"51s\"");
    let near = ("promptq.toml", "[worker]\nlease = \"52s\"");
    let env = ("PROMPTQ__WORKER__LEASE", "53s");
    assert_eq!(lease(&[far], &[], &[]), 51);
    assert_eq!(lease(&[near, far], &[], &[]), 52);
    assert_eq!(lease(&[near, far], &[env], &[]), 53);
    assert_eq!(lease(&[near, far], &[env], &[("worker.lease", "54s")]), 54);
}

#[test]
fn every_value_tells_where_it_came_from() {
    let text = "[worker]\nlease = \"52s\"\n";
    let config = given(&[("promptq.toml", text)], &[("PROMPTQ_STORE", "memory:")], &[("broker", "memory:")]).unwrap();
    assert_eq!(origin(&config, "worker.lease"), "promptq.toml:2:9");
    assert_eq!(origin(&config, "store.url"), "env PROMPTQ_STORE");
    assert_eq!(origin(&config, "broker.url"), "--flag");
    assert_eq!(origin(&config, "worker.heartbeat"), "default");
}

#[test]
fn secrets_come_plain_from_variables_and_from_files() {
    let key = |text: &str, env: &[(&str, &str)]| {
        let config = given(&[("/etc/promptq/config.toml", text)], env, &[]).unwrap();
        assert!(!format!("{config:?}").contains("hunter2"));
        config.providers["openai"].api_key.as_ref().unwrap().expose_secret().to_owned()
    };
    assert_eq!(key("providers.openai.api_key = \"hunter2\"", &[]), "hunter2");
    assert_eq!(key("providers.openai.api_key = { env = \"MINE\" }", &[("MINE", "hunter2")]), "hunter2");
    assert_eq!(key("providers.openai.api_key = { file = \"key\" }", &[]), "from-a-file");
    assert_eq!(key("", &[("OPENAI_API_KEY", "hunter2")]), "hunter2");
    assert_eq!(key("", &[("OPENAI_API_KEY_FILE", "/run/key")]), "from-a-file");
    assert_eq!(key("", &[("PROMPTQ__PROVIDERS__OPENAI__API_KEY_FILE", "key")]), "from-a-file");
    assert_eq!(key("", &[("PROMPTQ__PROVIDERS__OPENAI__API_KEY__FILE", "key")]), "from-a-file");
    // Nearer sources replace the whole secret, not its parts.
    assert_eq!(key("providers.openai.api_key = { file = \"gone\" }", &[("OPENAI_API_KEY", "hunter2")]), "hunter2");
}

#[test]
fn a_secret_that_cannot_be_had_is_an_error_with_its_place() {
    refused(file("broker.password = { file = \"gone\" }"), &["config.toml:1:28", "cannot read gone"]);
    refused(file("broker.password = { env = \"NONE\" }"), &["NONE is not set"]);
    refused(file("providers.openai.api_key = { env = \"A\", file = \"b\" }"), &["both env and file"]);
    refused(given(&[], &[("OPENAI_API_KEY", "a"), ("OPENAI_API_KEY_FILE", "b")], &[]), &["is set as well"]);
}

#[test]
fn errors_come_all_at_once_with_their_places() {
    let text = "[worker]\nlease = \"soon\"\nconcurency = 4\nmax_deaths = 0\n\n[wroker]\nname = 3\n";
    let result = given(&[("promptq.toml", text)], &[("PROMPTQ__MOCK__ERRORS", "2")], &[("telemetry.log", "loud")]);
    refused(
        result,
        &[
            "promptq.toml:2:9: worker.lease \"soon\" is not a length of time",
            "promptq.toml:3:14: unknown setting worker.concurency (did you mean worker.concurrency?)",
            "promptq.toml:4:14: worker.max_deaths must be a whole number from 1 to 1000",
            "promptq.toml:7:8: unknown setting wroker.name (did you mean worker.name?)",
            "env PROMPTQ__MOCK__ERRORS: mock.errors must be a number from 0 to 1",
            "--flag: telemetry.log must be off, error",
        ],
    );
}

#[test]
fn what_no_setting_takes_is_refused() {
    for (text, parts) in [
        ("a = ", ["config.toml:1:", "TOML"]),
        ("worker = 3", ["worker is a section", "1:10"]),
        ("[wroker]", ["unknown setting wroker", "1:2"]),
        ("[queues]\ndefalt = 3", ["queues.defalt is a section", "2:10"]),
        ("[queues.a]\natempts = 3", ["did you mean queues.a.attempts?", "2:11"]),
        ("[queues.\"a b\"]\nattempts = 3", ["queue name", "2:12"]),
        ("worker.queues = \"a\"", ["must be a list", "1:17"]),
        ("worker.queues = [\"a:0\"]", ["shares are 1 to 1000", "1:17"]),
        ("worker.queues = [\"a\", \"a:2\"]", ["names a twice", "1:17"]),
        ("worker.lease = 45", ["length of time in quotes", "1:16"]),
        ("worker.allow_exec = \"yes\"", ["true or false", "1:21"]),
        ("store.inline_up_to = \"9MiB\"", ["at most 8.0 MiB", "1:22"]),
        ("[providers.x]\napi = \"openai\"", ["providers.x.base_url is missing", "base_url"]),
        ("providers.openai.base_url = \"localhost\"", ["http://", "1:29"]),
        ("providers.openai.api = \"other\"", ["must be \"openai\", \"anthropic\"", "1:24"]),
        ("providers.gemini.stream_above = \"often\"", ["must be a whole number from 0", "1:33"]),
        ("models.fast.model = \"m\"", ["models.fast.provider is missing", "fast"]),
        ("models.fast.provider = \"acme\"", ["no [providers.acme]", "1:24"]),
        ("models.mock.provider = \"openai\"", ["something else already", "1:24"]),
        ("runners.fast.argv = [\"wc\"]\nmodels.fast.provider = \"openai\"", ["[runners.fast] has the name", "2:24"]),
        ("[runners.count]\nargv = []", ["name a program", "2:8"]),
        ("mock.latency = [\"2s\", \"1s\"]", ["the least and the most", "1:16"]),
        ("broker = \"nonsense\"", ["broker.url is not a URL", "1:10"]),
        ("broker.durability = \"always\"", ["must be \"relaxed\" or \"strict\"", "1:21"]),
        ("broker = { url = \"redis://h\", tls_ca = \"ca\" }", ["names no TLS", "1:40"]),
        ("broker = { url = \"sqlite:///q.db\", user = \"me\" }", ["takes no user", "1:43"]),
    ] {
        refused(file(text), &parts);
    }
    refused(given(&[], &[("PROMPTQ_BROKR", "x")], &[]), &["did you mean PROMPTQ_BROKER?"]);
    refused(given(&[], &[("PROMPTQ__BROKER__ULR", "x")], &[]), &["did you mean broker.url?"]);
    for (name, meant) in [
        ("PROMPTQ_WORKER_CONCURRENCY", "PROMPTQ__WORKER__CONCURRENCY"),
        ("PROMPTQ_WORKER_ALLOW_EXEC", "PROMPTQ__WORKER__ALLOW_EXEC"),
        ("PROMPTQ_QUEUES_DEFAULT_ATTEMPTS", "PROMPTQ__QUEUES__DEFAULT__ATTEMPTS"),
        ("PROMPTQ_SECRET_OF_MINE", "PROMPTQ__SECTION__SETTING"),
    ] {
        refused(given(&[], &[(name, "8")], &[]), &[&format!("env {name}: no such variable"), meant]);
    }
}

#[test]
fn variables_that_others_set_are_no_mistake() {
    for name in [
        "PROMPTQ_BROKER",
        "PROMPTQ_JOB_ID",
        "PROMPTQ_ATTEMPT",
        "PROMPTQ_WORKER_SERVICE_HOST",
        "PROMPTQ_SERVICE_PORT_HTTP",
        "PROMPTQ_PORT",
        "PROMPTQ_PORT_8080_TCP_ADDR",
    ] {
        assert!(given(&[], &[(name, "")], &[]).is_ok(), "{name}");
    }
}

#[test]
fn settings_must_fit_each_other() {
    for (text, part) in [
        ("worker.lease = \"20s\"", "at most a third of worker.lease"),
        ("retention.dead = \"90d\"", "at least as long as"),
        ("queues.a.backoff = { first = \"2m\", max = \"1m\" }", "at most its max"),
        ("queues.a.reuse = \"8d\"", "at most retention.reuse"),
        ("limits.a = { usd = \"5\", usd_per_day = \"9\" }", "limits.a.usd_per_day says another amount"),
        ("limits.\"a/m\".usd = \"5\"\nlimits.\"a/m2\".requests = \"9\"", "limits.a/m.usd would not hold for a/m2"),
        ("limits.a = { tokens = \"2M/day\", tokens_per_day = \"1M\" }", "limits.a.tokens_per_day says another amount"),
        ("mock = { errors = 0.6, throttled = 0.6 }", "together must be at most 1"),
        ("ledger = \"redis://localhost\"", "keeps its own records"),
        ("ledger = \"store\"", "keeps its own records"),
        ("broker = \"amqp://localhost\"", "it needs a ledger beside it"),
        ("broker = \"amqp://far\"\nledger = \"store\"", "the store, but there is none"),
        (
            "broker = \"amqp://far\"\nledger = \"store\"\nstore = \"s3://b\"\nretention.bytes = \"1GiB\"",
            "retention.bytes is of no use",
        ),
        ("broker = \"amqp://far\"\nstore = \"s3://b\"\nqueues.a.budget = \"20/day\"", "queues.a.budget cannot be kept"),
        ("broker = \"amqp://far\"\nledger = \"amqp://far\"", "cannot be RabbitMQ"),
        ("broker = \"amqp://far\"\nledger = \"s3://bucket\"", "cannot be s3://"),
        ("broker = \"amqp://localhost\"\nledger = \"memory:\"", "ends with each process"),
        ("broker = \"amqp://localhost\"\nstore = \"memory:\"", "cannot be the ledger as well"),
        ("broker = \"amqp://far\"\nledger = \"sqlite:///l.db\"", "store.shared = true"),
        ("broker = \"amqps://far\"\nledger = { user = \"me\" }", "ledger.user is of no use"),
        (
            "broker = { url = \"amqp://far\", queue_type = \"classic\", durability = \"strict\" }\nledger = \"redis://l\"",
            "must be \"quorum\"",
        ),
        ("broker = \"redis://localhost\"\nledger = \"redis://other\"\nstore = \"memory:\"", "keeps its own records"),
        ("broker = \"amqp://far\"\nstore = \"file:///data\"", "store.shared = true"),
        ("broker = \"redis://far\"\nledger = \"sqlite:///l.db\"", "store.shared = true"),
        ("broker = \"redis://far\"\nworker.allow_exec = true", "run programs here"),
    ] {
        refused(file(text), &[part]);
    }
    let shared = file("broker = \"amqp://far\"\nstore = { url = \"file:///data\", shared = true }").unwrap();
    assert!(shared.store.shared && !shared.broker.local);
    let both = file("limits.a.usd = \"5\"\nlimits.\"a/m\".requests = \"9\"\nlimits.\"a/m2\".usd = \"9\"");
    assert_eq!(both.unwrap().limits.len(), 3);
    assert!(file("worker.allow_exec = true").unwrap().worker.allow_exec);
}

#[test]
fn rabbitmq_has_the_ledger_that_was_named_else_the_store_that_was() {
    let server = |url: &str| Some(Ledger::Elsewhere { url: Address::new(url).unwrap(), tls_ca: None });
    for (text, ledger) in [
        ("broker = \"amqp://far\"\nledger = \"redis://near\"", server("redis://near")),
        ("broker = \"amqp://far\"\nledger = \"redis://near\"\nstore = \"s3://bucket\"", server("redis://near")),
        ("broker = \"amqp://[::1]\"\nledger = \"sqlite:///l.db\"", server("sqlite:///l.db")),
        ("broker = \"amqp://far\"\nstore = \"s3://bucket\"", Some(Ledger::Store)),
        ("broker = \"amqp://far\"\nstore = \"s3://bucket\"\nledger = \"store\"", Some(Ledger::Store)),
        // A folder that nobody named is a ledger only where somebody says so.
        ("broker = \"amqp://localhost\"\nledger = \"store\"", Some(Ledger::Store)),
        ("broker = \"redis://far\"\nstore = \"s3://bucket\"", None),
    ] {
        assert_eq!(file(text).unwrap().ledger, ledger, "{text}");
    }
    let config = file("broker = \"amqp://far\"\nstore = \"s3://bucket\"").unwrap();
    let shown = config.settings.iter().find(|setting| setting.name == "ledger.url").unwrap();
    assert_eq!((shown.value.as_str(), &shown.origin), (Some("store"), &Origin::Default));
    assert!(matches!(config.access(None).beside, Beside::Nothing));
    assert!(matches!(config.access(Some(&crate::store::Store::memory())).beside, Beside::Store(_)));
    let errors = given(&[], &[("PROMPTQ_BROKER", "amqp://me:hunter2@far")], &[]).unwrap_err();
    assert!(errors.starts_with("env PROMPTQ_BROKER: RabbitMQ carries jobs") && errors.contains("--ledger"), "{errors}");
}

#[test]
fn a_ledger_has_a_login_and_certificates_of_its_own() {
    let text = "broker = { url = \"amqps://far\", user = \"b\", tls_ca = \"b.pem\", durability = \"strict\" }\n[ledger]\n\
        url = \"rediss://near/2\"\nuser = \"l\"\npassword_file = \"key\"\ntls_ca = \"l.pem\"";
    let config = file(text).unwrap();
    let access = config.access(None);
    assert_eq!((access.url.expose(), access.tls_ca), ("amqps://b@far", Some("/etc/promptq/b.pem".into())));
    let Beside::Ledger(ledger) = access.beside else { panic!("{:?}", access.beside) };
    assert_eq!(
        (ledger.url.expose(), ledger.tls_ca),
        ("rediss://l:from-a-file@near/2", Some("/etc/promptq/l.pem".into()))
    );
    assert_eq!(ledger.durability, Some(Durability::Strict));
    let other = given(&[("p.toml", text)], &[("PROMPTQ_LEDGER", "rediss://other")], &[]).unwrap();
    let plain = Ledger::Elsewhere { url: Address::new("rediss://other").unwrap(), tls_ca: None };
    assert_eq!(other.ledger, Some(plain));
}

#[test]
fn what_is_particular_to_rabbitmq_has_bounds() {
    let text = |setting: &str| format!("broker = {{ url = \"amqp://far\", {setting} }}\nledger = \"redis://near\"");
    let amqp = |setting: &str| file(&text(setting)).unwrap().broker.amqp;
    assert_eq!(amqp("user = \"u\""), amqp::Settings::default());
    assert_eq!(amqp("queue_type = \"classic\"").queues, amqp::QueueType::Classic);
    assert_eq!(amqp("consumer_timeout = \"8h\"").consumer_timeout, Duration::from_secs(28_800));
    assert_eq!(amqp("delay_levels = [\"50ms\", \"1s\"]").levels, [50, 1_000].map(Duration::from_millis));
    let env = [("PROMPTQ__BROKER__DELAY_LEVELS", "2s, 1m")];
    let said = given(&[("p.toml", &text("user = \"u\""))], &env, &[]).unwrap().broker.amqp.levels;
    assert_eq!(said, [2, 60].map(Duration::from_secs));
    for (setting, part) in [
        ("queue_type = \"stream\"", "\"quorum\" or \"classic\""),
        ("consumer_timeout = \"10ms\"", "must be from 1s"),
        ("delay_levels = []", "must be 1 to 16"),
        ("delay_levels = [\"0s\"]", "from 1ms to 6h"),
        ("delay_levels = [\"1s\", \"7h\"]", "from 1ms to 6h"),
        ("delay_levels = [\"1s\", \"1s\"]", "must rise"),
        ("delay_levels = [\"1s\", \"soon\"]", "\"soon\" is not a length of time"),
        ("delay_levels = [\"50ms\"]", "must end with 1s or more"),
    ] {
        refused(file(&text(setting)), &[&format!("broker.{}", setting.split(' ').next().unwrap()), part]);
    }
    let many = format!("delay_levels = [{}]", (1..=17).map(|n| format!("\"{n}s\"")).collect::<Vec<_>>().join(","));
    refused(file(&text(&many)), &["must be 1 to 16"]);
}

#[test]
fn a_server_on_this_machine_has_one_folder_wherever_its_clients_are_started() {
    let store = |broker: &str| {
        let text = format!("broker = \"{broker}\"\n");
        let ledger = if broker.starts_with("amqp") { "ledger = \"sqlite:///l.db\"" } else { "" };
        file(&(text + ledger)).unwrap().store.url.unwrap().expose().to_owned()
    };
    let at = |name: &str| format!("file:///home/me/.local/state/promptq/{name}.store");
    assert_eq!(store("redis://127.0.0.1"), at("redis-6379"));
    assert_eq!(store("redis://me:hunter2@localhost:6379/0"), at("redis-6379"));
    assert_eq!(store("rediss://[::1]:7000/3"), at("redis-7000-3"));
    assert_eq!(store("amqp://localhost/%2Fprod"), at("rabbitmq-5672-%252Fprod"));
    assert_eq!(store("amqps://127.0.0.1"), at("rabbitmq-5671"));
}

#[test]
fn a_ledger_elsewhere_keeps_large_answers_itself() {
    let store =
        |broker: &str, ledger: &str| file(&format!("broker = \"{broker}\"\nledger = \"{ledger}\"\n")).unwrap().store;
    assert_eq!(store("amqp://localhost", "redis://far").url, None);
    assert_eq!(store("amqp://far", "redis://localhost").url, None);
    let here = store("amqp://localhost", "redis://127.0.0.1");
    assert!(here.url.is_some_and(|url| url.expose().ends_with("rabbitmq-5672.store")) && !here.named);
    let named = file("broker = \"amqp://localhost\"\nledger = \"redis://far\"\nstore.url = \"s3://b/p\"").unwrap();
    assert!(named.store.named && named.store.url.is_some());
}

#[test]
fn a_password_does_not_follow_to_another_server() {
    let text = "broker = { url = \"redis://near\", user = \"me\", password = \"hunter2\" }\nstore.url = \"memory:\"";
    let config = file(text).unwrap();
    assert_eq!(config.broker.url.expose(), "redis://me:hunter2@near");
    let shown = config.settings.iter().map(|setting| setting.value.to_string()).collect::<String>();
    assert!(!shown.contains("hunter2") && !format!("{config:?}").contains("hunter2"));
    let other = given(&[("p.toml", text)], &[], &[("broker.url", "redis://other")]).unwrap();
    assert_eq!(other.broker.url.expose(), "redis://other");
}

#[test]
fn a_login_given_apart_is_taken_letter_by_letter() {
    let login = |env: &[(&str, &str)]| {
        let address = given(&[("p.toml", "store.url = \"memory:\"")], env, &[]).unwrap().broker.url;
        let url = url::Url::parse(address.expose()).unwrap();
        let decode = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8().unwrap().into_owned();
        assert!(!format!("{address}").contains("hunter"), "{address}");
        (decode(url.username()), decode(url.password().unwrap()))
    };
    let odd = "hunter%41:/@#? ü";
    let broker = ("PROMPTQ_BROKER", "rediss://near:6380/2");
    let user = ("PROMPTQ__BROKER__USER", "a%b");
    assert_eq!(login(&[broker, user, ("PROMPTQ__BROKER__PASSWORD", odd)]), ("a%b".to_owned(), odd.to_owned()));
    let rabbit = ("PROMPTQ_BROKER", "amqps://near:5671/%2Fprod");
    let odd_login = [rabbit, user, ("PROMPTQ__BROKER__PASSWORD", odd), ("PROMPTQ_LEDGER", "redis://l")];
    assert_eq!(login(&odd_login), ("a%b".to_owned(), odd.to_owned()));
    let file = ("PROMPTQ__BROKER__PASSWORD_FILE", "/run/key");
    assert_eq!(login(&[broker, file]), (String::new(), "from-a-file".to_owned()));
    let text = "store.url = \"memory:\"\nbroker = { url = \"redis://near\", password_file = \"key\" }";
    let named = given(&[("/etc/promptq/config.toml", text)], &[], &[]).unwrap();
    assert_eq!(named.broker.url.expose(), "redis://:from-a-file@near");
    assert_eq!(
        login(&[("PROMPTQ_BROKER", "redis://u%40x:hunter%252@near")]),
        ("u@x".to_owned(), "hunter%2".to_owned())
    );
}

#[test]
fn what_a_brokers_confirmation_must_be_worth_is_a_setting() {
    let text =
        "store.url = \"memory:\"\nbroker = { url = \"rediss://near\", tls_ca = \"ca.pem\", durability = \"strict\" }";
    let access = file(text).unwrap().access(None);
    assert_eq!((access.tls_ca, access.durability), (Some("/etc/promptq/ca.pem".into()), Some(Durability::Strict)));
    let env = [("PROMPTQ__BROKER__TLS_CA", "mine.pem"), ("PROMPTQ__BROKER__DURABILITY", "relaxed")];
    let access = given(&[("/etc/promptq/config.toml", text)], &env, &[]).unwrap().access(None);
    assert_eq!((access.tls_ca, access.durability), (Some("/run/mine.pem".into()), Some(Durability::Relaxed)));
    // Another server has another certificate; what its word must be worth stays.
    let other = given(&[("p.toml", text)], &[], &[("broker.url", "rediss://other")]).unwrap().access(None);
    assert_eq!((other.tls_ca, other.durability), (None, Some(Durability::Strict)));
    assert_eq!(given(&[], &[], &[]).unwrap().broker.durability, None);
}

#[test]
fn a_queues_policy_is_its_own_where_said_and_the_standard_elsewhere() {
    let text = "[queues.vision]\nattempts = 2\nrepair_attempts = 1\nprotected = true\nbackoff = { first = \"3s\" }\nreuse = \"24h\"\nbudget = \"20/day\"";
    let config = file(text).unwrap();
    let policy = config.queue(&Queue::new("vision").unwrap());
    assert_eq!((policy.attempts, policy.protected, policy.backoff.first), (2, true, Duration::from_secs(3)));
    assert_eq!(policy.repair_attempts, 1);
    assert_eq!((policy.timeout, policy.reuse), (QueuePolicy::standard().timeout, Some(Duration::from_secs(86_400))));
    assert_eq!(policy.budget.unwrap().to_string(), "$20/day");
    assert_eq!(config.queue(&Queue::standard()), QueuePolicy::standard());
}
