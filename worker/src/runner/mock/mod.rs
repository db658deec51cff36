//! The mock provider: answers by itself, seeded, with the latency and the failures it is told to have.
//! Same input, same attempt: same fate. The shapes of its answers are in `answer.rs`.

mod answer;

use std::time::Duration;

use async_trait::async_trait;
use promptq_common::config::MOCK;
use promptq_common::job::Job;
use promptq_common::outcome::{Failure, FailureClass, Outcome};
use promptq_common::time::parse_duration;
use promptq_common::work::family;

use super::{MockSettings, RunContext, Runner, WhenLost};

/// The wait a throttled mock call asks for: one second, the least that a `retry-after` header in seconds can say.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// The most output tokens that can be asked for, so that an answer stays under half a megabyte.
const TOKENS_MAX: u64 = 100_000;

impl MockSettings {
    /// 5 to 50 ms a call, 8 to 32 output tokens, no failures, seed 0.
    pub const fn standard() -> Self {
        Self {
            seed: 0,
            latency: (Duration::from_millis(5), Duration::from_millis(50)),
            errors: 0.0,
            throttled: 0.0,
            tokens: (8, 32),
        }
    }

    /// These settings with the parameters of a model `mock:latency=20ms..200ms,errors=0.1,throttled=0.05,seed=7,tokens=64`
    /// (the text after the colon) in their place. `latency` and `tokens` take one value or `LEAST..MOST`.
    ///
    /// # Errors
    /// Says which parameter is unknown or has a bad value.
    pub fn with(&self, parameters: &str) -> Result<Self, String> {
        let mut settings = self.clone();
        for parameter in parameters.split(',').filter(|p| !p.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            match name {
                "latency" => settings.latency = span(value, read_latency)?,
                "tokens" => settings.tokens = span(value, read_tokens)?,
                "errors" => settings.errors = share(name, value)?,
                "throttled" => settings.throttled = share(name, value)?,
                "seed" => {
                    settings.seed = value.parse().map_err(|_| format!("seed {value:?} is not a whole number"))?;
                }
                _ => {
                    return Err(format!(
                        "unknown parameter {name:?}; they are latency, errors, throttled, seed and tokens"
                    ));
                }
            }
        }
        Ok(settings)
    }
}

fn span<T: PartialOrd + Copy>(text: &str, read: fn(&str) -> Result<T, String>) -> Result<(T, T), String> {
    let (least, most) = text.split_once("..").unwrap_or((text, text));
    let (least, most) = (read(least)?, read(most)?);
    if least > most {
        return Err(format!("{text:?} begins above its end"));
    }
    Ok((least, most))
}

fn read_latency(text: &str) -> Result<Duration, String> {
    if text == "0" { Ok(Duration::ZERO) } else { parse_duration(text) }
}

fn read_tokens(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(tokens @ 1..=TOKENS_MAX) => Ok(tokens),
        _ => Err(format!("tokens {text:?} is not 1 to {TOKENS_MAX}")),
    }
}

fn share(name: &str, value: &str) -> Result<f64, String> {
    match value.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err(format!("{name} {value:?} is not a share from 0 to 1")),
    }
}

/// Answers without asking anybody.
#[derive(Clone, Debug)]
pub struct Mock {
    settings: MockSettings,
    /// The model that it stands for.
    model: Option<String>,
}

impl Mock {
    /// A mock with these settings.
    pub fn new(settings: MockSettings) -> Self {
        Self { settings, model: None }
    }

    /// The same in the place of a model, which has limits of its own.
    pub(super) fn called(&self, model: &str) -> Self {
        Self { model: Some(model.to_owned()), ..self.clone() }
    }

    /// The one that a job's model names, `mock`, `mock:PARAMETERS` or `mock/MODEL`; `None` where it names another runner.
    pub(super) fn of(&self, model: &str) -> Option<Result<Self, String>> {
        let rest = model.strip_prefix(MOCK)?;
        if let Some(parameters) = rest.strip_prefix(':') {
            return Some(self.settings.with(parameters).map(Self::new));
        }
        match rest.strip_prefix('/') {
            Some("") => Some(Err(format!("{model:?} names no model; hint: mock alone does, or mock/MODEL"))),
            Some(model) => Some(Ok(self.called(model))),
            None => rest.is_empty().then(|| Ok(self.clone())),
        }
    }

    /// Fails the share of calls it is told to fail. Whether a call is throttled is thrown per lease: it spends no attempt,
    /// so a throw by the attempt alone would throttle the same job for ever.
    fn misfortune(&self, dice: &mut Dice, cx: &RunContext) -> Option<Failure> {
        let mut per_lease = Dice(dice.next() ^ fold(cx.lease.as_bytes()));
        if per_lease.share() < self.settings.throttled {
            let mut failure =
                Failure::new(FailureClass::Throttled, "rate_limit_exceeded", "the mock provider says: slow down");
            failure.status_code = Some(429);
            failure.retry_after = Some(RETRY_AFTER);
            return Some(failure);
        }
        if dice.share() < self.settings.errors {
            let mut failure = Failure::new(FailureClass::Transient, "http_500", "the mock provider failed as told");
            failure.status_code = Some(500);
            return Some(failure);
        }
        None
    }
}

#[async_trait]
impl Runner for Mock {
    async fn run(&self, job: &Job, cx: &RunContext) -> Outcome {
        let mut dice = Dice::new(self.settings.seed, &job.fingerprint().0, cx.attempt);
        let latency = dice.between(self.settings.latency);
        let misfortune = self.misfortune(&mut dice, cx);
        if !latency.is_zero() {
            tokio::time::sleep(latency.min(job.policy.timeout)).await;
        }
        if latency > job.policy.timeout {
            let detail = "the mock provider took longer than the job's timeout";
            return Outcome::Failure(Failure::new(FailureClass::UnknownBilled, "timeout", detail));
        }
        if let Some(failure) = misfortune {
            return Outcome::Failure(failure);
        }
        match answer::answer(job, self.settings.tokens, &mut dice) {
            Ok(reply) => Outcome::Success(reply),
            Err(failure) => Outcome::Failure(failure),
        }
    }

    fn when_lost(&self) -> WhenLost {
        WhenLost::Finish
    }

    fn billed(&self) -> bool {
        false
    }

    fn limit_key(&self, _job: &Job) -> String {
        self.model.as_ref().map_or_else(|| MOCK.to_owned(), |model| format!("{MOCK}/{}", family(model)))
    }
}

/// `SplitMix64`: its numbers stay the same for ever, which no library's default generator promises.
struct Dice(u64);

impl Dice {
    fn new(seed: u64, fingerprint: &[u8; 16], attempt: u32) -> Self {
        let mut dice = Self(seed);
        let mixed = dice.next() ^ fold(fingerprint);
        dice = Self(mixed);
        Self(dice.next() ^ u64::from(attempt))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in `[0, 1)`.
    fn share(&mut self) -> f64 {
        f64::from(u32::try_from(self.next() >> 32).unwrap_or(u32::MAX)) / (f64::from(u32::MAX) + 1.0)
    }

    /// Uniform over `0..n`, `n` at least 1; the bias of the remainder is below 2^-32 for the small `n` used here.
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    fn between(&mut self, (least, most): (Duration, Duration)) -> Duration {
        least + most.saturating_sub(least).mul_f64(self.share())
    }
}

fn fold(bytes: &[u8; 16]) -> u64 {
    let [a, b] = [0, 8].map(|at| bytes.iter().skip(at).take(8).fold(0, |sum, &byte| sum << 8 | u64::from(byte)));
    a ^ b.rotate_left(32)
}

#[cfg(test)]
mod tests {
    use promptq_common::broker::{LeaseId, WorkerId};
    use promptq_common::config::Model;
    use promptq_common::job::Queue;
    use promptq_common::work::Work;

    use super::super::{ExecSettings, RunnerSettings, Runners};
    use super::*;

    fn quick(parameters: &str) -> Mock {
        Mock::new(MockSettings::standard().with("latency=0").unwrap().with(parameters).unwrap())
    }

    async fn fate(mock: &Mock, text: &str, attempt: u32) -> Result<String, FailureClass> {
        let job = Job::new(Queue::standard(), Work::prompt(Some("mock"), text));
        let cx = RunContext {
            attempt,
            lease: LeaseId::random(),
            worker: WorkerId::random("w"),
            ear: None,
            stream: false,
            trace: None,
        };
        match mock.run(&job, &cx).await {
            Outcome::Success(reply) => Ok(reply.text.unwrap()),
            Outcome::Failure(failure) => Err(failure.class),
        }
    }

    #[tokio::test]
    async fn the_same_input_meets_the_same_fate_whatever_its_id() {
        let mock = quick("errors=0.5,seed=7");
        for attempt in 1..=20 {
            assert_eq!(fate(&mock, "Say hello", attempt).await, fate(&mock, "Say hello", attempt).await);
        }
        let fates = |text: &'static str| {
            let mock = mock.clone();
            async move { futures_util::future::join_all((1..=20).map(|n| fate(&mock, text, n))).await }
        };
        assert_ne!(fates("Say hello").await, fates("Say goodbye").await);
        let other = quick("errors=0.5,seed=8");
        let others = futures_util::future::join_all((1..=20).map(|n| fate(&other, "Say hello", n))).await;
        assert_ne!(fates("Say hello").await, others);
    }

    #[tokio::test]
    async fn failures_come_in_the_share_that_was_asked_for() {
        let mock = quick("errors=0.1,throttled=0.2");
        let (mut errors, mut throttled) = (0, 0);
        for n in 0..2_000 {
            match fate(&mock, &format!("row {n}"), 1).await {
                Err(FailureClass::Transient) => errors += 1,
                Err(FailureClass::Throttled) => throttled += 1,
                Err(class) => panic!("{class}"),
                Ok(_) => {}
            }
        }
        assert!((320..480).contains(&throttled), "{throttled} of 2000 throttled");
        assert!((100..220).contains(&errors), "{errors} of 2000 failed");
    }

    #[tokio::test]
    async fn a_throttled_job_gets_through_in_the_end_without_spending_attempts() {
        let mock = quick("throttled=0.9");
        for _ in 0..1_000 {
            if fate(&mock, "Say hello", 1).await.is_ok() {
                return;
            }
        }
        panic!("throttled for ever");
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_takes_its_latency_and_never_more_than_the_timeout() {
        let begun = tokio::time::Instant::now();
        assert!(fate(&quick("latency=20ms..200ms"), "Say hello", 1).await.is_ok());
        let took = begun.elapsed();
        assert!((20..=201).contains(&took.as_millis()), "{took:?}");
        assert_eq!(fate(&quick("latency=20m"), "Say hello", 1).await, Err(FailureClass::UnknownBilled));
        assert!(begun.elapsed() < Duration::from_secs(601));
    }

    #[test]
    fn every_model_of_the_mocks_stays_here_with_limits_of_its_own() {
        let key = |model: &str| {
            let job = Job::new(Queue::standard(), Work::prompt(Some(model), "Hi"));
            quick("").of(model).map(|mock| mock.map(|mock| mock.limit_key(&job)))
        };
        for (model, is) in [
            ("mock", "mock"),
            ("mock:tokens=9", "mock"),
            ("mock/gpt-4o-2024-08-06", "mock/gpt-4o"),
            ("mock/meta/llama3:8b", "mock/meta/llama3:8b"),
        ] {
            assert_eq!(key(model), Some(Ok(is.to_owned())), "{model}");
        }
        assert!(key("mock/").unwrap().unwrap_err().contains("names no model"));
        assert_eq!([key("mock-turtle"), key("acme/mock"), key("")], [None, None, None]);
    }

    #[test]
    fn a_name_of_ones_own_may_lead_to_the_mock() {
        let exec = ExecSettings { named: [].into(), allow_inline: false, environment: Vec::new(), max_output: 9 };
        let routes = vec![Model { provider: MOCK.into(), model: "slow".into() }];
        let (models, mock) = ([("fast".into(), routes)].into(), MockSettings::standard());
        let runners = Runners::new(RunnerSettings { providers: [].into(), models, exec, mock }).unwrap();
        assert_eq!(runners.limit_keys(&Queue::standard(), Some("fast")), ["mock/slow"]);
    }

    #[test]
    fn bad_parameters_are_named() {
        for (text, says) in [
            ("colour=red", "unknown parameter"),
            ("errors=2", "0 to 1"),
            ("throttled=NaN", "0 to 1"),
            ("latency=fast", "fast"),
            ("latency=2s..1s", "above its end"),
            ("seed=x", "whole number"),
            ("tokens=0", "1 to 100000"),
        ] {
            let error = MockSettings::standard().with(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
        let all = MockSettings::standard().with("latency=20ms..200ms,errors=0.1,throttled=0.05,seed=7,tokens=4..9");
        assert_eq!(
            all.unwrap(),
            MockSettings {
                seed: 7,
                latency: (Duration::from_millis(20), Duration::from_millis(200)),
                errors: 0.1,
                throttled: 0.05,
                tokens: (4, 9)
            }
        );
    }
}
