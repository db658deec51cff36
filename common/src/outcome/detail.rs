//! What is known of an answer beside what it says and consumed: what the provider said of it, and where it is from.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::job::JobId;

/// What a provider says of an answer beside its usage: what its price depends on, and how soon it began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detail {
    /// Of the input tokens, written to the provider's cache.
    pub cache_write_tokens: u64,
    /// The service tier that answered (`default`, `batch`, `flex`, `priority`, …), as the provider names it.
    pub service_tier: Option<String>,
    /// From the start of the call to the first event of a streamed answer that holds some of its content.
    pub first_piece: Option<Duration>,
}

impl Detail {
    /// Itself, unless there is nothing in it.
    pub fn kept(self) -> Option<Box<Self>> {
        (self != Self::default()).then(|| Box::new(self))
    }
}

/// Where an answer and its cost are from; each part only where it does not go without saying.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The provider and model that answered, `acme/fast-2`, where the job's model name has several.
    pub route: Option<String>,
    /// Who says what it cost.
    pub cost_source: Option<CostSource>,
    /// The day of the price it was reckoned with, `2026-11-03`.
    pub price_as_of: Option<String>,
    /// The job whose stored answer was given again.
    pub reused_from: Option<JobId>,
}

impl Origin {
    /// Itself, unless there is nothing in it.
    pub fn kept(self) -> Option<Box<Self>> {
        (self != Self::default()).then(|| Box::new(self))
    }
}

/// Who says what a call cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CostSource {
    /// The provider, with its answer.
    Provider,
    /// The price of the model, and what was consumed as the provider told it.
    PriceTable,
    /// The price of the model, and a guess at what was consumed.
    Estimate,
}
