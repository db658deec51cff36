//! Cases: lists, results by cursor, batches, and the small things kept beside jobs.

use std::collections::HashSet;
use std::time::Duration;

use promptq_common::broker::{Verdict, WorkerId};
use promptq_common::error::Kind;
use promptq_common::job::{Job, Queue};
use promptq_common::ledger::{Cursor, HeldKey, JobFilter, LIMIT_BYTES, RESULT_BYTES, Scope, WorkerReport};
use promptq_common::limits::{Cap, Measure, Per};
use promptq_common::outcome::FailureClass;
use promptq_common::record::{End, State};
use promptq_common::time::Timestamp;
use promptq_tests::backends::{Fixture, SHORT};
use promptq_tests::fixture::{answer, batch, job_of, jobs, queue, record};
use promptq_tests::steps::{end, eventually, list, put, put_one, results, view};

pub(crate) async fn a_list_is_narrowed_by_every_filter(f: Fixture) {
    let (ours, theirs) = (put_one(&f.broker, job_of(&batch("b"))).await, put_one(&f.broker, job_of(&batch("c"))).await);
    let elsewhere = put_one(&f.broker, Job { queue: queue("other"), ..job_of(&batch("d")) }).await;
    let mut worker = f.worker().await;
    worker.ends_one(End::Dead).await;
    let _running = worker.one().await;
    let all = JobFilter::default();
    let cases = [
        (all.clone(), vec![elsewhere, theirs, ours]),
        (JobFilter { queue: Some(queue("other")), ..all.clone() }, vec![elsewhere]),
        (JobFilter { batch: Some(batch("b")), ..all.clone() }, vec![ours]),
        (JobFilter { states: vec![State::Dead], ..all.clone() }, vec![ours]),
        (JobFilter { states: vec![State::Running, State::Queued], ..all.clone() }, vec![elsewhere, theirs]),
        (JobFilter { code: Some("broken".into()), ..all.clone() }, vec![ours]),
        (JobFilter { code: Some("other".into()), ..all.clone() }, vec![]),
        (JobFilter { queue: Some(queue("other")), states: vec![State::Dead], ..all.clone() }, vec![]),
        (JobFilter { queue: Some(queue("nowhere")), ..all }, vec![]),
    ];
    for (filter, expected) in cases {
        for page in [1, 2, 100] {
            let found: Vec<_> = list(&f.broker, &filter, page).await.iter().map(|job| job.id).collect();
            assert_eq!(found, expected, "{filter:?} by {page}");
        }
    }
}

pub(crate) async fn a_list_names_each_job_once_while_jobs_are_added(f: Fixture) {
    let of_a_batch = |count: usize| (0..count).map(|_| job_of(&batch("b"))).collect::<Vec<_>>();
    let old = of_a_batch(95);
    put(&f.broker, &old).await;
    let (mut seen, mut cursor) = (Vec::new(), None::<String>);
    loop {
        let page = f.ledger().list(&JobFilter::default(), cursor.as_deref(), 10).await.unwrap();
        seen.extend(page.items.iter().map(|job| job.id));
        put(&f.broker, &of_a_batch(3)).await;
        cursor = page.next;
        if cursor.is_none() || seen.len() > 2 * old.len() {
            break;
        }
    }
    let newest_first: Vec<_> = old.iter().rev().map(|job| job.id).collect();
    assert_eq!(seen, newest_first);
}

pub(crate) async fn a_limit_is_replaced_by_who_has_seen_the_last_one_alone(f: Fixture) {
    let second = f.second().await;
    let (ours, theirs) = (f.ledger(), second.ledger());
    assert_eq!(ours.limit("acme/fast").await.unwrap().bytes, b"");
    assert!(ours.swap_limit("acme/fast", b"", b"one\0\xff").await.unwrap());
    assert!(!theirs.swap_limit("acme/fast", b"", b"two").await.unwrap());
    assert!(!theirs.swap_limit("acme/fast", b"one", b"two").await.unwrap());
    let kept = theirs.limit("acme/fast").await.unwrap();
    assert_eq!(kept.bytes, b"one\0\xff");
    assert!(theirs.swap_limit("acme/fast", &kept.bytes, b"two").await.unwrap());
    assert!(ours.swap_limit("acme", b"", b"x").await.unwrap());
    assert_eq!(ours.limit("acme/fast").await.unwrap().bytes, b"two");
    assert_eq!(theirs.limits().await.unwrap(), ["acme", "acme/fast"]);
    assert_eq!(ours.limit("other").await.unwrap().bytes, b"");
    assert!(!theirs.swap_limit("acme/fast", b"one", b"").await.unwrap());
    assert!(theirs.swap_limit("acme/fast", b"two", b"").await.unwrap());
    assert_eq!(ours.limit("acme/fast").await.unwrap().bytes, b"");
    assert_eq!(ours.limits().await.unwrap(), ["acme"]);
    let large = vec![7; LIMIT_BYTES + 1];
    assert_eq!(ours.swap_limit("acme", b"x", &large).await.unwrap_err().kind(), Kind::TooLarge);
    assert!(kept.now.since(Timestamp::now()) < Duration::from_secs(60), "{}", kept.now);
}

pub(crate) async fn results_come_in_order_without_a_gap_from_any_cursor(f: Fixture) {
    let name = batch("b");
    put(&f.broker, &(0..25).map(|_| job_of(&name)).collect::<Vec<_>>()).await;
    put(&f.broker, &jobs(5)).await;
    let mut worker = f.worker().await;
    let mut ended = Vec::new();
    let (mut read, mut cursor) = (Vec::new(), Cursor(0));
    for delivery in worker.take(30).await {
        if delivery.head.batch.is_some() {
            ended.push(delivery.head.id);
        }
        end(delivery, if ended.len() % 3 == 0 { End::Dead } else { End::Succeeded }).await;
        if ended.len() % 7 == 0 {
            let page = f.ledger().results(&Scope::Batch(name.clone()), cursor, 4).await.unwrap();
            assert!(page.records.len() <= 4);
            cursor = page.next;
            read.extend(page.records.into_iter().map(|(_, record)| record.id));
        }
    }
    loop {
        let page = f.second().await.ledger().results(&Scope::Batch(name.clone()), cursor, 4).await.unwrap();
        assert!(page.records.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert!(page.records.iter().all(|(at, _)| *at > cursor && *at <= page.next));
        assert!(!page.more || page.next > cursor, "who goes on gets on");
        cursor = page.next;
        read.extend(page.records.into_iter().map(|(_, record)| record.id));
        if !page.more {
            break;
        }
    }
    assert_eq!(read, ended);
    assert_eq!(view(&f.broker, &name).await.last, cursor);
    let of_queue = f.ledger().results(&Scope::Queue(Queue::standard()), Cursor(0), 1_000).await.unwrap().records;
    assert_eq!(of_queue.len(), 30);
    let none = f.ledger().results(&Scope::Queue(queue("other")), Cursor(0), 1_000).await.unwrap();
    assert!(none.records.is_empty() && !none.more);
    assert_eq!(none.next, Cursor(0));
}

pub(crate) async fn a_page_of_results_that_ends_with_the_last_record_says_so(f: Fixture) {
    let name = batch("b");
    put(&f.broker, &(0..4).map(|_| job_of(&name)).collect::<Vec<_>>()).await;
    let mut worker = f.worker().await;
    for _ in 0..4 {
        worker.ends_one(End::Succeeded).await;
    }
    let scope = Scope::Batch(name);
    for (limit, expected) in [(3, true), (4, false), (1_000, false)] {
        let page = f.ledger().results(&scope, Cursor(0), limit).await.unwrap();
        assert_eq!((page.records.len(), page.more), (limit.min(4), expected), "by {limit}");
    }
}

pub(crate) async fn a_page_of_results_is_bounded_in_bytes(f: Fixture) {
    const MIB: usize = 1 << 20;
    let (name, sizes) = (batch("b"), [3, 4, 3, 9, 1].map(|mib| mib * MIB));
    put(&f.broker, &sizes.map(|_| job_of(&name))).await;
    let mut worker = f.worker().await;
    for size in sizes {
        let delivery = worker.one().await;
        let mut record = record(&delivery.head, delivery.lease.id(), End::Succeeded);
        record.answer = Some(answer(&"x".repeat(size)));
        delivery.lease.settle(Verdict::End(Box::new(record))).await.unwrap();
    }
    let (mut pages, mut cursor) = (Vec::new(), Cursor(0));
    loop {
        let page = f.ledger().results(&Scope::Batch(name.clone()), cursor, 1_000).await.unwrap();
        pages.push(page.records.len());
        cursor = page.next;
        if !page.more {
            break;
        }
    }
    assert_eq!(pages, [2, 1, 1, 1], "at most {RESULT_BYTES} bytes, or one record");
}

pub(crate) async fn a_redriven_job_comes_again_and_the_later_record_counts(f: Fixture) {
    let name = batch("b");
    let id = put_one(&f.broker, job_of(&name)).await;
    let mut worker = f.worker().await;
    worker.ends_one(End::Dead).await;
    let seen = results(&f.broker, &name).await.last().unwrap().0;
    f.broker.redrive(&[id]).await.unwrap();
    worker.ends_one(End::Succeeded).await;
    let scope = Scope::Batch(name.clone());
    let after = f.ledger().results(&scope, seen, 10).await.unwrap().records;
    assert_eq!(after.iter().map(|(_, record)| (record.id, record.end)).collect::<Vec<_>>(), [(id, End::Succeeded)]);
    assert_eq!(results(&f.broker, &name).await.last().unwrap().1.end, End::Succeeded);
}

pub(crate) async fn a_batch_is_open_until_it_is_sealed(f: Fixture) {
    let name = batch("b");
    put_one(&f.broker, job_of(&name)).await;
    let before = view(&f.broker, &name).await;
    assert!(!before.sealed && !before.cancelled);
    assert_eq!((&before.queue, before.counts.total, before.last), (&Queue::standard(), 1, Cursor(0)));
    for _ in 0..2 {
        f.second().await.ledger().seal(&name, &Queue::standard()).await.unwrap();
        assert!(view(&f.broker, &name).await.sealed);
    }
    f.ledger().seal(&batch("empty"), &queue("other")).await.unwrap();
    let empty = view(&f.broker, &batch("empty")).await;
    assert_eq!((empty.queue, empty.counts.total, empty.sealed), (queue("other"), 0, true));
}

pub(crate) async fn batches_are_listed_newest_first(f: Fixture) {
    for name in ["one", "two", "three"] {
        put_one(&f.broker, job_of(&batch(name))).await;
    }
    let names = |views: Vec<promptq_common::ledger::BatchView>| {
        views.iter().map(|view| view.name.as_str().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(f.ledger().batches(10).await.unwrap()), ["three", "two", "one"]);
    assert_eq!(names(f.ledger().batches(2).await.unwrap()), ["three", "two"]);
}

pub(crate) async fn a_lock_has_one_holder_and_runs_out(f: Fixture) {
    let (ours, theirs) = (WorkerId::random("ours"), WorkerId::random("theirs"));
    let other = f.second().await;
    assert!(f.ledger().lock("roll-up", &ours, SHORT).await.unwrap());
    assert!(f.ledger().lock("roll-up", &ours, SHORT).await.unwrap(), "its holder extends it");
    assert!(!other.ledger().lock("roll-up", &theirs, SHORT).await.unwrap());
    assert!(other.ledger().lock("another", &theirs, SHORT).await.unwrap());
    let (other, theirs) = (&other, &theirs);
    let long = Duration::from_secs(60);
    eventually("the lock runs out", || async {
        other.ledger().lock("roll-up", theirs, long).await.unwrap().then_some(())
    })
    .await;
    assert!(!f.ledger().lock("roll-up", &ours, SHORT).await.unwrap());
    f.ledger().unlock("roll-up", &ours).await.unwrap();
    assert!(!f.ledger().lock("roll-up", &ours, SHORT).await.unwrap(), "only its holder lets go of it");
    other.ledger().unlock("roll-up", theirs).await.unwrap();
    assert!(f.ledger().lock("roll-up", &ours, SHORT).await.unwrap());
    let error = f.ledger().lock(&"x".repeat(201), &ours, SHORT).await.unwrap_err();
    assert!(!error.is_transient());
}

pub(crate) async fn a_note_is_kept_until_it_is_removed(f: Fixture) {
    assert_eq!(f.ledger().note("a").await.unwrap(), None);
    f.ledger().set_note("a", Some("one")).await.unwrap();
    f.ledger().set_note("a", Some("two")).await.unwrap();
    assert_eq!(f.second().await.ledger().note("a").await.unwrap().as_deref(), Some("two"));
    f.ledger().set_note("a", None).await.unwrap();
    f.ledger().set_note("a", None).await.unwrap();
    assert_eq!(f.ledger().note("a").await.unwrap(), None);
    let largest = "x".repeat(64 * 1024);
    f.ledger().set_note("b", Some(&largest)).await.unwrap();
    let error = f.ledger().set_note("b", Some(&format!("{largest}x"))).await.unwrap_err();
    assert_eq!(error.kind(), Kind::TooLarge);
    assert_eq!(f.ledger().note("b").await.unwrap().map(|note| note.len()), Some(64 * 1024));
}

pub(crate) async fn workers_that_report_are_known(f: Fixture) {
    let mut report = report("w");
    f.ledger().report(&report).await.unwrap();
    report.running = 5;
    f.ledger().report(&report).await.unwrap();
    let held = HeldKey {
        key: "acme/m".into(),
        class: FailureClass::Account,
        detail: "no credit".into(),
        since: report.seen_at,
        until: report.seen_at + Duration::from_secs(600),
        probing: true,
        lanes: vec![(queue("default"), Some("m".into())), (queue("default"), None)],
        at_once: Some(7),
        cap: Some(Cap { measure: Measure::Usd, per: Per::Day, most: 25_000_000_000 }),
    };
    let blocked = Some("disk".into());
    let second = WorkerReport { id: WorkerId::random("v"), blocked, held: vec![held], ..report.clone() };
    f.ledger().report(&second).await.unwrap();
    let known = f.second().await.ledger().workers().await.unwrap();
    assert_eq!(known.len(), 2);
    assert!(known.contains(&report) && known.contains(&second));
    assert_eq!(known.iter().map(|worker| worker.id.clone()).collect::<HashSet<_>>().len(), 2);
}

pub(crate) async fn a_worker_that_leaves_is_forgotten(f: Fixture) {
    let (leaves, stays) = (report("leaves"), report("stays"));
    for report in [&leaves, &stays] {
        f.ledger().report(report).await.unwrap();
    }
    for _ in 0..2 {
        f.ledger().leave(&leaves.id).await.unwrap();
        assert_eq!(f.second().await.ledger().workers().await.unwrap(), std::slice::from_ref(&stays));
    }
}

fn report(name: &str) -> WorkerReport {
    let now = Timestamp::now();
    WorkerReport {
        id: WorkerId::random(name),
        host: "here".into(),
        pid: 7,
        version: "0.1.0".into(),
        started_at: now,
        seen_at: now,
        slots: 8,
        running: 3,
        queues: vec!["default:1".into()],
        draining: false,
        blocked: None,
        held: Vec::new(),
        paces: Vec::new(),
    }
}
