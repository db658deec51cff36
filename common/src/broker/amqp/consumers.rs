//! The consumers of a subscription: one a lane queue, each with its own prefetch, on one channel that is opened again
//! whenever it was lost. Which queue gets how much is the source's; what becomes of a delivery, too.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::message::Delivery;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::answers::Answers;
use super::link::Link;
use super::post::Post;
use super::receipt::Origin;
use super::{fault, topology};
use crate::error::{Error, Result};

/// How many deliveries may wait between the consumers and the source; those beyond wait in the driver, within the prefetch.
const WAITING: usize = 1_024;
const OP: &str = "consume from RabbitMQ";
/// A queue that is not there, or would not be consumed, is tried again after this.
const REST: Duration = Duration::from_secs(1);
/// How long is waited for the end.
const CLOSING: Duration = Duration::from_secs(2);

/// What is consumed: queue names and how many unanswered deliveries each may have; 0 is as many as there are.
pub(super) type Plan = BTreeMap<Arc<str>, u16>;

/// A delivery, and the queue it came from.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) queue: Arc<str>,
    pub(super) delivery: Delivery,
    /// How it is answered for.
    pub(super) origin: Origin,
}

/// The consumers of a subscription.
#[derive(Debug)]
pub(super) struct Consumers {
    plan: watch::Sender<Plan>,
    arrivals: mpsc::Receiver<Arrival>,
    counts: Counts,
    refused: Refused,
    missing: Missing,
    /// Ends with the channel.
    done: oneshot::Receiver<()>,
}

/// Why the server does not let us consume, while it does not.
type Refused = Arc<Mutex<Option<Error>>>;

/// Planned queues that are not there, and since when.
type Missing = Arc<Mutex<HashMap<Arc<str>, Instant>>>;

/// Unanswered deliveries by queue, of the present channel.
type Counts = Arc<Mutex<HashMap<Arc<str>, Arc<AtomicU32>>>>;

impl Consumers {
    /// Consumes nothing yet. Who does it outlives the consumers, to close its channel: cut off while it asks for a consumer, the
    /// driver would keep both, and the server give messages to nobody.
    pub(super) fn open(post: &Post) -> Self {
        let (plan, plans) = watch::channel(Plan::new());
        let (sender, arrivals) = mpsc::channel(WAITING);
        let (counts, refused, missing) = (Counts::default(), Refused::default(), Missing::default());
        let heard = Told { counts: Arc::clone(&counts), refused: Arc::clone(&refused), missing: Arc::clone(&missing) };
        let running = run(post.link.clone(), plans, sender, heard);
        let (tell, done) = oneshot::channel();
        post.outlive(async move {
            running.await;
            drop(tell);
        });
        Self { plan, arrivals, counts, refused, missing, done }
    }

    /// Consumes this from now on.
    pub(super) fn set(&self, plan: Plan) {
        self.plan.send_if_modified(|old| {
            let new = *old != plan;
            *old = plan;
            new
        });
    }

    /// What is consumed now, or soon.
    pub(super) fn plan(&self) -> Plan {
        self.plan.borrow().clone()
    }

    /// The next delivery. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<Arrival> {
        self.arrivals.recv().await
    }

    /// A delivery that is here already.
    pub(super) fn try_next(&mut self) -> Option<Arrival> {
        self.arrivals.try_recv().ok()
    }

    /// Whether the server lets us consume.
    ///
    /// # Errors
    /// Why it does not; it is asked again all the while.
    pub(super) fn check(&self) -> Result<()> {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.as_ref().map_or(Ok(()), |why| Err(why.shared()))
    }

    /// Queues that are to be consumed and are not there, and since when; they are looked for again all the while.
    pub(super) fn missing(&self) -> HashMap<Arc<str>, Instant> {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many deliveries of a queue are not answered for.
    pub(super) fn unanswered(&self, queue: &str) -> u32 {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.get(queue).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// Stops consuming; the deliveries that come all the same go back with the channel, which ends here.
    pub(super) async fn close(mut self) {
        drop(self.plan);
        self.arrivals.close();
        if tokio::time::timeout(CLOSING, self.done).await.is_err() {
            tracing::debug!("a channel is still being closed");
        }
    }
}

/// One channel after another, until nobody plans any more.
async fn run(link: Link, mut plans: watch::Receiver<Plan>, out: mpsc::Sender<Arrival>, told: Told) {
    loop {
        // Without a queue to consume there is nothing a channel is needed for.
        while plans.borrow_and_update().is_empty() {
            if plans.changed().await.is_err() {
                return;
            }
        }
        match link.channel().await {
            Ok(channel) => {
                told.counts.lock().unwrap_or_else(PoisonError::into_inner).clear();
                let (answers, mut writing) = (Arc::<Answers>::default(), JoinSet::new());
                writing.spawn(Arc::clone(&answers).write(channel.clone()));
                let mut pipes = Pipes {
                    link: &link,
                    channel,
                    answers,
                    writing,
                    out: &out,
                    told: &told,
                    open: HashMap::new(),
                    streams: JoinSet::new(),
                    tags: 0,
                };
                if pipes.serve(&mut plans).await.is_break() {
                    pipes.close().await;
                    return;
                }
            }
            Err(error) => tracing::debug!(%error, "no channel to consume on"),
        }
        tokio::select! {
            changed = async { while plans.changed().await.is_ok() {} } => return changed,
            () = tokio::time::sleep(REST) => {}
        }
    }
}

/// What the source is told.
struct Told {
    counts: Counts,
    refused: Refused,
    missing: Missing,
}

/// Why a channel is of no use any more.
enum Spoilt {
    /// The driver says so, or the server does.
    Told(lapin::Error),
    /// The server owes an answer for too long, and its connection is given up.
    Overdue(Error),
}

impl From<lapin::Error> for Spoilt {
    fn from(error: lapin::Error) -> Self {
        Self::Told(error)
    }
}

impl From<Error> for Spoilt {
    fn from(error: Error) -> Self {
        Self::Overdue(error)
    }
}

/// The consumers of one channel.
struct Pipes<'a> {
    link: &'a Link,
    channel: Channel,
    answers: Arc<Answers>,
    /// Sends those.
    writing: JoinSet<()>,
    out: &'a mpsc::Sender<Arrival>,
    told: &'a Told,
    open: HashMap<Arc<str>, Pipe>,
    /// Each ends with the queue and tag it was for, and why, if the server said so.
    streams: JoinSet<(Arc<str>, String, Option<lapin::Error>)>,
    tags: u64,
}

struct Pipe {
    tag: String,
    prefetch: u16,
    /// See [`Origin::ended`].
    ended: Arc<AtomicBool>,
}

impl Pipes<'_> {
    /// Keeps to the plan until the channel is lost or of no use (`Continue`), or there is no plan any more (`Break`).
    async fn serve(&mut self, plans: &mut watch::Receiver<Plan>) -> std::ops::ControlFlow<()> {
        use std::ops::ControlFlow::{Break, Continue};
        loop {
            let plan = plans.borrow_and_update().clone();
            let followed = self.follow(&plan).await;
            let why = match &followed {
                Err(Spoilt::Overdue(error)) => Some(error.shared()),
                // A lost connection says so itself.
                Err(Spoilt::Told(error)) => fault::code(error).map(|_| self.link.peer().lift(OP, error)),
                Ok(_) => None,
            };
            *self.told.refused.lock().unwrap_or_else(PoisonError::into_inner) = why;
            let Ok((missing, unseen)) = followed else { return Continue(()) };
            let again = unseen || !missing.is_empty();
            self.tell_missing(missing);
            tokio::select! {
                changed = plans.changed() => if changed.is_err() {
                    return Break(());
                },
                Some(ended) = self.streams.join_next() => {
                    if !self.channel.status().connected() {
                        self.tell(ended.ok().and_then(|(_, _, why)| why));
                        return Continue(());
                    }
                    // The server took this consumer away, and this one alone (from 4.3: its time was over).
                    if let Ok((queue, tag, _)) = ended
                        && let Some(pipe) = self.open.remove(&queue)
                    {
                        if pipe.tag == tag {
                            tracing::debug!(%queue, "RabbitMQ ended a consumer");
                            pipe.ended.store(true, Ordering::Relaxed);
                        } else {
                            self.open.insert(queue, pipe);
                        }
                    }
                }
                Some(_) = self.writing.join_next() => {
                    // A channel that is lost says why by its consumers.
                    if self.channel.status().connected() {
                        self.give_up().await;
                        return Continue(());
                    }
                }
                () = tokio::time::sleep(REST), if again => {}
            }
        }
    }

    /// Ends a channel that nobody sends answers on any more: it would fill with what is done, and the server wait for ever.
    async fn give_up(&self) {
        tracing::warn!("answers are sent no more; by another channel the messages come again, what runs goes on");
        if !matches!(self.link.answer(OP, self.channel.close(200, "done".into())).await, Ok(Ok(()))) {
            tracing::debug!("the channel did not close in order");
        }
    }

    fn tell_missing(&self, missing: Vec<Arc<str>>) {
        let mut told = self.told.missing.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        *told = missing.into_iter().map(|name| (Arc::clone(&name), told.get(&name).copied().unwrap_or(now))).collect();
    }

    /// Opens, changes and closes consumers as the plan says. Which queues are not there, and whether any could not be
    /// looked for.
    async fn follow(&mut self, plan: &Plan) -> Result<(Vec<Arc<str>>, bool), Spoilt> {
        let gone: Vec<_> = self.open.keys().filter(|queue| !plan.contains_key(*queue)).cloned().collect();
        for queue in gone {
            if let Some(pipe) = self.open.remove(&queue) {
                self.cancel(pipe.tag).await?;
            }
        }
        let (mut missing, mut unseen) = (Vec::new(), false);
        for (queue, &prefetch) in plan {
            let open = self.open.get(queue).map(|pipe| pipe.prefetch);
            if open == Some(prefetch) {
                continue;
            }
            // Consuming from a queue that is not there would end the channel, and every other consumer with it.
            if open.is_none() {
                match topology::may_have(self.link, queue).await {
                    Ok(true) => {}
                    Ok(false) => {
                        missing.push(Arc::clone(queue));
                        continue;
                    }
                    // With the connection gone, every other look would wait for the next one.
                    Err(_) if !self.channel.status().connected() => return Ok((missing, true)),
                    Err(_) => {
                        unseen = true;
                        continue;
                    }
                }
            }
            let pipe = self.consume(queue, prefetch).await?;
            if let Some(old) = self.open.insert(Arc::clone(queue), pipe) {
                self.cancel(old.tag).await?;
            }
        }
        Ok((missing, unseen))
    }

    /// Says why the server closed the channel alone: what is set wrong shows nowhere else.
    fn tell(&self, why: Option<lapin::Error>) {
        if let Some(why) = why.filter(lapin::Error::is_amqp_soft_error) {
            let error = self.link.peer().lift(OP, &why);
            tracing::warn!("{error}; its messages come again, what runs goes on");
        }
    }

    async fn consume(&mut self, queue: &Arc<str>, prefetch: u16) -> Result<Pipe, Spoilt> {
        self.link.answer(OP, self.channel.basic_qos(prefetch, BasicQosOptions::default())).await??;
        self.tags += 1;
        let tag = format!("promptq-{}", self.tags);
        let options = BasicConsumeOptions::default();
        let (name, table) = (queue.as_ref().into(), FieldTable::default());
        let consumer =
            self.link.answer(OP, self.channel.basic_consume(name, tag.as_str().into(), options, table)).await??;
        let count = {
            let mut counts = self.told.counts.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(counts.entry(Arc::clone(queue)).or_default())
        };
        let ended = Arc::new(AtomicBool::new(false));
        let origin = Origin { count, ended: Arc::clone(&ended), answers: Arc::clone(&self.answers) };
        self.streams.spawn(forward(consumer, (Arc::clone(queue), origin), tag.clone(), self.out.clone()));
        Ok(Pipe { tag, prefetch, ended })
    }

    async fn cancel(&self, tag: String) -> Result<(), Spoilt> {
        Ok(self
            .link
            .answer(OP, self.channel.basic_cancel(tag.as_str().into(), BasicCancelOptions::default()))
            .await??)
    }

    async fn close(mut self) {
        self.answers.end();
        let closing = async {
            self.writing.join_next().await;
            self.channel.close(200, "done".into()).await
        };
        if !matches!(self.link.answer(OP, closing).await, Ok(Ok(()))) {
            tracing::debug!("the channel did not close in order");
        }
    }
}

/// Hands deliveries on until the consumer ends.
async fn forward(
    mut consumer: Consumer,
    (queue, origin): (Arc<str>, Origin),
    tag: String,
    out: mpsc::Sender<Arrival>,
) -> (Arc<str>, String, Option<lapin::Error>) {
    let mut why = None;
    while let Some(next) = consumer.next().await {
        let delivery = match next {
            Ok(delivery) => delivery,
            Err(error) => {
                why = Some(error);
                break;
            }
        };
        let arrival = Arrival { queue: Arc::clone(&queue), delivery, origin: origin.clone() };
        if out.send(arrival).await.is_err() {
            break;
        }
    }
    (queue, tag, why)
}
