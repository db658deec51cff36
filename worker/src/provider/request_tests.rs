//! What is sent for a job, in each API's shape.

use super::*;

const OPENAI: Target<'static> =
    Target { provider: "local", api: Api::OpenAi, alias: None, fallback: None, stream_above: 20_000 };
const ANTHROPIC: Target<'static> = Target { provider: "anthropic", api: Api::Anthropic, ..OPENAI };
const GEMINI: Target<'static> = Target { provider: "gemini", api: Api::Gemini, ..OPENAI };

fn prompt(model: Option<&str>, params: &str) -> Work {
    let prompt = Prompt { text: "Hi".into(), system: Some("Be brief".into()), params: params.into() };
    Work { model: model.map(str::to_owned), input: Input::Prompt(prompt) }
}

fn line(url: &str, body: &str) -> Work {
    Work { model: Some("m".into()), input: Input::Request { url: url.into(), body: body.into() } }
}

fn written(work: &Work, to: &Target<'_>) -> Request {
    Request::new(work, to).unwrap()
}

fn sent(work: &Work, to: &Target<'_>) -> Result<String, String> {
    let request = Request::new(work, to).map_err(|failure| failure.code)?;
    Ok(String::from_utf8(request.body.to_vec()).unwrap())
}

#[test]
fn a_prompt_becomes_a_chat_with_its_parameters() {
    let said = r#""messages":[{"role":"system","content":"Be brief"},{"role":"user","content":"Hi"}]"#;
    let with_default = Target { fallback: Some("d"), ..OPENAI };
    assert_eq!(sent(&prompt(Some("local/a/b"), ""), &OPENAI).unwrap(), format!(r#"{{"model":"a/b",{said}}}"#));
    assert_eq!(
        sent(&prompt(None, r#"{"max_tokens":64,"seed":7}"#), &with_default).unwrap(),
        format!(r#"{{"model":"d",{said},"max_tokens":64,"seed":7}}"#)
    );
    for (params, code) in [
        ("[]", "bad_params"),
        ("{", "bad_params"),
        (r#"{"model":"x"}"#, "bad_params"),
        (r#"{"messages":[]}"#, "bad_params"),
        (r#"{"stream":true}"#, "stream_not_supported"),
    ] {
        assert_eq!(sent(&prompt(Some("m"), params), &OPENAI).unwrap_err(), code, "{params}");
    }
    assert_eq!(sent(&prompt(None, ""), &OPENAI).unwrap_err(), "no_model");
}

#[test]
fn a_prompt_becomes_a_message_with_a_limit() {
    let said = r#""system":"Be brief","messages":[{"role":"user","content":"Hi"}]"#;
    let plain = format!(r#"{{"model":"claude-x","max_tokens":4096,{said}}}"#);
    assert_eq!(sent(&prompt(Some("anthropic/claude-x"), ""), &ANTHROPIC).unwrap(), plain);
    assert_eq!(
        sent(&prompt(Some("claude-x"), r#"{"max_completion_tokens":9,"stop":"END","top_k":3}"#), &ANTHROPIC).unwrap(),
        format!(r#"{{"model":"claude-x","max_tokens":9,{said},"top_k":3,"stop_sequences":["END"]}}"#)
    );
    assert_eq!(sent(&prompt(Some("m"), r#"{"system":"x"}"#), &ANTHROPIC).unwrap_err(), "bad_params");
    assert_eq!(written(&prompt(Some("m"), ""), &ANTHROPIC).path, ["messages"]);
}

#[test]
fn a_prompt_becomes_content_with_the_model_in_the_path() {
    let request = written(&prompt(Some("gemini/gemini-x"), ""), &GEMINI);
    assert_eq!((request.path.join("/").as_str(), request.query), ("models/gemini-x:generateContent", None));
    let said =
        r#""systemInstruction":{"parts":[{"text":"Be brief"}]},"contents":[{"role":"user","parts":[{"text":"Hi"}]}]"#;
    assert_eq!(sent(&prompt(Some("g"), ""), &GEMINI).unwrap(), format!("{{{said}}}"));
    let params = r#"{"max_tokens":9,"temperature":0.5,"stop":["a"],"tools":[],"thinkingConfig":{"x":1},"generationConfig":{"topK":4}}"#;
    assert_eq!(
        sent(&prompt(Some("g"), params), &GEMINI).unwrap(),
        format!(
            r#"{{{said},"tools":[],"generationConfig":{{"maxOutputTokens":9,"temperature":0.5,"stopSequences":["a"],"thinkingConfig":{{"x":1}},"topK":4}}}}"#
        )
    );
    assert_eq!(written(&prompt(Some("g"), params), &GEMINI).output_max, Some(9));
    // A name cannot lead anywhere else.
    let odd = written(&prompt(Some("../../x?y"), ""), &GEMINI);
    assert_eq!(odd.path, ["models", "../../x?y:generateContent"]);
}

#[test]
fn a_ready_made_body_is_sent_byte_for_byte() {
    let body = "{ \"model\" : \"gpt\\u002d4\",\n \"x\":1.50, \"input\":\"a\",\"x\":2 }";
    assert_eq!(sent(&line("/v1/embeddings", body), &OPENAI).unwrap(), body);
    let named = r#"{"a": 1e2, "model": "local\/gpt", "z": []}"#;
    assert_eq!(sent(&line("/v1/responses", named), &OPENAI).unwrap(), r#"{"a": 1e2, "model": "gpt", "z": []}"#);
    assert_eq!(sent(&line("/v1/responses", " {\"a\":1}"), &OPENAI).unwrap(), r#"{"model":"m","a":1}"#);
    assert_eq!(sent(&line("/v1/responses", "{ }"), &OPENAI).unwrap(), r#"{"model":"m" }"#);
    let message = r#"{ "model":"claude-x", "max_tokens":7, "messages":[] , "stream":false}"#;
    assert_eq!(sent(&line("/v1/messages", message), &ANTHROPIC).unwrap(), message);
    let content = r#"{ "contents":[] }"#;
    let request = written(&line("/v1beta/models/gemini-x:generateContent", content), &GEMINI);
    assert_eq!(
        (&request.body[..], request.path.join("/").as_str()),
        (content.as_bytes(), "models/gemini-x:generateContent")
    );
    for (url, body, to, code) in [
        ("/v1/files", "{}", &OPENAI, "unknown_url"),
        ("/v1/../admin", "{}", &OPENAI, "unknown_url"),
        ("http://169.254.169.254/v1/messages", "{}", &ANTHROPIC, "unknown_url"),
        ("/v1beta/models/../x:generateContent", "{}", &GEMINI, "unknown_url"),
        ("/v1/messages", "{}", &OPENAI, "unknown_url"),
        ("/v1/chat/completions", "{}", &GEMINI, "unknown_url"),
        ("/v1/responses", r#"["m"]"#, &OPENAI, "invalid_json"),
        ("/v1/responses", r#"{"model":5}"#, &OPENAI, "invalid_json"),
        ("/v1/responses", r#"{"model":"m","stream":true}"#, &OPENAI, "stream_not_supported"),
        ("/v1/responses", r#"{"model":"m","background":true}"#, &OPENAI, "background_not_supported"),
    ] {
        assert_eq!(sent(&line(url, body), to).unwrap_err(), code, "{url} {body}");
    }
}

#[test]
fn a_name_of_ones_own_stands_for_its_model() {
    let to = Target { alias: Some(("fast", "claude-x")), ..ANTHROPIC };
    assert!(sent(&prompt(Some("fast"), ""), &to).unwrap().starts_with(r#"{"model":"claude-x","#));
    let body = r#"{"model":"fast","max_tokens":1}"#;
    assert_eq!(sent(&line("/v1/messages", body), &to).unwrap(), r#"{"model":"claude-x","max_tokens":1}"#);
    let to = Target { alias: Some(("fast", "g-x")), ..GEMINI };
    assert_eq!(
        written(&line("/v1beta/models/fast:generateContent", "{}"), &to).path,
        ["models", "g-x:generateContent"]
    );
}

#[test]
fn a_long_answer_is_asked_for_as_a_stream() {
    let long = r#"{"max_tokens":20001}"#;
    let chat = written(&prompt(Some("m"), long), &OPENAI);
    let text = String::from_utf8(chat.body.to_vec()).unwrap();
    assert!(
        chat.stream && text.starts_with(r#"{"stream":true,"stream_options":{"include_usage":true},"model":"m""#),
        "{text}"
    );
    let message = written(&prompt(Some("m"), long), &ANTHROPIC);
    assert!(message.stream && message.body.starts_with(br#"{"stream":true,"model""#));
    let content = written(&prompt(Some("g"), long), &GEMINI);
    assert_eq!((content.stream, content.query), (true, Some("alt=sse")));
    assert_eq!(content.path, ["models", "g:streamGenerateContent"]);
    assert!(!written(&prompt(Some("m"), r#"{"max_tokens":20000}"#), &ANTHROPIC).stream);
    for (url, body, to, starts) in [
        ("/v1/responses", r#"{"model":"m","max_output_tokens":30000}"#, &OPENAI, r#"{"stream":true,"model":"m""#),
        ("/v1/messages", r#"{"model":"m","max_tokens":30000}"#, &ANTHROPIC, r#"{"stream":true,"model":"m""#),
        (
            "/v1/chat/completions",
            r#"{"model":"m","max_tokens":30000,"stream_options":{}}"#,
            &OPENAI,
            r#"{"stream":true,"model":"m""#,
        ),
        (
            "/v1beta/models/g:generateContent",
            r#"{"generationConfig":{"maxOutputTokens":30000}}"#,
            &GEMINI,
            r#"{"generationConfig""#,
        ),
    ] {
        let request = written(&line(url, body), to);
        assert!(request.stream && request.body.starts_with(starts.as_bytes()), "{url} {:?}", request.body);
    }
    // What is there already is not said twice.
    for (body, is) in [
        (
            r#"{"model":"m", "stream" : null, "max_tokens":30000,"stream_options": null}"#,
            r#"{"model":"m", "stream" : true, "max_tokens":30000,"stream_options": {"include_usage":true}}"#,
        ),
        (
            r#"{"model":"m","max_tokens":30000,"x":1.50,"stream_options":{"a":1,"include_usage":false}}"#,
            r#"{"stream":true,"model":"m","max_tokens":30000,"x":1.50,"stream_options":{"a":1,"include_usage":true}}"#,
        ),
    ] {
        assert_eq!(sent(&line("/v1/chat/completions", body), &OPENAI).unwrap(), is);
    }
    let prompt = sent(&prompt(Some("m"), r#"{"max_tokens":20001,"stream":null}"#), &OPENAI).unwrap();
    assert!(prompt.contains(r#""stream":true"#) && prompt.matches(r#""stream""#).count() == 1, "{prompt}");
    // Who says how it is to come is heard.
    let said = r#"{"model":"m","max_tokens":30000,"stream":false}"#;
    let request = written(&line("/v1/messages", said), &ANTHROPIC);
    assert_eq!((request.stream, &request.body[..]), (false, said.as_bytes()));
}

#[test]
fn what_a_cut_request_consumed_is_estimated() {
    let estimate = |params: &str| written(&prompt(Some("m"), params), &OPENAI).estimate();
    assert_eq!(estimate("").output_tokens, 256);
    assert_eq!(estimate(r#"{"max_tokens":100}"#).output_tokens, 100);
    assert_eq!(estimate(r#"{"max_completion_tokens":4000}"#).output_tokens, 1_000);
    assert!(estimate("").input_tokens > 20);
}

#[test]
fn only_a_bound_that_its_endpoint_knows_is_one() {
    for (url, body, to, most) in [
        ("/v1/chat/completions", r#"{"max_output_tokens":5}"#, &OPENAI, None),
        ("/v1/chat/completions", r#"{"max_completion_tokens":5,"max_tokens":900}"#, &OPENAI, Some(900)),
        ("/v1/chat/completions", r#"{"max_completion_tokens":"900","max_tokens":5}"#, &OPENAI, None),
        ("/v1/chat/completions", r#"{"max_completion_tokens":null,"max_tokens":5}"#, &OPENAI, Some(5)),
        ("/v1/responses", r#"{"max_tokens":5}"#, &OPENAI, None),
        ("/v1/responses", r#"{"max_output_tokens":6}"#, &OPENAI, Some(6)),
        ("/v1/messages", r#"{"max_tokens":7}"#, &ANTHROPIC, Some(7)),
        ("/v1beta/models/g:generateContent", r#"{"max_tokens":5}"#, &GEMINI, None),
        ("/v1beta/models/g:generateContent", r#"{"generation_config":{"max_output_tokens":8}}"#, &GEMINI, Some(8)),
    ] {
        assert_eq!(written(&line(url, body), to).output_max, most, "{url} {body}");
    }
    assert_eq!(written(&prompt(Some("m"), r#"{"max_output_tokens":5}"#), &OPENAI).output_max, None);
}
