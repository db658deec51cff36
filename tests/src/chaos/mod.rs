//! The kill storm: real workers on one SQLite file, killed with -9 once a second, their calls counted from outside by a
//! provider of our own. Tells how the promises held.

mod fleet;
mod provider;

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};

use promptq_common::broker::{Access, Broker};
use promptq_common::job::{BatchName, Job, Queue};
use promptq_common::ledger::{Cursor, Results, Scope};
use promptq_common::record::{End, Record};
use promptq_common::work::Work;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;

use fleet::Fleet;
use provider::{Call, Provider};

/// How hard it storms.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Jobs, of 20 to 200 ms each.
    pub jobs: u64,
    /// Worker processes at once.
    pub workers: usize,
    /// Jobs at once in each.
    pub slots: u32,
    /// Kills, at the least.
    pub kills: usize,
    /// Draws latencies and victims.
    pub seed: u64,
}

/// What came of it.
#[derive(Debug)]
pub struct Report {
    plan: Plan,
    took: Duration,
    calls: usize,
    /// Calls open in the victim at each kill.
    open: Vec<u32>,
    /// Every promise that was broken, in words; empty is good.
    pub broken: Vec<String>,
}

/// Between two kills.
const BETWEEN: Duration = Duration::from_secs(1);

/// Between two looks at the ledger.
const LOOK: Duration = Duration::from_millis(20);

/// Ten times what the calls alone need, and a minute for starts and lost leases.
fn deadline(plan: &Plan) -> Duration {
    let slots = u64::from(plan.slots) * plan.workers as u64;
    Duration::from_millis(plan.jobs * 110 / slots * 10) + Duration::from_secs(60)
}

/// Storms. An error is about the storm itself; broken promises are in the report.
pub async fn storm(plan: Plan) -> anyhow::Result<Report> {
    let home = TempDir::new()?;
    let url = format!("sqlite://{}/q.db", home.path().display());
    let broker = Broker::connect(&Access::new(&url)?).await?;
    let batch = BatchName::new("storm")?;
    submit(&broker, &batch, plan.jobs).await?;
    let provider = Provider::start(plan.seed).await?;
    let mut fleet = Fleet::start(&plan, &url, home.path(), &provider).await?;
    let mut watch =
        Watch { broker: &broker, scope: Scope::Batch(batch.clone()), cursor: Cursor(0), seen: HashMap::new() };

    let begun = Instant::now();
    let mut dice = StdRng::seed_from_u64(plan.seed);
    let (mut open, mut next_kill) = (Vec::new(), begun + BETWEEN);
    let mut look = tokio::time::interval(LOOK);
    while (watch.seen.len() as u64) < plan.jobs {
        look.tick().await;
        watch.look().await?;
        anyhow::ensure!(begun.elapsed() < deadline(&plan), "not done in time: {}", fleet.tails());
        let left = plan.jobs - watch.seen.len() as u64;
        // Towards the end there is nothing to fill the slots with, and a kill shows little.
        if Instant::now() >= next_kill && left > u64::from(plan.slots) * plan.workers as u64 * 2 {
            let victim = dice.random_range(0..plan.workers);
            open.push(provider.open_calls(fleet.generation(victim)));
            fleet.kill_and_restart(victim).await?;
            next_kill += BETWEEN;
        }
    }
    let took = begun.elapsed();
    fleet.stop().await?;
    let faults = broken_promises(&plan, &watch, &provider.calls(), &open).await?;
    Ok(Report { plan, took, calls: provider.calls().len(), open, broken: faults })
}

async fn submit(broker: &Broker, batch: &BatchName, count: u64) -> anyhow::Result<()> {
    let queue = Queue::standard();
    let rows: Vec<u64> = (1..=count).collect();
    for rows in rows.chunks(1_000) {
        let jobs: Vec<_> = rows
            .iter()
            .map(|row| {
                let mut job = Job::new(queue.clone(), Work::prompt(Some("storm"), format!("job {row}")));
                (job.batch, job.row) = (Some(batch.clone()), Some(*row));
                job
            })
            .collect();
        broker.enqueue(&jobs).await?;
    }
    broker.ledger().seal(batch, &queue).await?;
    Ok(())
}

/// The ledger, as seen from outside.
struct Watch<'a> {
    broker: &'a Broker,
    scope: Scope,
    cursor: Cursor,
    /// When each row's record was first seen.
    seen: HashMap<u64, Instant>,
}

impl Watch<'_> {
    async fn look(&mut self) -> anyhow::Result<()> {
        loop {
            let page = self.page(self.cursor).await?;
            // Taken after the answer: every record in it was stored before.
            let now = Instant::now();
            self.cursor = page.next;
            for (_, record) in &page.records {
                self.seen.entry(row(record)).or_insert(now);
            }
            if !page.more {
                return Ok(());
            }
        }
    }

    async fn page(&self, from: Cursor) -> anyhow::Result<Results> {
        Ok(self.broker.ledger().results(&self.scope, from, 1_000).await?)
    }
}

fn row(record: &Record) -> u64 {
    record.row.unwrap_or(0)
}

async fn broken_promises(plan: &Plan, watch: &Watch<'_>, calls: &[Call], open: &[u32]) -> anyhow::Result<Vec<String>> {
    let mut broken = Vec::new();
    let mut successes: HashMap<u64, u32> = HashMap::new();
    let mut from = Cursor(0);
    loop {
        let page = watch.page(from).await?;
        from = page.next;
        for (_, record) in &page.records {
            if record.end == End::Succeeded {
                *successes.entry(row(record)).or_default() += 1;
            } else {
                broken.push(format!("job {} ended as {}", row(record), record.end));
            }
        }
        if !page.more {
            break;
        }
    }
    broken.extend(
        (1..=plan.jobs)
            .filter(|row| successes.get(row) != Some(&1))
            .map(|row| format!("job {row} has {} successes", successes.get(&row).unwrap_or(&0))),
    );
    broken.extend(
        calls
            .iter()
            .filter(|call| watch.seen.get(&call.job).is_some_and(|seen| call.started > *seen))
            .map(|call| format!("job {} was called after its record was stored", call.job)),
    );
    let extra = (calls.len() as u64).saturating_sub(plan.jobs);
    let allowed = open.len() as u64 * u64::from(plan.slots);
    if extra > allowed {
        broken.push(format!("{extra} extra calls; {} kills of {} slots allow {allowed}", open.len(), plan.slots));
    }
    if open.len() < plan.kills {
        broken.push(format!("only {} kills, {} were asked for: too few jobs", open.len(), plan.kills));
    }
    if median(open) * 2 < plan.slots {
        broken.push(format!("{} of {} slots busy at a kill (median): it was no storm", median(open), plan.slots));
    }
    Ok(broken)
}

fn median(of: &[u32]) -> u32 {
    let mut of = of.to_vec();
    of.sort_unstable();
    of.get(of.len() / 2).copied().unwrap_or(0)
}

impl fmt::Display for Report {
    #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let extra = self.calls.saturating_sub(usize::try_from(self.plan.jobs).unwrap_or(usize::MAX));
        let kills = self.open.len();
        writeln!(f, "jobs {} in {:.1} s, seed {}", self.plan.jobs, self.took.as_secs_f64(), self.plan.seed)?;
        writeln!(f, "kills {kills} of {} workers with {} slots", self.plan.workers, self.plan.slots)?;
        writeln!(f, "slots busy at a kill: median {}, each {:?}", median(&self.open), self.open)?;
        writeln!(f, "calls {}, extra {extra}, {:.2} for each kill", self.calls, extra as f64 / kills.max(1) as f64)?;
        match self.broken.len() {
            0 => write!(f, "every job has exactly one success, and none was called after its record was stored"),
            count => write!(f, "BROKEN, {count} times, first:\n{}", self.broken[..count.min(20)].join("\n")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn faults(calls: &[Call], open: &[u32], seen: &[(u64, Instant)]) -> String {
        let broker = Broker::memory();
        let batch = BatchName::new("storm").unwrap();
        submit(&broker, &batch, 1).await.unwrap();
        let seen = seen.iter().copied().collect();
        let watch = Watch { broker: &broker, scope: Scope::Batch(batch), cursor: Cursor(0), seen };
        let plan = Plan { jobs: 1, workers: 1, slots: 2, kills: 1, seed: 0 };
        broken_promises(&plan, &watch, calls, open).await.unwrap().join("\n")
    }

    fn call(started: Instant) -> Call {
        Call { job: 1, generation: 1, started, answered: true }
    }

    #[tokio::test]
    async fn every_kind_of_broken_promise_is_noticed() {
        let now = Instant::now();
        assert!(faults(&[], &[2], &[]).await.contains("job 1 has 0 successes"));
        assert!(faults(&[], &[], &[]).await.contains("only 0 kills"));
        assert!(faults(&[], &[0], &[]).await.contains("it was no storm"));
        let late = call(now + Duration::from_millis(1));
        assert!(faults(std::slice::from_ref(&late), &[2], &[(1, now)]).await.contains("after its record was stored"));
        assert!(!faults(&[late], &[2], &[]).await.contains("after its record"));
        let calls: Vec<_> = (0..4).map(|_| call(now)).collect();
        assert!(faults(&calls, &[2], &[]).await.contains("3 extra calls"));
        assert!(!faults(calls.get(..3).unwrap(), &[2], &[]).await.contains("extra calls"));
    }
}
