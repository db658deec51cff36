//! An answer's bytes, whole or as events, under limits of size and time.

use std::time::Duration;

use promptq_common::outcome::Usage;
use reqwest::Response;
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use serde::de::IgnoredAny;
use tokio::time::{Instant, timeout};

use crate::provider::sse::{Events, TooLarge};
use crate::provider::{Assembly, Endpoint, Piece};

/// The most bytes of an answer: 2048 embeddings of 1024 numbers are about half of it.
pub(super) const ANSWER_MAX: usize = 16 << 20;
/// The most bytes of a stream: an event says a few letters in some 300 bytes, and there are models with 128,000 tokens.
const STREAM_MAX: usize = 128 << 20;

/// How long an answer is waited for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    began: Instant,
    silence: Duration,
    whole: Duration,
}

impl Patience {
    /// From now on for `whole`, and for no longer than `silence` since anything came.
    pub(super) fn new(silence: Duration, whole: Duration) -> Self {
        Self { began: Instant::now(), silence, whole }
    }

    /// What comes next; `None` when it does not come in time. As safe to cancel as `next` is.
    pub(super) async fn wait<T>(&self, next: impl Future<Output = T>) -> Option<T> {
        let left = self.silence.min(self.whole.saturating_sub(self.began.elapsed()));
        // What is there already would always be in time.
        if left.is_zero() { None } else { timeout(left, next).await.ok() }
    }
}

/// What came.
#[derive(Debug)]
pub(super) struct Got {
    /// The body, as a whole answer has it.
    pub(super) body: Vec<u8>,
    pub(super) whole: Whole,
    /// When the first event of a stream with something of the answer came, measured from the start of the call.
    pub(super) first_piece: Option<Duration>,
    /// What a stream had said of its usage when it broke off.
    pub(super) seen: Usage,
}

/// Whether a body came as its sender meant it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whole {
    Yes,
    Cut,
    /// It took too long.
    Late,
    TooLarge,
    /// The stream says that the provider failed; the body is that of a refusal.
    Failed,
    /// What came in the stream is none of this API's events.
    Odd,
}

/// Reads at most `most` bytes of a body.
pub(super) async fn body(mut response: Response, most: usize, patience: Patience) -> Got {
    let mut body = Vec::new();
    let whole = loop {
        match patience.wait(response.chunk()).await {
            Some(Ok(Some(chunk))) if body.len() + chunk.len() > most => break Whole::TooLarge,
            Some(Ok(Some(chunk))) => body.extend_from_slice(&chunk),
            Some(Ok(None)) => break Whole::Yes,
            Some(Err(_)) => break Whole::Cut,
            None => break Whole::Late,
        }
    };
    Got { body, whole, first_piece: None, seen: Usage::default() }
}

/// Whether the answer comes as events: a server may give it whole although it was asked for a stream.
pub(super) fn is_stream(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    kind.trim_start().to_ascii_lowercase().starts_with("text/event-stream")
}

/// Reads a stream to the answer's end, and puts the answer together.
pub(super) async fn stream(mut response: Response, endpoint: Endpoint, patience: Patience) -> Got {
    let mut reading = Reading { events: Events::new(ANSWER_MAX), answer: Assembly::of(endpoint), first_piece: None };
    let mut read = 0;
    // What is missing where a stream ends, if anything is, the answer itself knows.
    let missing = loop {
        let chunk = match patience.wait(response.chunk()).await {
            Some(Ok(Some(chunk))) => chunk,
            Some(Ok(None) | Err(_)) => break Whole::Cut,
            None => break Whole::Late,
        };
        read += chunk.len();
        reading.events.push(&chunk);
        let last = match reading.take(patience) {
            Ok(last) => last,
            Err((whole, body)) => return reading.broken(whole, body),
        };
        if read > STREAM_MAX || reading.answer.size() > ANSWER_MAX {
            return reading.broken(Whole::TooLarge, Vec::new());
        }
        if last {
            drain(response).await;
            break Whole::Cut;
        }
    };
    if let Err((whole, body)) = reading.take_rest(patience) {
        return reading.broken(whole, body);
    }
    let (first_piece, seen) = (reading.first_piece, reading.answer.usage());
    let (whole, body) = match reading.answer.body() {
        Some(body) if body.len() > ANSWER_MAX => (Whole::TooLarge, Vec::new()),
        Some(body) => (Whole::Yes, body),
        None => (missing, Vec::new()),
    };
    Got { body, whole, first_piece, seen }
}

/// A stream as far as it was read.
struct Reading {
    events: Events,
    answer: Assembly,
    first_piece: Option<Duration>,
}

impl Reading {
    /// Takes the events that are whole, and says whether the last one was among them; else why there is no going on.
    fn take(&mut self, patience: Patience) -> Result<bool, (Whole, Vec<u8>)> {
        let mut last = false;
        while let Some(event) = self.events.next() {
            let data = event.map_err(|TooLarge| (Whole::TooLarge, Vec::new()))?;
            last |= self.event(&data, patience)?;
        }
        Ok(last)
    }

    /// Takes an event that the end has cut off from its blank line, if it is whole.
    fn take_rest(&mut self, patience: Patience) -> Result<(), (Whole, Vec<u8>)> {
        let is_whole = |data: &Vec<u8>| serde_json::from_slice::<IgnoredAny>(data).is_ok();
        match self.events.rest().filter(is_whole) {
            Some(data) => self.event(&data, patience).map(drop),
            None => Ok(()),
        }
    }

    fn event(&mut self, data: &[u8], patience: Patience) -> Result<bool, (Whole, Vec<u8>)> {
        let piece = self.answer.push(data);
        if self.answer.has_content() {
            self.first_piece.get_or_insert_with(|| patience.began.elapsed());
        }
        match piece {
            Piece::Part => Ok(false),
            Piece::Last => Ok(true),
            Piece::Error(body) => Err((Whole::Failed, body)),
            Piece::Odd => Err((Whole::Odd, Vec::new())),
        }
    }

    fn broken(self, whole: Whole, body: Vec<u8>) -> Got {
        Got { body, whole, first_piece: self.first_piece, seen: self.answer.usage() }
    }
}

/// The last bytes of a stream, for a connection that is read to its end can be used again. Not waited for.
async fn drain(mut response: Response) {
    /// The end of a chunked body comes with its last event or right behind it.
    const END: Duration = Duration::from_millis(50);
    let rest = async { while let Ok(Some(_)) = response.chunk().await {} };
    drop(timeout(END, rest).await);
}
