//! Whose turn it is: queues by weight, bands 8 : 3 : 1, lanes of a band one after another. Pure; remembers its place
//! between calls, so that shares hold however small each call is.

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::job::{Band, Lane, Queue};

/// A lane that could be leased from now, and how many jobs at most.
#[derive(Clone, Debug)]
pub(in crate::broker) struct Open {
    pub(in crate::broker) lane: Lane,
    pub(in crate::broker) room: u32,
}

/// The turns taken so far.
#[derive(Debug, Default)]
pub(in crate::broker) struct Rounds {
    queues: HashMap<Queue, i64>,
    bands: HashMap<(Queue, Band), Had>,
}

/// What a band of a queue has had.
#[derive(Debug, Default)]
struct Had {
    credit: i64,
    last: Option<Lane>,
}

/// What is still to be had of a queue in one call.
struct Line<'a> {
    queue: &'a Queue,
    weight: i64,
    credit: i64,
    bands: Vec<Row>,
}

/// Its lanes of one band, as places in the list of open lanes.
struct Row {
    band: Band,
    credit: i64,
    places: VecDeque<usize>,
    last: Option<usize>,
}

impl Rounds {
    /// Up to `total` turns, as places in `open`; every lane at most `room` times.
    pub(in crate::broker) fn take(&mut self, weights: &[(Queue, u32)], open: &[Open], total: u32) -> Vec<usize> {
        let mut room: Vec<u32> = open.iter().map(|open| open.room).collect();
        let mut lines = self.line_up(weights, open);
        let mut turns = Vec::new();
        while turns.len() < total as usize && !lines.is_empty() {
            let at = next_turn(&mut lines, |line| (&mut line.credit, line.weight));
            let line = &mut lines[at];
            let which = next_turn(&mut line.bands, |row| (&mut row.credit, i64::from(row.band.weight())));
            let row = &mut line.bands[which];
            let Some(place) = row.places.pop_front() else { break };
            turns.push(place);
            row.last = Some(place);
            room[place] -= 1;
            if room[place] > 0 {
                row.places.push_back(place);
            } else if row.places.is_empty() {
                let row = line.bands.remove(which);
                self.note_band(line.queue, &row, open);
            }
            if line.bands.is_empty() {
                let line = lines.remove(at);
                self.note(&line, open);
            }
        }
        for line in &lines {
            self.note(line, open);
        }
        turns
    }

    /// The open lanes by queue and band, each band beginning after the lane that had the last turn.
    fn line_up<'a>(&self, weights: &[(Queue, u32)], open: &'a [Open]) -> Vec<Line<'a>> {
        let mut waiting: BTreeMap<&Queue, BTreeMap<Band, Vec<usize>>> = BTreeMap::new();
        for (place, Open { lane, .. }) in open.iter().enumerate().filter(|(_, open)| open.room > 0) {
            waiting.entry(&lane.queue).or_default().entry(lane.band).or_default().push(place);
        }
        let line = |(queue, bands): (&'a Queue, BTreeMap<Band, Vec<usize>>)| {
            let weight = weights.iter().find(|(name, _)| name == queue).map_or(1, |(_, weight)| *weight);
            let credit = self.queues.get(queue).copied().unwrap_or(0);
            let bands = bands.into_iter().map(|(band, places)| self.row(queue, band, places, open)).collect();
            Line { queue, weight: i64::from(weight.max(1)), credit, bands }
        };
        waiting.into_iter().map(line).collect()
    }

    fn row(&self, queue: &Queue, band: Band, mut places: Vec<usize>, open: &[Open]) -> Row {
        places.sort_by(|&a, &b| open[a].lane.cmp(&open[b].lane));
        let had = self.bands.get(&(queue.clone(), band));
        if let Some(last) = had.and_then(|had| had.last.as_ref()) {
            let after = places.partition_point(|&place| open[place].lane <= *last);
            places.rotate_left(after);
        }
        Row { band, credit: had.map_or(0, |had| had.credit), places: places.into(), last: None }
    }

    /// Keeps what a queue and its bands are due for the next call.
    fn note(&mut self, line: &Line<'_>, open: &[Open]) {
        self.queues.insert(line.queue.clone(), line.credit);
        for row in &line.bands {
            self.note_band(line.queue, row, open);
        }
    }

    fn note_band(&mut self, queue: &Queue, row: &Row, open: &[Open]) {
        let had = self.bands.entry((queue.clone(), row.band)).or_default();
        had.credit = row.credit;
        if let Some(last) = row.last {
            had.last = Some(open[last].lane.clone());
        }
    }
}

/// Smooth weighted turns: everyone earns its share, the richest goes and pays what all of them earned. Never of nobody.
fn next_turn<T>(waiting: &mut [T], due: impl Fn(&mut T) -> (&mut i64, i64)) -> usize {
    let (mut all, mut best) = (0, (0, i64::MIN));
    for (at, one) in waiting.iter_mut().enumerate() {
        let (credit, share) = due(one);
        *credit += share;
        all += share;
        if *credit > best.1 {
            best = (at, *credit);
        }
    }
    *due(&mut waiting[best.0]).0 -= all;
    best.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::ModelName;

    fn open(queue: &str, model: &str, band: Band, room: u32) -> Open {
        let lane = Lane { queue: Queue::new(queue).unwrap(), model: Some(ModelName::new(model)), band };
        Open { lane, room }
    }

    fn shares(weights: &[(Queue, u32)], lanes: &[Open], calls: usize, each: u32) -> Vec<usize> {
        let mut rounds = Rounds::default();
        let mut counts = vec![0; lanes.len()];
        for _ in 0..calls {
            for place in rounds.take(weights, lanes, each) {
                counts[place] += 1;
            }
        }
        counts
    }

    #[test]
    fn bands_are_served_eight_three_one_however_small_the_calls() {
        let lanes: Vec<_> = Band::ALL.map(|band| open("q", "m", band, 1_000)).into();
        let weights = [(Queue::new("q").unwrap(), 1)];
        assert_eq!(shares(&weights, &lanes, 120, 1), [80, 30, 10]);
        assert_eq!(shares(&weights, &lanes, 1, 120), [80, 30, 10]);
    }

    #[test]
    fn queues_are_served_by_weight_and_their_lanes_in_turn() {
        let lanes = [
            open("a", "x", Band::Normal, 1_000),
            open("a", "y", Band::Normal, 1_000),
            open("b", "x", Band::Normal, 1_000),
        ];
        let weights = [(Queue::new("a").unwrap(), 2), (Queue::new("b").unwrap(), 1)];
        assert_eq!(shares(&weights, &lanes, 60, 1), [20, 20, 20]);
        assert_eq!(shares(&weights, &lanes, 12, 5), [20, 20, 20]);
    }

    #[test]
    fn a_lane_alone_gets_everything_within_its_room() {
        let lanes = [open("q", "m", Band::Low, 7), open("q", "n", Band::High, 0)];
        assert_eq!(shares(&[], &lanes, 1, 50), [7, 0]);
    }
}
