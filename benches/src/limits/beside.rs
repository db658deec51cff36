//! A model without limits, one job at a time, alone and beside a backlog of one that is throttled: how much later its calls
//! come for that.

use std::time::{Duration, Instant};

use anyhow::ensure;
use promptq_common::broker::Broker;
use promptq_common::job::{Job, Queue};
use promptq_common::time::Timestamp;
use promptq_common::work::Work;
use rand::RngExt as _;

use super::calls::float;
use super::findings::Finding;
use super::fleet::{Fleet, Post};
use super::prompts::Prompts;
use super::{Form, Seen};
use crate::library::enqueue;
use crate::stage::Kind;

/// Calls before the first that is measured.
const WARM_UP: usize = 10;
/// What nobody notices who waits for a model: the median of calls to common ones is over a second.
const LATER: [(usize, f64); 2] = [(50, 10.0), (99, 100.0)];

/// Which broker, and on RabbitMQ whether each model has lanes of its own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    name: &'static str,
    kind: Kind,
    lanes: bool,
}

pub(super) const PLACES: [Place; 3] = [
    Place { name: "beside: a throttled model, on Redis", kind: Kind::Redis, lanes: false },
    Place { name: "beside: a throttled model, on RabbitMQ, lanes of their own", kind: Kind::Quorum, lanes: true },
    Place { name: "beside: a throttled model, on RabbitMQ, one lane for all", kind: Kind::Quorum, lanes: false },
];

pub(super) async fn measured(form: Form, place: Place) -> Seen {
    (place.name.to_owned(), run(form, place).await)
}

async fn run(form: Form, place: Place) -> anyhow::Result<Vec<Finding>> {
    let jobs = form.of(300, 100, 5);
    let lanes = if place.lanes { "[queues.default]\nmodels = [\"slow\", \"free\"]\n" } else { "" };
    let provider = "[[limits]]\nmodel = \"slow\"\nminute = { requests = 30 }\n";
    let config = format!("{lanes}[limits.\"openai/slow\"]\nrequests = \"30/min\"\n");
    let mut fleet = Fleet::set_up(place.kind, provider, &config).await?;
    if place.lanes {
        fleet.home.start("promptq", &["queues", "declare"])?.ended().await?;
    }
    for number in 0..2 {
        fleet.hire(number, Post { queues: "default", slots: 16 })?;
    }
    let broker = fleet.broker().await?;
    let mut free = Free { broker, came: 0 };
    let alone = free.waits(&mut fleet, jobs).await?;
    let slow = Prompts { model: "slow", tokens: (50, 500), max_tokens: 256, seed: 51 };
    fleet.submit(&slow, form.of(5_000, 2_000, 100), &[]).await?;
    let before = fleet.fake.calls()?.len();
    // The limit is used up at once; whoever is in its way has met it by then.
    fleet.until_called(before + form.of(6, 6, 1)).await?;
    let beside = free.waits(&mut fleet, jobs).await?;
    let slow = fleet.fake.calls()?.iter().filter(|call| call.model == "slow").count();
    ensure!(slow > 0, "the throttled model was never called");
    let mut found = Vec::new();
    for (percent, most) in LATER {
        let (alone, beside) = (at(&alone, percent), at(&beside, percent));
        found.push(Finding::new(&format!("submit to call, alone, p{percent}"), alone, "ms"));
        found.push(Finding::new(&format!("submit to call, beside it, p{percent}"), beside, "ms"));
        found.push(Finding::new(&format!("later beside it, p{percent}"), beside - alone, "ms").at_most(most));
    }
    Ok(found)
}

/// Jobs of the model that has no limits.
struct Free {
    broker: Broker,
    /// Those that came so far.
    came: usize,
}

impl Free {
    /// One after another: how long each took from before its enqueue until its call was at the provider, in milliseconds,
    /// sorted.
    async fn waits(&mut self, fleet: &mut Fleet, jobs: usize) -> anyhow::Result<Vec<f64>> {
        let mut waits = Vec::new();
        for n in 0..jobs + WARM_UP {
            tokio::time::sleep(Duration::from_millis(rand::rng().random_range(20..60))).await;
            let asked = Timestamp::now().as_millis();
            let work = Work::prompt(Some("free"), format!("free {}", self.came));
            enqueue(&self.broker, &[Job::new(Queue::standard(), work)]).await?;
            let called = self.next_call(fleet).await?;
            if n >= WARM_UP {
                waits.push(float((called - asked).max(0).unsigned_abs()));
            }
        }
        waits.sort_by(f64::total_cmp);
        Ok(waits)
    }

    async fn next_call(&mut self, fleet: &mut Fleet) -> anyhow::Result<i64> {
        let began = Instant::now();
        loop {
            let mut calls = fleet.fake.calls()?.iter().filter(|call| call.model == "free");
            if let Some(call) = calls.nth(self.came) {
                self.came += 1;
                return Ok(call.started_ms);
            }
            ensure!(began.elapsed() < Duration::from_secs(60), "no call of the free model within a minute");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// What so many of a hundred do not exceed.
fn at(sorted: &[f64], percent: usize) -> f64 {
    let place = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(place).copied().unwrap_or(f64::INFINITY)
}
