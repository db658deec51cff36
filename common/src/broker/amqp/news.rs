//! What a subscription has to know and nobody delivers: which lanes there are, which queues are paused, whether jobs wait
//! behind closed lanes. Asked for at leisure, so that a closed lane causes next to no traffic.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::post::Post;
use super::topology;
use crate::error::Result;
use crate::job::{Lane, Queue};

/// A pause is to be effective within 5 s.
const PAUSES: Duration = Duration::from_secs(2);
/// A closed lane is looked at this often.
const CLOSED: Duration = Duration::from_secs(5);
/// New lanes are rare; the ledger's clock drifts slowly.
const LANES: Duration = Duration::from_secs(30);

/// What is known now.
#[derive(Clone, Debug, Default)]
pub(super) struct News {
    /// Every lane that has a queue.
    pub(super) lanes: Vec<Lane>,
    pub(super) paused: HashSet<Queue>,
    /// Closed lanes in which jobs wait.
    pub(super) waiting: Vec<Lane>,
}

/// The other side of a subscription's news.
#[derive(Debug)]
pub(super) struct Feed {
    pub(super) news: watch::Receiver<News>,
    /// Which lanes the worker takes nothing from.
    pub(super) closed: watch::Sender<Vec<Lane>>,
}

/// Keeps the news up to date, in `keepers`.
pub(super) async fn follow(post: &Arc<Post>, queues: Vec<Queue>, keepers: &mut JoinSet<()>) -> Result<Feed> {
    post.clock.set(&*post.claims).await?;
    let lanes = lanes(post, &queues).await?;
    let (sender, news) = watch::channel(News { lanes, paused: paused(post, &queues).await?, waiting: Vec::new() });
    let (closed, shut) = watch::channel(Vec::new());
    let sender = Arc::new(sender);
    keepers.spawn(keep(Arc::clone(post), queues, Arc::clone(&sender)));
    keepers.spawn(look(Arc::clone(post), shut, sender));
    Ok(Feed { news, closed })
}

#[expect(clippy::infinite_loop, reason = "ends with its keeper")]
async fn keep(post: Arc<Post>, queues: Vec<Queue>, news: Arc<watch::Sender<News>>) {
    let mut looked = Instant::now();
    loop {
        tokio::time::sleep(PAUSES).await;
        match paused(&post, &queues).await {
            Ok(paused) => {
                news.send_if_modified(|news| {
                    let new = news.paused != paused;
                    news.paused = paused;
                    new
                });
            }
            Err(error) => tracing::debug!(%error, "whether queues are paused is not known"),
        }
        if looked.elapsed() < LANES {
            continue;
        }
        looked = Instant::now();
        if let (Ok(lanes), Ok(())) = (lanes(&post, &queues).await, post.clock.set(&*post.claims).await) {
            news.send_if_modified(|news| {
                let new = news.lanes != lanes;
                news.lanes = lanes;
                new
            });
        }
    }
}

/// Looks whether jobs wait behind closed lanes: soon after one was closed, then at leisure.
async fn look(post: Arc<Post>, mut closed: watch::Receiver<Vec<Lane>>, news: Arc<watch::Sender<News>>) {
    loop {
        let lanes = closed.borrow_and_update().clone();
        let mut waiting = Vec::new();
        for lane in lanes {
            if let Ok(Some(1..)) = topology::ready(&post.link, &topology::lane_queue(&lane)).await {
                waiting.push(lane);
            }
        }
        news.send_if_modified(|news| {
            let new = news.waiting != waiting;
            news.waiting = waiting;
            new
        });
        tokio::select! {
            changed = closed.changed() => if changed.is_err() {
                return;
            },
            () = tokio::time::sleep(CLOSED) => {}
        }
        tokio::time::sleep(PAUSES / 4).await;
    }
}

async fn paused(post: &Post, queues: &[Queue]) -> Result<HashSet<Queue>> {
    let mut paused = HashSet::new();
    for queue in queues {
        if post.claims.paused(queue).await?.is_some() {
            paused.insert(queue.clone());
        }
    }
    Ok(paused)
}

async fn lanes(post: &Post, queues: &[Queue]) -> Result<Vec<Lane>> {
    let mut lanes = Vec::new();
    for queue in queues {
        lanes.extend(topology::lanes(post.ledger(), queue).await?);
    }
    Ok(lanes)
}
