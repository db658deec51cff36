//! What becomes of a key's caps when settings, people or headers change them while calls run.

use super::sharing::{MINUTE, ask, cap, heard, job, need, requests};
use crate::limits::amount::{Amounts, Measure, Per};
use crate::limits::pool::Pool;
use crate::limits::purse::{Came, Purse};

#[test]
fn workers_with_other_settings_take_no_cap_away_nor_what_it_has_counted() {
    let day = cap(Measure::Tokens, Per::Day, 1_000);
    let both = [requests(600), vec![day]].concat();
    let (mut pool, mut old, mut new) =
        (Pool::default(), Purse::new(1, requests(600), false), Purse::new(2, both, false));
    ask(&mut pool, 0, &mut new, &job(800, 100), 1);
    let ticket = new.enter(&need(800, 100));
    let call = new.take(0, ticket, &need(800, 100)).expect("granted");
    new.settle(500, call, Came::Used { input: 800, output: 100 });
    ask(&mut pool, 1_000, &mut new, &job(1, 1), 0);
    assert_eq!(ask(&mut pool, 1_100, &mut old, &job(200, 1), 1).amounts, Amounts::NONE, "the other has it still");
    assert_eq!(ask(&mut pool, 1_200, &mut new, &job(200, 1), 1).short, Some(day));
    for second in 2..20 {
        let grant = ask(&mut pool, second * 1_000, &mut old, &job(200, 1), 1);
        assert_eq!((grant.amounts.requests == 1, grant.caps.len()), if second < 12 { (false, 2) } else { (true, 1) });
    }
    assert_eq!(ask(&mut pool, 20_000, &mut new, &job(200, 1), 1).short, Some(day), "and again");
    let used = |at| pool.view(at).caps[1].used;
    assert_eq!((used(20_000), used(90_000_000)), (900, 0));
    ask(&mut pool, 90_000_000, &mut old, &job(1, 1), 0);
    assert_eq!(pool.view(90_000_000).caps.len(), 1, "nobody has had it for a day");
}

#[test]
fn what_people_set_is_what_jobs_are_measured_by() {
    let input = |most| cap(Measure::InputTokens, Per::Minute, most);
    let caps = [requests(600), vec![input(1_000)]].concat();
    let (mut pool, mut purse) = (Pool::default(), Purse::new(1, caps, false));
    ask(&mut pool, 0, &mut purse, &job(1, 1), 1);
    assert_eq!(purse.above(&need(1_500, 1)), Some(input(1_000)));
    pool.set(0, Measure::InputTokens, Per::Minute, Some(60_000));
    pool.set(0, Measure::Requests, Per::Minute, Some(60_000));
    ask(&mut pool, 100, &mut purse, &job(1_500, 1), 2);
    assert_eq!((purse.above(&need(1_500, 1)), purse.above(&need(60_001, 1))), (None, Some(input(60_000))));
    let tickets = [1, 2].map(|_| purse.enter(&need(100, 1)));
    ask(&mut pool, 2_000, &mut purse, &job(1, 1), 1);
    assert!(tickets.iter().all(|ticket| purse.take(2_050, *ticket, &need(100, 1)).is_some()), "in one millisecond");
    // Lowered, a job above it may be waited for; and one that is smaller is asked for, whatever they are on average.
    pool.set(2_100, Measure::InputTokens, Per::Minute, Some(500));
    ask(&mut pool, 66_000, &mut purse, &job(800, 1), 3);
    let grant = ask(&mut pool, 66_100, &mut purse, &job(800, 1), 3);
    assert_eq!((grant.amounts.input, purse.room(66_100, &job(800, 1)), purse.above(&need(900, 1))), (500, 1, None));
    pool.set(66_100, Measure::OutputTokens, Per::Minute, Some(9));
    ask(&mut pool, 67_000, &mut purse, &job(1, 1), 1);
    assert_eq!(purse.within(&need(5, 40)).amounts.output, 9);
}

#[test]
fn a_cap_that_no_setting_names_ends_when_it_is_taken_back() {
    let (mut pool, mut purse) = (Pool::default(), Purse::new(1, requests(600), false));
    pool.set(0, Measure::OutputTokens, Per::Minute, Some(9));
    assert_eq!((pool.view(0).caps[0].configured, pool.view(0).caps[0].cap.most), (i64::MAX, 9));
    let granted = |pool: &mut Pool, purse: &mut Purse, now: i64| {
        ask(pool, now, purse, &job(1, 40), 1);
        ask(pool, now + 100, purse, &job(1, 40), 1).amounts.output
    };
    assert_eq!(granted(&mut pool, &mut purse, 0), 9);
    let ticket = purse.enter(&need(1, 10));
    assert!(purse.take(100, ticket, &need(1, 10)).is_none(), "it is kept as one of the settings would be");
    purse.leave(ticket);
    pool.set(1_000, Measure::OutputTokens, Per::Minute, None);
    assert_eq!(pool.view(1_000).caps[0].cap.most, i64::MAX);
    assert_eq!(granted(&mut pool, &mut purse, 1_000), 40);
}

#[test]
fn a_refusal_that_comes_while_an_ask_is_answered_is_not_forgotten() {
    let (mut pool, mut purse) = (Pool::default(), Purse::new(1, requests(600), false));
    ask(&mut pool, 0, &mut purse, &job(1, 1), 10);
    let ticket = purse.enter(&need(1, 1));
    let call = purse.take(10, ticket, &need(1, 1)).expect("granted");
    let asked = purse.ask(100, &job(1, 1), 10, false);
    let grant = pool.ask(100, &asked);
    purse.settle(105, call, Came::Refused(Some(5_000)));
    purse.granted(110, &grant);
    assert_eq!((grant.amounts.requests, purse.room(110, &job(1, 1)), purse.frozen_for(110)), (10, 0, 4_995));
    ask(&mut pool, 200, &mut purse, &job(1, 1), 10);
    pool.release(300);
    ask(&mut pool, 400, &mut purse, &job(1, 1), 10);
    assert_eq!(purse.frozen_for(400), 0, "people have the last word");
}

#[test]
fn a_grant_is_void_so_long_after_it_was_asked_for_however_late_it_came() {
    let (mut pool, mut purse) = (Pool::default(), Purse::new(1, requests(600), false));
    let asked = purse.ask(0, &job(1, 1), 10, false);
    let grant = pool.ask(0, &asked);
    purse.granted(1_500, &grant);
    assert_eq!((purse.room(1_999, &job(1, 1)), purse.room(2_000, &job(1, 1))), (10, 0));
}

#[test]
fn an_answer_counts_no_earlier_than_its_call_began() {
    let caps = vec![cap(Measure::OutputTokens, Per::Minute, 10_000)];
    let (mut pool, mut purse) = (Pool::default(), Purse::new(1, caps, false));
    let mut call = |began: i64, ended: i64| {
        for _ in 0..2 {
            ask(&mut pool, began, &mut purse, &job(1, 10), 1);
        }
        let ticket = purse.enter(&need(1, 10));
        let call = purse.take(began, ticket, &need(1, 10)).expect("granted");
        purse.settle(ended, call, Came::Used { input: 1, output: 10 });
        purse
            .ask(ended, &job(1, 1), 0, false)
            .spent
            .iter()
            .map(|(age, spent)| (ended - age, spent.output))
            .collect::<Vec<_>>()
    };
    for began in [0, 50_000, 100_000] {
        let slow = call(began, began + 40_000);
        assert!(slow.contains(&(began + 125, 10)), "{slow:?}");
    }
    let quick = call(200_000, 201_000);
    assert!(quick.contains(&(200_125, 10)), "{quick:?}");
}

#[test]
fn headers_of_several_models_say_nothing_of_their_key_whichever_workers_heard_them() {
    let (mut pool, mut a, mut b) =
        (Pool::default(), Purse::new(1, requests(600), false), Purse::new(2, requests(600), false));
    let mut hear = |now, purse: &mut Purse, model: &str, most| {
        purse.hear_of(model);
        purse.hear(now, heard(Measure::Requests, most, None));
        ask(&mut pool, now, purse, &job(1, 1), 1);
        pool.view(now).caps[0].cap.most
    };
    assert_eq!([hear(0, &mut a, "fast", 300), hear(100, &mut b, "slow", 10), hear(200, &mut a, "fast", 20)], [300; 3]);
    assert_eq!(hear(10 * MINUTE, &mut a, "fast", 200), 600, "what was said of one is not believed any longer either");
    assert_eq!(hear(10 * MINUTE + 100, &mut a, "fast", 200), 200, "the other has not been heard of for ten minutes");
    b.hear_of("fast");
    b.hear_of("new");
    assert_eq!(hear(11 * MINUTE, &mut b, "third", 10), 200, "two at once");
}
