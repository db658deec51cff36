//! The exporter before many queues, all of which wait behind a limit: how long a look at the broker takes, and a scrape.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use promptq_common::broker::{Broker, WorkerId};
use promptq_common::job::{Job, Queue};
use promptq_common::ledger::{HeldKey, WorkerReport};
use promptq_common::outcome::FailureClass;
use promptq_common::time::Timestamp;
use promptq_common::work::Work;

use super::wire::{Line, get};
use super::{at, float, free};
use crate::library::{enqueue, text};
use crate::limits::findings::Finding;
use crate::process::Running;
use crate::stage::{Hall, Kind};

/// Scrapes that are measured.
const SCRAPES: usize = 20;
/// Looks that are measured, one a second.
const LOOKS: usize = 5;
/// The exporter is there by then, and has looked.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) async fn measured(kind: Kind, count: usize) -> anyhow::Result<Vec<Finding>> {
    let hall = Hall::open(kind);
    let stage = hall.stage()?;
    let home = stage.home("")?;
    let broker = Broker::connect(&stage.access()?).await?;
    let queues = (0..count).map(|n| Queue::new(&format!("queue-{n:04}"))).collect::<Result<Vec<_>, _>>()?;
    for (n, some) in queues.chunks(100).enumerate() {
        let job =
            |(at, queue): (usize, &Queue)| Job::new(queue.clone(), Work::prompt(Some("mock"), text(n * 100 + at)));
        enqueue(&broker, &some.iter().enumerate().map(job).collect::<Vec<_>>()).await?;
    }
    broker.ledger().report(&held_back(&queues)).await?;
    let (names, address): (Vec<_>, _) = (queues.iter().map(Queue::as_str).collect(), free()?);
    let (names, admin) = (names.join(","), address.to_string());
    let mut exporter =
        home.start("promptq", &["exporter", "--queues", &names, "--interval", "1s", "--admin", &admin])?;
    let first = until_seen(address, &mut exporter).await?;
    let held = first.lines().filter(|line| line.starts_with("promptq_queue_blocked_jobs") && line.ends_with(" 1"));
    ensure!(held.count() == count, "not every queue is shown as held back");
    let mut looks = vec![look(&first)?];
    let (mut scrapes, mut bytes) = (Vec::new(), 0);
    while looks.len() < LOOKS {
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        looks.push(look(&page(address).await?)?);
    }
    for _ in 0..SCRAPES {
        let began = Instant::now();
        bytes = page(address).await?.len();
        scrapes.push(began.elapsed().as_secs_f64() * 1_000.0);
    }
    ensure!(!exporter.has_left()?, "the exporter has left: {}", exporter.tail());
    for list in [&mut looks, &mut scrapes] {
        list.sort_by(f64::total_cmp);
    }
    Ok(vec![
        Finding::new("a look at all of them, the median", at(&looks, 50), "ms"),
        Finding::new("a look at all of them, the longest", at(&looks, 100), "ms"),
        Finding::new("a scrape, the median", at(&scrapes, 50), "ms"),
        Finding::new("a scrape, the longest", at(&scrapes, 100), "ms"),
        Finding::new("its page", float(bytes) / 1_024.0, "KiB"),
        Finding::new("memory of the exporter", float(usize::try_from(exporter.resident()?)?) / 1_024.0, "MiB"),
    ])
}

/// A worker that may not call for any of them.
fn held_back(queues: &[Queue]) -> WorkerReport {
    let now = Timestamp::now();
    let held = HeldKey {
        key: "mock/mock".to_owned(),
        class: FailureClass::Throttled,
        detail: "measured".to_owned(),
        since: now,
        until: now + Duration::from_secs(600),
        probing: false,
        lanes: queues.iter().map(|queue| (queue.clone(), Some("mock".to_owned()))).collect(),
        at_once: None,
        cap: None,
    };
    WorkerReport {
        id: WorkerId::random("bench"),
        host: "bench".to_owned(),
        pid: 1,
        version: "0".to_owned(),
        started_at: now,
        seen_at: now,
        slots: 16,
        running: 0,
        queues: queues.iter().map(|queue| format!("{queue}:1")).collect(),
        draining: false,
        blocked: None,
        held: vec![held],
        paces: Vec::new(),
    }
}

async fn page(address: SocketAddr) -> anyhow::Result<String> {
    let answer = Line::open(address).await?.ask(&get("/metrics")).await?;
    ensure!(answer.status == 200, "the page is answered {}", answer.status);
    Ok(String::from_utf8(answer.body)?)
}

/// The first page with what it saw.
async fn until_seen(address: SocketAddr, exporter: &mut Running) -> anyhow::Result<String> {
    let began = Instant::now();
    loop {
        ensure!(!exporter.has_left()? && began.elapsed() < PATIENCE, "it shows nothing: {}", exporter.tail());
        if let Ok(page) = page(address).await
            && page.contains("promptq_queue_desired_workers{")
        {
            return Ok(page);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// How long its last look took, in milliseconds.
fn look(page: &str) -> anyhow::Result<f64> {
    let line = page.lines().find(|line| line.starts_with("promptq_queue_scrape_duration_seconds{"));
    let seconds: f64 = line.and_then(|line| line.rsplit(' ').next()).context("no look is shown")?.parse()?;
    Ok(seconds * 1_000.0)
}
