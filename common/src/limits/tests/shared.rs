//! Tests of the shared state of a limit key on a ledger.

use crate::broker::memory::Memory;
use crate::codec;
use crate::ledger::{LIMIT_BYTES, Ledger as _};
use crate::limits::{Amounts, Ask, Cap, Measure, Per, Pool, Portion, change, look};

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
    assert_eq!(pool.ask(1_800_000_000_000, &ask(1, 1)).amounts, Amounts::NONE);
    let bytes = codec::encode_pool(&pool).unwrap();
    assert!(bytes.len() <= LIMIT_BYTES && memory.swap_limit("k", &[], &bytes).await.unwrap(), "{}", bytes.len());
    assert!(memory.swap_limit("k", &bytes, &vec![0; LIMIT_BYTES + 1]).await.is_err());
}
