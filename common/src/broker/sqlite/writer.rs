//! The one thread of a process that writes. What arrived during the previous transaction becomes the next one, so
//! that one flush to disk serves many callers; no timers. A group that only leases and beats waits for no flush: a loss of
//! power ends those who hold the leases too. What a request does is its own file's.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use rusqlite::{Connection, ErrorCode, TransactionBehavior};
use tokio::sync::{Notify, mpsc, oneshot};

use super::file::{self, Fault, lift};
use super::tx::{Kept, Tx};
use crate::error::{Error, Kind, Result};

/// A group is at most this many requests: as many as an enqueue has jobs, some milliseconds' work. One of them that
/// cannot be done costs two transactions for each halving, about twenty …
const GROUP_REQUESTS: usize = 1_000;
/// … or bytes of payloads and records.
const GROUP_BYTES: usize = 1 << 20;

/// How often the thread lets others run who have something to add, before it begins a group.
const GATHERS: usize = 4;

/// A handle to the writing thread; the thread ends when the last one is dropped.
#[derive(Clone, Debug)]
pub(super) struct Writer {
    requests: mpsc::Sender<Box<dyn Request>>,
    /// Told whenever a commit of this process made a job ready.
    pub(super) ready: Arc<Notify>,
    /// What has turned, as of this process's last commit that changed it.
    pub(super) turned: Arc<AtomicI64>,
}

/// What a commit is told to besides those who asked for it.
#[derive(Clone, Debug, Default)]
struct Bells {
    ready: Arc<Notify>,
    turned: Arc<AtomicI64>,
}

/// One caller's part of a transaction. It may be asked to apply more than once, each time on a clean slate.
trait Request: Send {
    fn op(&self) -> &'static str;
    /// Whether what it does may be undone by a loss of power as long as nothing later is durable.
    fn is_light(&self) -> bool;
    fn bytes(&self) -> usize;
    fn apply(&mut self, tx: &mut Tx<'_>) -> Result<(), Fault>;
    fn answer(self: Box<Self>, committed: Result<()>);
}

/// What a caller gets back when the transaction has ended, one way or the other.
pub(super) type Answer<T> = oneshot::Receiver<Result<T>>;

impl Writer {
    /// Makes or opens the file and starts the thread.
    pub(super) async fn start(path: PathBuf) -> Result<Self> {
        let (requests, inbox) = mpsc::channel(GROUP_REQUESTS);
        let bells = Bells::default();
        let Bells { ready, turned } = bells.clone();
        let (opened, open) = oneshot::channel();
        let body = move || match file::open_writer(&path) {
            Ok(conn) => {
                if opened.send(Ok(())).is_ok() {
                    serve(Pen { conn, bells, is_light: false }, inbox);
                }
            }
            Err(error) => drop(opened.send(Err(error))),
        };
        start_thread("sqlite-write", body)?;
        open.await.map_err(|_| gone("open the embedded database"))??;
        Ok(Self { requests, ready, turned })
    }

    /// Hands `work` in, to run inside a transaction of the writing thread; `bytes` is about what it writes.
    /// Cancel-safe: dropped before it returns, nothing was handed in. After that the work is done whether or not
    /// anyone waits for the answer.
    pub(super) async fn submit<T, F>(&self, op: &'static str, bytes: usize, work: F) -> Result<Answer<T>>
    where
        T: Send + 'static,
        F: FnMut(&mut Tx<'_>) -> Result<T, Fault> + Send + 'static,
    {
        self.hand_in(Ask { op, is_light: false, bytes, work, made: None, reply: None }).await
    }

    /// [`Writer::submit`] for what holds as long as its holder lives: leases and beats. A death of the process takes
    /// nothing of it back; a loss of power may, and ends the process too. What `work` ends is durable all the same.
    pub(super) async fn submit_light<T, F>(&self, op: &'static str, work: F) -> Result<Answer<T>>
    where
        T: Send + 'static,
        F: FnMut(&mut Tx<'_>) -> Result<T, Fault> + Send + 'static,
    {
        self.hand_in(Ask { op, is_light: true, bytes: 0, work, made: None, reply: None }).await
    }

    async fn hand_in<T, F>(&self, mut ask: Ask<T, F>) -> Result<Answer<T>>
    where
        T: Send + 'static,
        F: FnMut(&mut Tx<'_>) -> Result<T, Fault> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let place = self.requests.reserve().await.map_err(|_| gone(ask.op))?;
        ask.reply = Some(reply);
        place.send(Box::new(ask));
        Ok(answer)
    }

    /// [`Writer::submit`] and wait until it is durable.
    pub(super) async fn write<T, F>(&self, op: &'static str, bytes: usize, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnMut(&mut Tx<'_>) -> Result<T, Fault> + Send + 'static,
    {
        self.submit(op, bytes, work).await?.await.map_err(|_| gone(op))?
    }

    /// [`Writer::submit_light`] and wait until it is committed.
    pub(super) async fn write_light<T, F>(&self, op: &'static str, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnMut(&mut Tx<'_>) -> Result<T, Fault> + Send + 'static,
    {
        self.submit_light(op, work).await?.await.map_err(|_| gone(op))?
    }
}

pub(super) fn gone(op: &'static str) -> Error {
    Error::new(Kind::Closed, op, "the embedded database's thread has ended")
}

pub(super) fn start_thread(name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
    std::thread::Builder::new().name(name.to_owned()).spawn(body).map(drop).map_err(|error| {
        Error::new(Kind::Unavailable, "start a database thread", "the system gives no thread").because(error)
    })
}

struct Ask<T, F> {
    op: &'static str,
    is_light: bool,
    bytes: usize,
    work: F,
    made: Option<T>,
    reply: Option<oneshot::Sender<Result<T>>>,
}

impl<T: Send, F: FnMut(&mut Tx<'_>) -> Result<T, Fault> + Send> Request for Ask<T, F> {
    fn op(&self) -> &'static str {
        self.op
    }

    fn is_light(&self) -> bool {
        self.is_light
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn apply(&mut self, tx: &mut Tx<'_>) -> Result<(), Fault> {
        self.made = None;
        self.made = Some((self.work)(tx)?);
        Ok(())
    }

    fn answer(self: Box<Self>, committed: Result<()>) {
        let Self { op, made, reply, .. } = *self;
        let answer = committed.and_then(|()| made.ok_or_else(|| gone(op)));
        // The caller may have gone; what was done stays done.
        drop(reply.map(|reply| reply.send(answer)));
    }
}

/// The writing thread's connection.
struct Pen {
    conn: Connection,
    bells: Bells,
    /// Whether a commit may wait for no flush now.
    is_light: bool,
}

fn serve(mut pen: Pen, mut inbox: mpsc::Receiver<Box<dyn Request>>) {
    while let Some(first) = inbox.blocking_recv() {
        let mut bytes = first.bytes();
        let mut group = vec![first];
        for _ in 0..GATHERS {
            let had = group.len();
            while group.len() < GROUP_REQUESTS && bytes < GROUP_BYTES {
                let Ok(next) = inbox.try_recv() else { break };
                bytes += next.bytes();
                group.push(next);
            }
            if group.len() == had && had > 1 {
                break;
            }
            std::thread::yield_now();
        }
        settle_group(&mut pen, group);
    }
}

/// All of them in one transaction; when one cannot be done, each half in its own, and so on, until it fails alone: one by
/// one a thousand flushes would take longer than a lease. A file that others keep locked is nobody's fault in particular:
/// nobody waits for it twice.
fn settle_group(pen: &mut Pen, mut group: Vec<Box<dyn Request>>) {
    let Err(fault) = pen.transact(&mut group) else {
        for request in group {
            request.answer(Ok(()));
        }
        return;
    };
    if let Fault::Sql(rusqlite::Error::SqliteFailure(code, text)) = &fault
        && code.code == ErrorCode::DatabaseBusy
    {
        for request in group {
            let op = request.op();
            let same = rusqlite::Error::SqliteFailure(*code, text.clone());
            request.answer(Err(lift(op, same.into())));
        }
    } else if group.len() > 1 {
        let rest = group.split_off(group.len() / 2);
        settle_group(pen, group);
        settle_group(pen, rest);
    } else if let Some(request) = group.pop() {
        let op = request.op();
        request.answer(Err(lift(op, fault)));
    }
}

impl Pen {
    fn transact(&mut self, group: &mut [Box<dyn Request>]) -> Result<(), Fault> {
        let lightly = group.iter().all(|request| request.is_light());
        if !lightly || !self.commit(group, true)? {
            self.commit(group, false)?;
        }
        Ok(())
    }

    /// One transaction; false, and nothing done, where it has to be durable and would be lightly kept.
    fn commit(&mut self, group: &mut [Box<dyn Request>], lightly: bool) -> Result<bool, Fault> {
        self.keep(lightly)?;
        crash_points(group, "before_begin");
        let inner = self.conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut tx = Tx::new(&inner);
        tx.kept = if lightly { Kept::Lightly } else { Kept::Firmly };
        for request in &mut *group {
            // Ends read no records but by `stored_record`; whatever else is asked may.
            if request.op() != "settle" {
                tx.write_records()?;
            }
            request.apply(&mut tx)?;
            if tx.is_in_vain() {
                drop(tx);
                inner.rollback()?;
                return Ok(false);
            }
        }
        tx.flush()?;
        let (made_ready, turned) = (tx.made_ready, tx.turned);
        drop(tx);
        crash_points(group, "before_commit");
        inner.commit()?;
        crash_points(group, "after_commit");
        if let Some(turned) = turned {
            self.bells.turned.store(turned, Ordering::Release);
        }
        if made_ready {
            self.bells.ready.notify_waiters();
        }
        Ok(true)
    }

    /// Has the next commit wait for a flush, or not.
    fn keep(&mut self, lightly: bool) -> Result<(), Fault> {
        if self.is_light != lightly {
            self.is_light = true;
            self.conn.pragma_update(None, "synchronous", if lightly { "NORMAL" } else { "FULL" })?;
            self.is_light = lightly;
        }
        Ok(())
    }
}

#[cfg(feature = "failpoints")]
fn crash_points(group: &[Box<dyn Request>], step: &str) {
    for request in group {
        crate::crash_point!(&format!("sqlite.{}.{step}", request.op()));
    }
}

#[cfg(not(feature = "failpoints"))]
fn crash_points(_group: &[Box<dyn Request>], _step: &str) {}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_locked_file_is_waited_for_once_not_once_for_each_request() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("q.db");
        let conn = file::open_writer(&path).unwrap();
        conn.busy_timeout(Duration::from_millis(200)).unwrap();
        let other = file::open_writer(&path).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        let work = |_: &mut Tx<'_>| Ok(());
        let ask = |reply| Ask { op: "test", is_light: false, bytes: 0, work, made: None, reply: Some(reply) };
        let (group, answers): (Vec<_>, Vec<_>) = (0..20)
            .map(|_| {
                let (reply, answer) = oneshot::channel();
                (Box::new(ask(reply)) as Box<dyn Request>, answer)
            })
            .unzip();
        let began = Instant::now();
        settle_group(&mut Pen { conn, bells: Bells::default(), is_light: false }, group);
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        for answer in answers {
            assert_eq!(answer.blocking_recv().unwrap().unwrap_err().kind(), Kind::Unavailable);
        }
    }

    /// How surely a request's transaction is kept, each time it is applied: 1 without a flush, 2 with one.
    fn kept(pen: &mut Pen, requests: &[(bool, bool)]) -> Vec<i64> {
        let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
        let request = |&(is_light, is_grave): &(bool, bool)| {
            let seen = Arc::clone(&seen);
            let work = move |tx: &mut Tx<'_>| -> Result<(), Fault> {
                tx.sql("UPDATE total SET value = value + 1 WHERE name = 'swept'")?.execute([])?;
                tx.is_grave |= is_grave;
                let level = tx.conn.pragma_query_value(None, "synchronous", |row| row.get::<_, i64>(0))?;
                seen.lock().unwrap().push(level);
                Ok(())
            };
            Box::new(Ask { op: "test", is_light, bytes: 0, work, made: None::<()>, reply: None }) as Box<dyn Request>
        };
        settle_group(pen, requests.iter().map(request).collect());
        let seen = seen.lock().unwrap();
        seen.clone()
    }

    #[test]
    fn only_leases_and_beats_that_end_nothing_wait_for_no_flush() {
        let folder = tempfile::tempdir().unwrap();
        let conn = file::open_writer(&folder.path().join("q.db")).unwrap();
        let mut pen = Pen { conn, bells: Bells::default(), is_light: false };
        let (light, firm, grave) = ((true, false), (false, false), (true, true));
        assert_eq!(kept(&mut pen, &[light, light]), [1, 1]);
        assert_eq!(kept(&mut pen, &[firm]), [2], "and the next one is as sure as ever");
        assert_eq!(kept(&mut pen, &[light, firm]), [2, 2]);
        assert_eq!(kept(&mut pen, &[light, grave]), [1, 1, 2, 2], "done anew");
        let swept = "SELECT value FROM total WHERE name = 'swept'";
        let swept: i64 = pen.conn.query_row(swept, [], |row| row.get(0)).unwrap();
        assert_eq!(swept, 2 + 1 + 2 + 2, "each once");
        assert_eq!(kept(&mut pen, &[grave, light]), [1, 2, 2], "what comes to nothing is left at once");
    }

    #[test]
    fn one_request_that_cannot_be_done_costs_few_transactions_and_fails_alone() {
        const BAD: usize = 40;
        let folder = tempfile::tempdir().unwrap();
        let conn = file::open_writer(&folder.path().join("q.db")).unwrap();
        let transactions = Arc::new(AtomicI64::new(0));
        let request = |n: usize, reply: oneshot::Sender<Result<()>>| {
            let transactions = Arc::clone(&transactions);
            let work = move |tx: &mut Tx<'_>| -> Result<(), Fault> {
                // The first of its transaction leaves this mark there.
                if !std::mem::replace(&mut tx.made_ready, true) {
                    transactions.fetch_add(1, Ordering::Relaxed);
                }
                tx.sql("UPDATE total SET value = value + 1 WHERE name = 'swept'")?.execute([])?;
                if n == BAD { Err(Error::new(Kind::Config, "test", "bad").into()) } else { Ok(()) }
            };
            Box::new(Ask { op: "test", is_light: false, bytes: 0, work, made: None::<()>, reply: Some(reply) })
                as Box<dyn Request>
        };
        let (group, answers): (Vec<_>, Vec<_>) = (0..64)
            .map(|n| {
                let (reply, answer) = oneshot::channel::<Result<()>>();
                (request(n, reply), answer)
            })
            .unzip();
        let mut pen = Pen { conn, bells: Bells::default(), is_light: false };
        settle_group(&mut pen, group);
        assert_eq!(transactions.load(Ordering::Relaxed), 1 + 2 * 6, "the group, and two for each halving");
        let failed: Vec<_> = answers.into_iter().map(|answer| answer.blocking_recv().unwrap().is_err()).collect();
        assert!(failed.iter().enumerate().all(|(n, failed)| *failed == (n == BAD)), "{failed:?}");
        let swept = "SELECT value FROM total WHERE name = 'swept'";
        let swept: i64 = pen.conn.query_row(swept, [], |row| row.get(0)).unwrap();
        assert_eq!(swept, 63, "each of the others once");
    }
}
