//! A connection whose client must go on: once it has begun the head of a request it must end it in time, and what it is
//! sent it must take. How fast bodies come is `body.rs`. A first head that is not understood is answered as all else is.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use super::guard::raw;
use super::problem::Problem;

/// A client that takes nothing for so long has gone, or means no good.
const STALL: Duration = Duration::from_secs(30);
/// From the first byte of a request to the end of its head.
const HEAD: Duration = Duration::from_secs(10);
/// How long a client may go on sending when it has its last answer.
const LINGER: Duration = Duration::from_secs(2);

/// Whether a request of a connection is being answered; else what comes is a head. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Busy(Arc<AtomicU8>);

/// No request has been understood yet; else one is being answered, or none.
const UNHEARD: u8 = 0;
const BUSY: u8 = 1;
const IDLE: u8 = 2;

impl Busy {
    /// From now on it is, or is not.
    pub(super) fn set(&self, busy: bool) {
        self.0.store(if busy { BUSY } else { IDLE }, Ordering::Relaxed);
    }

    fn is(&self, state: u8) -> bool {
        self.0.load(Ordering::Relaxed) == state
    }
}

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Patient<S> {
    stream: S,
    /// Runs out when nothing could be sent for too long.
    stall: Pin<Box<Sleep>>,
    is_stalled: bool,
    busy: Busy,
    /// Runs out when a head was begun and not ended.
    head: Option<Pin<Box<Sleep>>>,
    /// Runs out when everything is said.
    linger: Option<Pin<Box<Sleep>>>,
    /// What is left to send in place of the bare status that the HTTP library has for a head it does not understand.
    instead: Option<Bytes>,
}

impl<S> Patient<S> {
    /// Over a connection.
    pub(super) fn new(stream: S, busy: Busy) -> Self {
        let stall = Box::pin(sleep(STALL));
        Self { stream, stall, is_stalled: false, busy, head: None, linger: None, instead: None }
    }

    /// Whether a head that was begun should have ended by now; `came`: more of something has come.
    fn is_late(&mut self, cx: &mut Context<'_>, came: bool) -> bool {
        if self.busy.is(BUSY) {
            self.head = None;
        } else if came && self.head.is_none() {
            self.head = Some(Box::pin(sleep(HEAD)));
        }
        self.head.as_mut().is_some_and(|head| head.as_mut().poll(cx).is_ready())
    }

    /// Takes what is written before any request was understood: nobody but the HTTP library has said it.
    fn takes(&mut self, said: &[u8]) -> bool {
        let takes = self.busy.is(UNHEARD);
        if takes && self.instead.is_none() {
            self.instead = Some(unheard(said));
        }
        takes
    }

    /// What a write came to; an error once it has come to nothing for too long.
    fn judged<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.is_stalled = false;
            return written;
        }
        if !self.is_stalled {
            self.is_stalled = true;
            self.stall.as_mut().reset(Instant::now() + STALL);
        }
        ready!(self.stall.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client reads no more")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        let came = buf.filled().len() > before;
        if self.is_late(cx, came) {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the head of a request took too long")));
        }
        read
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.takes(buf) {
            return Poll::Ready(Ok(buf.len()));
        }
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.judged(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.takes(bufs.first().map_or(&[], |first| first)) {
            return Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()));
        }
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.judged(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(left) = self.instead.clone().filter(|left| !left.is_empty()) {
            let written = Pin::new(&mut self.stream).poll_write(cx, &left);
            let sent = ready!(self.judged(cx, written))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.instead = Some(left.slice(sent..));
        }
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.judged(cx, flushed)
    }

    /// Reads on for a moment: who hangs up on what is still coming takes its own last answer with it.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
        let linger = this.linger.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        loop {
            let mut scratch = [0; 16 << 10];
            let mut rest = ReadBuf::new(&mut scratch);
            if linger.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            let read = ready!(Pin::new(&mut this.stream).poll_read(cx, &mut rest));
            if read.is_err() || rest.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

/// A problem in place of what the HTTP library says, `HTTP/1.1 431 …`.
fn unheard(said: &[u8]) -> Bytes {
    raw(match said.get(9..12) {
        Some(b"431") => Problem::new("head-too-large", "there are more headers, or longer ones, than are read"),
        Some(b"414") => Problem::new("uri-too-long", "the address is longer than is read"),
        _ => Problem::new("bad-request", "the head of the request is not understood as HTTP/1.1"),
    })
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_reads_slowly_is_waited_for_and_who_reads_nothing_is_not() {
        let (ours, mut theirs) = duplex(8);
        let busy = Busy::default();
        busy.set(true);
        let mut ours = Patient::new(ours, busy);
        let reader = async {
            let mut taken = [0; 8];
            for _ in 0..4 {
                sleep(STALL.saturating_sub(Duration::from_secs(1))).await;
                theirs.read_exact(&mut taken).await.unwrap();
            }
            theirs
        };
        let (sent, theirs) = tokio::join!(ours.write_all(&[7; 32]), reader);
        sent.unwrap();
        let began = Instant::now();
        let stalled = ours.write_all(&[7; 32]).await.unwrap_err();
        assert_eq!((stalled.kind(), began.elapsed().as_secs()), (io::ErrorKind::TimedOut, STALL.as_secs()));
        drop(theirs);
    }

    #[tokio::test]
    async fn what_is_said_before_a_request_is_understood_is_said_as_a_problem() {
        for (said, status) in [("431 Request Header Fields Too Large", 431), ("400 Bad Request", 400)] {
            let (ours, mut theirs) = duplex(16);
            let mut ours = Patient::new(ours, Busy::default());
            let text = async {
                let mut text = String::new();
                theirs.read_to_string(&mut text).await.unwrap();
                text
            };
            let sent = async {
                ours.write_all(format!("HTTP/1.1 {said}\r\ncontent-length: 0\r\n\r\n").as_bytes()).await.unwrap();
                ours.flush().await.unwrap();
                drop(ours);
            };
            let (text, ()) = tokio::join!(text, sent);
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with(&format!("HTTP/1.1 {said}")) && head.contains("connection: close"), "{head}");
            assert!(head.contains(&format!("content-length: {}", body.len())), "{text}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(body).unwrap()["status"], status);
        }
    }

    /// Reads until that fails.
    async fn broken(stream: &mut (impl AsyncRead + Unpin)) -> io::Error {
        loop {
            if let Err(error) = stream.read_u8().await {
                return error;
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_must_end_in_time_however_it_drips_and_between_requests_there_is_time() {
        let (ours, mut theirs) = duplex(64);
        let busy = Busy::default();
        let mut ours = Patient::new(ours, busy.clone());
        let mut byte = [0];
        let idle = tokio::time::timeout(10 * HEAD, ours.read(&mut byte)).await;
        assert!(idle.is_err(), "nothing was begun");
        theirs.write_all(b"a").await.unwrap();
        ours.read_exact(&mut byte).await.unwrap();
        busy.set(true);
        let drip = async {
            for _ in 0..40 {
                sleep(HEAD / 5).await;
                // It has been hung up on by then.
                drop(theirs.write_all(b"b").await);
            }
        };
        let read = async {
            for _ in 0..20 {
                ours.read_exact(&mut byte).await.unwrap();
            }
            busy.set(false);
            let begun = Instant::now();
            let error = broken(&mut ours).await;
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            assert!(begun.elapsed() <= HEAD + HEAD / 5, "{:?}", begun.elapsed());
        };
        tokio::join!(drip, read);
    }
}
