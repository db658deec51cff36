//! Many jobs: POST /v1/batches takes job lines as `promptq submit -` does. All of them are checked before the first is
//! enqueued, so that a wrong one keeps all out; what an outage cuts short, the same request completes.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Response, StatusCode, Uri};
use axum::response::IntoResponse;
use bytesize::ByteSize;
use promptq_common::job::{BadName, BatchName, JobId, Queue};
use serde_json::json;

use super::auth::Caller;
use super::job::{caller_of, key_of};
use super::problem::{Problem, Result};
use super::{Gateway, Shared, body, query};
use crate::input::{Destination, Input, InputArgs, JobArgs, Kind, OnConflict, Source};
use crate::submit::{self, Tally, Terms};

/// What the address asks for.
#[derive(Debug)]
struct Asked {
    batch: Option<BatchName>,
    queue: Queue,
    terms: Terms,
}

/// 201 when jobs of it are new, 200 when all were there already.
pub(super) async fn submit(
    State(gateway): State<Shared>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response<Body>> {
    let (head, content) = request.into_parts();
    body::must_be(&head.headers, &["application/x-ndjson", "application/jsonl"])?;
    let mut asked = Asked::read(&head.uri)?;
    asked.terms.caller = caller_of(&head.headers);
    caller.must_cover(&asked.queue)?;
    let key = key_of(&head.headers)?;
    let bad =
        |name: &dyn std::fmt::Display| Problem::new("bad-request", format!("the batch cannot be named so: {name}"));
    let key = key.map(|key| BatchName::new(&key).map_err(|name| bad(&name))).transpose()?;
    let named = asked.batch.is_some() || key.is_some();
    if asked.batch.is_some() && key.is_some() && asked.batch != key {
        return Err(Problem::new("bad-request", "?batch= and the Idempotency-Key name two batches; give one"));
    }
    let fresh = || BatchName::new(&JobId::fresh().to_string()).map_err(|name| bad(&name));
    let batch = asked.batch.clone().or(key).map_or_else(fresh, Ok)?;
    gateway.broker()?;
    let _place = gateway.room.batch(&caller)?;
    let spool = gateway.coming(body::spooled(&head, content, gateway.cx.config.gateway.max_batch)).await?;
    let put = async { put(&gateway, &asked, (batch.clone(), named), Source::spooled("body", spool)).await };
    let tally = tokio::select! {
        biased;
        tally = put => tally,
        () = gateway.last_moment() => Err(Problem::new("stopping", "the gateway was stopped before all jobs were enqueued")),
    };
    let (tally, notes) = tally.map_err(|problem| unfinished(problem, &batch, named))?;
    let status = if tally.new > 0 { StatusCode::CREATED } else { StatusCode::OK };
    let answer = json!({
        "batch": batch,
        "queue": asked.queue,
        "new": tally.new,
        "known": tally.known,
        "invalid": tally.invalid,
        "repeated": tally.repeated,
        "conflicts": tally.conflicts,
        "notes": notes,
    });
    Ok((status, axum::Json(answer)).into_response())
}

/// Enqueues them; what they came to, and why some may come to nothing.
async fn put(
    gateway: &Gateway,
    asked: &Asked,
    (batch, named): (BatchName, bool),
    lines: Source,
) -> Result<(Tally, Vec<String>)> {
    let config = &gateway.cx.config;
    let queue = asked.queue.clone();
    let policy = config.queues.get(&queue).cloned();
    let to = Destination { queue, policy, batch, named, reusable_for: config.reusable_for() };
    let input = Arc::new(
        Input::new(&arguments(asked, ByteSize(config.gateway.max_batch)), vec![lines], to)?
            .fitting(gateway.cx.fit().cloned()),
    );
    let broker = gateway.broker()?;
    let checked = submit::check(&input, broker, asked.terms, None).await?;
    let tally = submit::enqueue(&input, broker, asked.terms, Some(&checked), None).await?;
    let notes = if tally.new > 0 { checked.doubts.lines() } else { Vec::new() };
    Ok((tally, notes))
}

/// Of a batch that was cut short: how the rest is enqueued.
fn unfinished(problem: Problem, batch: &BatchName, named: bool) -> Problem {
    if problem.status() != StatusCode::SERVICE_UNAVAILABLE {
        return problem;
    }
    let problem = problem.with("idempotency_key", named.then(|| batch.to_string()));
    problem.hint(if named {
        "the same request again enqueues only what is missing"
    } else {
        "nobody knows which jobs were enqueued; with ?batch=NAME a repeated request enqueues only what is missing"
    })
}

/// What `promptq submit -` would be given.
fn arguments(asked: &Asked, spool_limit: ByteSize) -> InputArgs {
    InputArgs {
        inputs: vec!["-".to_owned()],
        kind: Some(Kind::Jsonl),
        delimiter: None,
        template: None,
        system: None,
        vars: Vec::new(),
        id_field: None,
        idempotency_key_field: None,
        limit: None,
        skip_invalid: asked.terms.skip_invalid,
        dry_run: false,
        stream: false,
        spool_limit,
        job: JobArgs { on_conflict: asked.terms.on_conflict, ..JobArgs::default() },
    }
}

impl Asked {
    fn read(uri: &Uri) -> Result<Self> {
        let mut asked = Self { batch: None, queue: Queue::standard(), terms: Terms::default() };
        let bad = |why: BadName| Problem::new("bad-request", why.to_string());
        for (name, value) in query::pairs(uri) {
            match (&*name, &*value) {
                ("batch", value) => asked.batch = Some(BatchName::new(value).map_err(bad)?),
                ("queue", value) => asked.queue = Queue::new(value).map_err(bad)?,
                ("skip_invalid", "true") => asked.terms.skip_invalid = true,
                ("skip_invalid", "false") | ("on_conflict", "fail") => {}
                ("on_conflict", "skip") => asked.terms.on_conflict = OnConflict::Skip,
                ("skip_invalid", value) => return Err(query::wrong("skip_invalid", value, "true or false")),
                ("on_conflict", value) => return Err(query::wrong("on_conflict", value, "fail or skip")),
                // The guard has let no other through.
                _ => {}
            }
        }
        Ok(asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_says_what_submit_is_told_by_flags() {
        let of = |query: &str| Asked::read(&format!("/v1/batches?{query}").parse().unwrap());
        let asked = of("batch=nov%20reviews&queue=vision&skip_invalid=true&on_conflict=skip").unwrap();
        assert_eq!((asked.batch.unwrap().as_str(), asked.queue.as_str()), ("nov reviews", "vision"));
        assert!(asked.terms.skip_invalid && asked.terms.on_conflict == OnConflict::Skip);
        let plain = of("").unwrap();
        assert!(plain.batch.is_none() && plain.queue == Queue::standard() && !plain.terms.skip_invalid);
        for (wrong, says) in [
            ("batch=", r#"batch name \"\" must have 1 to 128 characters"#),
            ("queue=a%20b", r#"queue name \"a b\" may hold only A-Z"#),
            ("skip_invalid=yes", r#"skip_invalid is \"yes\", not true or false"#),
            ("on_conflict=", r#"on_conflict is \"\", not fail or skip"#),
        ] {
            let told = of(wrong).unwrap_err();
            assert!(told.status() == 400 && told.body().contains(says), "{wrong}: {}", told.body());
        }
    }
}
