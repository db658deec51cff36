//! Whose turn it is: queues by their weight, bands 8 : 3 : 1, lanes of one band in rotation. Pure.

use std::collections::BTreeMap;

use crate::job::{Band, Lane, Queue};

/// The turns one subscription has given.
#[derive(Debug)]
pub(super) struct Turns {
    weights: BTreeMap<Queue, i64>,
    queues: BTreeMap<Queue, i64>,
    bands: BTreeMap<(Queue, Band), i64>,
    served: BTreeMap<Lane, u64>,
    turn: u64,
}

impl Turns {
    pub(super) fn new(queues: &[(Queue, u32)]) -> Self {
        let weights = queues.iter().map(|(queue, weight)| (queue.clone(), i64::from(*weight).max(1))).collect();
        Self { weights, queues: BTreeMap::new(), bands: BTreeMap::new(), served: BTreeMap::new(), turn: 0 }
    }

    /// Gives the next turn to one of these lanes.
    pub(super) fn pick(&mut self, mut open: Vec<Lane>) -> Option<Lane> {
        let mut queues: Vec<Queue> = open.iter().map(|lane| lane.queue.clone()).collect();
        queues.dedup();
        let weights = &self.weights;
        let queue = turn(&mut self.queues, &queues, |queue| weights.get(queue).copied().unwrap_or(1))?;
        open.retain(|lane| lane.queue == queue);
        let bands: Vec<_> = Band::ALL.into_iter().filter(|band| open.iter().any(|lane| lane.band == *band)).collect();
        let keys: Vec<_> = bands.into_iter().map(|band| (queue.clone(), band)).collect();
        let (_, band) = turn(&mut self.bands, &keys, |(_, band)| i64::from(band.weight()))?;
        open.retain(|lane| lane.band == band);
        let lane = open.into_iter().min_by_key(|lane| self.served.get(lane).copied().unwrap_or(0))?;
        self.turn += 1;
        self.served.insert(lane.clone(), self.turn);
        Some(lane)
    }
}

/// Smooth weighted rotation: everyone present gains its weight, the richest goes and pays for all.
fn turn<K: Clone + Ord>(credit: &mut BTreeMap<K, i64>, present: &[K], weight: impl Fn(&K) -> i64) -> Option<K> {
    let mut total = 0;
    for key in present {
        *credit.entry(key.clone()).or_default() += weight(key);
        total += weight(key);
    }
    // The first of equals goes, so that the choice does not depend on how keys compare.
    let chosen = present.iter().rev().max_by_key(|key| credit.get(*key).copied().unwrap_or(0))?;
    *credit.get_mut(chosen)? -= total;
    Some(chosen.clone())
}
