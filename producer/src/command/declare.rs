//! `promptq queues declare`: makes at the broker what queues need there, as the settings name them, and says what it did.

use std::collections::{BTreeMap, BTreeSet};

use promptq_common::broker::{self, Declared, embedded_file};
use promptq_common::job::Queue;
use promptq_common::telemetry::{Act, audit};
use serde_json::{Value, json};

use crate::context::Context;
use crate::list::{Column, List, cell};
use crate::printer::Format;
use crate::problem::{Exit, Problem, Result};

/// Declares these queues, or all that the settings name, each with its models.
pub(super) async fn run(cx: &Context, queues: &[Queue], prune: bool, new_ledger: bool) -> Result<()> {
    const COLUMNS: &[Column] = &[
        ("state", |item| cell(item, "state")),
        ("name", |item| cell(item, "name")),
        ("why", |item| cell(item, "why")),
    ];
    let mut items = Items::default();
    let queues = named(cx, queues);
    if new_ledger {
        items.put("pq1.ledger".to_owned(), "made", Some(renew(cx, &queues).await?));
    }
    for queue in queues {
        let Some(declared) = declare(cx, &queue, prune).await? else { return nothing(cx) };
        items.add(declared);
    }
    let differing = items.count("differs");
    List::whole(items.into_values()).print(cx, COLUMNS, &[])?;
    if differing == 0 {
        return Ok(());
    }
    let what = format!("{differing} of them are there with other arguments than the settings ask for, and stay so");
    Err(Problem::new(Exit::Usage, "topology-differs", what).hint(
        "jobs travel all the same; to change one, stop everything that uses it, let it run empty, delete it \
         (rabbitmqctl delete_queue NAME), and run `promptq queues declare` again",
    ))
}

/// Gives the virtual host the configured ledger, before anybody asks it for another; says which.
async fn renew(cx: &Context, queues: &BTreeSet<Queue>) -> Result<String> {
    if !matches!(cx.config.broker.url.scheme(), "amqp" | "amqps") {
        return Err(Problem::usage("--new-ledger is for RabbitMQ: other brokers are their own ledgers"));
    }
    let access = cx.access().await?;
    let ledger = broker::ledger(&access).await?;
    let queues: Vec<Queue> = queues.iter().cloned().collect();
    let named = broker::renew_ledger(&access, &*ledger, &queues).await?;
    audit(&Act { action: "new-ledger", subject: &named.short(), reason: None, count: 1 });
    Ok(format!("records are kept in the ledger whose identity is {named}"))
}

/// `None` where the broker makes what it needs by the way.
async fn declare(cx: &Context, queue: &Queue, prune: bool) -> Result<Option<Declared>> {
    // Connecting would make it.
    if embedded_file(cx.config.broker.url.expose()).is_some() {
        return Ok(None);
    }
    let models = cx.config.queue(queue).models;
    Ok(cx.broker().await?.declare(queue, &models, prune).await?)
}

/// The queues asked for; else those with settings of their own and those that workers here take from.
fn named(cx: &Context, asked: &[Queue]) -> BTreeSet<Queue> {
    if !asked.is_empty() {
        return asked.iter().cloned().collect();
    }
    let config = &cx.config;
    config.queues.keys().chain(config.worker.queues.iter().map(|(queue, _)| queue)).cloned().collect()
}

fn nothing(cx: &Context) -> Result<()> {
    if cx.printer.format() == Format::Table {
        return cx.printer.line("nothing to declare: this broker makes what a queue needs with its first job");
    }
    List::whole(Vec::new()).print(cx, &[], &[])
}

/// What was found and done, by name: what all queues share is told once, as the first of them met it.
#[derive(Debug, Default)]
struct Items {
    order: Vec<String>,
    by_name: BTreeMap<String, (&'static str, Option<String>)>,
}

impl Items {
    fn add(&mut self, declared: Declared) {
        let plain = |state, names: Vec<String>| names.into_iter().map(move |name| (name, state, None));
        let told = plain("made", declared.made).chain(plain("there", declared.there));
        for (name, state, why) in told.chain(plain("pruned", declared.pruned)) {
            self.put(name, state, why);
        }
        for (state, remarks) in [("differs", declared.differs), ("left", declared.left)] {
            for remark in remarks {
                self.put(remark.name, state, Some(remark.why));
            }
        }
    }

    fn put(&mut self, name: String, state: &'static str, why: Option<String>) {
        match self.by_name.get(&name) {
            None => self.order.push(name.clone()),
            // What was made a moment ago is there now; that something differs is news.
            Some(_) if state == "there" => return,
            Some(_) => {}
        }
        self.by_name.insert(name, (state, why));
    }

    fn count(&self, wanted: &str) -> usize {
        self.by_name.values().filter(|(state, _)| *state == wanted).count()
    }

    fn into_values(mut self) -> Vec<Value> {
        let value = |name: String| {
            let (state, why) = self.by_name.remove(&name)?;
            Some(json!({ "state": state, "name": name, "why": why }))
        };
        self.order.into_iter().filter_map(value).collect()
    }
}

#[cfg(test)]
mod tests {
    use promptq_common::broker::Remark;

    use super::*;

    #[test]
    fn what_queues_share_is_told_once_and_what_differs_is_not_hidden() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let remark = |name: &str| vec![Remark { name: name.to_owned(), why: "because".to_owned() }];
        let mut items = Items::default();
        items.add(Declared { made: names(&["in", "a"]), pruned: names(&["old"]), ..Declared::default() });
        items.add(Declared {
            there: names(&["in", "b"]),
            differs: remark("b"),
            left: remark("busy"),
            ..Declared::default()
        });
        assert_eq!(items.count("differs"), 1);
        let told: Vec<String> =
            items.into_values().iter().map(|item| format!("{} {}", cell(item, "name"), cell(item, "state"))).collect();
        assert_eq!(told, ["in made", "a made", "old pruned", "b differs", "busy left"]);
    }
}
