//! What jobs are guessed to take, by figures worked out by hand.

use std::path::{Path, PathBuf};
use std::time::Duration;

use promptq_common::config::{Sources, resolve};
use promptq_common::job::{Extras, JobId, Queue};
use promptq_common::outcome::Body;
use promptq_common::store::Kept;
use promptq_common::time::Timestamp;
use promptq_common::work::{Input, Work};
use serde_json::{Value, json};

use super::capped_tests::lines_of;
use super::weigh::Bound;
use super::*;

pub(super) const ACME: &str = "[providers.acme]\nbase_url = \"http://127.0.0.1:9/v1\"\n[models.fast]\nprovider = \"acme\"\nmodel = \"fast-2\"\n\
    [prices.\"acme/fast-2\"]\ninput = \"0.20\"\noutput = \"0.80\"\nas_of = \"2026-11-03\"\n";

pub(super) fn config(settings: &str) -> Config {
    let read = |_: &Path| Err(std::io::ErrorKind::NotFound.into());
    let sources = Sources {
        files: vec![(PathBuf::from("promptq.toml"), settings.to_owned())],
        environment: [("HOME".to_owned(), "/home/me".to_owned())].into(),
        flags: Vec::new(),
        folder: PathBuf::from("/run"),
        read: &read,
    };
    resolve(&sources).unwrap()
}

pub(super) fn forecaster(settings: &str) -> Forecaster {
    Forecaster::new(&config(settings)).unwrap()
}

/// A prompt of so many bytes whose answer has at most so many tokens.
pub(super) fn job(model: &str, bytes: usize, max_tokens: Option<u64>) -> Job {
    let mut work = Work::prompt(Some(model), "x".repeat(bytes));
    if let (Input::Prompt(prompt), Some(most)) = (&mut work.input, max_tokens) {
        prompt.params = format!("{{\"max_tokens\":{most}}}");
    }
    Job::new(Queue::standard(), work)
}

pub(super) fn of(settings: &str, jobs: &[(usize, Job)]) -> Forecast {
    let forecaster = forecaster(settings);
    let mut forecast = forecaster.forecast();
    for (times, job) in jobs {
        for _ in 0..*times {
            forecast.add(forecaster.share(job));
        }
    }
    forecast
}

#[test]
fn tokens_and_cost_lie_between_what_is_likely_and_the_longest_answers() {
    // 360 bytes are 100 tokens; of 400 tokens that an answer may have 256 are likely.
    let forecast = of(ACME, &[(5_000, job("fast", 360, Some(400)))]);
    assert_eq!(
        forecast.lines(),
        [
            "tokens  about 500k in, 1.2M out (at most 2.0M)",
            // 500,000 x 0.20 + 1,280,000 x 0.80 and 500,000 x 0.20 + 2,000,000 x 0.80, a million each.
            "cost    $1.12 to $1.70 (acme/fast-2; price of 2026-11-03)",
            "limits  none over a time are set here for these jobs",
            "calls   one for each job: what is tried again costs more",
        ]
    );
    let json = forecast.json();
    assert_eq!(json["cost_usd"], json!({ "likely": "1.124", "most": "1.7" }));
    assert_eq!(json["output_tokens"], json!({ "likely": 1_280_000, "most": 2_000_000 }));
    assert_eq!((&json["cost_unknown"], &json["without_max_tokens"]), (&json!(0), &json!(0)));
    assert_eq!(json["prices_as_of"], json!(["2026-11-03", "2026-11-03"]));
}

#[test]
fn of_several_routes_the_first_is_likely_and_the_dearest_the_most() {
    let routes = |routes: &str| {
        let settings =
            format!("{ACME}[prices.\"acme/dear\"]\ninput = \"2\"\noutput = \"8\"\n[models.safe]\nroutes = {routes}");
        of(&settings, &[(5_000, job("safe", 360, Some(400)))])
    };
    let first = routes(r#"["acme/fast-2", "acme/dear"]"#);
    // As above, and ten times as much at the most.
    assert_eq!(first.json()["cost_usd"], json!({ "likely": "1.124", "most": "17" }));
    assert_eq!(routes(r#"["acme/fast-2", "acme/fast-2-mini", "acme/dear"]"#).json()["cost_usd"]["most"], json!("17"));
    let unknown = routes(r#"["acme/fast-2", "acme/slow"]"#);
    let cost = unknown.lines().swap_remove(1);
    let says =
        "cost    $1.12 to $1.70 (acme/fast-2; price of 2026-11-03), or ? on other routes (no price for acme/slow; set";
    assert!(cost.starts_with(says), "{cost}");
    let json = unknown.json();
    assert_eq!((&json["cost_unknown"], &json["unpriced_models"]), (&json!(0), &json!(["acme/slow"])));
    assert_eq!(routes(r#"["acme/slow", "acme/fast-2"]"#).unpriced, 5_000, "nobody knows what is likely");
}

#[test]
fn several_answers_are_counted_and_what_is_no_text_is_told() {
    let request = |body: &str| {
        let input = Input::Request { url: "/v1/chat/completions".into(), body: body.into() };
        Job::new(Queue::standard(), Work { model: Some("fast".into()), input })
    };
    let one = of(ACME, &[(1, request(r#"{"max_tokens":400,"n":1}"#))]);
    let three = of(ACME, &[(1, request(r#"{"max_tokens":400,"n":3}"#))]);
    assert_eq!((one.likely, one.most, three.likely, three.most), (256, 400, 768, 1_200));
    assert_eq!(three.cost.1.as_nanos() - one.cost.1.as_nanos(), 640_000, "800 tokens more");
    assert_eq!(of(ACME, &[(1, request(r#"{"max_tokens":400,"n":"3"}"#))]).unbounded, 1);
    let image = r#"{"max_tokens":9,"messages":[{"content":[{"type":"image_url","image_url":{"url":"https://x"}}]}]}"#;
    let mixed = of(ACME, &[(2, request(image)), (1, job("fast", 36, Some(9)))]);
    assert_eq!(
        mixed.lines()[3],
        "calls   one for each job: what is tried again costs more, and so do images, files and tools (2 jobs)"
    );
    assert_eq!((&mixed.json()["calls_per_job"], &mixed.json()["beyond_text"]), (&json!(1), &json!(2)));
}

#[test]
fn what_has_no_price_is_a_question_mark_and_never_nothing() {
    let forecast = of(ACME, &[(3, job("acme/slow", 36, Some(10)))]);
    assert_eq!(forecast.lines()[1], "cost    ? (no price for acme/slow; set [prices.\"acme/slow\"])");
    assert_eq!((&forecast.json()["cost_usd"], &forecast.json()["cost_unknown"]), (&Value::Null, &json!(3)));
    let mixed = of(ACME, &[(3, job("acme/slow", 36, Some(10))), (1, job("fast", 360_000, Some(100)))]);
    let cost = &mixed.lines()[1];
    assert!(cost.starts_with("cost    $0.02 (acme/fast-2; price of 2026-11-03), and ? for 3 jobs (no price"), "{cost}");
    let fleet = of("", &[(1, job("fast", 36, None))]);
    assert!(
        fleet.lines()[1].starts_with("cost    ? (no price for fast)"),
        "a name of other hosts: {:?}",
        fleet.lines()
    );
    assert_eq!(of(ACME, &[]).lines(), Vec::<String>::new());
    let mock = of("", &[(1, job("mock:latency=0", 36, None))]);
    assert_eq!(mock.lines()[1], "cost    $0 (mock)");
}

#[test]
fn the_tier_that_is_asked_for_has_its_own_price() {
    let cost = |model: &str, tier: &str| {
        let body = format!("{{\"model\":\"{model}\",\"max_completion_tokens\":100,\"service_tier\":{tier}}}");
        let input = Input::Request { url: "/v1/chat/completions".into(), body };
        let job = Job::new(Queue::standard(), Work { model: Some(model.into()), input });
        let json = of(if model == "fast" { ACME } else { "" }, &[(1, job)]).json();
        ["likely", "most"].map(|of| Some(json["cost_usd"][of].as_str()?.parse::<Usd>().unwrap().as_nanos()))
    };
    // Of 100 tokens that an answer may have all are likely.
    let [likely, usual] = cost("gpt-5.5", "\"auto\"");
    assert_eq!(likely, usual);
    assert_eq!(cost("gpt-5.5", "null"), [usual.map(|usual| usual - 5_000); 2], "a token less than with \"auto\"");
    let half = usual.map(|usual| usual / 2);
    assert_eq!(cost("gpt-5.5", "\"flex\""), [half, usual], "it may be moved when its deadline is near");
    assert_eq!(cost("gpt-4o", "\"priority\""), [None, None], "what it costs there is not known");
    let own = cost("fast", "\"auto\"");
    assert!(own[0].is_some());
    assert_eq!([cost("fast", "\"flex\""), cost("fast", "\"fast\"")], [own, [None, None]], "no more than the usual");
}

#[test]
fn an_answer_without_bounds_is_as_long_as_answers_mostly_are() {
    let forecast = of(ACME, &[(1, job("fast", 36, None)), (1, job("fast", 36, Some(8_000)))]);
    assert_eq!((forecast.likely, forecast.most, forecast.unbounded), (1_024 + 2_000, 4_096 + 8_000, 1));
    assert!(forecast.lines()[0].contains("where max_tokens is missing"), "{:?}", forecast.lines());
    let input = Input::Request { url: "/v1/embeddings".into(), body: "{\"input\":\"x\"}".into() };
    let numbers = Job::new(Queue::standard(), Work { model: Some("text-embedding-3-small".into()), input });
    let forecast = of("", &[(2, numbers)]);
    assert_eq!((forecast.likely, forecast.most, forecast.unbounded, forecast.unpriced), (0, 0, 0, 0));
}

#[test]
fn models_of_known_providers_are_priced_where_nobody_configured_them() {
    for (model, priced) in [
        ("anthropic/claude-haiku-4-5", "anthropic/claude-haiku-4-5"),
        ("gpt-4o-mini-2024-07-18", "openai/gpt-4o-mini-2024-07-18"),
        ("gemini/gemini-2.5-flash", "gemini/gemini-2.5-flash"),
    ] {
        let forecast = of("", &[(1, job(model, 36, Some(10)))]);
        assert_eq!(forecast.models.0.first().map(String::as_str), Some(priced));
    }
    let own = "[providers.openai]\nbase_url = \"http://127.0.0.1:9/v1\"";
    assert_eq!(of(own, &[(1, job("gpt-4o-mini", 36, Some(10)))]).unpriced, 1, "a server of one's own");
}

#[test]
fn commands_have_no_tokens_and_no_price() {
    let settings = "[runners.upper]\nargv = [\"tr\", \"a-z\", \"A-Z\"]";
    let forecast = of(settings, &[(1, job("upper", 36, None)), (1, job("exec:wc -w", 36, None))]);
    let lines = forecast.lines();
    assert_eq!((lines.len(), lines[0].as_str()), (2, "cost    ? (no price for commands)"));
}

#[test]
fn the_cap_that_holds_longest_says_how_long_it_takes() {
    let limits = |caps: &str| format!("{ACME}[limits.acme]\n{caps}\n[limits.\"acme/fast-2\"]\ntokens = \"1M/min\"\n");
    let jobs = [(5_000, job("acme/other", 360, Some(100)))];
    let line = |caps: &str| of(&limits(caps), &jobs).lines()[2].clone();
    assert_eq!(
        line("requests = \"500/min\"\ntokens = \"200k/min\"\nconcurrent = 4"),
        "limits  acme: 500 requests/min: bound by requests, about 10m with any number of workers"
    );
    // 5,000 x (100 + 100) tokens at 50,000 a minute.
    assert_eq!(
        line("requests = \"500/min\"\ntokens = \"50k/min\""),
        "limits  acme: 50000 tokens/min: bound by tokens, about 20m with any number of workers"
    );
    assert_eq!(
        line("requests_per_day = \"2000\""),
        "limits  acme: 2000 requests/day: bound by requests, about 2d12h with any number of workers"
    );
    assert_eq!(
        line("requests = \"5k/min\""),
        "limits  acme: 5000 requests/min: bound by requests, about 50s with any number of workers"
    );
    // A tenth goes at once, the rest as that fills up again; of a day all may.
    let few =
        |count: usize, caps: &str| of(&limits(caps), &[(count, job("acme/other", 360, Some(100)))]).lines()[2].clone();
    assert_eq!(few(50, "requests = \"500/min\""), "limits  acme: 500 requests/min: room for all");
    assert_eq!(
        few(300, "requests = \"500/min\""),
        "limits  acme: 500 requests/min: bound by requests, about 30s with any number of workers"
    );
    assert_eq!(few(300, "requests_per_day = \"500\""), "limits  acme: 500 requests/day: room for all");
    let both = of(&limits("requests = \"500/min\""), &[(2_000, job("fast", 360, Some(1_100)))]);
    let bounds = both.bounds();
    let seconds = |bound: &Bound| bound.takes.unwrap().as_secs();
    let mut found: Vec<_> = bounds.iter().map(|bound| (bound.stand.key.as_str(), seconds(bound))).collect();
    found.sort_unstable();
    assert_eq!(
        found,
        // 2,000 x (100 + 275) tokens, of which 100,000 go at once and 1.1M a minute.
        [("acme", 240), ("acme/fast-2", 35)],
        "both count: {bounds:?}"
    );
    let json = of(&limits("requests = \"500/min\""), &jobs).json();
    assert_eq!((&json["least_seconds"], &json["limits"][0]["cap"]), (&json!(600), &json!("500 requests/min")));
}

#[test]
fn only_so_many_models_are_named() {
    let mut forecast = Forecast::default();
    let forecaster = forecaster("");
    for n in (0..100).rev() {
        forecast.add(forecaster.share(&job(&format!("m{n:02}"), 1, None)));
    }
    assert_eq!((forecast.unpriced, forecast.models.1.len()), (100, NAMED));
    assert!(
        forecast.lines()[1].starts_with("cost    ? (no price for m00, m01, m02 and 17 more)"),
        "{:?}",
        forecast.lines()
    );
}

#[tokio::test]
async fn a_stored_answer_costs_nothing_and_only_so_many_are_looked_up() {
    let store = Store::memory();
    let forecaster = forecaster(ACME).reusing(Some(store.clone()));
    let reusing = |n: usize| {
        let extras = Extras { reuse: Some(Duration::from_secs(3_600)), ..Extras::default() };
        Job { extras: extras.kept(), ..job("fast", 36 + n, Some(400)) }
    };
    let keep = async |job: &Job, age: u64| {
        let key = forecaster.runners.routes(job).unwrap()[0].reuse_key(job).unwrap();
        let (at, body) = (Timestamp::now() - Duration::from_secs(age), Body::Text("yes".into()));
        let kept = Kept { job: JobId::fresh(), at, status_code: 200, model: None, finish_reason: None, body };
        store.keep_reusable(&key, &kept).await.unwrap();
    };
    keep(&reusing(1), 60).await;
    keep(&reusing(2), 7_200).await;
    let mut forecast = forecaster.forecast();
    forecast
        .take((0..4).map(|n| forecaster.share(&reusing(n))).chain([forecaster.share(&job("fast", 37, None))]).collect())
        .await;
    assert_eq!(lines_of(&forecast, "reuse"), ["reuse   1 of 4 have a stored answer, which costs nothing"]);
    assert_eq!(forecast.jobs, 4, "another's is too old, one takes none, two are new");
    forecast.take(vec![forecaster.share(&reusing(1)); 600]).await;
    assert_eq!(
        lines_of(&forecast, "reuse"),
        [
            "reuse   497 of 500 looked up have a stored answer, which costs nothing; 104 more were not looked up, and count as called"
        ]
    );
    assert_eq!(
        (forecast.jobs, &forecast.json()["reuse"]),
        (108, &json!({ "asked": 604, "looked_up": 500, "found": 497 }))
    );
    let nowhere = Forecaster::new(&config(ACME)).unwrap();
    let mut forecast = nowhere.forecast();
    forecast.take(vec![nowhere.share(&reusing(1))]).await;
    assert!(lines_of(&forecast, "reuse")[0].ends_with("1 more were not looked up: no store is set here (--store)"));
}
