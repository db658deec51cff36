//! One gate: what shuts it, who may try it, and what opens it.

use super::*;
use crate::outcome::Reply;

const SECOND: Duration = Duration::from_secs(1);

fn failure(class: FailureClass) -> Outcome {
    let mut failure = Failure::new(class, "code", "said so");
    failure.status_code = (class != FailureClass::Capacity).then_some(500);
    Outcome::Failure(failure)
}

fn success() -> Outcome {
    Outcome::Success(Reply::default())
}

/// Sends one job through and reports what it came to.
fn send(gate: &mut Gate, now: Instant, outcome: &Outcome) -> Ruling {
    let ticket = gate.admit(now, false).expect("the gate lets it pass");
    gate.report(now, ticket, JobId::fresh(), outcome)
}

fn tripped(now: Instant) -> Gate {
    let mut gate = Gate::default();
    for n in 1..=TRIP {
        assert_eq!(gate.room(now), u32::MAX, "open before failure {n}");
        let ruling = send(&mut gate, now, &failure(FailureClass::Transient));
        assert_eq!(ruling.outage, n == TRIP, "the failure that trips it spends no attempt either");
    }
    assert_eq!(gate.room(now), 0);
    gate
}

#[test]
fn five_failures_in_a_row_shut_the_gate_and_one_probe_opens_it() {
    let now = Instant::now();
    let mut gate = tripped(now);
    let probe_at = now + SECOND;
    assert_eq!(gate.room(probe_at), 1);
    let probe = gate.admit(probe_at, false).unwrap();
    assert!(probe.probe && gate.admit(probe_at, false).is_err(), "one at a time");
    assert!(gate.report(probe_at, probe, JobId::fresh(), &success()).opened);
    assert_eq!(gate.room(probe_at), u32::MAX);
}

#[test]
fn failed_probes_come_further_apart_up_to_a_minute() {
    let mut now = Instant::now();
    let mut gate = tripped(now);
    let mut waits = Vec::new();
    for _ in 0..8 {
        now = gate.shut.as_ref().unwrap().until;
        let ruling = send(&mut gate, now, &failure(FailureClass::Transient));
        assert!(ruling.outage);
        waits.push(ruling.wait.unwrap().as_secs());
    }
    assert_eq!(waits, [2, 4, 8, 16, 32, 60, 60, 60]);
}

#[test]
fn one_job_alone_does_not_shut_the_gate_but_nobody_reached_does() {
    let (now, job) = (Instant::now(), JobId::fresh());
    let mut gate = Gate::default();
    for _ in 0..20 {
        let ticket = gate.admit(now, false).unwrap();
        gate.report(now, ticket, job, &failure(FailureClass::Transient));
    }
    assert_eq!(gate.room(now), u32::MAX);
    for _ in 0..TRIP {
        let ticket = gate.admit(now, false).unwrap();
        gate.report(now, ticket, job, &failure(FailureClass::Capacity));
        if gate.shut.is_some() {
            break;
        }
    }
    assert_eq!(gate.room(now), 0);
}

#[test]
fn an_answer_between_failures_begins_the_count_again() {
    let now = Instant::now();
    let mut gate = Gate::default();
    for n in 0..40 {
        let class = if n % 4 == 3 { FailureClass::Fatal } else { FailureClass::Transient };
        send(&mut gate, now, &failure(class));
    }
    assert_eq!(gate.room(now), u32::MAX);
}

#[test]
fn programs_that_fail_hold_nobody_back() {
    let now = Instant::now();
    let mut gate = Gate::default();
    for _ in 0..20 {
        let outcome = Outcome::Failure(Failure::new(FailureClass::Transient, "exit_1", ""));
        assert!(!send(&mut gate, now, &outcome).outage);
    }
    assert_eq!(gate.room(now), u32::MAX);
}

#[test]
fn a_rate_limit_shuts_until_its_time_and_grows_without_one() {
    let now = Instant::now();
    let mut gate = Gate::default();
    let mut named = Failure::new(FailureClass::Throttled, "rate_limit", "");
    named.retry_after = Some(SECOND * 7);
    assert_eq!(send(&mut gate, now, &Outcome::Failure(named)).wait, Some(SECOND * 7));
    assert_eq!((gate.room(now + SECOND * 6), gate.pass_time(now + SECOND * 6)), (0, false));
    assert!(gate.pass_time(now + SECOND * 7));
    let mut gate = Gate::default();
    let mut at = now;
    for seconds in [1, 2, 4] {
        let (first, late) = (gate.admit(at, false).unwrap(), gate.admit(at, false).unwrap());
        let ruling = gate.report(at, first, JobId::fresh(), &failure(FailureClass::Throttled));
        assert_eq!(ruling.wait, Some(SECOND * seconds));
        let same = gate.report(at, late, JobId::fresh(), &failure(FailureClass::Throttled));
        assert_eq!(same.wait, ruling.wait, "a call begun before says nothing new");
        at += SECOND * seconds;
        assert!(gate.pass_time(at));
    }
}

/// Sends one job through an account's gate and tells it what that came to.
fn ask(account: &mut Gate, now: Instant, class: Option<FailureClass>) -> Option<Duration> {
    let ticket = account.admit(now, false).expect("the gate lets it pass");
    account.report_account(now, Some(ticket), &class.map_or_else(success, failure));
    account.wait(now)
}

#[test]
fn an_account_is_probed_every_ten_minutes_and_not_opened_by_older_calls() {
    let now = Instant::now();
    let mut account = Gate::default();
    let older = account.admit(now, false).unwrap();
    ask(&mut account, now, Some(FailureClass::Account));
    account.report_account(now, Some(older), &success());
    assert!(account.is_down());
    assert_eq!((account.room(now + SECOND * 599), account.room(now + SECOND * 600)), (0, 1));
    for (n, class) in (1..).zip([FailureClass::Account, FailureClass::Capacity, FailureClass::Transient]) {
        let wait = ask(&mut account, now + SECOND * 600 * n, Some(class));
        assert_eq!(wait, Some(SECOND * 600), "{class}");
    }
    for answer in [None, Some(FailureClass::Throttled)] {
        let mut account = Gate::default();
        ask(&mut account, now, Some(FailureClass::Account));
        assert_eq!(ask(&mut account, now + SECOND * 600, answer), None, "{answer:?} is an answer");
    }
}

#[test]
fn which_model_is_down_is_none_of_its_accounts_affair_and_an_account_none_of_the_models() {
    let now = Instant::now();
    let (mut account, mut gate) = (Gate::default(), tripped(now));
    for _ in 0..TRIP * 2 {
        assert_eq!(ask(&mut account, now, Some(FailureClass::Capacity)), None);
    }
    let ruling = send(&mut gate, now + SECOND, &failure(FailureClass::Account));
    assert!(ruling.opened && !gate.is_down(), "whoever refuses is there");
}

fn missing() -> Outcome {
    let failure = Failure::new(FailureClass::Fatal, Failure::MISSING_MODEL, "no such model");
    Outcome::Failure(Failure { status_code: Some(404), ..failure })
}

#[test]
fn three_jobs_in_a_row_without_such_a_model_pause_it_for_a_minute() {
    let now = Instant::now();
    let mut gate = Gate::default();
    for outcome in [missing(), missing(), failure(FailureClass::Content), missing(), missing()] {
        assert!(!send(&mut gate, now, &outcome).outage);
    }
    let (job, ticket) = (JobId::fresh(), gate.admit(now, false).unwrap());
    let mut same = Gate::default();
    for _ in 0..5 {
        let ticket = same.admit(now, false).unwrap();
        assert!(!same.report(now, ticket, job, &missing()).outage, "one job says nothing of the others");
    }
    let ruling = gate.report(now, ticket, job, &missing());
    assert!(ruling.outage && ruling.shut, "it is not the job's fault, and spends no attempt");
    assert_eq!((ruling.wait, gate.room(now + SECOND * 59)), (Some(SECOND * 60), 0));
    let again = send(&mut gate, now + SECOND * 60, &missing());
    assert_eq!((again.outage, again.wait), (true, Some(SECOND * 60)), "nor is it the probe's");
    assert!(send(&mut gate, now + SECOND * 120, &success()).opened);
}

#[test]
fn a_probe_given_back_lets_the_next_one_through() {
    let now = Instant::now();
    let mut gate = tripped(now);
    let probe = gate.admit(now + SECOND, false).unwrap();
    assert_eq!(gate.room(now + SECOND), 0);
    gate.give_back(probe);
    assert_eq!(gate.room(now + SECOND), 1);
}

#[test]
fn what_comes_back_after_an_outage_is_not_overrun_and_what_runs_here_is_not_bounded() {
    for (is_call, room) in [(true, 4), (false, u32::MAX)] {
        let now = Instant::now();
        let mut gate = Gate::default();
        let calls: Vec<_> = (0..100).map(|_| gate.admit(now, is_call).unwrap()).collect();
        assert_eq!(gate.room(now), u32::MAX, "a start at few would cost throughput where nothing is wrong");
        for ticket in calls {
            gate.report(now + SECOND, ticket, JobId::fresh(), &failure(FailureClass::Capacity));
        }
        assert_eq!(gate.room(now + SECOND), 0);
        assert!(send(&mut gate, now + SECOND * 2, &success()).opened);
        assert_eq!(gate.room(now + SECOND * 2), room);
    }
}

#[test]
fn an_endpoint_that_sheds_some_of_its_calls_gets_half_and_stays_open() {
    let now = Instant::now();
    let mut gate = Gate::default();
    let calls: Vec<_> = (0..20).map(|_| gate.admit(now, true).unwrap()).collect();
    let later = now + SECOND;
    let outcomes = calls.iter().enumerate().map(|(n, ticket)| {
        let outcome = if n % 3 == 0 { failure(FailureClass::Capacity) } else { success() };
        gate.report(later, *ticket, JobId::fresh(), &outcome).at_once
    });
    assert_eq!(outcomes.flatten().collect::<Vec<_>>(), [10]);
    assert!(gate.shut.is_none() && !gate.is_open() && !gate.is_plain());
    assert_eq!(gate.room(later), 10);
    let ticket = gate.admit(later, true).unwrap();
    assert_eq!(gate.room(later), 9);
    gate.leave(later, ticket);
    assert_eq!(gate.room(later), 10);
}

#[test]
fn a_person_opens_whatever_is_shut() {
    let now = Instant::now();
    let (mut slow, mut refused) = (Gate::default(), Gate::default());
    send(&mut slow, now, &failure(FailureClass::Throttled));
    ask(&mut refused, now, Some(FailureClass::Account));
    for gate in [&mut slow, &mut refused, &mut tripped(now)] {
        assert_eq!(gate.room(now), 0);
        assert!(gate.release() && !gate.release());
        assert_eq!(gate.room(now), u32::MAX);
    }
    for (outcome, few) in [(missing(), MISSING.0), (failure(FailureClass::Capacity), TRIP)] {
        let mut gate = Gate::default();
        for _ in 1..few {
            send(&mut gate, now, &outcome);
        }
        gate.release();
        assert!(!send(&mut gate, now, &outcome).shut, "what counted before counts no more");
    }
}

#[test]
fn an_account_is_left_alone_until_the_time_that_was_named_and_a_programs_own_failure_says_nothing_of_it() {
    let now = Instant::now();
    let mut gate = Gate::default();
    let (first, second) = (gate.admit(now, false).unwrap(), gate.admit(now, false).unwrap());
    let mut named = Failure::new(FailureClass::Account, "usage_limit", "resets in two hours");
    named.retry_after = Some(2 * 3_600 * SECOND);
    gate.report_account(now, Some(first), &Outcome::Failure(named));
    let vague = Outcome::Failure(Failure::new(FailureClass::Account, "usage_limit", "it is reached"));
    gate.report_account(now + SECOND, Some(second), &vague);
    let later = now + 2 * 3_600 * SECOND;
    assert_eq!((gate.room(later - SECOND), gate.room(later)), (0, 1));
    let probe = gate.admit(later, false).unwrap();
    let own = Outcome::Failure(Failure::new(FailureClass::Transient, "exit_1", "no such file"));
    gate.report_account(later, Some(probe), &own);
    assert_eq!(gate.room(later), 1, "the next one tells");
    let probe = gate.admit(later, false).unwrap();
    gate.report_account(later, Some(probe), &success());
    assert_eq!(gate.room(later), u32::MAX);
}
