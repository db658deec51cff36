//! Tests of the shared state of a limit key on a ledger.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::broker::memory::Memory;
use crate::codec;
use crate::job::{Band, Lane, ModelName, Queue};
use crate::ledger::{LIMIT_BYTES, Ledger as _};
use crate::limits::{Amounts, Ask, Cap, Limits, Measure, Per, Pool, Portion, Rule, change, look, reset};

fn ask(id: u64, requests: i64) -> Ask {
    let amounts = |requests| Portion { amounts: Amounts { requests, ..Amounts::NONE }, ..Portion::default() };
    let (want, least) = (amounts(requests), amounts(1));
    let caps = vec![Cap { measure: Measure::Requests, per: Per::Minute, most: 600 }];
    Ask { id, seq: 1, caps, want, least, ..Ask::default() }
}

#[tokio::test]
async fn many_change_one_key_and_nothing_is_given_twice() {
    let memory = Memory::new();
    let asks = (0..20).map(|id| {
        let (memory, ask) = (&memory, ask(id, 7));
        async move { change(memory, "acme", |pool, now| pool.ask(now, &ask).amounts.requests).await.unwrap() }
    });
    let given: i64 = futures_util::future::join_all(asks).await.iter().sum();
    let view = look(&memory, "acme").await.unwrap().unwrap();
    // Each has its part of what is left when it comes, so some of a tenth of a minute stays.
    assert!((45..=60).contains(&given), "{given}");
    assert_eq!((view.caps[0].held, view.workers), (given, 20));
    assert_eq!(look(&memory, "other").await.unwrap(), None);
}

#[tokio::test]
async fn the_largest_fleet_fits_and_one_more_is_given_nothing() {
    let memory = Memory::new();
    let mut pool = Pool::default();
    for id in 0..500 {
        let (held, most) = (Portion::default(), Amounts::call(2_000_000, 2_000_000));
        let big = Ask { id: u64::MAX - id, held: Portion { amounts: most, ..held }, ..ask(id, 1_000) };
        pool.ask(1_800_000_000_000, &big);
    }
    let grant = |pool: &mut Pool, asked: &Ask| {
        let grant = pool.ask(1_800_000_000_000, asked);
        (grant.amounts == Amounts::NONE, grant.crowded)
    };
    assert_eq!(grant(&mut pool, &ask(1, 1)), (true, true));
    assert!(!grant(&mut pool, &Ask { seq: 2, ..ask(u64::MAX, 1) }).1, "one that was there before");
    assert!(!grant(&mut pool, &Ask { leaves: true, ..ask(2, 1) }).1, "one that leaves wants nothing");
    let bytes = codec::encode_pool(&pool).unwrap();
    assert!(bytes.len() <= LIMIT_BYTES && memory.swap_limit("k", &[], &bytes).await.unwrap(), "{}", bytes.len());
    assert!(memory.swap_limit("k", &bytes, &vec![0; LIMIT_BYTES + 1]).await.is_err());
}

#[tokio::test]
async fn a_state_that_nobody_can_read_says_how_it_is_mended_and_is() {
    let memory = Memory::new();
    for damaged in [&[200, 1, 2][..], &[1, 255, 255, 255]] {
        assert!(memory.swap_limit("acme/gpt 4", &[], damaged).await.unwrap());
        let asked = change(&memory, "acme/gpt 4", |pool, now| pool.ask(now, &ask(1, 1))).await.unwrap_err();
        let looked = look(&memory, "acme/gpt 4").await.unwrap_err();
        for error in [asked, looked] {
            let said = error.to_string();
            assert!(said.ends_with("promptq limits reset \"acme/gpt 4\" begins it anew"), "{said}");
            assert_eq!(error.kind(), crate::error::Kind::Corrupt);
        }
        assert!(reset(&memory, "acme/gpt 4").await.unwrap());
        assert_eq!(look(&memory, "acme/gpt 4").await.unwrap(), None);
    }
    assert!(!reset(&memory, "acme/gpt 4").await.unwrap(), "there is nothing any more");
    change(&memory, "acme/gpt 4", |pool, now| pool.ask(now, &ask(1, 1))).await.unwrap();
}

/// What is logged by this thread while it lives.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn one_worker_too_many_says_so_once_and_until_another_leaves() {
    let (memory, log) = (Memory::new(), Log::default());
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let _logged = tracing::subscriber::set_default(subscriber);
    let lane = Lane { queue: Queue::standard(), model: Some(ModelName::new("fast")), band: Band::Normal };
    let limits = Limits::ruled(vec![Rule { key: "acme".into(), caps: ask(1, 1).caps, adaptive: false }]);
    let turn = async |others: u64| {
        let asks = |pool: &mut Pool, now| (0..others).for_each(|id| drop(pool.ask(now, &ask(id, 1))));
        change(&memory, "acme", asks).await.unwrap();
        limits.seen(std::iter::once(&lane), |_| Some("acme/fast".to_owned()));
        let _asked = tokio::time::timeout(Duration::from_secs(2), limits.keep_asking(&memory, 1.0)).await;
        (limits.room(&lane) > 0, limits.opens_soon(std::slice::from_ref(&lane)), limits.held())
    };
    for _ in 0..3 {
        let (has_room, opens, held) = turn(500).await;
        assert_eq!((has_room, opens, held.len()), (false, false, 1), "{held:?}");
        assert!(held[0].detail.starts_with("500 workers share it already, the most there may be"), "{held:?}");
    }
    tokio::time::advance(Duration::from_secs(11)).await;
    let (_, _, held) = turn(0).await;
    assert_eq!(held.len(), 0, "{held:?}");
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert_eq!(log.matches("a limit has too many workers: 500 workers share it").count(), 1, "{log}");
}
