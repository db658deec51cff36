//! What is left to do for jobs that have ended: announcing, acknowledging, replying, in this order, for as many at once
//! as have ended meanwhile. Nothing waits to be with others: who comes alone goes alone.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;

use super::desk::Desk;
use super::post::Notice;
use super::receipt::Receipt;
use super::wire::Reply;

/// While one lot is on its way to the server, another is noted in the ledger, and a third one comes.
const AT_ONCE: usize = 3;
/// What the publisher sends at once.
const LOT: usize = 500;
/// Between attempts to announce a result.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// A job that has ended.
#[derive(Debug)]
pub(super) struct Ending {
    pub(super) notice: Notice,
    /// Who waits for the result besides.
    pub(super) reply: Option<Reply>,
    /// What answers for its message, if that is still there to be answered for.
    pub(super) receipt: Option<Receipt>,
    /// Its place among those that may be on their way.
    pub(super) _room: Option<OwnedSemaphorePermit>,
}

/// Jobs that have ended and wait to be told of.
#[derive(Debug, Default)]
pub(super) struct Endings(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    waiting: Vec<Ending>,
    /// How many lots are on their way.
    under_way: usize,
}

impl Endings {
    /// Gives up what waits: its messages go back.
    pub(super) fn clear(&self) {
        let waiting = std::mem::take(&mut self.state().waiting);
        drop(waiting);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One that tells lot after lot, while there are any.
struct Crier {
    desk: Arc<Desk>,
    is_done: bool,
}

impl Crier {
    /// What goes next; the last time `None`, from which on whoever comes starts another crier.
    fn next(&mut self) -> Option<Vec<Ending>> {
        let mut state = self.desk.endings.state();
        let most = state.waiting.len().min(LOT);
        if most == 0 {
            state.under_way -= 1;
            self.is_done = true;
            return None;
        }
        Some(state.waiting.drain(..most).collect())
    }
}

impl Drop for Crier {
    /// One that broke leaves the rest to another; one that was cut off leaves it to whoever cut it off.
    fn drop(&mut self) {
        if !self.is_done {
            self.desk.endings.state().under_way -= 1;
            if std::thread::panicking() {
                start(&self.desk);
            }
        }
    }
}

/// Tells of a job that has ended, soon. Who calls does not wait.
pub(super) fn cry(desk: &Arc<Desk>, ending: Ending) {
    desk.endings.state().waiting.push(ending);
    start(desk);
}

fn start(desk: &Arc<Desk>) {
    {
        let mut state = desk.endings.state();
        if state.waiting.is_empty() || state.under_way >= AT_ONCE {
            return;
        }
        state.under_way += 1;
    }
    let mut crier = Crier { desk: Arc::clone(desk), is_done: false };
    desk.spawn(async move {
        while let Some(lot) = crier.next() {
            tell(&crier.desk, lot).await;
        }
    });
}

async fn tell(desk: &Arc<Desk>, lot: Vec<Ending>) {
    let notices: Vec<&Notice> = lot.iter().map(|ending| &ending.notice).collect();
    let told = desk.post.announce(&notices).await;
    for (ending, told) in lot.into_iter().zip(told) {
        match told {
            Ok(()) if ending.reply.is_none() => {
                conclude(ending.receipt);
            }
            Ok(()) => {
                let desk_of = Arc::clone(desk);
                desk.spawn(async move { answer(&desk_of, ending).await });
            }
            Err(error) => {
                tracing::debug!(%error, job = %ending.notice.of.id, "a result is not announced yet");
                let desk_of = Arc::clone(desk);
                desk.spawn(async move {
                    tokio::time::sleep(PAUSES.0).await;
                    finish(&desk_of, ending).await;
                });
            }
        }
    }
}

/// Announces a result until that is done or its message has gone to somebody else, who will do it.
pub(super) async fn finish(desk: &Desk, ending: Ending) {
    let mut pause = PAUSES.0;
    let job = ending.notice.of.id;
    while let Err(error) = desk.post.announce_one(&ending.notice).await {
        if !ending.receipt.as_ref().is_some_and(Receipt::is_usable) {
            tracing::debug!(%error, %job, "a result is announced by whoever gets its message next");
            return;
        }
        tracing::debug!(%error, %job, "a result is not announced yet");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
    answer(desk, ending).await;
}

async fn answer(desk: &Desk, ending: Ending) {
    let Ending { notice, reply, receipt, .. } = ending;
    conclude(receipt);
    if let Some(reply) = &reply {
        desk.post.reply(reply, &notice).await;
    }
}

fn conclude(receipt: Option<Receipt>) {
    crate::crash_point!("amqp.end.after_announcement");
    if let Some(receipt) = receipt {
        receipt.ack();
    }
}
