//! A day of an autoscaler, simulated: replicas by what is ready, as KEDA's own scalers count, beside replicas by what
//! `promptq` says it wants. The controller is Kubernetes' HPA with the chart's settings, and takes any replica away.

use std::collections::VecDeque;

use promptq::scale::{Load, workers};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

const DAY: u32 = 86_400;
/// Jobs that a replica runs at once.
const SLOTS: u32 = 8;
/// As many replicas as the provider's limits leave work for.
const MOST: usize = 30;
/// From a replica's order to its first job.
const START: u32 = 30;
/// Between two looks of the controller.
const LOOK: u32 = 15;
/// The most that it wanted within this is what it keeps.
const WINDOW: u32 = 300;
/// A job that waits for longer waits too long.
const AGE: u32 = 60;
/// No job may take longer.
const TIMEOUT: u32 = 540;
const SEED: u64 = 7;

#[derive(Clone, Copy, PartialEq)]
enum Rule {
    /// The jobs that are ready, and as many replicas away at once as are too many: the defaults.
    Ready,
    /// What the stats endpoint says, and one replica away in a minute: the chart's settings.
    Wanted,
}

#[derive(Clone, Copy)]
struct Job {
    since: u32,
    takes: u32,
}

struct Replica {
    up: u32,
    /// Since when it takes no more.
    drains: Option<u32>,
    /// Each with the moment of its end.
    runs: Vec<(u32, Job)>,
}

#[derive(Debug, Default)]
struct Day {
    done: usize,
    interrupted: usize,
    /// Seconds of work that came to nothing.
    wasted: u32,
    /// Seconds during which the oldest ready job was too old.
    too_old: u32,
    /// Seconds of all replicas.
    alive: u64,
}

impl std::fmt::Display for Day {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { done, interrupted, wasted, too_old, alive } = self;
        let (old, wasted, hours) = (too_old / 60, wasted / 60, alive / 3_600);
        write!(f, "{done} jobs, too old for {old} min, {hours} worker-hours, {interrupted} interrupted ({wasted} min)")
    }
}

/// Jobs a second: a day's curve with a spike of ten minutes in the afternoon.
fn rate(at: u32) -> f64 {
    let curve =
        0.2 + (f64::from(at) / f64::from(DAY) * std::f64::consts::TAU - std::f64::consts::FRAC_PI_2).sin().max(0.0);
    if (50_400..51_000).contains(&at) { curve * 6.0 } else { curve }
}

/// A day's jobs, each with its moment.
fn jobs() -> VecDeque<Job> {
    let mut dice = StdRng::seed_from_u64(SEED);
    let mut jobs = VecDeque::new();
    for since in 0..DAY {
        // As many as fit into this second by exponential distances.
        let mut left = 1.0;
        loop {
            left += dice.random::<f64>().max(f64::MIN_POSITIVE).ln() / rate(since);
            if left < 0.0 {
                break;
            }
            // Half a minute in the middle, some many times as long: twelve dice make a bell.
            let bell = (0..12).map(|_| dice.random::<f64>()).sum::<f64>() - 6.0;
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole seconds")]
            let takes = (30.0 * bell.exp()) as u32;
            jobs.push_back(Job { since, takes: takes.clamp(1, TIMEOUT) });
        }
    }
    jobs
}

struct Cluster {
    rule: Rule,
    /// How long a replica that is taken away may finish what it runs.
    grace: u32,
    dice: StdRng,
    replicas: Vec<Replica>,
    ready: VecDeque<Job>,
    /// What the controller wanted lately, and when.
    wanted: VecDeque<(u32, usize)>,
    day: Day,
}

impl Cluster {
    fn new(rule: Rule, grace: u32) -> Self {
        let (replicas, ready, wanted) = (Vec::new(), VecDeque::new(), VecDeque::new());
        Self { rule, grace, dice: StdRng::seed_from_u64(SEED), replicas, ready, wanted, day: Day::default() }
    }

    fn live(mut self, mut coming: VecDeque<Job>) -> Day {
        let all = coming.len();
        for now in 0.. {
            while coming.front().is_some_and(|job| job.since <= now) {
                self.ready.extend(coming.pop_front());
            }
            self.end(now);
            self.begin(now);
            self.day.too_old += u32::from(self.ready.front().is_some_and(|job| now - job.since > AGE));
            self.day.alive += self.replicas.len() as u64;
            if now % LOOK == 0 {
                self.scale(now);
            }
            if self.day.done == all {
                break;
            }
            assert!(now < 2 * DAY, "{} of {all} jobs are done", self.day.done);
        }
        self.day
    }

    fn end(&mut self, now: u32) {
        for replica in &mut self.replicas {
            let running = replica.runs.len();
            replica.runs.retain(|(end, _)| *end > now);
            self.day.done += running - replica.runs.len();
            if replica.drains.is_some_and(|since| now >= since + self.grace) {
                for (end, job) in replica.runs.drain(..) {
                    self.day.interrupted += 1;
                    self.day.wasted += now + job.takes - end;
                    self.ready.push_front(job);
                }
            }
        }
        self.replicas.retain(|replica| replica.drains.is_none() || !replica.runs.is_empty());
    }

    fn begin(&mut self, now: u32) {
        for replica in self.replicas.iter_mut().filter(|replica| replica.drains.is_none() && replica.up <= now) {
            while replica.runs.len() < SLOTS as usize
                && let Some(job) = self.ready.pop_front()
            {
                replica.runs.push((now + job.takes, job));
            }
        }
    }

    fn scale(&mut self, now: u32) {
        let wants = self.wants().min(MOST);
        self.wanted.push_back((now, wants));
        self.wanted.retain(|(at, _)| now - at <= WINDOW);
        let staying: Vec<_> = (0..self.replicas.len()).filter(|place| self.replicas[*place].drains.is_none()).collect();
        let there = staying.len();
        if wants > there {
            let more = wants.min((2 * there).max(there + 4)) - there;
            self.replicas.extend((0..more).map(|_| Replica { up: now + START, drains: None, runs: Vec::new() }));
            return;
        }
        let keeps = self.wanted.iter().map(|(_, wants)| *wants).max().unwrap_or(wants);
        let away = match self.rule {
            Rule::Ready => there.saturating_sub(keeps),
            Rule::Wanted if now.is_multiple_of(60) => there.saturating_sub(keeps).min(1),
            Rule::Wanted => 0,
        };
        for place in staying.sample(&mut self.dice, away) {
            self.replicas[*place].drains = Some(now);
        }
    }

    fn wants(&self) -> usize {
        let ready = self.ready.len();
        if self.rule == Rule::Ready {
            return ready.div_ceil(SLOTS as usize);
        }
        let running = self.replicas.iter().map(|replica| replica.runs.len()).sum::<usize>() as u64;
        let most_at_once = Some((MOST * SLOTS as usize) as f64);
        let load = Load { ready: ready as u64, running, concurrency: SLOTS, most_at_once, ..Load::default() };
        usize::try_from(workers(&load).desired).unwrap()
    }
}

#[test]
#[expect(clippy::print_stdout, reason = "the figures are for people")]
fn a_day_by_what_is_wanted_interrupts_nothing_and_keeps_jobs_younger() {
    let jobs = jobs();
    let [ready, ready_patient, wanted] = [(Rule::Ready, 30), (Rule::Ready, TIMEOUT + 30), (Rule::Wanted, TIMEOUT + 30)]
        .map(|(rule, grace)| Cluster::new(rule, grace).live(jobs.clone()));
    println!("ready only, 30 s of grace:    {ready}");
    println!("ready only, a timeout's:      {ready_patient}");
    println!("wanted, a job's timeout's:    {wanted}");
    assert_eq!((wanted.done, wanted.interrupted), (jobs.len(), 0));
    assert!(ready.interrupted > 100, "what is busy is taken away: {ready}");
    assert!(wanted.too_old < ready_patient.too_old && wanted.too_old < ready.too_old, "{wanted}");
    assert!(wanted.alive < ready_patient.alive * 5 / 4, "for no more than a quarter more: {wanted}");
}
