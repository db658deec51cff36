//! What came of a job: GET /v1/jobs/{id}/result, waited for if need be. An answer in object storage is sent on as it comes
//! from there.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, Response, StatusCode, Uri};
use axum::response::IntoResponse;
use futures_util::stream::{once, unfold};
use futures_util::{Stream, StreamExt, TryStreamExt};
use promptq_common::error::{Error, Kind};
use promptq_common::ledger::JobView;
use promptq_common::outcome;
use promptq_common::record::{Output, Record, Stored};
use promptq_common::result_line::{cut_line, result_line};
use promptq_common::time::{format_duration, parse_duration};
use tokio::time::Instant;

use super::auth::Caller;
use super::problem::{Problem, Result};
use super::room::{Place, Room, SMALL};
use super::{Gateway, Shared, job, query};
use crate::view;

/// A large answer is taken by then: the largest at 1 Mbit/s.
const TAKEN: Duration = Duration::from_secs(150);
/// The longest wait; proxies commonly cut a request off after a minute.
const LONGEST: Duration = Duration::from_secs(55);

/// 200 with the result of a job that has ended, however it did; 202 with the job while it has not.
pub(super) async fn result(
    State(gateway): State<Shared>,
    id: Result<Path<String>, PathRejection>,
    Extension(caller): Extension<Caller>,
    uri: Uri,
) -> Result<Response<Body>> {
    let wait = wait_of(&uri)?;
    let (id, seen) = job::find(&gateway, &caller, &job::named(id)?).await?;
    let mut seen = Arc::new(seen);
    if !seen.state.is_ended() && !wait.is_zero() {
        let _place = gateway.room.wait(&caller)?;
        tokio::select! {
            biased;
            ended = gateway.waiting.ended(id) => seen = ended,
            () = gateway.leaving() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
    match &seen.record {
        Some(record) if seen.state.is_ended() => ended(&gateway, &caller, record).await,
        Some(_) | None => Ok(pending(&seen)),
    }
}

fn pending(seen: &JobView) -> Response<Body> {
    let mut response = (StatusCode::ACCEPTED, axum::Json(view::job(seen))).into_response();
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

async fn ended(gateway: &Gateway, caller: &Caller, record: &Record) -> Result<Response<Body>> {
    let stored = record.answer.as_ref().and_then(|answer| match &answer.output {
        Output::Stored(stored) => Some(stored),
        Output::Inline(_) => None,
    });
    let body = match stored {
        Some(stored) => Body::from_stream(sent_on(gateway, record, stored).await?),
        None => whole(&gateway.room, caller, record)?,
    };
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// A line that is in memory until its client has read it. A large answer has its place before its line is made.
fn whole(room: &Room, caller: &Caller, record: &Record) -> Result<Body> {
    let bytes = record.answer.as_ref().map_or(0, |answer| match &answer.output {
        Output::Inline(outcome::Body::Json(text) | outcome::Body::Text(text)) => text.len(),
        Output::Stored(_) => 0,
    });
    let early = if bytes > SMALL { Some(room.large(caller)?) } else { None };
    let line = result_line(record, None);
    if line.len() <= SMALL {
        return Ok(Body::from(line));
    }
    let place = early.map_or_else(|| room.large(caller), Ok)?;
    Ok(Body::from_stream(taken(Bytes::from_owner(Held { _place: place, line }))))
}

/// A line in pieces, which break off when its client has not taken them by a time: until then it has a place that others
/// wait for.
fn taken(line: Bytes) -> impl Stream<Item = Result<Bytes, Error>> {
    let until = Instant::now() + TAKEN;
    unfold(line, move |mut rest| async move {
        if rest.is_empty() {
            return None;
        }
        if Instant::now() > until {
            return Some((
                Err(Error::new(Kind::TimedOut, "send an answer", "its client took it too slowly")),
                Bytes::new(),
            ));
        }
        let piece = rest.split_to(rest.len().min(SMALL));
        Some((Ok(piece), rest))
    })
}

/// Bytes and the place that they take.
struct Held {
    _place: Place,
    line: String,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        self.line.as_bytes()
    }
}

/// The line with its body in it, a piece at a time. What turns out not to be the answer breaks off before its end.
async fn sent_on(
    gateway: &Gateway,
    record: &Record,
    stored: &Stored,
) -> Result<impl Stream<Item = Result<Bytes, Error>> + use<>> {
    let store = gateway.cx.store().await?;
    let opened = gateway.call(async {
        match store.stream_output(stored).await {
            Ok(pieces) => Ok(Ok(pieces)),
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Corrupt) => Ok(Err(error)),
            Err(error) => Err(error),
        }
    });
    let pieces = opened.await?.map_err(|error| {
        tracing::warn!(job = %record.id, %error, "an answer is not in the store");
        Problem::new("answer-gone", "the answer is not in the store any more")
    })?;
    let (before, after) = cut_line(record);
    let (open, shut, is_text) = if stored.json { ("", "", false) } else { ("\"", "\"", true) };
    let body = pieces.map_ok(move |piece| if is_text { escaped(&piece) } else { piece });
    let edge = |text: String| once(async { Ok(Bytes::from(text)) });
    Ok(edge(before + open).chain(body).chain(edge(shut.to_owned() + &after)))
}

/// A piece of text as it stands in JSON. Only bytes that stand for themselves in UTF-8 are replaced, wherever it was cut.
fn escaped(piece: &[u8]) -> Bytes {
    let mut text = Vec::with_capacity(piece.len() + piece.len() / 16);
    for byte in piece {
        match byte {
            b'"' => text.extend_from_slice(b"\\\""),
            b'\\' => text.extend_from_slice(b"\\\\"),
            b'\n' => text.extend_from_slice(b"\\n"),
            0..0x20 => text.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            _ => text.push(*byte),
        }
    }
    text.into()
}

fn wait_of(uri: &Uri) -> Result<Duration> {
    let Some((_, value)) = query::pairs(uri).find(|(name, _)| name == "wait") else { return Ok(Duration::ZERO) };
    // What else the reader says of it is of its own making.
    let allowed = format!("a length of time such as 30s; none is longer than {}", format_duration(LONGEST));
    let wait = parse_duration(&value).map_err(|_| query::wrong("wait", &value, &allowed))?;
    Ok(wait.min(LONGEST))
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    #[test]
    fn text_that_is_cut_anywhere_is_the_same_json() {
        let text = "wie \"geht's\"\n\t\\ grüße \u{1} 日本";
        for at in 0..=text.len() {
            let (one, two) = text.as_bytes().split_at(at);
            let json = [b"\"", &*escaped(one), &*escaped(two), b"\""].concat();
            assert_eq!(serde_json::from_slice::<String>(&json).unwrap(), text, "cut at {at}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_answer_holds_its_place_until_it_is_taken_and_not_for_ever() {
        let (room, anybody) = (Room::new(), Caller::anybody());
        let held = || Held { _place: room.large(&anybody).unwrap(), line: "x".repeat(3 * SMALL + 1) };
        let (line, others) = (held(), std::iter::from_fn(|| room.large(&anybody).ok()).collect::<Vec<_>>());
        let mut pieces = pin!(taken(Bytes::from_owner(line)));
        let (mut sizes, mut last) = (Vec::new(), Bytes::new());
        while let Some(piece) = pieces.next().await {
            last = piece.unwrap();
            sizes.push(last.len());
        }
        assert_eq!(sizes, [SMALL, SMALL, SMALL, 1]);
        assert!(room.large(&anybody).is_err(), "the last piece is not sent yet");
        drop((last, others));
        let mut pieces = pin!(taken(Bytes::from_owner(held())));
        assert!(pieces.next().await.unwrap().is_ok());
        tokio::time::advance(TAKEN + Duration::from_secs(1)).await;
        assert!(pieces.next().await.unwrap().is_err() && pieces.next().await.is_none());
    }

    #[test]
    fn a_wait_is_bounded() {
        let of = |query: &str| wait_of(&format!("/v1/jobs/x/result{query}").parse().unwrap());
        assert_eq!(of("").unwrap(), Duration::ZERO);
        assert_eq!(of("?wait=30s").unwrap(), Duration::from_secs(30));
        assert_eq!(of("?wait=1h").unwrap(), LONGEST);
        for wrong in ["", "30", "soon", "-5s", "99999999999999999999s", "20y", "%FF"] {
            let told = of(&format!("?wait={wrong}")).unwrap_err();
            let given = if wrong == "%FF" { "\u{fffd}" } else { wrong };
            let says =
                format!(r#""detail":"wait is \"{given}\", not a length of time such as 30s; none is longer than 55s""#);
            assert!(told.status() == 400 && told.body().contains(&says), "{wrong}: {}", told.body());
        }
    }
}
