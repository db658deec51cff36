//! Typed reading of the merged layers: each setting is asked for once, with its kind and default; what nobody asked
//! for is unknown.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;
use serde::Serialize;
use serde_json::Value;

use super::error::{ConfigError, Origin};
use super::layer::{Found, Layers, Path, Raw, Sources, chomp};
use crate::time::{format_duration, parse_duration};

/// A setting as it may be shown.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Setting {
    /// Its name, such as `worker.lease`.
    pub name: String,
    /// Its value; secrets are `***`, null is "not set".
    pub value: Value,
    /// Where it came from.
    #[serde(serialize_with = "as_text")]
    pub origin: Origin,
}

fn as_text<S: serde::Serializer>(origin: &Origin, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(origin)
}

/// Reads settings, noting each and gathering what is wrong.
pub(super) struct Reader<'a> {
    sources: &'a Sources<'a>,
    layers: Layers,
    asked: BTreeSet<Path>,
    pub(super) settings: Vec<Setting>,
    pub(super) errors: Vec<ConfigError>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(sources: &'a Sources<'a>, layers: Layers, errors: Vec<ConfigError>) -> Self {
        Self { sources, layers, asked: BTreeSet::new(), settings: Vec::new(), errors }
    }

    /// The names below a section such as `queues`.
    pub(super) fn names(&mut self, section: &str) -> Vec<String> {
        self.asked.insert(vec![section.to_owned()]);
        let below = self.layers.keys().filter(|path| path.len() > 1 && path[0] == section);
        let names: BTreeSet<_> = below.map(|path| path[1].clone()).collect();
        names.into_iter().collect()
    }

    /// Shows what stands in for a setting that was not said.
    pub(super) fn stands_for(&mut self, path: &[&str], value: impl Into<Value>) {
        let name = path.join(".");
        if let Some(setting) = self.settings.iter_mut().rev().find(|setting| setting.name == name)
            && setting.origin == Origin::Default
        {
            setting.value = value.into();
        }
    }

    /// Where a setting was said.
    pub(super) fn origin(&self, path: &[&str]) -> Origin {
        self.layers.get(&owned(path)).map_or(Origin::Default, |found| found.origin.clone())
    }

    /// Notes something wrong with a setting.
    pub(super) fn wrong(&mut self, path: &[&str], what: &str) {
        self.errors.push(ConfigError::new(self.origin(path), format!("{} {what}", path.join("."))));
    }

    /// Reads what other programs are told by the same variables, who know more words: of those the ones that are not known
    /// here count as not said.
    pub(super) fn shared<T>(&mut self, read: impl FnOnce(&mut Self) -> T) -> T {
        let known = self.errors.len();
        let value = read(self);
        let told = self.errors.split_off(known);
        self.errors.extend(told.into_iter().filter(|error| !matches!(error.at, Origin::Env(_))));
        value
    }

    pub(super) fn text(&mut self, path: &[&str]) -> Option<String> {
        self.read(path, None, |raw| text_of(raw).map(Some), |text| text.clone().into())
    }

    /// Text whose value must not be shown as it is.
    pub(super) fn masked(&mut self, path: &[&str], show: fn(&str) -> String) -> Option<String> {
        let shown = |text: &Option<String>| text.as_deref().map(show).into();
        self.read(path, None, |raw| text_of(raw).map(Some), shown)
    }

    /// A file or folder; relative ones stand on the folder of the file that names them.
    pub(super) fn path(&mut self, path: &[&str]) -> Option<PathBuf> {
        let folder = self.layers.get(&owned(path)).map(|found| folder(self.sources, found)).unwrap_or_default();
        self.text(path).map(|place| folder.join(place))
    }

    pub(super) fn boolean(&mut self, path: &[&str], default: bool) -> bool {
        self.read(path, default, boolean_of, |word| (*word).into())
    }

    pub(super) fn integer<T>(&mut self, path: &[&str], range: RangeInclusive<i64>, default: T) -> T
    where
        T: TryFrom<i64> + Copy + Into<Value>,
    {
        let parse = |raw: &Raw| {
            let bad = || format!("must be a whole number from {} to {}", range.start(), range.end());
            let number = integer_of(raw).filter(|number| range.contains(number)).ok_or_else(bad)?;
            T::try_from(number).map_err(|_| bad())
        };
        self.read(path, default, parse, |number| (*number).into())
    }

    pub(super) fn float(&mut self, path: &[&str], range: RangeInclusive<f64>, default: f64) -> f64 {
        let parse = |raw: &Raw| {
            let number = float_of(raw).filter(|number| range.contains(number));
            number.ok_or_else(|| format!("must be a number from {} to {}", range.start(), range.end()))
        };
        self.read(path, default, parse, |number| (*number).into())
    }

    pub(super) fn duration(&mut self, path: &[&str], range: RangeInclusive<Duration>, default: Duration) -> Duration {
        let parse = |raw: &Raw| {
            let length = parse_duration(&text_of(raw).map_err(|_| length_wanted().to_owned())?)?;
            if !range.contains(&length) {
                let (least, most) = (format_duration(*range.start()), format_duration(*range.end()));
                return Err(format!("must be from {least} to {most}"));
            }
            Ok(length)
        };
        self.read(path, default, parse, |length| format_duration(*length).into())
    }

    /// Bytes: a number, or text such as `64KiB`.
    pub(super) fn size(&mut self, path: &[&str], most: u64, default: u64) -> u64 {
        let parse = |raw: &Raw| {
            let bad = || format!("must be a size such as 64KiB, at most {}", bytesize::ByteSize(most));
            let size = match raw {
                Raw::Integer(bytes) => u64::try_from(*bytes).ok(),
                Raw::Text(text) | Raw::Plain(text) => text.parse::<bytesize::ByteSize>().ok().map(|size| size.0),
                Raw::Float(_) | Raw::Bool(_) | Raw::List(_) | Raw::Empty | Raw::Other(_) => None,
            };
            size.filter(|size| *size <= most).ok_or_else(bad)
        };
        self.read(path, default, parse, |size| bytesize::ByteSize(*size).to_string().into())
    }

    /// Texts: a list, or in the environment text split at commas.
    pub(super) fn list(&mut self, path: &[&str]) -> Option<Vec<String>> {
        self.read(path, None, |raw| list_of(raw).map(Some), |list| list.clone().into())
    }

    /// Anything else that text can say.
    pub(super) fn parsed<T: Display>(
        &mut self,
        path: &[&str],
        default: Option<T>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let shown = |value: &Option<T>| value.as_ref().map(ToString::to_string).into();
        self.read(path, default, |raw| parse(&text_of(raw)?).map(Some), shown)
    }

    /// As [`Reader::parsed`], without a default; a whole number may stand without quotes.
    pub(super) fn amount<T: Display>(&mut self, path: &[&str], parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let shown = |value: &Option<T>| value.as_ref().map(ToString::to_string).into();
        let text = |raw: &Raw| if let Raw::Integer(number) = raw { Ok(number.to_string()) } else { text_of(raw) };
        self.read(path, None, |raw| parse(&text(raw)?).map(Some), shown)
    }

    /// Plain text, `{ env = "NAME" }` or `{ file = "path" }`.
    pub(super) fn secret(&mut self, path: &[&str]) -> Option<SecretString> {
        let below = |last: &str| owned(path).into_iter().chain([last.to_owned()]).collect::<Path>();
        let (from_env, from_file) = (below("env"), below("file"));
        let indirect =
            [&from_env, &from_file].into_iter().find_map(|path| Some((path, self.layers.get(path)?.clone())));
        for path in [&from_env, &from_file] {
            self.asked.insert(path.clone());
        }
        let Some((said, found)) = indirect else {
            return self.masked(path, |_| "***".to_owned()).map(SecretString::from);
        };
        if self.layers.contains_key(&from_env) && self.layers.contains_key(&from_file) {
            self.wrong(path, "has both env and file; keep one");
            return None;
        }
        self.asked.insert(owned(path));
        let name = path.join(".");
        match fetch(self.sources, *said == from_env, &found) {
            Ok(secret) => {
                let shown = if *said == from_env { "*** (from a variable)" } else { "*** (from a file)" };
                self.settings.push(Setting { name, value: shown.into(), origin: found.origin });
                Some(SecretString::from(secret))
            }
            Err(why) => {
                self.errors.push(ConfigError::new(found.origin.clone(), format!("{name}: {why}")).of_key(path));
                self.settings.push(Setting { name, value: Value::Null, origin: found.origin });
                None
            }
        }
    }

    /// Complains about everything that was said and never asked for.
    pub(super) fn unknown(&mut self) {
        for (path, found) in &self.layers {
            let a_section = |asked: &Path| asked.starts_with(path);
            let empty = matches!(found.raw, Raw::Empty);
            if self.asked.contains(path) && path.len() > 1 || empty && self.asked.iter().any(a_section) {
                continue;
            }
            let name = path.join(".");
            let at = found.origin.clone();
            let error = if self.asked.iter().any(a_section) {
                ConfigError::new(at, format!("{name} is a section, not a value"))
            } else {
                let error = ConfigError::new(at, format!("unknown setting {name}"));
                match nearest(path, &self.asked) {
                    Some(near) => error.hint(format!("did you mean {near}?")),
                    None => error,
                }
            };
            self.errors.push(error);
        }
    }

    fn read<T>(
        &mut self,
        path: &[&str],
        default: T,
        parse: impl FnOnce(&Raw) -> Result<T, String>,
        show: impl FnOnce(&T) -> Value,
    ) -> T {
        let key = owned(path);
        let mut origin = Origin::Default;
        let mut value = default;
        if let Some(found) = self.layers.get(&key) {
            origin = found.origin.clone();
            match parse(&found.raw) {
                Ok(parsed) => value = parsed,
                Err(why) => self.wrong(path, &why),
            }
        }
        self.asked.insert(key);
        self.settings.push(Setting { name: path.join("."), value: show(&value), origin });
        value
    }
}

fn fetch(sources: &Sources<'_>, from_env: bool, found: &Found) -> Result<String, String> {
    let place = text_of(&found.raw)?;
    if from_env {
        let said = sources.environment.get(&place).filter(|value| !value.is_empty());
        return said.cloned().ok_or_else(|| format!("the variable {place} is not set"));
    }
    let file = folder(sources, found).join(&place);
    (sources.read)(&file).map(chomp).map_err(|error| format!("cannot read {place}: {error}"))
}

/// What a relative path said there stands on.
fn folder(sources: &Sources<'_>, found: &Found) -> PathBuf {
    match &found.origin {
        Origin::File { path, .. } => path.parent().map(PathBuf::from).unwrap_or_default(),
        Origin::Default | Origin::Env(_) | Origin::Flag(_) => sources.folder.clone(),
    }
}

/// The setting nearest to `path`: another last part below the same section, or another section.
fn nearest(path: &Path, asked: &BTreeSet<Path>) -> Option<String> {
    let candidates: BTreeMap<String, f64> = asked
        .iter()
        .filter(|other| other.len() >= path.len())
        .map(|other| other[..path.len()].join("."))
        .chain(asked.iter().filter(|other| other.len() == path.len() + 1).map(|other| other.join(".")))
        .map(|other| (other.clone(), strsim::jaro_winkler(&other, &path.join("."))))
        .collect();
    let near = candidates.into_iter().filter(|(_, score)| *score > 0.85);
    near.max_by(|a, b| a.1.total_cmp(&b.1)).map(|(name, _)| name)
}

fn owned(path: &[&str]) -> Path {
    path.iter().map(|part| (*part).to_owned()).collect()
}

fn length_wanted() -> &'static str {
    "must be a length of time in quotes, such as \"45s\""
}

fn text_of(raw: &Raw) -> Result<String, String> {
    match raw {
        Raw::Text(text) | Raw::Plain(text) => Ok(text.clone()),
        Raw::Integer(_) | Raw::Float(_) | Raw::Bool(_) | Raw::List(_) | Raw::Empty => {
            Err("must be text in quotes".to_owned())
        }
        Raw::Other(what) => Err(format!("must be text in quotes, not {what}")),
    }
}

fn boolean_of(raw: &Raw) -> Result<bool, String> {
    match raw {
        Raw::Bool(word) => Ok(*word),
        Raw::Plain(word) if matches!(word.to_ascii_lowercase().as_str(), "true" | "1" | "yes") => Ok(true),
        Raw::Plain(word) if matches!(word.to_ascii_lowercase().as_str(), "false" | "0" | "no") => Ok(false),
        Raw::Plain(_) | Raw::Text(_) | Raw::Integer(_) | Raw::Float(_) | Raw::List(_) | Raw::Empty | Raw::Other(_) => {
            Err("must be true or false".to_owned())
        }
    }
}

fn integer_of(raw: &Raw) -> Option<i64> {
    match raw {
        Raw::Integer(number) => Some(*number),
        Raw::Plain(text) => text.trim().parse().ok(),
        Raw::Text(_) | Raw::Float(_) | Raw::Bool(_) | Raw::List(_) | Raw::Empty | Raw::Other(_) => None,
    }
}

fn float_of(raw: &Raw) -> Option<f64> {
    match raw {
        #[expect(clippy::cast_precision_loss, reason = "settings this large are out of every range")]
        Raw::Integer(number) => Some(*number as f64),
        Raw::Float(number) => Some(*number),
        Raw::Plain(text) => text.trim().parse().ok(),
        Raw::Text(_) | Raw::Bool(_) | Raw::List(_) | Raw::Empty | Raw::Other(_) => None,
    }
}

fn list_of(raw: &Raw) -> Result<Vec<String>, String> {
    let bad = || "must be a list of texts, such as [\"a\", \"b\"]".to_owned();
    match raw {
        Raw::List(items) => items.iter().map(|item| text_of(item).map_err(|_| bad())).collect(),
        Raw::Plain(text) => {
            Ok(text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect())
        }
        Raw::Text(_) | Raw::Integer(_) | Raw::Float(_) | Raw::Bool(_) | Raw::Empty | Raw::Other(_) => Err(bad()),
    }
}
