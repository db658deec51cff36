//! What `promptq doctor` tries at a server, one hop after the other, so that the one that fails is named. Leaves nothing
//! behind: what it publishes is for nobody, what it would consume is refused, what it deletes is not there.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, ErrorKind, ExchangeKind};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::address::{OP, Target};
use super::fault::code;
use super::link::Link;
use super::topology::{self, DELAY, Expected, IN};
use crate::broker::Access;
use crate::error::{Error, Kind, Result};
use crate::job::Queue;

/// A server in order answers each hop within milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// No queue, lane, worker or key is called so: keys have three parts, and workers' names a random end.
const NOBODY: &str = "promptq-doctor";

/// One thing that was tried.
#[derive(Clone, Debug)]
pub struct Hop {
    /// Its name: `reach`, `login`, `alarm`, `rights`, `topology`, `identity`.
    pub name: &'static str,
    /// How it went.
    pub health: Health,
    /// What was found.
    pub what: String,
    /// How to mend it, or what more there is to know.
    pub hint: Option<String>,
}

/// How a hop went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// As it should.
    Fine,
    /// Works, and may not be what is wanted.
    Doubtful,
    /// A person has to mend it.
    Broken,
    /// Cannot be reached; another try may do.
    Away,
}

/// What a user may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Right {
    Submit,
    /// Take jobs out of lanes, and announce results.
    Answer,
    /// Have a queue of its own for long jobs.
    Keep,
    Declare,
}

/// Tries the server that `access` names: reaches it, logs in, looks for the topology of `queues`, and asks what the user
/// may do. Stops at the first hop without which the next ones mean nothing.
pub async fn examine(access: &Access, queues: &[Queue]) -> Vec<Hop> {
    let mut hops = Vec::new();
    if let Err(hop) = visit(access, queues, &mut hops).await {
        hops.push(hop);
    }
    hops
}

async fn visit(access: &Access, queues: &[Queue], hops: &mut Vec<Hop>) -> std::result::Result<(), Hop> {
    let target = Target::new(access).await.map_err(|error| Hop::failed("reach", &error))?;
    hops.push(reach(&target).await.map_err(|error| Hop::failed("reach", &error))?);
    let connecting = timeout(PATIENCE, Link::connect(access)).await;
    let connected = connecting.unwrap_or_else(|_| Err(target.peer.silent(OP)));
    let link = connected.map_err(|error| Hop::failed("login", &error))?;
    let (user, vhost) = (&target.peer.user, &target.peer.vhost);
    hops.push(Hop::new("login", Health::Fine, format!("as user {user} into virtual host {vhost}")));
    let rights = tokio::select! {
        biased;
        why = link.blocked() => return Err(alarm_hop(&target, &why)),
        rights = in_time(&target, rights(&link, queues)) => rights.map_err(|error| Hop::failed("rights", &error))?,
    };
    hops.push(rights_hop(&rights, user));
    let expected: Vec<Expected> = queues.iter().map(|queue| topology::expected(queue, &access.amqp)).collect();
    let missing = in_time(&target, missing(&link, &expected)).await;
    let missing = missing.map_err(|error| Hop::failed("topology", &error))?;
    hops.push(topology_hop(&missing, &expected, rights.contains(&Right::Declare)));
    Ok(())
}

async fn in_time<T>(target: &Target, trying: impl Future<Output = Result<T>>) -> Result<T> {
    let silent = || {
        let why = "it let us in and then answered nothing for 10 s; rabbitmq-diagnostics status shows what it is at";
        target.peer.error(Kind::TimedOut, OP, why)
    };
    timeout(PATIENCE, trying).await.unwrap_or_else(|_| Err(silent()))
}

/// Of a server that takes no messages for want of memory or disk.
fn alarm_hop(target: &Target, why: &str) -> Hop {
    let what = format!("{}: the server blocks everybody who publishes: {why}", target.peer.shown);
    Hop::new("alarm", Health::Away, what).hint(
        "until it has room submits wait and workers take nothing new; rabbitmq-diagnostics alarms shows what it lacks, \
         its vm_memory_high_watermark and disk_free_limit are the bounds",
    )
}

/// Whether something listens there at all: names, routes, firewalls.
async fn reach(target: &Target) -> Result<Hop> {
    let (host, port) = (target.uri.authority.host.as_str(), target.uri.authority.port);
    let begun = Instant::now();
    let connected = timeout(PATIENCE, TcpStream::connect((host, port))).await;
    match connected.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())) {
        Ok(_) => {
            let took = begun.elapsed().as_secs_f64() * 1_000.0;
            let tls = if target.peer.is_tls { "with TLS" } else { "without TLS" };
            Ok(Hop::new("reach", Health::Fine, format!("{}: connected in {took:.1} ms, {tls}", target.peer.shown)))
        }
        Err(error) => Err(target.peer.lift_dial(OP, &ErrorKind::IOError(Arc::new(error)).into())),
    }
}

/// Asks for each right by something that comes to nothing where it is granted.
async fn rights(link: &Link, queues: &[Queue]) -> Result<Vec<Right>> {
    let lane = queues.first().map_or_else(|| format!("pq1.q.{NOBODY}"), topology::some_lane);
    let hold = format!("pq1.hold.{NOBODY}");
    let may_publish = async |exchange: &str| granted(link, async |channel| publish(channel, exchange).await).await;
    let may_delete = async |queue: &str| granted(link, async |channel| delete(channel, queue).await).await;
    let may_consume = granted(link, async |channel| consume(channel, &lane).await).await?;
    let asked = [
        (may_publish(IN).await? && may_publish(DELAY).await?, Right::Submit),
        (may_consume && may_publish("").await?, Right::Answer),
        (may_publish(&hold).await? && may_delete(&hold).await?, Right::Keep),
        (may_delete(&format!("pq1.q.{NOBODY}")).await?, Right::Declare),
    ];
    Ok(asked.into_iter().filter_map(|(is_granted, right)| is_granted.then_some(right)).collect())
}

/// False when the server refuses it for want of a right; whatever else it says, it has looked at that first.
async fn granted(link: &Link, ask: impl AsyncFnOnce(&Channel) -> lapin::Result<()>) -> Result<bool> {
    let channel = link.channel().await?;
    let answer = ask(&channel).await;
    if answer.is_ok() {
        // One that is closed already is what is wanted.
        drop(channel.close(200, "done".into()).await);
    }
    match answer {
        Err(error) if code(&error) == Some(403) => Ok(false),
        Err(error) if !error.is_amqp_soft_error() => Err(link.peer().lift(OP, &error)),
        Ok(()) | Err(_) => Ok(true),
    }
}

/// Under a key that leads nowhere, so that it is returned.
async fn publish(channel: &Channel, exchange: &str) -> lapin::Result<()> {
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let sent = channel.basic_publish(exchange.into(), NOBODY.into(), options, &[], BasicProperties::default());
    let (Confirmation::Ack(_) | Confirmation::Nack(_) | Confirmation::NotRequested) = sent.await?.await?;
    Ok(())
}

/// With an argument that is wrong: refused after the right was looked at, and before anything is delivered.
async fn consume(channel: &Channel, queue: &str) -> lapin::Result<()> {
    let mut wrong = FieldTable::default();
    wrong.insert("x-priority".into(), AMQPValue::LongString("none".into()));
    let consumer = channel.basic_consume(queue.into(), NOBODY.into(), BasicConsumeOptions::default(), wrong).await;
    consumer.map(drop)
}

async fn delete(channel: &Channel, queue: &str) -> lapin::Result<()> {
    let options = QueueDeleteOptions { if_unused: true, if_empty: true, ..QueueDeleteOptions::default() };
    channel.queue_delete(queue.into(), options).await.map(drop)
}

fn rights_hop(rights: &[Right], user: &str) -> Hop {
    let all = [Right::Submit, Right::Answer, Right::Keep, Right::Declare];
    let (granted, refused): (Vec<Right>, Vec<Right>) = all.iter().partition(|right| rights.contains(right));
    let list = |rights: &[Right]| rights.iter().map(|right| right.words()).collect::<Vec<_>>().join(", ");
    let what = match (list(&granted).as_str(), list(&refused).as_str()) {
        ("", _) => format!("user {user} may do nothing here"),
        (granted, "") => format!("user {user} may {granted}"),
        (granted, refused) => format!("user {user} may {granted}; not {refused}"),
    };
    let health = if !rights.contains(&Right::Submit) {
        Health::Broken
    } else if rights.contains(&Right::Answer) && !rights.contains(&Right::Keep) {
        Health::Doubtful
    } else {
        return Hop::new("rights", Health::Fine, what);
    };
    Hop::new("rights", health, what).hint("deploy/rabbitmq has the rights of each kind of user")
}

impl Right {
    fn words(self) -> &'static str {
        match self {
            Self::Submit => "submit jobs",
            Self::Answer => "take and answer them",
            Self::Keep => "keep long ones",
            Self::Declare => "declare queues",
        }
    }
}

/// The names of what is expected and not there. What this user may not look at counts as there: servers of 4.2.6 and
/// 4.3.0 let nobody look who may not declare.
async fn missing(link: &Link, expected: &[Expected]) -> Result<BTreeSet<String>> {
    let exchanges = expected.iter().flat_map(|of| &of.exchanges).map(|name| (true, name));
    let queues = expected.iter().flat_map(|of| of.queues.iter().chain(&of.lanes)).map(|name| (false, name));
    let once: BTreeSet<(bool, &String)> = exchanges.chain(queues).collect();
    let mut missing = BTreeSet::new();
    let mut channel = link.channel().await?;
    for (is_exchange, name) in once {
        let Err(error) = look(&channel, is_exchange, name).await else { continue };
        match code(&error) {
            Some(404) => drop(missing.insert(name.clone())),
            Some(403) => {}
            Some(_) | None => return Err(link.peer().lift(OP, &error)),
        }
        // The answer has closed it.
        channel = link.channel().await?;
    }
    drop(channel.close(200, "done".into()).await);
    Ok(missing)
}

async fn look(channel: &Channel, is_exchange: bool, name: &str) -> lapin::Result<()> {
    if is_exchange {
        let options = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
        return channel.exchange_declare(name.into(), ExchangeKind::Direct, options, FieldTable::default()).await;
    }
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(name.into(), options, FieldTable::default()).await.map(drop)
}

fn topology_hop(missing: &BTreeSet<String>, expected: &[Expected], may_declare: bool) -> Hop {
    let list = |of: &mut dyn Iterator<Item = &Expected>| of.map(|of| of.queue.as_str()).collect::<Vec<_>>().join(" ");
    let Some(first) = missing.first() else {
        let what = format!("everything that {} needs is there", list(&mut expected.iter()).replace(' ', ", "));
        return Hop::new("topology", Health::Fine, what);
    };
    let all = |of: &Expected| of.exchanges.iter().chain(&of.queues).chain(&of.lanes).any(|name| missing.contains(name));
    let lacking = list(&mut expected.iter().filter(|of| all(of)));
    let what = match missing.len() {
        1 => format!("{first} is missing"),
        2 => format!("{first} and 1 other are missing for {}", lacking.replace(' ', ", ")),
        count => format!("{first} and {} others are missing for {}", count - 1, lacking.replace(' ', ", ")),
    };
    let command = format!("promptq queues declare {lacking}");
    let lanes_alone = missing.iter().all(|name| expected.iter().any(|of| of.lanes.contains(name)));
    if !may_declare {
        let hint = format!("run `{command}` as a user that may declare");
        return Hop::new("topology", Health::Broken, what).hint(&hint);
    }
    if lanes_alone {
        let what = format!("{what}: models that have no lanes of their own yet, as the settings want them");
        return Hop::new("topology", Health::Doubtful, what).hint(&format!("`{command}` makes them"));
    }
    let what = format!("{what}; made by whoever uses the queue first");
    Hop::new("topology", Health::Fine, what).hint(&format!("`{command}` makes it now"))
}

impl Hop {
    fn new(name: &'static str, health: Health, what: String) -> Self {
        Self { name, health, what, hint: None }
    }

    fn hint(mut self, hint: &str) -> Self {
        self.hint = Some(hint.to_owned());
        self
    }

    pub(super) fn failed(name: &'static str, error: &Error) -> Self {
        let is_away = matches!(error.kind(), Kind::Unavailable | Kind::TimedOut | Kind::Closed);
        let health = if is_away { Health::Away } else { Health::Broken };
        Self::new(name, health, error.to_string())
    }
}
