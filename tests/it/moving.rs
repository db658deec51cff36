//! `promptq broker move` as a process: what goes, what stays, and that a death at any point neither loses a job nor runs
//! one at both ends.

use std::collections::{BTreeMap, HashSet};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use promptq_common::broker::{Access, Broker, WorkerId};
use promptq_common::job::{BatchName, Job, JobId, Queue};
use promptq_common::ledger::JobFilter;
use promptq_common::record::{End, State};
use promptq_common::time::Timestamp;
use promptq_common::work::Work;
use promptq_tests::backends::{LONG, terms};
use promptq_tests::fixture::{batch, job, job_in, job_of, keyed, queue, retry};
use promptq_tests::process::{Home, Said};
use promptq_tests::redis::{Options, RedisServer};
use promptq_tests::steps::{PATIENCE, Worker, list, put, put_one, see, state, view};
use rand::RngExt as _;
use tokio::time::sleep;

const HOUR: Duration = Duration::from_secs(3_600);

/// A home whose broker is the source, with a target beside it.
struct Ends {
    home: Home,
    target: String,
}

impl Ends {
    fn new() -> Self {
        let home = Home::new();
        let target = format!("sqlite://{}", home.path("target.db").display());
        Self { home, target }
    }

    async fn to(&self) -> Broker {
        Broker::connect(&Access::new(&self.target).unwrap()).await.unwrap()
    }

    /// Moves everything, from the broker that the environment names.
    fn shift(&self, more: &[&str]) -> Said {
        self.home.promptq(&[&["broker", "move", "--to", &self.target, "--yes"], more].concat())
    }

    async fn source_reason(&self) -> Option<String> {
        let views = self.home.broker().await.queues().await.unwrap();
        views.into_iter().find(|view| view.queue == Queue::standard()).and_then(|view| view.paused)
    }
}

async fn worker(broker: &Broker) -> Worker {
    Worker::on(broker, terms(&[(Queue::standard(), 1)], LONG)).await
}

/// Every job there, by its state.
async fn states(broker: &Broker) -> BTreeMap<JobId, State> {
    list(broker, &JobFilter::default(), 1_000).await.into_iter().map(|job| (job.id, job.state)).collect()
}

/// Jobs so large that each is a page of its own.
fn large(count: usize, name: &BatchName) -> Vec<Job> {
    let work = || Work::prompt(Some("mock"), "x".repeat(700_000));
    (0..count).map(|_| Job { work: work(), ..job_of(name) }).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_goes_with_all_it_has_and_the_rest_stays() {
    let ends = Ends::new();
    let (from, name) = (ends.home.broker().await, batch("nov"));
    let later = Timestamp::now() + HOUR;
    let sent = [job_of(&name), job_of(&name), job_of(&name), Job { not_before: Some(later), ..job_of(&name) }];
    put(&from, &sent).await;
    from.ledger().seal(&name, &Queue::standard()).await.unwrap();
    let mut here = worker(&from).await;
    let dead = here.ends_one(End::Dead).await;
    let tried = here.one().await;
    let retried = tried.head.id;
    let verdict = retry(&tried.head, HOUR);
    tried.lease.settle(verdict).await.unwrap();
    let running = here.one().await;
    put_one(&from, job_in(&queue("run-0123"))).await;
    let other = put_one(&from, job_in(&queue("other"))).await;
    let waits = put_one(&from, job()).await;
    let said = ends.shift(&["--json"]).ends(0).json();
    assert_eq!((&said["moved"], &said["known"], &said["refused"]), (&4.into(), &0.into(), &0.into()), "{said}");
    let left = serde_json::json!({ "waiting": 0, "running": 1, "dead": 1 });
    assert_eq!((&said["queues"][0]["queue"], &said["queues"][0]["left"]), (&"default".into(), &left), "{said}");
    let to = ends.to().await;
    let expected =
        [(sent[3].id, State::Scheduled), (retried, State::Retrying), (other, State::Queued), (waits, State::Queued)];
    assert_eq!(states(&to).await, BTreeMap::from(expected));
    assert_eq!((see(&to, sent[3].id).await.due, see(&to, retried).await.attempts), (Some(later), 1));
    assert_eq!(states(&from).await.get(&dead), Some(&State::Dead));
    let (there, left) = (view(&to, &name).await, view(&from, &name).await);
    assert_eq!((there.sealed, there.counts.total, left.sealed, left.counts.total), (true, 2, true, 2));
    assert_eq!(ends.source_reason().await, Some(format!("moved to {}", ends.target)));
    // What ran goes on and ends where it is.
    assert_eq!(promptq_tests::steps::end(running, End::Succeeded).await, promptq_common::broker::Settled::Applied);
    assert_eq!(worker(&to).await.drain().await, [waits]);
    ends.shift(&["--resume", "-Q", "default"]).ends(0).prints(&["0 jobs moved", "1 dead"]);
    assert_eq!(ends.source_reason().await, None);
    assert_eq!(
        from.queues().await.unwrap().into_iter().find(|view| view.queue == queue("run-0123")).unwrap().depth.ready,
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_target_refuses_stays_and_is_told() {
    let ends = Ends::new();
    let (from, to) = (ends.home.broker().await, ends.to().await);
    put(&to, &[keyed("a", "another text"), Job { batch: Some(batch("b")), ..job_in(&queue("other")) }]).await;
    let (conflict, strange) = (keyed("a", "text"), job_of(&batch("b")));
    let both = keyed("c", "text");
    put(&to, std::slice::from_ref(&both)).await;
    put(&from, &[conflict.clone(), strange.clone(), both.clone(), job()]).await;
    let said = ends.shift(&["--json"]).ends(6).says(&["2 jobs stayed behind", "another job has its id", "queue other"]);
    let data = said.json();
    assert_eq!((&data["moved"], &data["known"], &data["refused"]), (&2.into(), &1.into(), &2.into()), "{data}");
    let stayed: HashSet<JobId> = states(&from).await.into_keys().collect();
    assert_eq!(stayed, HashSet::from([conflict.id, strange.id]));
    assert_eq!(states(&to).await.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_put_back_in_line_here_is_not_taken_for_the_one_that_died_there() {
    let ends = Ends::new();
    let (from, to) = (ends.home.broker().await, ends.to().await);
    let sent = keyed("a", "text");
    for broker in [&from, &to] {
        put(broker, std::slice::from_ref(&sent)).await;
        worker(broker).await.ends_one(End::Dead).await;
    }
    from.redrive(&[sent.id]).await.unwrap();
    ends.shift(&[]).ends(6).says(&["was dead there"]);
    assert_eq!(state(&from, sent.id).await, State::Queued);
    to.redrive(&[sent.id]).await.unwrap();
    worker(&to).await.ends_one(End::Dead).await;
    ends.shift(&[]).ends(0);
    assert_eq!((states(&from).await.len(), state(&to, sent.id).await), (0, State::Dead));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_is_never_moved_to_itself() {
    let ends = Ends::new();
    let from = ends.home.broker().await;
    put_one(&from, job()).await;
    std::os::unix::fs::symlink(ends.home.path(""), ends.home.path("alias")).unwrap();
    let alias = format!("sqlite://{}", ends.home.path("alias/q.db").display());
    for to in [&*ends.home.url(), "sqlite:q.db", "sqlite://q.db", &*alias] {
        let said = ends.home.promptq(&["broker", "move", "--to", to, "--yes"]).ends(2);
        said.says(&["both are the same broker"]);
    }
    ends.home.promptq(&["broker", "move", "--yes"]).ends(2);
    ends.home.promptq(&["broker", "move", "--to", "memory://", "--yes"]).ends(2);
    assert_eq!(ends.source_reason().await, None);
    assert_eq!(worker(&from).await.drain().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_done_without_a_yes() {
    let ends = Ends::new();
    let to = ["broker", "move", "--to", &ends.target];
    ends.home.promptq(&to).ends(5).says(&["there is no queue at"]);
    let from = ends.home.broker().await;
    put(&from, &[job(), job_in(&queue("other"))]).await;
    ends.home.promptq(&to).ends(2).says(&["needs a yes", "--dry-run"]);
    let dry = [&to[..], &["--dry-run", "--json"]].concat();
    let said = ends.home.promptq(&dry).ends(0).json();
    assert_eq!((&said["count"], &said["samples"][0]), (&2.into(), &"default: 1 waiting, 0 running".into()), "{said}");
    ends.shift(&["-Q", "nothing"]).ends(5).says(&["no queue \"nothing\""]);
    assert!(!ends.home.path("target.db").exists());
    assert_eq!((from.depth(&Queue::standard()).await.unwrap().ready, ends.source_reason().await), (1, None));
    ends.shift(&["-Q", "other", "--reason", "new host"]).ends(0).prints(&["queue other: 1 job moved"]);
    assert_eq!(states(&ends.to().await).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_of_the_target_is_never_said() {
    let ends = Ends::new();
    put_one(&ends.home.broker().await, job()).await;
    let to = "redis://me:hunter2@127.0.0.1:1/0";
    for more in [&["--dry-run"][..], &["--yes"], &["--yes", "-vvv"]] {
        let said = ends.home.promptq(&[&["broker", "move", "--to", to], more].concat());
        assert!(!said.stdout.contains("hunter2") && !said.stderr.contains("hunter2"), "{said:?}");
    }
}

/// Each transaction of a move is its last one, once before and once after its commit: the same command does the rest.
#[tokio::test(flavor = "multi_thread")]
async fn a_move_may_die_anywhere() {
    let steps = ["pause", "take a lock", "keep a note", "enqueue", "forget", "seal a batch", "let go of a lock"];
    let mut deaths = BTreeMap::new();
    for step in steps {
        for moment in ["before_commit", "after_commit"] {
            let mut passage = 0;
            while dies_at(&format!("sqlite.{step}.{moment}={passage}*off->return")).await {
                passage += 1;
            }
            deaths.insert(format!("{step} {moment}"), passage);
        }
    }
    let of = |step: &str| deaths[&format!("{step} after_commit")];
    assert!(of("enqueue") >= 3 && of("forget") >= 3 && of("seal a batch") == 1 && of("pause") == 2, "{deaths:?}");
}

/// Whether a move armed like this died; afterwards nothing is lost, and what was sealed is sealed.
async fn dies_at(armed: &str) -> bool {
    let ends = Ends::new();
    let (from, name) = (ends.home.broker().await, batch("nov"));
    let sent = large(3, &name);
    put(&from, &sent).await;
    from.ledger().seal(&name, &Queue::standard()).await.unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_promptq_dying"));
    command.args(["broker", "move", "--yes", "--from", &ends.home.url(), "--to", &ends.target]).env_clear();
    command.env("HOME", ends.home.path("")).env("FAILPOINTS", armed).stdin(Stdio::null());
    let said = Said::of(&mut command);
    if said.code == 0 {
        return false;
    }
    assert_eq!(said.code, 137, "{armed}: {}", said.stderr);
    accounted(&ends, &sent, armed).await;
    ends.shift(&[]).ends(0);
    let (there, left) = (view(&ends.to().await, &name).await, view(&from, &name).await);
    assert_eq!((there.sealed, there.counts.queued, left.counts.total), (true, 3, 0), "{armed}");
    assert_eq!(ends.source_reason().await, Some(format!("moved to {}", ends.target)), "{armed}");
    let none_left = from.ledger().note(&format!("open/{}", owner(&ends.target))).await.unwrap();
    assert_eq!(none_left, None, "{armed}");
    true
}

/// Every job is at one end or at both, and those at both are not given out at the source.
async fn accounted(ends: &Ends, sent: &[Job], when: &str) {
    let (here, there) = (states(&ends.home.broker().await).await, states(&ends.to().await).await);
    for job in sent {
        assert!(here.contains_key(&job.id) || there.contains_key(&job.id), "{when}: {} is lost", job.id);
    }
    let at_both = here.keys().any(|id| there.contains_key(id));
    let reason = ends.source_reason().await;
    assert!(!at_both || reason == Some(format!("moving to {}", ends.target)), "{when}: {reason:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_at_any_moment_lose_nothing_and_run_nothing_twice() {
    const JOBS: usize = 6_000;
    let ends = Ends::new();
    let (from, name) = (ends.home.broker().await, batch("nov"));
    let sent: Vec<Job> = (0..JOBS).map(|_| job_of(&name)).collect();
    put(&from, &sent).await;
    from.ledger().seal(&name, &Queue::standard()).await.unwrap();
    let mut dice = rand::rng();
    let (began, mut kills) = (Instant::now(), 0);
    loop {
        assert!(began.elapsed() < PATIENCE * 4, "{kills} kills and not done");
        let arguments = ["broker", "move", "--yes", "--to", &ends.target];
        let mut child = ends.home.start(&arguments);
        let moment = Duration::from_millis(dice.random_range(0..400));
        let deadline = Instant::now() + moment;
        while Instant::now() < deadline && child.try_wait().unwrap().is_none() {
            sleep(Duration::from_millis(1)).await;
        }
        child.kill().unwrap();
        if child.wait().unwrap().success() {
            break;
        }
        kills += 1;
        accounted(&ends, &sent, &format!("kill {kills}")).await;
        // Where all has gone over already, there is nothing to refuse.
        if ends.source_reason().await.is_some() && !states(&from).await.is_empty() {
            // Whatever asks at the source is given nothing, and another move may not begin.
            worker(&from).await.finds_nothing().await;
            let third = format!("sqlite://{}", ends.home.path("third.db").display());
            let elsewhere = ["broker", "move", "--yes", "--to", &third];
            ends.home.promptq(&elsewhere).ends(6);
            from.ledger().unlock("broker-move", &owner(&ends.target)).await.unwrap();
            ends.home.promptq(&elsewhere).ends(6).says(&["paused by another move that has not ended"]);
            // One that was refused is in nobody's way.
            assert!(from.ledger().lock("broker-move", &owner(&ends.target), HOUR).await.unwrap());
            assert_eq!(states(&Broker::connect(&Access::new(&third).unwrap()).await.unwrap()).await.len(), 0);
        }
    }
    let to = ends.to().await;
    assert_eq!(states(&from).await.len(), 0, "after {kills} kills");
    let counts = view(&to, &name).await;
    assert_eq!((counts.sealed, counts.counts.total, counts.counts.queued), (true, 6_000, 6_000));
    let ran = worker(&to).await.drain().await;
    assert_eq!((ran.len(), ran.into_iter().collect::<HashSet<_>>()), (JOBS, sent.iter().map(|job| job.id).collect()));
}

/// Who a move to `target` is, so that the same one may go on.
fn owner(target: &str) -> WorkerId {
    WorkerId::known(format!("move-{}", JobId::derived(&Queue::standard(), None, target)))
}

/// From the laptop to the fleet and back: the same command, whatever the two are.
#[tokio::test(flavor = "multi_thread")]
async fn jobs_go_to_redis_and_come_back_as_they_were() {
    let server = RedisServer::start(Options::cheap());
    let ends = Ends::new();
    let (from, name) = (ends.home.broker().await, batch("nov"));
    let later = Job { not_before: Some(Timestamp::now() + HOUR), tenant: Some("t".into()), ..job_of(&name) };
    put(&from, &[keyed("a", "text"), job_of(&name), later]).await;
    from.ledger().seal(&name, &Queue::standard()).await.unwrap();
    let mut here = worker(&from).await;
    let tried = here.one().await;
    let verdict = retry(&tried.head, HOUR);
    tried.lease.settle(verdict).await.unwrap();
    let whole = async |broker: &Broker| {
        let page = broker.waiting(&Queue::standard(), None, 100).await.unwrap();
        page.items.into_iter().map(|job| (job.head.id, job)).collect::<BTreeMap<_, _>>()
    };
    let before = whole(&from).await;
    ends.home.promptq(&["broker", "move", "--yes", "--to", &server.url()]).ends(0);
    let redis = Broker::connect(&Access::new(&server.url()).unwrap()).await.unwrap();
    assert_eq!((whole(&redis).await, view(&redis, &name).await.sealed), (before.clone(), true));
    assert_eq!(states(&from).await.len(), 0);
    ends.home.promptq(&["broker", "move", "--yes", "--from", &server.url(), "--to", &ends.target]).ends(0);
    let to = ends.to().await;
    assert_eq!((whole(&to).await, view(&to, &name).await.sealed), (before, true));
    assert_eq!((states(&redis).await.len(), view(&redis, &name).await.counts.total), (0, 0));
}
