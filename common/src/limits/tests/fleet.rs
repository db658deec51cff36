//! Tests of whole workers' limits over one ledger, in paused time: what is asked, granted, reserved and told.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::super::{Cap, Denied, Expected, Limits, Measure, Per, Pool, Refused, Rule, Size, change, look};
use crate::broker::memory::Memory;
use crate::job::{Band, JobId, Lane, ModelName, Queue};
use crate::outcome::{Failure, FailureClass, Outcome, Reply, Usage};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

fn lane(model: &str) -> Lane {
    Lane { queue: Queue::standard(), model: Some(ModelName::new(model)), band: Band::Normal }
}

fn rules(measure: Measure, most: i64) -> Vec<Rule> {
    vec![Rule { key: "acme".to_owned(), caps: vec![Cap { measure, per: Per::Minute, most }], adaptive: false }]
}

fn answered(input_tokens: u64) -> Outcome {
    let usage = Usage { input_tokens, output_tokens: 10, ..Usage::default() };
    Outcome::Success(Reply { status_code: 200, usage, ..Reply::default() })
}

type Sent = Arc<Mutex<Vec<(Instant, u64)>>>;

/// One job from its lease to its end.
async fn call(limits: Limits, lane: Lane, expected: Option<Expected>, sent: Sent, refuses: Arc<AtomicBool>) {
    let Ok(pass) = limits.admit(&lane, "acme/fast") else { return };
    drop(expected);
    let tokens = rand::random_range(100..3_000);
    let size = Size { bytes: usize::try_from(tokens * 36 / 10).unwrap(), max_tokens: Some(100) };
    let Ok(pass) = limits.reserve(pass, &lane, size).await else { return };
    sent.lock().unwrap().push((Instant::now(), tokens));
    sleep(Duration::from_millis(rand::random_range(200..2_000))).await;
    let refusal = Failure::new(FailureClass::Throttled, "rate_limit", "slow down");
    let refusal = Failure { retry_after: Some(3 * SECOND), status_code: Some(429), ..refusal };
    let outcome = if refuses.load(Ordering::SeqCst) { Outcome::Failure(refusal) } else { answered(tokens) };
    pass.report(JobId::fresh(), &outcome);
}

/// Workers that share a ledger, and when they made which calls.
struct Fleet {
    ledger: Arc<Memory>,
    tasks: JoinSet<()>,
    sent: Sent,
    refuses: Arc<AtomicBool>,
}

impl Fleet {
    fn new() -> Self {
        let ledger = Arc::new(Memory::new());
        Self { ledger, tasks: JoinSet::new(), sent: Arc::default(), refuses: Arc::default() }
    }

    /// A worker that always has jobs of the lane.
    fn hire(&mut self, rules: Vec<Rule>, lane: Lane, slots: u32) -> Limits {
        let limits = Limits::ruled(rules);
        let (asking, ledger) = (limits.clone(), Arc::clone(&self.ledger));
        self.tasks.spawn(async move { asking.keep_asking(&*ledger, 0.125).await });
        let (taking, sent, refuses) = (limits.clone(), Arc::clone(&self.sent), Arc::clone(&self.refuses));
        self.tasks.spawn(async move {
            let mut calls = JoinSet::new();
            loop {
                taking.seen(std::iter::once(&lane), |_| Some("acme/fast".to_owned()));
                let free = slots - u32::try_from(calls.len()).unwrap();
                taking.rest(free);
                for _ in 0..free.min(taking.room(&lane)) {
                    let (limits, lane) = (taking.clone(), lane.clone());
                    let (sent, refuses) = (Arc::clone(&sent), Arc::clone(&refuses));
                    let expected = limits.expect(&lane);
                    calls.spawn(call(limits, lane, expected, sent, refuses));
                }
                tokio::select! {
                    () = taking.changed() => drop(taking.take_opened()),
                    Some(_) = calls.join_next() => {}
                    () = sleep(SECOND) => {}
                }
            }
        });
        limits
    }

    /// What was sent in the window before `at`, and the fullest of all windows so far.
    fn windows(&self, of: impl Fn(u64) -> u64) -> (u64, u64) {
        let sent = self.sent.lock().unwrap();
        let (mut first, mut sum, mut worst) = (0, 0, 0);
        for (at, tokens) in sent.iter() {
            sum += of(*tokens);
            while sent[first].0 + MINUTE <= *at {
                sum -= of(sent[first].1);
                first += 1;
            }
            worst = worst.max(sum);
        }
        let last = sent.iter().filter(|(at, _)| at.elapsed() < MINUTE).map(|(_, tokens)| of(*tokens)).sum();
        (last, worst)
    }
}

#[tokio::test(start_paused = true)]
async fn workers_of_two_queues_share_an_account_and_use_all_of_it() {
    let mut fleet = Fleet::new();
    for n in 0..4 {
        let lane = Lane { queue: Queue::new(&format!("q{n}")).unwrap(), ..lane("fast") };
        fleet.hire(rules(Measure::Requests, 300), lane, 16);
    }
    sleep(4 * MINUTE).await;
    let (last, worst) = fleet.windows(|_| 1);
    assert!(last >= 285 && worst <= 300, "{last} {worst}");
}

#[tokio::test(start_paused = true)]
async fn tokens_are_reserved_before_and_settled_after() {
    let mut fleet = Fleet::new();
    for _ in 0..4 {
        fleet.hire(rules(Measure::InputTokens, 400_000), lane("fast"), 64);
    }
    sleep(4 * MINUTE).await;
    let (last, worst) = fleet.windows(|tokens| tokens);
    assert!(last >= 380_000 && worst <= 400_000, "{last} {worst}");
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_is_gone_leaves_its_part_to_the_others() {
    let mut fleet = Fleet::new();
    fleet.hire(rules(Measure::Requests, 300), lane("fast"), 16);
    sleep(MINUTE).await;
    fleet.tasks.shutdown().await;
    fleet.hire(rules(Measure::Requests, 300), lane("fast"), 16);
    sleep(3 * MINUTE).await;
    let (last, worst) = fleet.windows(|_| 1);
    assert!(last >= 285 && worst <= 300, "{last} {worst}");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_holds_all_of_them_back() {
    let mut fleet = Fleet::new();
    let workers = [0; 3].map(|_| fleet.hire(rules(Measure::Requests, 600), lane("fast"), 16));
    sleep(10 * SECOND).await;
    fleet.refuses.store(true, Ordering::SeqCst);
    sleep(SECOND).await;
    fleet.refuses.store(false, Ordering::SeqCst);
    sleep(SECOND).await;
    let before = fleet.sent.lock().unwrap().len();
    sleep(SECOND).await;
    assert_eq!(fleet.sent.lock().unwrap().len(), before, "nobody calls while the key is frozen");
    let view = look(&*fleet.ledger, "acme").await.unwrap().unwrap();
    assert!(view.frozen_for > 0 && view.rate <= 0.5, "{view:?}");
    sleep(30 * SECOND).await;
    assert!(fleet.sent.lock().unwrap().len() > before + 50);
    assert!(workers.iter().any(|limits| limits.held().iter().any(|held| held.key == "acme")), "and says so");
}

#[tokio::test(start_paused = true)]
async fn what_can_never_fit_is_told_at_once_and_what_has_no_room_in_time() {
    let ledger = Memory::new();
    let limits = Limits::ruled(rules(Measure::InputTokens, 1_000));
    let lane = lane("fast");
    let reserve = async |bytes| {
        limits.seen(std::iter::once(&lane), |_| Some("acme/fast".to_owned()));
        let pass = limits.admit(&lane, "acme/fast").map_err(|refused: Refused| refused.class).unwrap();
        limits.reserve(pass, &lane, Size { bytes, max_tokens: None }).await
    };
    let begun = Instant::now();
    assert!(matches!(reserve(360).await.unwrap_err().0, Denied::Later(_)), "nobody asks for it");
    assert_eq!(begun.elapsed().as_secs(), 60);
    let mut asking = std::pin::pin!(limits.keep_asking(&ledger, 0.125));
    let asked = async {
        let (never, key) = reserve(3_604).await.unwrap_err();
        assert!(matches!(never, Denied::Never(cap) if cap.most == 1_000) && key == "acme");
        let raise = |pool: &mut Pool, now: i64| pool.set(now, Measure::InputTokens, Per::Minute, Some(100_000));
        change(&ledger, "acme", raise).await.unwrap();
        sleep(MINUTE).await;
        reserve(3_604).await.is_ok() && reserve(360).await.is_ok()
    };
    tokio::select! {
        () = &mut asking => unreachable!("it asks for ever"),
        reserved = timeout(2 * MINUTE, asked) => assert_eq!(reserved, Ok(true)),
    }
}
