//! What only some jobs ask for, and what therefore most need not carry.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::outcome::Usd;

/// How a job may be answered and what it may cost, where its submitter said so. No part of what it asks for: a job that is
/// submitted again with other extras is the same one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extras {
    /// It may be given a stored answer that is no older than this.
    pub reuse: Option<Duration>,
    /// The most that all its attempts may cost.
    pub max_cost: Option<Usd>,
    /// The most that all jobs of its batch may cost together.
    pub batch_max_cost: Option<Usd>,
}

impl Extras {
    /// Itself, unless there is nothing in it.
    pub fn kept(self) -> Option<Box<Self>> {
        (self != Self::default()).then(|| Box::new(self))
    }
}
