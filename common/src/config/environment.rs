//! The only reader of the process's environment, and of the files it names.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::error::{ConfigError, ConfigErrors, Origin};
use super::layer::{Flag, Sources};
use super::{Config, resolve};
use crate::telemetry::trace::Context;

/// The variables of this process whose names and values are text.
pub type Environment = BTreeMap<String, String>;

/// The largest configuration file or secret read, in bytes: far above any that people write.
const LARGEST: u64 = 1 << 20;

/// Reads `file` (else `PROMPTQ_CONFIG`, else `./promptq.toml` and `$XDG_CONFIG_HOME/promptq/config.toml`), the
/// environment and `flags`, and resolves them.
pub fn load(file: Option<&Path>, flags: Vec<Flag>) -> Result<Config, ConfigErrors> {
    let environment = environment();
    let (files, errors) = files(file, &environment);
    let folder = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("."));
    let resolved = resolve(&Sources { files, environment, flags, folder, read: &read });
    if errors.is_empty() {
        return resolved;
    }
    let rest = resolved.err().map(|errors| errors.0).unwrap_or_default();
    Err(ConfigErrors(errors.into_iter().chain(rest).collect()))
}

/// The variables of this process.
pub fn environment() -> Environment {
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    std::env::vars_os().filter_map(text).collect()
}

/// The port that a platform wants to be served at (`PORT`).
pub fn port() -> Option<String> {
    environment().remove("PORT").filter(|value| !value.is_empty())
}

/// Who acts, for audit lines: `user@host`.
pub fn actor() -> String {
    let environment = environment();
    let said = |name: &str| environment.get(name).filter(|value| !value.is_empty());
    let user = said("USER").or_else(|| said("LOGNAME")).cloned();
    let user = user.unwrap_or_else(|| format!("uid{}", rustix::process::getuid().as_raw()));
    format!("{user}@{}", host_of(&environment))
}

/// Where ECS's agent is, for a task of it (`ECS_AGENT_URI`).
pub fn ecs_agent() -> Option<String> {
    environment().remove("ECS_AGENT_URI").filter(|value| !value.is_empty())
}

/// What this process was caused by (`TRACEPARENT`), if whoever started it says so.
pub fn caller() -> Option<Context> {
    environment().get("TRACEPARENT").and_then(|said| Context::parse(said))
}

/// This machine's name.
pub fn host() -> String {
    host_of(&environment())
}

pub(super) fn host_of(environment: &Environment) -> String {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let names = [kernel, environment.get("HOSTNAME").cloned()];
    let name = names.into_iter().flatten().map(|name| name.trim().to_owned()).find(|name| !name.is_empty());
    name.unwrap_or_else(|| "localhost".to_owned())
}

/// The files there are, first wins, and what kept others from being read.
fn files(asked: Option<&Path>, environment: &Environment) -> (Vec<(PathBuf, String)>, Vec<ConfigError>) {
    let said = |name: &str| environment.get(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let named = match (asked, said("PROMPTQ_CONFIG")) {
        (Some(path), _) => Some((path.to_owned(), Origin::Flag("--config".to_owned()))),
        (None, Some(path)) => Some((path, Origin::Env("PROMPTQ_CONFIG".to_owned()))),
        (None, None) => None,
    };
    if let Some((path, origin)) = named {
        return match read(&path) {
            Ok(text) => (vec![(path, text)], Vec::new()),
            Err(error) => {
                let what = format!("cannot read {}: {error}", path.display());
                (Vec::new(), vec![ConfigError::new(origin, what)])
            }
        };
    }
    let home =
        said("XDG_CONFIG_HOME").filter(|path| path.is_absolute()).or_else(|| Some(said("HOME")?.join(".config")));
    let usual = [Some(PathBuf::from("promptq.toml")), home.map(|home| home.join("promptq/config.toml"))];
    let (mut found, mut errors) = (Vec::new(), Vec::new());
    for path in usual.into_iter().flatten() {
        match read(&path) {
            Ok(text) => found.push((path, text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                errors.push(ConfigError::new(Origin::Default, format!("cannot read {}: {error}", path.display())));
            }
        }
    }
    (found, errors)
}

fn read(path: &Path) -> io::Result<String> {
    use io::Read;
    let mut text = String::new();
    std::fs::File::open(path)?.take(LARGEST + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LARGEST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "larger than 1 MiB"));
    }
    Ok(text)
}
