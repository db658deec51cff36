//! The store's clock, so that machines whose own clocks differ agree on what came first.

use crate::broker::LeaseId;
use crate::error::Result;
use crate::store::Store;
use crate::time::Timestamp;

/// How far this machine's clock is from the store's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    /// Milliseconds to add to ours.
    ahead: i64,
}

/// Services tell whole seconds, and the request takes a while: less than this may be nothing.
const NOISE: i64 = 2_000;

impl Clock {
    /// Writes an object and compares.
    pub(super) async fn read(store: &Store) -> Result<Self> {
        let key = format!("probe/{}", LeaseId::random());
        let before = Timestamp::now();
        store.put(&key, Vec::new()).await?;
        let after = Timestamp::now();
        let there = store.modified(&key).await?;
        store.delete(&[key]).await?;
        Ok(Self { ahead: there.map_or(0, |there| ahead(before, after, there)) })
    }

    pub(super) fn now(self) -> Timestamp {
        Timestamp::from_millis(Timestamp::now().as_millis().saturating_add(self.ahead))
    }
}

fn ahead(before: Timestamp, after: Timestamp, there: Timestamp) -> i64 {
    let ours = before.as_millis().midpoint(after.as_millis());
    let slack = NOISE + i64::try_from(after.since(before).as_millis()).unwrap_or(0) / 2;
    let ahead = there.as_millis().saturating_sub(ours);
    if ahead.abs() <= slack { 0 } else { ahead }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clock_that_is_clearly_off_is_corrected() {
        let at = Timestamp::from_millis;
        assert_eq!(ahead(at(10_000), at(10_100), at(9_000)), 0);
        assert_eq!(ahead(at(10_000), at(20_000), at(11_000)), 0);
        assert_eq!(ahead(at(10_000), at(10_000), at(3_610_000)), 3_600_000);
        assert_eq!(ahead(at(3_610_000), at(3_610_000), at(10_000)), -3_600_000);
    }
}
