//! Since when nothing could be published, and why: what the source asks before it takes new jobs, and what callers are
//! told without being kept waiting.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::Error;

/// How long a trouble may last before callers are told at once instead of kept waiting, and before no new jobs are
/// taken: what a short alarm or a restarted listener takes.
pub(super) const GRACE: Duration = Duration::from_secs(2);
/// How long ago the last failure may be for a trouble to be one still: callers try again within seconds, and who has
/// stopped to take jobs because of it would otherwise never find out that it has passed.
const FORGET: Duration = Duration::from_secs(10);

/// Shared by those who meet troubles and those who ask.
#[derive(Clone, Debug, Default)]
pub(super) struct Trouble(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    /// The connection is lost or blocked: since when, and what callers are told.
    connection: Option<(Instant, Error)>,
    /// Nothing was taken of what was published: since when, and when last.
    refused: Option<(Instant, Instant)>,
}

impl Trouble {
    /// For how long nothing could be published; `None` while it works.
    pub(super) fn lasting(&self) -> Option<Duration> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let refused = known.refused.filter(|(_, last)| last.elapsed() < FORGET).map(|(since, _)| since);
        let connection = known.connection.as_ref().map(|(since, _)| *since);
        connection.into_iter().chain(refused).map(|since| since.elapsed()).max()
    }

    /// The connection cannot be used, for this reason. A trouble that goes over into another began with the first.
    pub(super) fn stuck(&self, why: Error) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let since = known.connection.take().map_or_else(Instant::now, |(since, _)| since);
        known.connection = Some((since, why));
    }

    /// The connection can be used again.
    pub(super) fn free(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).connection = None;
    }

    /// Something was taken.
    pub(super) fn taken(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).refused = None;
    }

    /// Nothing of what was published was taken.
    pub(super) fn refused(&self) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let since = known.refused.filter(|(_, last)| last.elapsed() < FORGET).map_or(now, |(since, _)| since);
        known.refused = Some((since, now));
    }

    /// What callers are told while the connection cannot be used, and how much longer callers are kept waiting for it.
    pub(super) fn stuck_for(&self) -> Option<(Error, Duration)> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, why) = known.connection.as_ref()?;
        Some((why.shared(), GRACE.saturating_sub(since.elapsed())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn why(text: &str) -> Error {
        Error::new(Kind::Unavailable, "try", text)
    }

    #[test]
    fn a_trouble_lasts_from_its_first_cause_to_its_end() {
        let trouble = Trouble::default();
        assert!(trouble.lasting().is_none() && trouble.stuck_for().is_none());
        trouble.stuck(why("blocked"));
        let before = trouble.lasting().unwrap();
        trouble.stuck(why("lost"));
        let (told, left) = trouble.stuck_for().unwrap();
        assert!(told.to_string().contains("lost") && left <= GRACE);
        assert!(trouble.lasting().unwrap() >= before);
        trouble.free();
        assert!(trouble.lasting().is_none());
    }

    #[test]
    fn refusals_are_a_trouble_until_something_is_taken() {
        let trouble = Trouble::default();
        trouble.refused();
        trouble.free();
        assert!(trouble.lasting().is_some(), "another kind of trouble's end");
        trouble.taken();
        assert!(trouble.lasting().is_none());
    }
}
