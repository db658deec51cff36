//! The process that dies in the crash tests of a ledger that serves another broker: enters jobs, opens their messages and
//! settles their claims on the ledger it is given, and writes to a log what it was told. Where it dies is armed by
//! `FAILPOINTS`; when it survives, it ends with 0.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::time::Duration;

use anyhow::Context;
use promptq_common::broker::{Claim, Envelope, LeaseId, Settled, Verdict, WorkerId};
use promptq_common::ledger::{Asked, Claims};
use promptq_common::outcome::FailureClass;
use promptq_common::record::End;
use promptq_tests::fixture;
use promptq_tests::messages::{heads, ledger, message};

/// How long its claims last, and so how long the tests wait for what it left behind.
const LEASE: Duration = Duration::from_secs(2);

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let (url, log) = (args.next().context("a ledger's URL")?, args.next().context("a log's path")?);
    let mut log = OpenOptions::new().create(true).append(true).open(log)?;
    let ledger = ledger(&url).await;
    let worker = WorkerId::random("dying");
    for (round, jobs) in fixture::rounds().iter().enumerate() {
        let messages: Vec<Envelope> = jobs.iter().map(message).collect();
        // The last one of a round is first heard of when it is opened …
        ledger.register(&heads(&messages[..2])).await?;
        ledger.confirm(&heads(&messages[..2])).await?;
        for (place, message) in messages.iter().enumerate() {
            let lease = LeaseId::random();
            let asked = Asked { lease, worker: &worker, length: LEASE, redelivered: false };
            let opened = ledger.open(&message.head, &asked).await?;
            anyhow::ensure!(opened.claim == Claim::Fresh { deaths: 0 }, "{opened:?}");
            // … and left behind, as by a worker that runs it still.
            if place < 2 {
                settle(&*ledger, message, lease, (round * 2 + place, &mut log)).await?;
            }
        }
    }
    Ok(())
}

/// Each verdict in its turn. A retry's copy is published before.
async fn settle(
    ledger: &dyn Claims,
    message: &Envelope,
    lease: LeaseId,
    (turn, log): (usize, &mut File),
) -> anyhow::Result<()> {
    let head = &message.head;
    let (verdict, name) = match turn % 4 {
        0 => (fixture::end(head, lease, End::Succeeded), "succeeded"),
        1 => {
            writeln!(log, "copied {}", head.id)?;
            let attempt = Box::new(fixture::attempt(head, Some(FailureClass::Transient)));
            (Verdict::Retry { after: Duration::ZERO, attempt }, "retried")
        }
        2 => (fixture::release(), "released"),
        _ => (fixture::end(head, lease, End::Dead), "dead"),
    };
    let settled = ledger.settle(head, lease, &verdict, Some(&message.payload)).await?;
    anyhow::ensure!(settled == Settled::Applied, "too slow for its claim: {settled:?}");
    writeln!(log, "{name} {}", head.id)?;
    Ok(())
}
