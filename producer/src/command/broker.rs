//! `promptq broker`: moves what waits in one broker to another.

use promptq_common::broker::{Access, Broker, Depth, QueueView};
use promptq_common::config::{Address, Ledger};
use promptq_common::job::Queue;
use promptq_common::telemetry::{Act, audit};
use serde_json::{Value, json};

use super::queues::is_own;
use crate::cli::{Confirm, Output};
use crate::confirm::{Deed, allowed};
use crate::context::{Context, connect, must_exist};
use crate::moving::{Move, Moved, same_problem, under_way};
use crate::printer::Format;
use crate::problem::{Exit, Problem, Result};
use crate::progress::Count;
use crate::submit::{grouped, jobs};

/// What about it.
#[derive(Debug, clap::Args)]
#[command(
    before_help = "Examples:\n  promptq broker move --to redis://localhost\n  promptq broker move --from sqlite:///var/q.db --to redis://localhost -Q default --dry-run"
)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

/// What can be done.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// Put what waits in one broker into another
    Move(MoveArgs),
}

/// What to move, and where.
#[derive(Debug, clap::Args)]
#[command(after_help = MOVE_HELP)]
pub struct MoveArgs {
    /// The broker that jobs leave; left out, the configured one
    #[arg(long, value_name = "URL", required_unless_present = "to")]
    from: Option<String>,
    /// The broker that they go to; left out, the configured one
    #[arg(long, value_name = "URL")]
    to: Option<String>,
    /// Only these queues, such as default,vision; else all but those that `run` made for itself
    #[arg(short = 'Q', long = "queue", value_name = "NAME", value_delimiter = ',')]
    queues: Vec<Queue>,
    /// Hand out jobs again at the end where they left: those that stayed, and new ones
    #[arg(long)]
    resume: bool,
    /// Asking.
    #[command(flatten)]
    confirm: Confirm,
    /// The shape.
    #[command(flatten)]
    output: Output,
}

const MOVE_HELP: &str =
    "Waiting jobs go, with their id, batch, attempts and due time. Their queues are paused where they leave and stay so
(--resume lifts that). Running jobs end where they run; dead jobs, records and results stay where they are, so a batch
may have results at both. A job that the target does not take stays, and is named.

Killed at any point, nothing is lost: run the same command again and it does the rest. Until it has, leave the queues
paused, or jobs may run at both. Passwords in arguments can be seen by others on the machine: leave out the side that
PROMPTQ_BROKER names.

Exit codes: 0 everything waiting has moved, 6 some jobs stayed or another move is under way, 7 unreachable.";

impl Args {
    /// The shape of data it was asked for.
    pub fn format(&self) -> Format {
        match &self.action {
            Action::Move(args) => args.output.format(),
        }
    }
}

/// Moves.
pub async fn run(cx: &Context, args: &Args) -> Result<Exit> {
    match &args.action {
        Action::Move(args) => shift(cx, args).await,
    }
}

async fn shift(cx: &Context, args: &MoveArgs) -> Result<Exit> {
    let (from, to) = (address(cx, "--from", args.from.as_deref())?, address(cx, "--to", args.to.as_deref())?);
    if from == to {
        return Err(same_problem());
    }
    if share_a_ledger(cx.config.ledger.as_ref(), &from, &to) {
        return Err(shared_problem());
    }
    if [&from, &to].iter().any(|url| url.scheme() == "memory") {
        return Err(Problem::usage("memory:// ends with this process: there is nothing to move from or to it"));
    }
    must_exist(&from)?;
    // Certificates and durability are as configured, whichever side they are for.
    let configured = cx.access().await?;
    let access = |url: &Address| Access { url: url.clone(), ..configured.clone() };
    let source = connect(access(&from)).await?;
    let views = chosen(&source, &args.queues, &under_way(&to.to_string())).await?;
    if !allowed(cx, &args.confirm, &deed(&views, &to)).await? {
        return Ok(Exit::Done);
    }
    let target = connect(access(&to)).await?;
    let mut moving = Move::begin(&source, &target, to.to_string()).await?;
    let done = all(cx, args, &source, (&mut moving, &views)).await;
    // Whatever it came to, the next move need not wait for this one.
    let ended = moving.end().await;
    let done = done?;
    ended?;
    report(cx, args, (&from, &to), &done)?;
    warn_of_pauses(cx, &target, &done).await?;
    refused(&done).map_or(Ok(Exit::Done), Err)
}

/// Whether both ends would keep their records in one place: RabbitMQ's are in the configured ledger, whichever end it is.
fn share_a_ledger(ledger: Option<&Ledger>, from: &Address, to: &Address) -> bool {
    let is_rabbitmq = |url: &Address| matches!(url.scheme(), "amqp" | "amqps");
    let is_ledger = |url: &Address| matches!(ledger, Some(Ledger::Elsewhere { url: own, .. }) if same_place(own, url));
    match (is_rabbitmq(from), is_rabbitmq(to)) {
        (true, true) => true,
        (true, false) => is_ledger(to),
        (false, true) => is_ledger(from),
        (false, false) => false,
    }
}

/// Whether two addresses lead to the same data, whoever logs in.
fn same_place(one: &Address, other: &Address) -> bool {
    let place = |url: &Address| {
        let url = url::Url::parse(url.expose()).ok()?;
        let path = url.path().trim_end_matches('/').trim_end_matches("/0").to_owned();
        let scheme = url.scheme().replace("rediss", "redis");
        Some((scheme, url.host_str().map(str::to_owned), url.port().unwrap_or(6_379), path))
    };
    place(one) == place(other)
}

fn shared_problem() -> Problem {
    let what = "both ends would keep their records in one ledger, which takes a job of the one for a job of the other";
    Problem::new(Exit::Usage, "same-ledger", what)
        .hint("move in two steps, through a file: --to sqlite:///tmp/move.db, then --from there, each RabbitMQ with a ledger of its own")
}

async fn all(
    cx: &Context,
    args: &MoveArgs,
    source: &Broker,
    (moving, views): (&mut Move<'_>, &[QueueView]),
) -> Result<Vec<(Queue, Moved)>> {
    let mut count = Count::new(cx.printer, "moved", most(views));
    let mut done: Vec<(Queue, Moved)> = Vec::new();
    for view in views {
        let queue = &view.queue;
        let before: u64 = done.iter().map(|(_, moved)| moved.moved).sum();
        let moved = moving.queue(queue, |here| count.show(before + here)).await.map_err(|problem| {
            problem.hint("nothing is lost: the same command again does the rest; until then the queue stays paused")
        })?;
        audit(&Act {
            action: "move",
            subject: queue.as_str(),
            reason: args.confirm.reason.as_deref(),
            count: moved.moved,
        });
        if args.resume {
            source.pause(queue, None).await?;
        }
        done.push((queue.clone(), moved));
    }
    Ok(done)
}

fn address(cx: &Context, flag: &str, said: Option<&str>) -> Result<Address> {
    said.map_or_else(
        || Ok(cx.config.broker.url.clone()),
        |text| Address::new(text).map_err(|why| Problem::usage(format!("{flag} {why}"))),
    )
}

/// The queues to move: those named, else those that hold living jobs or were on their way when an earlier try died.
async fn chosen(source: &Broker, named: &[Queue], reason: &str) -> Result<Vec<QueueView>> {
    let mut views = source.queues().await?;
    if let Some(unknown) = named.iter().find(|name| !views.iter().any(|view| view.queue == **name)) {
        let what = format!("there is no queue {:?} to move from", unknown.as_str());
        return Err(Problem::new(Exit::NotFound, "not-found", what).hint("promptq queues list shows those there are"));
    }
    views.retain(|view| {
        let depth = view.depth;
        let alive = depth.ready + depth.delayed + depth.running > 0 || view.paused.as_deref() == Some(reason);
        if named.is_empty() { alive && !is_own(&view.queue) } else { named.contains(&view.queue) }
    });
    Ok(views)
}

/// How many jobs wait in these queues; where delayed ones are counted for all queues together, at most.
fn most(views: &[QueueView]) -> u64 {
    let of_all = views.iter().filter(|view| view.depth.delayed_of_all).map(|view| view.depth.delayed).max();
    views.iter().map(|view| view.depth.waiting()).sum::<u64>() + of_all.unwrap_or(0)
}

fn deed(views: &[QueueView], to: &Address) -> Deed {
    let sample = |view: &QueueView| {
        let paused = view.paused.as_ref().map_or_else(String::new, |reason| format!(", paused ({reason})"));
        let Depth { delayed, delayed_of_all, running, .. } = view.depth;
        let delayed = if delayed_of_all { format!(", some of {} delayed", grouped(delayed)) } else { String::new() };
        let waiting = grouped(view.depth.waiting());
        format!("{}: {waiting} waiting{delayed}, {} running{paused}", view.queue, grouped(running))
    };
    Deed {
        verb: "move",
        count: most(views),
        subject: format!("waiting jobs to {to}"),
        samples: views.iter().map(sample).collect(),
        queue: if let [only] = views { Some(only.queue.clone()) } else { None },
    }
}

fn report(cx: &Context, args: &MoveArgs, (from, to): (&Address, &Address), done: &[(Queue, Moved)]) -> Result<()> {
    if cx.printer.is_json() {
        let sum = |of: fn(&Moved) -> u64| done.iter().map(|(_, moved)| of(moved)).sum::<u64>();
        return cx.printer.json(&json!({
            "from": from.to_string(),
            "to": to.to_string(),
            "moved": sum(|moved| moved.moved),
            "known": sum(|moved| moved.known),
            "refused": sum(|moved| moved.refused.count),
            "queues": done.iter().map(|(queue, moved)| object(queue, moved, args.resume)).collect::<Vec<_>>(),
        }));
    }
    if done.is_empty() {
        return cx.printer.line(&format!("nothing waits at {from}"));
    }
    for (queue, moved) in done {
        let left = &moved.left;
        let kept = [(left.waiting(), "waiting"), (left.running, "running"), (left.dead, "dead")];
        let kept: Vec<String> =
            kept.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{} {what}", grouped(*n))).collect();
        let kept = if kept.is_empty() { "nothing".to_owned() } else { kept.join(", ") };
        let paused = if args.resume { String::new() } else { format!("; the queue stays paused at {from}") };
        cx.printer.line(&format!("queue {queue}: {} moved to {to}; left behind: {kept}{paused}", jobs(moved.moved)))?;
    }
    Ok(())
}

/// Tells of queues that are paused where their jobs went: by an earlier move the other way, as a rule.
async fn warn_of_pauses(cx: &Context, target: &Broker, done: &[(Queue, Moved)]) -> Result<()> {
    for view in target.queues().await? {
        let Some(reason) = view.paused.filter(|_| done.iter().any(|(queue, _)| *queue == view.queue)) else { continue };
        let queue = &view.queue;
        cx.printer.warn(&format!(
            "queue {queue} is paused where its jobs went ({reason}): promptq queues resume {queue} there lets them run"
        ));
    }
    Ok(())
}

fn object(queue: &Queue, moved: &Moved, resumed: bool) -> Value {
    let left = &moved.left;
    json!({
        "queue": queue,
        "moved": moved.moved,
        "known": moved.known,
        "refused": moved.refused.count,
        "left": { "waiting": left.waiting(), "running": left.running, "dead": left.dead },
        "state": if resumed { "active" } else { "paused" },
    })
}

/// What there is to say of jobs that stayed.
fn refused(done: &[(Queue, Moved)]) -> Option<Problem> {
    let count: u64 = done.iter().map(|(_, moved)| moved.refused.count).sum();
    let samples = done.iter().flat_map(|(_, moved)| &moved.refused.samples);
    let problem = Problem::new(Exit::Conflict, "not-moved", format!("{} stayed behind", jobs(count)));
    let problem = samples.fold(problem, |problem, (id, why)| problem.detail(format!("{id}: {why}")));
    (count > 0).then(|| problem.hint("the target keeps its own; cancel these, or run them where they are (--resume)"))
}
