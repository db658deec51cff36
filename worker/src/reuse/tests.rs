//! What an answer is kept under with each runner, and which answers are kept at all.

use promptq_common::broker::LeaseId;
use promptq_common::config::{Api, Command, Model};
use promptq_common::job::Queue;
use promptq_common::outcome::Body;

use super::*;
use crate::runner::{ExecSettings, MockSettings, ProviderSettings, RunnerSettings, Runners};

fn provider(api: Api, base_url: &str) -> ProviderSettings {
    let (base_url, api_key) = (base_url.to_owned(), Some("sk-secret".into()));
    ProviderSettings { api, base_url, api_key, default_model: None, stream_above: 1_000, traceparent: false }
}

fn runners() -> Runners {
    let one = "https://one.example/v1";
    let providers = [
        ("openai", provider(Api::OpenAi, one)),
        ("again", ProviderSettings { stream_above: 9, ..provider(Api::OpenAi, "https://one.example/v1/") }),
        ("two", provider(Api::OpenAi, "https://two.example/v1")),
        ("claude", provider(Api::Anthropic, one)),
        ("gemini", provider(Api::Gemini, one)),
    ];
    let model = |provider: &str| vec![Model { provider: provider.into(), model: "large".into() }];
    let named = [("upper", ["tr", "a-z", "A-Z"]), ("lower", ["tr", "A-Z", "a-z"])];
    let command = |argv: [&str; 3]| Command { argv: argv.map(str::to_owned).to_vec(), limit_texts: None };
    let named = named.map(|(name, argv)| (name.to_owned(), command(argv)));
    Runners::new(RunnerSettings {
        providers: providers.map(|(name, settings)| (name.to_owned(), settings)).into(),
        models: [("fast".to_owned(), model("openai")), ("other".to_owned(), model("two"))].into(),
        exec: ExecSettings { named: named.into(), allow_inline: true, environment: Vec::new(), max_output: 1_000 },
        mock: MockSettings::standard(),
    })
    .unwrap()
}

fn key(runners: &Runners, work: Work) -> ReuseKey {
    let job = Job::new(Queue::standard(), work);
    runners.pick(&job).unwrap().reuse_key(&job).unwrap()
}

fn prompt(model: &str, params: &str) -> Work {
    let mut work = Work::prompt(Some(model), "Hi");
    if let Input::Prompt(prompt) = &mut work.input {
        prompt.params = params.to_owned();
    }
    work
}

fn request(model: Option<&str>, url: &str, body: &str) -> Work {
    Work { model: model.map(str::to_owned), input: Input::Request { url: url.into(), body: body.into() } }
}

#[test]
fn names_of_one_model_at_one_place_are_one() {
    let runners = runners();
    let key = |work| key(&runners, work);
    let most = r#"{"max_tokens":64}"#;
    let large = key(prompt("large", most));
    for model in ["openai/large", "again/large", "fast"] {
        assert_eq!(key(prompt(model, most)), large, "{model}: with or without a stream");
    }
    for model in ["two/large", "other", "openai/small", "claude/large", "gemini/large"] {
        assert_ne!(key(prompt(model, most)), large, "{model}");
    }
    assert_ne!(key(prompt("gemini/large", most)), key(prompt("gemini/small", most)), "it has its model in the path");
    assert_ne!(key(prompt("large", r#"{"max_tokens":65}"#)), large);
}

#[test]
fn ready_made_requests_are_known_by_what_they_mean() {
    let runners = runners();
    let key = |work| key(&runners, work);
    let chat = "/v1/chat/completions";
    let written = key(request(None, chat, r#"{"model":"large","messages":[],"temperature":0.5}"#));
    let same = [
        request(None, chat, "{ \"temperature\":0.5, \"messages\": [ ],\n\"model\" : \"large\" }"),
        request(None, chat, r#"{"model":"openai/large","messages":[],"temperature":0.5}"#),
        request(Some("fast"), chat, r#"{"messages":[],"temperature":0.5}"#),
    ];
    for (n, work) in same.into_iter().enumerate() {
        assert_eq!(key(work), written, "{n}");
    }
    let others = [
        request(None, "/v1/responses", r#"{"model":"large","messages":[],"temperature":0.5}"#),
        request(None, chat, r#"{"model":"large","messages":[],"temperature":0.50}"#),
        request(None, chat, r#"{"model":"large","messages":[{}],"temperature":0.5}"#),
        request(None, chat, r#"{"model":"large","messages":[]}"#),
    ];
    for (n, work) in others.into_iter().enumerate() {
        assert_ne!(key(work), written, "{n}");
    }
}

#[test]
fn commands_are_known_by_what_is_run_and_given() {
    let runners = runners();
    let key = |work| key(&runners, work);
    let upper = key(prompt("upper", ""));
    assert_eq!(key(prompt("exec:tr a-z A-Z", "")), upper);
    assert_ne!(key(prompt("lower", "")), upper);
    assert_ne!(key(Work::prompt(Some("upper"), "Ho")), upper);
    assert_ne!(key(prompt("mock", "")), key(prompt("mock:seed=7", "")));
}

#[tokio::test]
async fn only_answers_of_a_bearable_size_are_kept() {
    let store = Store::memory();
    let shelf = Shelf::new(Some(store.clone()));
    let text = |bytes: u64| Body::Text("x".repeat(usize::try_from(bytes).unwrap()));
    for (n, (body, is_kept)) in [(text(REUSE_BYTES), true), (text(REUSE_BYTES + 1), false)].into_iter().enumerate() {
        let place = store.put_output(JobId::fresh(), LeaseId::random(), &body).await.unwrap();
        for (output, how) in [(Output::Inline(body.clone()), "inline"), (Output::Stored(place), "stored")] {
            let key = ReuseKey::new(None, &[how, &n.to_string()]);
            let answer = Answer::plain(output);
            shelf.keep(Fresh { key, job: JobId::fresh(), at: Timestamp::now(), answer }).await;
            let kept = store.reusable(&key).await.unwrap();
            assert_eq!(kept.map(|kept| kept.body), is_kept.then(|| body.clone()), "{n}, {how}");
        }
    }
}

#[tokio::test]
async fn an_answer_that_is_gone_by_then_keeps_nobody_from_the_store() {
    let store = Store::memory();
    let shelf = Shelf::new(Some(store.clone()));
    let place = store.put_output(JobId::fresh(), LeaseId::random(), &Body::Text("x".into())).await.unwrap();
    store.delete(std::slice::from_ref(&place.key)).await.unwrap();
    let key = ReuseKey::new(None, &["q"]);
    let answer = Answer::plain(Output::Stored(place));
    shelf.keep(Fresh { key, job: JobId::fresh(), at: Timestamp::now(), answer }).await;
    assert!(shelf.open().is_some() && store.reusable(&key).await.unwrap().is_none());
}
