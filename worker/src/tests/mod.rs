//! Whole workers on the memory backend, in paused time: a scripted runner, a broker that fails on demand.

mod broke;
mod faulty;
mod leaving;
mod lifecycle;
mod limits;
mod money;
mod repair;
mod reports;
mod reuse;
mod routes;
mod rules;
mod tiers;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use promptq_common::broker::{Broker, Delivery, Terms, Want, WorkerId};
use promptq_common::job::{Job, JobId, Queue};
use promptq_common::ledger::JobView;
use promptq_common::limits::Counts;
use promptq_common::outcome::{Body, Failure, FailureClass, Outcome, Reply, Usage, Usd};
use promptq_common::record::{End, Record};
use promptq_common::store::Store;
use promptq_common::work::Work;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::runner::{ExecSettings, MockSettings, RunContext, Runner, RunnerSettings, Runners, WhenLost};
use crate::settings::Settings;
use crate::status::{Board, Status};
use crate::stop::Stop;
use crate::{Drained, Parts, run};
use faulty::{Faults, Faulty};

/// What a scripted run does.
#[derive(Clone, Debug)]
enum Play {
    Answer(String),
    Fail(Failure),
    /// Answers after this long.
    After(Duration),
    /// Answers after a second, and costs so much.
    Costs(Usd),
    /// Answers just this.
    Reply(Box<Reply>),
    /// Does the other after this long.
    Wait(Duration, Box<Play>),
    Panic,
    Forever,
}

type Script = Box<dyn Fn(&Job, &RunContext) -> Play + Send + Sync>;

/// A runner that does what it is told, and tells what it was asked to run and what was stopped.
struct Scripted {
    script: Script,
    lost: WhenLost,
    billed: bool,
    /// How many times a job's time limit a run may take.
    times: u32,
    key: &'static str,
    /// An endpoint that turns away what is more than so many at once.
    takes: Option<u32>,
    started: AtomicU32,
    ended: AtomicU32,
    most: AtomicU32,
    jobs: Mutex<Vec<JobId>>,
}

impl fmt::Debug for Scripted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.key)
    }
}

impl Scripted {
    fn new(key: &'static str, script: impl Fn(&Job, &RunContext) -> Play + Send + Sync + 'static) -> Self {
        Self {
            script: Box::new(script),
            lost: WhenLost::Finish,
            billed: true,
            times: 1,
            key,
            takes: None,
            started: AtomicU32::new(0),
            ended: AtomicU32::new(0),
            most: AtomicU32::new(0),
            jobs: Mutex::default(),
        }
    }

    fn started(&self) -> u32 {
        self.started.load(Ordering::SeqCst)
    }

    fn running(&self) -> u32 {
        self.started() - self.ended.load(Ordering::SeqCst)
    }
}

struct Ended<'a>(&'a AtomicU32);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Runner for Scripted {
    async fn run(&self, job: &Job, cx: &RunContext) -> Outcome {
        self.started.fetch_add(1, Ordering::SeqCst);
        self.most.fetch_max(self.running(), Ordering::SeqCst);
        self.jobs.lock().unwrap().push(job.id);
        let _ended = Ended(&self.ended);
        if self.takes.is_some_and(|takes| self.running() > takes) {
            let full = Failure::new(FailureClass::Capacity, "overloaded", "as scripted");
            return Outcome::Failure(Failure { status_code: Some(529), ..full });
        }
        let mut play = (self.script)(job, cx);
        while let Play::Wait(wait, then) = play {
            sleep(wait).await;
            play = *then;
        }
        match play {
            Play::Answer(text) => answer(text),
            Play::Fail(failure) => Outcome::Failure(failure),
            Play::After(wait) => {
                sleep(wait).await;
                answer("later".to_owned())
            }
            Play::Costs(cost) => {
                sleep(Duration::from_secs(1)).await;
                Outcome::Success(Reply { status_code: 200, cost: Some(cost), ..Reply::default() })
            }
            Play::Reply(reply) => Outcome::Success(*reply),
            Play::Panic => panic!("as scripted"),
            Play::Wait(..) | Play::Forever => std::future::pending().await,
        }
    }

    fn longest(&self, job: &Job) -> Duration {
        job.policy.timeout * self.times
    }

    fn when_lost(&self) -> WhenLost {
        self.lost
    }

    fn billed(&self) -> bool {
        self.billed
    }

    fn estimate(&self, _job: &Job) -> Usage {
        Usage { input_tokens: 7, ..Usage::default() }
    }

    fn endpoint(&self) -> Option<Counts> {
        self.takes.map(|_| Counts::default())
    }

    fn limit_key(&self, _job: &Job) -> String {
        self.key.to_owned()
    }

    fn priced_as(&self, _job: &Job) -> Option<(String, String)> {
        let (provider, model) = self.key.split_once('/')?;
        Some((provider.to_owned(), model.to_owned()))
    }
}

fn answer(text: String) -> Outcome {
    Outcome::Success(Reply { status_code: 200, body: Body::Text(text), ..Reply::default() })
}

fn failure(class: FailureClass, status_code: u16) -> Play {
    let mut failure = Failure::new(class, "scripted", "as scripted");
    failure.status_code = Some(status_code);
    Play::Fail(failure)
}

/// A broker, what runs its jobs, and a worker's settings.
struct Rig {
    broker: Broker,
    faults: Arc<Faults>,
    runners: BTreeMap<&'static str, Vec<Arc<Scripted>>>,
    store: Option<Store>,
    settings: Settings,
    stop: Stop,
    board: Board,
    workers: JoinSet<anyhow::Result<Drained>>,
}

impl Rig {
    fn new() -> Self {
        let (broker, faults) = Faulty::broker();
        let mut settings = Settings::standard(WorkerId::random("w"), vec![(Queue::standard(), 1)]);
        settings.concurrency = 8;
        Self {
            broker,
            faults,
            runners: BTreeMap::new(),
            store: None,
            settings,
            stop: Stop::new(),
            board: Board::new(),
            workers: JoinSet::new(),
        }
    }

    /// Serves the model of this name with a script.
    fn runs(&mut self, model: &'static str, runner: Scripted) -> Arc<Scripted> {
        self.goes(model, [runner]).into_iter().next().unwrap()
    }

    /// Serves the model of this name by these routes.
    fn goes<const N: usize>(&mut self, model: &'static str, routes: [Scripted; N]) -> [Arc<Scripted>; N] {
        let routes = routes.map(Arc::new);
        self.runners.insert(model, routes.to_vec());
        routes
    }

    async fn submit(&self, model: &str, jobs: usize) -> Vec<JobId> {
        let jobs: Vec<_> = (0..jobs).map(|n| job(model, &format!("p{n}"))).collect();
        for batch in jobs.chunks(promptq_common::broker::MAX_BATCH) {
            self.broker.enqueue(batch).await.unwrap();
        }
        jobs.iter().map(|job| job.id).collect()
    }

    fn start(&mut self) {
        let none =
            ExecSettings { named: BTreeMap::new(), allow_inline: false, environment: Vec::new(), max_output: 1_000 };
        let latency = (Duration::from_secs(1), Duration::from_secs(1));
        let mock = MockSettings { seed: 1, latency, errors: 0.0, throttled: 0.0, tokens: (1, 1) };
        let settings = RunnerSettings { providers: BTreeMap::new(), models: BTreeMap::new(), exec: none, mock };
        let mut runners = Runners::new(settings).unwrap();
        for (model, runner) in
            self.runners.iter().flat_map(|(model, routes)| routes.iter().map(move |one| (model, one)))
        {
            runners = runners.with(model, Arc::<Scripted>::clone(runner));
        }
        let parts = Parts {
            broker: self.broker.clone(),
            store: self.store.clone(),
            runners: Arc::new(runners),
            settings: self.settings.clone(),
            board: self.board.clone(),
        };
        self.workers.spawn(run(parts, self.stop.clone()));
    }

    async fn left(&mut self) -> Drained {
        let left = timeout(Duration::from_secs(3_600), self.workers.join_next()).await;
        left.expect("the worker leaves").expect("it was started").expect("it does not break").expect("it could start")
    }

    async fn drain(&mut self) -> Drained {
        self.stop.drain();
        self.left().await
    }

    async fn view(&self, id: JobId) -> JobView {
        self.broker.ledger().fetch(&[id]).await.unwrap().remove(0).expect("the job is known")
    }

    async fn record(&self, id: JobId) -> Record {
        *self.view(id).await.record.expect("the job has ended")
    }

    /// Waits until every one of these jobs has ended, and says how.
    async fn ends(&self, ids: &[JobId]) -> Vec<End> {
        let mut ends = Vec::new();
        for id in ids {
            self.until(async || self.view(*id).await.record.is_some()).await;
            ends.push(self.record(*id).await.end);
        }
        ends
    }

    /// Waits, within an hour of paused time, until something holds.
    async fn until(&self, mut holds: impl AsyncFnMut() -> bool) {
        let waiting = async {
            while !holds().await {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(Duration::from_secs(3_600), waiting).await.expect("it comes true");
    }

    /// Waits until the worker shows a status that fits.
    async fn shows(&self, fits: impl Fn(&Status) -> bool) -> Status {
        let mut watch = self.board.watch();
        let seen = timeout(Duration::from_secs(3_600), watch.wait_for(fits)).await.expect("the status comes");
        seen.expect("the board is there").clone()
    }
}

/// A broker in memory, with its ledger.
pub(crate) fn broker() -> Broker {
    Faulty::broker().0
}

fn job(model: &str, text: &str) -> Job {
    Job::new(Queue::standard(), Work::prompt(Some(model), text))
}

/// Leases the one ready job in another worker's name.
async fn lease_as(rig: &Rig, worker: &WorkerId) -> Delivery {
    let terms = Terms { worker: worker.clone(), queues: vec![(Queue::standard(), 1)], lease: Duration::from_secs(45) };
    let mut consumer = rig.broker.consume(terms).await.unwrap();
    let want = Want { total: 1, caps: Vec::new(), rest: 1 };
    consumer.next(&want).await.unwrap().deliveries.pop().expect("a job is ready")
}
