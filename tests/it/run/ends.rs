//! How a run ends early, what it says of it, and where results go that go into no plain file.

use std::io::{BufReader, Read as _};
use std::net::TcpListener;
use std::os::unix::fs::{FileTypeExt as _, symlink};

use super::*;

#[test]
fn a_model_that_no_runner_knows_is_told_before_anything_runs() {
    let home = Home::new();
    home.rows("rows.jsonl", 40);
    let args = ["run", "rows.jsonl", "-o", "out.jsonl", "-m"];
    for (model, says) in [("no-such:x", "no-such:x"), ("acme/fast", "acme/fast"), ("mock:speed=1", "speed")] {
        let ended = home.promptq(&[&args[..], &[model]].concat()).exits(2);
        ended.says("error[no-runner]: -m: ").says(says).says("nothing was enqueued");
    }
    let known = home.promptq(&[&args[..], &["gpt-4o"]].concat()).exits(2);
    known.says("there are mock, exec:COMMAND").says("hint: ").says("OPENAI_API_KEY");
    home.promptq(&args[..4]).exits(2).says("row 1 of rows.jsonl: the job names no model").says("(and 39 more rows)");
    assert!(!home.path("out.jsonl").exists(), "nothing was begun");
    let status = home.promptq(&["status"]).exits(0);
    assert!(!status.stdout.contains("run-"), "nothing was submitted: {}", status.stdout);
}

#[test]
fn a_row_whose_model_no_runner_knows_is_a_bad_row() {
    let home = Home::new();
    let row = |model: &str| format!("{{\"prompt\":\"a\",\"id\":\"{model}\",\"model\":\"{model}\"}}\n");
    std::fs::write(home.path("rows.jsonl"), row("mock") + &row("no-such") + &row("mock:latency=0")).unwrap();
    let args = ["run", "rows.jsonl", "-o", "out.jsonl"];
    let bad = home.promptq(&args).exits(2).says("row 2 of rows.jsonl: no runner knows the model \"no-such\"");
    bad.says("2 other rows are fine").says("OPENAI_API_KEY");
    let submitted = home.promptq(&["submit", "rows.jsonl", "--batch", "b"]).exits(0);
    submitted.says("3 new");
    home.promptq(&[&args[..], &["--skip-invalid"]].concat()).exits(0).says("1 invalid row");
    home.assert_each_once("out.jsonl", 2, "succeeded");
}

#[test]
fn a_run_whose_reader_has_gone_stops_and_can_be_gone_on_with() {
    let home = Home::new();
    home.rows("rows.jsonl", 300);
    let args = ["run", "rows.jsonl", "-m", SLOW, "--concurrency", "4"];
    let mut child = home.start(&args);
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert!(first.contains("succeeded"), "{first}");
    let gone = end(child).exits(141).says("the reader of the results has gone").says("the same command goes on");
    assert!(!gone.stderr.contains("error[") && gone.stderr.contains("; Ctrl-C leaves them"), "{}", gone.stderr);
    let again = home.promptq(&args).exits(0).says("300 already known").says("done: 300 succeeded");
    assert_eq!(again.stdout.lines().count(), 300);
}

#[test]
fn an_account_that_is_refused_is_told_of_at_once() {
    let home = Home::new();
    home.rows("rows.jsonl", 3);
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", server.local_addr().unwrap());
    let _server = std::thread::spawn(move || {
        let body = r#"{"error":{"message":"Incorrect API key provided","code":"invalid_api_key"}}"#;
        for stream in server.incoming() {
            let mut stream = stream.unwrap();
            // The request is one packet or two; what is left of it is nobody's.
            let _read = stream.read(&mut [0; 4_096]).unwrap();
            let head = format!("HTTP/1.1 401 Unauthorized\r\ncontent-length: {}\r\nconnection: close", body.len());
            stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).unwrap();
        }
    });
    let mut command = home.command("promptq", &["run", "rows.jsonl", "-m", "gpt-4o", "-o", "out.jsonl"]);
    let began = Instant::now();
    let mut child = command.env("OPENAI_BASE_URL", url).env("OPENAI_API_KEY", "sk-none").spawn().unwrap();
    let mut talk = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("(account)") {
        line.clear();
        assert!(talk.read_line(&mut line).unwrap() > 0, "it left without a word");
    }
    assert!(began.elapsed() < Duration::from_secs(6), "said after {:?}", began.elapsed());
    assert!(line.starts_with("warning: openai (account)") && line.contains("invalid_api_key"), "{line}");
    assert!(line.contains("60 s"), "{line}");
    signal(&child, Signal::INT);
    let mut rest = String::new();
    talk.read_to_string(&mut rest).unwrap();
    assert!(!rest.contains("warning:"), "told once: {rest}");
    end(child).exits(130);
}

#[test]
fn a_run_for_a_fleet_says_at_once_that_nobody_serves_its_queue() {
    let home = Home::new();
    home.rows("rows.jsonl", 3);
    let mut child = home.start(&["run", "rows.jsonl", "-m", "mock:latency=0", "-Q", "far", "-o", "out.jsonl"]);
    let (began, mut talk) = (Instant::now(), BufReader::new(child.stderr.take().unwrap()));
    let mut said = String::new();
    while !said.contains("no worker serves queue far; one that would: promptq-worker --queues far\n") {
        assert!(talk.read_line(&mut said).unwrap() > 0, "it left without a word: {said}");
    }
    assert!(began.elapsed() < Duration::from_secs(8), "said after {:?}", began.elapsed());
    let mut worker = home.command("promptq-worker", &["--queues", "far", "--exit-when-idle", "1s"]).spawn().unwrap();
    talk.read_to_string(&mut said).unwrap();
    assert_eq!(said.matches("no worker serves").count(), 1, "{said}");
    end(child).exits(0);
    assert!(worker.wait().unwrap().success());
}

#[test]
fn the_summary_says_what_jobs_died_of() {
    let home = Home::new();
    let row = |n: u32, model: &str| format!("{{\"prompt\":\"{n}\",\"model\":\"{model}\"}}\n");
    let rows = (0..9).map(|n| row(n, if n < 5 { "exec:sh -c 'exit 65'" } else { "exec:/no/such/program" }));
    std::fs::write(home.path("rows.jsonl"), rows.collect::<String>() + &row(9, "mock:latency=0")).unwrap();
    let args = ["run", "rows.jsonl", "--attempts", "1", "-o", "out.jsonl"];
    let ended = home.promptq(&args).exits(3).says("done: 1 succeeded, 9 dead");
    ended.says("died of: 5x exit_65, 4x command_not_found").says("dead: promptq dead groups -Q run-");
}

#[test]
fn results_go_into_what_is_no_file_as_into_standard_output() {
    let home = Home::new();
    home.rows("rows.jsonl", 20);
    let ended = |output: &str| home.promptq(&["run", "rows.jsonl", "-m", "mock:latency=0", "-o", output]);
    ended("/dev/null").exits(0).says("done: 20 succeeded");
    assert_eq!(ended("/dev/stdout").exits(0).stdout.lines().count(), 20);
    ended(".").exits(2).says("error[output]");
    ended("none/out.jsonl").exits(2).says("error[output]");
    assert!(Command::new("mkfifo").arg(home.path("pipe")).status().unwrap().success());
    for known in ["20 new", "20 already known"] {
        let reader = Command::new("cat").arg(home.path("pipe")).stdout(Stdio::piped()).spawn().unwrap();
        let into_pipe = ended("pipe").exits(0);
        assert!(known == "20 new" || into_pipe.stderr.contains(known), "{}", into_pipe.stderr);
        assert_eq!(lines_of(&reader.wait_with_output().unwrap().stdout), 20);
    }
    assert!(std::fs::metadata(home.path("pipe")).unwrap().file_type().is_fifo());
}

#[test]
fn a_link_stays_a_link_to_the_results() {
    let home = Home::new();
    home.rows("rows.jsonl", 6);
    std::fs::create_dir(home.path("far")).unwrap();
    symlink("far/real.jsonl", home.path("link.jsonl")).unwrap();
    let args = ["run", "rows.jsonl", "-m", "exec:test -e ready", "--attempts", "1", "-o", "link.jsonl"];
    home.promptq(&args).exits(3);
    std::fs::write(home.path("ready"), "").unwrap();
    // Six rows have two records now: the file is written anew and takes the old one's place.
    home.promptq(&[&args[..], &["--retry-dead"]].concat()).exits(0);
    assert!(home.path("link.jsonl").is_symlink());
    home.assert_each_once("far/real.jsonl", 6, "succeeded");
    let mode = std::fs::metadata(home.path("far/real.jsonl")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

fn lines_of(bytes: &[u8]) -> usize {
    String::from_utf8_lossy(bytes).lines().count()
}

#[test]
fn what_is_left_of_a_run_counts_rows_that_were_not_enqueued_yet() {
    let home = Home::new();
    home.rows("rows.jsonl", 60_000);
    let model = "exec:sh -c 'touch started; sleep 3; echo ok'";
    let child = home.start(&["run", "rows.jsonl", "-m", model, "-o", "out.jsonl", "--concurrency", "1"]);
    wait_until("a running job", || home.path("started").exists());
    signal(&child, Signal::INT);
    end(child).exits(130).says("59,999 jobs left");
}
