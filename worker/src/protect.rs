//! Asks Amazon ECS not to stop this task while it has jobs: for scaling in and deployments, not for a host that goes.
//! Called when the first job begins, some seconds after the last one has ended, and before a grant runs out; no job ever
//! waits for it.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use promptq_common::tls;
use reqwest::Client;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::status::Status;
use crate::stop::Stop;

/// How often it is asked, and for how long.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// What one grant is for; asked for anew at half of it. A worker that is killed holds up nobody for longer.
    grant: Duration,
    /// Without a job for so long, a task is given up to whoever wants to stop it. Jobs often follow each other.
    linger: Duration,
    /// After a call that failed.
    again: Duration,
    /// A worker that is never without a job lets itself be stopped after so long, or no deployment would ever end.
    longest: Duration,
    /// What a call may take.
    patience: Duration,
}

const PACE: Pace = Pace {
    grant: Duration::from_secs(10 * 60),
    linger: Duration::from_secs(5),
    again: Duration::from_secs(15),
    longest: Duration::from_secs(2 * 60 * 60),
    patience: Duration::from_secs(2),
};

/// ECS's agent on this host.
#[derive(Debug)]
pub struct Agent {
    client: Client,
    url: String,
    pace: Pace,
}

/// What it says to a task that asks.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Granted,
    /// A deployment wants to stop this task, and it is too late to ask.
    Blocked,
}

impl Agent {
    /// At the address that ECS gives to its tasks, `ECS_AGENT_URI`.
    ///
    /// # Errors
    /// When no client can be made.
    pub fn new(address: &str) -> Result<Self> {
        Self::at_pace(address, PACE)
    }

    fn at_pace(address: &str, pace: Pace) -> Result<Self> {
        tls::install();
        // It is on this host, whatever proxies there are.
        let client = Client::builder().no_proxy().timeout(pace.patience).build();
        let url = format!("{}/task-protection/v1/state", address.trim_end_matches('/'));
        Ok(Self { client: client.context("cannot set up a client for ECS's agent")?, url, pace })
    }

    async fn put(&self, protected: bool) -> Result<Answer> {
        let body = if protected {
            json!({ "ProtectionEnabled": true, "ExpiresInMinutes": self.pace.grant.as_secs().div_ceil(60).max(1) })
        } else {
            json!({ "ProtectionEnabled": false })
        };
        let request = self.client.put(&self.url).header("content-type", "application/json").body(body.to_string());
        let answer = request.send().await.context("cannot reach ECS's agent")?;
        let status = answer.status();
        let text = answer.text().await.context("no answer of ECS's agent")?;
        let said: Value = serde_json::from_str(&text).unwrap_or_default();
        if said["failure"]["Reason"] == "DEPLOYMENT_BLOCKED" {
            return Ok(Answer::Blocked);
        }
        let is_so = status.is_success() && said["protection"]["ProtectionEnabled"] == protected;
        if !is_so {
            let why =
                ["failure", "error"].iter().find_map(|at| said[at]["Reason"].as_str().or(said[at]["Code"].as_str()));
            bail!("ECS's agent says {status} {}", why.unwrap_or("without a reason"));
        }
        Ok(Answer::Granted)
    }
}

/// Where protection stands.
#[derive(Debug)]
struct Stand {
    /// Since when it was granted without a pause.
    held: Option<Instant>,
    /// Since when there is no job.
    idle: Option<Instant>,
    /// When the grant is to be asked for anew.
    renew: Instant,
    /// Nothing is asked before.
    not_before: Instant,
}

/// Keeps protection in step with what a worker shows. Ends when the worker has, or when a deployment is to stop this
/// task: then the worker takes no more jobs, and its successor does.
pub async fn keep(agent: Agent, mut status: watch::Receiver<Status>, stop: Stop) {
    let now = Instant::now();
    let mut stand = Stand { held: None, idle: Some(now), renew: now, not_before: now };
    loop {
        let busy = status.borrow_and_update().running > 0;
        stand.idle = if busy { None } else { stand.idle.or_else(|| Some(Instant::now())) };
        let (wanted, due) = stand.wants(&agent.pace);
        if due.is_some_and(|due| due <= Instant::now()) {
            match agent.put(wanted).await {
                Ok(Answer::Granted) => stand.told(wanted, &agent.pace),
                Ok(Answer::Blocked) => {
                    tracing::info!("a deployment waits for this task to end: taking no more jobs");
                    stop.drain();
                    return;
                }
                Err(error) => {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        wanted,
                        "ECS was not told about this task; asking again"
                    );
                    stand.not_before = Instant::now() + agent.pace.again;
                }
            }
            continue;
        }
        tokio::select! {
            changed = status.changed() => if changed.is_err() { return },
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
        }
    }
}

impl Stand {
    /// Whether protection is wanted, and when the agent is to be told next, if time alone leads there.
    fn wants(&self, pace: &Pace) -> (bool, Option<Instant>) {
        let Some(since) = self.held else {
            return (true, self.idle.is_none().then_some(self.not_before));
        };
        let end = self.idle.map_or(since + pace.longest, |idle| idle + pace.linger);
        if end <= Instant::now() {
            return (false, Some(self.not_before));
        }
        (true, Some(end.min(self.renew).max(self.not_before)))
    }

    fn told(&mut self, protected: bool, pace: &Pace) {
        let now = Instant::now();
        tracing::debug!(protected, "told ECS whether this task may be stopped");
        self.renew = now + pace.grant / 2;
        // Whoever gave it up with jobs in hand leaves others the time to stop it.
        self.not_before = if protected || self.idle.is_some() { now } else { self.renew };
        self.held = protected.then(|| self.held.unwrap_or(now));
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::mpsc;
    use tokio::task::JoinSet;
    use tokio::time::timeout;

    use super::*;
    use crate::status::Board;
    use crate::stop::Phase;

    const LONG: Duration = Duration::from_secs(3_600);
    const PATIENCE: Duration = Duration::from_secs(20);
    const YES: &str = r#"{"protection":{"ProtectionEnabled":true,"ExpirationDate":"2026-11-22T12:00:00Z"}}"#;
    const NO: &str = r#"{"protection":{"ProtectionEnabled":false}}"#;
    const BROKEN: &str = r#"{"error":{"Code":"ServerException"}}"#;
    const BLOCKED: &str = r#"{"failure":{"Arn":"arn:x","Reason":"DEPLOYMENT_BLOCKED","Detail":null}}"#;
    const PACE: Pace = Pace {
        grant: LONG,
        linger: Duration::from_millis(50),
        again: Duration::from_millis(50),
        longest: LONG,
        patience: Duration::from_millis(300),
    };

    /// An agent that gives these answers in turn, the last one for ever, and a worker that it watches.
    struct Scene {
        board: Board,
        stop: Stop,
        asked: mpsc::Receiver<(String, Value)>,
        running: JoinSet<()>,
    }

    async fn agent(listener: TcpListener, answers: &[(u16, &str)], see: mpsc::Sender<(String, Value)>) {
        let mut kept = Vec::new();
        for turn in 0.. {
            let (mut stream, _) = listener.accept().await.unwrap();
            see.send(request(&mut stream).await).await.unwrap();
            let (status, answer) = answers[turn.min(answers.len() - 1)];
            if status == 0 {
                kept.push(stream);
                continue;
            }
            let length = answer.len();
            let whole = format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{answer}");
            stream.write_all(whole.as_bytes()).await.unwrap();
        }
    }

    /// Its first line, and its body.
    async fn request(stream: &mut TcpStream) -> (String, Value) {
        let (mut bytes, mut filled) = (vec![0; 4_096], 0);
        loop {
            filled += stream.read(&mut bytes[filled..]).await.unwrap();
            let text = String::from_utf8_lossy(&bytes[..filled]).into_owned();
            let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
            if let Ok(body) = serde_json::from_str(body) {
                return (head.lines().next().unwrap_or_default().to_owned(), body);
            }
        }
    }

    impl Scene {
        async fn new(pace: Pace, answers: &'static [(u16, &'static str)]) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}/", listener.local_addr().unwrap());
            let (see, asked) = mpsc::channel(64);
            let mut running = JoinSet::new();
            running.spawn(agent(listener, answers, see));
            let (board, stop) = (Board::new(), Stop::new());
            running.spawn(keep(Agent::at_pace(&url, pace).unwrap(), board.watch(), stop.clone()));
            Self { board, stop, asked, running }
        }

        fn runs(&self, running: u32) {
            self.board.show(Status { running, ..Status::default() });
        }

        /// What the agent was told next.
        async fn told(&mut self) -> bool {
            let (line, body) = timeout(PATIENCE, self.asked.recv()).await.unwrap().unwrap();
            assert_eq!(line, "PUT /task-protection/v1/state HTTP/1.1");
            body["ProtectionEnabled"].as_bool().unwrap()
        }

        async fn is_quiet(&mut self) {
            let heard = timeout(Duration::from_millis(200), self.asked.recv()).await;
            assert!(heard.is_err(), "{heard:?}");
        }
    }

    #[tokio::test]
    async fn it_is_told_when_jobs_begin_and_when_none_is_left() {
        let mut scene = Scene::new(PACE, &[(200, YES), (200, NO), (200, YES)]).await;
        scene.is_quiet().await;
        scene.runs(1);
        assert!(scene.told().await);
        scene.runs(7);
        scene.runs(2);
        scene.is_quiet().await;
        scene.runs(0);
        assert!(!scene.told().await);
        scene.is_quiet().await;
        scene.runs(1);
        assert!(scene.told().await);
    }

    #[tokio::test]
    async fn a_job_that_follows_at_once_changes_nothing() {
        let linger = Duration::from_secs(1);
        let mut scene = Scene::new(Pace { linger, ..PACE }, &[(200, YES)]).await;
        scene.runs(1);
        assert!(scene.told().await);
        scene.runs(0);
        scene.is_quiet().await;
        scene.runs(1);
        scene.is_quiet().await;
    }

    #[tokio::test]
    async fn a_grant_is_asked_for_anew_at_its_half_life() {
        let grant = Duration::from_millis(200);
        let mut scene = Scene::new(Pace { grant, ..PACE }, &[(200, YES)]).await;
        scene.runs(1);
        let begun = Instant::now();
        for _ in 0..4 {
            assert!(scene.told().await);
        }
        assert!(begun.elapsed() >= grant / 2 * 3, "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn an_agent_in_trouble_is_asked_again_and_holds_up_nobody() {
        let mut scene = Scene::new(PACE, &[(500, "oh"), (0, ""), (200, BROKEN), (200, YES), (200, NO)]).await;
        scene.runs(1);
        for _ in 0..4 {
            assert!(scene.told().await);
        }
        scene.is_quiet().await;
        assert_eq!(scene.stop.phase(), Phase::Running);
        scene.runs(0);
        assert!(!scene.told().await);
    }

    #[tokio::test]
    async fn a_worker_that_a_deployment_waits_for_takes_no_more_jobs() {
        let mut scene = Scene::new(PACE, &[(200, BLOCKED)]).await;
        scene.runs(1);
        assert!(scene.told().await);
        let mut phase = scene.stop.watch();
        timeout(PATIENCE, phase.wait_for(|phase| *phase == Phase::Draining)).await.unwrap().unwrap();
        scene.runs(0);
        scene.runs(1);
        scene.is_quiet().await;
        assert_eq!(scene.running.len(), 2);
    }

    #[tokio::test]
    async fn a_worker_that_is_never_idle_lets_itself_be_stopped_in_the_end() {
        let (grant, longest) = (Duration::from_millis(1_600), Duration::from_millis(300));
        let mut scene = Scene::new(Pace { grant, longest, ..PACE }, &[(200, YES), (200, NO), (200, YES)]).await;
        scene.runs(1);
        assert!(scene.told().await);
        let begun = Instant::now();
        assert!(!scene.told().await);
        assert!(begun.elapsed() >= Duration::from_millis(250), "{:?}", begun.elapsed());
        assert!(scene.told().await);
        assert!(begun.elapsed() >= grant / 2, "whoever waits has had the time: {:?}", begun.elapsed());
    }

    #[test]
    fn a_grant_is_for_whole_minutes() {
        let minutes = super::PACE.grant.as_secs().div_ceil(60).max(1);
        assert!((1..=2_880).contains(&minutes) && super::PACE.linger < super::PACE.grant / 2);
    }
}
