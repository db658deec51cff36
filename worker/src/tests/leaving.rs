//! How a worker leaves, and what it leaves behind.

use promptq_common::record::State;
use promptq_common::time::Timestamp;

use super::*;
use crate::StopReason;

#[tokio::test(start_paused = true)]
async fn draining_takes_no_more_and_lets_what_runs_finish() {
    let mut rig = Rig::new();
    rig.settings.concurrency = 2;
    let runner = rig.runs("m", Scripted::new("m", |_, _| Play::After(Duration::from_secs(20))));
    let ids = rig.submit("m", 5).await;
    rig.start();
    rig.until(async || runner.running() == 2).await;
    let drained = rig.drain().await;
    assert_eq!((drained.reason, drained.exit_code(), drained.finished.succeeded), (StopReason::Signal, 0, 2));
    assert_eq!(runner.started(), 2);
    let mut waiting = 0;
    for id in ids {
        waiting += u32::from(rig.view(id).await.state == State::Queued);
    }
    assert_eq!(waiting, 3);
}

#[tokio::test(start_paused = true)]
async fn when_the_drain_time_is_over_paid_calls_spend_an_attempt_and_others_nothing() {
    let mut rig = Rig::new();
    let paid = rig.runs("paid", Scripted::new("paid", |_, _| Play::Forever));
    let free = rig.runs("free", Scripted { billed: false, ..Scripted::new("free", |_, _| Play::Forever) });
    let (paid_id, free_id) = (rig.submit("paid", 1).await[0], rig.submit("free", 1).await[0]);
    rig.start();
    rig.until(async || paid.running() + free.running() == 2).await;
    let asked = tokio::time::Instant::now();
    let drained = rig.drain().await;
    assert!((25..=26).contains(&asked.elapsed().as_secs()), "{:?}", asked.elapsed());
    assert_eq!((drained.reason, drained.handed_back, drained.exit_code()), (StopReason::DeadlinePassed, 2, 124));
    let (paid, free) = (rig.view(paid_id).await, rig.view(free_id).await);
    assert_eq!((paid.attempts, paid.state, paid.deaths), (1, State::Retrying, 0));
    assert_eq!((free.attempts, free.state, free.deaths), (0, State::Queued, 0));
}

#[tokio::test(start_paused = true)]
async fn the_second_signal_leaves_at_once() {
    let mut rig = Rig::new();
    let runner = rig.runs("m", Scripted::new("m", |_, _| Play::Forever));
    rig.submit("m", 1).await;
    rig.start();
    rig.until(async || runner.running() == 1).await;
    rig.stop.drain();
    sleep(Duration::from_secs(1)).await;
    rig.stop.now();
    let asked = tokio::time::Instant::now();
    let drained = rig.left().await;
    assert_eq!((drained.reason, drained.handed_back, drained.exit_code()), (StopReason::Now, 1, 124));
    assert!(asked.elapsed() < Duration::from_secs(1));
    assert_eq!(runner.running(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_stop_at_once_costs_no_job_a_death() {
    let mut rig = Rig::new();
    let paid = rig.runs("paid", Scripted::new("paid", |_, _| Play::Forever));
    let free = rig.runs("free", Scripted { billed: false, ..Scripted::new("free", |_, _| Play::Forever) });
    let (paid_id, free_id) = (rig.submit("paid", 1).await[0], rig.submit("free", 1).await[0]);
    rig.start();
    rig.until(async || paid.running() + free.running() == 2).await;
    rig.stop.now();
    let drained = rig.left().await;
    assert_eq!((drained.reason, drained.handed_back, drained.exit_code()), (StopReason::Now, 2, 124));
    let (paid, free) = (rig.view(paid_id).await, rig.view(free_id).await);
    assert_eq!((paid.attempts, paid.state, paid.deaths), (1, State::Retrying, 0));
    assert_eq!((free.attempts, free.state, free.deaths), (0, State::Queued, 0));
    assert!(rig.broker.ledger().workers().await.unwrap().is_empty(), "it has left");
}

#[tokio::test(start_paused = true)]
async fn a_stop_at_once_waits_a_second_for_a_broker_that_takes_nothing_back() {
    let mut rig = Rig::new();
    let runner = rig.runs("m", Scripted::new("m", |_, _| Play::Forever));
    rig.submit("m", 1).await;
    rig.start();
    rig.until(async || runner.running() == 1).await;
    Faults::set(&rig.faults.settle, true);
    rig.stop.now();
    let asked = tokio::time::Instant::now();
    let drained = rig.left().await;
    assert_eq!((drained.reason, drained.handed_back), (StopReason::Now, 1));
    assert!((900..=1_100).contains(&asked.elapsed().as_millis()), "{:?}", asked.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_idle_worker_waits_for_what_the_dead_have_left() {
    let mut rig = idle();
    let id = rig.submit("m", 1).await[0];
    drop(lease_as(&rig, &WorkerId::random("dead")).await);
    rig.start();
    let drained = rig.left().await;
    assert_eq!((drained.reason, drained.finished.succeeded), (StopReason::Idle, 1));
    assert_eq!(rig.view(id).await.deaths, 1);
    assert!(rig.broker.ledger().workers().await.unwrap().is_empty(), "it has left");
}

#[tokio::test(start_paused = true)]
async fn a_long_job_of_another_does_not_hold_an_idle_worker_for_ever() {
    let mut rig = idle();
    rig.submit("m", 1).await;
    let delivery = lease_as(&rig, &WorkerId::random("busy")).await;
    let began = tokio::time::Instant::now();
    rig.start();
    let drained = tokio::select! {
        drained = rig.workers.join_next() => drained.unwrap().unwrap().unwrap(),
        () = async {
            loop {
                sleep(Duration::from_secs(10)).await;
                delivery.lease.beat().await.unwrap();
            }
        } => unreachable!("it beats for ever"),
    };
    assert_eq!((drained.reason, drained.finished.ended()), (StopReason::Idle, 0));
    assert!((48..=50).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_idle_worker_waits_for_a_job_due_within_its_time_and_a_lease_and_no_longer() {
    let due_after = |seconds| {
        let mut job = job("m", "later");
        job.not_before = Some(Timestamp::now() + Duration::from_secs(seconds));
        job
    };
    for (seconds, succeeded) in [(30, 1), (600, 0)] {
        let mut rig = idle();
        rig.broker.enqueue(&[due_after(seconds)]).await.unwrap();
        rig.start();
        let drained = rig.left().await;
        assert_eq!((drained.reason, drained.finished.succeeded), (StopReason::Idle, succeeded), "{seconds} s");
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_cannot_ask_what_is_left_is_not_idle_yet() {
    let mut rig = idle();
    Faults::set(&rig.faults.depth, true);
    let began = tokio::time::Instant::now();
    rig.start();
    sleep(Duration::from_secs(100)).await;
    assert!(rig.workers.try_join_next().is_none());
    Faults::set(&rig.faults.depth, false);
    assert_eq!(rig.left().await.reason, StopReason::Idle);
    assert!((100..=102).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}

/// One that leaves after three idle seconds.
fn idle() -> Rig {
    let mut rig = Rig::new();
    rig.settings.exit_when_idle = Some(Duration::from_secs(3));
    rig.runs("m", Scripted::new("m", |_, _| Play::Answer("ok".into())));
    rig
}

#[tokio::test(start_paused = true)]
async fn a_stop_asked_for_before_the_start_is_heard() {
    let mut rig = Rig::new();
    rig.stop.drain();
    rig.submit("mock", 1).await;
    rig.start();
    assert_eq!(rig.left().await.finished.ended(), 0);
}

#[tokio::test(start_paused = true)]
async fn idle_once_and_a_number_of_jobs_end_a_worker() {
    type Change = fn(&mut Settings);
    let cases: [(StopReason, Change, u64); 3] = [
        (StopReason::Idle, |settings| settings.exit_when_idle = Some(Duration::from_secs(3)), 5),
        (StopReason::Once, |settings| settings.once = true, 5),
        (StopReason::MaxJobs, |settings| settings.max_jobs = Some(3), 3),
    ];
    for (reason, change, jobs) in cases {
        let mut rig = Rig::new();
        change(&mut rig.settings);
        rig.runs("m", Scripted::new("m", |_, _| Play::After(Duration::from_secs(10))));
        rig.submit("m", 5).await;
        rig.start();
        let drained = rig.left().await;
        assert_eq!((drained.reason, drained.finished.succeeded, drained.exit_code()), (reason, jobs, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_takes_no_records_is_given_up_too() {
    let mut rig = Rig::new();
    rig.settings.concurrency = 1;
    rig.settings.give_up = Duration::from_secs(60);
    rig.runs("m", Scripted::new("m", |_, _| Play::Answer("ok".into())));
    Faults::set(&rig.faults.settle, true);
    rig.submit("m", 1).await;
    rig.start();
    let drained = rig.left().await;
    assert_eq!((drained.reason, drained.handed_back, drained.exit_code()), (StopReason::BackendLost, 1, 7));
}

#[tokio::test(start_paused = true)]
async fn a_broker_out_of_reach_is_waited_for_and_then_given_up() {
    let mut rig = Rig::new();
    rig.settings.give_up = Duration::from_secs(60);
    rig.runs("m", Scripted::new("m", |_, _| Play::Answer("ok".into())));
    rig.start();
    rig.shows(|status| status == &Status::default()).await;
    sleep(Duration::from_secs(5)).await;
    Faults::set(&rig.faults.next, true);
    sleep(Duration::from_secs(40)).await;
    assert!(!rig.board.now().blocked.is_empty());
    Faults::set(&rig.faults.next, false);
    let ids = rig.submit("m", 1).await;
    assert_eq!(rig.ends(&ids).await, [End::Succeeded]);
    Faults::set(&rig.faults.next, true);
    let lost = tokio::time::Instant::now();
    let drained = rig.left().await;
    assert_eq!((drained.reason, drained.exit_code()), (StopReason::BackendLost, 7));
    assert!((60..=64).contains(&lost.elapsed().as_secs()), "{:?}", lost.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_may_take_nothing_leaves_and_one_that_might_before_waits() {
    let mut rig = Rig::new();
    Faults::set(&rig.faults.denied, true);
    rig.start();
    let drained = rig.left().await;
    assert_eq!((drained.reason, drained.exit_code()), (StopReason::Refused, 2));

    let mut rig = Rig::new();
    rig.runs("m", Scripted::new("m", |_, _| Play::Answer("ok".into())));
    let ids = rig.submit("m", 1).await;
    rig.start();
    assert_eq!(rig.ends(&ids).await, [End::Succeeded]);
    Faults::set(&rig.faults.denied, true);
    sleep(Duration::from_secs(40)).await;
    Faults::set(&rig.faults.denied, false);
    let ids = rig.submit("m", 1).await;
    assert_eq!(rig.ends(&ids).await, [End::Succeeded]);
}
