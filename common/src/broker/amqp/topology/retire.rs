//! A queue that nobody needs any more: its lanes and its announcements go, unless somebody uses them yet.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::lanes::{self, Change, Note};
use super::talk::{Look, Talk};
use super::{Settings, names, or_error, wanted};
use crate::broker::Remark;
use crate::error::Result;
use crate::job::Queue;

/// How long the last consumers are waited for: who has just left is told of by the server a moment later.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often they are looked at.
const EVERY: Duration = Duration::from_millis(50);

/// Deletes what [`wanted::of_queue`] names: lanes in which nothing waits and that nobody consumes, and the announcements
/// unless somebody consumes them. Says what stays, and why. Dead in the middle: whoever uses the queue next makes it
/// whole, and the next call deletes the rest.
pub(super) async fn retire(talk: &mut Talk<'_>, change: &Change<'_>, settings: &Settings) -> Result<Vec<Remark>> {
    let note = lanes::read(change.ledger, change.queue).await?;
    lanes::write(change.ledger, change.queue, &Note { whole: false, ..note.clone() }).await?;
    let results = names::results_queue(change.queue);
    let mut left = Vec::new();
    for name in own(change.queue, &note, settings) {
        if let Some(why) = drop_queue(talk, &name, name == results).await? {
            left.push(Remark { name, why });
        }
    }
    if left.is_empty() {
        lanes::remove(change.ledger, change.queue).await?;
    }
    Ok(left)
}

fn own(queue: &Queue, note: &Note, settings: &Settings) -> Vec<String> {
    wanted::of_queue(queue, &note.all(), settings).into_iter().map(|queue| queue.name).collect()
}

/// Deletes one; why not, if it stays.
async fn drop_queue(talk: &mut Talk<'_>, name: &str, is_results: bool) -> Result<Option<String>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let why = match talk.look(name).await? {
            None => return Ok(None),
            Some(Look { ready: 1.., .. }) if !is_results => return Ok(Some("jobs wait in it".to_owned())),
            Some(Look { consumers: 1.., .. }) => "somebody takes from it",
            Some(_) => {
                or_error(talk.delete(name).await?)?;
                return Ok(None);
            }
        };
        if Instant::now() > deadline {
            return Ok(Some(why.to_owned()));
        }
        sleep(EVERY).await;
    }
}
