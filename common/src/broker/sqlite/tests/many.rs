//! Many queues: a look at them is one statement, what it saw serves some leases, and none of that is seen from outside.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use rusqlite::{Connection, StatementStatus, TransactionBehavior};

use super::super::lanes::{LOOK, Lanes, Names};
use super::super::lease::{Memory, lease};
use super::super::tx::{Kept, Tx};
use super::super::{Sqlite, file};
use super::{LEASE, open, queue, want};
use crate::broker::backend::{Backend as _, Source, Terms, Want};
use crate::broker::{WorkerId, envelope};
use crate::job::{Job, Queue};
use crate::work::Work;

const QUEUES: usize = 100;

fn queues() -> Vec<Queue> {
    (0..QUEUES).map(|n| Queue::new(&format!("line-{n}")).unwrap()).collect()
}

fn terms() -> Terms {
    let queues = queues().into_iter().map(|queue| (queue, 1)).collect();
    Terms { worker: WorkerId::random("w"), queues, lease: LEASE }
}

/// As many jobs in each of the queues.
async fn stocked(folder: &Path, each: usize) -> Sqlite {
    let sqlite = open(folder).await;
    let queues = queues();
    let job = |n: usize| Job::new(queues[n % QUEUES].clone(), Work::prompt(Some("mock"), format!("say {n}")));
    sqlite.enqueue((0..QUEUES * each).map(|n| envelope(&job(n)).unwrap()).collect()).await.unwrap();
    sqlite
}

/// Leases until nothing comes, so many at once: of which queues, call by call.
async fn drain(source: &mut Box<dyn Source>, total: u32) -> Vec<Vec<Queue>> {
    let mut calls = Vec::new();
    loop {
        let leased = source.next(&want(total)).await.unwrap().deliveries;
        if leased.is_empty() {
            return calls;
        }
        calls.push(leased.into_iter().map(|delivery| delivery.head.lane.queue).collect());
    }
}

#[tokio::test]
async fn a_look_at_many_queues_is_one_statement_and_is_good_until_something_turns() {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = stocked(folder.path(), 1).await;
    let (conn, terms) = (Connection::open(folder.path().join("q.db")).unwrap(), terms());
    let mut lanes = Lanes::new(Names::of(&terms).unwrap());
    assert!(lanes.look(&conn, &terms).unwrap());
    assert_eq!(lanes.list.len(), QUEUES);
    assert_eq!(conn.prepare_cached(LOOK).unwrap().get_status(StatementStatus::Run), 1);
    let steps = conn.prepare_cached(LOOK).unwrap().get_status(StatementStatus::FullscanStep);
    assert!(steps <= i32::try_from(QUEUES).unwrap(), "it read {steps} rows through");
    // A machine that stands still for longer than a look is good would look again.
    let again = (0..10).any(|_| lanes.look(&conn, &terms).is_ok_and(|looked| !looked));
    assert!(again, "every look was a new one");
    sqlite.pause(&queues()[3], Some("closed")).await.unwrap();
    assert!(lanes.look(&conn, &terms).unwrap(), "a pause was not seen");
    assert!(lanes.list.iter().any(|lane| lane.paused));
}

#[tokio::test]
async fn a_call_takes_from_few_of_many_queues_and_all_come_to_their_turns() {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = stocked(folder.path(), 10).await;
    let mut source = sqlite.subscribe(terms()).await.unwrap();
    let calls = drain(&mut source, 40).await;
    for call in &calls[..QUEUES / 4] {
        let from: HashSet<_> = call.iter().collect();
        assert!(call.len() == 40 && from.len() == 4, "{} jobs of {} queues", call.len(), from.len());
    }
    let mut had: HashMap<Queue, u32> = HashMap::new();
    for queue in calls.into_iter().flatten() {
        *had.entry(queue).or_default() += 1;
    }
    assert!(had.len() == QUEUES && had.into_values().all(|count| count == 10));
}

#[tokio::test]
async fn a_pause_is_met_by_the_next_lease_and_what_comes_meanwhile_is_leased() {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = stocked(folder.path(), 10).await;
    let mut source = sqlite.subscribe(terms()).await.unwrap();
    let first = source.next(&want(40)).await.unwrap().deliveries;
    let had: HashSet<_> = first.iter().map(|delivery| delivery.head.lane.queue.clone()).collect();
    let paused = queues().into_iter().find(|queue| !had.contains(queue)).unwrap();
    sqlite.pause(&paused, Some("closed")).await.unwrap();
    let more = |queue: &Queue| envelope(&Job::new(queue.clone(), Work::prompt(Some("new"), "say more"))).unwrap();
    sqlite.enqueue(queues().iter().map(more).collect()).await.unwrap();
    let rest: Vec<_> = drain(&mut source, 40).await.into_iter().flatten().collect();
    assert!(!rest.contains(&paused), "a paused queue gave jobs");
    assert_eq!(first.len() + rest.len(), (QUEUES - 1) * 11);
}

#[tokio::test]
async fn what_a_lease_remembers_is_forgotten_when_its_transaction_comes_to_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let _sqlite = stocked(folder.path(), 10).await;
    let (mut conn, terms) = (file::open_writer(&folder.path().join("q.db")).unwrap(), terms());
    let (mut memory, mut mark) = (Memory::new(Names::of(&terms).unwrap()), None);
    let mut leased = |kept: Kept, is_grave: bool| {
        let inner = conn.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
        let mut tx = Tx::new(&inner);
        (tx.kept, tx.is_grave) = (kept, is_grave);
        memory.begin(&mut mark);
        let taken = lease(&mut tx, &terms, &want(40), &mut memory).unwrap();
        let jobs: Vec<_> = taken.jobs.iter().map(|job| job.head.id).collect();
        (jobs, taken.contended)
    };
    let first = leased(Kept::Lightly, false);
    assert_eq!(first.0.len(), 40);
    assert!(leased(Kept::Lightly, true).0.is_empty(), "it is left at once");
    assert_eq!(leased(Kept::Firmly, true), first, "the same turns, and the same neighbours seen");
}

#[tokio::test]
async fn an_idle_worker_leases_from_an_open_lane_behind_a_thousand_closed_ones() {
    const MODELS: usize = 1_050;
    let folder = tempfile::tempdir().unwrap();
    let sqlite = open(folder.path()).await;
    let job = |n: usize| {
        let model = format!("m{n}");
        Job::new(queue(), Work::prompt(Some(model.as_str()), "say"))
    };
    for half in [0..MODELS / 2, MODELS / 2..MODELS] {
        sqlite.enqueue(half.map(|n| envelope(&job(n)).unwrap()).collect()).await.unwrap();
    }
    let terms = Terms { worker: WorkerId::random("w"), queues: vec![(queue(), 1)], lease: LEASE };
    let conn = Connection::open(folder.path().join("q.db")).unwrap();
    let lanes = Names::of(&terms).unwrap().lanes(&conn, &terms).unwrap();
    assert_eq!(lanes.len(), MODELS);
    let caps = lanes.into_iter().take(1_000).map(|lane| (lane.lane, 0)).collect();
    let mut source = sqlite.subscribe(terms).await.unwrap();
    let leased = source.next(&Want { total: 5, caps, rest: 5 }).await.unwrap();
    assert_eq!(leased.deliveries.len(), 5);
}

#[tokio::test]
async fn the_lease_of_a_job_that_had_a_death_waits_for_a_flush() {
    let folder = tempfile::tempdir().unwrap();
    let _sqlite = stocked(folder.path(), 1).await;
    let (mut conn, terms) = (file::open_writer(&folder.path().join("q.db")).unwrap(), terms());
    for deaths in [0, 1] {
        conn.execute("UPDATE job SET deaths = ?1", [deaths]).unwrap();
        let mut memory = Memory::new(Names::of(&terms).unwrap());
        let inner = conn.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
        let mut tx = Tx::new(&inner);
        tx.kept = Kept::Lightly;
        assert_eq!(lease(&mut tx, &terms, &want(1), &mut memory).unwrap().jobs.len(), 1);
        assert_eq!(tx.is_in_vain(), deaths > 0, "{deaths} deaths");
    }
}
