//! What rows and flags make of each other.

use clap::Parser;
use promptq_common::job::Priority;

use super::*;

const DAY: Duration = Duration::from_secs(86_400);

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    input: InputArgs,
}

fn maker(flags: &[&str]) -> Maker {
    maker_to(flags, |_| {}).unwrap()
}

fn maker_to(flags: &[&str], change: impl FnOnce(&mut Destination)) -> Result<Maker> {
    let cli = Cli::parse_from(["test", "-"].iter().chain(flags));
    let batch = BatchName::new("nov").unwrap();
    let mut to =
        Destination { queue: Queue::standard(), policy: None, batch, named: true, reusable_for: Some(DAY * 7) };
    change(&mut to);
    Maker::new(&cli.input, to)
}

fn columns(text: &str) -> Row {
    Row::Columns(serde_json::from_str(text).unwrap())
}

fn prompt(made: &Made) -> &Prompt {
    let Input::Prompt(prompt) = &made.job.work.input else { panic!("not a prompt") };
    prompt
}

#[test]
fn columns_and_flags_make_a_job() {
    let flags =
        ["-t", "Say {{text}} {{tone}}", "--var", "tone=kindly", "--id-field", "id", "-m", "mock", "--tag", "a=b"];
    let made = maker(&flags).make(7, columns(r#"{"id":"r-1","text":"hi"}"#)).unwrap();
    assert_eq!(prompt(&made).text, "Say hi kindly");
    assert_eq!(made.job.custom_id.as_deref(), Some("r-1"));
    assert_eq!(made.job.id, JobId::derived(&Queue::standard(), None, "nov/r-1"));
    assert_eq!((made.job.row, made.job.work.model.as_deref()), (Some(7), Some("mock")));
    assert_eq!(made.job.tags["a"], "b");
}

#[test]
fn a_row_without_a_name_is_known_by_its_number() {
    let made = maker(&[]).make(7, Row::Text { text: "hi".into(), file: None }).unwrap();
    assert_eq!(made.job.id, JobId::derived(&Queue::standard(), None, "nov/7"));
    let made = maker(&[]).make(7, Row::Text { text: "hi".into(), file: Some("a.md".into()) }).unwrap();
    assert_eq!(made.job.id, JobId::derived(&Queue::standard(), None, "nov/a.md"));
}

#[test]
fn flags_win_over_lines_and_leave_the_rest() {
    let line =
        r#"{"prompt":"x","model":"fast","max_tokens":9,"params":{"top_p":1},"promptq":{"priority":1,"attempts":2}}"#;
    let made = maker(&["-m", "slow", "--max-tokens", "5", "--priority", "8"]).make(1, Row::Json(line.into())).unwrap();
    assert_eq!(made.job.work.model.as_deref(), Some("slow"));
    assert_eq!(prompt(&made).params, r#"{"max_tokens":5,"top_p":1}"#);
    assert_eq!((made.job.priority, made.job.policy.attempts), (Priority::new(8).unwrap(), 2));
}

#[test]
fn a_stored_answer_is_taken_as_flag_line_and_queue_say_in_this_order() {
    let by_queue = |to: &mut Destination| {
        to.policy = Some(QueuePolicy { reuse: Some(DAY * 2), ..QueuePolicy::standard() });
    };
    let asked = |flags: &[&str], line: &str, change: fn(&mut Destination)| {
        let row = Row::Json(format!(r#"{{"prompt":"x","promptq":{{{line}}}}}"#));
        maker_to(flags, change).unwrap().make(1, row).unwrap().job.extras.and_then(|extras| extras.reuse)
    };
    let line = r#""reuse":"3d""#;
    assert_eq!(asked(&[], "", |_| {}), None);
    assert_eq!(asked(&["--reuse", "24h"], line, by_queue), Some(DAY));
    assert_eq!(asked(&["--reuse", "off"], line, by_queue), None);
    assert_eq!(asked(&[], line, by_queue), Some(DAY * 3));
    assert_eq!(asked(&[], r#""reuse":"off""#, by_queue), None);
    assert_eq!(asked(&[], "", by_queue), Some(DAY * 2));
}

#[test]
fn an_answer_is_repaired_as_often_as_flag_line_and_queue_say_in_this_order() {
    let by_queue = |to: &mut Destination| {
        to.policy = Some(QueuePolicy { repair_attempts: 3, ..QueuePolicy::standard() });
    };
    let asked = |flags: &[&str], line: &str, change: fn(&mut Destination)| {
        let row = Row::Json(format!(r#"{{"prompt":"x","promptq":{{{line}}}}}"#));
        maker_to(flags, change).unwrap().make(1, row).unwrap().job.policy.repair_attempts
    };
    let line = r#""repair_attempts":2"#;
    assert_eq!((asked(&[], "", |_| {}), asked(&[], line, |_| {})), (0, 2));
    assert_eq!((asked(&[], "", by_queue), asked(&[], line, by_queue)), (3, 2));
    assert_eq!(asked(&["--repair-attempts", "0"], line, by_queue), 0);
}

#[test]
fn stored_answers_that_cannot_be_had_are_refused() {
    let no_store = |to: &mut Destination| to.reusable_for = None;
    let problem = maker_to(&["--reuse", "24h"], no_store).unwrap_err();
    assert_eq!(problem.what, "--reuse: there is no store that answers could be kept in");
    assert!(maker_to(&["--reuse", "off"], no_store).is_ok());
    let by_queue = |to: &mut Destination| {
        to.policy = Some(QueuePolicy { reuse: Some(DAY), ..QueuePolicy::standard() });
        to.reusable_for = None;
    };
    assert!(maker_to(&[], by_queue).unwrap_err().what.starts_with("queues.default.reuse: there is no store"));
    assert!(maker_to(&["--reuse", "off"], by_queue).is_ok());
    assert_eq!(
        maker_to(&["--reuse", "8d"], |_| {}).unwrap_err().what,
        "--reuse: an answer 8d old is gone: they are kept for 7d"
    );
    let line = |change: fn(&mut Destination)| {
        let row = Row::Json(r#"{"prompt":"x","promptq":{"reuse":"8d"}}"#.into());
        maker_to(&[], change).unwrap().make(1, row).map(|_| ()).unwrap_err().what
    };
    assert_eq!(line(|_| {}), "an answer 8d old is gone: they are kept for 7d");
    assert_eq!(line(no_store), "there is no store that answers could be kept in");
}

#[test]
fn a_request_is_never_changed() {
    let body = r#"{ "model":"gpt-x" ,"messages":[]}"#;
    let line = format!(r#"{{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{body}}}"#);
    let made = maker(&["-m", "mock"]).make(1, Row::Json(line.clone())).unwrap();
    assert!(matches!(&made.job.work.input, Input::Request { body: kept, .. } if kept == body));
    assert!(maker(&["--max-tokens", "5"]).make(1, Row::Json(line)).is_err());
}

#[test]
fn with_a_template_a_line_of_json_is_a_row_of_columns() {
    let made =
        maker(&["-t", "{{q.en}}{{row['a b']}}"]).make(1, Row::Json(r#"{"q":{"en":"hi"},"a b":1}"#.into())).unwrap();
    assert_eq!(prompt(&made).text, "hi1");
}

#[test]
fn faults_name_the_column_and_the_way_out() {
    let fault = |flags: &[&str], row| maker(flags).make(1, row).unwrap_err();
    let row = || columns(r#"{"id":"1","text":""}"#);
    assert!(fault(&[], row()).what.starts_with("no column is named \"prompt\""));
    assert_eq!(fault(&["-t", "{{text}}"], row()).what, "the prompt is empty");
    let missing = fault(&["-t", "x", "--id-field", "idd"], row());
    assert_eq!(missing.hint.as_deref(), Some("did you mean --id-field id?"));
    let broken = fault(&[], Row::Json(r#"{"prompt":"unterminated}"#.into()));
    assert_eq!((broken.column, broken.excerpt.as_deref()), (Some(24), Some(r#"{"prompt":"unterminated}"#)));
    let late = fault(&["--deadline", "2020-01-01T00:00:00Z"], Row::Text { text: "x".into(), file: None });
    assert_eq!(late.what, "its deadline has passed");
}
