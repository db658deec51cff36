//! A queue that nobody needs any more: its lanes and its announcements go, unless somebody uses them yet.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::lanes::{self, Change, Note};
use super::talk::{Look, Talk};
use super::wanted::WantedQueue;
use super::{Settings, names, or_error, prune, wanted};
use crate::broker::Remark;
use crate::error::{Kind, Result};
use crate::job::Queue;

/// How long the last consumers are waited for: who has just left is told of by the server a moment later.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often they are looked at.
const EVERY: Duration = Duration::from_millis(50);

/// Deletes what [`wanted::of_queue`] names, unless jobs wait in it or may yet come back to it, or somebody consumes it;
/// announcements go though they wait. Says what stays, and why. Dead in the middle: whoever uses the queue next makes it
/// whole, and the next call deletes the rest.
pub(super) async fn retire(talk: &mut Talk<'_>, change: &Change<'_>, settings: &Settings) -> Result<Vec<Remark>> {
    let note = lanes::read(change.ledger, change.queue).await?;
    let own = wanted::of_queue(change.queue, &note.all(), settings);
    let mut left = in_use(talk, change.queue, &own, settings).await?;
    if !left.is_empty() {
        return Ok(left);
    }
    lanes::write(change.ledger, change.queue, &Note { whole: false, ..note.clone() }).await?;
    let done = delete(talk, change.queue, &own, &mut left).await;
    if done.is_ok() && left.is_empty() {
        lanes::remove(change.ledger, change.queue).await?;
        return Ok(left);
    }
    // Whoever may not delete a queue leaves it as it was; what somebody has come to use is led to again.
    let led = lead_to(talk, &own).await;
    // A user who may take no way away may make none either.
    let is_as_it_was = led.as_ref().map_or_else(|error| error.kind() == Kind::Denied, |()| true);
    if done.is_err() && is_as_it_was {
        lanes::write(change.ledger, change.queue, &note).await?;
    }
    done.and(led).map(|()| left)
}

/// What is used, and why it stays.
async fn in_use(talk: &mut Talk<'_>, queue: &Queue, own: &[WantedQueue], settings: &Settings) -> Result<Vec<Remark>> {
    // A delay queue does not say whose jobs are in it, and keeps for ever what it can lead nowhere: others would wait
    // behind that.
    for level in &settings.levels {
        let name = names::delay_queue(*level);
        if let Some(Look { ready: 1.., .. }) = talk.look(&name).await? {
            let why = format!("delayed jobs wait in {name}, and some may be of this queue");
            return Ok(vec![Remark { name: queue.to_string(), why }]);
        }
    }
    let results = names::results_queue(queue);
    let mut used = Vec::new();
    for WantedQueue { name, .. } in own {
        if let Some(why) = why_used(talk, name, *name == results).await? {
            used.push(Remark { name: name.clone(), why });
        }
    }
    Ok(used)
}

/// Takes away every way to the lanes, so that a job which comes from now on is returned to whoever sends it, and then
/// the lanes that nobody has come to use.
async fn delete(talk: &mut Talk<'_>, queue: &Queue, own: &[WantedQueue], left: &mut Vec<Remark>) -> Result<()> {
    let results = names::results_queue(queue);
    for queue in own {
        prune::unbind(talk, queue).await?;
    }
    for WantedQueue { name, .. } in own {
        match why_used(talk, name, *name == results).await? {
            Some(why) => left.push(Remark { name: name.clone(), why }),
            None => or_error(talk.delete(name).await?)?,
        }
    }
    Ok(())
}

async fn lead_to(talk: &mut Talk<'_>, own: &[WantedQueue]) -> Result<()> {
    for queue in own {
        if talk.look(&queue.name).await?.is_some() {
            for binding in &queue.bindings {
                or_error(talk.bind(&queue.name, binding).await?)?;
            }
        }
    }
    Ok(())
}

/// Why a queue has to stay; `None` where it need not, or is gone.
async fn why_used(talk: &mut Talk<'_>, name: &str, is_results: bool) -> Result<Option<String>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let why = match talk.look(name).await? {
            Some(Look { ready: 1.., .. }) if !is_results => return Ok(Some("jobs wait in it".to_owned())),
            Some(Look { consumers: 1.., .. }) => "somebody takes from it",
            Some(_) | None => return Ok(None),
        };
        if Instant::now() > deadline {
            return Ok(Some(why.to_owned()));
        }
        sleep(EVERY).await;
    }
}
