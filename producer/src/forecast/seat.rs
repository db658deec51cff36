//! Who runs a job, and for how much: the runners of these settings, else whoever elsewhere has a model of that name.

use std::sync::Arc;

use promptq_common::config::Api;
use promptq_common::job::Job;
use promptq_common::line::model_in;
use promptq_common::outcome::{Usage, Usd};
use promptq_common::price::{Consumed, Price, Prices, Seller};
use promptq_common::work::{Input, family};
use promptq_worker::runner::Runner;

use super::Forecaster;

/// Who runs a job.
#[derive(Debug, Default)]
pub(crate) struct Seat {
    pub(super) model: String,
    pub(crate) price: Option<Price>,
    pub(crate) limit_key: String,
    pub(super) is_program: bool,
    /// Whether it bounds answers that nobody else does.
    pub(crate) is_bounded: bool,
    /// Whether it counts the longest answer as soon as a call is sent.
    pub(super) counts_upfront: bool,
    /// `None` where nobody here runs it.
    pub(super) runner: Option<Arc<dyn Runner>>,
}

impl Forecaster {
    /// Who runs a job; the first of several ways first.
    pub(super) fn seats(&self, job: &Job, routes: &[Arc<dyn Runner>]) -> Vec<Seat> {
        let said = job.work.model.as_deref().unwrap_or_default();
        let plain = |model: &str| Seat { model: model.to_owned(), limit_key: said.to_owned(), ..Seat::default() };
        if said.starts_with("exec:") || self.programs.contains(said) {
            return vec![Seat { is_program: true, ..plain("commands") }];
        }
        let here = routes.iter().filter_map(|runner| {
            let (limit_key, counts) = (runner.limit_key(job), runner.endpoint().unwrap_or_default());
            let (price, name) = if runner.billed() {
                let (provider, model) = runner.priced_as(job)?;
                (self.prices.of(&provider, &model), format!("{provider}/{model}"))
            } else {
                // The mock.
                (Some(Price::FREE), limit_key.clone())
            };
            let (runner, counts_upfront) = (Some(Arc::clone(runner)), counts.output_upfront);
            Some(Seat { price, limit_key, counts_upfront, runner, ..plain(&name) })
        });
        let here: Vec<_> = here.collect();
        if !here.is_empty() {
            return here;
        }
        let unknown = || plain(if said.is_empty() { "jobs that name no model" } else { said });
        vec![elsewhere(job, &self.prices).unwrap_or_else(unknown)]
    }
}

impl Seat {
    /// What a call costs with the likely answer, and with the longest. Where the tier costs less at most the usual: the job
    /// may be moved to that, or nobody knows how much less.
    pub(super) fn costs(
        &self,
        input: u64,
        (likely, most): (u64, u64),
        tier: Option<&str>,
    ) -> (Option<Usd>, Option<Usd>) {
        let cost = |output_tokens, tier| {
            let usage = Usage { input_tokens: input, output_tokens, ..Usage::default() };
            self.price?.cost(&Consumed { usage, tier, ..Consumed::default() })
        };
        match tier {
            Some("flex" | "batch") => (cost(likely, tier).or_else(|| cost(likely, None)), cost(most, None)),
            tier => (cost(likely, tier), cost(most, tier)),
        }
    }

    /// Whether answers have a bound there, as the job itself may say (`max_tokens`), or cost nothing.
    pub(crate) fn can_be_capped(&self, max_tokens: Option<u64>) -> bool {
        max_tokens.is_some() || self.is_bounded || self.price.is_some_and(|price| price.rates == Price::FREE.rates)
    }
}

/// Who runs a job that nobody here does: other hosts may have what this one has not been told of. `None` where its model has
/// no price.
pub(crate) fn elsewhere(job: &Job, prices: &Prices) -> Option<Seat> {
    let said = job.work.model.as_deref().unwrap_or_default();
    let (provider, model) = match said.split_once('/') {
        Some((provider, model)) if Seller::named(provider).is_some() => (provider, model),
        _ => {
            let api = match &job.work.input {
                Input::Request { url, .. } if url == "/v1/messages" => Api::Anthropic,
                Input::Request { url, .. } if model_in(url).is_some() => Api::Gemini,
                Input::Request { .. } | Input::Prompt(_) => Api::OpenAi,
            };
            (api.provider(), said)
        }
    };
    Some(Seat {
        model: format!("{provider}/{model}"),
        price: Some(prices.of(provider, model)?),
        limit_key: format!("{provider}/{}", family(model)),
        // Its answers always have a bound.
        is_bounded: provider == Api::Anthropic.provider(),
        counts_upfront: provider == Api::OpenAi.provider(),
        ..Seat::default()
    })
}
