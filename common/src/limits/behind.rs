//! Which lanes lie behind a limit key, as a worker has met them: for those who ask why a lane's jobs wait.

use std::collections::BTreeSet;

use tokio::time::Instant;

use super::{Held, Limits};
use crate::job::{Lane, ModelName, Queue};

impl Limits {
    /// The queues and models whose jobs go, or wait, by this key: of a provider and model, of an account or of a rule. Not
    /// those that pass it by. At most `most`, those first that come first by name.
    pub fn lanes_behind(&self, key: &str, most: usize) -> Vec<(Queue, Option<ModelName>)> {
        let mut found = BTreeSet::new();
        let (table, now) = (self.table(), Instant::now());
        for (lane, ways) in &table.ways {
            let is_behind = match table.outlook(ways, now).leads {
                Some(way) => *way.key == *key || way.rules.iter().any(|rule| **rule == *key),
                None => ways.iter().any(|way| way.has_name(key)),
            };
            if is_behind {
                found.insert((lane.queue.clone(), lane.model.clone()));
                if found.len() > most {
                    found.pop_last();
                }
            }
        }
        found.into_iter().collect()
    }

    /// What has no money for the jobs of these lanes, where all of them wait for money and for nothing else: a person has to
    /// allow more, or another day comes.
    pub fn is_spent_for(&self, lanes: &[Lane]) -> Option<Held> {
        let spent: Vec<Held> = self.held().into_iter().filter(|held| held.spent).collect();
        let behind = spent.iter().flat_map(|held| self.lanes_behind(&held.key, usize::MAX));
        let (closed, behind) = (self.broke_queues(), behind.collect::<BTreeSet<_>>());
        let is_spent =
            |lane: &Lane| closed.contains(&lane.queue) || behind.contains(&(lane.queue.clone(), lane.model.clone()));
        if lanes.iter().all(is_spent) { spent.into_iter().next() } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Cap, Measure, Per, Rule};
    use super::*;
    use crate::job::Band;

    #[tokio::test]
    async fn the_lanes_of_a_rule_and_of_a_gate_are_told_once_each_and_only_so_many() {
        let cap = Cap { measure: Measure::Requests, per: Per::Minute, most: 600 };
        let limits = Limits::ruled(vec![Rule { key: "acme".into(), caps: vec![cap], adaptive: false }]);
        let lane = |model: &str, band| Lane { queue: Queue::standard(), model: Some(ModelName::new(model)), band };
        for (model, key) in [("b", "acme/b"), ("a", "acme/a"), ("c", "other/c")] {
            for band in [Band::Normal, Band::High] {
                drop(limits.admit(&lane(model, band), key).unwrap());
                limits.seen([&lane(model, band)].into_iter(), |_| None);
            }
        }
        let behind = |key: &str, most| {
            let lanes = limits.lanes_behind(key, most);
            lanes.into_iter().map(|(_, model)| model.unwrap().as_str().to_owned()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!([behind("acme", 9), behind("acme/b", 9), behind("other/c", 9)], ["a b", "b", "c"]);
        assert_eq!([behind("acme", 1), behind("none", 9)], ["a", ""]);
    }
}
