//! Which limit keys the jobs of a queue or a batch wait for, or one job: by what workers say, by the hold of a job that
//! was given back, and by the settings.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt, TryStreamExt, stream};
use promptq_common::broker::HoldKey;
use promptq_common::error::Kind;
use promptq_common::job::{BatchName, Queue};
use promptq_common::ledger::{JobFilter, JobView, Ledger, WorkerReport};
use promptq_common::limits::{counting, covers};
use promptq_common::record;
use promptq_worker::configured;
use promptq_worker::runner::Runners;
use serde_json::Value;

use super::{AT_ONCE, Standing, State, kept, one, several, words};
use crate::context::Context;
use crate::problem::{Problem, Result};

/// What keeps jobs of each of these queues waiting, the gravest first; also want of money that no worker tells of any more, by
/// the jobs that went back for it and by `settings`.
///
/// # Errors
/// As the ledger's.
pub async fn all_of_queues(
    ledger: &dyn Ledger,
    queues: &[Queue],
    settings: Option<&Runners>,
) -> Result<BTreeMap<Queue, Vec<Standing>>> {
    let workers = ledger.workers().await?;
    let known = known(ledger, &workers).await?;
    let mut waits = told_of_queues(ledger, queues, (&workers, &known)).await?;
    let accounts = known.into_iter().filter(|key| !words::is_budget(key)).collect();
    let mut lacking = several(ledger, accounts, &workers).await?;
    lacking.retain(|standing| standing.lacks().is_some());
    // Whose jobs wait is looked up where it may matter alone.
    let asked: &[Queue] = if lacking.is_empty() { &[] } else { queues };
    let latest = asked.iter().map(|queue| async move {
        let filter = JobFilter { queue: Some(queue.clone()), ..JobFilter::default() };
        Ok::<_, Problem>((queue, latest(ledger, filter, (queue, settings)).await?))
    });
    let latest: Vec<_> = stream::iter(latest).buffered(AT_ONCE).try_collect().await?;
    for (queue, latest) in latest {
        let standings = waits.entry(queue.clone()).or_default();
        let is_new = |one: &&Standing| !standings.iter().any(|known| known.key == one.key);
        let left: Vec<_> = lacking.iter().filter(is_new).filter(|one| latest.want(&one.key)).collect();
        standings.extend(left.into_iter().cloned());
        *standings = gravest_first(std::mem::take(standings));
    }
    Ok(waits)
}

/// What workers say, and budgets, that keeps jobs of each of these queues waiting, the gravest first.
///
/// # Errors
/// As the ledger's.
pub async fn of_queues(ledger: &dyn Ledger, queues: &[Queue]) -> Result<BTreeMap<Queue, Vec<Standing>>> {
    let workers = ledger.workers().await?;
    let known = known(ledger, &workers).await?;
    told_of_queues(ledger, queues, (&workers, &known)).await
}

async fn told_of_queues(
    ledger: &dyn Ledger,
    queues: &[Queue],
    (workers, known): (&[WorkerReport], &BTreeSet<String>),
) -> Result<BTreeMap<Queue, Vec<Standing>>> {
    let keys_of = |queue: &Queue| {
        let mut keys = behind(workers, queue, |_| true);
        keys.extend(budgets(queue, None).filter(|key| known.contains(key)));
        keys
    };
    let wanted: BTreeMap<&Queue, BTreeSet<String>> = queues.iter().map(|queue| (queue, keys_of(queue))).collect();
    let all = several(ledger, wanted.values().flatten().cloned().collect(), workers).await?;
    let of = |keys: &BTreeSet<String>| {
        gravest_first(all.iter().filter(|standing| keys.contains(&standing.key)).cloned().collect())
    };
    Ok(wanted.into_iter().map(|(queue, keys)| (queue.clone(), of(&keys))).collect())
}

/// What keeps jobs of a batch waiting, the gravest first. By `settings` also want of money that no worker tells of any more.
///
/// # Errors
/// As the ledger's.
pub async fn of_batch(
    ledger: &dyn Ledger,
    (queue, batch): (&Queue, &BatchName),
    settings: Option<&Runners>,
) -> Result<Vec<Standing>> {
    let workers = ledger.workers().await?;
    let known = known(ledger, &workers).await?;
    let filter = JobFilter { batch: Some(batch.clone()), ..JobFilter::default() };
    let latest = latest(ledger, filter, (queue, settings)).await?;
    // Jobs of a lane without a model may be of any.
    let is_theirs =
        |model: Option<&str>| latest.models.is_empty() || model.is_none_or(|model| latest.models.contains(model));
    let mut keys = behind(&workers, queue, is_theirs);
    keys.extend(budgets(queue, Some(batch)).chain(latest.back.iter().cloned()).filter(|key| known.contains(key)));
    let is_meant = |key: &&String| !keys.contains(*key) && latest.want(key);
    let left = several(ledger, known.iter().filter(is_meant).cloned().collect(), &workers).await?;
    let mut standings = several(ledger, keys, &workers).await?;
    standings.extend(left.into_iter().filter(|standing| standing.lacks().is_some()));
    Ok(gravest_first(standings))
}

/// The latest jobs that wait, of those looked at.
#[derive(Debug, Default)]
struct Latest {
    /// Their models.
    models: BTreeSet<String>,
    /// By the settings, what each of these comes under.
    limit_keys: BTreeSet<String>,
    /// The keys that some of them went back for.
    back: BTreeSet<String>,
}

impl Latest {
    /// Whether some of them wait for this key once it has no money: they went back for it, or are under it by the settings.
    fn want(&self, key: &str) -> bool {
        self.back.contains(key) || self.limit_keys.iter().any(|limit_key| covers(key, limit_key))
    }
}

/// The latest of these jobs that wait; none where the ledger cannot list those.
async fn latest(
    ledger: &dyn Ledger,
    filter: JobFilter,
    (queue, settings): (&Queue, Option<&Runners>),
) -> Result<Latest> {
    const LOOKED_AT: usize = 100;
    let filter = JobFilter { states: vec![record::State::Queued, record::State::Retrying], ..filter };
    let jobs = match ledger.list(&filter, None, LOOKED_AT).await {
        Ok(page) => page.items,
        Err(error) if error.kind() == Kind::Unsupported => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    let back = jobs.iter().filter_map(|job| Some(job.hold.as_ref()?.limit_key())).collect();
    let models: BTreeSet<String> = jobs.into_iter().filter_map(|job| job.model).collect();
    let first = |model: &String| settings?.limit_keys(queue, Some(model)).into_iter().next();
    Ok(Latest { limit_keys: models.iter().filter_map(first).collect(), models, back })
}

/// What one waiting job waits for; of a job that was given back, how that stands now, even if nothing is in the way any
/// more.
///
/// # Errors
/// As the ledger's.
pub async fn of_job(cx: &Context, job: &JobView, workers: &[WorkerReport]) -> Result<Option<Standing>> {
    let ledger = cx.existing().await?.ledger();
    if let Some(hold) = &job.hold {
        return one(ledger, hold.limit_key(), workers).await.map(Some);
    }
    let known = known(ledger, workers).await?;
    let model = job.model.as_deref();
    let mut keys = behind(workers, &job.queue, |behind| behind == model);
    keys.extend(budgets(&job.queue, job.batch.as_ref()).filter(|key| known.contains(key)));
    // Of several routes the preferred one: what it waits for instead of that, workers tell.
    let limit_keys = runners(cx).map(|runners| runners.limit_keys(&job.queue, model)).unwrap_or_default();
    let mut standings = several(ledger, keys, workers).await?;
    if let Some(limit_key) = limit_keys.first() {
        let meant = known.into_iter().filter(|key| covers(key, limit_key)).collect();
        standings.extend(counting_for(several(ledger, meant, workers).await?, limit_key));
    }
    Ok(gravest_first(standings).into_iter().next())
}

/// Those that count for jobs of that provider and model: its own, as a rate limit may freeze it that has no rule, and of
/// those with limits the ones that workers would go by.
fn counting_for(standings: Vec<Standing>, limit_key: &str) -> impl Iterator<Item = Standing> {
    let with_limits = standings.iter().filter(|standing| standing.caps().next().is_some());
    let rules = counting(with_limits.map(|standing| standing.key.clone()), limit_key);
    let is_meant = move |key: &String| key == limit_key || rules.iter().flatten().any(|rule| rule == key);
    standings.into_iter().filter(move |standing| is_meant(&standing.key))
}

/// The keys that something is kept of, and those that workers tell of.
pub(crate) async fn known(ledger: &dyn Ledger, workers: &[WorkerReport]) -> Result<BTreeSet<String>> {
    let (mut keys, _) = kept(ledger).await?;
    keys.extend(workers.iter().flat_map(|worker| &worker.held).map(|held| held.key.clone()));
    Ok(keys)
}

/// What the settings here would run; `None` where they cannot be used.
pub(crate) fn runners(cx: &Context) -> Option<Runners> {
    Runners::new(configured::runners(&cx.config)).ok()
}

/// As data: each as one object.
pub(crate) fn objects(standings: &[Standing]) -> Value {
    standings.iter().map(Standing::object).collect()
}

/// The first in one line, and how many more there are.
pub(crate) fn line(standings: &[Standing]) -> Option<String> {
    let first = standings.iter().find_map(words::line)?;
    Some(match standings.len() {
        0 | 1 => first,
        several => format!("{first} (and {} more: promptq limits list)", several - 1),
    })
}

/// The keys that workers hold back for jobs of this queue and of a model that `fits`. One without lanes keeps nobody
/// waiting: its jobs go another way.
fn behind(workers: &[WorkerReport], queue: &Queue, fits: impl Fn(Option<&str>) -> bool) -> BTreeSet<String> {
    let held = workers.iter().flat_map(|worker| &worker.held).filter(|held| !words::is_budget(&held.key));
    let held = held.filter(|held| held.lanes.iter().any(|(of, model)| of == queue && fits(model.as_deref())));
    held.map(|held| held.key.clone()).collect()
}

/// Whether a worker takes jobs of a queue; workers report what they serve as `name:weight`.
pub(crate) fn serves(worker: &WorkerReport, queue: &Queue) -> bool {
    worker.queues.iter().any(|served| served.split(':').next() == Some(queue.as_str()))
}

fn budgets(queue: &Queue, batch: Option<&BatchName>) -> impl Iterator<Item = String> {
    let batch = batch.map(|name| HoldKey::Batch(name.clone()));
    [Some(HoldKey::Budget(queue.to_string())), batch].into_iter().flatten().map(|hold| hold.to_string())
}

fn gravest_first(mut standings: Vec<Standing>) -> Vec<Standing> {
    let rank = |standing: &Standing| match standing.state() {
        State::Refused(_) => 0,
        State::Down(_) => 1,
        State::Full(..) if words::is_budget(&standing.key) => 2,
        State::Frozen(_) => 3,
        State::Full(..) => 4,
        State::Throttled(_) => 5,
        State::Bounded(..) => 6,
        State::Cautious(_) | State::Open => 7,
    };
    standings.retain(Standing::holds);
    standings.sort_by_key(rank);
    standings
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use promptq_common::broker::{Broker, Terms, Verdict, Want, WorkerId};
    use promptq_common::config::Model;
    use promptq_common::job::Job;
    use promptq_common::ledger::HeldKey;
    use promptq_common::limits::{self, Ask, Cap, Measure, Per};
    use promptq_common::outcome::FailureClass;
    use promptq_common::time::Timestamp;
    use promptq_common::work::Work;
    use promptq_worker::runner::{ExecSettings, MockSettings, RunnerSettings};

    use super::super::tests::{told, worker};
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn queue(name: &str) -> Queue {
        Queue::new(name).unwrap()
    }

    fn keys(standings: &[Standing]) -> String {
        standings.iter().map(|standing| standing.key.as_str()).collect::<Vec<_>>().join(" ")
    }

    /// A key of which all is used.
    async fn fill(broker: &Broker, key: &str) {
        let caps = vec![Cap { measure: Measure::Requests, per: Per::Minute, most: 9 }];
        let spent = vec![(0, limits::Amounts::call(0, 0).times(9.0))];
        let ask = Ask { id: 1, seq: 1, caps, spent, ..Ask::default() };
        limits::change(broker.ledger(), key, |pool, now| pool.ask(now, &ask)).await.unwrap();
    }

    #[tokio::test]
    async fn a_queue_waits_for_the_keys_behind_its_lanes_and_for_its_money() {
        let broker = Broker::memory();
        let far = Timestamp::now() + MINUTE;
        let told = |key: &str, class, lanes: &[&str]| {
            let lanes = lanes.iter().map(|name| (queue(name), Some("gpt".to_owned()))).collect();
            HeldKey { lanes, until: far, ..told(key, class, "said so") }
        };
        let held = vec![
            told("slow/gpt", FailureClass::Throttled, &["default"]),
            told("dead/gpt", FailureClass::Account, &["default"]),
            told("other/gpt", FailureClass::Account, &["vision"]),
            told("passed/gpt", FailureClass::Capacity, &[]),
        ];
        broker.ledger().report(&worker("w", held)).await.unwrap();
        fill(&broker, "budget:default").await;
        fill(&broker, "batch:nov").await;
        fill(&broker, "acme").await;
        let of = of_queues(broker.ledger(), &[queue("default"), queue("vision"), queue("idle")]).await.unwrap();
        assert_eq!(keys(&of[&queue("default")]), "dead/gpt budget:default slow/gpt");
        assert_eq!((keys(&of[&queue("vision")]), keys(&of[&queue("idle")])), ("other/gpt".to_owned(), String::new()));
        let batch = BatchName::new("nov").unwrap();
        let of = of_batch(broker.ledger(), (&queue("idle"), &batch), None).await.unwrap();
        assert_eq!(keys(&of), "batch:nov");
        let said = line(&of).unwrap();
        assert!(said.starts_with("budget-bound: batch:nov 9 of 9 requests/min"), "{said}");
        let of = of_batch(broker.ledger(), (&queue("default"), &batch), None).await.unwrap();
        assert!(line(&of).unwrap().ends_with("(and 3 more: promptq limits list)"), "{of:?}");
    }

    #[tokio::test]
    async fn a_batch_does_not_wait_for_what_holds_back_other_models_of_its_queue() {
        let broker = Broker::memory();
        let held = vec![told("dead/gpt", FailureClass::Account, "no credit")];
        broker.ledger().report(&worker("w", held)).await.unwrap();
        let of = async |name: &str, model: &str| {
            let batch = BatchName::new(name).unwrap();
            let job = Job { batch: Some(batch.clone()), ..Job::new(queue("default"), Work::prompt(Some(model), "x")) };
            broker.enqueue(&[job]).await.unwrap();
            keys(&of_batch(broker.ledger(), (&queue("default"), &batch), None).await.unwrap())
        };
        assert_eq!((of("theirs", "gpt").await, of("others", "free").await), ("dead/gpt".to_owned(), String::new()));
    }

    /// The model `eye` is one of the mock's.
    fn runners() -> Runners {
        let exec = ExecSettings { named: [].into(), allow_inline: false, environment: Vec::new(), max_output: 9 };
        let mock = MockSettings { seed: 1, latency: (MINUTE, MINUTE), errors: 0.0, throttled: 0.0, tokens: (1, 1) };
        let eye = vec![Model { provider: "mock".into(), model: "eye".into() }];
        let models = [("eye".to_owned(), eye)].into();
        Runners::new(RunnerSettings { providers: [].into(), models, exec, mock }).unwrap()
    }

    /// What an account may cost is nearly used up, as workers said that have left.
    async fn spend(broker: &Broker, key: &str) {
        let caps = vec![Cap { measure: Measure::Usd, per: Per::Ever, most: 100 }];
        let usd = |usd| limits::Amounts { usd, ..limits::Amounts::NONE };
        let least = limits::Portion { amounts: usd(30), ..limits::Portion::default() };
        let ask = Ask { id: 1, seq: 1, caps, spent: vec![(0, usd(80))], least, leaves: true, ..Ask::default() };
        limits::change(broker.ledger(), key, |pool, now| pool.ask(now, &ask)).await.unwrap();
    }

    #[tokio::test]
    async fn a_queue_waits_for_an_accounts_money_also_after_the_workers_have_left() {
        let broker = Broker::memory();
        for (name, model) in [("default", "gpt"), ("vision", "eye"), ("other", "gpt")] {
            broker.enqueue(&[Job::new(queue(name), Work::prompt(Some(model), "x"))]).await.unwrap();
        }
        let terms = Terms { worker: WorkerId::random("w"), queues: vec![(queue("default"), 1)], lease: MINUTE };
        let mut consumer = broker.consume(terms).await.unwrap();
        let leased = consumer.next(&Want { total: 1, caps: Vec::new(), rest: 1 }).await.unwrap();
        let back = Verdict::Release { after: MINUTE, hold: Some(HoldKey::Limit("mock".into())) };
        leased.deliveries.into_iter().next().unwrap().lease.settle(back).await.unwrap();
        let queues = ["default", "vision", "other"].map(queue);
        let of = async |settings: Option<&Runners>| {
            let waits = all_of_queues(broker.ledger(), &queues, settings).await.unwrap();
            queues.each_ref().map(|queue| keys(&waits[queue]))
        };
        assert_eq!(of(None).await, [""; 3], "nothing is missing yet");
        spend(&broker, "mock").await;
        assert_eq!(of(None).await, ["mock", "", ""], "its job went back for that");
        assert_eq!(of(Some(&runners())).await, ["mock", "mock", ""], "and by the settings its model is under it");
    }

    #[test]
    fn a_key_and_its_hold_are_one() {
        for key in ["openai/gpt-4o", "batch:nov", "budget:default", "exec:wc"] {
            assert_eq!(HoldKey::of_limit(key).limit_key(), key);
        }
        assert_eq!(HoldKey::of_limit("limit:x"), HoldKey::Limit("limit:x".into()));
        assert!(matches!(HoldKey::of_limit("batch:nov"), HoldKey::Batch(_)));
    }
}
