//! Real programs run as jobs: their ends, their limits, and what is left of them afterwards (nothing).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use promptq_common::broker::{LeaseId, WorkerId};
use promptq_common::job::Queue;
use promptq_common::outcome::FailureClass::{Crashed, Fatal, TimedOut, Transient};
use promptq_common::work::Prompt;
use tokio::time::{Instant, sleep};

use super::*;

pub(super) fn settings() -> ExecSettings {
    ExecSettings {
        named: std::collections::BTreeMap::default(),
        allow_inline: true,
        environment: Vec::new(),
        max_output: 100_000,
    }
}

fn shell(script: &str) -> Exec {
    Exec::new(["sh", "-c", script].map(str::to_owned).to_vec(), &settings()).unwrap()
}

pub(super) fn job(prompt: &str, timeout_ms: u64) -> Job {
    let mut job = Job::new(Queue::standard(), Work::prompt(None, prompt));
    job.policy.timeout = Duration::from_millis(timeout_ms);
    job
}

fn cx() -> RunContext {
    RunContext {
        attempt: 3,
        lease: LeaseId::random(),
        worker: WorkerId::random("w"),
        ear: None,
        stream: false,
        trace: None,
    }
}

pub(super) async fn run(exec: &Exec, prompt: &str) -> Result<String, Failure> {
    exec.attempt(&job(prompt, 20_000), &cx()).await.map(|reply| reply.text.unwrap())
}

#[tokio::test]
async fn the_prompt_comes_in_and_the_answer_goes_out() {
    assert_eq!(run(&Exec::inline("tr a-z A-Z", &settings()).unwrap(), "hello\n").await.unwrap(), "HELLO");
    assert_eq!(run(&shell(r"printf 'a\377b\r\n'"), "").await.unwrap(), "a\u{fffd}b");
    assert_eq!(run(&shell("printf 'two\n\n'"), "").await.unwrap(), "two\n");
    assert_eq!(run(&shell(r"printf 'a\0b'"), "").await.unwrap(), "a\0b");
}

#[tokio::test]
async fn a_program_is_told_what_it_was_caused_by() {
    const SAID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let place = promptq_common::telemetry::trace::Context::parse(SAID);
    for (trace, told) in [(place, SAID), (None, "")] {
        let cx = RunContext { trace, ..cx() };
        let said = shell("printf %s \"$TRACEPARENT\"").attempt(&job("", 20_000), &cx).await.unwrap().text;
        assert_eq!(said.as_deref(), Some(told));
    }
}

#[test]
fn system_text_comes_before_the_prompt_and_a_request_as_its_body() {
    let prompt = Prompt { text: "Hi".into(), system: Some("Be brief".into()), params: String::new() };
    assert_eq!(standard_input(&Work { model: None, input: Input::Prompt(prompt) }), "Be brief\n\nHi");
    let request = Input::Request { url: "/v1/responses".into(), body: "{ }".into() };
    assert_eq!(standard_input(&Work { model: None, input: request }), "{ }");
}

#[tokio::test]
async fn a_large_prompt_and_a_large_answer_pass_each_other() {
    let mut wide = settings();
    wide.max_output = 4 << 20;
    let prompt = "0123456789abcdef".repeat(200_000);
    assert_eq!(run(&Exec::inline("cat", &wide).unwrap(), &prompt).await.unwrap(), prompt);
}

#[tokio::test]
async fn a_program_need_not_read_its_prompt() {
    let prompt = "x".repeat(1 << 20);
    for script in ["exec 0<&-; echo done", "head -c 9 >/dev/null; echo done", "echo done"] {
        assert_eq!(run(&shell(script), &prompt).await.unwrap(), "done", "{script}");
    }
}

#[tokio::test]
async fn each_end_has_its_class() {
    let folder = tempfile::tempdir().unwrap();
    let plain_text = folder.path().join("text");
    fs::write(&plain_text, "no program").unwrap();
    fs::set_permissions(&plain_text, fs::Permissions::from_mode(0o700)).unwrap();
    for (script, class, code) in [
        ("exit 3", Transient, "exit_3"),
        ("no-such-program-here", Fatal, "command_not_found"),
        ("kill -SEGV $$", Crashed, "signal_11"),
        ("yes", Fatal, "output_too_large"),
    ] {
        let failure = run(&shell(script), "").await.unwrap_err();
        assert_eq!((failure.class, failure.code.as_str()), (class, code), "{script}");
    }
    for line in ["/no/such/program", "/etc/passwd", "/tmp", "/etc/passwd/sh", "cat a\0b", plain_text.to_str().unwrap()]
    {
        let failure = run(&Exec::inline(line, &settings()).unwrap(), "").await.unwrap_err();
        assert_eq!((failure.class, failure.code.as_str()), (Fatal, "command_not_found"), "{line}");
    }
    for line in ["", "  ", "'", "''"] {
        assert_eq!(Exec::inline(line, &settings()).unwrap_err().code, "bad_command", "{line:?}");
    }
}

#[tokio::test]
async fn a_failure_quotes_the_last_line_of_standard_error_and_no_more() {
    let failure = run(&shell("seq 100000 >&2; printf 'disk \\033[1mfull\\n\\n' >&2; exit 1"), "").await.unwrap_err();
    assert_eq!(failure.detail, "sh exited with 1: disk [1mfull");
    let failure = run(&shell("yes | tr -d '\\n' | head -c 9000 >&2; exit 1"), "").await.unwrap_err();
    assert!(failure.detail.len() < 230, "{}", failure.detail.len());
}

#[tokio::test]
async fn a_failure_quotes_neither_the_prompt_nor_a_variable_let_through() {
    let said = "sh exited with 3; its last words quote the job and are left out";
    let failure = run(&shell("cat >&2; exit 3"), "what Ada Lovelace told nobody").await.unwrap_err();
    assert_eq!(failure.detail, said);
    // Set for every test by cargo and nextest.
    let mut more = settings();
    more.environment.push("CARGO_MANIFEST_DIR".to_owned());
    let argv = ["sh", "-c", "echo $CARGO_MANIFEST_DIR >&2; exit 3"].map(str::to_owned).to_vec();
    assert_eq!(run(&Exec::new(argv, &more).unwrap(), "").await.unwrap_err().detail, said);
}

#[tokio::test]
async fn only_the_end_of_standard_error_is_kept() {
    let exec = shell("seq 100000 >&2");
    let mut child = exec.command(&job("", 20_000), &cx()).spawn().unwrap();
    let mut pipes = Pipes::of(&mut child, 0);
    pipes.flow(b"").await.unwrap();
    assert!(pipes.stderr().len() <= 4_096 && pipes.stderr().ends_with(b"99999\n100000\n"));
}

#[tokio::test]
async fn only_the_allowed_environment_is_seen() {
    let seen = run(&shell("env"), "").await.unwrap();
    let names: Vec<_> = seen.lines().filter_map(|line| line.split_once('=').map(|(name, _)| name)).collect();
    for name in &names {
        let known = ["PATH", "HOME", "LANG", "TZ", "PROMPTQ_JOB_ID", "PROMPTQ_ATTEMPT", "PWD", "SHLVL", "_", "OLDPWD"];
        assert!(known.contains(name), "{name}");
    }
    assert!(seen.contains("PROMPTQ_ATTEMPT=3"));
    // Set for every test by cargo and nextest.
    let mut more = settings();
    more.environment.push("CARGO_MANIFEST_DIR".to_owned());
    let seen = run(&Exec::inline("env", &more).unwrap(), "").await.unwrap();
    assert!(seen.contains("CARGO_MANIFEST_DIR="), "{names:?}");
}

#[tokio::test]
async fn what_a_program_leaves_running_does_not_hold_its_answer_back() {
    let folder = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    let script = format!("sleep 300 & echo $! > {}/pid; echo done", folder.path().display());
    assert_eq!(run(&shell(&script), "").await.unwrap(), "done");
    assert!(begun.elapsed() < group::GRACE, "the group is killed, not waited for");
    gone(&pid_in(folder.path()).await).await;
}

#[tokio::test]
async fn a_timeout_stops_the_whole_group_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().display();
    let script = format!("trap 'echo bye > {at}/bye; exit' TERM; sleep 300 & echo $! > {at}/pid; wait");
    let failure = shell(&script).attempt(&job("", 500), &cx()).await.unwrap_err();
    assert_eq!((failure.class, failure.code.as_str()), (TimedOut, "timeout"));
    assert!(folder.path().join("bye").exists(), "SIGTERM came first");
    gone(&pid_in(folder.path()).await).await;
}

#[tokio::test]
async fn who_ignores_sigterm_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let script = format!("trap '' TERM; echo $$ > {}/pid; while :; do sleep 1; done", folder.path().display());
    let begun = Instant::now();
    let failure = shell(&script).attempt(&job("", 500), &cx()).await.unwrap_err();
    assert_eq!(failure.class, TimedOut);
    assert!(begun.elapsed() < Duration::from_secs(10));
    gone(&pid_in(folder.path()).await).await;
}

/// A program whose grandchild is deaf to SIGTERM and writes to a file for ever.
fn stubborn(folder: &Path) -> Exec {
    let at = folder.display();
    let grandchild = format!("trap \"\" TERM; while :; do echo more >> {at}/file; sleep 0.01; done");
    shell(&format!("trap '' TERM; sh -c '({grandchild}) & echo $! > {at}/pid; wait' & wait"))
}

async fn silent(folder: &Path) {
    gone(&pid_in(folder).await).await;
    assert!(!fs::read(folder.join("file")).unwrap().is_empty(), "it never got to write");
}

#[tokio::test]
async fn a_timeout_kills_grandchildren_that_ignore_sigterm() {
    let folder = tempfile::tempdir().unwrap();
    let failure = stubborn(folder.path()).attempt(&job("", 500), &cx()).await.unwrap_err();
    assert_eq!(failure.class, TimedOut);
    silent(folder.path()).await;
}

#[tokio::test]
async fn too_much_output_kills_grandchildren() {
    let folder = tempfile::tempdir().unwrap();
    let script = format!("sleep 300 & echo $! > {}/pid; yes", folder.path().display());
    assert_eq!(run(&shell(&script), "").await.unwrap_err().code, "output_too_large");
    gone(&pid_in(folder.path()).await).await;
}

#[tokio::test]
async fn dropping_the_run_kills_grandchildren() {
    let folder = tempfile::tempdir().unwrap();
    let exec = stubborn(folder.path());
    let file = folder.path().join("file");
    let (job, cx) = (job("", 60_000), cx());
    {
        let mut running = Box::pin(exec.run(&job, &cx));
        tokio::select! {
            outcome = &mut running => panic!("{outcome:?}"),
            () = written(&file) => {}
        }
    }
    silent(folder.path()).await;
}

async fn written(file: &Path) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while fs::read(file).map_or(true, |bytes| bytes.is_empty()) {
        assert!(Instant::now() < deadline, "nothing was written");
        sleep(Duration::from_millis(10)).await;
    }
}

async fn pid_in(folder: &Path) -> String {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match fs::read_to_string(folder.join("pid")) {
            Ok(pid) if pid.ends_with('\n') => return pid.trim().to_owned(),
            _ if Instant::now() > deadline => panic!("the program never said its number"),
            _ => sleep(Duration::from_millis(10)).await,
        }
    }
}

/// A zombie that nobody has reaped yet is gone too.
async fn gone(pid: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(stat) if !stat.contains(") Z ") => {}
            _ => return,
        }
        assert!(Instant::now() < deadline, "process {pid} still runs");
        sleep(Duration::from_millis(10)).await;
    }
}
