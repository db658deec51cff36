//! A batch's cap on what its jobs cost: made known to every worker before the jobs are there, looked at when nothing moves.
//! What keeps it is `common/src/limits`.

use promptq_common::broker::{Broker, HoldKey};
use promptq_common::error::{self, Kind};
use promptq_common::job::BatchName;
use promptq_common::ledger::{BatchView, HeldKey, JobFilter, Ledger};
use promptq_common::limits::{Cap, CapView, Measure, Per, PoolView, change, look};
use promptq_common::outcome::Usd;
use promptq_common::record::State;
use promptq_worker::status::{Blocked, BlockedBy};

use crate::limits::waits::serves;
use crate::list::quoted;
use crate::printer::Printer;
use crate::problem::{Exit, Problem, Result};
use crate::submit::grouped;

/// Waiting jobs that are asked what they wait for.
const ASKED: usize = 20;

/// Sets the cap for every worker, whatever earlier submissions of the batch said, and wakes what waited for more. Whether
/// there was one before: jobs that were enqueued without any are under none.
///
/// # Errors
/// Where nothing could keep it.
pub(crate) async fn cap(printer: &Printer, broker: &Broker, batch: &BatchName, most: Usd) -> Result<bool> {
    let (hold, ledger) = (HoldKey::Batch(batch.clone()), broker.ledger());
    let key = hold.to_string();
    let before = kept(ledger, &key).await?;
    change(ledger, &key, |pool, now| pool.set(now, Measure::Usd, Per::Ever, Some(most.as_nanos()))).await?;
    broker.wake(&hold).await?;
    let before = before.and_then(|view| view.caps.into_iter().find(|cap| cap.cap.measure == Measure::Usd));
    if let Some(before) = before.filter(|before| before.cap.most > most.as_nanos()) {
        printer.warn(&lowered(&key, before.cap.most, most));
    }
    Ok(before.is_some())
}

/// What is kept of a batch's cap.
///
/// # Errors
/// Where nothing could keep one.
pub(crate) async fn kept(ledger: &dyn Ledger, key: &str) -> Result<Option<PoolView>> {
    match look(ledger, key).await {
        Err(error) if error.kind() == Kind::Unsupported => {
            let what = "--max-cost cannot be kept: workers cannot share what they spend over this ledger";
            Err(Problem::new(Exit::Usage, "unsupported", what)
                .detail("nothing was enqueued")
                .hint("name a ledger that can: --ledger redis://HOST:6379, or on one host --ledger sqlite:///PATH"))
        }
        looked => Ok(looked?),
    }
}

/// Of a cap that an earlier submission, or a person since, had made higher.
fn lowered(key: &str, before: i64, most: Usd) -> String {
    let (before, now) = (Usd::from_nanos(before), most);
    format!(
        "{key} had a cap of ${before}; --max-cost makes it ${now} (to keep it: --max-cost {before}, or leave it out)"
    )
}

/// What calls of a batch may have cost beside what its results say, where it has a cap: that counts the worst of calls that
/// were cut, by a death too, and of those whose cost nobody told. `is_own`: its workers were those of a run, which have left.
///
/// # Errors
/// As the ledger's.
pub(crate) async fn unaccounted(ledger: &dyn Ledger, batch: &BatchView, is_own: bool) -> error::Result<Option<String>> {
    let cap = match cap_of(ledger, &HoldKey::Batch(batch.name.clone()).to_string()).await {
        Err(error) if error.kind() == Kind::Unsupported => None,
        cap => cap?,
    };
    let told = batch.cost.unwrap_or_default().as_nanos();
    // What a worker held that died a moment ago counts as used soon; a fleet's may hold some for what comes next.
    let used = |cap: CapView| cap.used.saturating_add(if is_own { cap.held } else { 0 });
    let more = cap.map_or(0, |cap| used(cap).saturating_sub(told));
    Ok((more > 0 && batch.counts.running == 0).then(|| {
        let more = Usd::from_nanos(more);
        format!("up to ${more} more may have been billed, by calls that were cut or whose cost nobody told; the cap counts it")
    }))
}

/// Why a batch gets no further for want of money, as a worker says; nothing where none of them can.
#[derive(Clone, Debug)]
pub(crate) struct Short(pub(crate) Option<Blocked>);

/// Whether nothing of a batch moves any more because all that is left waits for its cap. While that does not look used up, a
/// worker has to say what it misses: it may be a price.
pub(crate) async fn spent(broker: &Broker, view: &BatchView) -> error::Result<Option<Short>> {
    let (counts, ledger) = (&view.counts, broker.ledger());
    if !view.sealed || counts.running > 0 || counts.queued > 0 || counts.delayed == 0 {
        return Ok(None);
    }
    let hold = HoldKey::Batch(view.name.clone());
    let filter = JobFilter {
        batch: Some(view.name.clone()),
        states: vec![State::Queued, State::Retrying],
        ..JobFilter::default()
    };
    let waiting = ledger.list(&filter, None, ASKED).await?.items;
    if waiting.is_empty() || waiting.iter().any(|job| job.hold.as_ref() != Some(&hold)) {
        return Ok(None);
    }
    let (key, workers) = (hold.to_string(), ledger.workers().await?);
    let cap = cap_of(ledger, &key).await?;
    // A worker that has not looked since a person allowed more says what was spent of less.
    let is_of_now = |told: Option<Cap>| told.is_none() || cap.as_ref().is_none_or(|cap| told == Some(cap.cap));
    let told = workers.iter().flat_map(|worker| &worker.held);
    let told = told.filter(|held| held.key == key && is_of_now(held.cap));
    // What is not how much of it is spent, a person has to mend.
    if let Some(held) = told.max_by_key(|held| held.cap.is_none()) {
        return Ok(Some(Short(Some(blocked(held)))));
    }
    let is_used_up = cap.is_some_and(|cap| cap.used >= cap.cap.most.saturating_sub(cap.cap.most / 20));
    let is_served = workers.iter().any(|worker| serves(worker, &view.queue));
    Ok((is_used_up || !is_served).then_some(Short(None)))
}

fn blocked(held: &HeldKey) -> Blocked {
    let by = BlockedBy::Limit { key: held.key.clone(), class: held.class };
    Blocked { by, detail: held.detail.clone(), since: held.since, until: Some(held.until), cap: held.cap }
}

async fn cap_of(ledger: &dyn Ledger, key: &str) -> error::Result<Option<CapView>> {
    let kept = look(ledger, key).await?;
    Ok(kept.and_then(|pool| pool.caps.into_iter().find(|cap| cap.cap.measure == Measure::Usd)))
}

/// What a command says that ends because of money: `stopped at $25.00 of --max-cost 25; 3,104 done, 1,896 held`. `blocked`:
/// what a worker says of it.
pub(crate) async fn stopped(broker: &Broker, view: &BatchView, blocked: Option<&Blocked>) -> error::Result<Problem> {
    let key = HoldKey::Batch(view.name.clone()).to_string();
    Ok(problem(view, cap_of(broker.ledger(), &key).await?.as_ref(), blocked))
}

fn problem(view: &BatchView, cap: Option<&CapView>, blocked: Option<&Blocked>) -> Problem {
    let key = HoldKey::Batch(view.name.clone()).to_string();
    let is_cap = |blocked: &&Blocked| matches!(&blocked.by, BlockedBy::Limit { key: by, .. } if *by == key);
    let other = blocked.filter(|blocked| !is_cap(blocked) || blocked.cap.is_none());
    let (done, held) = (view.counts.ended(), view.counts.total.saturating_sub(view.counts.ended()));
    let counts = format!("{} done, {} held", grouped(done), grouped(held));
    match (other, cap, blocked) {
        (None, Some(cap), _) => {
            let (used, most) = (cents(cap.used), Usd::from_nanos(cap.cap.most));
            Problem::new(Exit::Stopped, "budget", format!("stopped at {used} of --max-cost {most}; {counts}"))
                .hint("the same command with a higher --max-cost goes on where this one stopped")
                .hint(format!("for workers elsewhere: promptq limits set {} usd=AMOUNT", quoted(&key)))
        }
        (_, _, Some(blocked)) => {
            let (why, hint) = match blocked.detail.split_once("; hint: ") {
                Some((why, hint)) => (why, Some(hint)),
                None => (blocked.detail.as_str(), None),
            };
            let problem = Problem::new(Exit::Stopped, "budget", format!("stopped for want of money: {why}; {counts}"));
            let problem = hint.into_iter().fold(problem, Problem::hint);
            problem.hint("once that is mended the same command goes on where this one stopped")
        }
        (_, _, None) => Problem::new(Exit::Stopped, "budget", format!("stopped for want of money; {counts}")),
    }
}

/// `$25.00`, never more than there is; less than a dollar to the last digit.
fn cents(nanos: i64) -> String {
    const DOLLAR: i64 = 1_000_000_000;
    if nanos < DOLLAR {
        return Measure::Usd.say(nanos);
    }
    format!("${}.{:02}", grouped(nanos.unsigned_abs() / DOLLAR.unsigned_abs()), nanos % DOLLAR / 10_000_000)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use promptq_common::broker::{Terms, Verdict, Want, WorkerId};
    use promptq_common::job::{Job, Queue};
    use promptq_common::limits::{Amounts, Ask};
    use promptq_common::outcome::FailureClass;
    use promptq_common::time::Timestamp;
    use promptq_common::work::Work;

    use super::*;
    use crate::limits::tests::{told as told_of, worker};
    use crate::printer::Style;

    fn quiet() -> Printer {
        Printer::new(Style { quiet: true, ..Style::default() })
    }

    fn batch() -> BatchName {
        BatchName::new("nov").unwrap()
    }

    async fn view(broker: &Broker) -> BatchView {
        broker.ledger().batch(&batch()).await.unwrap().unwrap()
    }

    /// A batch of two jobs, one of which was released for want of money.
    async fn waiting(broker: &Broker) {
        let job = || Job { batch: Some(batch()), ..Job::new(Queue::standard(), Work::prompt(Some("m"), "x")) };
        broker.enqueue(&[job(), job()]).await.unwrap();
        broker.ledger().seal(&batch(), &Queue::standard()).await.unwrap();
        release(broker).await;
    }

    async fn release(broker: &Broker) {
        let lease = Duration::from_secs(60);
        let terms = Terms { worker: WorkerId::random("w"), queues: vec![(Queue::standard(), 1)], lease };
        let mut consumer = broker.consume(terms).await.unwrap();
        let leased = consumer.next(&Want { total: 1, caps: Vec::new(), rest: 1 }).await.unwrap();
        let hold = Some(HoldKey::Batch(batch()));
        for delivery in leased.deliveries {
            delivery
                .lease
                .settle(Verdict::Release { after: Duration::from_secs(600), hold: hold.clone() })
                .await
                .unwrap();
        }
    }

    #[tokio::test]
    async fn a_batch_that_waits_for_money_alone_is_told_with_what_it_has_cost() {
        let broker = Broker::memory();
        assert!(!cap(&quiet(), &broker, &batch(), Usd::from_nanos(25_000_000_000)).await.unwrap());
        waiting(&broker).await;
        assert!(spent(&broker, &view(&broker).await).await.unwrap().is_none(), "one may be leased yet");
        release(&broker).await;
        let told = async || spent(&broker, &view(&broker).await).await.unwrap();
        let Short(blocked) = told().await.expect("nobody works there");
        let problem = stopped(&broker, &view(&broker).await, blocked.as_ref()).await.unwrap();
        assert_eq!((problem.exit.code(), problem.slug), (9, "budget"));
        assert_eq!(problem.what, "stopped at $0 of --max-cost 25; 0 done, 2 held");
        assert!(problem.hints[0].contains("--max-cost") && problem.hints[1].contains("limits set batch:nov"));
        let report = async |held| broker.ledger().report(&worker("w", held)).await.unwrap();
        report(Vec::new()).await;
        assert!(told().await.is_none(), "a worker that has not said yet what is missing");
        let held = |detail| told_of("batch:nov", FailureClass::Throttled, detail);
        let spent_of = |dollars: i64| {
            let most = dollars * 1_000_000_000;
            let cap = Some(Cap { measure: Measure::Usd, per: Per::Ever, most });
            HeldKey { cap, ..held("nearly all of it is spent") }
        };
        report(vec![held("m: nobody knows its price; hint: give it one")]).await;
        let Short(blocked) = told().await.unwrap();
        let problem = stopped(&broker, &view(&broker).await, blocked.as_ref()).await.unwrap();
        assert_eq!(problem.what, "stopped for want of money: m: nobody knows its price; 0 done, 2 held");
        assert_eq!(problem.hints[0], "give it one");
        report(vec![spent_of(25)]).await;
        let Short(blocked) = told().await.unwrap();
        let problem = stopped(&broker, &view(&broker).await, blocked.as_ref()).await.unwrap();
        assert_eq!(problem.what, "stopped at $0 of --max-cost 25; 0 done, 2 held");
        assert!(
            cap(&quiet(), &broker, &batch(), Usd::from_nanos(40_000_000_000)).await.unwrap(),
            "there was one before"
        );
        let woken = view(&broker).await;
        assert_eq!((woken.counts.queued, woken.counts.delayed), (2, 0));
        // The worker has given them back by what it knew, and has not looked since.
        release(&broker).await;
        release(&broker).await;
        assert!(told().await.is_none(), "it speaks of 25 dollars");
        report(vec![spent_of(40)]).await;
        assert!(told().await.is_some());
    }

    #[tokio::test]
    async fn what_the_cap_counts_and_no_result_says_is_told() {
        let broker = Broker::memory();
        waiting(&broker).await;
        let told = async |cost: Option<i64>, running| {
            let mut view = view(&broker).await;
            (view.cost, view.counts.running) = (cost.map(Usd::from_nanos), running);
            unaccounted(broker.ledger(), &view, true).await.unwrap()
        };
        assert_eq!(told(Some(9), 0).await, None, "without a cap nobody knows");
        cap(&quiet(), &broker, &batch(), Usd::from_nanos(25_000_000_000)).await.unwrap();
        assert_eq!(told(None, 0).await, None);
        let caps = vec![Cap { measure: Measure::Usd, per: Per::Ever, most: 25_000_000_000 }];
        let spent = vec![(0, Amounts { usd: 3_500_000_000, ..Amounts::NONE })];
        let ask = Ask { id: 1, seq: 1, caps, spent, ..Ask::default() };
        change(broker.ledger(), "batch:nov", |pool, now| pool.ask(now, &ask)).await.unwrap();
        let said = told(Some(3_000_000_000), 0).await.unwrap();
        assert!(said.starts_with("up to $0.5 more may have been billed"), "{said}");
        assert!(told(None, 0).await.unwrap().starts_with("up to $3.5 more"));
        assert_eq!((told(Some(3_500_000_000), 0).await, told(None, 1).await), (None, None));
    }

    #[test]
    fn a_cap_that_an_older_max_cost_lowers_is_told_with_how_to_keep_it() {
        let said = lowered("batch:nov", 40_000_000_000, Usd::from_nanos(25_000_000_000));
        let keeps = "(to keep it: --max-cost 40, or leave it out)";
        assert_eq!(said, format!("batch:nov had a cap of $40; --max-cost makes it $25 {keeps}"));
    }

    #[tokio::test]
    async fn what_else_has_no_money_is_named() {
        let broker = Broker::memory();
        waiting(&broker).await;
        let by = BlockedBy::Limit { key: "budget:default".into(), class: FailureClass::Throttled };
        let detail = "$20 of $20/day is spent".to_owned();
        let blocked = Blocked { by, detail, since: Timestamp::now(), until: None, cap: None };
        let problem = stopped(&broker, &view(&broker).await, Some(&blocked)).await.unwrap();
        assert_eq!(problem.what, "stopped for want of money: $20 of $20/day is spent; 0 done, 2 held");
    }

    #[test]
    fn dollars_have_cents_and_less_has_all_its_digits() {
        let said: Vec<_> = [0, 2_500_000, 24_999_999_999, 1_234_500_000_000].map(cents).into();
        assert_eq!(said, ["$0", "$0.0025", "$24.99", "$1,234.50"]);
    }
}
