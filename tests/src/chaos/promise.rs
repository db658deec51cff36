//! What must be true after a storm, checked against what was seen of it from outside.

use std::collections::HashMap;
use std::time::Instant;

use promptq_common::outcome::Body;
use promptq_common::record::{Answer, End, Output, Record};

use super::trouble::{Trouble, Troubles};
use super::watch::{Watch, row};
use super::{Kill, Ledger, Plan, Stage, Victim};
use crate::provider::Call;

/// What was seen of a storm.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) plan: Plan,
    pub(super) begun: Instant,
    pub(super) calls: Vec<Call>,
    pub(super) kills: Vec<Kill>,
}

impl Facts {
    /// Every promise that was broken, in words; empty is good.
    pub(super) async fn broken_promises(&self, watch: &Watch<'_>) -> anyhow::Result<Vec<String>> {
        let mut broken = self.wrong_records(&watch.records().await?);
        broken.extend(self.late_calls(watch));
        let extra = (self.calls.len() as u64).saturating_sub(self.plan.jobs);
        let kills = self.open_at_kills().len();
        let counted = kills as u64 + self.cut_off();
        let allowed = counted * u64::from(self.plan.slots);
        if extra > allowed {
            broken.push(format!("{extra} extra calls; {counted} kills of {} slots allow {allowed}", self.plan.slots));
        }
        if kills < self.plan.kills {
            broken.push(format!("only {kills} kills, {} were asked for: too few jobs", self.plan.kills));
        }
        let busy = median(&self.open_at_kills());
        // A victim that has just started has nothing open yet: at a kill every 300 ms that is one in four.
        if busy * 4 < self.plan.slots {
            broken.push(format!("{busy} of {} slots busy at a kill (median): it was no storm", self.plan.slots));
        }
        let (had, planned) = (self.troubles(), self.plan.troubles);
        if had != planned {
            broken.push(format!("the broker had {had} only, of {planned}"));
        }
        broken.extend(self.wrong_counts(watch).await?);
        Ok(broken)
    }

    /// How many calls each killed worker had open.
    pub(super) fn open_at_kills(&self) -> Vec<u32> {
        let open = |kill: &Kill| match kill.victim {
            Victim::Worker { open, .. } => Some(open),
            Victim::Broker(_) => None,
        };
        self.kills.iter().filter_map(open).collect()
    }

    /// What happened to the broker.
    pub(super) fn troubles(&self) -> Troubles {
        let mut troubles = Troubles::default();
        for kill in &self.kills {
            match kill.victim {
                Victim::Worker { .. } => {}
                Victim::Broker(Trouble::Kill) => troubles.kills += 1,
                Victim::Broker(Trouble::Pause) => troubles.pauses += 1,
                Victim::Broker(Trouble::Cut) => troubles.cuts += 1,
                Victim::Broker(Trouble::Alarm) => troubles.alarms += 1,
            }
        }
        troubles
    }

    /// Of how many workers the jobs went to others while they lived. Only without claims do others run them then: every
    /// loss of the connection counts as a kill of every worker.
    fn cut_off(&self) -> u64 {
        let Troubles { kills, pauses, cuts, .. } = self.troubles();
        match self.plan.stage {
            Stage::RabbitMq(Ledger::Store) => (kills + pauses + cuts) * self.plan.workers as u64,
            Stage::Sqlite | Stage::Redis | Stage::RabbitMq(_) => 0,
        }
    }

    /// All that happened to one job, and every kill of a worker that called for it.
    pub(super) fn story(&self, job: u64) -> String {
        let calls: Vec<_> = self.calls.iter().filter(|call| call.job == job).collect();
        let mut events: Vec<(Instant, String)> = Vec::new();
        for call in &calls {
            let answered = if call.answered { "answered" } else { "never answered" };
            events.push((call.started, format!("called by worker {}, {answered}", call.generation)));
        }
        for kill in &self.kills {
            match kill.victim {
                Victim::Broker(trouble) => events.push((kill.at, format!("the broker: {trouble:?}"))),
                Victim::Worker { generation, .. } if calls.iter().any(|call| call.generation == generation) => {
                    events.push((kill.at, format!("worker {generation} is killed")));
                }
                Victim::Worker { .. } => {}
            }
        }
        events.sort_unstable();
        let line = |(at, what): &(Instant, String)| format!("{:.3} s: {what}", (*at - self.begun).as_secs_f64());
        events.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    /// One success for each job, with the very answer of its call, and no attempt spent by a kill.
    fn wrong_records(&self, records: &[Record]) -> Vec<String> {
        let mut broken = Vec::new();
        let mut successes: HashMap<u64, u32> = HashMap::new();
        for record in records {
            let row = row(record);
            if record.end != End::Succeeded {
                broken.push(format!("job {row} ended as {}", record.end));
                continue;
            }
            *successes.entry(row).or_default() += 1;
            if !record.answer.as_ref().is_some_and(|answer| answers(answer, row)) {
                broken.push(format!("job {row} has another answer than was given: {:?}", record.answer));
            }
            if record.attempts != 1 {
                broken.push(format!("job {row} spent {} attempts", record.attempts));
            }
        }
        let count = |row: u64| successes.get(&row).copied().unwrap_or(0);
        let wrong = (1..=self.plan.jobs).filter(|row| count(*row) != 1);
        broken.extend(wrong.map(|row| format!("job {row} has {} successes", count(row))));
        broken
    }

    fn late_calls(&self, watch: &Watch<'_>) -> Vec<String> {
        let late = self.calls.iter().filter(|call| watch.seen(call.job).is_some_and(|seen| call.started > seen));
        late.map(|call| format!("job {} was called after its record was stored", call.job)).collect()
    }

    /// Nothing waits or runs any more, and the batch has counted right.
    async fn wrong_counts(&self, watch: &Watch<'_>) -> anyhow::Result<Vec<String>> {
        let mut broken = Vec::new();
        let depth = watch.depth().await?;
        if (depth.ready, depth.delayed, depth.running, depth.dead) != (0, 0, 0, 0) {
            broken.push(format!("something is left: {depth:?}"));
        }
        let counts = watch.batch().await?.map(|batch| batch.counts).unwrap_or_default();
        let jobs = self.plan.jobs;
        if (counts.total, counts.succeeded, counts.ended()) != (jobs, jobs, jobs) {
            broken.push(format!("the batch counts {counts:?}"));
        }
        Ok(broken)
    }
}

fn answers(answer: &Answer, row: u64) -> bool {
    match &answer.output {
        Output::Inline(Body::Json(text) | Body::Text(text)) => text.contains(&format!("\"answer {row}\"")),
        Output::Stored(_) => false,
    }
}

pub(super) fn median(of: &[u32]) -> u32 {
    let mut of = of.to_vec();
    of.sort_unstable();
    of.get(of.len() / 2).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use promptq_common::broker::Broker;
    use promptq_common::job::BatchName;

    use super::super::submit;
    use super::*;
    use crate::fixture;
    use crate::steps::Worker;

    struct Case {
        broker: Broker,
        facts: Facts,
        seen: Option<Instant>,
    }

    impl Case {
        /// One job that waits, and one kill of two calls.
        async fn new() -> Self {
            let broker = Broker::memory();
            submit(&broker, &batch(), 1).await.unwrap();
            let begun = Instant::now();
            let plan = Plan { jobs: 1, workers: 1, slots: 2, kills: 1, ..Plan::sqlite() };
            let kills = vec![Kill { at: begun, victim: Victim::Worker { generation: 1, open: 2 } }];
            Self { broker, facts: Facts { plan, begun, calls: Vec::new(), kills }, seen: None }
        }

        async fn ends(self, how: End, answer: &str) -> Self {
            let mut worker =
                Worker::on(&self.broker, crate::backends::terms(&[(queue(), 1)], crate::backends::LONG)).await;
            let delivery = worker.one().await;
            let mut record = fixture::record(&delivery.head, delivery.lease.id(), how);
            record.answer = Some(fixture::answer(answer));
            delivery.lease.settle(promptq_common::broker::Verdict::End(Box::new(record))).await.unwrap();
            self
        }

        async fn faults(&self) -> String {
            let batch = batch();
            let mut watch = Watch::new(&self.broker, &batch);
            if let Some(seen) = self.seen {
                watch.saw(1, seen);
            }
            self.facts.broken_promises(&watch).await.unwrap().join("\n")
        }
    }

    fn batch() -> BatchName {
        fixture::batch("storm")
    }

    fn queue() -> promptq_common::job::Queue {
        promptq_common::job::Queue::standard()
    }

    fn call(started: Instant) -> Call {
        Call { job: 1, generation: 1, started, answered: true }
    }

    #[tokio::test]
    async fn a_storm_that_kept_every_promise_is_good() {
        let case = Case::new().await.ends(End::Succeeded, "\"answer 1\"").await;
        assert_eq!(case.faults().await, "");
    }

    #[tokio::test]
    async fn every_wrong_record_is_noticed() {
        let lost = Case::new().await.faults().await;
        assert!(lost.contains("job 1 has 0 successes") && lost.contains("something is left"), "{lost}");
        assert!(lost.contains("the batch counts"), "{lost}");
        let dead = Case::new().await.ends(End::Dead, "\"answer 1\"").await.faults().await;
        assert!(dead.contains("job 1 ended as dead"), "{dead}");
        let other = Case::new().await.ends(End::Succeeded, "\"answer 11\"").await.faults().await;
        assert!(other.contains("another answer"), "{other}");
    }

    #[tokio::test]
    async fn every_call_too_many_is_noticed() {
        let mut case = Case::new().await.ends(End::Succeeded, "\"answer 1\"").await;
        let now = Instant::now();
        case.facts.calls = vec![call(now); 3];
        assert_eq!(case.faults().await, "");
        case.facts.calls.push(call(now));
        assert!(case.faults().await.contains("3 extra calls"));
        case.facts.calls = vec![call(now + Duration::from_millis(1))];
        case.seen = Some(now);
        assert!(case.faults().await.contains("after its record was stored"));
        case.seen = Some(now + Duration::from_millis(2));
        assert_eq!(case.faults().await, "");
        assert!(case.facts.story(1).contains("called by worker 1, answered"), "{}", case.facts.story(1));
    }

    #[tokio::test]
    async fn without_claims_a_broker_that_is_killed_counts_as_every_worker() {
        let mut case = Case::new().await.ends(End::Succeeded, "\"answer 1\"").await;
        let kill = Kill { at: case.facts.begun, victim: Victim::Broker(Trouble::Kill) };
        case.facts.kills.push(kill);
        case.facts.calls = vec![call(Instant::now()); 5];
        assert!(case.faults().await.contains("4 extra calls; 1 kills of 2 slots allow 2"), "{}", case.faults().await);
        case.facts.plan.stage = Stage::RabbitMq(Ledger::Store);
        assert!(!case.faults().await.contains("extra calls"), "{}", case.faults().await);
    }

    #[tokio::test]
    async fn a_storm_that_was_none_is_noticed() {
        let mut case = Case::new().await.ends(End::Succeeded, "\"answer 1\"").await;
        case.facts.kills = vec![Kill { at: case.facts.begun, victim: Victim::Worker { generation: 1, open: 0 } }];
        assert!(case.faults().await.contains("it was no storm"));
        case.facts.kills.clear();
        assert!(case.faults().await.contains("only 0 kills"));
        case.facts.plan.troubles.cuts = 1;
        assert!(case.faults().await.contains("the broker had 0 kills, 0 pauses, 0 cuts, 0 alarms only"));
    }
}
