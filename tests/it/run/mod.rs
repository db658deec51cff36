//! `promptq run` and `submit` as processes: what they write, how they end, and how a run is gone on with after a crash.

mod ends;
mod mistakes;
mod reuse;

use std::collections::BTreeMap;
use std::io::{BufRead as _, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use promptq_tests::binary::binary;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// A home of its own for each test: database, locks, inputs and outputs.
struct Home(TempDir);

impl Home {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(binary(program));
        command
            .args(args)
            .env_clear()
            .env("HOME", self.0.path())
            .env("PATH", "/usr/bin:/bin")
            .current_dir(self.0.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn promptq(&self, args: &[&str]) -> Ended {
        Ended::of(&self.command("promptq", args).output().unwrap())
    }

    fn start(&self, args: &[&str]) -> Child {
        self.command("promptq", args).spawn().unwrap()
    }

    fn rows(&self, name: &str, count: usize) {
        let text =
            (1..=count).fold(String::new(), |text, n| text + &format!("{{\"prompt\":\"row {n}\",\"id\":\"r{n}\"}}\n"));
        std::fs::write(self.path(name), text).unwrap();
    }

    /// The states of each row in a file of results.
    fn states(&self, name: &str) -> BTreeMap<String, Vec<String>> {
        let mut states: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for line in std::fs::read_to_string(self.path(name)).unwrap().lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            let id = line["custom_id"].as_str().unwrap().to_owned();
            states.entry(id).or_default().push(line["promptq"]["state"].as_str().unwrap().to_owned());
        }
        states
    }

    #[track_caller]
    fn assert_each_once(&self, name: &str, count: usize, state: &str) {
        let states = self.states(name);
        assert_eq!(states.len(), count);
        let other: Vec<_> = states.iter().filter(|(_, states)| **states != [state]).collect();
        assert!(other.is_empty(), "{other:?}");
    }
}

struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ended {
    fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        Self { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }

    #[track_caller]
    fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    #[track_caller]
    fn says(self, what: &str) -> Self {
        assert!(self.stderr.contains(what), "no {what:?} in: {}", self.stderr);
        self
    }
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

#[track_caller]
fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not come");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

fn lines(path: &Path) -> usize {
    std::fs::read(path).map_or(0, |bytes| String::from_utf8_lossy(&bytes).matches('\n').count())
}

fn end(child: Child) -> Ended {
    Ended::of(&child.wait_with_output().unwrap())
}

fn example(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../producer/examples").join(name).to_str().unwrap().to_owned()
}

const SLOW: &str = "mock:latency=20ms..60ms";

#[test]
fn a_newcomers_first_command_gives_one_result_per_row() {
    let home = Home::new();
    let reviews = example("reviews.csv");
    let args = ["run", &reviews, "-t", "Sentiment of: {{text}}", "--id-field", "id", "-m", "mock", "-o", "out.jsonl"];
    home.promptq(&args).exits(0).says("done: 30 succeeded");
    home.assert_each_once("out.jsonl", 30, "succeeded");
    let mode = std::fs::metadata(home.path("out.jsonl")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "answers are the owner's alone");
    let before = std::fs::read(home.path("out.jsonl")).unwrap();
    home.promptq(&args).exits(0).says("0 new, 30 already known");
    assert_eq!(std::fs::read(home.path("out.jsonl")).unwrap(), before, "nothing was written or paid again");
}

#[test]
fn every_kind_of_example_runs() {
    let home = Home::new();
    for name in ["prompts.jsonl", "openai-batch.jsonl", "docs/*.md"] {
        home.promptq(&["run", &example(name), "-m", "mock", "-o", "-"]).exits(0);
    }
    let words = home.promptq(&["run", &example("docs/bees.md"), "-m", "exec:wc -w"]).exits(0);
    let line: Value = serde_json::from_str(&words.stdout).unwrap();
    assert_eq!(line["promptq"]["text"].as_str().unwrap().trim(), "37");
}

#[test]
fn a_run_killed_in_the_middle_goes_on_and_every_row_is_written_once() {
    let home = Home::new();
    home.rows("rows.jsonl", 400);
    let args = ["run", "rows.jsonl", "-m", SLOW, "-o", "out.jsonl", "--concurrency", "8"];
    for least in [20, 150] {
        let mut child = home.start(&args);
        wait_until("results", || lines(&home.path("out.jsonl")) >= least);
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let began = Instant::now();
    home.promptq(&args).exits(0).says("already known");
    assert!(began.elapsed() < Duration::from_secs(30), "the dead run's leases were recovered at once");
    home.assert_each_once("out.jsonl", 400, "succeeded");
}

#[test]
fn an_output_that_was_touched_is_left_alone() {
    let home = Home::new();
    home.rows("rows.jsonl", 20);
    let args = ["run", "rows.jsonl", "-m", "mock", "-o", "out.jsonl"];
    home.promptq(&args).exits(0);
    let mut text = std::fs::read_to_string(home.path("out.jsonl")).unwrap();
    text = text.replacen("succeeded", "succeeder", 20);
    std::fs::write(home.path("out.jsonl"), &text).unwrap();
    let changed = home.promptq(&args).exits(6).says("error[output-changed]");
    let changed = changed.says("--overwrite writes it again from the stored results; nothing is paid twice");
    changed.says("another -o is another run, which pays for every job again");
    assert_eq!(std::fs::read_to_string(home.path("out.jsonl")).unwrap(), text);
    std::fs::write(home.path("other.jsonl"), "mine\n").unwrap();
    home.promptq(&["run", "rows.jsonl", "-m", "mock", "-o", "other.jsonl"])
        .exits(6)
        .says("is not of this run")
        .says("its jobs are new");
    let again = [&args[..], &["--overwrite"]].concat();
    home.promptq(&again).exits(0).says("20 already known");
    home.assert_each_once("out.jsonl", 20, "succeeded");
    std::fs::remove_file(home.path("out.jsonl")).unwrap();
    home.promptq(&args).exits(0).says("20 already known");
    home.assert_each_once("out.jsonl", 20, "succeeded");
}

#[test]
fn a_second_run_of_the_same_is_refused_while_the_first_works() {
    let home = Home::new();
    home.rows("rows.jsonl", 200);
    let args = ["run", "rows.jsonl", "-m", SLOW, "-o", "out.jsonl", "--concurrency", "4"];
    let first = home.start(&args);
    wait_until("results", || lines(&home.path("out.jsonl")) >= 1);
    home.promptq(&args).exits(6).says("error[running]");
    let other = ["run", "rows.jsonl", "-m", "mock", "-o", "out.jsonl"];
    home.promptq(&other).exits(6).says("the output file is in use");
    end(first).exits(0);
    home.assert_each_once("out.jsonl", 200, "succeeded");
}

#[test]
fn the_first_interrupt_drains_and_the_same_command_goes_on() {
    let home = Home::new();
    home.rows("rows.jsonl", 300);
    let args = ["run", "rows.jsonl", "-m", SLOW, "-o", "out.jsonl", "--concurrency", "4"];
    let child = home.start(&args);
    wait_until("results", || lines(&home.path("out.jsonl")) >= 10);
    signal(&child, Signal::INT);
    end(child).exits(130).says("the same command goes on");
    let drained = lines(&home.path("out.jsonl"));
    assert!((10..300).contains(&drained), "{drained}");
    home.promptq(&args).exits(0);
    home.assert_each_once("out.jsonl", 300, "succeeded");
}

#[test]
fn the_second_interrupt_leaves_at_once_and_loses_nothing() {
    let home = Home::new();
    home.rows("rows.jsonl", 8);
    let model = "exec:sh -c 'test -e quick || { touch started; sleep 20; }'";
    let args = ["run", "rows.jsonl", "-m", model, "-o", "out.jsonl", "--concurrency", "8"];
    let mut child = home.start(&args);
    wait_until("a running job", || home.path("started").exists());
    let began = Instant::now();
    signal(&child, Signal::INT);
    let mut talk = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("Ctrl-C again") {
        line.clear();
        assert!(talk.read_line(&mut line).unwrap() > 0, "it left without a word");
    }
    signal(&child, Signal::INT);
    end(child).exits(130);
    assert!(began.elapsed() < Duration::from_secs(15), "it did not wait for what runs");
    std::fs::write(home.path("quick"), "").unwrap();
    home.promptq(&args).exits(0);
    home.assert_each_once("out.jsonl", 8, "succeeded");
}

#[test]
fn dead_rows_have_a_line_and_a_second_chance() {
    let home = Home::new();
    home.rows("rows.jsonl", 12);
    let args = ["run", "rows.jsonl", "-m", "exec:test -e ready", "--attempts", "1", "-o", "out.jsonl"];
    home.promptq(&args).exits(3).says("done: 0 succeeded, 12 dead").says("promptq dead groups");
    home.assert_each_once("out.jsonl", 12, "dead");
    let line = std::fs::read_to_string(home.path("out.jsonl")).unwrap();
    let line: Value = serde_json::from_str(line.lines().next().unwrap()).unwrap();
    assert!(line["response"].is_null() && line["error"]["code"].is_string(), "{line}");
    home.promptq(&args).exits(3);
    home.promptq(&[&args[..], &["--allow-failures"]].concat()).exits(0);
    std::fs::write(home.path("ready"), "").unwrap();
    home.promptq(&args).exits(3);
    home.promptq(&[&args[..], &["--retry-dead"]].concat()).exits(0).says("12 jobs of an earlier run tried again");
    home.assert_each_once("out.jsonl", 12, "succeeded");
    home.promptq(&args).exits(0);
    home.assert_each_once("out.jsonl", 12, "succeeded");
}

#[test]
fn too_many_dead_stop_the_run() {
    let home = Home::new();
    home.rows("rows.jsonl", 500);
    let args = ["run", "rows.jsonl", "-m", "exec:false", "--attempts", "1", "--max-errors", "10", "--concurrency", "2"];
    let ended = home.promptq(&[&args[..], &["-o", "out.jsonl"]].concat()).exits(9).says("error[max-errors]");
    assert!(lines(&home.path("out.jsonl")) < 500, "{}", ended.stderr);
}

#[test]
fn a_bad_input_leaves_nothing_behind() {
    let home = Home::new();
    home.rows("rows.jsonl", 3);
    let mut file = std::fs::OpenOptions::new().append(true).open(home.path("rows.jsonl")).unwrap();
    file.write_all(b"{\"prompt\":\"unterminated\n").unwrap();
    let bad = home.promptq(&["run", "rows.jsonl", "-m", "mock", "-o", "out.jsonl"]).exits(2).says("--> rows.jsonl:4:");
    assert!(bad.stderr.contains("nothing was enqueued") && bad.stderr.contains("hint:"), "{}", bad.stderr);
    assert!(!home.path("out.jsonl").exists());
    home.promptq(&["run", "none.jsonl", "-m", "mock"]).exits(2).says("cannot read none.jsonl");
    home.promptq(&["run", "rows.jsonl", "-m", "mock", "-o", "out.jsonl", "--skip-invalid"])
        .exits(0)
        .says("1 invalid row");
    home.assert_each_once("out.jsonl", 3, "succeeded");
}

#[test]
fn standard_input_goes_in_and_results_come_out() {
    let home = Home::new();
    let mut child =
        home.command("promptq", &["run", "-", "-m", "exec:tr a-z A-Z", "-q"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"one\n\ntwo\n").unwrap();
    let ended = end(child).exits(0);
    let mut texts: Vec<_> = ended
        .stdout
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["promptq"]["text"].as_str().unwrap().to_owned())
        .collect();
    texts.sort();
    assert_eq!(texts, ["ONE", "TWO"]);
}

#[test]
fn a_stream_is_enqueued_as_it_comes_up_to_the_first_fault() {
    let home = Home::new();
    let args = ["run", "-", "--stream", "-m", "mock:latency=0", "-o", "out.jsonl"];
    let mut child = home.command("promptq", &args).stdin(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"{\"prompt\":\"one\"}\n").unwrap();
    wait_until("the first answer, before the second row", || lines(&home.path("out.jsonl")) == 1);
    input.write_all(b"{\"prompt\":\"two\"}\n{\"x\":1}\n").unwrap();
    drop(input);
    end(child).exits(2).says("row 3 of -: there is no key").says("2 jobs were enqueued before this");
}

#[test]
fn a_submission_is_waited_for_and_says_how_it_went() {
    let home = Home::new();
    home.rows("rows.jsonl", 40);
    let submit = |flags: &[&str]| home.promptq(&[&["submit", "rows.jsonl", "-m", "mock"], flags].concat());
    let dry = submit(&["--batch", "b", "--dry-run"]).exits(0);
    assert!(dry.stdout.contains("would enqueue 40 jobs to queue default"), "{}", dry.stdout);
    let first = submit(&["--batch", "b"]).exits(0).says("40 new, 0 already known");
    assert_eq!(first.stdout, "b\n");
    submit(&["--batch", "b", "--wait=1s"]).exits(8).says("40 jobs still to end");
    let mut worker = home.command("promptq-worker", &["--exit-when-idle", "1s"]).spawn().unwrap();
    let waited = submit(&["--batch", "b", "--wait", "--json"]).exits(0);
    let waited: Value = serde_json::from_str(&waited.stdout).unwrap();
    assert_eq!((&waited["known"], &waited["counts"]["succeeded"]), (&40.into(), &40.into()));
    worker.wait().unwrap();
    std::fs::write(home.path("rows.jsonl"), "{\"prompt\":\"another\",\"id\":\"r1\"}\n").unwrap();
    submit(&["--batch", "b"]).exits(6).says("error[conflict]");
}

#[test]
fn a_run_can_use_a_fleet() {
    let home = Home::new();
    home.rows("rows.jsonl", 30);
    let mut worker = home.command("promptq-worker", &["--queues", "bulk"]).spawn().unwrap();
    home.promptq(&["run", "rows.jsonl", "-m", "mock", "-Q", "bulk", "-o", "out.jsonl"]).exits(0);
    signal(&worker, Signal::TERM);
    worker.wait().unwrap();
    home.assert_each_once("out.jsonl", 30, "succeeded");
}

#[test]
fn a_run_with_a_store_leaves_its_roll_up_there() {
    let home = Home::new();
    home.rows("rows.jsonl", 5);
    let store = format!("file://{}", home.path("store").display());
    let args = ["run", "rows.jsonl", "-m", "mock:latency=0", "-o", "out.jsonl"];
    home.promptq(&args).exits(0);
    assert!(!home.path("store").exists());
    home.promptq(&[&args[..], &["--store", &store]].concat()).exits(0);
    let batches: Vec<_> = std::fs::read_dir(home.path("store/batches")).unwrap().map(|entry| entry.unwrap()).collect();
    assert_eq!(batches.len(), 1);
    assert_eq!(lines(&batches[0].path().join("results.jsonl")), 5);
    assert!(batches[0].path().join("summary.json").exists());
}
