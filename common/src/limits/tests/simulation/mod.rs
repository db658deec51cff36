//! A fleet on one limit key against a provider with true sliding windows, in simulated time: what the limits are worth.

mod provider;
mod world;

use crate::limits::amount::Measure;
use provider::MINUTE;
use world::{Figures, PLAN, Plan, World};

/// The second to the sixth minute.
fn steady(plan: Plan, limits: &[(Measure, i64)], binding: Measure) -> Figures {
    let mut world = World::new(plan, limits);
    world.run(MINUTE);
    world.measure();
    world.run(5 * MINUTE);
    world.figures(binding)
}

/// At least 95 % used, at most 0.5 % refused, no minute over the limit.
#[track_caller]
fn assert_kept(figures: Figures) {
    assert!(figures.used >= 0.95 && figures.refused <= 0.005 && figures.worst <= 1.0, "{figures:?}");
}

/// 8 workers, prompts of 50 to 20,000 tokens, whichever limit binds.
#[test]
fn a_fleet_uses_its_limit_and_is_never_over() {
    for (limits, binding) in [
        (vec![(Measure::Requests, 500), (Measure::InputTokens, 100_000_000)], Measure::Requests),
        (vec![(Measure::Requests, 500), (Measure::InputTokens, 400_000)], Measure::InputTokens),
        (vec![(Measure::InputTokens, 4_000_000)], Measure::InputTokens),
        (vec![(Measure::Requests, 10_000), (Measure::Tokens, 1_000_000)], Measure::Tokens),
    ] {
        for seed in 1..4 {
            assert_kept(steady(Plan { seed, ..PLAN }, &limits, binding));
        }
    }
}

/// Answers of a third to three times what most come to; the output is what binds.
#[test]
fn answers_that_nobody_could_foresee_do_not_break_the_limit() {
    for seed in 1..4 {
        let plan = Plan { seed, sizes: (50, 500), median: 600, ..PLAN };
        assert_kept(steady(plan, &[(Measure::OutputTokens, 400_000)], Measure::OutputTokens));
    }
}

/// Half a second to twenty: what counts when it has come cannot be placed exactly, and the difference is left unused.
#[test]
fn answers_that_come_when_they_like_cost_some_of_the_limit_and_never_break_it() {
    for seed in 1..4 {
        let plan = Plan { seed, sizes: (50, 500), median: 600, latency: (500, 20_000), slots: 400, ..PLAN };
        let figures = steady(plan, &[(Measure::OutputTokens, 400_000)], Measure::OutputTokens);
        assert!(figures.used >= 0.85 && figures.refused <= 0.005 && figures.worst <= 1.0, "{figures:?}");
    }
}

/// With nothing to learn from: the first answers are three times as long as was reserved.
#[test]
fn the_first_minute_is_not_over_when_every_guess_is_a_third_of_the_truth() {
    let plan = Plan { sizes: (50, 500), median: 3_072, spread: 1.0, ..PLAN };
    let mut world = World::new(plan, &[(Measure::OutputTokens, 400_000)]);
    world.run(2 * MINUTE);
    let figures = world.figures(Measure::OutputTokens);
    assert!(figures.worst <= 1.0 && figures.refused <= 0.005, "{figures:?}");
}

#[test]
fn workers_killed_at_any_moment_leave_the_limit_kept_and_used() {
    for seed in 1..4 {
        let mut world =
            World::new(Plan { seed, ..PLAN }, &[(Measure::Requests, 2_000), (Measure::InputTokens, 1_000_000)]);
        world.run(MINUTE);
        world.measure();
        for _ in 0..10 {
            world.run(MINUTE / 2);
            world.kill_any();
        }
        assert_kept(world.figures(Measure::InputTokens));
    }
}

#[test]
fn a_minute_after_a_fleet_was_killed_less_than_a_hundredth_of_its_limit_is_gone() {
    for (measure, most) in [(Measure::Requests, 500), (Measure::InputTokens, 400_000), (Measure::Tokens, 400_000)] {
        let mut world = World::new(PLAN, &[(measure, most)]);
        world.run(3 * MINUTE);
        (0..8).for_each(|worker| world.kill(worker));
        world.run(MINUTE);
        let leaked = world.leaked(measure);
        assert!(leaked * 100 < most, "{leaked} of {most} {}", measure.as_str());
    }
}

#[test]
fn without_its_store_a_fleet_calls_less_and_never_more() {
    let mut world = World::new(PLAN, &[(Measure::Requests, 500), (Measure::InputTokens, 400_000)]);
    world.run(MINUTE);
    world.measure();
    world.run(MINUTE / 2);
    world.store_is_gone = true;
    let answered = world.provider.answered;
    world.run(MINUTE / 3);
    let meanwhile = world.provider.answered - answered;
    world.store_is_gone = false;
    world.run(2 * MINUTE);
    let figures = world.figures(Measure::InputTokens);
    assert!(meanwhile <= 10 && figures.worst <= 1.0 && figures.refused <= 0.005, "{meanwhile} {figures:?}");
    world.measure();
    world.run(2 * MINUTE);
    assert_kept(world.figures(Measure::InputTokens));
}

/// The provider allows half from now on, and says so in its headers alone. What it had let in before is above that, so
/// that it refuses all for half a minute: only those that are on their way when it changes its mind find out.
#[test]
fn limits_that_headers_halve_are_known_in_two_seconds_and_kept_within_a_minute() {
    let mut world = World::new(Plan { headers: true, ..PLAN }, &[(Measure::InputTokens, 2_000_000)]);
    world.run(2 * MINUTE);
    world.provider.limits.insert(Measure::InputTokens, 1_000_000);
    world.measure();
    let halved = world.now;
    while world.in_force(Measure::InputTokens) > 1_000_000 && world.now < halved + MINUTE {
        world.run(10);
    }
    assert!(world.now - halved <= 2_000, "{} ms", world.now - halved);
    world.run(MINUTE - (world.now - halved));
    assert!(world.provider.refused <= 30, "{:?}", world.figures(Measure::InputTokens));
    world.measure();
    world.run(5 * MINUTE);
    assert_kept(world.figures(Measure::InputTokens));
}

/// A third of the account is used by somebody else, which only its headers tell.
#[test]
fn what_others_use_of_an_account_is_left_to_them() {
    let plan = Plan { headers: true, others: 11_000, ..PLAN };
    let mut world = World::new(plan, &[(Measure::InputTokens, 2_000_000)]);
    world.run(2 * MINUTE);
    world.measure();
    world.run(5 * MINUTE);
    let told = world.figures(Measure::InputTokens);
    assert!(told.used >= 0.93 && told.worst <= 1.0 && told.refused <= 0.01, "{told:?}");
    assert!(told.others_refused <= 0.02, "{told:?}");
}

/// Where the provider counts `max_tokens` at once, that is what is reserved.
#[test]
fn what_an_answer_may_have_at_most_is_reserved_where_that_counts() {
    for seed in 1..4 {
        let plan = Plan { seed, upfront: true, sizes: (50, 5_000), ..PLAN };
        assert_kept(steady(plan, &[(Measure::Requests, 10_000), (Measure::Tokens, 2_000_000)], Measure::Tokens));
    }
}

/// It allows half and says nothing but no.
#[test]
fn limits_that_were_believed_to_be_twice_as_high_cost_few_refusals() {
    let mut world = World::new(PLAN, &[(Measure::InputTokens, 4_000_000)]);
    world.provider.limits.insert(Measure::InputTokens, 2_000_000);
    world.run(MINUTE);
    world.measure();
    world.run(20 * MINUTE);
    let figures = world.figures(Measure::InputTokens);
    assert!(figures.used >= 0.75 && figures.refused <= 0.03, "{figures:?}");
}

#[test]
fn one_worker_alone_uses_a_small_limit_too() {
    let plan = Plan { workers: 1, sizes: (50, 500), ..PLAN };
    let figures = steady(plan, &[(Measure::Requests, 30)], Measure::Requests);
    assert_kept(figures);
}

/// What headers tell of answers as they end is no news of others on the account.
#[test]
fn headers_take_nothing_from_a_fleet_that_is_alone_on_its_account() {
    for seed in 1..4 {
        let plan = Plan { seed, sizes: (50, 500), median: 3_075, spread: 1.06, headers: true, ..PLAN };
        assert_kept(steady(plan, &[(Measure::OutputTokens, 400_000)], Measure::OutputTokens));
    }
}
