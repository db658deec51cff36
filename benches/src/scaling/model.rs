//! What fleets, queues and backlogs cost that nobody here can set up, reckoned from what was measured of smaller ones:
//! everything but a fixed part grows in proportion, which the measured rows show.

use super::Kind;
use super::figures::{Cost, Figures, Fleet, FleetRow};
use super::page::{Table, grouped};
use crate::account::number;

/// Fleets that are reckoned with.
const FLEETS: [usize; 3] = [10, 100, 1_000];
/// What a worker ends a second in the model: 100 calls at a time, of ten seconds each, as long answers of chat models take.
const RATE: f64 = 10.0;
const WAITING: f64 = 100e6;
const QUEUES: f64 = 1_000.0;
const GIB: f64 = 1024.0 * 1024.0 * 1024.0;
const MIB: f64 = 1024.0 * 1024.0;

/// A table for each backend that was measured.
pub(super) fn tables(figures: &Figures) -> String {
    let all = Kind::ALL.into_iter().filter_map(|kind| Some(format!("{kind}\n\n{}\n", table(figures, kind)?)));
    all.collect::<String>().trim_end().to_owned() + "\n"
}

fn table(figures: &Figures, kind: Kind) -> Option<String> {
    let fleet = figures.fleet(kind)?;
    let mut table = Table::new(&["what", "10 workers", "100 workers", "1,000 workers", "from"]);
    for (what, of, from) in lines(kind) {
        let cells = FLEETS.map(|workers| {
            // The nearest that was measured.
            let near = fleet.rows.iter().min_by_key(|row| row.workers.abs_diff(workers));
            // Many more than were measured do not get at one file.
            match near.filter(|row| kind != Kind::Sqlite || workers <= row.workers * 2) {
                Some(row) => of(row, fleet, number(workers)) + if row.workers == workers { "" } else { " *" },
                None => "-".to_owned(),
            }
        });
        table.row(&[&[what.to_owned()], &cells[..], &[from.to_owned()]].concat());
    }
    Some(table.0 + &stocks(figures, kind))
}

type Line = (&'static str, fn(&FleetRow, &Fleet, f64) -> String, &'static str);

const AT_REDIS: [Line; 2] = [
    ("connections at Redis", |row, _, n| whole(row.connections[0] * n), EACH),
    ("calls a second at Redis, idle", |row, _, n| whole(row.idle_calls[0] / number(row.workers) * n), EACH),
];
/// How often a worker looks at each of its queues at Redis while no token comes (`LOOK` in
/// `common/src/broker/redis/source.rs`, nine tenths of it on average), beside one wait for tokens in ten seconds.
const LOOKS: f64 = 1.0 / 4.5;
const AT_RABBIT: [Line; 1] = [("connections at RabbitMQ", |row, _, n| whole(row.connections[1] * n), EACH)];
const AT_SERVERS: [Line; 4] = [
    ("memory of the servers for them, MiB", |row, _, n| whole(row.memory[1] * n / MIB), EACH),
    ("processors of the servers, idle", |row, _, n| share(row.idle[1] / number(row.workers) * n), EACH),
    (
        "calls a second at Redis, busy",
        |row, _, n| whole(row.busy_calls[0] * RATE * n),
        "calls a job, measured, x jobs a second",
    ),
    ("processors of the servers, busy", |row, _, n| busy(row, |cost| cost.theirs, n), JOB),
];
const EVERYWHERE: [Line; 4] = [
    ("jobs a second", |_, _, n| whole(RATE * n), "supposed: 100 calls of 10 s at a time each"),
    ("processors of all workers, idle", |row, _, n| share(row.idle[0] / number(row.workers) * n), EACH),
    ("processors of all workers, busy", |row, _, n| busy(row, |cost| cost.ours, n), JOB),
    ("memory of all workers, MiB", |_, fleet, n| whole(fleet.process * n / MIB), "one process, measured, x workers"),
];
const EACH: &str = "measured for each worker, x workers";
const JOB: &str = "us a drained job, measured, x jobs a second";

fn lines(kind: Kind) -> Vec<Line> {
    match kind {
        Kind::Sqlite => EVERYWHERE.to_vec(),
        Kind::Redis => [&EVERYWHERE[..], &AT_REDIS, &AT_SERVERS].concat(),
        Kind::Rabbit => [&EVERYWHERE[..], &AT_RABBIT, &AT_REDIS, &AT_SERVERS].concat(),
    }
}

/// What waits, and in how many queues.
fn stocks(figures: &Figures, kind: Kind) -> String {
    let mut table = Table::new(&["what", "amount", "from"]);
    let mut rows = 0;
    let mut say = |what: &str, amount: String, from: String| {
        table.row(&[what.to_owned(), amount, from]);
        rows += 1;
    };
    let served = kind != Kind::Sqlite;
    if let Some(row) = figures.filled(kind).and_then(|filled| filled.rows.last()) {
        let from = |bytes: f64| {
            format!("{bytes:.0} bytes a job, measured up to {} waiting, x 100 million", grouped(row.waiting))
        };
        let amount = |bytes: f64| format!("{} GiB", whole(bytes * WAITING / GIB));
        if served {
            say("100 million waiting, memory", amount(row.memory), from(row.memory));
        }
        say("100 million waiting, disk", amount(row.disk), from(row.disk));
    }
    if let (true, Some(row)) = (served, figures.spreading(kind).and_then(|spreading| spreading.rows.last())) {
        let from = format!("{:.1} KiB a queue, measured with {}, x 1,000", row.memory / 1024.0, grouped(row.queues));
        say("1,000 queues, memory", format!("{} MiB", whole(row.memory * QUEUES / MIB)), from);
    }
    if kind == Kind::Redis {
        let from = format!("one wait in 10 s, and each queue every 4.5 s; one queue: {:.2} a second", 0.1 + LOOKS);
        say("an idle worker of 1,000 queues, calls a second", whole(0.1 + LOOKS * QUEUES), from);
    }
    if rows == 0 { String::new() } else { "\n".to_owned() + &table.0 }
}

fn busy(row: &FleetRow, side: fn(Cost) -> f64, n: f64) -> String {
    row.busy.map_or_else(|| "-".to_owned(), |cost| share(side(cost) * RATE * n / 1e6))
}

fn whole(number: f64) -> String {
    // What the noise of a look at memory makes of nothing.
    format!("{:.0}", number.max(0.0))
}

fn share(processors: f64) -> String {
    format!("{processors:.2}")
}
