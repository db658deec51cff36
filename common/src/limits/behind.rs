//! Which lanes lie behind a limit key, as a worker has met them: for those who ask why a lane's jobs wait.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::time::Instant;

use super::part::Part;
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

    /// What has no money for jobs like the latest, or needs a person first.
    pub fn spent(&self) -> Vec<Held> {
        let mut spent = self.held();
        let book = self.quotas().book();
        // Smaller jobs than those that went back may yet be paid. A complaint has no part.
        let is_empty = |held: &Held| book.parts.get(held.key.as_str()).is_none_or(|part| part.till.is_empty());
        spent.retain(|held| held.spent && is_empty(held));
        spent
    }

    /// What has no money for the jobs of these lanes, where all of them wait for money and for nothing else: a person has to
    /// allow more, or another day comes.
    pub fn is_spent_for(&self, lanes: &[Lane]) -> Option<Held> {
        let spent = self.spent();
        if lanes.is_empty() {
            return spent.into_iter().next();
        }
        let of = self.each_holds(&spent, lanes);
        if of.iter().all(Option::is_some) { of.into_iter().next()?.cloned() } else { None }
    }

    /// What holds the jobs of some of these lanes back, as far as it is known, each once; and the queues of those lanes that
    /// nothing here holds back.
    pub fn holding(&self, lanes: &[Lane]) -> (Vec<Held>, BTreeSet<Queue>) {
        let (held, mut found) = (self.held(), Vec::<Held>::new());
        let mut free = BTreeSet::new();
        for (lane, held) in lanes.iter().zip(self.each_holds(&held, lanes)) {
            match held {
                Some(held) if found.iter().all(|known| known.key != held.key) => found.push(held.clone()),
                None if self.room(lane) > 0 => {
                    free.insert(lane.queue.clone());
                }
                Some(_) | None => {}
            }
        }
        (found, free)
    }

    /// Which of these holds each lane back: the first that it is behind, or by which its queue is closed.
    fn each_holds<'a>(&self, held: &'a [Held], lanes: &[Lane]) -> Vec<Option<&'a Held>> {
        let closed: BTreeMap<Queue, Arc<str>> = {
            let book = self.quotas().book();
            let closed = |(key, part): (&Arc<str>, &Part)| Some((part.till.closes()?.clone(), Arc::clone(key)));
            book.parts.iter().filter_map(closed).collect()
        };
        let behind = |held: &Held| self.lanes_behind(&held.key, usize::MAX).into_iter().collect::<BTreeSet<_>>();
        let behind: Vec<_> = held.iter().map(behind).collect();
        let of = |lane: &Lane| {
            let (place, closed) = ((lane.queue.clone(), lane.model.clone()), closed.get(&lane.queue));
            let is_it = |(held, lanes): &(&Held, &BTreeSet<_>)| {
                lanes.contains(&place) || closed.is_some_and(|key| **key == *held.key)
            };
            held.iter().zip(&behind).find(is_it).map(|(held, _)| held)
        };
        lanes.iter().map(of).collect()
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
