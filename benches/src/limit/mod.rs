//! Limit programs: the least that a queue on these brokers could do, on the drivers that promptq has. Here: what a
//! contestant is, its warm-up, its measured run and the look at what it left behind. The loops are in a file each.

mod amqp;
mod arguments;
mod clock;
mod rabbit;
mod rabbit_ledger;
mod rabbit_queues;
mod rabbit_raw;
mod redis;
mod redis_raw;
mod redis_scripts;
mod rows;
mod run;
mod sqlite;
mod sqlite_rows;

use anyhow::ensure;

pub use arguments::{Arguments, Plan};

use arguments::{Broker, Setting, Verb};
use clock::Stopwatch;

/// One way to move jobs through a broker. Each of its calls does all of so many jobs, and returns when they are done.
trait Contestant {
    /// Puts so many in; each is durable, as far as the broker makes it so, when this returns.
    fn enqueue(&mut self, jobs: usize) -> anyhow::Result<()>;
    /// Takes so many, answers them and ends them.
    fn work(&mut self, jobs: usize) -> anyhow::Result<()>;
    /// Both at once.
    fn live(&mut self, jobs: usize) -> anyhow::Result<()>;
    /// How many have ended with a result, ever; fails where jobs are left in somebody's hands.
    fn settled(&mut self) -> anyhow::Result<usize>;
}

/// Does what was asked for, and gives the line to print.
///
/// # Errors
/// When the broker fails, jobs do not come, or not every job that was worked off has left a result.
pub fn run(plan: &Plan) -> anyhow::Result<String> {
    match plan {
        Plan::Jobs { broker, verb, jobs, warmup, setting } => {
            let mut contestant = contestant(*broker, setting)?;
            let before = contestant.settled()?;
            once(&mut *contestant, *verb, *warmup)?;
            let clock = Stopwatch::start();
            once(&mut *contestant, *verb, *jobs)?;
            let line = clock.stop(*jobs, *verb == Verb::Work)?;
            if *verb != Verb::Enqueue {
                let (ended, due) = (contestant.settled()? - before, warmup + jobs);
                ensure!(ended == due, "{ended} results of {due} jobs are there");
            }
            Ok(line)
        }
        Plan::Rows(rows) => run::run(rows),
    }
}

fn once(contestant: &mut dyn Contestant, verb: Verb, jobs: usize) -> anyhow::Result<()> {
    match verb {
        _ if jobs == 0 => Ok(()),
        Verb::Enqueue => contestant.enqueue(jobs),
        Verb::Work => contestant.work(jobs),
        Verb::Live => contestant.live(jobs),
    }
}

fn contestant(broker: Broker, setting: &Setting) -> anyhow::Result<Box<dyn Contestant>> {
    Ok(match broker {
        Broker::Rabbit => Box::new(rabbit::Rabbit::connect(setting)?),
        Broker::Redis => Box::new(redis::Redis::connect(setting)?),
        Broker::RabbitRaw => Box::new(rabbit_raw::RabbitRaw::connect(setting)?),
        Broker::RedisRaw => Box::new(redis_raw::RedisRaw::new(setting)?),
        Broker::Sqlite => Box::new(sqlite::Sqlite::open(setting)?),
    })
}
