//! Leases whose answers are lost or come too late, and who is woken for which job.

use std::time::Duration;

use promptq_common::broker::{Beat, Claim, RawDelivery, Source, Want};
use promptq_common::job::{Job, JobId, Queue};
use promptq_common::time::Timestamp;
use promptq_common::work::Work;
use promptq_tests::backends::{LONG, SHORT, terms};
use promptq_tests::fixture::{job, job_in, jobs, queue};
use promptq_tests::proxy::Network;
use promptq_tests::steps::{PATIENCE, Worker, eventually, put, put_one, want};
use tokio::time::{Instant, timeout};

use super::{Setup, are_fresh, eat_the_answer, ids, subscription};

/// Much longer than a token takes on a busy machine, much shorter than the time after which everybody looks by himself.
const SOON: Duration = Duration::from_secs(2);

/// Asks until something is leased; errors are what a worker would try again after.
async fn take(source: &mut Box<dyn Source>, want: &Want) -> Vec<RawDelivery> {
    let began = Instant::now();
    loop {
        assert!(began.elapsed() < PATIENCE, "nothing was leased");
        if let Ok(found) = source.next(want).await
            && !found.deliveries.is_empty()
        {
            return found.deliveries;
        }
    }
}

/// Leases so many jobs that nobody hears of; the subscription and their ids.
async fn lost_answer(setup: &Setup, count: usize) -> (Box<dyn Source>, Vec<JobId>) {
    let already = setup.running().await;
    let jobs = jobs(count);
    put(&setup.broker, &jobs).await;
    let mut source = setup.shaky_source(LONG).await;
    setup.proxy.set(Network::Deaf);
    let wanted = want(count);
    let (answer, ()) =
        tokio::join!(source.next(&wanted), eat_the_answer(setup, setup.until_running(already + count as u64)));
    assert!(answer.is_err_and(|error| error.is_transient()));
    assert_eq!(setup.running().await, already + count as u64, "leased to a worker that does not know");
    setup.proxy.set(Network::Whole);
    (source, jobs.iter().map(|job| job.id).collect())
}

#[tokio::test]
async fn jobs_whose_lease_was_never_heard_of_are_leased_again_at_once_and_have_died_no_death() {
    let setup = Setup::new().await;
    let (mut source, expected) = lost_answer(&setup, 10).await;
    let began = Instant::now();
    let again = take(&mut source, &want(10)).await;
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    assert_eq!(ids(&again), expected, "in the order they were in");
    are_fresh(&again).await;
}

#[tokio::test]
async fn of_many_leases_all_that_were_never_heard_of_come_back() {
    let setup = Setup::new().await;
    put(&setup.broker, &jobs(600)).await;
    let mut other = subscription(&setup.backend, &[Queue::standard()], LONG).await;
    let mut theirs = 0;
    while theirs < 600 {
        theirs += take(&mut other, &want(600)).await.len();
    }
    let (mut source, expected) = lost_answer(&setup, 700).await;
    let again = take(&mut source, &want(700)).await;
    assert_eq!(again.len(), expected.len());
    assert_eq!(setup.running().await, 1_300);
    are_fresh(&again).await;
}

#[tokio::test]
async fn what_was_never_heard_of_is_given_back_with_the_subscription() {
    let setup = Setup::new().await;
    let (source, expected) = lost_answer(&setup, 10).await;
    source.close().await.unwrap();
    let mut other = subscription(&setup.backend, &[Queue::standard()], LONG).await;
    let given = take(&mut other, &want(10)).await;
    assert_eq!(ids(&given), expected);
    are_fresh(&given).await;
}

#[tokio::test]
async fn only_what_was_never_heard_of_is_given_back() {
    let setup = Setup::new().await;
    put(&setup.broker, &jobs(2)).await;
    let mut other = subscription(&setup.backend, &[Queue::standard()], LONG).await;
    let theirs = take(&mut other, &want(1)).await;
    let mut source = setup.shaky_source(LONG).await;
    let ours = take(&mut source, &want(1)).await;
    put_one(&setup.broker, job()).await;
    source.next(&want(0)).await.unwrap();
    setup.proxy.set(Network::Deaf);
    // The same lane is known to hold a job: it is asked for at once.
    let wanted = want(1);
    let (answer, ()) = tokio::join!(source.next(&wanted), eat_the_answer(&setup, setup.until_running(3)));
    assert!(answer.is_err());
    setup.proxy.set(Network::Whole);
    let again = take(&mut source, &want(1)).await;
    are_fresh(&again).await;
    for delivery in theirs.iter().chain(&ours) {
        assert_eq!(delivery.hold.beat().await.unwrap(), Beat::Kept);
    }
}

/// A subscription that asked for ten jobs and was dropped while they were on their way.
async fn dropped_in_flight(setup: &Setup) -> (Box<dyn Source>, Vec<JobId>) {
    let jobs = jobs(10);
    put(&setup.broker, &jobs).await;
    let mut source = setup.shaky_source(LONG).await;
    setup.proxy.set(Network::Deaf);
    tokio::select! {
        found = async { source.next(&want(10)).await } => panic!("{found:?}"),
        () = setup.until_running(10) => {}
    }
    setup.proxy.set(Network::Whole);
    (source, jobs.iter().map(|job| job.id).collect())
}

#[tokio::test]
async fn what_an_earlier_call_leased_and_a_smaller_one_does_not_want_goes_back_at_once() {
    let setup = Setup::new().await;
    let (mut source, expected) = dropped_in_flight(&setup).await;
    let found = source.next(&want(3)).await.unwrap().deliveries;
    assert_eq!(ids(&found), expected[..3]);
    assert_eq!(setup.running().await, 3);
    let mut other = subscription(&setup.backend, &[Queue::standard()], LONG).await;
    let rest = take(&mut other, &want(10)).await;
    let mut back = ids(&rest);
    back.sort_unstable();
    assert_eq!(back, expected[3..]);
    are_fresh(&found).await;
    are_fresh(&rest).await;
}

#[tokio::test]
async fn what_an_earlier_call_leased_from_a_lane_that_was_closed_meanwhile_goes_back() {
    let setup = Setup::new().await;
    let (mut source, expected) = dropped_in_flight(&setup).await;
    let closed = Want { total: 10, caps: vec![(job().lane(), 0)], rest: 10 };
    let found = timeout(SOON, source.next(&closed)).await.unwrap().unwrap();
    assert!(found.deliveries.is_empty(), "{:?}", ids(&found.deliveries));
    assert_eq!((setup.running().await, found.lanes_seen), (0, vec![job().lane()]));
    assert_eq!(take(&mut source, &want(10)).await.len(), expected.len());
}

#[tokio::test]
async fn what_lay_too_long_goes_back_before_its_lease_runs_out() {
    let setup = Setup::new().await;
    put(&setup.broker, &jobs(3)).await;
    let mut source = setup.shaky_source(Duration::from_secs(2)).await;
    setup.proxy.set(Network::Deaf);
    let asked = async { timeout(Duration::from_millis(1_300), source.next(&want(3))).await };
    assert!(asked.await.is_err());
    setup.proxy.set(Network::Whole);
    let found = take(&mut source, &want(3)).await;
    are_fresh(&found).await;
    let till = setup.server.must(&["ZRANGE", "{pq:default}:lease", "0", "0", "WITHSCORES"]).list()[1].number();
    let left = till - Timestamp::now().as_millis();
    assert!(left > 1_000, "a job is handed out with {left} ms of its lease left");
}

#[tokio::test]
async fn a_subscription_that_closes_gives_back_what_was_on_its_way() {
    let setup = Setup::new().await;
    let (source, expected) = dropped_in_flight(&setup).await;
    source.close().await.unwrap();
    assert_eq!(setup.running().await, 0);
    let mut other = subscription(&setup.backend, &[Queue::standard()], LONG).await;
    let given = take(&mut other, &want(10)).await;
    assert_eq!(given.len(), expected.len());
    are_fresh(&given).await;
}

#[tokio::test]
async fn a_queue_that_cannot_be_leased_from_is_in_nobodys_way() {
    let setup = Setup::new().await;
    let queues = [queue("broken"), queue("sound")];
    put(&setup.broker, &[job_in(&queues[0]), job_in(&queues[1])]).await;
    let mut source = subscription(&setup.backend, &queues, LONG).await;
    // Somebody else's data under keys of ours: no script over that queue can run to its end.
    for key in ["{pq:broken}:lease", "{pq:broken}:delayed"] {
        setup.server.must(&["DEL", key]);
        setup.server.must(&["SET", key, "not ours"]);
    }
    for _ in 0..3 {
        let began = Instant::now();
        let found = take(&mut source, &want(1)).await;
        assert_eq!(found[0].head.lane.queue, queues[1]);
        assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
        put_one(&setup.broker, job_in(&queues[1])).await;
    }
}

#[tokio::test]
async fn a_job_whose_token_was_lost_is_found_by_looking() {
    // By itself a subscription looks every 5 s, or three times in its lease.
    for (lease, patience) in [(LONG, Duration::from_secs(7)), (Duration::from_millis(1_500), SOON)] {
        let setup = Setup::new().await;
        let thief = setup.steal_a_token().await;
        let mut worker = Worker::on(&setup.broker, terms(&[(Queue::standard(), 1)], lease)).await;
        worker.finds_nothing().await;
        let began = Instant::now();
        let id = put_one(&setup.broker, job()).await;
        assert_eq!(worker.one().await.head.id, id);
        assert!(began.elapsed() < patience, "{:?}", began.elapsed());
        thief.await.unwrap();
    }
}

#[tokio::test]
async fn a_worker_that_is_not_idle_any_more_hands_a_token_on() {
    let setup = Setup::new().await;
    let mut busy = Worker::on(&setup.broker, terms(&[(Queue::standard(), 1)], LONG)).await;
    busy.finds_nothing().await;
    // It waits at the server for some time still, before everybody who comes now.
    let mut idle = Worker::on(&setup.broker, terms(&[(Queue::standard(), 1)], LONG)).await;
    let putting = async {
        setup.until_waiting(2).await;
        put_one(&setup.broker, job()).await;
        Instant::now()
    };
    let (_delivery, put_at) = tokio::join!(idle.one(), putting);
    assert!(put_at.elapsed() < SOON, "{:?}", put_at.elapsed());
}

#[tokio::test]
async fn two_idle_workers_get_one_job_each_at_once() {
    let setup = Setup::new().await;
    let mut one = Worker::on(&setup.broker, terms(&[(Queue::standard(), 1)], LONG)).await;
    let mut other = Worker::on(&setup.broker, terms(&[(Queue::standard(), 1)], LONG)).await;
    let putting = async {
        setup.until_waiting(2).await;
        put(&setup.broker, &jobs(2)).await;
        Instant::now()
    };
    let (_first, _second, put_at) = tokio::join!(one.one(), other.one(), putting);
    assert!(put_at.elapsed() < SOON, "{:?}", put_at.elapsed());
}

#[tokio::test]
async fn idle_workers_to_whom_every_lane_is_closed_do_not_wake_each_other_for_ever() {
    let setup = Setup::new().await;
    let closed = Want { total: 5, caps: vec![(job().lane(), 0)], rest: 5 };
    let mut one = subscription(&setup.backend, &[Queue::standard()], LONG).await;
    let mut other = subscription(&setup.backend, &[Queue::standard()], LONG).await;
    let putting = async {
        setup.until_waiting(2).await;
        setup.count_anew();
        put_one(&setup.broker, job()).await;
    };
    let asking = async |source: &mut Box<dyn Source>| {
        for _ in 0..3 {
            assert!(source.next(&closed).await.unwrap().deliveries.is_empty());
        }
    };
    tokio::join!(asking(&mut one), asking(&mut other), putting);
    // The job that is put in (two calls), the token's eight hops, and what two workers look at by themselves in 3 s.
    let calls = setup.calls();
    assert!((3..=14).contains(&calls), "{calls} calls");
}

#[tokio::test]
async fn an_idle_worker_has_a_job_after_one_call_and_runs_it_without_another() {
    let setup = Setup::new().await;
    let mut source = subscription(&setup.backend, &[Queue::standard()], LONG).await;
    for _ in 0..20 {
        put_one(&setup.broker, job()).await;
        setup.count_anew();
        let jobs = take(&mut source, &want(5)).await;
        are_fresh(&jobs).await;
        // On a busy machine the moment in which the lease's answer counts may be over.
        if setup.calls() == 1 {
            return;
        }
    }
    panic!("no job of twenty was leased and claimed by one call");
}

#[tokio::test]
async fn a_claim_asks_the_server_when_its_lease_is_no_news_any_more() {
    let setup = Setup::new().await;
    put_one(&setup.broker, job()).await;
    let mut source = subscription(&setup.backend, &[Queue::standard()], LONG).await;
    let jobs = take(&mut source, &want(1)).await;
    let leased = Instant::now();
    setup.server.must(&["DEL", "{pq:default}:lease"]);
    eventually("the moment passes", || async { (leased.elapsed() > Duration::from_millis(50)).then_some(()) }).await;
    assert_eq!(jobs[0].hold.claim().await.unwrap(), Claim::Stale);
}

#[tokio::test]
async fn a_claim_asks_the_server_when_somebody_may_have_an_answer() {
    let setup = Setup::new().await;
    put_one(&setup.broker, job()).await;
    let mut source = subscription(&setup.backend, &[Queue::standard()], SHORT).await;
    drop(take(&mut source, &want(1)).await);
    let again = take(&mut source, &want(1)).await;
    setup.count_anew();
    assert_eq!(again[0].hold.claim().await.unwrap(), Claim::Fresh { deaths: 1 });
    assert_eq!(setup.calls(), 1);
}

#[tokio::test]
async fn what_an_idle_worker_takes_at_first_sight_is_within_what_it_wants() {
    let setup = Setup::new().await;
    let mut source = subscription(&setup.backend, &[Queue::standard()], LONG).await;
    let all: Vec<_> = ["a", "b"].iter().flat_map(|model| (0..3).map(|_| of_model(model))).collect();
    let caps = vec![(all[0].lane(), 1)];
    put(&setup.broker, &all).await;
    let jobs = take(&mut source, &Want { total: 10, caps, rest: 2 }).await;
    assert_eq!(ids(&jobs), [all[0].id, all[3].id, all[4].id]);
    // More than there is room for is leased in turn.
    let mut other = subscription(&setup.backend, &[Queue::standard()], LONG).await;
    assert_eq!(ids(&take(&mut other, &want(2)).await), [all[1].id, all[5].id]);
}

fn of_model(model: &str) -> Job {
    Job::new(Queue::standard(), Work::prompt(Some(model), "say something"))
}
