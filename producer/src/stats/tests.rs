//! What is told of queues, by figures worked out by hand.

use promptq_common::broker::{Broker, HoldKey};
use promptq_common::job::Job;
use promptq_common::ledger::{HeldKey, JobView, Ledger, Pace, Page};
use promptq_common::limits::{Amounts, Ask, Cap, Per, Portion, change};
use promptq_common::outcome::FailureClass;
use promptq_common::work::Work;

use super::held::Seen;
use super::*;
use crate::limits::binding::tests::spent;
use crate::limits::tests::{NOW, standing, told, view, worker};

fn queue_view(ready: u64) -> QueueView {
    QueueView {
        queue: Queue::standard(),
        paused: None,
        depth: Depth { ready, running: 2, oldest_ready: Some(NOW), ..Depth::default() },
    }
}

/// A job of that model, as old as that.
fn waiting(model: Option<&str>, created_at: i64) -> JobView {
    let created_at = Timestamp::from_millis(created_at);
    JobView { model: model.map(str::to_owned), created_at, ..crate::view::tests::waiting() }
}

/// As [`held::shares`], of these jobs.
fn shares(view: &QueueView, waits: &[&Standing], jobs: &[JobView]) -> (Vec<BlockedJobs>, u64) {
    let mut seen = Seen::default();
    seen.look(Page { items: jobs.to_vec(), next: None }, NOW);
    held::shares(view, waits, &seen, NOW)
}

fn pace(keys: &[&str]) -> Pace {
    Pace {
        queue: Queue::standard(),
        over_ms: 10_000,
        ended: 20,
        calls: 20,
        call_ms: 60_000,
        input_tokens: 2_000,
        output_tokens: 0,
        waited_ms: 9_000,
        keys: keys.iter().map(ToString::to_string).collect(),
    }
}

fn told_of(workers: &[WorkerReport], limits: &[Standing], view: QueueView) -> QueueStats {
    stats(view, (Vec::new(), 0), &Around { workers, limits, concurrency: 16, backend: "memory" })
}

#[test]
fn workers_tell_how_fast_a_queue_goes_and_limits_how_many_are_of_use() {
    let reports = [WorkerReport { paces: vec![pace(&["acme/gpt"])], ..worker("w", Vec::new()) }];
    let free = told_of(&reports, &[], queue_view(98));
    assert_eq!((free.consumers, free.concurrency_per_worker, free.unfinished), (1, 4, 100));
    assert_eq!((free.drain_seconds, free.useful_workers, free.desired_workers), (Some(50.0), None, 25));
    let limits = [standing(Some(view((0, 0), (0, 0))), &[])];
    let bound = told_of(&reports, &limits, queue_view(98));
    assert_eq!(bound.useful_workers, Some(7), "500 calls of 3 s in a minute: 25 at once, 4 for each");
    assert_eq!(bound.desired_workers, 7);
    let both = [WorkerReport { paces: vec![pace(&["acme/gpt", "free/x"])], ..worker("w", Vec::new()) }];
    assert_eq!(told_of(&both, &limits, queue_view(98)).useful_workers, None, "the other key has no limit");
    let none = told_of(&[], &[], queue_view(98));
    assert_eq!((none.consumers, none.concurrency_per_worker, none.drain_seconds), (0, 16, None));
    let draining = [WorkerReport { draining: true, ..worker("w", Vec::new()) }];
    assert_eq!(told_of(&draining, &[], queue_view(0)).consumers, 0);
}

#[test]
fn an_age_is_exact_or_says_that_it_is_not() {
    let speed = speed([pace(&[])].iter());
    let now = Timestamp::from_millis(60_000);
    let depth = |oldest_ready| Depth { ready: 100, oldest_ready, ..Depth::default() };
    let since = Some(Timestamp::from_millis(20_000));
    assert_eq!(age(&depth(since), &speed, now), (Some(40.0), AgeSource::Exact));
    assert_eq!(age(&depth(None), &speed, now), (Some(50.0), AgeSource::Estimate), "100 jobs at 2 a second");
    let few = Depth { ready: 2, ..depth(None) };
    assert_eq!(age(&few, &speed, now), (Some(9.0), AgeSource::Estimate), "as long as others have waited");
    assert_eq!(age(&few, &Speed::default(), now), (None, AgeSource::Estimate), "nobody knows");
    assert_eq!(age(&Depth::default(), &Speed::default(), now), (Some(0.0), AgeSource::Exact));
}

#[test]
fn jobs_are_blocked_by_the_gravest_thing_that_holds_their_lane() {
    let held = |key: &str, class, model: &str| {
        let lanes = vec![(Queue::standard(), Some(model.to_owned()))];
        let told = HeldKey { lanes, ..told(key, class, "said so") };
        Standing::new(key.into(), None, &[worker("w", vec![told])], Timestamp::from_millis(100_000))
    };
    let waits = [held("a", FailureClass::Account, "gpt"), held("b", FailureClass::Throttled, "slow")];
    let jobs: Vec<_> = ["gpt", "slow", "slow", "free"].map(|model| waiting(Some(model), 0)).into();
    let (found, _) = shares(&queue_view(400), &waits.iter().collect::<Vec<_>>(), &jobs);
    let found: Vec<_> = found.iter().map(|blocked| (blocked.reason, blocked.jobs)).collect();
    assert_eq!(found, [("account", 100), ("throttled", 200)]);
    let budget = [standing(None, &[])].map(|one| Standing { key: "budget:default".into(), ..one });
    let (found, broke) = shares(&queue_view(4), &[&budget[0]], &[0; 4].map(|at| waiting(None, at)));
    assert_eq!((found[0].reason, found[0].jobs), ("budget", 4), "a budget is of all lanes");
    assert_eq!(broke, 0, "what is left of it may be enough");
}

#[test]
fn what_an_account_has_no_money_for_wants_no_worker_until_something_newer_comes() {
    let account = Standing { key: "acme".into(), ..standing(Some(spent(20_000)), &[]) };
    let back = JobView {
        hold: Some(HoldKey::Limit("acme".into())),
        due: Some(NOW + Duration::from_secs(600)),
        ..waiting(Some("m"), 0)
    };
    let of = |ready: u64, jobs: Vec<JobView>| {
        let (blocked, broke) = shares(&queue_view(ready), &[&account], &jobs);
        let workers = stats(
            QueueView { depth: Depth { ready, oldest_ready: Some(NOW), ..Depth::default() }, ..queue_view(ready) },
            (blocked.clone(), broke),
            &Around { workers: &[], limits: &[], concurrency: 4, backend: "memory" },
        );
        (blocked.into_iter().map(|blocked| (blocked.reason, blocked.jobs)).collect::<Vec<_>>(), workers.desired_workers)
    };
    let old = || waiting(Some("m"), 50_000);
    assert_eq!(of(2, vec![old(), old(), back.clone()]), (vec![("budget", 2)], 0), "the workers have left");
    assert_eq!(of(1, vec![waiting(Some("acme/x"), 0)]), (vec![("budget", 1)], 0), "its name says so");
    let sample = vec![old(), old(), back.clone()];
    assert_eq!(of(22, sample), (vec![("budget", 22)], 1), "nobody knows what the others wait for");
    let newer = waiting(Some("m"), 90_000);
    assert_eq!(of(2, vec![newer, old(), back.clone()]), (vec![("budget", 2)], 1), "nobody has looked at that one");
    let due = JobView { due: Some(NOW), ..old() };
    assert_eq!(of(2, vec![due, old(), back.clone()]), (vec![("budget", 2)], 1), "it was not to be looked at before");
    assert_eq!(of(22, vec![waiting(Some("free"), 0), old(), back]), (vec![("budget", 11)], 3));
}

#[test]
fn a_queue_is_looked_at_no_further_than_its_jobs_can_tell_of() {
    let account = Standing { key: "acme".into(), ..standing(Some(spent(20_000)), &[]) };
    let back =
        |due| JobView { hold: Some(HoldKey::Limit("acme".into())), due: Some(NOW + due), ..waiting(Some("m"), 0) };
    let is_whole = |(ready, delayed): (u64, u64), jobs: &[JobView]| {
        let mut seen = Seen::default();
        seen.look(Page { items: jobs.to_vec(), next: Some("further".into()) }, NOW);
        let depth = Depth { ready, delayed, oldest_ready: Some(NOW), ..Depth::default() };
        seen.is_whole(&QueueView { depth, ..queue_view(0) }, &[&account])
    };
    let two = [waiting(Some("m"), 0), waiting(Some("m"), 0)];
    assert!(is_whole((2, 0), &two), "there are no others");
    assert!(!is_whole((3, 0), &two), "one is further back");
    assert!(!is_whole((2, 1), &two), "the delayed one may have gone back for want of money");
    let [one, other] = two;
    let later = Duration::from_secs(600);
    assert!(is_whole((2, 9), &[one.clone(), other.clone(), back(later)]), "one that did tells of all of its model");
    assert!(is_whole((2, 9), &[one.clone(), back(Duration::ZERO)]), "also once its time has come");
    assert!(is_whole((1, 9), &[waiting(Some("acme/x"), 0)]), "its name says so");
    let free = || waiting(Some("free"), 0);
    assert!(!is_whole((2, 2), &[one.clone(), free(), back(later)]), "nobody knows of this one");
    assert!(is_whole((2, 2), &[one, free(), back(later), back(later)]), "nor will anybody");
}

#[test]
fn where_nobody_tells_which_jobs_are_ready_all_are_looked_at() {
    let account = Standing { key: "acme".into(), ..standing(Some(spent(20_000)), &[]) };
    let broke = |delayed, next: Option<&str>| {
        let mut seen = Seen::default();
        let items = vec![waiting(Some("acme/x"), 0), waiting(Some("acme/x"), 0)];
        seen.look(Page { items, next: next.map(str::to_owned) }, NOW);
        let view = QueueView { depth: Depth { ready: 1, delayed, ..Depth::default() }, ..queue_view(0) };
        (held::shares(&view, &[&account], &seen, NOW).1, seen.is_whole(&view, &[&account]))
    };
    assert_eq!(broke(1, None), (1, false));
    assert_eq!(broke(1, Some("further")), (0, false), "the ready one may be behind those that the server has wait");
    assert_eq!(broke(2, None), (0, false), "one of three was not told of");
}

/// The workers that a queue wants of whose account a worker has left word that it has too little.
async fn wanted_by(broker: &Broker) -> (u64, u64) {
    let seen = look(broker, &[Queue::standard()], &BTreeSet::new(), 16).await.unwrap();
    (seen.queues[0].blocked.iter().map(|blocked| blocked.jobs).sum(), seen.queues[0].desired_workers)
}

async fn leave_word(ledger: &dyn Ledger) {
    let caps = vec![Cap { measure: Measure::Usd, per: Per::Day, most: 100 }];
    let usd = |usd| Amounts { usd, ..Amounts::NONE };
    let least = Portion { amounts: usd(30), ..Portion::default() };
    let ask = Ask { id: 1, seq: 1, caps, spent: vec![(0, usd(80))], least, leaves: true, ..Ask::default() };
    change(ledger, "acme", |pool, now| pool.ask(now, &ask)).await.unwrap();
}

#[tokio::test]
async fn however_many_jobs_an_account_has_no_money_for_they_want_no_worker_unless_one_may_run() {
    for (free, wanted) in [(false, (1_500, 0)), (true, (1_499, 1))] {
        let broker = Broker::memory();
        let created_at = Timestamp::now() - Duration::from_secs(1);
        let job = |model: &str| Job { created_at, ..Job::new(Queue::standard(), Work::prompt(Some(model), "x")) };
        let first = if free { "free/x" } else { "acme/x" };
        broker.enqueue(&[job(first)]).await.unwrap();
        for jobs in [999, 500] {
            broker.enqueue(&vec![(); jobs].into_iter().map(|()| job("acme/x")).collect::<Vec<_>>()).await.unwrap();
        }
        leave_word(broker.ledger()).await;
        assert_eq!(wanted_by(&broker).await, wanted, "the oldest may run: {free}");
    }
}

#[tokio::test]
async fn all_queues_of_one_look_are_looked_at_so_far_and_no_further() {
    let broker = Broker::memory();
    let created_at = Timestamp::now() - Duration::from_secs(1);
    let queues = ["a", "b"].map(|name| Queue::new(name).unwrap());
    for queue in &queues {
        for jobs in [999, 501] {
            let job = |()| Job { created_at, ..Job::new(queue.clone(), Work::prompt(Some("acme/x"), "x")) };
            broker.enqueue(&vec![(); jobs].into_iter().map(job).collect::<Vec<_>>()).await.unwrap();
        }
    }
    leave_word(broker.ledger()).await;
    // A sample and two pages each.
    for (most, wanted, left) in [(5, [0, 0], 1), (3, [0, 1], 0), (0, [1, 1], 0)] {
        let pages = AtomicUsize::new(most);
        let seen = within(&broker, &queues, &BTreeSet::new(), 16, &pages).await.unwrap();
        let mut workers: Vec<_> = seen.queues.iter().map(|stats| stats.desired_workers).collect();
        workers.sort_unstable();
        assert_eq!((workers, pages.into_inner()), (wanted.to_vec(), left), "{most} pages");
    }
}

#[test]
fn what_is_left_of_a_limit_is_what_nobody_has_used_or_holds() {
    let shown = room(&standing(Some(view((200, 10), (80_000, 0))), &[])).unwrap();
    assert_eq!((shown.left["requests"], shown.left["tokens"]), (290.0, 10_000.0));
    assert_eq!(room(&standing(None, &[])), None);
}

#[tokio::test]
async fn a_look_finds_every_queue_and_a_paused_one_blocked() {
    let broker = Broker::memory();
    let names = ["a", "b", "run-x"].map(|name| Queue::new(name).unwrap());
    for queue in &names[..2] {
        broker.enqueue(&[Job::new(queue.clone(), Work::prompt(None, "x"))]).await.unwrap();
    }
    broker.pause(&names[1], Some("why")).await.unwrap();
    let seen = look(&broker, &[], &BTreeSet::new(), 16).await.unwrap();
    let of = |name: &str| seen.queues.iter().find(|stats| stats.queue.as_str() == name).unwrap();
    assert_eq!((of("a").ready, of("a").desired_workers, of("a").blocked.len()), (1, 1, 0));
    let blocked = BlockedJobs { reason: "paused", jobs: 1, until: None };
    assert_eq!((of("b").desired_workers, &of("b").blocked), (0, &vec![blocked]));
    let one = look(&broker, &names[..1], &BTreeSet::new(), 16).await.unwrap();
    assert_eq!(one.queues.len(), 1);
    let json = serde_json::to_value(&one.queues[0]).unwrap();
    assert_eq!(
        (&json["age_source"], &json["backend"], &json["unfinished"]),
        (&"exact".into(), &"memory".into(), &1.into())
    );
}

#[tokio::test]
async fn without_names_only_the_first_queues_are_looked_at() {
    let broker = Broker::memory();
    let names: Vec<_> = (0..SHOWN + 2).map(|n| Queue::new(&format!("q-{n:03}")).unwrap()).collect();
    for queue in names.iter().rev() {
        broker.enqueue(&[Job::new(queue.clone(), Work::prompt(None, "x"))]).await.unwrap();
    }
    let seen = look(&broker, &[], &BTreeSet::new(), 16).await.unwrap();
    let found: Vec<_> = seen.queues.iter().map(|stats| &stats.queue).collect();
    assert_eq!((found, seen.left_out), (names[..SHOWN].iter().collect(), 2));
    let nobodys = Queue::new("nobodys").unwrap();
    let asked = [nobodys.clone(), names[3].clone()];
    let seen = look(&broker, &asked, &BTreeSet::new(), 16).await.unwrap();
    let found: Vec<_> = seen.queues.iter().map(|stats| (&stats.queue, stats.ready)).collect();
    assert_eq!((found, seen.unknown), (vec![(&nobodys, 0), (&names[3], 1)], vec![nobodys.clone()]));
    let by_settings = BTreeSet::from([names[SHOWN + 1].clone()]);
    let seen = look(&broker, &[], &by_settings, 16).await.unwrap();
    let found: Vec<_> = seen.queues.iter().map(|stats| &stats.queue).collect();
    let shown: Vec<_> = by_settings.iter().chain(&names[..SHOWN - 1]).collect();
    assert_eq!((found, seen.left_out), (shown, 2), "whatever the settings name comes first");
    let last = look(&broker, &names[SHOWN..], &BTreeSet::new(), 16).await.unwrap();
    assert_eq!((last.queues.len(), last.left_out), (2, 0));
}

#[tokio::test]
async fn a_queue_that_the_settings_name_is_there_before_its_first_job() {
    let broker = Broker::memory();
    let [used, named] = ["used", "named"].map(|name| Queue::new(name).unwrap());
    broker.enqueue(&[Job::new(used.clone(), Work::prompt(None, "x"))]).await.unwrap();
    let by_settings = BTreeSet::from([named.clone(), used.clone()]);
    let seen = look(&broker, &[], &by_settings, 16).await.unwrap();
    let found: Vec<_> =
        seen.queues.iter().map(|stats| (&stats.queue, stats.unfinished, stats.desired_workers)).collect();
    assert_eq!(found, [(&named, 0, 0), (&used, 1, 1)]);
    let asked = look(&broker, std::slice::from_ref(&used), &by_settings, 16).await.unwrap();
    assert_eq!(asked.queues.len(), 1, "whoever asks for some is shown no others");
}
