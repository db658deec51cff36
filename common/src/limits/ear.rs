//! Hears what a provider's headers say of its limits while the call they came with still runs, and tells the fleet. What
//! they say is read where the call is made.

use std::sync::Arc;

use super::{Heard, Limits, Pass};

/// For one call. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Ear {
    limits: Limits,
    rule: Arc<str>,
    key: Arc<str>,
}

impl Ear {
    /// Takes note of what the headers of an answer said, one of each kind at most; goes to the other workers within a second.
    pub fn hear(&self, heard: impl IntoIterator<Item = Heard>) {
        self.limits.quotas().hear(&self.rule, &self.key, heard.into_iter());
    }
}

impl Pass {
    /// Who listens to this call's headers: the narrowest rule that caps what they speak of, or nobody.
    pub fn ear(&self) -> Option<Ear> {
        let rule = Arc::clone(self.reserved.as_ref()?.hears()?);
        Some(Ear { limits: self.limits.clone(), rule, key: Arc::clone(&self.key) })
    }
}
