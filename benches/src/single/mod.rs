//! What is measured alone, beside nobody: idle workers, memory of what waits, a backlog behind a closed lane. promptq takes
//! part as a library, but for `idle`.

pub mod rabbit;
pub mod redis;

use std::time::{Duration, Instant};

use promptq_common::broker::{Access, Broker, Want};
use promptq_common::job::Queue;
use tokio::task::JoinSet;

use crate::library::subscribe;
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

/// What an idle worker asks for.
const ONE: Want = Want { total: 1, caps: Vec::new(), rest: 1 };

/// So many workers that wait for a job, each connected by itself; they break off when this goes.
async fn idlers(access: &Access, workers: usize) -> anyhow::Result<JoinSet<anyhow::Result<()>>> {
    let mut hands = JoinSet::new();
    for _ in 0..workers {
        let broker = Broker::connect(access).await?;
        hands.spawn(async move {
            let mut consumer = subscribe(&broker, &[Queue::standard()]).await?;
            loop {
                consumer.next(&ONE).await?;
            }
            #[expect(unreachable_code, reason = "the type of what the task may fail with")]
            anyhow::Ok(())
        });
    }
    // They come in step; after a while they are out of it.
    tokio::time::sleep(Duration::from_secs(12)).await;
    Ok(hands)
}
