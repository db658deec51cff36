//! What a client sends, taken within bounds: so many bytes, no slower than a slow line sends them, and all of it by a time.
//! A job's is kept in memory, a batch's in a file without a name.

use std::fs::File;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, request};
use futures_util::StreamExt;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, timeout_at};

use super::auth::Caller;
use super::problem::{Problem, Result};
use super::room::{Place, Room, SMALL};

/// Nothing need have come within so long …
const GRACE: Duration = Duration::from_secs(10);
/// … and after that as much as comes at so many bytes a second.
const SLOWEST: u64 = 1 << 10;
/// One that is kept in memory is there by then: the largest at 1 Mbit/s …
const WHOLE: Duration = Duration::from_secs(150);
/// … and one that is kept in a file: a GiB at 10 Mbit/s. Until then it has a place that others wait for.
const SPOOLED: Duration = Duration::from_secs(15 * 60);

/// A body in memory, and the place it takes there if it is a large one.
#[derive(Debug)]
pub(super) struct Whole {
    /// The bytes.
    pub(super) bytes: Vec<u8>,
    /// Held until it is done with.
    pub(super) _place: Option<Place>,
}

/// Takes a body whole.
pub(super) async fn whole(
    (room, caller): (&Room, &Caller),
    head: &request::Parts,
    body: Body,
    most: usize,
) -> Result<Whole> {
    let told = told(&head.headers, most as u64)?.and_then(|told| usize::try_from(told).ok());
    let mut bytes = Vec::with_capacity(told.unwrap_or(0).min(SMALL));
    let (mut coming, mut place) = (Coming::new(body, most as u64, WHOLE), None);
    while let Some(piece) = coming.next().await? {
        if place.is_none() && bytes.len() + piece.len() > SMALL {
            place = Some(room.large(caller)?);
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(Whole { bytes, _place: place })
}

/// Takes a body into a file.
pub(super) async fn spooled(head: &request::Parts, body: Body, most: u64) -> Result<File> {
    let trouble = |error: std::io::Error| {
        tracing::error!(%error, "cannot keep a batch in a temporary file; TMPDIR names another folder");
        Problem::new("failed", "the gateway has no room to keep the batch in")
    };
    told(&head.headers, most)?;
    let mut file = tokio::fs::File::from_std(tempfile::tempfile().map_err(trouble)?);
    let mut coming = Coming::new(body, most, SPOOLED);
    while let Some(piece) = coming.next().await? {
        file.write_all(&piece).await.map_err(trouble)?;
    }
    file.flush().await.map_err(trouble)?;
    Ok(file.into_std().await)
}

/// Refuses a body that is not of one of these types: what a page of another site can send without asking is.
pub(super) fn must_be(headers: &HeaderMap, types: &[&str]) -> Result<()> {
    let said = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let said = said.split(';').next().unwrap_or_default().trim();
    if types.iter().any(|known| known.eq_ignore_ascii_case(said)) {
        return Ok(());
    }
    let what =
        if said.is_empty() { "the body has no Content-Type".to_owned() } else { format!("the body is {said:?}") };
    Err(Problem::new("bad-type", what).hint(format!("send Content-Type: {}", types.join(" or "))))
}

/// How many bytes the head says there are, unless that is too many.
fn told(headers: &HeaderMap, most: u64) -> Result<Option<u64>> {
    let told = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if told.is_some_and(|told| told > most) { Err(too_large(most)) } else { Ok(told) }
}

fn too_large(most: u64) -> Problem {
    Problem::new("too-large", format!("the body is larger than {}", bytesize::ByteSize(most))).with("limit", most)
}

/// A body on its way.
struct Coming {
    pieces: axum::body::BodyDataStream,
    began: Instant,
    within: Duration,
    bytes: u64,
    most: u64,
}

impl Coming {
    fn new(body: Body, most: u64, within: Duration) -> Self {
        Self { pieces: body.into_data_stream(), began: Instant::now(), within, bytes: 0, most }
    }

    async fn next(&mut self) -> Result<Option<Bytes>> {
        let slowest = GRACE + Duration::from_millis(self.bytes * 1_000 / SLOWEST);
        let until = self.began + slowest.min(self.within);
        let piece = match timeout_at(until, self.pieces.next()).await {
            Ok(Some(Ok(piece))) => piece,
            Ok(None) => return Ok(None),
            Ok(Some(Err(error))) => return Err(Problem::new("bad-request", format!("the body broke off: {error}"))),
            Err(_) => {
                let what = format!("{} bytes came in {} s", self.bytes, self.began.elapsed().as_secs());
                return Err(Problem::new("too-slow", what));
            }
        };
        self.bytes += piece.len() as u64;
        if self.bytes > self.most { Err(too_large(self.most)) } else { Ok(Some(piece)) }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::Request;
    use futures_util::stream;

    use super::*;

    fn head(length: Option<u64>) -> request::Parts {
        let mut request = Request::builder();
        if let Some(length) = length {
            request = request.header(CONTENT_LENGTH, length);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn trickle(every: Duration, pieces: usize, size: usize) -> Body {
        let piece = move |n: usize| async move {
            if n >= pieces {
                return None;
            }
            tokio::time::sleep(every).await;
            Some((Ok::<_, std::io::Error>(vec![b'x'; size]), n + 1))
        };
        Body::from_stream(stream::unfold(0, piece))
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_line_gets_through_and_one_that_drips_does_not() {
        let (room, anybody) = (Room::new(), Caller::anybody());
        let room = (&room, &anybody);
        let second = Duration::from_secs(1);
        let slow = whole(room, &head(None), trickle(second, 60, 2_048), 1 << 20).await.unwrap();
        assert_eq!(slow.bytes.len(), 60 * 2_048);
        let began = Instant::now();
        let dripping = whole(room, &head(None), trickle(second, 1_000_000, 1), 1 << 20).await.unwrap_err();
        assert_eq!(dripping.status(), 408);
        assert!(began.elapsed() < GRACE + 2 * second, "{:?}", began.elapsed());
        let silent = spooled(&head(None), trickle(99 * second, 1, 1), 1 << 20).await.unwrap_err();
        assert_eq!(silent.status(), 408);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_never_stops_coming_has_an_end() {
        let (room, anybody) = (Room::new(), Caller::anybody());
        let second = Duration::from_secs(1);
        let endless = || trickle(second, usize::MAX, 1 << 12);
        let began = Instant::now();
        let whole = whole((&room, &anybody), &head(None), endless(), 16 << 20).await.unwrap_err();
        assert_eq!((whole.status().as_u16(), began.elapsed()), (408, WHOLE));
        let began = Instant::now();
        let spooled = spooled(&head(None), endless(), 1 << 30).await.unwrap_err();
        assert_eq!((spooled.status().as_u16(), began.elapsed()), (408, SPOOLED));
    }

    #[tokio::test]
    async fn what_is_too_large_is_refused_by_its_head_or_as_it_comes() {
        let (room, anybody) = (Room::new(), Caller::anybody());
        let room = (&room, &anybody);
        let of = |size| Body::from(vec![b'x'; size]);
        for (length, size, status) in [(Some(101), 0, 413), (None, 101, 413)] {
            assert_eq!(whole(room, &head(length), of(size), 100).await.unwrap_err().status(), status);
            assert_eq!(spooled(&head(length), of(size), 100).await.unwrap_err().status(), status);
        }
        assert_eq!(whole(room, &head(Some(100)), of(100), 100).await.unwrap().bytes.len(), 100);
        let is_large = |Whole { _place: place, .. }: Whole| place.is_some();
        for (size, large) in [(SMALL, false), (SMALL + 1, true)] {
            assert_eq!(is_large(whole(room, &head(None), of(size), 1 << 20).await.unwrap()), large, "{size}");
        }
    }

    #[test]
    fn only_types_that_pages_of_other_sites_cannot_send_are_taken() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, text.parse().unwrap());
            must_be(&headers, &["application/json"])
        };
        assert!(of("application/json").is_ok() && of("Application/JSON; charset=utf-8").is_ok());
        for other in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"] {
            assert_eq!(of(other).unwrap_err().status(), 415);
        }
        assert_eq!(must_be(&HeaderMap::new(), &["application/json"]).unwrap_err().status(), 415);
    }
}
