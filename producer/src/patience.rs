//! How long a command that waits for jobs bears a broker that is out of reach.

use std::time::Duration;

use promptq_common::error::Result;
use tokio::time::{Instant, sleep};

use crate::printer::Printer;

/// A server that restarts is back within this, with a large append-only file too; workers wait as long by themselves.
const LONGEST: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(500);

/// Asks again while the broker is away, for a minute, and says so once.
///
/// # Errors
/// The call's own, when asking again cannot help, or has not for a minute.
pub(crate) async fn outlast<T>(printer: &Printer, mut call: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let mut since = None;
    loop {
        let error = match call().await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let began = *since.get_or_insert_with(|| {
            if error.is_transient() {
                printer.say(&format!("the broker is out of reach; waiting up to {} s for it", LONGEST.as_secs()));
            }
            Instant::now()
        });
        if !error.is_transient() || began.elapsed() >= LONGEST {
            return Err(error);
        }
        sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use promptq_common::error::{Error, Kind};

    use super::*;
    use crate::printer::Style;

    async fn failing(kind: Kind, times: u32) -> (Result<u32>, u32) {
        let (printer, mut calls) = (Printer::new(Style { quiet: true, ..Style::default() }), 0);
        let answer = outlast(&printer, async || {
            calls += 1;
            if calls > times { Ok(calls) } else { Err(Error::new(kind, "ask", "away")) }
        })
        .await;
        (answer, calls)
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_is_outlasted_for_a_minute_and_a_mistake_not_at_all() {
        assert_eq!(failing(Kind::Unavailable, 5).await.0.unwrap(), 6);
        let (given_up, calls) = failing(Kind::Unavailable, u32::MAX).await;
        assert_eq!((given_up.unwrap_err().kind(), calls), (Kind::Unavailable, 121));
        assert_eq!(failing(Kind::Config, u32::MAX).await.1, 1);
    }
}
