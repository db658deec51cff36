//! The chat runner against a real model server: shapes, usage, a prompt that is too long, a server that dies. A model of
//! this size answers nonsense, so only shapes and counts are looked at.

use std::collections::BTreeMap;
use std::fs::File;

use promptq_common::broker::{LeaseId, WorkerId};
use promptq_common::config::Api;
use promptq_common::job::{Job, Queue};
use promptq_common::outcome::{Body, Failure, FailureClass, Outcome, Reply};
use promptq_common::work::{Input, Prompt, Work};
use promptq_tests::llm::Llm;
use promptq_tests::process::{Home, Said};
use promptq_worker::runner::{ExecSettings, MockSettings, ProviderSettings, RunContext, RunnerSettings, Runners};
use serde_json::Value;

#[tokio::test]
async fn a_real_model_answers_in_every_shape() {
    let llm = Llm::start().await.unwrap();
    let runners = runners(&llm);

    let chat = run(&runners, prompt("Say hello.", r#"{"max_tokens":8,"seed":7}"#)).await.unwrap();
    assert_eq!((chat.status_code, chat.usage.output_tokens), (200, 8));
    assert_eq!((chat.finish_reason.as_deref(), chat.model.as_deref()), (Some("length"), Some(Llm::MODEL)));
    assert!(chat.usage.input_tokens > 0 && !chat.text.unwrap().is_empty());
    assert!(chat.request_id.unwrap().starts_with("chatcmpl-"));

    let body = r#"{"model":"local/smollm2","input":"Say hello.","max_output_tokens":8}"#;
    let response = run(&runners, request("/v1/responses", body)).await.unwrap();
    assert!(response.usage.input_tokens > 0 && response.usage.output_tokens > 0, "{:?}", response.usage);
    assert!(!response.text.unwrap().is_empty());

    let body = r#"{"model":"smollm2","input":["one text","another"]}"#;
    let embeddings = run(&runners, request("/v1/embeddings", body)).await.unwrap();
    assert!(embeddings.usage.input_tokens > 0, "{:?}", embeddings.usage);
    let Body::Json(body) = embeddings.body else { panic!("embeddings are JSON") };
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(body["data"].as_array().unwrap().len(), 2);

    let long = run(&runners, prompt(&"one two three ".repeat(1_500), "")).await.unwrap_err();
    assert_eq!((long.class, long.code.as_str()), (FailureClass::Fatal, "context_length_exceeded"));
    assert_eq!(long.status_code, Some(400));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_and_a_batch_file_are_answered_by_a_real_model() {
    let llm = Llm::start().await.unwrap();
    let home = Home::new();
    let batch = r#"{"custom_id":"b1","method":"POST","url":"/v1/chat/completions","body":{"model":"smollm2","messages":[{"role":"user","content":"Why is the sky blue?"}],"max_tokens":4}}"#;
    for (name, input, options, tokens) in [
        ("lines.jsonl", "Say hello.\nName a colour.\n", &["-m", Llm::MODEL, "--max-tokens", "8"][..], 8),
        ("batch.jsonl", batch, &["--in", "openai-batch"], 4),
    ] {
        let file = home.write("in", input);
        let mut command = home.program("promptq", &[&["run", "-", "-o", name], options].concat());
        command.env("OPENAI_BASE_URL", llm.base_url()).env("OPENAI_API_KEY", "none").stdin(File::open(file).unwrap());
        Said::of(&mut command).ends(0);
        let answers = std::fs::read_to_string(home.path(name)).unwrap();
        assert_eq!(answers.lines().count(), input.lines().count());
        for line in answers.lines() {
            let answer: Value = serde_json::from_str(line).unwrap();
            let body = &answer["response"]["body"];
            assert_eq!(answer["response"]["status_code"], 200, "{line}");
            assert!(!body["choices"][0]["message"]["content"].as_str().unwrap().is_empty(), "{line}");
            let spent = body["usage"]["completion_tokens"].as_u64().unwrap();
            assert!((1..=tokens).contains(&spent), "{line}");
        }
    }
}

#[tokio::test]
async fn a_model_server_that_dies_mid_call_may_have_been_paid_and_an_absent_one_was_not() {
    let mut llm = Llm::start().await.unwrap();
    let runners = runners(&llm);
    let endless = prompt("Tell me a story.", r#"{"max_tokens":1900,"ignore_eos":true}"#);

    let (cut, killed) = tokio::join!(run(&runners, endless.clone()), async {
        llm.busy().await?;
        llm.kill().await
    });
    killed.unwrap();
    let cut = cut.unwrap_err();
    assert_eq!((cut.class, cut.code.as_str()), (FailureClass::UnknownBilled, "connection_lost"));
    assert!(cut.usage.input_tokens > 0 && cut.usage.output_tokens > 0, "{:?}", cut.usage);

    let absent = run(&runners, endless).await.unwrap_err();
    assert_eq!((absent.class, absent.code.as_str()), (FailureClass::Capacity, "connect_failed"));
    assert_eq!(absent.usage.input_tokens, 0);
}

fn runners(llm: &Llm) -> Runners {
    let local = ProviderSettings {
        api: Api::OpenAi,
        base_url: llm.base_url(),
        api_key: None,
        default_model: None,
        stream_above: 50_000,
        traceparent: false,
    };
    let settings = RunnerSettings {
        providers: [("local".to_owned(), local)].into(),
        models: BTreeMap::new(),
        exec: ExecSettings { named: BTreeMap::new(), allow_inline: false, environment: Vec::new(), max_output: 0 },
        mock: MockSettings::standard(),
    };
    Runners::new(settings).unwrap()
}

fn prompt(text: &str, params: &str) -> Work {
    let prompt = Prompt { text: text.to_owned(), system: None, params: params.to_owned() };
    Work { model: Some("local/smollm2".to_owned()), input: Input::Prompt(prompt) }
}

fn request(url: &str, body: &str) -> Work {
    let input = Input::Request { url: url.to_owned(), body: body.to_owned() };
    Work { model: Some("local/smollm2".to_owned()), input }
}

async fn run(runners: &Runners, work: Work) -> Result<Reply, Failure> {
    let job = Job::new(Queue::standard(), work);
    let cx = RunContext {
        attempt: 1,
        lease: LeaseId::random(),
        worker: WorkerId::random("llm"),
        ear: None,
        stream: false,
        trace: None,
    };
    match runners.pick(&job)?.run(&job, &cx).await {
        Outcome::Success(reply) => Ok(reply),
        Outcome::Failure(failure) => Err(failure),
    }
}
