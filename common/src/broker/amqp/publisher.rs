//! Where messages are put in to be published, and what may become of them; `outbox` does it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use lapin::BasicProperties;
use lapin::types::ShortString;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::fault::Peer;
use super::outbox::Outbox;
use super::trouble::Trouble;
use super::window::{Request, mark_of, marked};
use crate::error::{Error, Kind, Result};

pub(super) const OP: &str = "publish to RabbitMQ";

/// What may wait beside the window that is on its way: another one, and its successor while it is answered.
const WAITING: usize = 1_024;
const WAITING_BYTES: usize = 8 << 20;
/// What a message takes besides its body.
const OVERHEAD: usize = 1 << 10;

/// One message, and where it goes.
pub(super) struct Message {
    pub(super) exchange: String,
    pub(super) key: String,
    pub(super) properties: BasicProperties,
    pub(super) body: Vec<u8>,
    /// Whether it comes back when no queue takes it; without, it is taken and gone.
    pub(super) mandatory: bool,
}

/// What became of a message that the server answered for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// It is in every queue it was routed to, as safe as those keep it.
    Taken,
    /// No queue took it.
    Returned,
}

/// Where messages are put in to be published.
pub(super) struct Publisher {
    inbox: mpsc::Sender<Request>,
    weights: Arc<Semaphore>,
    trouble: Trouble,
    marks: AtomicU64,
    peer: Peer,
}

/// A publisher and who does its work.
pub(super) fn pair(peer: Peer, confirm: Duration) -> (Publisher, Outbox) {
    let (sender, inbox) = mpsc::channel(WAITING);
    let (trouble, weights) = (Trouble::default(), Arc::new(Semaphore::new(WAITING_BYTES)));
    let outbox = Outbox::new(inbox, trouble.clone(), peer.clone(), confirm);
    (Publisher { inbox: sender, weights, trouble, marks: AtomicU64::new(0), peer }, outbox)
}

impl Publisher {
    /// Publishes, and waits until the server has confirmed it. After a dropped future it was published or not. Waits for
    /// as long as what was put in before it takes, each window a minute at most; nobody waits for a server that is lost
    /// or blocked.
    ///
    /// # Errors
    /// `Unavailable` and `TimedOut`: it may have been taken or not, and may be sent again; also when the queue is full
    /// or the server takes nothing for now. `Config`, `NotFound`, `TooLarge`, `Unsupported`: it was refused.
    pub(super) async fn publish(&self, message: Message) -> Result<Sent> {
        let answer = self.put(message).await?;
        answer.await.unwrap_or_else(|_| Err(self.closed()))
    }

    /// One answer each, in order.
    pub(super) async fn publish_all(&self, messages: Vec<Message>) -> Vec<Result<Sent>> {
        let mut waiting = Vec::with_capacity(messages.len());
        for message in messages {
            waiting.push(self.put(message).await);
        }
        let mut answers = Vec::with_capacity(waiting.len());
        for answer in waiting {
            answers.push(match answer {
                Ok(answer) => answer.await.unwrap_or_else(|_| Err(self.closed())),
                Err(error) => Err(error),
            });
        }
        answers
    }

    /// For how long nothing could be published (the connection lost or blocked, queues full), `None` while it works.
    pub(super) fn trouble(&self) -> Option<Duration> {
        self.trouble.lasting()
    }

    /// Waits for room, and puts it in.
    async fn put(&self, message: Message) -> Result<oneshot::Receiver<Result<Sent>>> {
        let short = |text: String| {
            let too_long =
                |_| self.peer.error(Kind::TooLarge, OP, "a routing key or exchange is longer than 255 bytes");
            ShortString::try_new(text).map_err(too_long)
        };
        let properties = if message.mandatory {
            marked(message.properties, self.marks.fetch_add(1, Relaxed))
        } else {
            message.properties
        };
        let weight = u32::try_from((message.body.len() + OVERHEAD).min(WAITING_BYTES)).unwrap_or(u32::MAX);
        let (answer, answered) = oneshot::channel();
        let request = Request {
            exchange: short(message.exchange)?,
            key: short(message.key)?,
            mark: message.mandatory.then(|| mark_of(&properties)).flatten(),
            properties,
            body: message.body,
            answer,
            _weight: Arc::clone(&self.weights).acquire_many_owned(weight).await.map_err(|_| self.closed())?,
        };
        self.inbox.send(request).await.map_err(|_| self.closed())?;
        Ok(answered)
    }

    fn closed(&self) -> Error {
        self.peer.error(Kind::Closed, OP, "the connection is closed")
    }
}
