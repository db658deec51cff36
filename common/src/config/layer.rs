//! Files, environment and flags laid over each other: one value for each path, with its place.
//! What the values mean is `resolve.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::{Path as FilePath, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, Origin};

/// Everything configuration can come from.
pub struct Sources<'a> {
    /// Files and their text; the first wins.
    pub files: Vec<(PathBuf, String)>,
    /// The environment.
    pub environment: BTreeMap<String, String>,
    /// What the command line says.
    pub flags: Vec<Flag>,
    /// What relative paths of the environment and the flags stand on.
    pub folder: PathBuf,
    /// Reads a secret's file.
    pub read: &'a dyn Fn(&FilePath) -> io::Result<String>,
}

impl std::fmt::Debug for Sources<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sources").field("folder", &self.folder).finish_non_exhaustive()
    }
}

/// One setting given by a flag.
#[derive(Clone, Debug)]
pub struct Flag {
    /// The setting, such as `worker.lease`.
    pub setting: &'static str,
    /// The flag, such as `--lease`.
    pub name: &'static str,
    /// Its value, as the environment would give it.
    pub value: String,
}

pub(super) type Path = Vec<String>;

/// A value and its place.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) raw: Raw,
    pub(super) origin: Origin,
}

/// A value before its setting says what it must be.
#[derive(Clone, Debug)]
pub(super) enum Raw {
    /// From a file.
    Text(String),
    /// From the environment or a flag: a list, a number or a word in text.
    Plain(String),
    Integer(i64),
    Float(f64),
    Bool(bool),
    List(Vec<Raw>),
    /// A table without anything in it.
    Empty,
    /// Something no setting takes, by name.
    Other(&'static str),
}

pub(super) type Layers = BTreeMap<Path, Found>;

/// Lays all sources over each other, the lowest first.
pub(super) fn merge(sources: &Sources<'_>, errors: &mut Vec<ConfigError>) -> Layers {
    let mut merged = Layers::new();
    for (path, text) in sources.files.iter().rev() {
        lay(&mut merged, from_file(path, text, errors));
    }
    lay(&mut merged, from_environment(sources, errors));
    let flags = sources.flags.iter().map(|flag| {
        let path = flag.setting.split('.').map(str::to_owned).collect();
        (path, Found { raw: Raw::Plain(flag.value.clone()), origin: Origin::Flag(flag.name.to_owned()) })
    });
    lay(&mut merged, flags.collect());
    merged
}

fn lay(merged: &mut Layers, layer: Vec<(Path, Found)>) {
    let layer: Vec<_> = layer.into_iter().map(|(path, found)| (long_form(path, &found.raw), found)).collect();
    // Whoever names another server or folder does not mean the other one's password or properties.
    for (path, _) in &layer {
        if let [section, last] = path.as_slice()
            && last == "url"
        {
            for option in ["user", "password", "tls_ca", "shared"] {
                merged.retain(|known, _| !known.starts_with(&[section.clone(), option.to_owned()]));
            }
        }
    }
    for (path, found) in layer {
        merged.retain(|known, _| !known.starts_with(&path) && !path.starts_with(known));
        merged.insert(path, found);
    }
}

/// `broker = "URL"` is short for `broker.url`, and `broker.password_file` for `broker.password.file`; so for the ledger.
fn long_form(mut path: Path, raw: &Raw) -> Path {
    if path == ["broker", "password_file"] || path == ["ledger", "password_file"] {
        path.pop();
        path.extend(["password", "file"].map(str::to_owned));
    }
    let short = matches!(path.as_slice(), [section] if matches!(section.as_str(), "broker" | "ledger" | "store"));
    if short && !matches!(raw, Raw::Empty) {
        path.push("url".to_owned());
    }
    path
}

fn from_file(path: &FilePath, text: &str, errors: &mut Vec<ConfigError>) -> Vec<(Path, Found)> {
    let at = |span: Range<usize>| place(path, text, span.start);
    let (table, broken) = DeTable::parse_recoverable(text);
    if !broken.is_empty() {
        errors.extend(broken.iter().take(5).map(|error| {
            ConfigError::new(at(error.span().unwrap_or(0..0)), error.message().trim().replace('\n', ", "))
                .hint("the file must be TOML")
        }));
        return Vec::new();
    }
    let mut found = Vec::new();
    flatten(&mut Vec::new(), table.get_ref(), &at, &mut found);
    found
}

fn flatten(
    prefix: &mut Path,
    table: &DeTable<'_>,
    at: &dyn Fn(Range<usize>) -> Origin,
    found: &mut Vec<(Path, Found)>,
) {
    for (key, value) in table {
        prefix.push(key.get_ref().to_string());
        let value_of = value.get_ref();
        match value_of.as_table() {
            Some(inner) if !inner.is_empty() => flatten(prefix, inner, at, found),
            empty => {
                let origin = at(if empty.is_some() { key.span() } else { value.span() });
                found.push((prefix.clone(), Found { raw: raw(value_of), origin }));
            }
        }
        prefix.pop();
    }
}

fn raw(value: &DeValue<'_>) -> Raw {
    match value {
        DeValue::String(text) => Raw::Text(text.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or(Raw::Other("a number beyond 64 bits"), Raw::Integer),
        DeValue::Float(number) => number.as_str().parse().map_or(Raw::Other("an unreadable number"), Raw::Float),
        DeValue::Boolean(word) => Raw::Bool(*word),
        DeValue::Datetime(_) => Raw::Other("a date"),
        DeValue::Array(items) => Raw::List(items.iter().map(Spanned::get_ref).map(raw).collect()),
        DeValue::Table(inner) if inner.is_empty() => Raw::Empty,
        DeValue::Table(_) => Raw::Other("a table"),
    }
}

fn place(path: &FilePath, text: &str, offset: usize) -> Origin {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
    Origin::File { path: path.to_owned(), line, column }
}

/// Variables with names of their own, the least binding first; then come those spelt out.
const SHORT: [(&str, &str); 22] = [
    ("OPENAI_BASE_URL", "providers.openai.base_url"),
    ("OPENAI_API_KEY", "providers.openai.api_key"),
    ("ANTHROPIC_BASE_URL", "providers.anthropic.base_url"),
    ("ANTHROPIC_API_KEY", "providers.anthropic.api_key"),
    ("GEMINI_API_KEY", "providers.gemini.api_key"),
    ("PROMPTQ_BROKER", "broker.url"),
    ("PROMPTQ_LEDGER", "ledger.url"),
    ("PROMPTQ_STORE", "store.url"),
    ("PROMPTQ_LOG", "telemetry.log"),
    ("PROMPTQ_ADMIN", "telemetry.admin"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "telemetry.otlp_endpoint"),
    ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "telemetry.otlp_traces_endpoint"),
    ("OTEL_EXPORTER_OTLP_HEADERS", "telemetry.otlp_headers"),
    ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "telemetry.otlp_headers"),
    ("OTEL_EXPORTER_OTLP_PROTOCOL", "telemetry.otlp_protocol"),
    ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "telemetry.otlp_protocol"),
    ("OTEL_SERVICE_NAME", "telemetry.service_name"),
    ("OTEL_RESOURCE_ATTRIBUTES", "telemetry.resource_attributes"),
    ("OTEL_TRACES_EXPORTER", "telemetry.traces_exporter"),
    ("OTEL_TRACES_SAMPLER", "telemetry.traces_sampler"),
    ("OTEL_TRACES_SAMPLER_ARG", "telemetry.traces_sampler_arg"),
    ("OTEL_SDK_DISABLED", "telemetry.otel_sdk_disabled"),
];
const LONG: &str = "PROMPTQ__";
const FILE: &str = "_FILE";

fn from_environment(sources: &Sources<'_>, errors: &mut Vec<ConfigError>) -> Vec<(Path, Found)> {
    let environment = &sources.environment;
    let mut found = Vec::new();
    let mut take = |name: &str, path: Path| {
        let file = format!("{name}{FILE}");
        // An empty variable is how deployment files say "not set".
        let said = |name: &str| environment.get(name).filter(|value| !value.is_empty());
        match (said(name), said(&file)) {
            (Some(_), Some(_)) => errors.push(
                ConfigError::new(Origin::Env(file), format!("{name} is set as well")).hint("unset one of the two"),
            ),
            (Some(value), None) => {
                found.push((path, Found { raw: Raw::Plain(value.clone()), origin: Origin::Env(name.to_owned()) }));
            }
            (None, Some(at)) => match (sources.read)(&sources.folder.join(at)) {
                Ok(text) => found.push((path, Found { raw: Raw::Plain(chomp(text)), origin: Origin::Env(file) })),
                Err(error) => {
                    let wrong = ConfigError::new(Origin::Env(file), format!("cannot read {at}: {error}"));
                    errors.push(wrong.of_key(&path));
                }
            },
            (None, None) => {}
        }
    };
    for (name, setting) in SHORT {
        take(name, setting.split('.').map(str::to_owned).collect());
    }
    let spelt: BTreeSet<&str> = environment
        .keys()
        .filter(|name| name.starts_with(LONG))
        .map(|name| name.strip_suffix(FILE).filter(|bare| !bare.ends_with('_')).unwrap_or(name))
        .collect();
    for name in spelt {
        let rest = name.strip_prefix(LONG).unwrap_or(name);
        take(name, rest.split("__").map(str::to_lowercase).collect());
    }
    errors.extend(environment.keys().filter_map(|name| misspelt(name)));
    found
}

/// A variable that looks like one of ours but is none would be left unread in silence.
fn misspelt(name: &str) -> Option<ConfigError> {
    let ours = SHORT.iter().map(|(short, _)| *short).chain(["PROMPTQ_CONFIG"]);
    let bare = name.strip_suffix(FILE).unwrap_or(name);
    let rest = name.strip_prefix("PROMPTQ_").filter(|_| !name.starts_with(LONG))?;
    if ours.clone().any(|own| own == bare) || GIVEN.contains(&name) || is_service(name) {
        return None;
    }
    let near =
        ours.filter(|own| strsim::osa_distance(own, bare) <= 2).min_by_key(|own| strsim::osa_distance(own, bare));
    let error = ConfigError::new(Origin::Env(name.to_owned()), "no such variable");
    Some(match near.map(str::to_owned).or_else(|| spelt_out(rest)) {
        Some(near) => error.hint(format!("did you mean {near}?")),
        None => error.hint("unset it; settings are spelt PROMPTQ__SECTION__SETTING"),
    })
}

/// What programs run for a job see of it: they may run promptq themselves.
const GIVEN: [&str; 2] = ["PROMPTQ_JOB_ID", "PROMPTQ_ATTEMPT"];

/// Whether Kubernetes sets it in every container beside a service whose name begins with promptq:
/// `NAME_SERVICE_HOST`, `NAME_SERVICE_PORT…`, `NAME_PORT`, `NAME_PORT_80_TCP…`.
fn is_service(name: &str) -> bool {
    let numbered = |(_, rest): (&str, &str)| rest.starts_with(|first: char| first.is_ascii_digit());
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.ends_with("_PORT")
        || name.split_once("_PORT_").is_some_and(numbered)
}

/// `WORKER_CONCURRENCY` as the variable that its writer may have meant.
fn spelt_out(rest: &str) -> Option<String> {
    let parts = match rest.split('_').next()? {
        "BROKER" | "LEDGER" | "STORE" | "WORKER" | "RETENTION" | "EXEC" | "MOCK" | "GATEWAY" | "TELEMETRY" => 2,
        "QUEUES" | "PROVIDERS" | "MODELS" | "RUNNERS" => 3,
        _ => return None,
    };
    let parts: Vec<&str> = rest.splitn(parts, '_').filter(|part| !part.is_empty()).collect();
    (parts.len() > 1).then(|| format!("{LONG}{}", parts.join("__")))
}

/// Editors end a file with a newline; a secret rarely does.
pub(super) fn chomp(mut text: String) -> String {
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    text
}
