//! How each provider counts, and that no window ever holds more than its limit.

use proptest::prelude::*;

use super::*;

fn rule(text: &str) -> LimitRule {
    toml::from_str(text).unwrap()
}

fn limits() -> Limits {
    Limits::new(60_000, 86_400_000)
}

#[test]
fn openai_charges_what_a_call_may_come_to_and_keeps_it() {
    let (mut limits, rule) = (limits(), rule("minute = { tokens = 1000 }"));
    let charge = Charge::of(Api::OpenAi, 100, 60, 500);
    limits.admit(0, "g", &rule, charge).unwrap();
    let denied = limits.admit(1, "g", &rule, charge).unwrap_err();
    assert_eq!((denied.dimension, denied.used, denied.requested), (Dimension::Tokens, 600, 600));
    assert_eq!(denied.wait, Some(59_999));
    limits.appeared(2, "g", Api::OpenAi, 3);
    assert_eq!(limits.standings(2, "g", &rule)[0].remaining, 400);
}

#[test]
fn anthropic_charges_fresh_input_and_then_output_as_it_appears() {
    let (mut limits, rule) = (limits(), rule("minute = { input_tokens = 100, output_tokens = 50 }"));
    let charge = Charge::of(Api::Anthropic, 100, 60, 4_000);
    limits.admit(0, "g", &rule, charge).unwrap();
    limits.admit(0, "g", &rule, charge).unwrap();
    limits.appeared(10, "g", Api::Anthropic, 70);
    let denied = limits.admit(20, "g", &rule, Charge::of(Api::Anthropic, 1, 0, 1)).unwrap_err();
    assert_eq!((denied.dimension, denied.used, denied.wait), (Dimension::OutputTokens, 70, Some(59_990)));
}

#[test]
fn gemini_charges_input() {
    let (mut limits, rule) = (limits(), rule("minute = { tokens = 100 }"));
    limits.admit(0, "g", &rule, Charge::of(Api::Gemini, 60, 0, 1_000)).unwrap();
    limits.appeared(1, "g", Api::Gemini, 500);
    limits.admit(2, "g", &rule, Charge::of(Api::Gemini, 40, 0, 1_000)).unwrap();
}

#[test]
fn a_refused_call_is_charged_only_where_its_failure_counts() {
    let (mut limits, rule) = (limits(), rule("minute = { requests = 2, tokens = 100 }"));
    limits.admit(0, "g", &rule, Charge { input: 60, output: None }).unwrap();
    limits.admit(1, "g", &rule, Charge { input: 60, output: None }).unwrap_err();
    let uses = |limits: &mut Limits| limits.uses(2).iter().map(|line| (line.used, line.highest)).collect::<Vec<_>>();
    assert_eq!(uses(&mut limits)[0], (1, 1), "requests");
    limits.failed(1, "g");
    assert_eq!(uses(&mut limits)[0], (2, 1), "a failed one counts and was not let in");
    let denied = limits.admit(3, "g", &rule, Charge { input: 1, output: None }).unwrap_err();
    // The two were merged, as of the later.
    assert_eq!((denied.dimension, denied.wait), (Dimension::Requests, Some(59_998)));
}

#[test]
fn what_takes_longest_is_told_and_what_never_fits_before_all() {
    let (mut limits, rule) = (limits(), rule("minute = { requests = 1 }\nday = { requests = 1, tokens = 10 }"));
    limits.admit(0, "g", &rule, Charge { input: 1, output: None }).unwrap();
    assert_eq!(limits.admit(0, "g", &rule, Charge { input: 1, output: None }).unwrap_err().per, Per::Day);
    assert_eq!(limits.admit(0, "g", &rule, Charge { input: 11, output: None }).unwrap_err().wait, None);
}

#[test]
fn calls_open_at_once_are_limited_until_they_end() {
    let (mut limits, rule) = (limits(), rule("concurrent = 1"));
    let charge = Charge { input: 1, output: None };
    limits.admit(0, "g", &rule, charge).unwrap();
    assert_eq!(limits.admit(0, "g", &rule, charge).unwrap_err().dimension, Dimension::Concurrent);
    limits.ended("g");
    limits.admit(0, "g", &rule, charge).unwrap();
}

#[test]
fn what_is_told_and_what_holds_may_differ() {
    let charge = Charge { input: 1, output: None };
    let (mut told, half) = (limits(), rule("minute = { requests = 10 }\nannounced = 0.5"));
    (0..10).for_each(|_| told.admit(0, "g", &half, charge).unwrap());
    let standing = told.standings(0, "g", &half)[0];
    assert_eq!((standing.limit, standing.remaining), (5, 0));
    let (mut untold, half) = (limits(), rule("minute = { requests = 10 }\nenforced = 0.5"));
    (0..5).for_each(|_| untold.admit(0, "g", &half, charge).unwrap());
    untold.admit(0, "g", &half, charge).unwrap_err();
    assert_eq!(untold.standings(0, "g", &half)[0].remaining, 5);
}

proptest! {
    /// Whatever is asked, no minute has more than any of the limits, and the bill knows the fullest one.
    #[test]
    fn no_minute_has_more_than_any_limit(
        calls in prop::collection::vec((0..20_000_u64, 0..400_u64, 0..400_u64), 1..150),
    ) {
        let (mut limits, rule) = (limits(), rule("minute = { requests = 5, tokens = 1000 }"));
        let (mut now, mut let_in) = (0, Vec::new());
        for (pause, input, most) in calls {
            now += pause;
            let charge = Charge::of(Api::OpenAi, input, 0, most);
            if limits.admit(now, "g", &rule, charge).is_ok() {
                let_in.push((now, input + most));
            } else {
                prop_assert!(!let_in.is_empty());
            }
        }
        let mut fullest = 0;
        for &(end, _) in &let_in {
            let within = let_in.iter().filter(|(at, _)| *at <= end && at + 60_000 > end);
            let (count, tokens) = within.fold((0, 0), |(count, sum), (_, tokens)| (count + 1, sum + tokens));
            prop_assert!(count <= 5 && tokens <= 1_000, "{count} calls, {tokens} tokens");
            fullest = fullest.max(count);
        }
        let told = limits.uses(now).into_iter().find(|line| line.dimension == Dimension::Requests);
        prop_assert_eq!(told.map_or(0, |line| line.highest), fullest);
    }
}
