//! Whose turn it is: queues by weight, bands 8 : 3 : 1, lanes of a band one after another. Pure; remembers its place
//! between calls, so that shares hold however small each call is.

use std::collections::{HashMap, VecDeque};

use crate::job::{Band, Lane, Queue};

/// Over how many queues a call is spread, unless these have too little for it: what a call costs a broker grows with the
/// queues it takes from. Where more have jobs, one has some turns in a row and waits as many rounds for its next.
const SPREAD: usize = 4;
/// What a turn costs a queue of weight 1; a heavier one pays less by as much. Weights up to some thousands lose less than
/// a thousandth by rounding, and more turns fit in than any worker lives to take.
const TURN: u64 = 1 << 24;

/// A lane that could be leased from now, and how many jobs at most.
#[derive(Clone, Debug)]
pub(in crate::broker) struct Open {
    pub(in crate::broker) lane: Lane,
    pub(in crate::broker) room: u32,
}

/// The turns taken so far.
#[derive(Clone, Debug, Default)]
pub(in crate::broker) struct Rounds {
    places: HashMap<Queue, usize>,
    accounts: Vec<Account>,
    /// What the queue that went last had spent before. Who had no jobs when it could have had its turns has lost them, so
    /// it comes back as though it had spent as much: nobody saves up, and how far two queues are apart is never more than
    /// one run, however many others there were when they had it.
    now: u64,
}

/// What is remembered of a queue.
#[derive(Clone, Debug)]
struct Account {
    /// What each turn costs it, and what it has spent: the one that has spent least goes first.
    price: u64,
    spent: u64,
    /// The credit of each band, and the lane that had its last turn.
    bands: [(i64, Option<Lane>); Band::ALL.len()],
}

/// What a band that waits for a turn has saved up.
#[derive(Clone, Copy, Debug)]
struct Purse {
    /// What each round brings.
    share: i64,
    credit: i64,
}

/// A queue with open lanes: the number of its account, and their places in the list of open lanes.
struct QueueLine<'a> {
    price: u64,
    spent: u64,
    lanes: &'a [(usize, usize)],
    /// From its first turn on.
    bands: Option<Bands>,
}

/// The bands of a queue with open lanes.
struct Bands {
    lines: Vec<BandLine>,
    /// Which of them are still to have turns, in their order.
    left: Vec<usize>,
}

/// The lanes of a band that are still to have turns.
struct BandLine {
    /// Its place among all bands.
    band: usize,
    purse: Purse,
    places: VecDeque<usize>,
    /// Who had the last turn of this call.
    last: Option<usize>,
}

impl Rounds {
    /// Up to `total` turns, as places in `open`; every lane at most `room` times. A queue has the weight it had in the
    /// first call.
    pub(in crate::broker) fn take(&mut self, weights: &[(Queue, u32)], open: &[Open], total: u32) -> Vec<usize> {
        let total = total as usize;
        let lanes = self.line_up(weights, open);
        let mut queues: Vec<_> = lanes
            .chunk_by(|one, other| one.0 == other.0)
            .map(|lanes| {
                let Account { price, spent, .. } = self.accounts[lanes[0].0];
                QueueLine { price, spent: spent.max(self.now), lanes, bands: None }
            })
            .collect();
        let mut left: Vec<usize> = (0..queues.len()).collect();
        let mut room: Vec<u32> = open.iter().map(|open| open.room).collect();
        let run = if queues.len() > SPREAD { total.div_ceil(SPREAD) } else { 1 };
        let mut turns = Vec::new();
        while turns.len() < total {
            let Some(at) = left.iter().copied().min_by_key(|&line| queues[line].spent) else { break };
            let QueueLine { price, spent, lanes, bands } = &mut queues[at];
            self.now = *spent;
            let bands = bands.get_or_insert_with(|| self.accounts[lanes[0].0].bands(lanes, open));
            let before = turns.len();
            while turns.len() < total.min(before + run)
                && let Some(place) = bands.turn(&mut room)
            {
                turns.push(place);
                *spent += *price;
            }
            if bands.left.is_empty() {
                left.retain(|&line| line != at);
            }
        }
        self.remember(&queues, open);
        turns
    }

    /// The open lanes with something left, queue by queue.
    fn line_up(&mut self, weights: &[(Queue, u32)], open: &[Open]) -> Vec<(usize, usize)> {
        if self.accounts.is_empty() {
            for (queue, weight) in weights {
                self.account(queue, *weight);
            }
        }
        let mut lanes: Vec<(usize, usize)> = Vec::with_capacity(open.len());
        for (place, Open { lane, .. }) in open.iter().enumerate().filter(|(_, open)| open.room > 0) {
            // Mostly they come queue by queue.
            let same = lanes.last().filter(|(_, before)| open[*before].lane.queue == lane.queue);
            let account = same.map(|(account, _)| *account);
            lanes.push((account.unwrap_or_else(|| self.account(&lane.queue, 1)), place));
        }
        lanes.sort_unstable();
        lanes
    }

    /// The place of the queue's account, which has this weight if it is new.
    fn account(&mut self, queue: &Queue, weight: u32) -> usize {
        if let Some(&place) = self.places.get(queue) {
            return place;
        }
        let price = (TURN / u64::from(weight.max(1))).max(1);
        self.accounts.push(Account { price, spent: self.now, bands: Default::default() });
        self.places.insert(queue.clone(), self.accounts.len() - 1);
        self.accounts.len() - 1
    }

    fn remember(&mut self, lines: &[QueueLine<'_>], open: &[Open]) {
        for QueueLine { spent, lanes, bands, .. } in lines {
            let account = &mut self.accounts[lanes[0].0];
            account.spent = *spent;
            for BandLine { band, purse, last, .. } in bands.iter().flat_map(|bands| &bands.lines) {
                let (credit, lane) = &mut account.bands[*band];
                *credit = purse.credit;
                if let Some(last) = last {
                    *lane = Some(open[*last].lane.clone());
                }
            }
        }
    }
}

impl Account {
    /// The bands of these lanes, each beginning after the lane that had the last turn.
    fn bands(&self, lanes: &[(usize, usize)], open: &[Open]) -> Bands {
        let mut all = Vec::new();
        for (number, band) in Band::ALL.into_iter().enumerate() {
            let mut places: Vec<usize> =
                lanes.iter().map(|(_, place)| *place).filter(|&place| open[place].lane.band == band).collect();
            if places.is_empty() {
                continue;
            }
            places.sort_by(|&a, &b| open[a].lane.cmp(&open[b].lane));
            let (credit, last) = &self.bands[number];
            if let Some(last) = last {
                let after = places.partition_point(|&place| open[place].lane <= *last);
                places.rotate_left(after);
            }
            let purse = Purse { share: i64::from(band.weight()), credit: *credit };
            all.push(BandLine { band: number, purse, places: places.into(), last: None });
        }
        Bands { left: (0..all.len()).collect(), lines: all }
    }
}

impl Bands {
    /// The next lane, which has room for one less then.
    fn turn(&mut self, room: &mut [u32]) -> Option<usize> {
        let which = next_turn(&mut self.lines, &self.left)?;
        let band = &mut self.lines[which];
        let place = band.places.pop_front()?;
        band.last = Some(place);
        room[place] -= 1;
        if room[place] > 0 {
            band.places.push_back(place);
        } else if band.places.is_empty() {
            self.left.retain(|&band| band != which);
        }
        Some(place)
    }
}

/// Smooth weighted turns: every band that is `left` earns its share, the richest goes and pays what all of them earned.
fn next_turn(lines: &mut [BandLine], left: &[usize]) -> Option<usize> {
    let mut best: Option<(usize, i64)> = None;
    let mut all = 0;
    for &at in left {
        let purse = &mut lines[at].purse;
        purse.credit += purse.share;
        all += purse.share;
        if best.is_none_or(|(_, most)| purse.credit > most) {
            best = Some((at, purse.credit));
        }
    }
    let (at, _) = best?;
    lines[at].purse.credit -= all;
    Some(at)
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

    #[test]
    fn a_call_takes_from_few_of_many_queues_and_all_have_their_share() {
        let lanes: Vec<_> = (0..100).map(|n| open(&format!("q{n}"), "m", Band::Normal, 1_000)).collect();
        let weights: Vec<_> = lanes.iter().map(|open| open.lane.queue.clone()).zip((0..).map(|n| 1 + n % 2)).collect();
        let (mut rounds, mut counts) = (Rounds::default(), vec![0; lanes.len()]);
        for _ in 0..300 {
            let mut turns = rounds.take(&weights, &lanes, 500);
            for &place in &turns {
                counts[place] += 1;
            }
            assert_eq!(turns.len(), 500);
            turns.sort_unstable();
            turns.dedup();
            assert!(turns.len() <= SPREAD, "a call took from {} queues", turns.len());
        }
        for (place, count) in counts.into_iter().enumerate() {
            let share = if place % 2 == 0 { 1_000 } else { 2_000 };
            // Two runs of a call's quarter more or less.
            assert!(i32::abs(count - share) <= 250, "queue {place} had {count} turns of {share}");
        }
    }

    #[test]
    fn many_queues_have_their_turns_one_by_one_in_small_calls() {
        let lanes: Vec<_> = (0..100).map(|n| open(&format!("q{n}"), "m", Band::Normal, 1_000)).collect();
        let weights: Vec<_> = lanes.iter().map(|open| (open.lane.queue.clone(), 1)).collect();
        assert!(shares(&weights, &lanes, 100, 4).into_iter().all(|count| count == 4));
    }

    #[test]
    fn a_call_is_filled_from_many_queues_that_have_little() {
        let lanes: Vec<_> = (0..1_000).map(|n| open(&format!("q{n}"), "m", Band::Normal, 1)).collect();
        assert_eq!(shares(&[], &lanes, 1, 500).into_iter().sum::<usize>(), 500);
    }

    /// The longest time that one of two queues had nothing in so many calls for one job each.
    fn longest_wait(rounds: &mut Rounds, two: &[Open], calls: usize) -> usize {
        let turns: Vec<usize> = (0..calls).flat_map(|_| rounds.take(&[], two, 1)).collect();
        turns.chunk_by(|one, next| one == next).map(<[usize]>::len).max().unwrap_or(0)
    }

    #[test]
    fn two_queues_that_are_left_of_many_go_on_in_turn_after_a_run_at_the_most() {
        let lanes: Vec<_> = (0..100).map(|n| open(&format!("q{n}"), "m", Band::Normal, 1_000)).collect();
        let weights: Vec<_> = lanes.iter().map(|open| (open.lane.queue.clone(), 1)).collect();
        for calls in 1..60 {
            let (mut rounds, mut last) = (Rounds::default(), 0);
            for _ in 0..calls {
                last = *rounds.take(&weights, &lanes, 200).last().unwrap();
            }
            // A run is a quarter of a call.
            let two = [lanes[last].clone(), lanes[(last + 1) % 100].clone()];
            let waited = longest_wait(&mut rounds, &two, 1_000);
            assert!(waited <= 100, "after {calls} calls one of two had nothing for {waited} turns");
        }
    }

    #[test]
    fn a_queue_that_had_no_jobs_for_long_saves_up_no_turns() {
        let lanes = [open("a", "m", Band::Normal, 1_000), open("b", "m", Band::Normal, 1_000)];
        let mut rounds = Rounds::default();
        rounds.take(&[], &lanes, 10);
        for _ in 0..100 {
            rounds.take(&[], &lanes[..1], 10);
        }
        assert!(longest_wait(&mut rounds, &lanes, 100) <= 2);
    }
}
