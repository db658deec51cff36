//! Workers, their calls and the shared state of the key, tick by tick. Everything is drawn from a seed.

use std::collections::VecDeque;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::provider::{MINUTE, Provider};
use crate::job::Queue;
use crate::limits::amount::{Amounts, Cap, Measure, Per, float, whole};
use crate::limits::estimate::{Asks, Estimates};
use crate::limits::need::{Need, Portion};
use crate::limits::pool::Pool;
use crate::limits::purse::{Came, Purse, Reservation};

/// What every call says its answer may have at most.
const MAX_TOKENS: u64 = 4_096;
/// Milliseconds between two looks at everything.
const TICK: i64 = 10;

struct Call {
    worker: usize,
    arrives: i64,
    ends: Option<i64>,
    input: i64,
    output: i64,
    bytes: usize,
    reservation: Option<Reservation>,
}

struct Opened {
    ticket: u64,
    need: Need,
    bytes: usize,
    input: i64,
    output: i64,
}

struct Worker {
    purse: Purse,
    estimates: Estimates,
    mean: Portion,
    opened: VecDeque<Opened>,
    running: u32,
    ask_at: i64,
    alive: bool,
}

impl Worker {
    fn busy(&self) -> u32 {
        self.running + u32::try_from(self.opened.len()).unwrap()
    }
}

/// What is simulated.
#[derive(Clone, Copy)]
pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) workers: usize,
    pub(super) slots: u32,
    /// Input tokens, from the first to the second, most of them small.
    pub(super) sizes: (i64, i64),
    /// The true output is the median times something from 1/n to n.
    pub(super) spread: f64,
    pub(super) median: i64,
    /// Milliseconds.
    pub(super) latency: (i64, i64),
    pub(super) headers: bool,
    /// Whether the provider counts the most tokens of an answer as the call arrives, and nothing of it comes back.
    pub(super) upfront: bool,
    /// Tokens that others of the account send each second.
    pub(super) others: i64,
}

impl Plan {
    fn asks<'a>(&self, queue: &'a Queue, bytes: usize) -> Asks<'a> {
        Asks { queue, model: "m", bytes, max_tokens: Some(MAX_TOKENS), output_upfront: self.upfront }
    }
}

pub(super) const PLAN: Plan = Plan {
    seed: 7,
    workers: 8,
    slots: 64,
    sizes: (50, 20_000),
    spread: 3.0,
    median: 200,
    latency: (400, 4_000),
    headers: false,
    upfront: false,
    others: 0,
};

pub(super) struct World {
    plan: Plan,
    caps: Vec<Cap>,
    rng: StdRng,
    pub(super) now: i64,
    pub(super) pool: Pool,
    pub(super) store_is_gone: bool,
    pub(super) provider: Provider,
    workers: Vec<Worker>,
    calls: Vec<Call>,
    ids: u64,
    asks: i64,
}

impl World {
    pub(super) fn new(plan: Plan, limits: &[(Measure, i64)]) -> Self {
        let caps =
            limits.iter().map(|(measure, most)| Cap { measure: *measure, per: Per::Minute, most: *most }).collect();
        let mut world = Self {
            plan,
            caps,
            rng: StdRng::seed_from_u64(plan.seed),
            now: 1_000_000,
            pool: Pool::default(),
            store_is_gone: false,
            provider: Provider::new(limits),
            workers: Vec::new(),
            calls: Vec::new(),
            ids: 0,
            asks: 0,
        };
        for _ in 0..plan.workers {
            world.hire();
        }
        world
    }

    pub(super) fn hire(&mut self) {
        self.ids += 1;
        let start = self.rng.random_range(0..200);
        self.workers.push(Worker {
            purse: Purse::new(self.ids, self.caps.clone(), false),
            estimates: Estimates::default(),
            mean: Portion { amounts: Amounts::call(1_000, 256), ..Portion::default() },
            opened: VecDeque::new(),
            running: 0,
            ask_at: self.now + start,
            alive: true,
        });
    }

    pub(super) fn run(&mut self, length: i64) {
        let end = self.now + length;
        while self.now < end {
            self.now += TICK;
            if self.now % 1_000 == 0 && self.plan.others > 0 {
                self.provider.others(self.now, self.plan.others);
            }
            self.arrivals();
            self.ends();
            for worker in 0..self.workers.len() {
                if self.workers[worker].alive {
                    self.open(worker);
                    self.ask(worker);
                    self.send(worker);
                }
            }
        }
    }

    /// Small ones are many: the logarithm of the size is even.
    fn size(&mut self) -> i64 {
        let (least, most) = self.plan.sizes;
        let (low, high) = (float(least).ln(), float(most).ln());
        whole((low + (high - low) * self.rng.random::<f64>()).exp())
    }

    fn open(&mut self, at: usize) {
        loop {
            let now = self.now;
            let worker = &self.workers[at];
            if worker.busy() >= self.plan.slots || worker.purse.room(now, &worker.mean) == 0 {
                return;
            }
            let input = self.size();
            let factor = self.plan.spread.powf(self.rng.random_range(-1.0..1.0));
            let output = whole(float(self.plan.median) * factor);
            let bytes = usize::try_from(whole(float(input) * self.rng.random_range(3.0..4.5))).unwrap();
            let queue = Queue::standard();
            let asks = self.plan.asks(&queue, bytes);
            let worker = &mut self.workers[at];
            let need = worker.estimates.need(&asks);
            worker.mean = (worker.mean.times(9.0) + need.portion()).times(0.1);
            let ticket = worker.purse.enter(&need);
            worker.opened.push_back(Opened { ticket, need, bytes, input, output });
            self.send(at);
        }
    }

    fn send(&mut self, at: usize) {
        let now = self.now;
        let worker = &mut self.workers[at];
        while let Some(first) = worker.opened.front() {
            let Some(reservation) = worker.purse.take(now, first.ticket, &first.need) else { return };
            let opened = worker.opened.pop_front().unwrap();
            worker.running += 1;
            self.calls.push(Call {
                worker: at,
                arrives: now + self.rng.random_range(20..200),
                ends: None,
                input: opened.input,
                output: opened.output,
                bytes: opened.bytes,
                reservation: Some(reservation),
            });
        }
    }

    fn arrivals(&mut self) {
        let now = self.now;
        for at in 0..self.calls.len() {
            if self.calls[at].ends.is_some() || self.calls[at].arrives > now {
                continue;
            }
            let call = &self.calls[at];
            let output = if self.plan.upfront { MAX_TOKENS } else { 0 };
            let arrives = Amounts { calls: 0, ..Amounts::call(call.input, output.cast_signed()) };
            if self.provider.arrive(now, &arrives) {
                let (least, most) = self.plan.latency;
                let latency = self.rng.random_range(least..most);
                self.calls[at].ends = Some(now + latency);
            } else {
                let heard = if self.plan.headers { self.provider.headers(now) } else { Vec::new() };
                let reservation = self.calls[at].reservation.take();
                let worker = &mut self.workers[self.calls[at].worker];
                worker.running -= 1;
                worker.purse.settle(now, reservation.unwrap(), Came::Refused(Some(2_000)));
                for heard in heard {
                    worker.purse.hear(now, heard);
                }
                self.calls[at].ends = Some(0);
            }
        }
        self.calls.retain(|call| call.ends != Some(0));
    }

    fn ends(&mut self) {
        let now = self.now;
        let (ended, on): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.calls).into_iter().partition(|call| call.ends.is_some_and(|end| end <= now));
        self.calls = on;
        for call in ended {
            let output = if self.plan.upfront { 0 } else { call.output };
            self.provider.count(now, &Amounts { output, ..Amounts::NONE });
            let heard = if self.plan.headers { self.provider.headers(now) } else { Vec::new() };
            let worker = &mut self.workers[call.worker];
            if !worker.alive {
                continue;
            }
            worker.running -= 1;
            let queue = Queue::standard();
            let asks = self.plan.asks(&queue, call.bytes);
            worker.estimates.learn(&asks, call.input.unsigned_abs(), call.output.unsigned_abs());
            worker.purse.settle(now, call.reservation.unwrap(), Came::Used { input: call.input, output: call.output });
            for heard in heard {
                worker.purse.hear(now, heard);
            }
        }
    }

    fn ask(&mut self, at: usize) {
        let now = self.now;
        let worker = &mut self.workers[at];
        if now < worker.ask_at {
            return;
        }
        if self.store_is_gone {
            worker.ask_at = now + 500;
            return;
        }
        let free = self.plan.slots.saturating_sub(worker.busy());
        // Every tenth ask never arrives; every tenth is heard and its answer lost.
        let ask = worker.purse.ask(now, &worker.mean, free, false);
        let fate = self.rng.random_range(0..10);
        self.asks += 1;
        if fate == 0 {
            worker.ask_at = now + TICK;
            return;
        }
        let grant = self.pool.ask(now, &ask);
        worker.ask_at = now + if fate == 1 { TICK } else { grant.again };
        if fate != 1 {
            worker.purse.granted(now, &grant);
        }
    }

    /// Counts from now on.
    pub(super) fn measure(&mut self) {
        self.provider.worst.clear();
        self.provider.total.clear();
        self.provider.counting_since = self.now;
        (self.provider.refused, self.provider.answered, self.asks) = (0, 0, 0);
        self.provider.others = (0, 0);
    }

    /// What was measured of a limit since then.
    pub(super) fn figures(&self, measure: Measure) -> Figures {
        let most = float(self.provider.limits[&measure]);
        let minutes = float(self.now - self.provider.counting_since) / float(MINUTE);
        let calls = self.provider.answered + self.provider.refused;
        Figures {
            used: float(self.provider.total[&measure]) / (most * minutes),
            refused: float(self.provider.refused) / float(calls),
            worst: float(self.provider.worst[&measure]) / most,
            asks_per_second: float(self.asks) / (minutes * 60.0),
            calls,
            others_refused: float(self.provider.others.1) / float(self.provider.others.0.max(1)),
        }
    }

    /// Ends a worker as a kill does: its calls go on at the provider, and nobody hears of them.
    pub(super) fn kill(&mut self, worker: usize) {
        self.workers[worker].alive = false;
    }

    /// Kills one that lives, any of them, and starts another in its place.
    pub(super) fn kill_any(&mut self) {
        let alive: Vec<_> = (0..self.workers.len()).filter(|at| self.workers[*at].alive).collect();
        let victim = alive[self.rng.random_range(0..alive.len())];
        self.kill(victim);
        self.hire();
    }

    /// How much of a limit the fleet takes to be in force.
    pub(super) fn in_force(&self, measure: Measure) -> i64 {
        let view = self.pool.view(self.now);
        view.caps.iter().find(|cap| cap.cap.measure == measure).map_or(0, |cap| cap.cap.most)
    }

    /// What the fleet takes for used or held of a limit, and the provider knows nothing of.
    pub(super) fn leaked(&mut self, measure: Measure) -> i64 {
        let view = self.pool.view(self.now);
        let known = view.caps.iter().find(|cap| cap.cap.measure == measure).map_or(0, |cap| cap.used + cap.held);
        known - self.provider.used(self.now, measure)
    }
}

/// What a fleet made of a limit.
#[derive(Clone, Copy, Debug)]
#[expect(dead_code, reason = "read by people when an assertion fails")]
pub(super) struct Figures {
    /// Share of the limit that was used.
    pub(super) used: f64,
    /// Share of the calls that were refused.
    pub(super) refused: f64,
    /// The fullest minute beside the limit.
    pub(super) worst: f64,
    asks_per_second: f64,
    calls: i64,
    /// Share of the calls of others on the account that were refused.
    pub(super) others_refused: f64,
}
