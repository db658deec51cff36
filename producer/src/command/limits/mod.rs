//! `promptq limits`: what may be used of accounts and budgets and what is used of it, changed for the whole fleet.

mod known;
mod reset;

use std::collections::BTreeSet;

use promptq_common::broker::{Broker, HoldKey};
use promptq_common::config::{Change, change_of};
use promptq_common::limits::{self, Cap, CapView, Measure, Per, Pool, PoolView, means};
use promptq_common::telemetry::{Act, audit};
use promptq_common::time::Timestamp;
use serde_json::{Value, json};

use crate::cli::{Confirm, ListOutput, Output};
use crate::context::Context;
use crate::limits::brief::brief;
use crate::limits::{Standing, State, every, kept, one, sheet, words};
use crate::list::{Column, List, cell, text, thousands};
use crate::printer::Format;
use crate::problem::{Exit, Problem, Result};
use known::{known, shared};

/// What about them.
#[derive(Debug, clap::Args)]
#[command(
    before_help = "Examples:\n  promptq limits list\n  promptq limits set openai/gpt-4o requests=300/min tokens=off\n  promptq limits release openai/gpt-4o\n  promptq limits reset openai/gpt-4o --dry-run",
    after_help = "Ends with 2 where the ledger cannot share limits (object storage), 5 for a key that nobody has."
)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

/// What can be done.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// List limits: what is used of each, what calls hold, what keeps jobs waiting
    List {
        /// The shape.
        #[command(flatten)]
        output: ListOutput,
    },
    /// Show one key: its limits, what holds it back, what to do about it
    Show {
        /// The key, as in `[limits."KEY"]`, or as listed
        key: String,
        /// The shape.
        #[command(flatten)]
        output: Output,
    },
    /// Set limits of a key for every worker, whatever its settings say, until changed; `off` goes back to those
    Set {
        /// The key, as in `[limits."KEY"]`, or as listed
        key: String,
        /// Such as requests=300/min, tokens=150k/min, concurrent=8, requests=off
        #[arg(required = true, value_name = "NAME=AMOUNT")]
        caps: Vec<String>,
        /// Why, for the audit line
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        /// The shape.
        #[command(flatten)]
        output: Output,
    },
    /// Forget what workers share of a key, readable or not: what is used, set and learned
    Reset {
        /// The key, as in `[limits."KEY"]`, or as listed
        key: String,
        /// Asking first.
        #[command(flatten)]
        confirm: Confirm,
        /// The shape.
        #[command(flatten)]
        output: Output,
    },
    /// End a key's freeze and its caution after refusals, forget what headers said, try a held account again
    Release {
        /// The key, as in `[limits."KEY"]`, or as listed
        key: String,
        /// Why, for the audit line
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        /// The shape.
        #[command(flatten)]
        output: Output,
    },
}

impl Args {
    /// The shape of data it was asked for.
    pub fn format(&self) -> Format {
        match &self.action {
            Action::List { output } => output.output.format(),
            Action::Show { output, .. }
            | Action::Set { output, .. }
            | Action::Reset { output, .. }
            | Action::Release { output, .. } => output.format(),
        }
    }
}

/// Lists, shows or changes them.
pub async fn run(cx: &Context, args: &Args) -> Result<Exit> {
    match &args.action {
        Action::List { output } => list(cx, &output.fields).await?,
        Action::Show { key, .. } => show(cx, key).await?,
        Action::Set { key, caps, reason, .. } => set(cx, key, caps, reason.as_deref()).await?,
        Action::Reset { key, confirm, .. } => reset::run(cx, key, confirm).await?,
        Action::Release { key, reason, .. } => release(cx, key, reason.as_deref()).await?,
    }
    Ok(Exit::Done)
}

async fn list(cx: &Context, fields: &[String]) -> Result<()> {
    const COLUMNS: &[Column] = &[
        ("key", |item| cell(item, "key")),
        ("limit", |item| cell(item, "limit")),
        ("from", |item| cell(item, "from")),
        ("used", |item| number(item, "used")),
        ("held", |item| number(item, "held")),
        ("workers", |item| number(item, "workers")),
        ("waiting", |item| number(item, "waiting")),
        ("state", |item| cell(item, "brief")),
    ];
    let (standings, is_shared) = every(cx.existing().await?.ledger()).await?;
    let mut items: Vec<Value> = standings.iter().flat_map(rows).collect();
    if is_shared {
        items.extend(unused(cx, &standings));
        items.sort_by(|one, other| one["key"].as_str().cmp(&other["key"].as_str()));
    }
    if !is_shared {
        cx.printer.say(
            "limits are not shared by this ledger: each worker keeps to worker.limit_share of each; this is what workers \
             say holds jobs back",
        );
    } else if items.is_empty() {
        cx.printer.say("no worker has used a limit yet; limits are set in [limits.\"PROVIDER/MODEL\"]");
    }
    List::whole(items).print(cx, COLUMNS, fields)
}

/// One row for each cap of a key, with a state of its own; one for a key that has none.
fn rows(standing: &Standing) -> Vec<Value> {
    let whole = standing.object();
    let row = |cap: &Value, state: State<'_>| {
        let mut item = whole.clone();
        if let (Some(item), Some(cap)) = (item.as_object_mut(), cap.as_object()) {
            item.remove("caps");
            item.extend(cap.clone());
            item.insert("state".into(), words::word(state).into());
            item.insert("brief".into(), brief(standing, state).into());
        }
        item
    };
    let none = json!({ "limit": null, "measure": null, "per": null, "most": null, "from": null, "configured": null,
        "set": null, "learned": null, "used": null, "held": null, "granted": null });
    let rows: Vec<_> = standing.caps().map(|cap| row(&words::cap(cap), standing.state_of(cap))).collect();
    if rows.is_empty() && (standing.holds() || !standing.held.is_empty()) {
        return vec![row(&none, standing.state())];
    }
    rows
}

/// A row for each cap that the settings here have of a key which no worker has used.
fn unused(cx: &Context, standings: &[Standing]) -> Vec<Value> {
    let rules = cx.config.limits.iter().map(|rule| rule.key.clone());
    let budgets = cx.config.queues.keys().map(|queue| HoldKey::Budget(queue.to_string()).limit_key());
    let is_used = |key: &String| standings.iter().any(|one| one.key == *key && one.caps().next().is_some());
    let keys: BTreeSet<String> = rules.chain(budgets).filter(|key| !is_used(key)).collect();
    let row = |key: String| {
        let caps = configured(cx, &key).into_iter();
        let caps = caps.map(|cap| CapView {
            cap,
            configured: cap.most,
            set: None,
            learned: None,
            used: 0,
            held: 0,
            in_calls: 0,
        });
        let shared = PoolView {
            caps: caps.collect(),
            frozen_for: 0,
            why: None,
            rate: 1.0,
            workers: 0,
            starving: 0,
            lacks: None,
        };
        let mut rows = rows(&Standing { key, shared: Some(shared), held: Vec::new(), at: Timestamp::now() });
        for row in &mut rows {
            row["brief"] = "not used yet".into();
        }
        rows
    };
    keys.into_iter().flat_map(row).collect()
}

/// A number with its thousands apart; money is text already.
fn number(item: &Value, key: &str) -> String {
    item[key].as_u64().map_or_else(|| text(item.get(key)), thousands)
}

async fn show(cx: &Context, key: &str) -> Result<()> {
    known(cx, key, |known| known == key).await?;
    let ledger = cx.existing().await?.ledger();
    let standing = one(ledger, key.to_owned(), &ledger.workers().await?).await?;
    if cx.printer.is_json() {
        let mut object = standing.object();
        object["next"] = json!(words::next(&standing));
        return cx.printer.json(&object);
    }
    sheet::lines(&standing, &configured(cx, key)).iter().try_for_each(|line| cx.printer.line(line))
}

async fn set(cx: &Context, key: &str, caps: &[String], reason: Option<&str>) -> Result<()> {
    let bad = |text: &str, why: String| {
        Problem::new(Exit::Usage, "bad-limit", why).detail("nothing was changed").hint(example(key, text))
    };
    let change = |text: &String| change_of(key, text).map_err(|why| bad(text, why));
    let changes: Vec<Change> = caps.iter().map(change).collect::<Result<_>>()?;
    let broker = shared(cx).await?;
    known(cx, key, |known| known == key).await?;
    let configured = configured(cx, key);
    let is_kept = limits::look(broker.ledger(), key).await?.is_some_and(|view| !view.caps.is_empty());
    if configured.is_empty() && !is_kept {
        return Err(unkept(key));
    }
    let all = |pool: &mut Pool, now: i64| {
        let before = pool.view(now);
        for change in &changes {
            pool.set(now, change.measure, change.per, change.most);
        }
        (before, pool.view(now))
    };
    let (before, after) = limits::change(broker.ledger(), key, all).await?;
    let count = u64::try_from(changes.len()).unwrap_or(u64::MAX);
    audit(&Act { action: "set-limit", subject: key, reason, count });
    let woken = wake(broker, key).await?;
    let turn = |change: &Change| {
        let of = |view: &PoolView| in_force(view, &configured, change.measure, change.per);
        (*change, of(&before), of(&after))
    };
    let turns: Vec<_> = changes.iter().map(turn).collect();
    if cx.printer.is_json() {
        let turned = |(change, before, after): &(Change, Option<Cap>, Option<Cap>)| {
            let text = |cap: &Option<Cap>| cap.map(|cap| cap.to_string());
            json!({ "measure": change.measure.as_str(), "set": change.most.is_some(), "before": text(before),
                "now": text(after) })
        };
        let changes: Vec<_> = turns.iter().map(turned).collect();
        return cx.printer.json(&json!({ "key": key, "changes": changes, "woken": woken }));
    }
    for (change, before, after) in turns {
        let text = |cap: Option<Cap>| cap.map_or_else(|| "no limit".to_owned(), |cap| cap.to_string());
        let whose = if change.most.is_some() { "for every worker, until changed" } else { "as configured" };
        cx.printer.line(&format!("{key}: {} → {}, {whose}", text(before), text(after)))?;
    }
    cx.printer.say(&match (after.workers, words::is_budget(key)) {
        (0, true) => "no worker asks for it now; those that run its jobs will follow it".to_owned(),
        (0, false) => {
            format!("no worker asks for it now; those with a rule for it, [limits.\"{key}\"], will follow it")
        }
        (_, _) => "workers follow within a second".to_owned(),
    });
    Ok(())
}

/// How a change of a key is written that was not understood.
fn example(key: &str, text: &str) -> &'static str {
    match HoldKey::of_limit(key) {
        HoldKey::Batch(_) => "a batch's cap is raised, such as usd=40; what was submitted without one has none",
        HoldKey::Budget(_) => "such as usd=40/day, or usd=off for what [queues.NAME] budget says",
        HoldKey::Limit(_) if text.trim_start().starts_with("usd") => {
            "such as usd=20/day, or usd=off for what the settings say"
        }
        HoldKey::Limit(_) => "such as requests=300/min, or requests=off for what the settings say",
    }
}

/// What the settings here say of a key.
fn configured(cx: &Context, key: &str) -> Vec<Cap> {
    let of_queue = |name: &str| cx.config.queues.iter().find(|(queue, _)| queue.as_str() == name)?.1.budget;
    match HoldKey::of_limit(key) {
        HoldKey::Limit(_) => {
            let rule = cx.config.limits.iter().find(|rule| rule.key == key);
            rule.map_or_else(Vec::new, |rule| rule.caps.clone())
        }
        HoldKey::Budget(queue) => of_queue(&queue).into_iter().collect(),
        HoldKey::Batch(_) => Vec::new(),
    }
}

/// Of a key that no worker asks before it calls: whatever was set would hold nothing back.
fn unkept(key: &str) -> Problem {
    let nobody = format!("no worker has used a limit of {key} yet, and the settings here have none");
    let or = "where they have one, it can be set as soon as a first job has used it";
    let (what, hint) = match HoldKey::of_limit(key) {
        HoldKey::Limit(_) => (nobody, format!("give it one in the workers' settings, in [limits.{key:?}]; {or}")),
        HoldKey::Budget(queue) => (nobody, format!("give it one in the workers' settings, in [queues.{queue}]; {or}")),
        HoldKey::Batch(name) => {
            let hint = "a cap on a batch begins with its submission: --max-cost AMOUNT".to_owned();
            (format!("the jobs of batch {name} were enqueued without a cap"), hint)
        }
    };
    Problem::new(Exit::NotFound, "not-found", what).detail("nothing was changed").hint(hint)
}

/// A cap as it is in force, without what refusals take of it; before anybody has used it, as the settings here have it.
fn in_force(view: &PoolView, configured: &[Cap], measure: Measure, per: Per) -> Option<Cap> {
    let is_it = |cap: &&Cap| cap.measure == measure && cap.per == per;
    let kept = view.caps.iter().find(|cap| is_it(&&cap.cap));
    let most = kept.map(|cap| cap.set.unwrap_or(cap.configured)).filter(|most| *most < i64::MAX);
    most.map(|most| Cap { measure, per, most }).or_else(|| configured.iter().find(is_it).copied())
}

async fn release(cx: &Context, key: &str, reason: Option<&str>) -> Result<()> {
    let broker = shared(cx).await?;
    // Of a provider, all of its models may be meant, though only they have limits; workers look for nothing between.
    if !cx.config.providers.contains_key(key) {
        known(cx, key, |known| !key.contains('/') && means(key, known)).await?;
    }
    // A freeze of one of its models would be found again by whoever looks at that.
    let is_under = |known: &String| known != key && means(key, known);
    let models = kept(broker.ledger()).await?.0.into_iter().filter(is_under);
    for key in models {
        if limits::look(broker.ledger(), &key).await?.is_some_and(|view| view.frozen_for > 0) {
            limits::change(broker.ledger(), &key, Pool::release).await?;
        }
    }
    limits::change(broker.ledger(), key, Pool::release).await?;
    let woken = wake(broker, key).await?;
    audit(&Act { action: "release-limit", subject: key, reason, count: 1 });
    if cx.printer.is_json() {
        return cx.printer.json(&json!({ "key": key, "released": true, "woken": woken }));
    }
    cx.printer.line(&format!("{key} is released; {} jobs that waited for it may start", thousands(woken)))
}

/// Wakes what was given back under a key, or under one that it covers and that workers tell of.
async fn wake(broker: &Broker, key: &str) -> Result<u64> {
    let workers = broker.ledger().workers().await?;
    let held = workers.iter().flat_map(|worker| &worker.held).map(|held| held.key.as_str());
    let keys: BTreeSet<&str> = held.filter(|held| means(key, held)).chain([key]).collect();
    let mut woken = 0;
    for key in keys {
        woken += broker.wake(&HoldKey::of_limit(key)).await?;
    }
    Ok(woken)
}

#[cfg(test)]
mod tests {
    use promptq_common::outcome::FailureClass;

    use super::*;
    use crate::limits::tests::{standing, told, view, worker};

    #[test]
    fn a_key_has_a_row_for_each_cap_and_one_row_where_workers_alone_tell_of_it() {
        let both = standing(Some(view((490, 7), (80, 20))), &[]);
        let found = rows(&both);
        assert_eq!(found.len(), 2);
        assert_eq!(
            (&found[0]["limit"], &found[0]["used"], &found[0]["state"]),
            (&"500 requests/min".into(), &490.into(), &"full".into())
        );
        assert_eq!((&found[1]["limit"], &found[1]["held"]), (&"90000 tokens/min".into(), &20.into()));
        assert_eq!((&found[1]["state"], &found[1]["brief"]), (&"open".into(), &"open".into()), "each of its own");
        let gate = standing(None, &[worker("w", vec![told("acme/gpt", FailureClass::Account, "no credit")])]);
        let [only] = rows(&gate).try_into().unwrap();
        assert_eq!(
            (&only["limit"], &only["blocked"][0]["class"], &only["workers"]),
            (&Value::Null, &"account".into(), &Value::Null)
        );
        let keys = |item: &Value| item.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&only), keys(&found[0]), "the same fields");
        assert!(rows(&standing(None, &[])).is_empty());
    }

    #[test]
    fn what_was_set_is_in_force_and_else_what_is_configured() {
        let mut shared = view((0, 0), (0, 0));
        let of = |view: &PoolView, configured: &[Cap]| {
            in_force(view, configured, Measure::Requests, Per::Minute).map(|cap| cap.most)
        };
        let here = [Cap { measure: Measure::Requests, per: Per::Minute, most: 9 }];
        assert_eq!(of(&shared, &here), Some(500));
        shared.caps[0].set = Some(30);
        assert_eq!(of(&shared, &here), Some(30));
        (shared.caps[0].set, shared.caps[0].configured) = (None, i64::MAX);
        assert_eq!((of(&shared, &here), of(&shared, &[])), (Some(9), None));
    }
}
