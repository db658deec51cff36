//! How many calls an endpoint gets at once: when it is overloaded, when it is slow, and when it is neither.

use super::*;
use crate::job::{Band, ModelName, Queue};
use crate::outcome::{Detail, Failure, Reply};

const SECOND: Duration = Duration::from_secs(1);

/// A whole answer of 50 tokens that took so many seconds.
fn well(seconds: f64) -> Sign {
    let usage = Usage { output_tokens: 50, ..Usage::default() };
    Sign::of(&Outcome::Success(Reply { usage, ..Reply::default() }), Duration::from_secs_f64(seconds))
}

/// An endpoint, and a worker with so many slots.
struct Scene {
    aimd: Aimd,
    now: Instant,
    slots: u32,
    refused: u32,
    answered: u32,
}

impl Scene {
    fn new(slots: u32) -> Self {
        Self { aimd: Aimd::default(), now: Instant::now(), slots, refused: 0, answered: 0 }
    }

    /// Every free slot begins a call; `serve` says, for so many at once, how many are turned away and how long the others
    /// take. Returns how many there were at once.
    fn round(&mut self, serve: impl Fn(u32) -> (u32, f64)) -> u32 {
        let at_once = self.slots.min(self.aimd.room());
        let (refused, seconds) = serve(at_once);
        let began = self.now;
        (0..at_once).for_each(|_| self.aimd.begun(began));
        self.now += Duration::from_secs_f64(seconds);
        for n in 0..at_once {
            // Spread evenly among them.
            let is_refused = (n + 1) * refused / at_once > n * refused / at_once;
            self.aimd.ended(self.now, began, if is_refused { Sign::Overload } else { well(seconds) });
        }
        self.refused += refused;
        self.answered += at_once - refused;
        at_once
    }

    fn rounds(&mut self, rounds: usize, serve: impl Fn(u32) -> (u32, f64)) -> Vec<u32> {
        (0..rounds).map(|_| self.round(&serve)).collect()
    }
}

#[test]
fn nothing_is_bounded_while_nothing_is_wrong() {
    for slots in [1, 16, 10_000] {
        let mut scene = Scene::new(slots);
        assert_eq!(scene.rounds(3, |_| (0, 1.0)), [slots; 3]);
        // One in a hundred fails.
        assert_eq!(scene.rounds(100, |at_once| (at_once / 100, 1.0)), [slots; 100]);
        assert_eq!(scene.aimd.room(), u32::MAX);
    }
}

#[test]
fn it_is_halved_once_and_comes_back_by_ones() {
    let mut scene = Scene::new(16);
    assert_eq!(scene.round(|_| (8, 1.0)), 16);
    assert_eq!(scene.aimd.most(), Some(8), "sixteen that were on their way together are one sign");
    assert_eq!(scene.rounds(5, |_| (0, 1.0)), [8, 9, 10, 11, 12]);
    (0..13).for_each(|_| scene.aimd.begun(scene.now));
    for _ in 0..4 {
        scene.aimd.ended(scene.now, scene.now, Sign::Overload);
    }
    assert_eq!(scene.aimd.most(), Some(6));
    for _ in 0..20 {
        scene.aimd.begun(scene.now);
        assert!(!scene.aimd.ended(scene.now, scene.now, Sign::Overload), "not twice in a second");
    }
    scene.now += SECOND;
    scene.aimd.begun(scene.now);
    assert!(scene.aimd.ended(scene.now, scene.now, Sign::Overload));
}

#[test]
fn thousands_at_once_bear_more_and_come_back_in_rounds_not_in_hours() {
    let mut scene = Scene::new(10_000);
    scene.rounds(2, |_| (150, 1.0));
    assert_eq!(scene.aimd.most(), None);
    scene.round(|_| (900, 1.0));
    assert_eq!(scene.aimd.most(), Some(5_000));
    let back = scene.rounds(16, |_| (0, 1.0));
    assert_eq!((back[0], back[1], back[15]), (5_000, 5_250, 10_000));
}

#[test]
fn after_an_outage_it_doubles_from_four_up_to_half_of_what_it_was() {
    let mut scene = Scene::new(100);
    scene.round(|_| (0, 1.0));
    scene.aimd.outage(scene.now);
    assert_eq!(scene.rounds(8, |_| (0, 1.0)), [4, 8, 16, 32, 50, 52, 54, 56]);
}

/// Whatever it takes, the endpoint is used well and turned to in vain seldom.
#[test]
fn an_endpoint_that_takes_so_many_gets_about_as_many() {
    for most in [3, 40, 700] {
        let mut scene = Scene::new(2_000);
        let serve = |at_once: u32| (at_once.saturating_sub(most), 1.0);
        scene.rounds(30, serve);
        (scene.refused, scene.answered) = (0, 0);
        scene.rounds(200, serve);
        assert!(scene.answered >= most * 200 * 6 / 10, "{} of {}", scene.answered, most * 200);
        assert!(scene.refused * 3 <= scene.answered, "{} beside {}", scene.refused, scene.answered);
    }
}

#[test]
fn long_answers_are_not_slow_ones() {
    let answer = |input_tokens, output_tokens, first: Option<f64>, seconds| {
        let usage = Usage { input_tokens, output_tokens, ..Usage::default() };
        let detail = first
            .map(|first| Box::new(Detail { first_piece: Some(Duration::from_secs_f64(first)), ..Detail::default() }));
        let reply = Reply { usage, detail, ..Reply::default() };
        match Sign::of(&Outcome::Success(reply), Duration::from_secs_f64(seconds)) {
            Sign::Well { pace, streamed, .. } => ((pace * 1e6).round(), streamed),
            other @ (Sign::Overload | Sign::Nothing) => panic!("{other:?}"),
        }
    };
    assert_eq!(answer(0, 50, None, 1.0), (10_000.0, false));
    assert_eq!(answer(0, 4_950, None, 50.0), (10_000.0, false));
    assert_eq!(answer(50_000, 950, None, 20.0), (10_000.0, false));
    assert_eq!(answer(0, 9_000, Some(0.5), 90.0), (10_000.0, true));
}

#[test]
fn only_an_endpoint_that_is_full_or_out_of_reach_is_overloaded() {
    for (class, status, code, sign) in [
        (FailureClass::Capacity, Some(529), "overloaded_error", Sign::Overload),
        (FailureClass::Capacity, None, "connect_failed", Sign::Overload),
        (FailureClass::Transient, Some(503), "http_503", Sign::Overload),
        (FailureClass::UnknownBilled, None, "timeout", Sign::Overload),
        (FailureClass::UnknownBilled, Some(200), "answer_cut", Sign::Nothing),
        (FailureClass::Throttled, Some(429), "rate_limit_exceeded", Sign::Nothing),
        (FailureClass::Account, Some(401), "invalid_api_key", Sign::Nothing),
        (FailureClass::Transient, Some(500), "http_500", Sign::Nothing),
        (FailureClass::Fatal, Some(400), "bad_request", Sign::Nothing),
    ] {
        let failure = Failure { status_code: status, ..Failure::new(class, code, "") };
        assert_eq!(Sign::of(&Outcome::Failure(failure), SECOND), sign, "{code}");
    }
}

#[test]
fn calls_that_only_wait_for_each_other_are_fewer_soon() {
    // Twenty go at a time; the rest stands in line there.
    let serve = |at_once: u32| (0, 1.0_f64.max(f64::from(at_once) / 20.0));
    let mut scene = Scene::new(20);
    scene.rounds(3, serve);
    scene.slots = 200;
    let at_once = scene.rounds(8, serve);
    assert_eq!(at_once[0], 200);
    assert!(at_once[7] <= 110, "{at_once:?}");
}

#[test]
fn a_server_that_does_more_with_more_calls_keeps_them_however_slow_each_is() {
    // Batches on a graphics card: sixteen times the calls take four times as long.
    let serve = |at_once: u32| (0, f64::from(at_once).sqrt() / 4.0);
    let mut scene = Scene::new(16);
    scene.rounds(3, serve);
    scene.slots = 256;
    assert_eq!(scene.rounds(20, serve), [256; 20]);
}

#[test]
fn what_is_slow_for_other_reasons_is_slowed_down_for_one_round_at_most() {
    let mut scene = Scene::new(40);
    scene.rounds(2, |_| (0, 1.0));
    scene.slots = 100;
    // Somebody else's load: as many answers a second as before, whatever we do.
    let at_once = scene.rounds(20, |at_once| (0, f64::from(at_once.max(100)) / 40.0));
    assert!(at_once.iter().filter(|at_once| **at_once < 100).count() <= 1, "{at_once:?}");
}

#[test]
fn what_binds_nobody_for_ten_minutes_is_forgotten() {
    let mut scene = Scene::new(64);
    scene.round(|_| (32, 1.0));
    assert_eq!(scene.aimd.most(), Some(32));
    scene.slots = 4;
    scene.rounds(60, |_| (0, 9.0));
    assert!(scene.aimd.most().is_some());
    scene.rounds(40, |_| (0, 9.0));
    assert_eq!(scene.aimd.most(), None);
}

#[test]
fn lanes_of_an_endpoint_share_its_room_and_a_new_one_is_seen() {
    let mut aimd = Aimd::default();
    let now = Instant::now();
    let lanes = ["a", "b", "c"].map(|model| Lane {
        queue: Queue::standard(),
        model: Some(ModelName::new(model)),
        band: Band::Normal,
    });
    assert_eq!(aimd.room_of(&lanes[0], now), u32::MAX);
    (0..16).for_each(|_| aimd.begun(now));
    for n in 0..16 {
        aimd.ended(now, now, if n % 2 == 0 { Sign::Overload } else { well(1.0) });
    }
    assert_eq!(aimd.most(), Some(8));
    assert_eq!(lanes.clone().map(|lane| aimd.room_of(&lane, now)), [1, 1, 1], "nobody has seen them ready");
    for lane in &lanes {
        aimd.seen(lane, now);
    }
    let rooms = lanes.clone().map(|lane| aimd.room_of(&lane, now));
    assert!(rooms.iter().sum::<u32>() == 8 && rooms.iter().all(|room| *room >= 2), "{rooms:?}");
    (0..7).for_each(|_| aimd.expect());
    assert_eq!(lanes.iter().map(|lane| aimd.room_of(lane, now)).sum::<u32>(), 1);
    let later = now + 3 * SECOND;
    aimd.seen(&lanes[1], later);
    assert_eq!(lanes.clone().map(|lane| aimd.room_of(&lane, later)), [1, 1, 1]);
    aimd.release();
    assert_eq!(aimd.room_of(&lanes[2], later), u32::MAX);
}
