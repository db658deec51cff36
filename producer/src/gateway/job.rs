//! One job: POST /v1/jobs puts it in, GET /v1/jobs/{id} shows it, POST /v1/jobs/{id}/cancel stops it.

use axum::Extension;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::header::LOCATION;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use axum::response::IntoResponse;
use promptq_common::broker::Cancel;
use promptq_common::codec::MAX_BYTES;
use promptq_common::job::{Job, JobId};
use promptq_common::ledger::JobView;
use promptq_common::line::check_name;
use promptq_common::record::State as JobState;
use promptq_common::telemetry::trace::Context;
use promptq_common::telemetry::{Act, audit_by};
use serde_json::{Value, json};

use super::auth::Caller;
use super::problem::{Problem, Result};
use super::{Gateway, Shared, body};
use crate::input::Key;
use crate::submit::{self, Taken};
use crate::view;

/// The header that makes a repeated request the same one.
pub(super) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// 201 when the job is durable and new, 200 when it was there already, 409 when its key is that of other content.
pub(super) async fn submit(
    State(gateway): State<Shared>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response<Body>> {
    let (head, content) = request.into_parts();
    body::must_be(&head.headers, &["application/json"])?;
    let given = key_of(&head.headers)?;
    let made = JobId::fresh().to_string();
    let key = given.as_deref().map_or(Key::Made(&made), Key::Given);
    let whole = gateway.coming(body::whole((&gateway.room, &caller), &head, content, MAX_BYTES)).await?;
    let text = std::str::from_utf8(&whole.bytes).map_err(|_| Problem::new("bad-request", "the body is not UTF-8"))?;
    let mut job = submit::make(text, &key, &gateway.cx.config).map_err(Problem::of_fault)?;
    caller.must_cover(&job.queue)?;
    let doubt = gateway.cx.fit().map_or(Ok(None), |fit| fit.tell(&job)).map_err(Problem::of_fault)?;
    // Of a key in the line itself nothing more is known; whoever sent that has it.
    let key = given.or((job.id == JobId::derived(&job.queue, job.tenant.as_deref(), &made)).then_some(made));
    let taken = put(&gateway, &mut job, (key.as_deref(), caller_of(&head.headers))).await?;
    let (status, state) = match taken {
        Taken::New => (StatusCode::CREATED, first_state(&job)),
        Taken::Known(state) => (StatusCode::OK, state),
    };
    let answer = json!({
        "id": job.id,
        "state": state,
        "queue": job.queue,
        "new": taken == Taken::New,
        "idempotency_key": key,
        "notes": doubt.filter(|_| taken == Taken::New).as_slice(),
        "links": links(job.id),
    });
    let mut response = (status, axum::Json(answer)).into_response();
    if let Ok(place) = HeaderValue::try_from(format!("/v1/jobs/{}", job.id)) {
        response.headers_mut().insert(LOCATION, place);
    }
    Ok(response)
}

async fn put(gateway: &Gateway, job: &mut Job, (key, cause): (Option<&str>, Option<Context>)) -> Result<Taken> {
    let (broker, id) = (gateway.broker()?, job.id);
    gateway.call(submit::one(broker, job, cause)).await.map_err(|problem| {
        if problem.status() == StatusCode::SERVICE_UNAVAILABLE {
            // Nobody knows whether it was taken.
            problem.with("id", json!(id)).with("idempotency_key", key).hint("send it again with this Idempotency-Key")
        } else if problem.status() == StatusCode::CONFLICT {
            problem.hint("another Idempotency-Key makes a new job")
        } else {
            problem
        }
    })
}

fn first_state(job: &Job) -> JobState {
    if job.not_before.is_some_and(|at| at > job.created_at) { JobState::Scheduled } else { JobState::Queued }
}

fn links(id: JobId) -> Value {
    json!({ "self": format!("/v1/jobs/{id}"), "result": format!("/v1/jobs/{id}/result") })
}

/// The key that a client gave, bare or in quotes.
pub(super) fn key_of(headers: &HeaderMap) -> Result<Option<String>> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    let bad = |why: String| Problem::new("bad-request", format!("the Idempotency-Key cannot be used: {why}"));
    let text = value.to_str().map_err(|_| bad("it is not plain text".to_owned()))?.trim();
    let bare = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text);
    check_name("Idempotency-Key", bare).map_err(bad)?;
    Ok(Some(bare.to_owned()))
}

/// What a request was caused by; a header that cannot be read, or comes twice, says nothing.
pub(super) fn caller_of(headers: &HeaderMap) -> Option<Context> {
    let mut said = headers.get_all(Context::NAME).iter();
    let only = said.next().filter(|_| said.next().is_none())?;
    Context::parse(only.to_str().ok()?)
}

/// The job as it is now; never its prompt or answer.
pub(super) async fn show(
    State(gateway): State<Shared>,
    id: Result<Path<String>, PathRejection>,
    Extension(caller): Extension<Caller>,
) -> Result<axum::Json<Value>> {
    let (_, job) = find(&gateway, &caller, &named(id)?).await?;
    Ok(axum::Json(view::job(&job)))
}

/// The id in an address; what is no text names no job.
pub(super) fn named(id: Result<Path<String>, PathRejection>) -> Result<String> {
    id.map(|Path(id)| id).map_err(|_| Problem::no_job("\u{fffd}"))
}

/// A job that the caller may see; for any other it is as though there were none.
pub(super) async fn find(gateway: &Gateway, caller: &Caller, id: &str) -> Result<(JobId, JobView)> {
    let job = id.parse::<JobId>().map_err(|_| Problem::no_job(id))?;
    let view = look(gateway, job).await?.filter(|view| caller.covers(&view.queue));
    view.map(|view| (job, view)).ok_or_else(|| Problem::no_job(id))
}

async fn look(gateway: &Gateway, id: JobId) -> Result<Option<JobView>> {
    let ledger = gateway.broker()?.ledger();
    let views = gateway.call(async { ledger.fetch(&[id]).await }).await?;
    Ok(views.into_iter().flatten().next())
}

/// Stops it: 200 when it has ended, by this or before, 202 when its worker stops it within a heartbeat.
pub(super) async fn cancel(
    State(gateway): State<Shared>,
    id: Result<Path<String>, PathRejection>,
    Extension(caller): Extension<Caller>,
) -> Result<Response<Body>> {
    let id = named(id)?;
    let job = id.parse::<JobId>().map_err(|_| Problem::no_job(&id))?;
    let seen = look(&gateway, job).await?;
    // At RabbitMQ there may be jobs that nobody has met yet; of which queue, nobody knows either.
    let may_be_unseen = gateway.cx.keeps_messages_apart() && caller.covers_all();
    if !seen.as_ref().map_or(may_be_unseen, |view| caller.covers(&view.queue)) {
        return Err(Problem::no_job(&id));
    }
    let broker = gateway.broker()?;
    let answers = gateway.call(async { broker.cancel(&[job]).await }).await?;
    let (status, state, count) = match answers.first() {
        Some(Cancel::Ended) => (StatusCode::OK, Some(JobState::Cancelled), 1),
        Some(Cancel::Flagged) => (StatusCode::ACCEPTED, seen.map(|view| view.state), 1),
        Some(Cancel::Already(state)) => (StatusCode::OK, Some(*state), 0),
        Some(Cancel::Unknown) | None => return Err(Problem::no_job(&id)),
    };
    audit_by(caller.id(), &Act { action: "cancel", subject: &id, reason: None, count });
    let answer = json!({ "id": job, "state": state, "cancel_requested": status == StatusCode::ACCEPTED });
    Ok((status, axum::Json(answer)).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_may_stand_in_quotes_and_must_be_a_name() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(IDEMPOTENCY_KEY, HeaderValue::from_str(text).unwrap());
            key_of(&headers).map(|key| key.unwrap()).map_err(|problem| problem.status().as_u16())
        };
        assert_eq!([of("r-1@nov"), of("\"r-1@nov\"")], [Ok("r-1@nov".to_owned()), Ok("r-1@nov".to_owned())]);
        assert_eq!([of("\"\""), of(&"x".repeat(257)), of("r\u{fc}")], [Err(400), Err(400), Err(400)]);
        assert!(key_of(&HeaderMap::new()).unwrap().is_none());
    }
}
