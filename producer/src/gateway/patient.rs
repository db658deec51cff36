//! A connection whose client must go on: once it has begun the head of a request it must end it in time, and what it is
//! sent it must take. How fast bodies come is `body.rs`.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// A client that takes nothing for so long has gone, or means no good.
const STALL: Duration = Duration::from_secs(30);
/// From the first byte of a request to the end of its head.
const HEAD: Duration = Duration::from_secs(10);
/// How long a client may go on sending when it has its last answer.
const LINGER: Duration = Duration::from_secs(2);

/// Whether a request of a connection is being answered; else what comes is a head. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Busy(Arc<AtomicBool>);

impl Busy {
    /// From now on it is, or is not.
    pub(super) fn set(&self, busy: bool) {
        self.0.store(busy, Ordering::Relaxed);
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
}

impl<S> Patient<S> {
    /// Over a connection.
    pub(super) fn new(stream: S, busy: Busy) -> Self {
        Self { stream, stall: Box::pin(sleep(STALL)), is_stalled: false, busy, head: None, linger: None }
    }

    /// Whether a head that was begun should have ended by now; `came`: more of something has come.
    fn is_late(&mut self, cx: &mut Context<'_>, came: bool) -> bool {
        if self.busy.0.load(Ordering::Relaxed) {
            self.head = None;
        } else if came && self.head.is_none() {
            self.head = Some(Box::pin(sleep(HEAD)));
        }
        self.head.as_mut().is_some_and(|head| head.as_mut().poll(cx).is_ready())
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
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.judged(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.judged(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_reads_slowly_is_waited_for_and_who_reads_nothing_is_not() {
        let (ours, mut theirs) = duplex(8);
        let mut ours = Patient::new(ours, Busy::default());
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
