//! The gateway under a load that does not wait for it, and the exporter before many queues: real programs, asked over plain
//! sockets. Here: what is measured, and how long; `load` and `scrape` measure, `wire` speaks HTTP.

mod load;
mod scrape;
mod wire;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use promptq_common::time::Timestamp;

use crate::limits::findings::{Finding, Findings, SCHEMA};
use crate::report::Machine;
use crate::stage::{Kind, versions};

/// How much there is to do.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// As a report calls it.
    pub form: &'static str,
    /// Jobs a second.
    pub rate: u32,
    /// For so many seconds.
    pub seconds: u32,
    /// Clients that trickle a body meanwhile.
    pub slow: usize,
    /// Queues that the exporter looks at.
    pub queues: usize,
}

impl Plan {
    /// As the goals say.
    pub const FULL: Self = Self { form: "full", rate: 500, seconds: 20, slow: 100, queues: 1_000 };
    /// To see that it works.
    pub const SMOKE: Self = Self { form: "smoke", rate: 50, seconds: 2, slow: 5, queues: 20 };
}

/// The brokers that both are measured on.
const KINDS: [Kind; 2] = [Kind::Sqlite, Kind::Redis];

/// Measures both on each broker. What breaks off is told with the rest.
///
/// # Errors
/// When this machine cannot be looked at.
pub async fn take(plan: Plan) -> anyhow::Result<Findings> {
    let own = [("promptq".to_owned(), env!("CARGO_PKG_VERSION").to_owned())];
    let mut findings = Findings {
        schema: SCHEMA,
        date: Timestamp::now().to_string(),
        form: plan.form.to_owned(),
        alone: true,
        machine: Machine::seen()?,
        versions: own.into_iter().chain(KINDS.into_iter().flat_map(versions)).collect::<BTreeMap<_, _>>(),
        findings: Vec::new(),
        trouble: Vec::new(),
    };
    for kind in KINDS {
        let Plan { rate, seconds, slow, queues, .. } = plan;
        let load = format!("{rate} jobs a second for {seconds} s, {slow} slow clients, {}", kind.name());
        note(&mut findings, &load, load::measured(kind, plan).await);
        let scrape = format!("exporter, {queues} queues, {}", kind.name());
        note(&mut findings, &scrape, scrape::measured(kind, queues).await);
    }
    Ok(findings)
}

fn note(findings: &mut Findings, measure: &str, found: anyhow::Result<Vec<Finding>>) {
    match found {
        Ok(found) => {
            findings.findings.extend(found.into_iter().map(|one| Finding { measure: measure.to_owned(), ..one }));
        }
        Err(error) => findings.trouble.push(format!("{measure}: {error:#}")),
    }
}

/// An address of this machine that nobody has.
fn free() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// What so many of a hundred do not exceed.
fn at(sorted: &[f64], percent: usize) -> f64 {
    let place = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(place).copied().unwrap_or(f64::INFINITY)
}

#[expect(clippy::cast_precision_loss, reason = "a count for a table")]
fn float(count: usize) -> f64 {
    count as f64
}
