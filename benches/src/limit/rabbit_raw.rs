//! The least writes on RabbitMQ over a plain socket: frames made by hand, one thread a connection, and whatever one read
//! of the socket asks for sent with one write. The wall behind any client; nobody has to reach it.

use anyhow::{Context, ensure};

use super::Contestant;
use super::amqp::{Frame, Method, Wire};
use super::arguments::{QueueKind, Setting};
use super::rows::{self, TEXT};

/// Publishes in flight.
const WINDOW: u64 = 1_000;
const PREFETCH: u16 = 500;
const READY: &str = "limit.ready";
const DONE: &str = "limit.done";

/// A connection that publishes jobs, and one that drains them.
pub(super) struct RabbitRaw {
    publisher: Publisher,
    drainer: Drainer,
}

impl RabbitRaw {
    pub(super) fn connect(setting: &Setting) -> anyhow::Result<Self> {
        let kind = match setting.queue {
            QueueKind::Quorum => "quorum",
            QueueKind::Classic => "classic",
        };
        let mut publisher = Publisher::connect(&setting.url)?;
        for queue in [READY, DONE] {
            publisher.wire.declare(queue, Some(kind))?;
        }
        let publishing = Publisher::connect(&setting.url)?;
        Ok(Self { publisher, drainer: Drainer { publishing, consumes: false, acked: 0 } })
    }
}

impl Contestant for RabbitRaw {
    fn enqueue(&mut self, jobs: usize) -> anyhow::Result<()> {
        self.publisher.put(jobs)
    }

    fn work(&mut self, jobs: usize) -> anyhow::Result<()> {
        self.drainer.take(jobs)
    }

    fn live(&mut self, jobs: usize) -> anyhow::Result<()> {
        let Self { publisher, drainer } = self;
        std::thread::scope(|scope| {
            let putting = scope.spawn(|| publisher.put(jobs));
            drainer.take(jobs)?;
            putting.join().map_err(|_| anyhow::anyhow!("the publisher broke off"))?
        })
    }

    fn settled(&mut self) -> anyhow::Result<usize> {
        self.publisher.wire.declare(DONE, None)
    }
}

/// A connection and what it has published.
struct Publisher {
    wire: Wire,
    published: u64,
    /// All up to here are confirmed …
    confirmed: u64,
    /// … and of those behind it, these.
    ahead: std::collections::BTreeSet<u64>,
}

impl Publisher {
    fn connect(url: &str) -> anyhow::Result<Self> {
        let wire = Wire::connect(url)?;
        Ok(Self { wire, published: 0, confirmed: 0, ahead: std::collections::BTreeSet::new() })
    }

    fn put(&mut self, jobs: usize) -> anyhow::Result<()> {
        let (until, (prompt, _)) = (self.published + jobs as u64, rows::texts());
        while self.confirmed < until {
            while self.published < until && self.published < self.confirmed + WINDOW {
                self.publish(READY, &prompt);
            }
            self.wire.send()?;
            let mut frames = self.wire.read()?;
            while let Some(frame) = frames.next()? {
                if let Frame::Ack { tag, multiple } = frame {
                    note(&mut self.confirmed, &mut self.ahead, tag, multiple);
                }
            }
        }
        Ok(())
    }

    fn publish(&mut self, queue: &str, body: &[u8]) {
        self.wire.publish(queue, body);
        self.published += 1;
    }
}

/// Moves the confirmed prefix on.
fn note(confirmed: &mut u64, ahead: &mut std::collections::BTreeSet<u64>, tag: u64, multiple: bool) {
    if multiple {
        *confirmed = (*confirmed).max(tag);
        *ahead = ahead.split_off(&(tag + 1));
    } else {
        ahead.insert(tag);
    }
    while ahead.remove(&(*confirmed + 1)) {
        *confirmed += 1;
    }
}

/// A connection that is given jobs and publishes results: the n-th delivery's is its n-th publish.
struct Drainer {
    publishing: Publisher,
    consumes: bool,
    acked: u64,
}

impl Drainer {
    fn take(&mut self, jobs: usize) -> anyhow::Result<()> {
        let until = self.acked + jobs as u64;
        if !self.consumes {
            self.publishing.wire.consume(READY, PREFETCH)?;
            self.consumes = true;
        }
        let answer = [b'r'; TEXT];
        while self.acked < until {
            while self.publishing.published < self.publishing.wire.delivered.min(until) {
                self.publishing.publish(DONE, &answer);
            }
            let Publisher { wire, confirmed, ahead, .. } = &mut self.publishing;
            if *confirmed > self.acked {
                self.acked = *confirmed;
                wire.method(Method::ACK, |out| {
                    out.extend(self.acked.to_be_bytes());
                    out.push(1);
                });
            }
            wire.send()?;
            if self.acked >= until {
                break;
            }
            let mut frames = wire.read()?;
            while let Some(frame) = frames.next()? {
                if let Frame::Ack { tag, multiple } = frame {
                    note(confirmed, ahead, tag, multiple);
                }
            }
        }
        let Wire { delivered, bytes, .. } = self.publishing.wire;
        ensure!(bytes == delivered * TEXT as u64, "{delivered} jobs of {bytes} bytes in all");
        // What was acknowledged is known there before the next thing is answered.
        self.publishing.wire.declare(DONE, None).map(drop).context("after the last acknowledgement")
    }
}
