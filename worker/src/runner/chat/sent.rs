//! Whether a request's body has begun to leave: before that a broken call has cost nothing.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

/// Remembers whether the watched body was asked for, which the HTTP client does when a connection stands.
#[derive(Clone, Debug, Default)]
pub(super) struct Sent(Arc<AtomicBool>);

impl Sent {
    /// A body of `bytes` that leaves a mark here when it is first read.
    pub(super) fn watch(&self, bytes: Bytes) -> Watched {
        Watched { bytes: Some(bytes), sent: self.clone() }
    }

    /// Whether the body has begun to leave.
    pub(super) fn begun(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A request body in one piece, watched by a [`Sent`].
#[derive(Debug)]
pub(super) struct Watched {
    bytes: Option<Bytes>,
    sent: Sent,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.sent.0.store(true, Ordering::Relaxed);
        Poll::Ready(self.bytes.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}
