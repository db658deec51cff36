//! Traces as a collector is told them by real processes, and the places in them that jobs, calls and results are given.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use promptq_common::broker::MAX_BATCH;
use promptq_common::job::{JobId, Queue};
use promptq_common::ledger::JobFilter;
use promptq_common::record::Record;
use promptq_common::telemetry::trace::name;
use promptq_tests::admin::Admin;
use promptq_tests::collector::{Collector, Span};
use promptq_tests::fake::fault::FaultRule;
use promptq_tests::fake::kind::Kind;
use promptq_tests::gateway::{Ask, Gateway};
use promptq_tests::metered::{Metered, Place};
use promptq_tests::process::{Home, Said};
use promptq_tests::rabbit::{RawClient, RawMessage};
use promptq_tests::site::{Hand, until};
use promptq_tests::steps::record;
use rustix::process::Signal;
use serde_json::json;

const QUICK: &str = "[latency]\nfirst = { fixed = \"10ms\" }\n";
const CONFIG: &str = "\
[queues.default.backoff]
first = '50ms'
[providers.openai]
traceparent = true
[prices.'openai/gpt-4o']
input = '2.50'
output = '10'
as_of = '2026-11-03'
";
const PROMPT: &str = "swordfish is the word";
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
/// What a caller says; its trace, its span.
const CALLER: (&str, &str, &str) =
    ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
/// What spans say, under the names that dashboards ask for.
const SENT: &[&str] = &[
    "messaging.destination.name",
    "messaging.message.conversation_id",
    "messaging.message.id",
    "messaging.operation.name",
    "messaging.operation.type",
    "messaging.system",
];
const PROCESSED: &[&str] = &[
    "messaging.client.id",
    "messaging.destination.name",
    "messaging.message.conversation_id",
    "messaging.message.id",
    "messaging.operation.name",
    "messaging.operation.type",
    "messaging.system",
    "promptq.job.attempt",
    "promptq.job.epoch",
    "promptq.job.outcome",
];
const SETTLED: &[&str] = PROCESSED.split_at(7).0;
const ANSWERED: &[&str] = &[
    "gen_ai.operation.name",
    "gen_ai.provider.name",
    "gen_ai.request.model",
    "gen_ai.response.finish_reasons",
    "gen_ai.response.id",
    "gen_ai.response.model",
    "gen_ai.usage.input_tokens",
    "gen_ai.usage.output_tokens",
    "http.response.status_code",
    "promptq.cost.usd",
    "promptq.limit.key",
];

fn hand(metered: &Metered, home: &Home, arguments: &[&str], collector: &str) -> Hand {
    let mut command = metered.program("promptq-worker", "w", arguments);
    command.env(ENDPOINT, collector).env("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test");
    Hand::start(command, home.path("worker.log"))
}

fn submit(metered: &Metered, lines: &str, variables: &[(&str, &str)]) -> Said {
    metered.write("jobs.jsonl", lines);
    Said::of(metered.program("promptq", "cli", &["submit", "jobs.jsonl"]).envs(variables.iter().copied()))
}

fn named<'a>(spans: &'a [Span], first: &str) -> Vec<&'a Span> {
    spans.iter().filter(|span| span.name.split(' ').next() == Some(first)).collect()
}

async fn ended(metered: &Metered, id: JobId) -> Record {
    let broker = metered.broker().await;
    until("the job has ended", async || {
        let view = broker.ledger().fetch(&[id]).await.unwrap().pop().flatten();
        view.and_then(|view| view.record).map(|record| *record)
    })
    .await
}

/// One job whose first call fails, from its submission to its result.
async fn one_trace(place: Place) {
    let (collector, home) = (Collector::start().await, Home::new());
    let metered = Metered::new(place, QUICK, CONFIG);
    metered.fake.set_faults(&[FaultRule { first: Some(1), ..FaultRule::new(Kind::ServerError) }]).unwrap();
    let line = json!({ "prompt": PROMPT, "model": "openai/gpt-4o", "promptq": { "delay": "200ms" } });
    let line = format!("{line}\n");
    submit(&metered, &line, &[(ENDPOINT, &collector.url())]).ends(0);
    let sent = collector.told(1).await.remove(0);
    assert_eq!((sent.name.as_str(), sent.kind, sent.service.as_str()), ("send default", 4, "promptq"));
    assert_eq!((sent.parent.as_deref(), sent.failed), (None, false));
    let id = sent.says(name::MESSAGE).parse::<JobId>().unwrap();
    let shown = |metered: &Metered| {
        Said::of(&mut metered.program("promptq", "cli", &["jobs", "show", &id.to_string(), "--json"]))
    };
    if !matches!(metered.place, Place::Rabbit { .. }) {
        assert_eq!(shown(&metered).ends(0).json()["trace_id"], sent.trace, "while it waits");
    }
    let worker = hand(&metered, &home, &[], &collector.url());
    let record = ended(&metered, id).await;
    assert_eq!((record.attempts, record.trace.unwrap().trace_id()), (2, sent.trace.clone()));
    worker.leaves();
    let spans = collector.told(7).await;
    let traces: HashSet<_> = spans.iter().map(|span| span.trace.as_str()).collect();
    assert_eq!((traces.len(), spans.len()), (1, 7), "{spans:#?}");

    let processed = named(&spans, "process");
    let attempts: Vec<_> = processed.iter().map(|span| span.says(name::ATTEMPT)).collect();
    let outcomes: Vec<_> = processed.iter().map(|span| span.says(name::OUTCOME)).collect();
    assert_eq!((attempts, outcomes), (vec!["1", "2"], vec!["retried", "succeeded"]), "a retry is in the same trace");
    assert_eq!([processed[0].failed, processed[1].failed], [true, false]);
    for span in &processed {
        assert_eq!((span.kind, span.service.as_str()), (5, "promptq-worker"));
        assert_eq!((span.parent.as_deref(), span.says(name::MESSAGE)), (Some(sent.id.as_str()), &*id.to_string()));
        assert_eq!(span.says(name::SYSTEM), sent.says(name::SYSTEM));
    }
    assert_eq!(record.trace.unwrap().span_id(), processed[1].id, "the result is from the delivery that gave it");
    let settled = settled_below(&processed, &spans);

    let (called, at_provider) = (named(&spans, "chat"), metered.fake.calls(0));
    assert_eq!((called.len(), at_provider.len()), (2, 2));
    for ((call, process), seen) in called.iter().zip(&processed).zip(&at_provider) {
        assert_eq!((call.kind, call.parent.as_deref()), (3, Some(process.id.as_str())));
        assert_eq!((call.name.as_str(), call.says(name::PROVIDER)), ("chat gpt-4o", "openai"));
        assert_eq!(seen.trace, Some(format!("00-{}-{}-01", sent.trace, call.id)), "the provider is told of its call");
    }
    let (failed, answered) = (called[0], called[1]);
    assert_eq!((failed.failed, failed.says(name::ERROR), failed.says(name::STATUS)), (true, "transient", "500"));
    assert_eq!((answered.failed, answered.says(name::STATUS)), (false, "200"));
    assert_eq!(answered.says(name::INPUT), at_provider[1].input_tokens.to_string());
    assert_eq!(answered.says(name::OUTPUT), at_provider[1].output_tokens.to_string());
    assert!(answered.says(name::FINISH).contains("stop"), "{answered:?}");
    for (span, names) in [(&sent, SENT), (processed[1], PROCESSED), (settled[1], SETTLED), (answered, ANSWERED)] {
        assert_eq!(span.said.keys().map(String::as_str).collect::<Vec<_>>(), names, "{}", span.name);
    }

    assert_eq!(shown(&metered).ends(0).json()["trace_id"], sent.trace);
    nothing_else(&collector, record);
}

/// The span in which each delivery is settled: says what the delivery says, and is below it.
fn settled_below<'a>(processed: &[&Span], spans: &'a [Span]) -> Vec<&'a Span> {
    let settled = named(spans, "settle");
    assert_eq!(settled.len(), processed.len());
    for (settle, process) in settled.iter().zip(processed) {
        assert_eq!((settle.name.as_str(), settle.kind, settle.failed), ("settle default", 3, false));
        assert_eq!(settle.parent.as_deref(), Some(process.id.as_str()));
        for (key, value) in settle.said.iter().filter(|(key, _)| !key.starts_with("messaging.operation.")) {
            assert_eq!(value, process.says(key), "{key}");
        }
    }
    settled
}

/// Nothing is told under a name that is not known, nor anything of the prompt or the answer.
fn nothing_else(collector: &Collector, record: Record) {
    let (spans, requests) = (collector.spans(), collector.requests());
    let words: HashSet<_> = spans.iter().flat_map(|span| span.said.keys()).collect();
    assert!(words.iter().all(|word| name::ATTRIBUTES.contains(&word.as_str())), "{words:?}");
    let text = requests.iter().map(|request| request.body.to_string()).collect::<String>();
    assert!(text.contains("deployment.environment.name") && !text.contains("swordfish"), "{text}");
    let answer = serde_json::to_string(&record.answer.unwrap().output).unwrap();
    let content = answer.split("content").nth(1).and_then(|rest| rest.get(5..40)).expect("an answer");
    assert!(!text.contains(content), "{content} is told");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_one_trace_from_its_submission_to_its_result_in_a_file() {
    one_trace(Place::File).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_one_trace_from_its_submission_to_its_result_on_redis() {
    one_trace(Place::redis()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_one_trace_from_its_submission_to_its_result_on_rabbitmq() {
    one_trace(Place::rabbit()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_clients_place_is_kept_and_a_malformed_one_is_none() {
    let (collector, home) = (Collector::start().await, Home::new());
    let metered = Metered::new(Place::rabbit(), QUICK, "");
    let broker = metered.broker().await;
    broker.declare(&Queue::standard(), &[], false).await.unwrap();
    let Place::Rabbit { host, .. } = &metered.place else { panic!("it is RabbitMQ") };
    let client = RawClient::connect(&host.url()).await;
    for (id, said) in [("well", CALLER.0), ("badly", "00-4BF9-zz")] {
        let message = RawMessage {
            exchange: "pq1.in".into(),
            routing_key: "default".into(),
            id: Some(id.into()),
            content_type: Some("application/json".into()),
            headers: BTreeMap::from([("traceparent".to_owned(), said.to_owned())]),
            durable: true,
            body: br#"{"prompt":"hi","model":"mock"}"#.to_vec(),
            ..RawMessage::default()
        };
        assert!(client.publish(&message).await, "{id}");
    }
    let (well, badly) = (id_of("well"), id_of("badly"));
    let worker = hand(&metered, &home, &["--max-jobs", "2"], &collector.url());
    let (kept, own) = (ended(&metered, well).await.trace.unwrap(), ended(&metered, badly).await.trace.unwrap());
    worker.leaves();
    let spans = collector.told(6).await;
    let processed = named(&spans, "process");
    let of = |id: JobId| *processed.iter().find(|span| span.says(name::MESSAGE) == id.to_string()).unwrap();
    assert_eq!((of(well).trace.as_str(), of(well).parent.as_deref()), (CALLER.1, Some(CALLER.2)));
    assert_eq!((of(badly).trace.clone(), of(badly).parent.clone()), (badly.to_string().replace('-', ""), None));
    let results = client.take_all("pq1.results.default").await;
    let told = |id: JobId| results.iter().find(|result| result.id == Some(id.to_string())).unwrap();
    assert_eq!(told(well).headers["traceparent"], kept.to_string(), "the result goes on from there");
    assert_eq!(told(badly).headers["traceparent"], own.to_string());
    assert_eq!(kept.span_id(), of(well).id);
}

fn id_of(key: &str) -> JobId {
    JobId::derived(&Queue::standard(), None, key)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callers_place_travels_though_nothing_is_traced_here() {
    let home = Home::new();
    let gateway = Gateway::start(&home, &[]).await.ready().await;
    let job = r#"{"prompt":"hi","model":"mock"}"#;
    let post = async |said: Option<&str>| {
        let ask = Ask::post("/v1/jobs", job);
        let ask = said.into_iter().fold(ask, |ask, said| ask.with("traceparent", said));
        gateway.ask(ask).await.is(201).text("id").parse::<JobId>().unwrap()
    };
    let (well, badly, silent) = (post(Some(CALLER.0)).await, post(Some("00-0-0-0")).await, post(None).await);
    let twice = Ask::post("/v1/jobs", job).with("traceparent", CALLER.0).with("traceparent", CALLER.0);
    let twice = gateway.ask(twice).await.is(201).text("id").parse::<JobId>().unwrap();
    let lines = format!("{job}\n{}\n", job.replace("hi", "you"));
    gateway.ask(Ask::post("/v1/batches?batch=b", lines).with("traceparent", CALLER.0)).await.is(201);
    let own = "00-11111111111111111111111111111111-2222222222222222-00";
    home.write(
        "jobs.jsonl",
        &[json!(own), json!(5)]
            .map(|said| format!("{}\n", json!({"prompt": "x", "model": "mock", "promptq": {"traceparent": said}})))
            .concat(),
    );
    let mut command = home.program("promptq", &["submit", "jobs.jsonl", "--batch", "c"]);
    Said::of(command.env("TRACEPARENT", CALLER.0)).ends(0);
    let worker = Hand::start(home.program("promptq-worker", &["--exit-when-idle", "20s"]), home.path("worker.log"));
    let broker = home.broker().await;
    until("all have ended", async || {
        let page = broker.ledger().list(&JobFilter::default(), None, 100).await.unwrap();
        (page.items.len() == 8 && page.items.iter().all(|view| view.record.is_some())).then_some(())
    })
    .await;
    worker.leaves();
    let trace = async |id| record(&broker, id).await.trace.map(|place| place.to_string());
    assert_eq!(trace(well).await.as_deref(), Some(CALLER.0));
    assert_eq!([trace(badly).await, trace(silent).await, trace(twice).await], [None, None, None]);
    let said = |batch: &str| {
        let said = home.promptq(&["results", batch]).ends(0);
        let lines = said.stdout.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines.map(|line| line["promptq"]["trace_id"].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(said("b"), [CALLER.1, CALLER.1]);
    let lines = said("c").into_iter().collect::<HashSet<_>>();
    assert_eq!(lines, HashSet::from(["1".repeat(32), CALLER.1.to_owned()]), "a line knows better than who submits it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_sent_in_one_span_that_points_to_the_jobs() {
    let collector = Collector::start().await;
    let metered = Metered::new(Place::File, QUICK, "");
    let line = |n: u32| format!("{{\"prompt\":\"{n}\",\"model\":\"mock\",\"id\":\"r{n}\"}}\n");
    let lines: String = (0..3).map(line).collect();
    let headers = ("OTEL_EXPORTER_OTLP_HEADERS", "x-api-key=a%20secret");
    submit(&metered, &lines, &[(ENDPOINT, &collector.url()), headers, ("OTEL_SERVICE_NAME", "nightly")]).ends(0);
    let spans = collector.told(4).await;
    let (sent, made) = (named(&spans, "send"), named(&spans, "create"));
    assert_eq!((sent.len(), made.len(), sent[0].kind, sent[0].says(name::COUNT)), (1, 3, 3, "3"));
    let ids: HashSet<_> = made.iter().map(|span| span.id.as_str()).collect();
    assert_eq!(sent[0].links.iter().map(String::as_str).collect::<HashSet<_>>(), ids);
    assert!(spans.iter().all(|span| span.service == "nightly" && !span.failed));
    let traces: HashSet<_> = spans.iter().map(|span| span.trace.as_str()).collect();
    assert_eq!(traces.len(), 4, "each job is a trace of its own");
    let head = &collector.requests()[0].head;
    assert!(head.starts_with("POST /v1/traces ") && head.contains("x-api-key: a secret"), "{head}");

    let below = Collector::start().await;
    let grpc = ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
    let told = submit(&metered, &lines, &[(ENDPOINT, &below.url()), ("TRACEPARENT", CALLER.0), grpc]).ends(0);
    assert_eq!(told.stderr.matches(grpc.0).count(), 1, "{}", told.stderr);
    let spans = below.told(4).await;
    assert!(spans.iter().all(|span| (span.trace.as_str(), span.parent.as_deref()) == (CALLER.1, Some(CALLER.2))));
    let unsampled = CALLER.0.replace("-01", "-00");
    submit(&metered, &lines, &[(ENDPOINT, &below.url()), ("TRACEPARENT", &unsampled)]).ends(0);
    assert_eq!(below.spans().len(), 4, "who decided not to keep a trace is believed");
}

/// How many spans never arrived, as a program says once at its end.
fn missing(said: &Said) -> usize {
    let lines = said.stderr.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let counts = |line: serde_json::Value| Some(line["lost"].as_u64()? + line["dropped"].as_u64()?);
    let told: Vec<_> = lines.filter_map(counts).collect();
    assert_eq!(told.len(), 1, "{}", said.stderr);
    usize::try_from(told[0]).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_cut_says_so() {
    let (collector, home) = (Collector::start().await, Home::new());
    let metered = Metered::new(Place::File, QUICK, "");
    let broker = metered.broker().await;
    submit(&metered, "{\"prompt\":\"x\",\"model\":\"mock:latency=60s..60s\"}\n", &[]).ends(0);
    let mut worker = hand(&metered, &home, &["--drain-timeout", "3s"], &collector.url());
    until("the job is leased", async || {
        let depth = broker.depth(&Queue::standard()).await.unwrap();
        (depth.running == 1).then_some(())
    })
    .await;
    worker.signal(Signal::TERM);
    until("the worker has left", async || worker.code()).await;
    let spans = collector.told(3).await;
    let called = spans.iter().find(|span| span.kind == 1).unwrap();
    assert_eq!((called.failed, called.says(name::ERROR)), (true, name::INTERRUPTED));
    let [process, settle] = ["process", "settle"].map(|first| named(&spans, first)[0]);
    assert_eq!((process.failed, process.says(name::OUTCOME), settle.failed), (false, "cut", false));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_or_silent_holds_nothing_up() {
    const JOBS: usize = 3_000;
    let (silent, home, admin) = (Collector::silent().await, Home::new(), Admin::free());
    let line = |n| format!("{{\"prompt\":\"{n}\",\"model\":\"mock:latency=0ms..0ms\"}}\n");
    let lines = (0..JOBS).map(line).collect::<Vec<_>>().concat();
    for endpoint in [&silent.url(), "http://127.0.0.1:9"] {
        let metered = Metered::new(Place::File, QUICK, "[worker]\nconcurrency = 200\n");
        let begun = Instant::now();
        let said = submit(&metered, &lines, &[(ENDPOINT, endpoint)]).ends(0);
        assert_eq!(missing(&said), JOBS + JOBS / MAX_BATCH, "{}", said.stderr);
        assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
        let worker = hand(&metered, &home, &[&admin.flag()], endpoint);
        let broker = metered.broker().await;
        until("all have succeeded", async || {
            let depth = broker.depth(&Queue::standard()).await.unwrap();
            (depth.ready + depth.delayed + depth.running == 0).then_some(())
        })
        .await;
        until("what was lost is counted", async || {
            let page = admin.page()?;
            let of = |outcome: &str| page.value(&format!("promptq_trace_spans_total{{outcome=\"{outcome}\"}}"));
            assert_eq!(of("sent"), Some(0.0), "{}", page.text);
            assert_eq!(page.strange(), Vec::<&String>::new());
            of("dropped").filter(|dropped| *dropped > 0.0)
        })
        .await;
        let begun = Instant::now();
        worker.leaves();
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    }
}
