//! What a run cost: as its provider tells it, else by the price of the model that answered, else nobody knows. Reckoned once,
//! right after the run; prices and their arithmetic are `common/src/price`.

use promptq_common::job::Job;
use promptq_common::outcome::{Body, CostSource, Failure, Outcome, Reply, Usage};
use promptq_common::price::{Consumed, Prices};
use serde::Deserialize;

use crate::runner::Runner;

/// What a run of a job is paid for by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bill<'a> {
    pub(crate) prices: &'a Prices,
    pub(crate) runner: &'a dyn Runner,
    pub(crate) job: &'a Job,
}

impl Bill<'_> {
    /// What came of a run, with its cost. What is paid for nowhere (the mock, commands) stays as it is.
    pub(crate) fn outcome(self, outcome: Outcome) -> Outcome {
        match outcome {
            Outcome::Success(reply) => Outcome::Success(self.answer(reply)),
            Outcome::Failure(failure) => Outcome::Failure(self.failure(failure)),
        }
    }

    /// A failure with the cost of what was consumed all the same; a guess where that is one.
    pub(crate) fn failure(self, mut failure: Failure) -> Failure {
        if failure.cost.is_none()
            && failure.usage != Usage::default()
            && let Some((provider, model)) = self.runner.priced_as(self.job)
        {
            let consumed = Consumed { usage: failure.usage, ..Consumed::default() };
            failure.cost = self.prices.of(&provider, &model).and_then(|price| price.cost(&consumed));
        }
        failure
    }

    fn answer(self, mut reply: Reply) -> Reply {
        let Some((provider, model)) = route(&reply).or_else(|| self.runner.priced_as(self.job)) else { return reply };
        let mut origin = reply.origin.take().map(|origin| *origin).unwrap_or_default();
        if reply.cost.is_some() {
            origin.cost_source = Some(CostSource::Provider);
        } else {
            let price = self.prices.of_answer(&provider, &model, reply.model.as_deref());
            let price = price.filter(|_| reply.usage != Usage::default());
            reply.cost = price.and_then(|price| price.cost(&consumed(&reply)));
            let known = price.filter(|_| reply.cost.is_some());
            // Who guessed at what was consumed has said so.
            let source = origin.cost_source.unwrap_or(CostSource::PriceTable);
            origin.cost_source = known.map(|_| source);
            origin.price_as_of = known.and_then(|price| price.as_of).map(|day| day.to_string());
        }
        reply.origin = origin.kept();
        reply
    }
}

/// Of several that could have, the provider and model that answered.
fn route(reply: &Reply) -> Option<(String, String)> {
    let (provider, model) = reply.origin.as_ref()?.route.as_deref()?.split_once('/')?;
    Some((provider.to_owned(), model.to_owned()))
}

fn consumed(reply: &Reply) -> Consumed<'_> {
    let detail = reply.detail.as_deref();
    let cache_writes = detail.map_or(0, |detail| detail.cache_write_tokens);
    let hour_writes = if cache_writes > 0 { hour_writes(&reply.body) } else { 0 };
    let tier = detail.and_then(|detail| detail.service_tier.as_deref());
    Consumed { usage: reply.usage, cache_writes, hour_writes, tier }
}

/// The tokens that Anthropic keeps for an hour and not for five minutes, as only the answer itself says.
fn hour_writes(body: &Body) -> u64 {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Whole {
        usage: Said,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Said {
        cache_creation: Kept,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Kept {
        ephemeral_1h_input_tokens: u64,
    }
    let Body::Json(text) = body else { return 0 };
    serde_json::from_str::<Whole>(text).unwrap_or_default().usage.cache_creation.ephemeral_1h_input_tokens
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use promptq_common::job::Queue;
    use promptq_common::outcome::{Detail, FailureClass, Origin, Usd};
    use promptq_common::price::Price;
    use promptq_common::work::Work;

    use super::*;
    use crate::runner::{RunContext, WhenLost};

    #[derive(Debug)]
    struct At(Option<&'static str>);

    #[async_trait]
    impl Runner for At {
        async fn run(&self, _job: &Job, _cx: &RunContext) -> Outcome {
            Outcome::Success(Reply::default())
        }

        fn when_lost(&self) -> WhenLost {
            WhenLost::Finish
        }

        fn limit_key(&self, _job: &Job) -> String {
            "key".to_owned()
        }

        fn priced_as(&self, _job: &Job) -> Option<(String, String)> {
            let (provider, model) = self.0?.split_once('/')?;
            Some((provider.to_owned(), model.to_owned()))
        }
    }

    fn usd(text: &str) -> Usd {
        text.parse().unwrap()
    }

    fn with<T>(at: Option<&'static str>, f: impl FnOnce(Bill<'_>) -> T) -> T {
        let price = Price { as_of: Some("2026-11-03".parse().unwrap()), ..Price::flat(usd("0.20"), usd("0.80")) };
        let prices = Prices::new([("acme/fast-2".to_owned(), price)], [("openai".to_owned(), None)].into());
        let (runner, job) = (At(at), Job::new(Queue::standard(), Work::prompt(None, "Hi")));
        f(Bill { prices: &prices, runner: &runner, job: &job })
    }

    fn answered(at: Option<&'static str>, reply: Reply) -> Reply {
        with(at, |bill| match bill.outcome(Outcome::Success(reply)) {
            Outcome::Success(reply) => reply,
            Outcome::Failure(failure) => panic!("{failure:?}"),
        })
    }

    fn reply(input_tokens: u64, output_tokens: u64) -> Reply {
        Reply { usage: Usage { input_tokens, output_tokens, ..Usage::default() }, ..Reply::default() }
    }

    fn source(reply: &Reply) -> (Option<CostSource>, Option<&str>) {
        let origin = reply.origin.as_deref();
        (origin.and_then(|origin| origin.cost_source), origin.and_then(|origin| origin.price_as_of.as_deref()))
    }

    #[test]
    fn an_answer_costs_what_its_provider_says_else_what_its_model_costs() {
        // 22 x 0.20 + 9 x 0.80, a million each.
        let priced = answered(Some("acme/fast-2"), reply(22, 9));
        assert_eq!(priced.cost, Some(usd("0.0000116")));
        assert_eq!(source(&priced), (Some(CostSource::PriceTable), Some("2026-11-03")));
        let told = answered(Some("acme/fast-2"), Reply { cost: Some(usd("0.5")), ..reply(22, 9) });
        assert_eq!((told.cost, source(&told)), (Some(usd("0.5")), (Some(CostSource::Provider), None)));
        let version = Reply { model: Some("fast-2-2026-09-01".into()), ..reply(22, 9) };
        assert_eq!(answered(Some("acme/fast"), version).cost, Some(usd("0.0000116")), "the model that answered");
        let asked = Reply { model: Some("somebody".into()), ..reply(22, 9) };
        assert_eq!(answered(Some("acme/fast-2"), asked).cost, Some(usd("0.0000116")), "else the one that was asked");
    }

    #[test]
    fn what_nobody_knows_is_not_nothing() {
        let unknown = answered(Some("acme/slow"), reply(22, 9));
        assert_eq!((unknown.cost, unknown.origin), (None, None));
        let local = answered(Some("openai/gpt-4o"), reply(22, 9));
        assert_eq!(local.cost, None, "a server of one's own");
        assert_eq!(answered(Some("acme/fast-2"), reply(0, 0)).cost, None, "nobody said what was consumed");
        let tier = Detail { service_tier: Some("priority".into()), ..Detail::default() };
        assert_eq!(answered(Some("acme/fast-2"), Reply { detail: tier.kept(), ..reply(22, 9) }).cost, None);
    }

    #[test]
    fn mocks_and_commands_stay_as_they_are() {
        let mock = Reply { cost: Some(usd("0")), ..reply(5, 5) };
        assert_eq!(answered(None, mock.clone()), mock);
        assert_eq!(answered(None, reply(0, 0)), reply(0, 0));
    }

    #[test]
    fn a_guess_at_what_was_consumed_stays_one() {
        let guessed = |at| {
            let origin = Origin { cost_source: Some(CostSource::Estimate), ..Origin::default() };
            answered(at, Reply { origin: origin.kept(), ..reply(22, 9) })
        };
        assert_eq!(source(&guessed(Some("acme/fast-2"))), (Some(CostSource::Estimate), Some("2026-11-03")));
        let unknown = guessed(Some("acme/slow"));
        assert_eq!((unknown.cost, unknown.origin), (None, None));
    }

    #[test]
    fn of_several_routes_the_one_that_answered_is_paid() {
        let origin = |route: &str| Origin { route: Some(route.to_owned()), ..Origin::default() }.kept();
        let there = answered(Some("acme/slow"), Reply { origin: origin("acme/fast-2"), ..reply(22, 9) });
        assert_eq!(there.cost, Some(usd("0.0000116")));
        assert_eq!(there.origin.unwrap().route.as_deref(), Some("acme/fast-2"));
        let elsewhere = answered(Some("acme/fast-2"), Reply { origin: origin("acme/slow"), ..reply(22, 9) });
        assert_eq!((elsewhere.cost, elsewhere.origin), (None, origin("acme/slow")));
    }

    #[test]
    fn writing_to_the_cache_for_an_hour_costs_more() {
        let reply = |body: &str| {
            let detail = Detail { cache_write_tokens: 100, ..Detail::default() };
            Reply { detail: detail.kept(), body: Body::Json(body.into()), ..reply(100, 0) }
        };
        let cost = |body: &str| answered(Some("anthropic/claude-haiku-4-5"), reply(body)).cost;
        let hour = r#"{"usage":{"input_tokens":0,"cache_creation":{"ephemeral_5m_input_tokens":40,"ephemeral_1h_input_tokens":60}}}"#;
        assert_eq!(cost(hour), Some(usd("0.00017")), "40 x 1.25 + 60 x 2.00, a million each");
        for body in [r#"{"usage":{"cache_creation_input_tokens":100}}"#, r#"{"usage":{"cache_creation":null}}"#, "odd"]
        {
            assert_eq!(cost(body), Some(usd("0.000125")), "{body}");
        }
    }

    #[test]
    fn a_failure_costs_what_it_consumed() {
        let cost = |at, usage| {
            let failure = Failure { usage, ..Failure::new(FailureClass::UnknownBilled, "call_cut", "") };
            with(at, |bill| bill.failure(failure)).cost
        };
        let guess = Usage { input_tokens: 22, output_tokens: 9, ..Usage::default() };
        assert_eq!(cost(Some("acme/fast-2"), guess), Some(usd("0.0000116")));
        assert_eq!(cost(Some("acme/slow"), guess), None);
        assert_eq!(cost(Some("acme/fast-2"), Usage::default()), None, "a refused call consumed nothing");
        assert_eq!(cost(None, guess), None);
    }
}
