//! A worker's subscription while it asks for jobs, and while it does not: a full worker asks for none, its long jobs are
//! to be kept all the same, and what it has not started is for others.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use super::post::Post;
use super::source::AmqpSource;
use crate::broker::backend::{Leased, Source, Terms, Want};
use crate::error::Result;

/// How often a source is looked after that nobody asks.
const OFTEN: Duration = Duration::from_millis(250);

/// A source, and who looks after it meanwhile.
#[derive(Debug)]
pub(super) struct Subscription {
    source: Arc<Mutex<AmqpSource>>,
    tending: JoinSet<()>,
}

impl Subscription {
    /// Subscribes. `Config` when a queue is named twice.
    pub(super) async fn open(post: Arc<Post>, terms: Terms) -> Result<Self> {
        let source = Arc::new(Mutex::new(AmqpSource::open(post, terms).await?));
        let mut tending = JoinSet::new();
        tending.spawn(tend(Arc::clone(&source)));
        Ok(Self { source, tending })
    }
}

/// Never ends by itself.
#[expect(clippy::infinite_loop, reason = "ends with its subscription")]
async fn tend(source: Arc<Mutex<AmqpSource>>) {
    loop {
        tokio::time::sleep(OFTEN).await;
        // Whoever has it is asking.
        if let Ok(mut source) = source.try_lock() {
            source.tend();
        }
    }
}

#[async_trait]
impl Source for Subscription {
    async fn next(&mut self, want: &Want) -> Result<Leased> {
        self.source.lock().await.next(want).await
    }

    async fn close(mut self: Box<Self>) -> Result<()> {
        self.tending.shutdown().await;
        // With its keeper gone, nobody else has it.
        match Arc::try_unwrap(self.source) {
            Ok(source) => source.into_inner().close().await,
            Err(_) => Ok(()),
        }
    }
}
