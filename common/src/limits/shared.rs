//! The shared state of a limit key where it is kept: read, changed and replaced if nobody was faster. What it is, is
//! `pool.rs`.

use std::time::Duration;

use super::pool::Pool;
use super::view::PoolView;
use crate::codec;
use crate::error::{Error, Kind, Result};
use crate::ledger::Ledger;

/// How often a change is tried while others are faster. With 100 workers on a key one change in 20 meets another.
const TRIES: u32 = 12;
/// The longest wait after the first of them; each is as much longer.
const PAUSE: Duration = Duration::from_millis(3);

/// Changes what a fleet shares of a limit key, at the moment of the ledger's own clock (in milliseconds). `how` may be
/// called more than once; what it said to the state that was kept is what comes back.
///
/// # Errors
/// `Unavailable` where others were always faster; else as the ledger's. After one, nobody knows whether it was changed.
pub async fn change<T>(ledger: &dyn Ledger, key: &str, mut how: impl FnMut(&mut Pool, i64) -> T) -> Result<T> {
    for tries in 1..=TRIES {
        let kept = ledger.limit(key).await?;
        let mut pool = read(key, &kept.bytes)?;
        let said = how(&mut pool, kept.now.as_millis());
        let new = codec::encode_pool(&pool)?;
        if ledger.swap_limit(key, &kept.bytes, &new).await? {
            return Ok(said);
        }
        tokio::time::sleep(PAUSE.mul_f64(f64::from(tries) * rand::random::<f64>())).await;
    }
    Err(Error::new(Kind::Unavailable, "change a limit", format!("{key}: others were faster {TRIES} times")))
}

/// How long ago a person released a limit key, by the ledger's clock; `None` if nobody has.
///
/// # Errors
/// As the ledger's.
pub(super) async fn released(ledger: &dyn Ledger, key: &str) -> Result<Option<Duration>> {
    let kept = ledger.limit(key).await?;
    let ago = read(key, &kept.bytes)?.released_for(kept.now.as_millis());
    Ok(ago.map(|ago| Duration::from_millis(u64::try_from(ago).unwrap_or_default())))
}

/// Forgets a key without limits that was frozen or released long ago.
///
/// # Errors
/// As the ledger's.
pub async fn forget(ledger: &dyn Ledger, key: &str) -> Result<()> {
    let kept = ledger.limit(key).await?;
    if !kept.bytes.is_empty() && codec::decode_pool(&kept.bytes)?.is_blank(kept.now.as_millis()) {
        ledger.swap_limit(key, &kept.bytes, &[]).await?;
    }
    Ok(())
}

/// What people see of a limit key; `None` while nobody has used it.
///
/// # Errors
/// As the ledger's.
pub async fn look(ledger: &dyn Ledger, key: &str) -> Result<Option<PoolView>> {
    let kept = ledger.limit(key).await?;
    if kept.bytes.is_empty() {
        return Ok(None);
    }
    Ok(Some(read(key, &kept.bytes)?.view(kept.now.as_millis())))
}

/// Forgets what a fleet shares of a limit key, readable or not; whether there was anything. Workers tell again what their
/// calls hold.
///
/// # Errors
/// As [`change`].
pub async fn reset(ledger: &dyn Ledger, key: &str) -> Result<bool> {
    for tries in 1..=TRIES {
        let kept = ledger.limit(key).await?;
        if kept.bytes.is_empty() || ledger.swap_limit(key, &kept.bytes, &[]).await? {
            return Ok(!kept.bytes.is_empty());
        }
        tokio::time::sleep(PAUSE.mul_f64(f64::from(tries) * rand::random::<f64>())).await;
    }
    Err(Error::new(Kind::Unavailable, "reset a limit", format!("{key}: others were faster {TRIES} times")))
}

/// What is damaged, or of a later release, says how it is mended: nobody can go on with it.
fn read(key: &str, bytes: &[u8]) -> Result<Pool> {
    codec::decode_pool(bytes).map_err(|error| {
        let what = format!("what workers share of the limit {key:?} is damaged or of another release");
        let hint = format!("hint: if no newer promptq uses it, promptq limits reset {key:?} begins it anew");
        Error::new(Kind::Corrupt, "read a limit", format!("{what}; {hint}")).because(error)
    })
}
