//! The line of a success, of an end without an answer, and what each says of its cost.

use super::*;
use crate::broker::LeaseId;
use crate::outcome::{FailureClass, History};

fn record(answer: Option<Answer>, cause: Option<crate::record::Cause>) -> Record {
    Record {
        id: JobId::from_bytes([7; 16]),
        epoch: 0,
        end: if answer.is_some() { End::Succeeded } else { End::Dead },
        queue: Queue::standard(),
        batch: Some(BatchName::new("nov").unwrap()),
        row: Some(1),
        custom_id: Some("r-1".into()),
        tenant: None,
        tags: BTreeMap::new(),
        model: Some("mock".into()),
        answer,
        cause,
        attempts: 1,
        history: History::default(),
        lease: LeaseId::NONE,
        worker: None,
        created_at: Timestamp::from_millis(0),
        started_at: Some(Timestamp::from_millis(1_500)),
        ended_at: Timestamp::from_millis(2_000),
        trace: None,
    }
}

fn attempt() -> Attempt {
    Attempt {
        n: 1,
        worker: "w".into(),
        started_at: Timestamp::from_millis(0),
        ended_at: Timestamp::from_millis(1),
        class: None,
        code: None,
        detail: None,
        status_code: None,
        usage: Usage::default(),
        cost: None,
    }
}

fn answer(body: Body) -> Answer {
    Answer { finish_reason: Some("stop".into()), ..Answer::plain(Output::Inline(body)) }
}

#[test]
fn a_success_is_an_openai_line_with_an_account() {
    let line = result_line(&record(Some(answer(Body::Text("wie \"geht's\"\n".into()))), None), None);
    assert_eq!(
        line,
        concat!(
            r#"{"id":"batch_req_07070707-0707-0707-0707-070707070707","custom_id":"r-1","#,
            r#""response":{"status_code":200,"request_id":null,"body":"wie \"geht's\"\n"},"error":null,"#,
            r#""promptq":{"job_id":"07070707-0707-0707-0707-070707070707","batch":"nov","row":1,"queue":"default","#,
            r#""state":"succeeded","class":null,"text":"wie \"geht's\"\n","model":"mock","finish_reason":"stop","#,
            r#""epoch":0,"attempts":[],"timing":{"created_at":"1970-01-01T00:00:00.000Z","#,
            r#""started_at":"1970-01-01T00:00:01.500Z","ended_at":"1970-01-01T00:00:02.000Z","#,
            r#""queued_s":1.5,"run_s":0.5},"usage":{"input_tokens":0,"output_tokens":0,"cached_tokens":0,"#,
            r#""reasoning_tokens":0},"cost_usd":"0"}}"#
        )
    );
}

#[test]
fn what_a_price_depends_on_is_told_where_the_provider_said_it() {
    let detail = crate::outcome::Detail {
        cache_write_tokens: 700,
        service_tier: Some("flex".into()),
        first_piece: Some(std::time::Duration::from_millis(250)),
    };
    let answer = Answer { detail: detail.kept(), ..answer(Body::Text("a".into())) };
    let line: serde_json::Value = serde_json::from_str(&result_line(&record(Some(answer), None), None)).unwrap();
    let account = &line["promptq"];
    assert_eq!((&account["service_tier"], &account["cache_write_tokens"]), (&"flex".into(), &700.into()));
    assert_eq!(account["timing"]["time_to_first_chunk_s"], 0.25);
}

#[test]
fn where_an_answer_and_its_cost_are_from_is_told_where_it_is_known() {
    let origin = crate::outcome::Origin {
        route: Some("acme/fast-2".into()),
        cost_source: Some(CostSource::PriceTable),
        price_as_of: Some("2026-11-03".into()),
        reused_from: Some(JobId::from_bytes([7; 16])),
    };
    let answer = Answer { origin: origin.kept(), ..answer(Body::Text("a".into())) };
    let line: serde_json::Value = serde_json::from_str(&result_line(&record(Some(answer), None), None)).unwrap();
    let account = &line["promptq"];
    assert_eq!((&account["route"], &account["cost_source"]), (&"acme/fast-2".into(), &"price_table".into()));
    assert_eq!((&account["price_as_of"], account["reused_from"].as_str().unwrap().len()), (&"2026-11-03".into(), 36));
}

#[test]
fn a_cost_says_whether_it_is_all_and_whether_it_is_a_guess() {
    let mut record = record(None, None);
    let cost = |record: &Record| {
        let line: serde_json::Value = serde_json::from_str(&result_line(record, None)).unwrap();
        ["cost_usd", "cost_source", "cost_partial"].map(|key| line["promptq"][key].to_string())
    };
    let cut = |cost| Attempt { class: Some(FailureClass::UnknownBilled), cost, ..attempt() };
    record.history.push(cut(Some(Usd::from_nanos(5_000_000))));
    assert_eq!(cost(&record), ["\"0.005\"", "\"estimate\"", "null"]);
    record.history.push(cut(None));
    assert_eq!(cost(&record), ["\"0.005\"", "\"estimate\"", "true"]);
}

#[test]
fn an_answer_that_is_not_whole_is_a_success_with_its_class() {
    let mut record = record(Some(answer(Body::Text("{".into()))), None);
    for code in ["truncated", "invalid_output"] {
        record.history.push(Attempt { code: Some(code.into()), status_code: Some(200), ..attempt() });
    }
    let line: serde_json::Value = serde_json::from_str(&result_line(&record, None)).unwrap();
    let account = &line["promptq"];
    assert_eq!((&account["state"], &account["class"]), (&"succeeded".into(), &"invalid_output".into()));
    assert_eq!(account["attempts"][0]["class"], "truncated");
    assert_eq!((&line["error"], &line["response"]["status_code"]), (&serde_json::Value::Null, &200.into()));
}

#[test]
fn a_body_of_many_lines_becomes_one_and_a_broken_one_a_string() {
    for body in ["{\n \"choices\": [{\"message\": {\"content\": \"hi\"}}]\r\n}", "{broken\n"] {
        let line = result_line(&record(Some(answer(Body::Json(body.into()))), None), None);
        assert!(!line.contains('\n'), "{line}");
        let _: serde_json::Value = serde_json::from_str(&line).unwrap();
    }
}

#[test]
fn a_dead_job_has_its_error_and_no_response() {
    let cause = crate::record::Cause {
        class: Some(FailureClass::Fatal),
        code: "exit_1".into(),
        detail: "it broke".into(),
        status_code: None,
    };
    let line = result_line(&record(None, Some(cause)), None);
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["response"], serde_json::Value::Null);
    assert_eq!(line["error"]["code"], "exit_1");
    assert_eq!((&line["promptq"]["state"], &line["promptq"]["class"]), (&"dead".into(), &"fatal".into()));
}
