//! The way to a RabbitMQ server: two connections, one consumes and acks, the other publishes, each made again for as
//! long as somebody wants it. Both live on one thread of their own, which no job's work can keep from its heartbeats.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use lapin::{Channel, Connection};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::timeout;

use super::address::{OP, Target};
use super::dial::{CLOSE, CONNECT, LOST, Line, News};
use super::fault::Peer;
use super::outbox::Outbox;
use super::publisher::{self, Publisher};
use crate::broker::Access;
use crate::error::{Error, Kind, Result};

/// The names of the connections in the server's list.
const CONSUME: &str = "consume";
const PUBLISH: &str = "publish";
/// A quorum queue that elects a leader confirms after seconds; what is not confirmed by then is the caller's to repeat.
const CONFIRM: Duration = Duration::from_secs(15);
/// How long a lost connection is waited for; settles and producers have a longer patience of their own.
const WAIT: Duration = Duration::from_secs(10);
/// How long an answer on the consuming connection may take: longer than the 5 s and its repetitions that a server gives
/// a quorum queue's leader, and than the two heartbeats of 10 s that find out a server which is silent altogether.
const ANSWER: Duration = Duration::from_secs(30);

/// The way to a RabbitMQ server. Cheap to clone; when the last clone is dropped, the connections close.
#[derive(Clone)]
pub(super) struct Link(Arc<Shared>);

struct Shared {
    peer: Peer,
    /// The consuming connection, while there is one.
    open: watch::Receiver<Option<Arc<Open>>>,
    /// How long an answer on it may take.
    answer: Duration,
    up: watch::Receiver<bool>,
    /// Why the server takes nothing that is published on the consuming connection, while it does not.
    blocked: watch::Receiver<Option<String>>,
    publisher: Publisher,
    /// Dropped with the last clone, which is what the thread waits for.
    _stop: watch::Sender<()>,
}

/// A consuming connection.
struct Open {
    connection: Arc<Connection>,
    /// Told when it owes somebody an answer for too long.
    overdue: Notify,
}

impl Link {
    /// Opens both connections.
    ///
    /// # Errors
    /// `Config` for the address, login, virtual host or certificates; `Unavailable` or `TimedOut` when it may work
    /// later.
    pub(super) async fn connect(access: &Access) -> Result<Self> {
        Self::patient(access, CONFIRM, ANSWER).await
    }

    /// Likewise, with other times that a confirm and an answer may take.
    pub(super) async fn patient(access: &Access, confirm: Duration, answer: Duration) -> Result<Self> {
        let (user, users) = mpsc::channel(1);
        let target = Target { users: Some(user), ..Target::new(access).await? };
        let peer = target.peer.clone();
        let (stop, stopped) = watch::channel(());
        let (tell, told) = oneshot::channel();
        let (show_open, open) = watch::channel(None);
        let (show_up, up) = watch::channel(false);
        let (show_blocked, blocked) = watch::channel(None);
        let (publisher, outbox) = publisher::pair(peer.clone(), confirm);
        let keeper = Keeper { target, stopped, open: show_open, up: show_up, blocked: show_blocked };
        std::thread::Builder::new()
            .name("promptq-amqp".to_owned())
            .spawn(move || run(keeper, outbox, tell, users))
            .map_err(|error| Error::new(Kind::Unavailable, OP, "no thread can be started").because(error))?;
        told.await.map_err(|_| Error::new(Kind::Closed, OP, "the thread of the connections ended"))??;
        Ok(Self(Arc::new(Shared { peer, open, answer, up, blocked, publisher, _stop: stop })))
    }

    /// A new channel on the consuming connection. Waits up to 10 s for a connection, and for its answer as
    /// [`Self::answer`] does. Cancel-safe.
    ///
    /// Close it rather than drop it: when the server closes it at that moment, the driver takes a dropped one for a
    /// fault of the whole connection.
    ///
    /// # Errors
    /// `Unavailable` when there is none, or it has no channel to spare; `TimedOut` without an answer.
    pub(super) async fn channel(&self) -> Result<Channel> {
        const OP: &str = "open a channel at RabbitMQ";
        let absent = || self.0.peer.error(Kind::Unavailable, OP, "the connection was lost and is not back yet");
        let mut open = self.0.open.clone();
        let there = timeout(WAIT, open.wait_for(Option::is_some)).await;
        let there = there.ok().and_then(|open| open.ok()?.clone()).ok_or_else(absent)?;
        let made = self.answered(OP, Some(&*there), there.connection.create_channel()).await?;
        made.map_err(|error| self.0.peer.lift(OP, &error))
    }

    /// Waits for the answer to something that was asked on the consuming connection. One that owes an answer for too long
    /// is taken for lost, whatever its heartbeats say: what was delivered on it comes again on the next.
    ///
    /// # Errors
    /// `TimedOut` without an answer. A refusal is an answer.
    pub(super) async fn answer<T>(
        &self,
        op: &'static str,
        asked: impl Future<Output = lapin::Result<T>>,
    ) -> Result<lapin::Result<T>> {
        let open = self.0.open.borrow().clone();
        self.answered(op, open.as_deref(), asked).await
    }

    async fn answered<T>(
        &self,
        op: &'static str,
        open: Option<&Open>,
        asked: impl Future<Output = lapin::Result<T>>,
    ) -> Result<lapin::Result<T>> {
        let answer = timeout(self.0.answer, asked).await;
        answer.map_err(|_| {
            if let Some(open) = open {
                open.overdue.notify_one();
            }
            self.0.peer.error(Kind::TimedOut, op, "the server did not answer in time")
        })
    }

    /// Whether there is a consuming connection; changes whenever it was lost or is there again.
    pub(super) fn up(&self) -> watch::Receiver<bool> {
        self.0.up.clone()
    }

    /// Waits until the server takes nothing that is published on the consuming connection, and says why. It finds that
    /// out with the first message. Cancel-safe.
    pub(super) async fn blocked(&self) -> String {
        let mut blocked = self.0.blocked.clone();
        let why = blocked.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
        match why {
            Some(why) => why,
            None => std::future::pending().await,
        }
    }

    /// What publishes, on the other connection.
    pub(super) fn publisher(&self) -> &Publisher {
        &self.0.publisher
    }

    /// Whom errors are about.
    pub(super) fn peer(&self) -> &Peer {
        &self.0.peer
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Link").field(&self.0.peer.shown).finish()
    }
}

/// The thread: both connections until nobody wants them, then an orderly end. `users` ends when no thread of the
/// driver's uses the runtime any more: one that still connects when it goes would panic.
fn run(keeper: Keeper, outbox: Outbox, tell: oneshot::Sender<Result<()>>, mut users: mpsc::Receiver<()>) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let error = Error::new(Kind::Unavailable, OP, "no runtime can be started").because(error);
            return drop(tell.send(Err(error)));
        }
    };
    runtime.block_on(async {
        serve(keeper, outbox, tell).await;
        if timeout(CONNECT + CLOSE, users.recv()).await.is_err() {
            tracing::debug!("a thread of the driver's does not end");
        }
    });
    // A name that is still being looked up is not waited for.
    runtime.shutdown_background();
}

async fn serve(keeper: Keeper, outbox: Outbox, tell: oneshot::Sender<Result<()>>) {
    let (target, mut stopped) = (keeper.target.clone(), keeper.stopped.clone());
    let to_publish = target.with_small_frames();
    let both = async { tokio::try_join!(Line::dial(&target, CONSUME), Line::dial(&to_publish, PUBLISH)) };
    let dialled = tokio::select! {
        biased;
        () = gone(&mut stopped) => return,
        dialled = both => dialled,
    };
    match dialled {
        Err(error) => drop(tell.send(Err(error))),
        Ok((consuming, publishing)) => {
            let keeping = keeper.keep(consuming, tell);
            tokio::join!(keeping, outbox.serve(publishing, PUBLISH, &to_publish, stopped));
        }
    }
}

/// Waits until nobody wants the link any more. Cancel-safe.
pub(super) async fn gone(stopped: &mut watch::Receiver<()>) {
    while stopped.changed().await.is_ok() {}
}

/// Keeps the consuming connection.
struct Keeper {
    target: Target,
    stopped: watch::Receiver<()>,
    open: watch::Sender<Option<Arc<Open>>>,
    up: watch::Sender<bool>,
    blocked: watch::Sender<Option<String>>,
}

impl Keeper {
    /// Makes it again whenever it is lost. Tells when the first is there to be used.
    async fn keep(self, first: Line, tell: oneshot::Sender<Result<()>>) {
        let Self { target, mut stopped, open, up, blocked } = self;
        let (mut line, mut tell) = (first, Some(tell));
        loop {
            let now = Arc::new(Open { connection: Arc::clone(line.connection()), overdue: Notify::new() });
            open.send_replace(Some(Arc::clone(&now)));
            up.send_replace(true);
            if tell.take().is_some_and(|tell| tell.send(Ok(())).is_err()) {
                return line.close().await;
            }
            let lost = tokio::select! {
                biased;
                () = gone(&mut stopped) => None,
                error = lost(&mut line, &target, &blocked) => Some(error),
                () = now.overdue.notified() => {
                    Some(target.peer.error(Kind::TimedOut, LOST, "the server owes an answer for too long"))
                }
            };
            open.send_replace(None);
            blocked.send_replace(None);
            let Some(error) = lost else { return line.close().await };
            tracing::warn!("{error}; connecting again");
            up.send_replace(false);
            drop((line, now));
            line = tokio::select! {
                biased;
                () = gone(&mut stopped) => return,
                line = Line::redial(&target, CONSUME) => line,
            };
        }
    }
}

/// Waits until the connection is gone, and says why; shows meanwhile whether it is blocked. Cancel-safe.
async fn lost(line: &mut Line, target: &Target, blocked: &watch::Sender<Option<String>>) -> Error {
    loop {
        match line.news(target).await {
            News::Blocked(why) => drop(blocked.send_replace(Some(why))),
            News::Unblocked => drop(blocked.send_replace(None)),
            News::Lost(error) => return error,
        }
    }
}
