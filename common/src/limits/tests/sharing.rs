//! Sharing one limit key by hand: what each rule of the pool and the purse is for.

use proptest::prelude::*;

use crate::limits::amount::{Amounts, Cap, Measure, Per};
use crate::limits::ask::{Ask, Grant, Heard};
use crate::limits::need::{Doubt, Need, Portion};
use crate::limits::pool::Pool;
use crate::limits::purse::{Came, Purse, Reservation};

pub(super) const MINUTE: i64 = 60_000;

pub(super) fn cap(measure: Measure, per: Per, most: i64) -> Cap {
    Cap { measure, per, most }
}

pub(super) fn requests(most: i64) -> Vec<Cap> {
    vec![cap(Measure::Requests, Per::Minute, most)]
}

pub(super) fn job(input: i64, output: i64) -> Portion {
    Portion { amounts: Amounts::call(input, output), doubt: Doubt::default() }
}

pub(super) fn need(input: i64, output: i64) -> Need {
    Need { amounts: Amounts::call(input, output), doubt: Doubt::default(), output_upfront: false }
}

/// An ask of `jobs` jobs of that size, and the answer.
pub(super) fn ask(pool: &mut Pool, now: i64, purse: &mut Purse, size: &Portion, jobs: u32) -> Grant {
    let ask = purse.ask(now, size, jobs, false);
    let grant = pool.ask(now, &ask);
    purse.granted(now, &grant);
    grant
}

#[test]
fn a_fresh_key_begins_with_a_tenth_and_fills_up_by_the_second() {
    let (mut pool, mut purse) = (Pool::default(), Purse::new(1, requests(600), false));
    assert_eq!(ask(&mut pool, 0, &mut purse, &job(1, 1), 1_000).amounts.requests, 60);
    assert_eq!(purse.room(1, &job(1, 1)), 60);
    for n in 0..20 {
        let ticket = purse.enter(&need(1, 1));
        let _kept = purse.take(n * 50, ticket, &need(1, 1)).expect("granted");
        let early = purse.enter(&need(1, 1));
        assert!(purse.take(n * 50 + 49, early, &need(1, 1)).is_none() && purse.pause(n * 50 + 49) == 1);
        purse.leave(early);
    }
    assert_eq!(purse.room(1_000, &job(1, 1)), 40);
    let second = ask(&mut pool, 1_000, &mut purse, &job(1, 1), 1_000);
    assert_eq!(second.amounts.requests, 51, "what came back, and a sixtieth and a tenth of that");
    assert_eq!(second.short, Some(cap(Measure::Requests, Per::Minute, 600)));
}

#[test]
fn what_is_granted_and_not_used_comes_back_and_is_void_in_time() {
    let (mut pool, mut a, mut b) =
        (Pool::default(), Purse::new(1, requests(600), false), Purse::new(2, requests(600), false));
    ask(&mut pool, 0, &mut a, &job(1, 1), 60);
    assert_eq!(ask(&mut pool, 0, &mut b, &job(1, 1), 60).amounts.requests, 0, "all of it is with the other");
    assert_eq!((a.room(1_999, &job(1, 1)), a.room(2_000, &job(1, 1))), (60, 0));
    ask(&mut pool, 100, &mut a, &job(1, 1), 0);
    assert!(ask(&mut pool, 200, &mut b, &job(1, 1), 60).amounts.requests >= 60);
}

#[test]
fn who_starved_longest_goes_first_with_a_whole_job() {
    let caps = vec![cap(Measure::InputTokens, Per::Minute, 60_000)];
    let (mut pool, mut big, mut small) =
        (Pool::default(), Purse::new(1, caps.clone(), false), Purse::new(2, caps, false));
    ask(&mut pool, 0, &mut small, &job(6_000, 1), 1);
    let ticket = small.enter(&need(6_000, 1));
    let _call = small.take(0, ticket, &need(6_000, 1)).expect("granted");
    assert_eq!(ask(&mut pool, 10, &mut big, &job(5_000, 1), 1).amounts, Amounts::NONE);
    let mut served = None;
    for now in (100..20_000).step_by(100) {
        if served.is_none() && ask(&mut pool, now, &mut big, &job(5_000, 1), 1).amounts.input == 5_000 {
            served = Some(now);
        }
        let later = ask(&mut pool, now, &mut small, &job(50, 1), 1).amounts;
        assert!(served.is_some() || later == Amounts::NONE, "the later one waits at {now}");
    }
    assert!(served.is_some_and(|at| at <= 5_100), "{served:?}");
}

#[test]
fn a_job_larger_than_may_go_at_once_goes_alone_and_is_paid_off() {
    let caps = vec![cap(Measure::InputTokens, Per::Minute, 60_000)];
    let (mut pool, mut purse) = (Pool::default(), Purse::new(1, caps, false));
    assert_eq!(ask(&mut pool, 0, &mut purse, &job(50_000, 1), 3).amounts.input, 50_000);
    let ticket = purse.enter(&need(50_000, 1));
    let call = purse.take(0, ticket, &need(50_000, 1)).expect("granted");
    let mut asks = (1..=50).map(|second| ask(&mut pool, second * 1_000, &mut purse, &job(1_000, 1), 1).amounts.input);
    assert_eq!(asks.position(|granted| granted > 0), Some(40), "it was 44,000 more than a tenth");
    purse.settle(50_000, call, Came::Used { input: 50_000, output: 1 });
    assert_eq!(purse.above(&need(60_001, 1)), Some(cap(Measure::InputTokens, Per::Minute, 60_000)));
    let purse = Purse::new(1, vec![cap(Measure::Tokens, Per::Minute, 1_000)], false);
    assert_eq!((purse.above(&need(900, 500)), purse.within(&need(900, 500)).amounts.output), (None, 100));
    assert!(purse.above(&Need { output_upfront: true, ..need(900, 500) }).is_some());
}

#[test]
fn calls_in_flight_are_bounded_and_those_of_a_dead_worker_for_ten_seconds() {
    let caps = vec![cap(Measure::Concurrent, Per::Moment, 4)];
    let (mut pool, mut a, mut b) = (Pool::default(), Purse::new(1, caps.clone(), false), Purse::new(2, caps, false));
    assert_eq!(ask(&mut pool, 0, &mut a, &job(1, 1), 3).amounts.calls, 3);
    let tickets: Vec<_> = (0..3).map(|_| a.enter(&need(1, 1))).collect();
    let mut calls: Vec<_> = tickets.iter().filter_map(|ticket| a.take(0, *ticket, &need(1, 1))).collect();
    ask(&mut pool, 10, &mut a, &job(1, 1), 0);
    assert_eq!(ask(&mut pool, 20, &mut b, &job(1, 1), 9).amounts.calls, 1);
    ask(&mut pool, 30, &mut b, &job(1, 1), 0);
    a.settle(40, calls.pop().unwrap(), Came::Used { input: 1, output: 1 });
    ask(&mut pool, 50, &mut a, &job(1, 1), 0);
    assert_eq!(ask(&mut pool, 60, &mut b, &job(1, 1), 9).amounts.calls, 2);
    assert_eq!(ask(&mut pool, 9_000, &mut b, &job(1, 1), 9).amounts.calls, 2);
    assert_eq!(ask(&mut pool, 10_050, &mut b, &job(1, 1), 9).amounts.calls, 4);
}

#[test]
fn an_ask_that_was_heard_and_not_answered_is_not_heard_twice() {
    let (mut pool, mut purse) = (Pool::default(), Purse::new(1, requests(600), false));
    ask(&mut pool, 0, &mut purse, &job(1, 1), 10);
    let ticket = purse.enter(&need(1, 1));
    let _call = purse.take(10, ticket, &need(1, 1)).expect("granted");
    let first = purse.ask(100, &job(1, 1), 5, false);
    pool.ask(100, &first);
    let again = purse.ask(200, &job(1, 1), 5, false);
    assert_eq!((again.seq, &again.want), (first.seq, &first.want));
    let grant = pool.ask(200, &again);
    assert_eq!(grant.amounts, Amounts::NONE);
    purse.granted(200, &grant);
    ask(&mut pool, 300, &mut purse, &job(1, 1), 0);
    let view = pool.view(300);
    assert_eq!((view.caps[0].used, view.caps[0].held), (1, 0));
}

#[test]
fn a_day_is_not_dealt_out_by_the_second() {
    let caps = vec![cap(Measure::Tokens, Per::Day, 100_000)];
    let (mut pool, mut purse) = (Pool::default(), Purse::new(1, caps, false));
    assert_eq!(ask(&mut pool, 0, &mut purse, &job(80_000, 10_000), 1).amounts.input, 80_000);
    let ticket = purse.enter(&need(80_000, 10_000));
    let call = purse.take(0, ticket, &need(80_000, 10_000)).expect("granted");
    purse.settle(500, call, Came::Used { input: 80_000, output: 12_000 });
    let grant = ask(&mut pool, 1_000, &mut purse, &job(8_000, 1_000), 1);
    assert_eq!(grant.amounts, Amounts::NONE);
    assert!(grant.wait.is_some_and(|wait| (86_400_000 - 1_000..=86_400_000 + 720_000).contains(&wait)), "{grant:?}");
}

#[test]
fn money_that_calls_hold_may_be_back_soon_and_what_is_spent_with_its_window_alone() {
    let caps = vec![cap(Measure::Usd, Per::Day, 100)];
    let (mut pool, mut a, mut b) = (Pool::default(), Purse::new(1, caps.clone(), false), Purse::new(2, caps, false));
    let dear = Need { amounts: Amounts { usd: 60, ..Amounts::call(1, 1) }, ..need(1, 1) };
    let (ticket, _waits) = (a.enter(&dear), b.enter(&dear));
    ask(&mut pool, 0, &mut a, &job(1, 1), 0);
    let call = a.take(0, ticket, &dear).expect("granted");
    assert_eq!(ask(&mut pool, 100, &mut b, &job(1, 1), 0).wait, Some(0));
    a.settle(200, call.costs(60), Came::Unsent);
    ask(&mut pool, 300, &mut a, &job(1, 1), 0);
    assert!(ask(&mut pool, 400, &mut b, &job(1, 1), 0).wait.is_some_and(|wait| wait > 86_000_000));
}

#[test]
fn a_refusal_freezes_the_key_for_all_and_is_undone_by_people() {
    let (mut pool, mut a, mut b) =
        (Pool::default(), Purse::new(1, requests(600), false), Purse::new(2, requests(600), false));
    ask(&mut pool, 0, &mut a, &job(1, 1), 10);
    let ticket = a.enter(&need(1, 1));
    let call = a.take(10, ticket, &need(1, 1)).expect("granted");
    a.settle(100, call, Came::Refused(Some(5_000)));
    assert_eq!(a.room(100, &job(1, 1)), 0, "this worker at once");
    ask(&mut pool, 150, &mut a, &job(1, 1), 10);
    assert_eq!(ask(&mut pool, 200, &mut b, &job(1, 1), 10).frozen, 4_950);
    let after = ask(&mut pool, 5_250, &mut b, &job(1, 1), 600);
    assert_eq!((after.frozen, after.amounts.requests), (0, 0), "nothing goes at once");
    assert_eq!(ask(&mut pool, 6_150, &mut b, &job(1, 1), 600).amounts.requests, 5, "half of what a second has");
    pool.release(6_200);
    assert_eq!(pool.view(6_200).rate.to_string(), "1");
    pool.set(6_200, Measure::Requests, Per::Minute, Some(30));
    let view = pool.view(6_300);
    assert_eq!((view.caps[0].cap.most, view.caps[0].configured), (30, 600));
    pool.set(6_200, Measure::Requests, Per::Minute, None);
    assert_eq!(pool.view(6_300).caps[0].cap.most, 600);
}

pub(super) fn heard(measure: Measure, most: i64, left: Option<i64>) -> Heard {
    Heard { measure, per: Per::Minute, most, left }
}

#[test]
fn headers_lower_a_limit_and_raise_it_only_where_that_is_wanted() {
    for (adaptive, header, most) in
        [(false, 300, 300), (false, 900, 600), (true, 900, 900), (false, 0, 600), (false, -1, 600)]
    {
        let (mut pool, mut purse) = (Pool::default(), Purse::new(1, requests(600), adaptive));
        purse.hear(0, heard(Measure::Requests, header, None));
        ask(&mut pool, 0, &mut purse, &job(1, 1), 1);
        assert_eq!(pool.view(0).caps[0].cap.most, most, "{adaptive} {header}");
    }
}

#[test]
fn what_others_use_of_the_account_is_seen_in_what_is_left() {
    let (mut pool, mut purse) = (Pool::default(), Purse::new(1, requests(600), false));
    let mut used = |now, left| {
        purse.hear(now, heard(Measure::Requests, 600, Some(left)));
        ask(&mut pool, now, &mut purse, &job(1, 1), 1);
        pool.view(now).caps[0].used
    };
    assert_eq!([used(0, 50), used(900, 100)], [0, 0], "it may be a matter of who counts first");
    assert_eq!([used(1_000, 90), used(2_100, 99)], [500, 500], "the least of it, counted once");
    assert_eq!([used(2_200, 10), used(3_000, 95), used(3_300, 10)], [500; 3], "it was known in between");
}

#[test]
fn what_is_held_for_calls_comes_on_top_of_what_others_use() {
    let caps = vec![cap(Measure::OutputTokens, Per::Minute, 10_000)];
    let (mut pool, mut purse) = (Pool::default(), Purse::new(1, caps, false));
    ask(&mut pool, 0, &mut purse, &job(1, 1_000), 1);
    let ticket = purse.enter(&need(1, 1_000));
    let _call = purse.take(0, ticket, &need(1, 1_000)).expect("granted");
    for now in [100, 1_100] {
        purse.hear(now, heard(Measure::OutputTokens, 10_000, Some(4_000)));
        ask(&mut pool, now, &mut purse, &job(1, 9_000), 1);
    }
    let view = pool.view(1_100).caps[0];
    assert_eq!((view.used, view.held), (6_000, 1_000), "3,000 are left: what is left there, less what is on its way");
}

#[test]
fn what_a_header_said_long_ago_is_not_believed() {
    let (mut pool, mut purse) = (Pool::default(), Purse::new(1, requests(600), false));
    purse.hear(0, heard(Measure::Requests, 300, Some(10)));
    ask(&mut pool, 2_500, &mut purse, &job(1, 1), 1);
    let view = pool.view(2_500).caps[0];
    assert_eq!((view.cap.most, view.used), (300, 0), "what was left two seconds ago says nothing of now");
    let most = |at| pool.view(at).caps[0].cap.most;
    assert_eq!((most(10 * MINUTE - 1), most(10 * MINUTE)), (300, 600), "from when it was said");
}

#[test]
fn an_ask_that_is_made_again_says_how_old_its_headers_are() {
    let mut purse = Purse::new(1, requests(600), false);
    purse.hear(0, heard(Measure::Requests, 300, Some(10)));
    purse.hear(40, heard(Measure::Requests, 200, Some(9)));
    let ages = |ask: Ask| ask.heard.iter().map(|(age, heard)| (*age, heard.most)).collect::<Vec<_>>();
    assert_eq!(ages(purse.ask(100, &job(1, 1), 1, false)), [(60, 200)]);
    assert_eq!(ages(purse.ask(900, &job(1, 1), 1, false)), [(860, 200)]);
}

#[test]
fn a_days_header_is_for_the_days_limit_alone() {
    let caps = vec![cap(Measure::Requests, Per::Minute, 600), cap(Measure::Requests, Per::Day, 50_000)];
    let (mut pool, mut purse) = (Pool::default(), Purse::new(1, caps, false));
    for now in [0, 1_000] {
        purse.hear(now, Heard { per: Per::Day, ..heard(Measure::Requests, 10_000, Some(400)) });
        purse.hear(now, heard(Measure::Requests, 500, None));
        ask(&mut pool, now, &mut purse, &job(1, 1), 1);
    }
    let caps = pool.view(1_000).caps;
    assert_eq!((caps[0].cap.most, caps[0].used), (500, 0));
    assert_eq!((caps[1].cap.most, caps[1].used), (10_000, 9_600));
}

#[test]
fn a_release_is_told_with_its_age() {
    let mut pool = Pool::default();
    assert_eq!(pool.released_for(5_000), None);
    pool.release(5_000);
    assert_eq!(
        (pool.released_for(5_000), pool.released_for(9_000), pool.released_for(4_000)),
        (Some(0), Some(4_000), Some(0))
    );
}

#[test]
fn a_store_whose_clock_goes_back_gives_no_more_for_it() {
    let caps = vec![cap(Measure::InputTokens, Per::Minute, 600)];
    let (mut pool, mut purse) = (Pool::default(), Purse::new(1, caps, false));
    for (here, store, most) in [(0, 9_000_000, 60), (1_000, 8_000_000, 0), (2_000, 8_001_000, 11), (3_000, 7_000, 0)] {
        let ask = purse.ask(here, &job(1, 1), 600, false);
        let grant = pool.ask(store, &ask);
        purse.granted(here, &grant);
        assert!(grant.amounts.input <= most, "{} at {store}", grant.amounts.input);
        for _ in 0..grant.amounts.input {
            let ticket = purse.enter(&need(1, 1));
            let _call = purse.take(here, ticket, &need(1, 1)).expect("granted");
        }
    }
}

/// A purse, the line before it, and the calls in flight.
type Worker = (Purse, Vec<(u64, Need)>, Vec<Reservation>);

/// What a worker of the property below does.
#[derive(Clone, Copy, Debug)]
enum Step {
    Open(i64),
    Ask,
    AnswerLost,
    Settle,
    Die,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (1_i64..900).prop_map(Step::Open),
        6 => Just(Step::Ask),
        2 => Just(Step::AnswerLost),
        6 => Just(Step::Settle),
        1 => Just(Step::Die),
    ]
}

proptest! {
    /// Whatever is lost, repeated or killed, and whenever: with sizes known beforehand no window is ever over.
    #[test]
    fn no_window_is_over_whatever_is_lost(
        steps in prop::collection::vec((0_i64..700, 0_usize..3, step()), 1..500),
    ) {
        let caps = vec![cap(Measure::Requests, Per::Minute, 40), cap(Measure::InputTokens, Per::Minute, 6_000)];
        let (mut pool, mut ids, mut now, mut sent) = (Pool::default(), 0, 5_000_000, Vec::new());
        let mut fresh = || { ids += 1; Purse::new(ids, caps.clone(), false) };
        let mut workers: Vec<Worker> =
            (0..3).map(|_| (fresh(), Vec::new(), Vec::new())).collect();
        for (pause, at, step) in steps {
            now += pause;
            let (purse, line, calls) = &mut workers[at];
            match step {
                Step::Open(size) => line.push((purse.enter(&need(size, 1)), need(size, 1))),
                Step::Ask => { ask(&mut pool, now, purse, &job(100, 1), 4); }
                Step::AnswerLost => {
                    let ask = purse.ask(now, &job(100, 1), 4, false);
                    pool.ask(now, &ask);
                }
                Step::Settle => {
                    if let Some(call) = calls.pop() {
                        purse.settle(now, call, Came::Unknown);
                    }
                }
                Step::Die => {
                    workers[at] = (fresh(), Vec::new(), Vec::new());
                    continue;
                }
            }
            while let Some((ticket, need)) = line.first().copied() {
                let Some(call) = purse.take(now, ticket, &need) else { break };
                line.remove(0);
                calls.push(call);
                sent.push((now, need.amounts.input));
            }
            let window: Vec<i64> = sent.iter().filter(|(at, _)| *at > now - MINUTE).map(|(_, size)| *size).collect();
            prop_assert!(window.len() <= 40 && window.iter().sum::<i64>() <= 6_000, "{window:?}");
        }
    }
}
