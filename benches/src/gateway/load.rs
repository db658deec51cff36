//! Jobs that come at their times, whether earlier ones are answered or not, beside clients whose bodies trickle. How long
//! each took counts from when it was to be sent.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::ensure;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::wire::{Line, post};
use super::{Plan, at, float, free};
use crate::library::text;
use crate::limits::findings::Finding;
use crate::machine::Load;
use crate::process::{Home, Running};
use crate::stage::{Hall, Kind, Stage};

/// A body that is no large one and has not come whole when the load ends.
const TRICKLE_BYTES: usize = 60_000;
/// Two KiB a second, in pieces.
const TRICKLE: (usize, Duration) = (205, Duration::from_millis(100));
/// No answer takes longer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Warm connections, and a warm broker.
const WARM_UP: u32 = 2;

pub(super) async fn measured(kind: Kind, plan: Plan) -> anyhow::Result<Vec<Finding>> {
    let hall = Hall::open(kind);
    let stage = hall.stage()?;
    let home = stage.home("")?;
    let (secret, trickler, address) = (key(&home, "load").await?, key(&home, "slow").await?, free()?);
    let mut gateway = serve(&home, address)?;
    ready(address, &secret, &mut gateway).await?;
    let clients = Clients { address, secret, idle: Arc::default() };
    run(&clients, plan.rate, plan.rate * WARM_UP).await;
    let slow_ends = Instant::now() + Duration::from_secs(plan.seconds.into());
    let mut slow = JoinSet::new();
    for _ in 0..plan.slow {
        slow.spawn(trickle(address, trickler.clone(), slow_ends));
    }
    let (load, before) = (Load::start()?, spent(&gateway, &stage)?);
    let seen = run(&clients, plan.rate, plan.rate * plan.seconds).await;
    let after = spent(&gateway, &stage)?;
    let ours = [after[0] - before[0], after[1] - before[1]];
    let others = load.of_others(ours.iter().sum())?;
    let served = slow.join_all().await.into_iter().filter(|served| *served).count();
    ensure!(!gateway.has_left()?, "the gateway has left: {}", gateway.tail());
    let mut found = told(&seen, ours, f64::from(plan.seconds));
    found.push(Finding::new("of the slow clients still listened to at the end", float(served), "clients"));
    found.push(Finding::new("of the processors that others had", others * 100.0, "%"));
    Ok(found)
}

fn told(seen: &Seen, [gateway, broker]: [f64; 2], seconds: f64) -> Vec<Finding> {
    let jobs = float(seen.waits.len());
    let share = |cpu: f64| cpu / seconds * 100.0;
    vec![
        Finding::new("jobs answered 201", jobs, "jobs"),
        Finding::new("refused", float(seen.refused), "jobs").at_most(0.0),
        Finding::new("without an answer", float(seen.lost), "jobs").at_most(0.0),
        Finding::new("to the answer, p50", at(&seen.waits, 50), "ms"),
        Finding::new("to the answer, p95", at(&seen.waits, 95), "ms").at_most(50.0),
        Finding::new("to the answer, p99", at(&seen.waits, 99), "ms"),
        Finding::new("to the answer, the longest", seen.waits.last().copied().unwrap_or(f64::INFINITY), "ms"),
        Finding::new("of one processor, the gateway", share(gateway), "%"),
        Finding::new("of one processor, the broker's server", share(broker), "%"),
        Finding::new("of a processor for each job, the gateway", gateway * 1e6 / jobs.max(1.0), "us"),
    ]
}

fn spent(gateway: &Running, stage: &Stage) -> anyhow::Result<[f64; 2]> {
    Ok([gateway.cpu()?, stage.cpu()?])
}

/// A key that may ask as often as this does.
async fn key(home: &Home, name: &str) -> anyhow::Result<String> {
    let made = home.start("promptq", &["keys", "create", name, "--role", "submitter", "--rate", "100000"])?;
    Ok(made.ended().await?.output.trim().to_owned())
}

fn serve(home: &Home, address: SocketAddr) -> anyhow::Result<Running> {
    home.start("promptq", &["serve", "--listen", &address.to_string(), "--admin", "off"])
}

async fn ready(address: SocketAddr, secret: &str, gateway: &mut Running) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        ensure!(!gateway.has_left()? && began.elapsed() < PATIENCE, "the gateway does not come up: {}", gateway.tail());
        if let Ok(mut line) = Line::open(address).await
            && line.ask(&job(secret, 0)).await.is_ok_and(|answer| answer.status == 201)
        {
            return Ok(());
        }
        sleep(Duration::from_millis(50)).await;
    }
}

fn job(secret: &str, n: u32) -> Vec<u8> {
    let body = json!({ "prompt": text(n as usize), "model": "mock" }).to_string();
    post(secret, &body, body.len())
}

/// Those who do not wait for each other.
#[derive(Clone, Debug)]
struct Clients {
    address: SocketAddr,
    secret: String,
    /// Connections on which nobody waits for an answer.
    idle: Arc<Mutex<Vec<Line>>>,
}

/// What became of the jobs.
#[derive(Debug, Default)]
struct Seen {
    /// How long those took that were taken in, in milliseconds, sorted.
    waits: Vec<f64>,
    refused: usize,
    lost: usize,
}

/// So many jobs, each sent at its time.
async fn run(clients: &Clients, rate: u32, count: u32) -> Seen {
    let (began, mut sent) = (Instant::now(), JoinSet::new());
    for n in 0..count {
        let due = began + Duration::from_secs(1) * n / rate;
        sleep_until(due).await;
        let clients = clients.clone();
        sent.spawn(async move {
            let status = timeout(PATIENCE, clients.submit(n)).await.ok().and_then(Result::ok);
            (status, due.elapsed().as_secs_f64() * 1_000.0)
        });
    }
    let mut seen = Seen::default();
    for (status, wait) in sent.join_all().await {
        match status {
            Some(201) => seen.waits.push(wait),
            Some(_) => seen.refused += 1,
            None => seen.lost += 1,
        }
    }
    seen.waits.sort_by(f64::total_cmp);
    seen
}

impl Clients {
    /// The status that the job was answered.
    async fn submit(&self, n: u32) -> anyhow::Result<u16> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut line = match idle {
            Some(line) => line,
            None => Line::open(self.address).await?,
        };
        let answer = line.ask(&job(&self.secret, n)).await?;
        if answer.stays {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        }
        Ok(answer.status)
    }
}

/// Whether the gateway was still listening when it stopped.
async fn trickle(address: SocketAddr, secret: String, until: Instant) -> bool {
    let Ok(mut stream) = TcpStream::connect(address).await else { return false };
    if stream.write_all(&post(&secret, "{", TRICKLE_BYTES)).await.is_err() {
        return false;
    }
    let (piece, pause) = (" ".repeat(TRICKLE.0), TRICKLE.1);
    while Instant::now() < until {
        sleep(pause).await;
        if stream.write_all(piece.as_bytes()).await.is_err() {
            return false;
        }
    }
    // Whoever is given up is answered before its body is whole.
    stream.try_read(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
}
