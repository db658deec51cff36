//! The limit on Redis, by redis-rs: two connections, each with a thread of its own and two script calls under way.
//!
//! With the least writes a job is a field of one hash and an entry of one list, its lease an entry of a sorted set, its
//! result a field of another hash; an end takes the lease and the job away. What promptq writes is in `redis_scripts`.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use deadpool_redis::redis::{self, Client, Cmd, Connection, Value};

use super::Contestant;
use super::arguments::{Setting, Writes};
use super::redis_scripts::{Scripts, script};
use super::rows::{self, Id, Stored};

/// So that the server always has a call to work on.
const CLIENTS: usize = 2;
/// Calls under way on a connection: while one is answered the next is there.
const WINDOW: usize = 2;
/// How long a worker waits for a token before it looks at the clock.
const LOOK: f64 = 1.0;

/// Four connections: two to put jobs in, two to take them.
pub(super) struct Redis {
    producers: Vec<Hand>,
    workers: Vec<Hand>,
}

impl Redis {
    pub(super) fn connect(setting: &Setting) -> anyhow::Result<Self> {
        let client = Client::open(setting.url.as_str()).context("--url")?;
        let hands = || (0..CLIENTS).map(|_| Hand::connect(&client, setting)).collect::<anyhow::Result<Vec<_>>>();
        Ok(Self { producers: hands()?, workers: hands()? })
    }
}

impl Contestant for Redis {
    fn enqueue(&mut self, jobs: usize) -> anyhow::Result<()> {
        both(&mut self.producers, &mut [], jobs)
    }

    fn work(&mut self, jobs: usize) -> anyhow::Result<()> {
        both(&mut [], &mut self.workers, jobs)
    }

    fn live(&mut self, jobs: usize) -> anyhow::Result<()> {
        both(&mut self.producers, &mut self.workers, jobs)
    }

    fn settled(&mut self) -> anyhow::Result<usize> {
        let hand = &mut self.workers[0];
        let leases: usize = redis::cmd("ZCARD").arg("limit:lease").query(&mut hand.connection)?;
        ensure!(leases == 0, "{leases} leases have not ended");
        Ok(match hand.writes {
            Writes::Bare => redis::cmd("HLEN").arg("limit:result").query(&mut hand.connection)?,
            Writes::Promptq => {
                let ended: Option<usize> =
                    redis::cmd("HGET").arg("limit:c").arg("cursor").query(&mut hand.connection)?;
                ended.unwrap_or(0)
            }
        })
    }
}

/// What the hands of one run share.
struct Shared {
    /// Jobs that nobody has put in, or taken, yet.
    to_put: AtomicUsize,
    to_take: AtomicUsize,
    /// Jobs that have not ended.
    open: AtomicUsize,
}

fn both(producers: &mut [Hand], workers: &mut [Hand], jobs: usize) -> anyhow::Result<()> {
    let shared = Shared { to_put: jobs.into(), to_take: jobs.into(), open: jobs.into() };
    std::thread::scope(|scope| {
        let putting = producers.iter_mut().map(|hand| scope.spawn(|| hand.put(&shared))).collect::<Vec<_>>();
        let taking = workers.iter_mut().map(|hand| scope.spawn(|| hand.take(&shared))).collect::<Vec<_>>();
        for hand in putting.into_iter().chain(taking) {
            hand.join().map_err(|_| anyhow::anyhow!("a connection's thread broke off"))??;
        }
        Ok(())
    })
}

/// Takes up to `most` from what is left.
fn reserve(left: &AtomicUsize, most: usize) -> usize {
    left.fetch_update(Relaxed, Relaxed, |left| Some(left.saturating_sub(most))).map_or(0, |left| left.min(most))
}

/// What was asked and is not answered.
enum Asked {
    /// For so many jobs.
    Claim(usize),
    /// To end so many.
    Done(usize),
}

/// A connection, and what its calls are made of.
struct Hand {
    connection: Connection,
    scripts: Scripts,
    writes: Writes,
    batch: usize,
    idle: Duration,
    out: Vec<u8>,
    /// A job as it is put in, a result as it is stored, an announcement.
    job: Vec<u8>,
    result: Vec<u8>,
    announcement: Vec<u8>,
}

impl Hand {
    fn connect(client: &Client, setting: &Setting) -> anyhow::Result<Self> {
        let mut connection = client.get_connection().with_context(|| "connect to Redis")?;
        let (job, result, announcement) = match setting.writes {
            Writes::Bare => {
                let (prompt, answer) = rows::texts();
                (prompt, answer, Vec::new())
            }
            Writes::Promptq => {
                let stored = Stored::new()?;
                (stored.whole(), stored.ended(), stored.announcement)
            }
        };
        let scripts = Scripts::load(&mut connection, setting.writes)?;
        let (writes, batch, idle) = (setting.writes, setting.batch, Duration::from_secs(setting.idle.into()));
        Ok(Self { connection, scripts, writes, batch, idle, out: Vec::new(), job, result, announcement })
    }

    fn put(&mut self, shared: &Shared) -> anyhow::Result<()> {
        let mut due = VecDeque::new();
        loop {
            let count = reserve(&shared.to_put, self.batch);
            if count > 0 {
                let mut call = script(&self.scripts.enqueue);
                for _ in 0..count {
                    call.arg(&rows::next_id()).arg(&self.job);
                }
                self.ask(&call)?;
                due.push_back(count);
            }
            if due.len() == WINDOW || count == 0 {
                let Some(count) = due.pop_front() else { return Ok(()) };
                self.counted(count)?;
            }
        }
    }

    fn take(&mut self, shared: &Shared) -> anyhow::Result<()> {
        let mut due = VecDeque::new();
        let (mut claims, mut dry, mut since) = (0, false, Instant::now());
        loop {
            while claims < WINDOW && !dry {
                let count = reserve(&shared.to_take, self.batch);
                if count == 0 {
                    break;
                }
                self.claim(count)?;
                due.push_back(Asked::Claim(count));
                claims += 1;
            }
            match due.pop_front() {
                Some(Asked::Claim(asked)) => {
                    let ids = self.claimed()?;
                    claims -= 1;
                    shared.to_take.fetch_add(asked - ids.len(), Relaxed);
                    dry = ids.is_empty();
                    if !dry {
                        since = Instant::now();
                        self.done(&ids)?;
                        due.push_back(Asked::Done(ids.len()));
                    }
                }
                Some(Asked::Done(count)) => {
                    self.counted(count)?;
                    if shared.open.fetch_sub(count, Relaxed) == count {
                        self.wake_all()?;
                    }
                }
                None if shared.open.load(Relaxed) == 0 => return Ok(()),
                None => {
                    let left = shared.open.load(Relaxed);
                    ensure!(since.elapsed() < self.idle, "{left} jobs have not come within {:?}", self.idle);
                    self.wait()?;
                    dry = false;
                }
            }
        }
    }

    fn claim(&mut self, count: usize) -> anyhow::Result<()> {
        let mut call = script(&self.scripts.claim);
        call.arg(count).arg(rows::now() + rows::LEASE);
        if self.writes == Writes::Promptq {
            // Lease ids, as random as any.
            let leases: Vec<u8> = (0..count).flat_map(|_| rand::random::<Id>()).collect();
            call.arg(rows::WORKER).arg(leases);
        }
        self.ask(&call)
    }

    /// What was claimed: of each what its end is told by.
    fn claimed(&mut self) -> anyhow::Result<Vec<Vec<u8>>> {
        let answer = self.connection.recv_response().context("a claim")?;
        let Value::Array(parts) = answer else { bail!("a claim was answered {answer:?}") };
        let Ok([names, bodies]) = <[Value; 2]>::try_from(parts) else { return Ok(Vec::new()) };
        let (Value::Array(names), Value::Array(bodies)) = (names, bodies) else { bail!("a claim without lists") };
        let whole = self.job.len();
        let read = |body: &Value| matches!(body, Value::BulkString(bytes) if bytes.len() == whole);
        ensure!(bodies.len() == names.len() && bodies.iter().all(read), "a claim without its jobs");
        names
            .into_iter()
            .map(|name| if let Value::BulkString(name) = name { Ok(name) } else { bail!("a claim of {name:?}") })
            .collect()
    }

    fn done(&mut self, names: &[Vec<u8>]) -> anyhow::Result<()> {
        let mut call = script(&self.scripts.done);
        for name in names {
            call.arg(name).arg(&self.result);
            if self.writes == Writes::Promptq {
                call.arg(&self.announcement);
            }
        }
        self.ask(&call)
    }

    /// Waits for a token: somebody has put jobs in, or all have ended.
    fn wait(&mut self) -> anyhow::Result<()> {
        let token: Option<(String, String)> =
            redis::cmd("BLPOP").arg("limit:wake").arg(LOOK).query(&mut self.connection)?;
        drop(token);
        Ok(())
    }

    fn wake_all(&mut self) -> anyhow::Result<()> {
        redis::cmd("RPUSH").arg("limit:wake").arg(&["end"; CLIENTS]).query::<()>(&mut self.connection)?;
        Ok(())
    }

    fn ask(&mut self, call: &Cmd) -> anyhow::Result<()> {
        self.out.clear();
        call.write_packed_command(&mut self.out);
        Ok(self.connection.send_packed_command(&self.out)?)
    }

    fn counted(&mut self, count: usize) -> anyhow::Result<()> {
        let answer = self.connection.recv_response().context("a call")?;
        ensure!(answer == Value::Int(i64::try_from(count)?), "{count} jobs, and Redis answers {answer:?}");
        Ok(())
    }
}
