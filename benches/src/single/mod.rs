//! What is measured alone, beside nobody: idle workers, memory of what waits, a backlog behind a closed lane. promptq takes
//! part as a library, but for `idle`.

mod jobs;
pub mod rabbit;
pub mod redis;

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use crate::process::Home;

/// One `promptq-worker` on a file with nothing to do.
pub async fn idle(length: Duration) -> anyhow::Result<String> {
    let home = Home::new("", Vec::new())?;
    let broker = format!("sqlite://{}", home.path().join("q.db").display());
    let worker = home.start("promptq-worker", &["--broker", &broker])?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (began, before) = (Instant::now(), worker.cpu()?);
    tokio::time::sleep(length).await;
    let share = (worker.cpu()? - before) / began.elapsed().as_secs_f64() * 100.0;
    Ok(format!("idle worker: {} MiB resident, {share:.2} % of one processor\n", worker.resident()? / 1024))
}

/// Processor time of this process, in seconds.
fn own_time() -> anyhow::Result<f64> {
    let own = clock_gettime(ClockId::ProcessCPUTime);
    Ok(Duration::new(u64::try_from(own.tv_sec)?, u32::try_from(own.tv_nsec)?).as_secs_f64())
}
