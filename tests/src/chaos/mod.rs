//! The kill storm: real workers on one broker, killed with -9 again and again, and the broker with them where it is a
//! server; calls counted from outside by a provider of our own. Tells how the promises held.

mod fleet;
mod promise;
mod rabbit;
mod report;
mod server;
mod trouble;
mod watch;

use std::time::{Duration, Instant};

use anyhow::ensure;
use promptq_common::broker::Broker;
use promptq_common::job::{BatchName, Job, Queue};
use promptq_common::work::Work;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::IteratorRandom;
use tempfile::TempDir;

use fleet::Fleet;
use promise::Facts;
pub use rabbit::Ledger;
pub use report::Report;
use server::Server;
pub use server::Stage;
pub use trouble::Troubles;
use trouble::{Forecast, Trouble, Turn};
use watch::Watch;

use crate::provider::Provider;

/// How hard it storms.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// What stands behind the queue.
    pub stage: Stage,
    /// Jobs, of 20 to 200 ms each.
    pub jobs: u64,
    /// Worker processes at once.
    pub workers: usize,
    /// Jobs at once in each.
    pub slots: u32,
    /// How long a worker's leases last; a third of it between two beats.
    pub lease: Duration,
    /// Between two kills of a worker.
    pub between: Duration,
    /// Kills of a worker, at the least.
    pub kills: usize,
    /// What happens to the broker, spread over the storm.
    pub troubles: Troubles,
    /// Draws latencies and victims.
    pub seed: u64,
}

impl Plan {
    /// The storm over the embedded file, of 20,000 jobs.
    pub fn sqlite() -> Self {
        let (lease, between) = (Duration::from_secs(5), Duration::from_secs(1));
        let (jobs, workers, slots, kills) = (20_000, 3, 8, 30);
        Self {
            stage: Stage::Sqlite,
            jobs,
            workers,
            slots,
            lease,
            between,
            kills,
            troubles: Troubles::default(),
            seed: 1,
        }
    }

    /// The storm over a Redis that promises what it can: every write on its disk before it is answered.
    pub fn redis() -> Self {
        let (lease, between) = (Duration::from_secs(3), Duration::from_millis(300));
        let (jobs, workers, slots, kills) = (20_000, 4, 16, 60);
        let troubles = Troubles { kills: 2, ..Troubles::default() };
        Self { stage: Stage::Redis, jobs, workers, slots, lease, between, kills, troubles, seed: 1 }
    }

    /// The same over RabbitMQ. A worker has to find its queues before it works, so that it gets more time to live. Where
    /// each record waits for the disk of this host, fewer slots can be kept busy.
    pub fn rabbitmq(ledger: Ledger) -> Self {
        let (between, kills) = (Duration::from_secs(1), 20);
        let slots = if ledger == Ledger::Redis { 16 } else { 4 };
        Self { stage: Stage::RabbitMq(ledger), between, kills, slots, ..Self::redis() }
    }

    /// A small one, with one kill of RabbitMQ: what it takes to come back outweighs the work.
    pub fn rabbitmq_in_brief(ledger: Ledger) -> Self {
        let troubles = Troubles { kills: 1, ..Troubles::default() };
        Self { jobs: 1_000, kills: 3, troubles, ..Self::rabbitmq(ledger) }
    }

    fn all_slots(&self) -> u64 {
        u64::from(self.slots) * self.workers as u64
    }

    /// Ten times what the calls alone need, a minute for starts and lost leases, and half of one for each trouble.
    fn deadline(&self) -> Duration {
        let troubles = u32::try_from(self.troubles.count()).unwrap_or(u32::MAX);
        Duration::from_millis(self.jobs * 110 / self.all_slots() * 10)
            + Duration::from_secs(60 + 30 * u64::from(troubles))
    }
}

/// One kill, or what else happened to the broker.
#[derive(Clone, Copy, Debug)]
struct Kill {
    at: Instant,
    victim: Victim,
}

#[derive(Clone, Copy, Debug)]
enum Victim {
    Worker {
        generation: u64,
        /// How many calls it had open.
        open: u32,
    },
    Broker(Trouble),
}

/// Between two looks at the ledger.
const LOOK: Duration = Duration::from_millis(20);

/// How long copies of messages that met a claim may be on their way when every job has ended: a lease, and a few steps
/// of the delay queues.
const TIDY: Duration = Duration::from_secs(45);

/// Storms. An error is about the storm itself; broken promises are in the report.
///
/// # Errors
/// When something of the storm cannot be started, or it is not over in time.
pub async fn storm(plan: Plan) -> anyhow::Result<Report> {
    let home = TempDir::new()?;
    let mut server = Server::start(plan.stage, home.path()).await;
    let broker = Broker::connect(&server.access()?).await?;
    let batch = BatchName::new("storm")?;
    submit(&broker, &batch, plan.jobs).await?;
    let provider = Provider::start(plan.seed, 20..=200).await?;
    let mut fleet = Fleet::start(&plan, server.environment(), home.path(), &provider)?;
    let mut watch = Watch::new(&broker, &batch);

    let begun = Instant::now();
    let mut dice = StdRng::seed_from_u64(plan.seed);
    let (mut kills, mut next_kill, mut forecast) = (Vec::new(), begun + plan.between, Forecast::of(plan.troubles));
    let mut look = tokio::time::interval(LOOK);
    while watch.ended() < plan.jobs {
        look.tick().await;
        watch.look().await?;
        fleet.revive()?;
        ensure!(begun.elapsed() < plan.deadline(), "not done in time: {}", fleet.tails());
        match forecast.turn(watch.ended(), plan.jobs) {
            Some(Turn::Begin(trouble)) => {
                kills.push(Kill { at: Instant::now(), victim: Victim::Broker(trouble) });
                server.begin(trouble);
            }
            Some(Turn::End(trouble)) => server.end(trouble),
            None => {}
        }
        // Towards the end there is nothing to fill the slots with, and a kill shows little; so does one of a worker that
        // has not come to work yet.
        let working = |worker: &usize| provider.open_calls(fleet.generation(*worker)) > 0;
        if Instant::now() >= next_kill
            && plan.jobs - watch.ended() > plan.all_slots() * 2
            && let Some(victim) = (0..plan.workers).filter(working).choose(&mut dice)
        {
            let generation = fleet.generation(victim);
            let open = provider.open_calls(generation);
            kills.push(Kill { at: Instant::now(), victim: Victim::Worker { generation, open } });
            fleet.kill_and_restart(victim).await?;
            next_kill = Instant::now().max(next_kill + plan.between);
        }
    }
    let took = begun.elapsed();
    if let Some(trouble) = forecast.present() {
        server.end(trouble);
    }
    watch.until_tidy(TIDY).await?;
    server.rests(TIDY).await;
    fleet.stop().await?;
    let facts = Facts { plan, begun, calls: provider.calls(), kills };
    let mut faults = facts.broken_promises(&watch).await?;
    faults.extend(server.faults(plan.jobs).await);
    Ok(Report::new(facts, took, faults))
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
