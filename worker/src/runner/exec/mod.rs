//! Runs a program as a job: prompt on standard input, answer on standard output, exit code for the verdict.
//! It is in a process group of its own, in `group.rs`, and nothing of that group outlives the run.

mod group;
mod limit;
mod pipes;
mod reset;

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use async_trait::async_trait;
use promptq_common::config::{self, LimitTexts};
use promptq_common::job::Job;
use promptq_common::outcome::{Body, Failure, FailureClass, Outcome, Reply};
use promptq_common::store::ReuseKey;
use promptq_common::work::{Input, Work};
use rustix::io::Errno;
use tokio::process::Command;
use tokio::time::timeout;

use self::group::Group;
use self::limit::{Ended, reached};
use self::pipes::{Pipes, TooLarge};
use super::{ExecSettings, RunContext, Runner, WhenLost};
use crate::echo::echoes;

/// What every command sees of this process's environment.
const ENVIRONMENT: [&str; 4] = ["PATH", "HOME", "LANG", "TZ"];
/// How much of the last line of standard error a failure quotes, in characters.
const QUOTED: usize = 200;

/// One command, ready to run any number of times.
#[derive(Clone)]
pub struct Exec {
    /// What shares its account.
    key: String,
    argv: Vec<String>,
    environment: Vec<(String, OsString)>,
    max_output: usize,
    limit_texts: Option<LimitTexts>,
}

impl Exec {
    /// The command `argv`, never seen by a shell.
    ///
    /// # Errors
    /// `fatal`, `bad_command` when there is no program in it.
    pub fn new(argv: Vec<String>, settings: &ExecSettings) -> Result<Self, Failure> {
        let Some(program) = argv.first().filter(|program| !program.is_empty()) else {
            return Err(Failure::new(
                FailureClass::Fatal,
                "bad_command",
                "the command is empty; hint: exec:PROGRAM ARGS",
            ));
        };
        let key = format!("exec:{}", program.rsplit('/').next().unwrap_or(program));
        let names = ENVIRONMENT.into_iter().chain(settings.environment.iter().map(String::as_str));
        // Handed on as it is, not read as a setting.
        let environment = names.filter_map(|name| Some((name.to_owned(), std::env::var_os(name)?))).collect();
        Ok(Self { key, argv, environment, max_output: settings.max_output, limit_texts: None })
    }

    /// The command of `[runners.NAME]`, whose name is its account's: two of one program may have two accounts.
    ///
    /// # Errors
    /// As [`Exec::new`].
    pub fn named(name: &str, command: &config::Command, settings: &ExecSettings) -> Result<Self, Failure> {
        let exec = Self::new(command.argv.clone(), settings)?;
        Ok(Self { key: format!("exec:{name}"), limit_texts: command.limit_texts, ..exec })
    }

    /// The command of a model `exec:ARGV`, split as a shell would.
    ///
    /// # Errors
    /// `fatal`, `bad_command` when its quotes do not match or it is empty.
    pub fn inline(line: &str, settings: &ExecSettings) -> Result<Self, Failure> {
        let argv = shlex::split(line).ok_or_else(|| {
            let detail =
                "the command's quotes do not match; hint: it is split as a shell would, but never given to one";
            Failure::new(FailureClass::Fatal, "bad_command", detail)
        })?;
        Self::new(argv, settings)
    }

    fn command(&self, job: &Job, cx: &RunContext) -> Command {
        let mut command = Command::new(self.program());
        command
            .args(self.argv.iter().skip(1))
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .env("PROMPTQ_JOB_ID", job.id.to_string())
            .env("PROMPTQ_ATTEMPT", cx.attempt.to_string())
            .envs(cx.trace.map(|place| ("TRACEPARENT", place.to_string())))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        command
    }

    fn program(&self) -> &str {
        self.argv.first().map_or("", String::as_str)
    }

    async fn attempt(&self, job: &Job, cx: &RunContext) -> Result<Reply, Failure> {
        let mut child = self.command(job, cx).spawn().map_err(|error| self.not_started(&error))?;
        let mut group = Group::of(&child);
        let mut pipes = Pipes::of(&mut child, self.max_output);
        let prompt = standard_input(&job.work);
        let ended = timeout(job.policy.timeout, async {
            let mut flow = Box::pin(pipes.flow(prompt.as_bytes()));
            tokio::select! {
                status = child.wait() => {
                    // The rest of its group goes with it; its last words may still be in the pipes.
                    group.kill();
                    timeout(group::GRACE, &mut flow).await.unwrap_or(Ok(()))?;
                    Ok::<_, TooLarge>(status)
                }
                flown = &mut flow => {
                    flown?;
                    let status = child.wait().await;
                    group.kill();
                    Ok(status)
                }
            }
        })
        .await;
        match ended {
            Ok(Ok(Ok(status))) => self.judge(status, &pipes, &prompt),
            Ok(Ok(Err(error))) => Err(Failure::new(FailureClass::Crashed, "wait_failed", &error.to_string())),
            Ok(Err(TooLarge)) => {
                let detail = format!("{} wrote more than {} bytes to standard output", self.program(), self.max_output);
                Err(Failure::new(FailureClass::Fatal, "output_too_large", &detail))
            }
            Err(_) => {
                group.stop(&mut child).await;
                Err(self.timed_out(job.policy.timeout))
            }
        }
    }

    fn judge(&self, status: ExitStatus, pipes: &Pipes, prompt: &str) -> Result<Reply, Failure> {
        if let Some(failure) = self.limited(status, pipes, prompt) {
            return Err(failure);
        }
        let failure = |class, code: &str, what: String| {
            let said = match last_line(pipes.stderr()) {
                said if said.is_empty() => said,
                said if self.repeats(&said, prompt) => "; its last words quote the job and are left out".to_owned(),
                said => format!(": {said}"),
            };
            Failure::new(class, code, &format!("{} {what}{said}", self.program()))
        };
        match (status.code(), status.signal()) {
            (Some(0), _) => {
                let text = String::from_utf8_lossy(pipes.stdout());
                let text =
                    text.strip_suffix('\n').map_or(&*text, |cut| cut.strip_suffix('\r').unwrap_or(cut)).to_owned();
                Ok(Reply { status_code: 200, body: Body::Text(text.clone()), text: Some(text), ..Reply::default() })
            }
            // What a shell and `env` say for "not executable" and "not found".
            (Some(code @ (126 | 127)), _) => {
                Err(failure(FailureClass::Fatal, "command_not_found", format!("exited with {code}")))
            }
            (Some(code), _) => {
                Err(failure(FailureClass::Transient, &format!("exit_{code}"), format!("exited with {code}")))
            }
            (None, signal) => {
                let signal = signal.unwrap_or(0);
                Err(failure(
                    FailureClass::Crashed,
                    &format!("signal_{signal}"),
                    format!("was killed by signal {signal}"),
                ))
            }
        }
    }

    /// The failure of a run that met its account's limit, and says so as the settings expect.
    fn limited(&self, status: ExitStatus, pipes: &Pipes, prompt: &str) -> Option<Failure> {
        let ended = Ended { code: status.code()?, stdout: pipes.stdout(), stderr: pipes.stderr() };
        let reached = reached(self.limit_texts?, ended, |said| self.repeats(said, prompt))?;
        let said = match &reached.said {
            said if self.repeats(said, prompt) => "its words quote the job and are left out",
            said => said.as_str(),
        };
        Some(Failure { retry_after: reached.wait, ..Failure::new(FailureClass::Account, "usage_limit", said) })
    }

    /// Whether the words hold a piece of the prompt or of a variable that was let through for this program.
    fn repeats(&self, said: &str, prompt: &str) -> bool {
        let own = self.environment.iter().filter(|(name, _)| !ENVIRONMENT.contains(&name.as_str()));
        echoes(said, prompt) || own.into_iter().any(|(_, value)| echoes(said, &value.to_string_lossy()))
    }

    fn not_started(&self, error: &io::Error) -> Failure {
        let program = self.program();
        // An argument with a NUL in it comes without a number.
        let never = Errno::from_io_error(error).map_or(error.kind() == io::ErrorKind::InvalidInput, |errno| {
            [
                Errno::NOENT,
                Errno::NOTDIR,
                Errno::ISDIR,
                Errno::ACCESS,
                Errno::PERM,
                Errno::NOEXEC,
                Errno::TOOBIG,
                Errno::LOOP,
                Errno::NAMETOOLONG,
            ]
            .contains(&errno)
        });
        if never {
            let detail = format!("cannot run {program}: {error}; hint: is it installed where the worker runs?");
            return Failure::new(FailureClass::Fatal, "command_not_found", &detail);
        }
        // Out of processes, memory or file descriptors: the host's trouble, not the job's.
        Failure::new(FailureClass::Transient, "spawn_failed", &format!("cannot run {program}: {error}"))
    }

    fn timed_out(&self, after: Duration) -> Failure {
        let detail = format!("{} ran longer than {}", self.program(), promptq_common::time::format_duration(after));
        Failure::new(FailureClass::TimedOut, "timeout", &detail)
    }
}

/// By hand: neither arguments nor the values of variables are shown.
impl std::fmt::Debug for Exec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exec").field("program", &self.program()).finish_non_exhaustive()
    }
}

#[async_trait]
impl Runner for Exec {
    async fn run(&self, job: &Job, cx: &RunContext) -> Outcome {
        match self.attempt(job, cx).await {
            Ok(reply) => Outcome::Success(reply),
            Err(failure) => Outcome::Failure(failure),
        }
    }

    fn when_lost(&self) -> WhenLost {
        WhenLost::Stop
    }

    fn limit_key(&self, _job: &Job) -> String {
        self.key.clone()
    }

    /// The command and what it is given; not its environment, which differs from host to host.
    fn reuse_key(&self, job: &Job) -> Option<ReuseKey> {
        let given = standard_input(&job.work);
        let parts: Vec<_> = ["exec", &given].into_iter().chain(self.argv.iter().map(String::as_str)).collect();
        Some(ReuseKey::new(job.tenant.as_deref(), &parts))
    }
}

/// The prompt's text, the system text before it; of a ready-made request, its body.
fn standard_input(work: &Work) -> String {
    match &work.input {
        Input::Prompt(prompt) => match &prompt.system {
            Some(system) => format!("{system}\n\n{}", prompt.text),
            None => prompt.text.clone(),
        },
        Input::Request { body, .. } => body.clone(),
    }
}

fn last_line(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or("");
    line.chars().filter(|c| !c.is_control()).take(QUOTED).collect()
}

#[cfg(test)]
mod limit_tests;
#[cfg(test)]
mod tests;
