//! What is asked of a server before it is used: its version, whether it evicts, and what its confirmations are worth.
//! Reads `INFO` and, where the user may, two settings; changes nothing. And what the doctor asks: which rights are missing.

use std::collections::HashMap;
use std::sync::LazyLock;
use std::time::Duration;

use deadpool_redis::redis::{self, Value};
use tokio::time::Instant;

use super::address::{OP, Target};
use super::fault::CLUSTER;
use super::link::Link;
use super::script::{Script, When};
use super::wire::{Places, prefix};
use crate::broker::{Access, Durability};
use crate::error::{Error, Kind, Result};
use crate::job::Queue;
use crate::time::Timestamp;

/// `#!lua` flags and functions of it, without which a full server could not be drained, came with 7.0.
const OLDEST: u32 = 7;

/// As those that make something, which a full server refuses.
static RIGHTS: LazyLock<Script> =
    LazyLock::new(|| Script::new("rights", When::Room, &[include_str!("scripts/rights.lua")]));

/// What a server says of itself.
#[derive(Clone, Debug)]
pub struct Survey {
    /// Its version, such as `7.2.4`.
    pub version: String,
    /// What it throws away when it is full; anything but `noeviction` loses jobs.
    pub policy: String,
    /// When confirmed jobs reach its disk.
    pub fsync: Fsync,
    /// Whether it is a replica, which takes no writes.
    pub replica: bool,
    /// Whether it is part of a Redis Cluster.
    pub cluster: bool,
    /// The shortest of a few round trips.
    pub round_trip: Duration,
    /// How far its clock is ahead of ours, in milliseconds, as far as half a round trip tells.
    pub clock_ahead_ms: i64,
}

/// When a server's confirmed writes reach its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fsync {
    /// Before they are confirmed.
    Always,
    /// Within about two seconds.
    EverySecond,
    /// When its system sees fit.
    Never,
    /// With the next snapshot, if any: there is no append-only file.
    NoLog,
    /// There is an append-only file; the user may not read how it is kept.
    Unknown,
}

/// Looks at the server that `access` names, whether it may be used or not.
///
/// # Errors
/// As connecting to the broker, but for what [`Survey`] says.
pub(in crate::broker) async fn survey(access: &Access) -> Result<Survey> {
    look(&Link::new(Target::new(access).await?)?).await
}

/// The commands that promptq needs and this user may not use, as far as that can be tried. Leaves nothing behind.
///
/// # Errors
/// As [`survey`], and when the server is full.
pub(in crate::broker) async fn lacking(access: &Access) -> Result<Vec<String>> {
    const OP: &str = "ask for rights";
    let link = Link::new(Target::new(access).await?)?;
    let queue = Queue::new("promptq-doctor").map_err(|bad| refused(Kind::Config, &link, &bad.to_string()))?;
    let key = [prefix(&queue), b":rights".to_vec()].concat();
    // Not from a script: there it would not be let in. It waits for as long as nothing comes, which is a hundredth of a
    // second.
    let waiting: Result<Value> = link.query(OP, redis::cmd("BLPOP").arg(&key).arg("0.01")).await;
    let waits = match waiting {
        Err(error) if error.kind() == Kind::Denied => vec!["blpop".to_owned()],
        waited => waited.map(|_| Vec::new())?,
    };
    let mut answer = Places::of(link.call(OP, &RIGHTS, &[key], Vec::new()).await?)?;
    let tried = (0..answer.left()).map(|_| answer.text()).collect::<Result<Vec<_>>>()?;
    Ok([waits, tried].concat())
}

pub(super) async fn look(link: &Link) -> Result<Survey> {
    let text: String = link.query(OP, &redis::cmd("INFO")).await?;
    let info: HashMap<&str, &str> = text.lines().filter_map(|line| line.trim_end().split_once(':')).collect();
    let said = |name: &str| info.get(name).copied();
    let version =
        said("redis_version").ok_or_else(|| refused(Kind::Unsupported, link, "what answers there is not Redis"))?;
    // Until then it says that it keeps no append-only file, whatever it is set to.
    if said("loading") == Some("1") {
        return Err(refused(Kind::Unavailable, link, "the Redis server is loading its data"));
    }
    let (round_trip, clock_ahead_ms) = clock(link).await?;
    Ok(Survey {
        version: version.to_owned(),
        policy: said("maxmemory_policy").unwrap_or("unknown").to_owned(),
        fsync: fsync(link, said("aof_enabled") == Some("1")).await?,
        replica: said("role") == Some("slave"),
        cluster: said("cluster_enabled") == Some("1"),
        round_trip,
        clock_ahead_ms,
    })
}

impl Survey {
    /// Whether the server may be used, for what `access` demands of it; what it is worth, in words, when that is less
    /// than it seems and nobody asked for it.
    pub(super) fn admit(&self, access: &Access) -> Result<Option<String>> {
        let refuse = |kind: Kind, why: String| Err(Error::new(kind, OP, format!("{}: {why}", access.url)));
        if self.cluster {
            return refuse(Kind::Unsupported, CLUSTER.to_owned());
        }
        let major = self.version.split('.').next().and_then(|major| major.parse::<u32>().ok());
        if major.is_none_or(|major| major < OLDEST) {
            return refuse(Kind::Unsupported, format!("Redis {} is too old; use {OLDEST}.0 or later", self.version));
        }
        if self.replica {
            return refuse(
                Kind::Unavailable,
                "this server is a replica and takes no writes; name its master".to_owned(),
            );
        }
        if self.policy != "noeviction" {
            return refuse(
                Kind::Config,
                format!(
                    "maxmemory-policy is {}, which throws jobs away when the server is full; set it to noeviction",
                    self.policy
                ),
            );
        }
        match (access.durability, self.fsync) {
            (_, Fsync::Always) | (Some(Durability::Relaxed), _) => Ok(None),
            (Some(Durability::Strict), fsync) => {
                refuse(Kind::Config, format!("durability is strict, but {}; {}", fsync.meaning(), fsync.mend()))
            }
            (None, fsync) => Ok(Some(format!(
                "{}: {}; {}, or set broker.durability to \"relaxed\" to accept it",
                access.url,
                fsync.meaning(),
                fsync.mend()
            ))),
        }
    }
}

impl Fsync {
    /// What it means for a job that was confirmed, as part of a sentence.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Always => "confirmed jobs survive a loss of power (appendfsync always)",
            Self::EverySecond => {
                "up to 2 s of confirmed jobs may be lost with the server's power, or when it dies with a busy disk (appendfsync everysec)"
            }
            Self::Never => "confirmed jobs may be lost with the server's power (appendfsync no)",
            Self::NoLog => "confirmed jobs are lost when the server dies, back to its last snapshot (appendonly no)",
            Self::Unknown => {
                "whether confirmed jobs survive a loss of power cannot be found out (no right to CONFIG GET)"
            }
        }
    }

    /// How the server's operator makes it a promise, as an imperative.
    pub fn mend(self) -> &'static str {
        match self {
            Self::Always | Self::EverySecond | Self::Never | Self::NoLog => {
                "set appendonly yes and appendfsync always on the server"
            }
            Self::Unknown => "give the user +config|get",
        }
    }
}

/// The shortest of three round trips, and the server's clock against ours in the middle of it.
async fn clock(link: &Link) -> Result<(Duration, i64)> {
    let mut best = (Duration::MAX, 0);
    for _ in 0..3 {
        let (begun, before) = (Instant::now(), Timestamp::now());
        let (seconds, micros): (i64, i64) = link.query(OP, &redis::cmd("TIME")).await?;
        let took = begun.elapsed();
        if took < best.0 {
            let middle = before.as_millis() + i64::try_from(took.as_millis() / 2).unwrap_or_default();
            best = (took, seconds * 1_000 + micros / 1_000 - middle);
        }
    }
    Ok(best)
}

async fn fsync(link: &Link, has_log: bool) -> Result<Fsync> {
    if !has_log {
        return Ok(Fsync::NoLog);
    }
    let mut ask = redis::cmd("CONFIG");
    ask.arg("GET").arg("appendfsync");
    match link.query::<Vec<String>>(OP, &ask).await {
        Ok(pair) => Ok(match pair.get(1).map(String::as_str) {
            Some("always") => Fsync::Always,
            Some("everysec") => Fsync::EverySecond,
            Some("no") => Fsync::Never,
            Some(_) | None => Fsync::Unknown,
        }),
        // No right, or a service that has renamed the command away.
        Err(error) if !error.is_transient() => Ok(Fsync::Unknown),
        Err(error) => Err(error),
    }
}

fn refused(kind: Kind, link: &Link, why: &str) -> Error {
    Error::new(kind, OP, format!("{}: {why}", link.peer().shown))
}
