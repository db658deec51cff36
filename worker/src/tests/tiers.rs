//! Jobs that ask for the flex tier: how long they wait for it, and what becomes of them when their deadline is near. Deadlines
//! are of the clock on the wall, waits of paused time.

use std::sync::atomic::AtomicBool;

use promptq_common::broker::{HoldKey, Verdict};
use promptq_common::job::Extras;
use promptq_common::outcome::Detail;
use promptq_common::price::{Price, Prices};
use promptq_common::time::Timestamp;
use promptq_common::work::Input;

use super::*;
use crate::StopReason;
use crate::asked::Asked;
use crate::reuse::plain_key;
use crate::tier::MOVED;

const HOUR: Duration = Duration::from_secs(3_600);
const MINUTE: Duration = Duration::from_secs(60);

/// A job that asks for flex, has had a day, and has so much time left.
fn flex(text: &str, left: Duration) -> Job {
    let mut flex = job("m", text);
    if let Input::Prompt(prompt) = &mut flex.work.input {
        prompt.params = r#"{"max_tokens":1000,"service_tier":"flex"}"#.into();
    }
    flex.deadline = Timestamp::now() + left;
    flex.created_at = Timestamp::from_millis(flex.deadline.as_millis() - 86_400_000);
    flex
}

/// A model whose flex tier costs half and has no room while it is said to be full. Everything else is served.
fn rig(status: u16) -> (Rig, Arc<Scripted>, Arc<AtomicBool>) {
    let mut rig = Rig::new();
    let full = Arc::new(AtomicBool::new(true));
    let seen = Arc::clone(&full);
    let runner = Scripted::new("acme/m", move |job, _| {
        let tier = Asked::of(&job.work).unwrap().tier();
        if tier.is_some() && seen.load(Ordering::SeqCst) {
            let no_room = Failure::new(FailureClass::Capacity, "resource_unavailable", "no room");
            return Play::Fail(Failure { status_code: Some(status), ..no_room });
        }
        let service_tier = Some(tier.unwrap_or_else(|| "default".into()));
        let usage = Usage { input_tokens: 1_000, output_tokens: 1_000, ..Usage::default() };
        let detail = Detail { service_tier, ..Detail::default() }.kept();
        Play::Reply(Box::new(Reply { status_code: 200, usage, detail, ..Reply::default() }))
    });
    let runner = rig.runs("m", runner);
    let rate = Usd::from_nanos(1_000_000_000);
    let price = Price { flex: Some(50), ..Price::flat(rate, rate) };
    rig.settings.prices = Prices::new([("acme/m".to_owned(), price)], BTreeMap::new());
    (rig, runner, full)
}

fn tier(record: &Record) -> &str {
    record.answer.as_ref().unwrap().detail.as_ref().unwrap().service_tier.as_deref().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_job_without_room_in_the_flex_tier_goes_to_the_standard_one_when_its_deadline_is_near() {
    for status in [429, 498, 503] {
        let (mut rig, runner, _) = rig(status);
        let late = flex("late", 5 * MINUTE);
        rig.broker.enqueue(std::slice::from_ref(&late)).await.unwrap();
        rig.start();
        assert_eq!(rig.ends(&[late.id]).await, [End::Succeeded], "{status}");
        let record = rig.record(late.id).await;
        assert_eq!((runner.started(), tier(&record), record.attempts), (2, "default", 1));
        assert_eq!(record.history.cost, Some(Usd::from_nanos(2_000_000)), "by the tier that the answer names");
        let [refused, moved] = record.history.recent.try_into().expect("two calls");
        assert_eq!(
            (refused.code.as_deref(), refused.detail.as_deref()),
            (Some("resource_unavailable"), Some("no room"))
        );
        assert_eq!((moved.code, moved.detail.as_deref()), (None, Some(MOVED)));
        assert_eq!(rig.board.now().finished.released, 0, "in one lease");
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_with_time_waits_for_the_flex_tier_and_one_that_gets_it_stays_there() {
    let (mut rig, _, full) = rig(429);
    let (early, late) = (flex("early", 20 * HOUR), flex("late", 5 * MINUTE));
    rig.broker.enqueue(std::slice::from_ref(&early)).await.unwrap();
    rig.start();
    rig.shows(|status| status.finished.released >= 3).await;
    assert!(rig.view(early.id).await.record.is_none());
    full.store(false, Ordering::SeqCst);
    assert_eq!(rig.ends(&[early.id]).await, [End::Succeeded]);
    let record = rig.record(early.id).await;
    assert_eq!((tier(&record), record.history.cost), ("flex", Some(Usd::from_nanos(1_000_000))));
    assert_eq!(record.history.recent.last().unwrap().detail, None);
    // There is room again.
    rig.broker.enqueue(std::slice::from_ref(&late)).await.unwrap();
    rig.ends(&[late.id]).await;
    assert_eq!(tier(&rig.record(late.id).await), "flex");
}

#[tokio::test(start_paused = true)]
async fn a_full_flex_tier_holds_nobody_else_back_and_is_asked_now_and_then() {
    let (mut rig, runner, _) = rig(429);
    let early: Vec<_> = (0..100).map(|n| flex(&format!("early {n}"), 20 * HOUR)).collect();
    let late: Vec<_> = (0..20).map(|n| flex(&format!("late {n}"), 5 * MINUTE)).collect();
    let plain = job("m", "plain");
    rig.broker.enqueue(&early).await.unwrap();
    rig.broker.enqueue(&[&late[..], std::slice::from_ref(&plain)].concat()).await.unwrap();
    rig.start();
    let ids: Vec<_> = late.iter().chain([&plain]).map(|job| job.id).collect();
    let began = tokio::time::Instant::now();
    assert_eq!(rig.ends(&ids).await, [End::Succeeded; 21]);
    assert!(began.elapsed() < MINUTE, "{:?}", began.elapsed());
    for id in &ids[..20] {
        assert_eq!(rig.record(*id).await.history.recent.last().unwrap().detail.as_deref(), Some(MOVED));
    }
    assert!(rig.view(early[0].id).await.record.is_none());
    sleep(HOUR).await;
    assert!(runner.started() < 120, "{} calls in an hour", runner.started());
}

#[tokio::test(start_paused = true)]
async fn jobs_that_wait_for_flex_room_are_leased_one_after_another_and_woken_together() {
    let (mut rig, _, full) = rig(429);
    let jobs: Vec<_> = (0..2_000).map(|n| flex(&format!("early {n}"), 20 * HOUR)).collect();
    for some in jobs.chunks(1_000) {
        rig.broker.enqueue(some).await.unwrap();
    }
    let ids: Vec<_> = jobs.iter().map(|job| job.id).collect();
    rig.start();
    sleep(3 * MINUTE).await;
    assert_eq!(rig.view(ids[0]).await.hold, Some(HoldKey::of_flex("acme/m")));
    let before = rig.board.now().finished.released;
    sleep(MINUTE).await;
    let leased = rig.board.now().finished.released - before;
    assert!((300..=900).contains(&leased), "{leased}: ten in a second, not all of them whenever one may ask");
    full.store(false, Ordering::SeqCst);
    let began = tokio::time::Instant::now();
    assert_eq!(rig.ends(&ids).await, [End::Succeeded; 2_000]);
    assert!(began.elapsed() < Duration::from_secs(90), "not by their turns: {:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_starts_leases_what_waits_for_flex_room_by_its_turns() {
    let (mut rig, ..) = rig(429);
    let jobs: Vec<_> = (0..2_000).map(|n| flex(&format!("early {n}"), 20 * HOUR)).collect();
    for some in jobs.chunks(1_000) {
        rig.broker.enqueue(some).await.unwrap();
    }
    rig.start();
    sleep(10 * MINUTE).await;
    rig.drain().await;
    (rig.stop, rig.settings.worker) = (Stop::new(), WorkerId::random("w"));
    rig.start();
    sleep(Duration::from_secs(10)).await;
    let drained = rig.drain().await;
    assert!(drained.finished.released < 300, "all of them were woken: {drained:?}");
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_leaves_when_idle_stays_for_turns_that_another_gave() {
    let (mut rig, _, full) = rig(429);
    full.store(false, Ordering::SeqCst);
    rig.broker.enqueue(&[flex("early", 20 * HOUR)]).await.unwrap();
    let wait = Verdict::Release { after: 5 * MINUTE, hold: Some(HoldKey::of_flex("acme/m")) };
    lease_as(&rig, &WorkerId::random("other")).await.lease.settle(wait).await.unwrap();
    rig.settings.exit_when_idle = Some(Duration::from_secs(1));
    rig.start();
    let drained = rig.left().await;
    assert_eq!((drained.reason, drained.finished.succeeded), (StopReason::Idle, 1), "longer than a lease");
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_was_told_to_wait_for_flex_room_asks_when_another_has_found_some() {
    let (mut rig, full) = (Rig::new(), Arc::new(AtomicBool::new(true)));
    let (seen, first) = (Arc::clone(&full), rig.settings.worker.clone());
    rig.runs(
        "m",
        Scripted::new("acme/m", move |_, cx| {
            if !seen.load(Ordering::SeqCst) {
                return Play::Answer("ok".into());
            }
            // One is told to come back in ten minutes, the other nothing.
            let retry_after = (cx.worker == first).then_some(10 * MINUTE);
            let no_room = Failure::new(FailureClass::Capacity, "resource_unavailable", "no room");
            Play::Fail(Failure { status_code: Some(429), retry_after, ..no_room })
        }),
    );
    let jobs: Vec<_> = (0..2_000).map(|n| flex(&format!("early {n}"), 20 * HOUR)).collect();
    for some in jobs.chunks(1_000) {
        rig.broker.enqueue(some).await.unwrap();
    }
    rig.start();
    (rig.board, rig.settings.worker) = (Board::new(), WorkerId::random("w"));
    rig.start();
    sleep(2 * MINUTE).await;
    full.store(false, Ordering::SeqCst);
    let began = tokio::time::Instant::now();
    let ids: Vec<_> = jobs.iter().map(|job| job.id).collect();
    assert_eq!(rig.ends(&ids).await, [End::Succeeded; 2_000]);
    assert!(began.elapsed() < 2 * MINUTE, "put away again by the one that was not told: {:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn answers_of_calls_that_began_before_the_tier_was_full_wake_nobody() {
    let mut rig = Rig::new();
    let no_room = Failure::new(FailureClass::Capacity, "resource_unavailable", "no room");
    let no_room = Failure { status_code: Some(429), retry_after: Some(10 * MINUTE), ..no_room };
    let runner = rig.runs(
        "m",
        Scripted::new("acme/m", move |job, _| match &job.work.input {
            Input::Prompt(prompt) if prompt.text.starts_with("slow") => Play::After(Duration::from_secs(30)),
            Input::Prompt(_) | Input::Request { .. } => Play::Fail(no_room.clone()),
        }),
    );
    let slow: Vec<_> = (0..4).map(|n| flex(&format!("slow {n}"), 20 * HOUR)).collect();
    rig.broker.enqueue(&slow).await.unwrap();
    rig.start();
    rig.until(async || runner.running() == 4).await;
    let others: Vec<_> = (0..50).map(|n| flex(&format!("other {n}"), 20 * HOUR)).collect();
    rig.broker.enqueue(&others).await.unwrap();
    rig.ends(&slow.iter().map(|job| job.id).collect::<Vec<_>>()).await;
    let before = runner.started();
    sleep(MINUTE).await;
    assert_eq!(rig.faults.woken.load(Ordering::SeqCst), 0);
    assert_eq!(runner.started(), before);
}

#[tokio::test(start_paused = true)]
async fn a_worker_does_not_leave_as_idle_before_the_turns_of_jobs_that_wait_for_flex_room() {
    let (mut rig, runner, full) = rig(429);
    rig.settings.exit_when_idle = Some(Duration::from_secs(1));
    let early = flex("early", 20 * HOUR);
    rig.broker.enqueue(std::slice::from_ref(&early)).await.unwrap();
    rig.start();
    sleep(10 * MINUTE).await;
    assert!(rig.workers.try_join_next().is_none(), "longer than a lease without a job, after {}", runner.started());
    full.store(false, Ordering::SeqCst);
    let drained = rig.left().await;
    assert_eq!((drained.reason, drained.finished.succeeded), (StopReason::Idle, 1));
}

#[tokio::test(start_paused = true)]
async fn a_moved_call_has_to_fit_into_what_the_job_may_cost_at_the_standard_price() {
    for (most, end) in [(900_000, End::Dead), (20_000_000, End::Succeeded)] {
        let (mut rig, runner, _) = rig(429);
        // More than it costs in the flex tier, for its one answer of a thousand tokens.
        let max_cost = Some(Usd::from_nanos(most));
        let late = Job { extras: Extras { max_cost, ..Extras::default() }.kept(), ..flex("late", 5 * MINUTE) };
        rig.broker.enqueue(std::slice::from_ref(&late)).await.unwrap();
        rig.start();
        assert_eq!(rig.ends(&[late.id]).await, [end], "{most}");
        assert_eq!(runner.started(), if end == End::Dead { 0 } else { 2 });
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_of_the_standard_tier_is_none_of_the_flex_tiers() {
    let store = Store::memory();
    let (mut rig, runner, _) = rig(429);
    rig.store = Some(store.clone());
    let asking = || Job { extras: Extras { reuse: Some(HOUR), ..Extras::default() }.kept(), ..flex("q", 5 * MINUTE) };
    let (first, again) = (asking(), asking());
    rig.broker.enqueue(std::slice::from_ref(&first)).await.unwrap();
    rig.start();
    rig.ends(&[first.id]).await;
    let sent = crate::tier::standard(&first).unwrap();
    rig.until(async || store.reusable(&plain_key(&sent)).await.is_ok_and(|kept| kept.is_some())).await;
    assert!(store.reusable(&plain_key(&first)).await.unwrap().is_none());
    let calls = runner.started();
    rig.broker.enqueue(std::slice::from_ref(&again)).await.unwrap();
    assert_eq!(rig.ends(&[again.id]).await, [End::Succeeded]);
    assert_eq!(runner.started(), calls + 1);
}
