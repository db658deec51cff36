//! What promptq takes from a Redis of its own: `pairs` beside the least that a queue could do (`limit`), each contestant
//! in a file of its own (`programs`, and `facade` above); `single` what an idle fleet or a waiting job takes. Here: the
//! server's accounts.

mod limit;
mod pairs;
mod programs;
mod single;

pub use pairs::{Fsync, pairs};
pub use single::{idle, latency, memory};

use anyhow::{Context, anyhow};
use promptq_common::broker::Access;

use crate::redis::RedisServer;

/// How a server is reached.
fn access(server: &RedisServer) -> anyhow::Result<Access> {
    Ok(Access::new(&server.url())?)
}

/// Processor time of the server, all its threads, in seconds.
pub(crate) fn server_time(server: &RedisServer) -> anyhow::Result<f64> {
    let info = info(server, "cpu")?;
    Ok(figure(&info, "used_cpu_sys:")? + figure(&info, "used_cpu_user:")?)
}

/// One section of what the server tells of itself.
fn info(server: &RedisServer, section: &str) -> anyhow::Result<String> {
    Ok(server.command(&["INFO", section]).map_err(|why| anyhow!(why))?.text())
}

/// The number behind `name` at the start of a line.
fn figure(info: &str, name: &str) -> anyhow::Result<f64> {
    let value = info.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
    Ok(value.trim().parse()?)
}
