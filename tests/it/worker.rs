//! `promptq-worker` as a process: how it takes jobs, how it leaves, and with which code.

use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use promptq_common::broker::{Access, Broker};
use promptq_common::job::{Job, JobId, Queue};
use promptq_common::ledger::JobView;
use promptq_common::record::State;
use promptq_common::work::Work;
use promptq_tests::binary::binary;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

struct Home {
    folder: TempDir,
    broker: Broker,
}

impl Home {
    async fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let broker = Broker::connect(&Access::new(&url(&folder)).unwrap()).await.unwrap();
        Self { folder, broker }
    }

    async fn submit(&self, model: &str) -> JobId {
        let job = Job::new(Queue::standard(), Work::prompt(Some(model), "a prompt"));
        self.broker.enqueue(std::slice::from_ref(&job)).await.unwrap();
        job.id
    }

    fn start(&self, args: &[&str]) -> Child {
        let mut command = Command::new(binary("promptq-worker"));
        command.args(["--broker", &url(&self.folder)]).args(args).env_clear().env("HOME", self.folder.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    async fn view(&self, id: JobId) -> JobView {
        self.broker.ledger().fetch(&[id]).await.unwrap().remove(0).unwrap()
    }

    async fn until(&self, id: JobId, state: State) {
        let began = Instant::now();
        while self.view(id).await.state != state {
            assert!(began.elapsed() < Duration::from_secs(20), "{state} never came");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn url(folder: &TempDir) -> String {
    format!("sqlite://{}/q.db", folder.path().display())
}

fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

#[track_caller]
fn exits(child: Child, code: i32) -> Output {
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(code), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_lets_what_runs_finish_and_takes_no_more() {
    let home = Home::new().await;
    let running = home.submit("mock:latency=1s..1s").await;
    let worker = home.start(&["--concurrency", "1"]);
    home.until(running, State::Running).await;
    let waiting = home.submit("mock").await;
    signal(&worker, Signal::TERM);
    exits(worker, 0);
    assert_eq!(home.view(running).await.state, State::Succeeded);
    let waiting = home.view(waiting).await;
    assert_eq!((waiting.state, waiting.deaths), (State::Queued, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_cut_by_the_drain_time_waits_again_at_once() {
    let home = Home::new().await;
    let id = home.submit("mock:latency=60s..60s").await;
    let worker = home.start(&["--drain-timeout", "200ms"]);
    home.until(id, State::Running).await;
    let asked = Instant::now();
    signal(&worker, Signal::INT);
    exits(worker, 124);
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    let view = home.view(id).await;
    assert_eq!((view.state, view.attempts, view.deaths), (State::Queued, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_signal_does_not_wait() {
    let home = Home::new().await;
    let id = home.submit("mock:latency=60s..60s").await;
    let worker = home.start(&[]);
    home.until(id, State::Running).await;
    let asked = Instant::now();
    signal(&worker, Signal::TERM);
    // Two signals of one kind that are pending together are one.
    signal(&worker, Signal::INT);
    exits(worker, 124);
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn it_leaves_by_itself_when_told_to() {
    let home = Home::new().await;
    for flags in [&["--once"][..], &["--max-jobs", "1"], &["--exit-when-idle", "1s"]] {
        let id = home.submit("mock").await;
        exits(home.start(flags), 0);
        assert_eq!(home.view(id).await.state, State::Succeeded, "{flags:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_workers_stay_for_the_jobs_of_those_that_were_killed() {
    let home = Home::new().await;
    let mut killed = Vec::new();
    let mut ids = Vec::new();
    for _ in 0..2 {
        let id = home.submit("mock:latency=2s..2s").await;
        killed.push(home.start(&["--concurrency", "1", "--lease", "6s", "--heartbeat", "1s"]));
        home.until(id, State::Running).await;
        ids.push(id);
    }
    let survivors = [(); 2].map(|()| home.start(&["--exit-when-idle", "500ms"]));
    for mut worker in killed {
        worker.kill().unwrap();
        worker.wait().unwrap();
    }
    for worker in survivors {
        exits(worker, 0);
    }
    for id in ids {
        let view = home.view(id).await;
        assert_eq!((view.state, view.deaths), (State::Succeeded, 1));
    }
    assert!(home.broker.ledger().workers().await.unwrap().len() <= 2, "only the killed ones count as alive");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_costs_no_job_a_death() {
    let home = Home::new().await;
    let id = home.submit("exec:sleep 60").await;
    for _ in 0..3 {
        let worker = home.start(&["--allow-exec"]);
        home.until(id, State::Running).await;
        signal(&worker, Signal::TERM);
        // Two signals of one kind that are pending together are one.
        signal(&worker, Signal::INT);
        exits(worker, 124);
        let view = home.view(id).await;
        assert_eq!((view.state, view.attempts, view.deaths), (State::Queued, 0, 0));
    }
    assert!(home.broker.ledger().workers().await.unwrap().is_empty(), "all have left");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_settings_are_one_error_and_code_2() {
    let home = Home::new().await;
    let output = exits(home.start(&["--lease", "5s"]), 2);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with("error: ") && said.contains("worker.heartbeat"), "{said}");
    exits(home.start(&["--no-such-flag"]), 2);
}
