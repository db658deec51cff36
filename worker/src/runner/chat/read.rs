//! An answer's bytes, whole or as events, under limits of size.

use std::time::Duration;

use reqwest::Response;
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use tokio::time::Instant;

use crate::provider::sse::Events;
use crate::provider::{Assembly, Endpoint, Piece};

/// The most bytes of an answer: 2048 embeddings of 1024 numbers are about half of it.
pub(super) const ANSWER_MAX: usize = 16 << 20;
/// The most bytes of a stream: an event says a few letters in some 300 bytes, and there are models with 128,000 tokens.
const STREAM_MAX: usize = 128 << 20;

/// What came.
#[derive(Debug)]
pub(super) struct Got {
    /// The body, as a whole answer has it.
    pub(super) body: Vec<u8>,
    pub(super) whole: Whole,
    /// When the first piece of a stream came, measured from the start of the call.
    pub(super) first_piece: Option<Duration>,
}

/// Whether a body came as its sender meant it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whole {
    Yes,
    Cut,
    TooLarge,
    /// The stream says that the provider failed; the body is that of a refusal.
    Failed,
    /// What came in the stream is none of this API's events.
    Odd,
}

/// Reads at most `most` bytes of a body.
pub(super) async fn body(mut response: Response, most: usize) -> Got {
    let mut body = Vec::new();
    let whole = loop {
        match response.chunk().await {
            Ok(Some(chunk)) if body.len() + chunk.len() > most => break Whole::TooLarge,
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => break Whole::Yes,
            Err(_) => break Whole::Cut,
        }
    };
    Got { body, whole, first_piece: None }
}

/// Whether the answer comes as events: a server may give it whole although it was asked for a stream.
pub(super) fn is_stream(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    kind.trim_start().to_ascii_lowercase().starts_with("text/event-stream")
}

/// Reads a stream to the answer's end, and puts the answer together.
pub(super) async fn stream(mut response: Response, endpoint: Endpoint, began: Instant) -> Got {
    let (mut events, mut answer) = (Events::new(ANSWER_MAX), Assembly::of(endpoint));
    let (mut read, mut first_piece) = (0, None);
    let ended = |body, whole, first_piece| Got { body, whole, first_piece };
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) => {
                read += chunk.len();
                events.push(&chunk);
            }
            // What is missing, if anything is, the answer itself knows.
            Ok(None) | Err(_) => break,
        }
        let mut last = false;
        while let Some(event) = events.next() {
            let Ok(data) = event else { return ended(Vec::new(), Whole::TooLarge, first_piece) };
            first_piece.get_or_insert_with(|| began.elapsed());
            match answer.push(&data) {
                Piece::Part => {}
                Piece::Last => last = true,
                Piece::Error(body) => return ended(body, Whole::Failed, first_piece),
                Piece::Odd => return ended(Vec::new(), Whole::Odd, first_piece),
            }
        }
        if read > STREAM_MAX || answer.size() > ANSWER_MAX {
            return ended(Vec::new(), Whole::TooLarge, first_piece);
        }
        if last {
            drain(response).await;
            break;
        }
    }
    match answer.body() {
        Some(body) if body.len() > ANSWER_MAX => ended(Vec::new(), Whole::TooLarge, first_piece),
        Some(body) => ended(body, Whole::Yes, first_piece),
        None => ended(Vec::new(), Whole::Cut, first_piece),
    }
}

/// The last bytes of a stream, for a connection that is read to its end can be used again. Not waited for.
async fn drain(mut response: Response) {
    /// The end of a chunked body comes with its last event or right behind it.
    const END: Duration = Duration::from_millis(50);
    let rest = async { while let Ok(Some(_)) = response.chunk().await {} };
    drop(tokio::time::timeout(END, rest).await);
}
