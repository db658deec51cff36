//! promptq as people start it: `promptq submit` of a file, and workers whose model answers at once. Their start counts.

use std::io::{BufWriter, Write as _};
use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::meter::prompt;
use crate::redis::RedisServer;
use crate::{Home, Running};

/// How often the server is asked how far the workers are: as exact as a jobs-per-second figure of a second needs.
const LOOK: Duration = Duration::from_millis(5);
/// Nothing here takes longer.
const PATIENCE: Duration = Duration::from_secs(120);

/// A folder with rows to submit, and how many workers there are.
#[derive(Debug)]
pub(super) struct Programs {
    home: Home,
    workers: usize,
}

impl Programs {
    pub(super) fn new(server: &RedisServer, jobs: usize, workers: usize) -> anyhow::Result<Self> {
        let home = Home::at(&server.url(), "[mock]\nlatency = [\"0ms\", \"0ms\"]\n")?;
        let mut rows = BufWriter::new(std::fs::File::create(home.path().join("rows.csv"))?);
        writeln!(rows, "text")?;
        for row in 0..jobs {
            writeln!(rows, "{}", prompt(row))?;
        }
        rows.into_inner()?.sync_all()?;
        Ok(Self { home, workers })
    }

    /// One `promptq submit`, which reads its file twice: to check all of it, and to enqueue.
    pub(super) async fn enqueue(&self) -> anyhow::Result<()> {
        let took = self.submit()?.wait().await?;
        ensure!(took.status.success(), "promptq submit ended with {}", took.status);
        Ok(())
    }

    /// The workers, until `ended` jobs in all have ended here.
    pub(super) async fn drain(&self, server: &RedisServer, ended: usize) -> anyhow::Result<()> {
        let workers = (0..self.workers).map(|_| self.home.start("promptq-worker", &["--concurrency", "500"]));
        let workers = workers.collect::<anyhow::Result<Vec<_>>>()?;
        let began = Instant::now();
        while server.must(&["HGET", "{pq:default}:c", "cursor"]) == crate::redis::Reply::Nil
            || server.must(&["HGET", "{pq:default}:c", "cursor"]).number() < i64::try_from(ended)?
        {
            ensure!(began.elapsed() < PATIENCE, "the workers are not done after {PATIENCE:?}");
            tokio::time::sleep(LOOK).await;
        }
        // Killed and waited for, so that their time is counted.
        drop(workers);
        Ok(())
    }

    /// The workers first, then the submission.
    pub(super) async fn live(&self, server: &RedisServer, ended: usize) -> anyhow::Result<()> {
        tokio::try_join!(self.drain(server, ended), self.enqueue()).map(drop)
    }

    fn submit(&self) -> anyhow::Result<Running> {
        self.home.start("promptq", &["submit", "rows.csv", "-t", "{{text}}", "-m", "mock"])
    }
}
