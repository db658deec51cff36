//! Clients that wait for a job to end: all of them together look at the ledger, so that their number costs it little.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use promptq_common::broker::{Broker, MAX_BATCH};
use promptq_common::job::JobId;
use promptq_common::ledger::JobView;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval};

/// How often they look.
const LOOK: Duration = Duration::from_millis(100);
/// Those who have not been heard yet.
const UNHEARD: usize = 64;

/// Where clients ask to be told. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Waiting(mpsc::Sender<Client>);

/// Whoever looks for them; see [`Looker::look`].
#[derive(Debug)]
pub(super) struct Looker(mpsc::Receiver<Client>);

/// Told a job that all who wait for it share: its answer may be large.
type Teller = oneshot::Sender<Arc<JobView>>;

type Client = (JobId, Teller);

/// Both ends.
pub(super) fn waiting() -> (Waiting, Looker) {
    let (clients, heard) = mpsc::channel(UNHEARD);
    (Waiting(clients), Looker(heard))
}

impl Waiting {
    /// The job once it has ended; for ever pending if it never does, or nobody looks any more. Cancel-safe.
    pub(super) async fn ended(&self, id: JobId) -> Arc<JobView> {
        let (tell, told) = oneshot::channel();
        if self.0.send((id, tell)).await.is_ok()
            && let Ok(view) = told.await
        {
            return view;
        }
        std::future::pending().await
    }
}

impl Looker {
    /// Looks until dropped. While the broker is away they go on waiting.
    pub(super) async fn look(mut self, broker: &Broker) {
        let mut clients: HashMap<JobId, Vec<Teller>> = HashMap::new();
        let mut tick = interval(LOOK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                client = self.0.recv() => match client {
                    Some((id, tell)) => clients.entry(id).or_default().push(tell),
                    None => return,
                },
                _ = tick.tick(), if !clients.is_empty() => {
                    clients.retain(|_, tellers| {
                        tellers.retain(|tell| !tell.is_closed());
                        !tellers.is_empty()
                    });
                    tell(broker, &mut clients).await;
                }
            }
        }
    }
}

async fn tell(broker: &Broker, clients: &mut HashMap<JobId, Vec<Teller>>) {
    let ids: Vec<JobId> = clients.keys().copied().collect();
    for ids in ids.chunks(MAX_BATCH) {
        let Ok(views) = broker.ledger().fetch(ids).await else { return };
        for view in views.into_iter().flatten().filter(|view| view.state.is_ended()) {
            let view = Arc::new(view);
            for tell in clients.remove(&view.id).unwrap_or_default() {
                // Whoever has gone need not know.
                drop(tell.send(Arc::clone(&view)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use promptq_common::job::{Job, Queue};
    use promptq_common::record::State;
    use promptq_common::work::Work;
    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn everybody_who_waits_for_a_job_is_told_of_its_end_and_nobody_before() {
        let broker = Broker::memory();
        let jobs = [1, 2].map(|n| Job::new(Queue::standard(), Work::prompt(Some("m"), format!("job {n}"))));
        broker.enqueue(&jobs).await.unwrap();
        let (waiting, looker) = waiting();
        let work = async {
            let (first, second) = (waiting.ended(jobs[0].id), waiting.ended(jobs[0].id));
            let early = timeout(Duration::from_secs(9), waiting.ended(jobs[1].id)).await;
            assert!(early.is_err(), "it waits yet");
            let cancel = async { broker.cancel(&[jobs[0].id]).await.unwrap() };
            let (first, second, _) = tokio::join!(first, second, cancel);
            assert_eq!([first.state, second.state], [State::Cancelled; 2]);
        };
        tokio::select! {
            () = looker.look(&broker) => panic!("it looks for as long as there is somebody"),
            () = work => {}
        }
    }
}
