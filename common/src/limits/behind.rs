//! Which lanes lie behind a limit key, as a worker has met them: for those who ask why a lane's jobs wait.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

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
        let mut spent = self.held();
        spent.retain(|held| held.spent);
        let mut closed = BTreeMap::new();
        {
            let book = self.quotas().book();
            // Smaller jobs than those that went back may yet be paid. A complaint has no part.
            spent.retain(|held| book.parts.get(held.key.as_str()).is_none_or(|part| part.till.is_empty()));
            for (key, part) in &book.parts {
                closed.extend(part.till.closes().map(|queue| (queue.clone(), Arc::clone(key))));
            }
        }
        let behind = |held: &Held| self.lanes_behind(&held.key, usize::MAX).into_iter().collect::<BTreeSet<_>>();
        let behind: Vec<_> = spent.iter().map(behind).collect();
        let of = |lane: &Lane| {
            let (place, closed) = ((lane.queue.clone(), lane.model.clone()), closed.get(&lane.queue));
            let is_it = |(held, lanes): &(&Held, &BTreeSet<_>)| {
                lanes.contains(&place) || closed.is_some_and(|key| **key == *held.key)
            };
            spent.iter().zip(&behind).find(is_it).map(|(held, _)| held.clone())
        };
        match lanes.split_first() {
            None => spent.first().cloned(),
            Some((first, rest)) if rest.iter().all(|lane| of(lane).is_some()) => of(first),
            Some(_) => None,
        }
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
