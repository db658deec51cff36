//! promptq's own clients against it: the same answer whole and streamed, and each fault in the class that providers' manuals
//! give it, for every API.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use promptq_common::broker::{LeaseId, WorkerId};
use promptq_common::config::Api;
use promptq_common::job::{Job, Queue};
use promptq_common::outcome::FailureClass::{
    self, Account, Capacity, Content, Fatal, Throttled, Transient, UnknownBilled,
};
use promptq_common::outcome::{Body, Failure, Outcome, Reply, Usage};
use promptq_common::work::{Input, Prompt, Work};
use promptq_tests::fake::Fake;
use promptq_tests::fake::fault::FaultRule;
use promptq_tests::fake::kind::Kind;
use promptq_tests::fake::ledger::End;
use promptq_worker::runner::{ExecSettings, MockSettings, ProviderSettings, RunContext, RunnerSettings, Runners};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{SPLIT, fake};

const APIS: [Api; 3] = [Api::OpenAi, Api::Anthropic, Api::Gemini];

/// How long a call may take that is to be answered.
const PATIENCE: Duration = Duration::from_secs(60);

/// One that wants answers whole, one that wants them streamed.
struct Clients([Runners; 2]);

impl Clients {
    fn of(fake: &Fake) -> Self {
        Self([u64::MAX, 0].map(|stream_above| Runners::new(settings(fake, stream_above)).unwrap()))
    }

    async fn call(&self, streamed: bool, work: Work) -> Result<Reply, Failure> {
        self.call_within(streamed, work, PATIENCE).await
    }

    async fn call_within(&self, streamed: bool, work: Work, timeout: Duration) -> Result<Reply, Failure> {
        let mut job = Job::new(Queue::standard(), work);
        job.policy.timeout = timeout;
        let cx = RunContext {
            attempt: 1,
            lease: LeaseId::random(),
            worker: WorkerId::random("fake"),
            ear: None,
            stream: false,
            trace: None,
        };
        match self.0[usize::from(streamed)].pick(&job)?.run(&job, &cx).await {
            Outcome::Success(reply) => Ok(reply),
            Outcome::Failure(failure) => Err(failure),
        }
    }
}

fn settings(fake: &Fake, stream_above: u64) -> RunnerSettings {
    let provider = |api: Api| {
        let version = if api == Api::Gemini { "v1beta" } else { "v1" };
        let base_url = format!("{}/w7/{version}", fake.origin());
        let api_key = Some("sk-a".into());
        (
            api.provider().to_owned(),
            ProviderSettings { api, base_url, api_key, default_model: None, stream_above, traceparent: false },
        )
    };
    RunnerSettings {
        providers: APIS.map(provider).into(),
        models: BTreeMap::new(),
        exec: ExecSettings { named: BTreeMap::new(), allow_inline: false, environment: Vec::new(), max_output: 0 },
        mock: MockSettings::standard(),
    }
}

/// For a model of each API's own, since a limit is kept for each.
fn prompt(api: Api, most: u64) -> Work {
    let params = json!({ "max_tokens": most }).to_string();
    let prompt = Prompt { text: "twelve bytes".to_owned(), system: None, params };
    Work { model: Some(format!("{0}/model-of-{0}", api.provider())), input: Input::Prompt(prompt) }
}

fn request(url: &str, body: &Value) -> Work {
    Work { model: None, input: Input::Request { url: url.to_owned(), body: body.to_string() } }
}

#[tokio::test]
async fn an_answer_is_the_same_whole_and_streamed() {
    let fake = fake(SPLIT);
    let clients = Clients::of(&fake);
    for (most, ends) in [
        (100, ["stop", "completed", "end_turn", "STOP"]),
        (8, ["length", "max_output_tokens", "max_tokens", "MAX_TOKENS"]),
    ] {
        let responses = json!({ "model": "gpt-4o", "input": "twelve bytes", "max_output_tokens": most });
        let works = [
            prompt(Api::OpenAi, most),
            request("/v1/responses", &responses),
            prompt(Api::Anthropic, most),
            prompt(Api::Gemini, most),
        ];
        for (work, end) in works.into_iter().zip(ends) {
            let whole = clients.call(false, work.clone()).await.unwrap();
            let streamed = clients.call(true, work).await.unwrap();
            let output_tokens = most.min(40);
            let thoughts = output_tokens / 4;
            // Anthropic counts them without telling how many there were.
            let reasoning_tokens = if matches!(end, "end_turn" | "max_tokens") { 0 } else { thoughts };
            let usage = Usage { input_tokens: 3, output_tokens, cached_tokens: 2, reasoning_tokens };
            assert_eq!((whole.usage, whole.finish_reason.as_deref()), (usage, Some(end)));
            assert_eq!(whole.text.as_deref().unwrap().split(' ').count() as u64, output_tokens - thoughts, "{end}");
            let said =
                |reply: &Reply| (reply.text.clone(), reply.finish_reason.clone(), reply.usage, reply.model.clone());
            assert_eq!(said(&streamed), said(&whole));
            let in_pieces = |reply: &Reply| reply.detail.as_ref().is_some_and(|detail| detail.first_piece.is_some());
            assert!(in_pieces(&streamed) && !in_pieces(&whole), "{end}");
        }
    }
    let calls = fake.calls(0);
    assert!(calls.iter().all(|call| call.caller.as_deref() == Some("w7") && call.end == End::Answered), "{calls:?}");
    assert_eq!(calls.iter().map(|call| call.stream).collect::<Vec<_>>(), [false, true].repeat(8));
}

#[tokio::test]
async fn embeddings_and_ids_are_read() {
    let fake = fake(SPLIT);
    let clients = Clients::of(&fake);
    let body = json!({ "model": "e", "input": ["one", "two"], "dimensions": 4 });
    let reply = clients.call(false, request("/v1/embeddings", &body)).await.unwrap();
    let Body::Json(body) = reply.body else { panic!("no JSON") };
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((body["data"].as_array().unwrap().len(), reply.usage.input_tokens), (2, 2));
    assert_eq!(body["data"][1]["embedding"].as_array().unwrap().len(), 4);
    for (api, begins) in [(Api::OpenAi, "req_"), (Api::Anthropic, "req_"), (Api::Gemini, "")] {
        for streamed in [false, true] {
            let id = clients.call(streamed, prompt(api, 100)).await.unwrap().request_id.unwrap();
            assert!(id.starts_with(begins) && id.len() >= 20, "{api:?} {streamed} {id}");
        }
    }
}

/// What each kind of fault is to `OpenAI`'s client, Anthropic's and Gemini's. An API without such a fault answers with what
/// comes nearest, and that is classed.
const CLASSES: [(Kind, [FailureClass; 3]); 35] = [
    (Kind::RateLimited, [Throttled; 3]),
    (Kind::SlowDown, [Throttled, Capacity, Capacity]),
    (Kind::DailyLimit, [Throttled, Throttled, Account]),
    (Kind::RequestTooLarge, [Fatal, Throttled, Throttled]),
    (Kind::NoSuchTier, [Fatal; 3]),
    (Kind::Overloaded, [Capacity; 3]),
    (Kind::Unavailable, [Capacity; 3]),
    (Kind::FlexUnavailable, [Capacity; 3]),
    (Kind::CapacityExceeded, [Capacity; 3]),
    (Kind::InsufficientQuota, [Account; 3]),
    (Kind::CreditExhausted, [Account; 3]),
    (Kind::SpendLimit, [Account; 3]),
    (Kind::ProjectSpendLimit, [Account; 3]),
    (Kind::UsageLimit, [Account; 3]),
    (Kind::Billing, [Account; 3]),
    (Kind::InvalidKey, [Account; 3]),
    (Kind::Permission, [Account; 3]),
    (Kind::Region, [Account; 3]),
    (Kind::Moderated, [Content, Fatal, Fatal]),
    (Kind::Content, [Content, Fatal, Content]),
    (Kind::ModelNotFound, [Fatal; 3]),
    (Kind::ContextLength, [Fatal; 3]),
    (Kind::InvalidRequest, [Fatal; 3]),
    (Kind::Unprocessable, [Fatal; 3]),
    (Kind::BodyTooLarge, [Fatal; 3]),
    (Kind::ServerError, [Transient; 3]),
    (Kind::BadGateway, [Transient; 3]),
    (Kind::GatewayTimeout, [Transient; 3]),
    (Kind::RequestTimeout, [Transient; 3]),
    (Kind::Conflict, [Transient; 3]),
    (Kind::MalformedJson, [UnknownBilled; 3]),
    (Kind::EmptyBody, [UnknownBilled; 3]),
    (Kind::CutInBody, [UnknownBilled; 3]),
    (Kind::CutInHeaders, [UnknownBilled; 3]),
    (Kind::CutBeforeHeaders, [UnknownBilled; 3]),
];

#[tokio::test]
async fn each_fault_has_its_class_whole_and_streamed() {
    let fake = fake("");
    let (clients, mut wrong) = (Clients::of(&fake), Vec::new());
    for (kind, classes) in CLASSES {
        fake.set_faults(&[FaultRule::new(kind)]).unwrap();
        let calls = APIS.into_iter().zip(classes).flat_map(|(api, class)| [(api, class, false), (api, class, true)]);
        for (api, class, streamed) in calls {
            let came = clients.call(streamed, prompt(api, 100)).await;
            if !came.as_ref().is_err_and(|failure| failure.class == class) {
                wrong.push(format!("{kind:?} of {api:?}, streamed: {streamed}, is not {class:?}: {came:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn an_error_in_place_of_an_answer_is_classed_by_what_it_says() {
    let fake = fake("");
    let clients = Clients::of(&fake);
    for (inner, class) in [
        (Kind::Overloaded, Capacity),
        (Kind::RateLimited, Throttled),
        (Kind::ServerError, Transient),
        (Kind::SpendLimit, Account),
    ] {
        fake.set_faults(&[FaultRule { inner: Some(inner), ..FaultRule::new(Kind::ErrorInside) }]).unwrap();
        for api in APIS {
            let failure = clients.call(false, prompt(api, 100)).await.unwrap_err();
            assert_eq!(failure.class, class, "{inner:?} {api:?} {failure:?}");
        }
    }
}

#[tokio::test]
async fn a_refused_answer_says_so_in_each_apis_way() {
    let fake = fake("[[faults]]\nkind = \"refused_answer\"");
    let clients = Clients::of(&fake);
    for streamed in [false, true] {
        for (api, end) in [(Api::OpenAi, "content_filter"), (Api::Anthropic, "refusal")] {
            let reply = clients.call(streamed, prompt(api, 100)).await.unwrap();
            assert_eq!(reply.finish_reason.as_deref(), Some(end), "streamed: {streamed}");
        }
        let failure = clients.call(streamed, prompt(Api::Gemini, 100)).await.unwrap_err();
        assert_eq!((failure.class, failure.usage.output_tokens), (Content, 20), "streamed: {streamed}, {failure:?}");
    }
}

#[tokio::test]
async fn what_never_comes_may_have_been_billed() {
    for kind in [Kind::Silent, Kind::Stalled] {
        let fake = fake("");
        fake.set_faults(&[FaultRule::new(kind)]).unwrap();
        let (clients, mut calls) = (Arc::new(Clients::of(&fake)), JoinSet::new());
        for (api, streamed) in APIS.into_iter().flat_map(|api| [(api, false), (api, true)]) {
            let clients = Arc::clone(&clients);
            calls.spawn(async move { clients.call_within(streamed, prompt(api, 100), Duration::from_secs(1)).await });
        }
        for ended in calls.join_all().await {
            let failure = ended.unwrap_err();
            assert_eq!((failure.class, failure.code.as_str()), (UnknownBilled, "timeout"), "{kind:?}");
        }
    }
}

#[tokio::test]
async fn a_limit_is_told_so_that_our_own_clients_wait_as_long() {
    let fake = fake("minute = \"30s\"\n[[limits]]\nminute = { requests = 1 }");
    let clients = Clients::of(&fake);
    for api in APIS {
        clients.call(false, prompt(api, 100)).await.unwrap();
        let failure = clients.call(false, prompt(api, 100)).await.unwrap_err();
        assert_eq!(failure.class, Throttled);
        let wait = failure.retry_after.unwrap().as_secs_f64();
        assert!((20.0..=30.0).contains(&wait), "{api:?} {wait}");
    }
}
