//! Where an answer's body goes before its record is written: into the record, or into the store.

use std::time::Duration;

use promptq_common::broker::LeaseId;
use promptq_common::job::JobId;
use promptq_common::outcome::{Body, Failure, FailureClass};
use promptq_common::record::Output;
use promptq_common::store::Store;

use crate::settings::Settings;

/// Whether a body goes into the store; else [`inline`] is its place, and nothing has to be waited for.
pub(crate) fn is_stored(store: Option<&Store>, settings: &Settings, body: &Body) -> bool {
    store.is_some() && (settings.store_all || size(body) > settings.inline_limit)
}

/// Finds a place for a body; once this returns, the place is durable or the record carries the body. A store out of
/// reach is tried again for as long as this is polled: the answer is paid for.
///
/// # Errors
/// A `fatal` failure, `output_too_large` or `output_not_stored`, when no place can ever hold it.
pub(crate) async fn keep(
    store: Option<&Store>,
    settings: &Settings,
    (job, lease): (JobId, LeaseId),
    body: Body,
) -> Result<Output, Failure> {
    let Some(store) = store.filter(|_| is_stored(store, settings, &body)) else { return inline(settings, body) };
    let mut pause = Duration::from_millis(100);
    loop {
        match store.put_output(job, lease, &body).await {
            Ok(stored) => return Ok(Output::Stored(stored)),
            Err(error) if error.is_transient() => {
                tracing::warn!(%error, %job, "storing an answer failed; trying again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(5));
            }
            Err(error) => {
                tracing::error!(%error, %job, "the store refuses an answer; keeping it in the record if it fits");
                return fitted(settings, body, "output_not_stored", "hint: see the worker's log for the store's error");
            }
        }
    }
}

/// A place in the record.
///
/// # Errors
/// A `fatal` failure, `output_too_large`, when it does not fit.
pub(crate) fn inline(settings: &Settings, body: Body) -> Result<Output, Failure> {
    fitted(settings, body, "output_too_large", "hint: give the worker a store with --store")
}

fn fitted(settings: &Settings, body: Body, code: &str, hint: &str) -> Result<Output, Failure> {
    let (bytes, most) = (size(&body), settings.inline_max);
    if bytes > most {
        let detail = format!("the answer has {bytes} bytes, a record holds at most {most}; {hint}");
        return Err(Failure::new(FailureClass::Fatal, code, &detail));
    }
    Ok(Output::Inline(body))
}

fn size(body: &Body) -> u64 {
    let (Body::Json(text) | Body::Text(text)) = body;
    text.len() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use promptq_common::broker::WorkerId;
    use promptq_common::job::Queue;

    async fn kept(store: Option<&Store>, change: fn(&mut Settings), bytes: usize) -> Result<Output, Failure> {
        let mut settings = Settings::standard(WorkerId::random("t"), vec![(Queue::standard(), 1)]);
        change(&mut settings);
        let body = Body::Text("x".repeat(bytes));
        keep(store, &settings, (JobId::fresh(), LeaseId::random()), body).await
    }

    #[tokio::test]
    async fn size_and_store_decide_the_place() {
        let store = Store::memory();
        let inline = |output| matches!(output, Ok(Output::Inline(_)));
        assert!(inline(kept(Some(&store), |_| {}, 65_536).await));
        assert!(inline(kept(None, |_| {}, 65_537).await));
        let stored = kept(Some(&store), |_| {}, 65_537).await;
        let Ok(Output::Stored(stored)) = stored else { panic!("{stored:?}") };
        assert_eq!((stored.bytes, store.get_output(&stored).await.unwrap()), (65_537, Body::Text("x".repeat(65_537))));
        assert!(matches!(kept(Some(&store), |settings| settings.store_all = true, 1).await, Ok(Output::Stored(_))));
        let failure = kept(None, |settings| settings.inline_max = 100, 101).await.unwrap_err();
        assert_eq!((failure.class, failure.code.as_str()), (FailureClass::Fatal, "output_too_large"));
    }
}
