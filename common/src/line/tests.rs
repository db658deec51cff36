//! What a job line may say, and how a wrong one is refused.

use super::*;

fn parse(text: &str) -> Result<Line, BadLine> {
    Line::parse(text)
}

fn refusal(text: &str) -> String {
    let bad = parse(text).unwrap_err();
    let column = bad.column.map_or("-".into(), |column| column.to_string());
    format!("{column}: {}{}", bad.what, bad.hint.map(|hint| format!(" | {hint}")).unwrap_or_default())
}

#[test]
fn a_prompt_line_says_all_there_is_to_say() {
    let line = parse(
        r#"{"prompt":"Hi","system":"Be brief","id":7,"model":"fast","max_tokens":256,"temperature":0.5,"params":{"top_p":1},"tags":{"run":42},
            "promptq":{"queue":"bulk","priority":9,"delay":"90s","deadline":"24h","idempotency_key":"k","tenant":"acme","attempts":2,"repair_attempts":1,"backoff":"3s","timeout":"30s"}}"#,
    )
    .unwrap();
    assert_eq!(line.custom_id.as_deref(), Some("7"));
    let Input::Prompt(prompt) = &line.work.input else { panic!("not a prompt") };
    assert_eq!(prompt.params, r#"{"max_tokens":256,"temperature":0.5,"top_p":1}"#);
    let now = Timestamp::from_millis(1_000_000);
    let job = line.into_job(&Queue::standard(), now);
    assert_eq!(job.id, crate::job::JobId::derived(&Queue::new("bulk").unwrap(), Some("acme"), "k"));
    assert_eq!((job.queue.as_str(), job.priority.get(), job.policy.attempts), ("bulk", 9, 2));
    assert_eq!(job.policy.repair_attempts, 1);
    assert_eq!(
        (job.not_before, job.deadline),
        (Some(now + Duration::from_secs(90)), now + Duration::from_secs(86_400))
    );
    assert_eq!((job.policy.backoff.first, job.policy.timeout), (Duration::from_secs(3), Duration::from_secs(30)));
    assert_eq!(job.tags["run"], "42");
}

#[test]
fn a_batch_line_keeps_its_body_byte_for_byte() {
    let body = r#"{"model": "gpt-x",  "messages":[{"role":"user","content":"Hi ☂"}] }"#;
    let line = parse(&format!(
        r#"{{"custom_id":"r","method":"POST","url":"/v1/chat/completions","body":{body},"promptq":{{"priority":5}}}}"#
    ));
    let line = line.unwrap();
    assert_eq!(line.work.model.as_deref(), Some("gpt-x"));
    assert_eq!(line.work.input, Input::Request { url: "/v1/chat/completions".into(), body: body.into() });
}

#[test]
fn a_line_for_gemini_names_its_model_in_the_url() {
    let line = parse(r#"{"url":"/v1beta/models/gemini-2.5-flash:generateContent","body":{"contents":[]}}"#).unwrap();
    assert_eq!(line.work.model.as_deref(), Some("gemini-2.5-flash"));
    for url in ["a/b", "a%2Fb", "..", "", "a?key=x", "a:b"] {
        let line = format!(r#"{{"url":"/v1beta/models/{url}:generateContent","body":{{}}}}"#);
        assert!(refusal(&line).starts_with("8: this endpoint is not supported"), "{url}");
    }
}

#[test]
fn what_is_wrong_is_said_with_its_place_and_a_way_out() {
    for (text, says) in [
        (r#"{"prompt":"a"#, "12: EOF while parsing a string"),
        (r#"{"promt":"a"}"#, "10: there is no key \"promt\" | did you mean \"prompt\"?"),
        (
            r#"{"prompt":"a","priority":3}"#,
            "26: there is no key \"priority\" | \"priority\" stands under \"promptq\": {\"promptq\":{\"priority\":…}}",
        ),
        (r#"{"prompt":"a","prompt":"b"}"#, "24: \"prompt\" is there twice"),
        (r#"{"prompt":"a","promptq":{"callback":"x"}}"#, "37: \"callback\" is not supported by this version"),
        (
            r#"{"prompt":"a","promptq":{"reuse":"always"}}"#,
            "34: \"always\" is neither an age such as 24h or 7d nor off",
        ),
        (r#"{"prompt":"a","promptq":{"priority":10}}"#, "37: \"priority\" is not a whole number of 0 to 9"),
        (r#"{"prompt":"a","promptq":{"attempts":0}}"#, "37: \"attempts\" is not a whole number of 1 to 1000"),
        (
            r#"{"prompt":"a","promptq":{"repair_attempts":10}}"#,
            "44: \"repair_attempts\" is not a whole number of 0 to 9",
        ),
        (
            r#"{"prompt":"a","promptq":{"max_cost_usd":"0"}}"#,
            "41: \"0\" is no sum of dollars above 0 such as 25 or 0.50",
        ),
        (
            r#"{"prompt":"a","promptq":{"max_cost_usd":0.01}}"#,
            "41: \"max_cost_usd\" is a text: write it in quotes, \"0.01\"",
        ),
        (r#"{"prompt":""}"#, "11: the prompt is empty"),
        (
            r#"{"url":"/v1/audio","body":{}}"#,
            "8: this endpoint is not supported by this version | supported are /v1/chat/completions, /v1/responses, /v1/embeddings, /v1/messages, /v1beta/models/*:generateContent",
        ),
        (r#"{"url":"/v1/responses"}"#, "-: a line with a request needs \"body\""),
        (r#"{"url":"/v1/responses","body":[]}"#, "31: the body is not an object with at most one \"model\", a text"),
        (r#"{"id":"a","custom_id":"b","prompt":"x"}"#, "7: \"id\" and \"custom_id\" are the same thing; give one"),
    ] {
        assert_eq!(refusal(text), says, "{text}");
    }
    assert!(refusal("[1]").starts_with("-: invalid type: sequence"), "{}", refusal("[1]"));
}

#[test]
fn what_a_job_may_cost_travels_with_it() {
    let job = parse(r#"{"prompt":"a","promptq":{"max_cost_usd":"0.01"}}"#).unwrap();
    let job = job.into_job(&Queue::standard(), Timestamp::from_millis(0));
    assert_eq!(job.extras.unwrap().max_cost.map(Usd::as_nanos), Some(10_000_000));
}

#[test]
fn a_line_may_take_a_stored_answer_or_none() {
    let job = |reuse: &str| {
        let line = parse(&format!(r#"{{"prompt":"a","promptq":{{"reuse":{reuse}}}}}"#)).unwrap();
        let said = line.terms.reuse;
        (said, line.into_job(&Queue::standard(), Timestamp::from_millis(0)).extras)
    };
    let day = Duration::from_secs(86_400);
    let (said, extras) = job("\"24h\"");
    assert_eq!((said, extras.unwrap().reuse), (Some(Reuse::Within(day)), Some(day)));
    assert_eq!(job("\"off\""), (Some(Reuse::Off), None));
    assert_eq!(job("null"), (None, None));
}

#[test]
fn a_malformed_place_in_a_trace_is_as_good_as_none() {
    const SAID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let trace = |said: &str| {
        let line = parse(&format!(r#"{{"prompt":"a","promptq":{{"traceparent":{said}}}}}"#)).unwrap();
        line.into_job(&Queue::standard(), Timestamp::from_millis(0)).trace.map(|place| place.to_string())
    };
    assert_eq!(trace(&format!("{SAID:?}")).as_deref(), Some(SAID));
    let deep = format!("{}1{}", "[".repeat(200), "]".repeat(200));
    for said in ["\"00-4bf9-zz\"", "\"\"", "5", "1.5", "null", "true", "[]", "{\"a\":1}", &deep] {
        assert_eq!(trace(said), None, "{said}");
    }
    assert!(refusal(r#"{"prompt":"a","promptq":{"traceparent":5,"traceparent":6}}"#).contains("twice"));
}

#[test]
fn a_deadline_without_word_counts_from_when_the_job_may_begin() {
    let now = Timestamp::from_millis(0);
    let job = parse(r#"{"prompt":"a","promptq":{"delay":"30d"}}"#).unwrap().into_job(&Queue::standard(), now);
    assert_eq!(job.deadline, now + Duration::from_secs(37 * 86_400));
}
