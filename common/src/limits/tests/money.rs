//! Tests of money as a limit: what is never exceeded whoever dies or is late, and what comes back.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::broker::HoldKey;
use crate::broker::memory::Memory;
use crate::job::{Band, BatchName, JobId, Lane, ModelName, Queue};
use crate::limits::{
    Amounts, Budget, Came, Cap, Denied, Doubt, Limits, Measure, Need, Pass, Per, Pool, Portion, Purse, Reservation,
    Rule, Size, Turned, change, look,
};
use crate::outcome::{Outcome, Reply, Usd};

const CAP: Cap = Cap { measure: Measure::Usd, per: Per::Ever, most: 1_000_000 };

fn need(usd: i64) -> Need {
    Need { amounts: Amounts { usd, ..Amounts::NONE }, doubt: Doubt::default(), output_upfront: false }
}

struct Worker {
    purse: Purse,
    line: VecDeque<(u64, Need)>,
    running: Vec<(Reservation, i64)>,
}

/// Workers on one cap, step by step.
struct World {
    pool: Pool,
    clock: i64,
    workers: Vec<Worker>,
    ids: u64,
    /// What calls that have ended cost, and what those of dead workers may have.
    spent: i64,
}

impl World {
    fn new(workers: usize) -> Self {
        let mut world = Self { pool: Pool::default(), clock: 1_000_000, workers: Vec::new(), ids: 0, spent: 0 };
        for _ in 0..workers {
            let fresh = world.fresh();
            world.workers.push(fresh);
        }
        world
    }

    fn fresh(&mut self) -> Worker {
        self.ids += 1;
        Worker { purse: Purse::new(self.ids, vec![CAP], false), line: VecDeque::new(), running: Vec::new() }
    }

    fn enter(&mut self, at: usize, usd: i64) {
        let worker = &mut self.workers[at];
        let ticket = worker.purse.enter(&need(usd));
        worker.line.push_back((ticket, need(usd)));
    }

    /// Asks; the ask may get lost, and so may the answer.
    fn ask(&mut self, at: usize, is_heard: bool, is_answered: bool, leaves: bool) {
        let worker = &mut self.workers[at];
        let ask = worker.purse.ask(self.clock, &Portion::default(), 0, leaves);
        if is_heard {
            let grant = self.pool.ask(self.clock, &ask);
            if is_answered {
                worker.purse.granted(self.clock, &grant);
            }
        }
    }

    fn take(&mut self, at: usize) -> bool {
        let worker = &mut self.workers[at];
        let Some((ticket, need)) = worker.line.front().copied() else { return false };
        let Some(reservation) = worker.purse.take(self.clock, ticket, &need) else { return false };
        worker.line.pop_front();
        worker.running.push((reservation, need.amounts.usd));
        true
    }

    /// A call ends that cost so many thousandths of its worst.
    fn settle(&mut self, at: usize, which: usize, thousandths: i64) {
        let worker = &mut self.workers[at];
        if worker.running.is_empty() {
            return;
        }
        let (reservation, worst) = worker.running.swap_remove(which % worker.running.len());
        let cost = worst * thousandths / 1_000;
        self.spent += cost;
        worker.purse.settle(self.clock, reservation.costs(cost), Came::Unsent);
    }

    fn die(&mut self, at: usize) {
        let fresh = self.fresh();
        let dead = std::mem::replace(&mut self.workers[at], fresh);
        self.spent += dead.running.iter().map(|(_, worst)| worst).sum::<i64>();
    }

    /// The most that all calls so far may have cost.
    fn may_have_cost(&self) -> i64 {
        let running = self.workers.iter().flat_map(|worker| &worker.running);
        self.spent + running.map(|(_, worst)| worst).sum::<i64>()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_cap_is_never_exceeded_whoever_dies_is_late_or_asks_again(
        steps in prop::collection::vec((0..12_u8, 0..3_usize, 0..1_000_i64), 1..500),
    ) {
        let mut world = World::new(3);
        for (step, at, x) in steps {
            match step {
                0 if world.workers[at].line.len() < 5 => world.enter(at, 1 + x * 300),
                1..=3 => world.ask(at, true, true, false),
                4 => world.ask(at, true, false, false),
                5 => world.ask(at, false, false, false),
                6 | 7 => {
                    world.take(at);
                }
                8 => world.settle(at, usize::try_from(x).unwrap(), x),
                9 => world.clock += x * 14,
                10 if x < 100 => world.die(at),
                11 if x < 50 => {
                    world.ask(at, true, true, false);
                    world.ask(at, true, true, true);
                    world.die(at);
                }
                _ => world.clock += x,
            }
            prop_assert!(world.may_have_cost() <= CAP.most, "{} after {step}", world.may_have_cost());
        }
    }
}

/// Each call may cost a fiftieth of the cap and costs a quarter to all of that; asks and answers get lost now and then.
#[test]
fn a_cap_is_used_up_where_there_is_work_enough() {
    let mut world = World::new(8);
    let mut x = 7_i64;
    for round in 0..4_000 {
        for at in 0..8 {
            x = (x * 1_103_515_245 + 12_345) % (1 << 31);
            if world.workers[at].line.is_empty() {
                world.enter(at, CAP.most / 50);
            }
            world.ask(at, x % 50 > 0, x % 37 > 0, false);
            world.take(at);
            if x % 3 == 0 {
                world.settle(at, 0, 250 + x % 751);
            }
        }
        world.clock += 100 + round % 3;
        assert!(world.may_have_cost() <= CAP.most);
    }
    for at in 0..8 {
        while !world.workers[at].running.is_empty() {
            world.settle(at, 0, 500);
        }
    }
    assert!(world.spent * 100 >= CAP.most * 95, "{}", world.spent);
}

/// Else a store that is away for a while would cost a cap for ever what all workers held meanwhile.
#[test]
fn a_worker_that_was_taken_for_gone_brings_back_what_it_did_not_spend() {
    let mut world = World::new(2);
    world.enter(0, 600_000);
    world.ask(0, true, true, false);
    assert!(world.take(0));
    world.ask(0, true, true, false);
    world.clock += 30_000;
    world.enter(1, 600_000);
    world.ask(1, true, true, false);
    assert!(!world.take(1), "what it held counts as spent");
    assert_eq!(world.pool.view(world.clock).caps[0].used, 600_000);
    world.settle(0, 0, 100);
    world.ask(0, true, true, false);
    let view = world.pool.view(world.clock);
    assert_eq!((view.caps[0].used, view.caps[0].held), (60_000, 0));
    world.clock += 1_000;
    world.ask(1, true, true, false);
    assert!(world.take(1));
}

/// It was heard and not answered, so it is told again, however much later.
#[test]
fn what_was_told_counts_once_though_its_worker_was_taken_for_gone_meanwhile() {
    let mut world = World::new(2);
    world.enter(0, 100_000);
    world.ask(0, true, true, false);
    assert!(world.take(0));
    world.settle(0, 0, 1_000);
    world.ask(0, true, false, false);
    world.clock += 30_000;
    world.ask(1, true, true, false);
    for _ in 0..2 {
        world.ask(0, true, true, false);
    }
    let view = world.pool.view(world.clock);
    assert_eq!((view.caps[0].used, view.caps[0].held), (100_000, 0));
}

#[test]
fn what_a_person_has_to_mend_is_told_under_its_key() {
    let limits = Limits::new();
    let hold = HoldKey::Limit("acme/m".into());
    limits.complain(&hold.to_string(), "no price");
    limits.complain("batch:b", "no price");
    assert_eq!(limits.held().iter().map(|held| held.key.clone()).collect::<Vec<_>>(), ["acme/m", "batch:b"]);
}

fn batch(most: i64) -> Budget {
    Budget::of_batch(&BatchName::new("b").unwrap(), Usd::from_nanos(most))
}

fn lane() -> Lane {
    Lane { queue: Queue::standard(), model: Some(ModelName::new("m")), band: Band::Normal }
}

async fn reserve(limits: &Limits, worst: i64, budgets: &[Budget]) -> Result<Pass, Turned> {
    let pass = limits.admit(&lane(), "acme/m").map_err(|refused| refused.class).unwrap();
    let size = Size { bytes: 10, max_tokens: None };
    limits.reserve_all(pass, &lane(), size, (Some(Usd::from_nanos(worst)), budgets)).await
}

fn cost(nanos: i64) -> Outcome {
    Outcome::Success(Reply { cost: Some(Usd::from_nanos(nanos)), ..Reply::default() })
}

/// A worker's limits, asking for its parts.
async fn with<T>(ledger: &Memory, limits: &Limits, work: impl Future<Output = T>) -> T {
    tokio::select! {
        () = limits.keep_asking(ledger, 0.125) => unreachable!("it asks for ever"),
        done = work => done,
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_spent_is_told_at_once_and_woken_when_the_cap_is_raised() {
    let (ledger, limits) = (Memory::new(), Limits::new());
    let budgets = [batch(100)];
    let work = async {
        let first = reserve(&limits, 60, &budgets).await.unwrap();
        let begun = Instant::now();
        let short = reserve(&limits, 60, &budgets).await.unwrap_err();
        assert!(matches!(&short, Turned::Short { wait, .. } if *wait < Duration::from_secs(21)), "{short:?}");
        assert_eq!(begun.elapsed().as_secs(), 5, "its call may cost less");
        assert!(!limits.held()[0].spent && limits.held()[0].key == "batch:b");
        first.report(JobId::fresh(), &cost(50));
        sleep(Duration::from_secs(1)).await;
        assert!(limits.take_opened().is_empty(), "60 is more than is left");
        let begun = Instant::now();
        let short = reserve(&limits, 60, &budgets).await.unwrap_err();
        let Turned::Short { hold, wait } = short else { panic!("{short:?}") };
        assert_eq!(hold, HoldKey::Batch(BatchName::new("b").unwrap()));
        assert!(wait >= Duration::from_secs(600) && begun.elapsed() < Duration::from_secs(1));
        assert!(limits.held()[0].spent, "{:?}", limits.held());
        assert!(reserve(&limits, 50, &budgets).await.is_ok(), "a smaller one may go");
        change(&ledger, "batch:b", |pool, now| pool.set(now, Measure::Usd, Per::Ever, Some(500))).await.unwrap();
        sleep(Duration::from_secs(6)).await;
        assert_eq!((limits.take_opened(), limits.held().len()), (vec!["batch:b".to_owned()], 0));
        assert!(reserve(&limits, 300, &budgets).await.is_ok());
    };
    with(&ledger, &limits, work).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_not_called_is_given_back_and_what_nobody_knows_is_spent() {
    let (ledger, limits) = (Memory::new(), Limits::new());
    let queue = Budget::of_queue(&Queue::standard(), Cap { per: Per::Day, most: 50, ..CAP });
    let work = async {
        let short = reserve(&limits, 60, &[batch(100), queue.clone()]).await.unwrap_err();
        assert!(matches!(&short, Turned::Short { hold: HoldKey::Budget(name), .. } if name == "default"), "{short:?}");
        assert_eq!(limits.caps(), [(lane(), 0)], "no job like it may be taken");
        let given_up = timeout(Duration::from_millis(1), reserve(&limits, 40, &[batch(100)])).await;
        assert!(given_up.is_err(), "it takes a moment");
        drop(reserve(&limits, 30, &[batch(100)]).await.unwrap());
        sleep(Duration::from_secs(2)).await;
        let caps = look(&ledger, "batch:b").await.unwrap().unwrap().caps;
        assert_eq!((caps[0].used, caps[0].held), (30, 0), "of a call that began nobody knows");
        let running = reserve(&limits, 50, &[batch(100)]).await.unwrap();
        limits.stop_asking(&ledger).await;
        drop(running);
    };
    with(&ledger, &limits, work).await;
    let caps = look(&ledger, "batch:b").await.unwrap().unwrap().caps;
    assert_eq!((caps[0].used, caps[0].held), (80, 0));
}

/// A slot of a worker: calls for as long as there is money, and tells what they cost.
async fn call_all(limits: Limits, spent: Arc<AtomicI64>) {
    while let Ok(pass) = reserve(&limits, 20, &[batch(1_000)]).await {
        sleep(Duration::from_millis(rand::random_range(100..3_000))).await;
        let nanos = rand::random_range(5..=20);
        spent.fetch_add(nanos, Ordering::SeqCst);
        pass.report(JobId::fresh(), &cost(nanos));
    }
}

#[tokio::test(start_paused = true)]
async fn a_fleet_spends_a_batchs_cap_and_no_more() {
    let (ledger, spent) = (Arc::new(Memory::new()), Arc::new(AtomicI64::new(0)));
    let mut tasks = JoinSet::new();
    for _ in 0..4 {
        let (ledger, spent, limits) = (Arc::clone(&ledger), Arc::clone(&spent), Limits::new());
        tasks.spawn(async move {
            let slots: JoinSet<()> = (0..8).map(|_| call_all(limits.clone(), Arc::clone(&spent))).collect();
            with(&ledger, &limits, slots.join_all()).await;
            limits.stop_asking(&*ledger).await;
        });
    }
    tasks.join_all().await;
    let spent = spent.load(Ordering::SeqCst);
    assert!((950..=1_000).contains(&spent), "{spent}");
    let caps = look(&*ledger, "batch:b").await.unwrap().unwrap().caps;
    assert_eq!((caps[0].used, caps[0].held), (spent, 0), "all of it is told");
}

#[tokio::test(start_paused = true)]
async fn an_accounts_own_cap_is_kept_with_its_other_limits() {
    let ledger = Memory::new();
    let caps = vec![Cap { per: Per::Day, most: 100, ..CAP }];
    let limits = Limits::ruled(vec![Rule { key: "acme".to_owned(), caps, adaptive: false }]);
    let work = async {
        limits.seen(std::iter::once(&lane()), |_| Some("acme/m".to_owned()));
        for _ in 0..2 {
            reserve(&limits, 45, &[]).await.unwrap().report(JobId::fresh(), &cost(40));
        }
        let is_told = || limits.held().iter().any(|held| held.key == "acme" && held.spent);
        limits.rest(8);
        for _ in 0..4 {
            limits.seen(std::iter::once(&lane()), |_| Some("acme/m".to_owned()));
            sleep(Duration::from_secs(1)).await;
        }
        assert!(is_told(), "though no job comes that it could turn away");
        assert!(
            matches!(reserve(&limits, 45, &[]).await, Err(Turned::Short { hold: HoldKey::Limit(key), .. }) if key == "acme")
        );
        assert!(is_told(), "{:?}", limits.held());
        sleep(Duration::from_secs(90_000)).await;
        assert!(reserve(&limits, 45, &[]).await.is_ok(), "another day");
    };
    with(&ledger, &limits, work).await;
}

#[tokio::test(start_paused = true)]
async fn all_that_wait_for_an_accounts_money_are_turned_away_together() {
    let (ledger, caps) = (Memory::new(), vec![Cap { per: Per::Day, most: 100, ..CAP }]);
    let limits = Limits::ruled(vec![Rule { key: "acme".to_owned(), caps, adaptive: false }]);
    let work = async {
        let first = reserve(&limits, 90, &[]).await.unwrap();
        let others = async {
            let turned = futures_util::future::join_all((0..20).map(|_| reserve(&limits, 45, &[]))).await;
            assert!(turned.iter().all(|one| matches!(one, Err(Turned::Limit(Denied::Later(_), _)))), "{turned:?}");
        };
        let ((), spent_at) = tokio::join!(others, async {
            sleep(Duration::from_secs(3)).await;
            first.report(JobId::fresh(), &cost(80));
            Instant::now()
        });
        assert!(spent_at.elapsed() < Duration::from_secs(1), "one after the other: {:?}", spent_at.elapsed());
    };
    with(&ledger, &limits, work).await;
}

#[tokio::test(start_paused = true)]
async fn a_cap_on_money_that_people_set_is_kept_where_no_setting_has_one() {
    let ledger = Memory::new();
    let set =
        async |most| change(&ledger, "acme", |pool, now| pool.set(now, Measure::Usd, Per::Day, most)).await.unwrap();
    let caps = vec![Cap { measure: Measure::Requests, per: Per::Minute, most: 6_000 }];
    let limits = Limits::ruled(vec![Rule { key: "acme".to_owned(), caps, adaptive: false }]);
    set(Some(100)).await;
    let work = async {
        let pass = || limits.admit(&lane(), "acme/m").unwrap();
        let unreckoned =
            async || limits.reserve_all(pass(), &lane(), Size { bytes: 9, max_tokens: None }, (None, &[])).await;
        let turned = unreckoned().await.unwrap_err();
        assert!(matches!(&turned, Turned::Limit(Denied::Later(_), key) if key == "acme"), "{turned:?}");
        assert!(limits.is_priced(&pass()), "known from the first answer on");
        reserve(&limits, 60, &[]).await.unwrap().report(JobId::fresh(), &cost(60));
        sleep(Duration::from_secs(2)).await;
        let short = reserve(&limits, 60, &[]).await.unwrap_err();
        assert!(matches!(&short, Turned::Short { hold: HoldKey::Limit(key), .. } if key == "acme"), "{short:?}");
        let caps = look(&ledger, "acme").await.unwrap().unwrap().caps;
        assert_eq!((caps[0].used, caps[0].held, caps[1].used), (60, 0, 1), "what was not called is no request");
        set(None).await;
        sleep(Duration::from_secs(6)).await;
        assert!(!limits.is_priced(&pass()) && unreckoned().await.is_ok());
    };
    with(&ledger, &limits, work).await;
}
