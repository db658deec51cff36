//! As much of AMQP 0-9-1 as moves messages on one channel of one connection: frames read and written by hand.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use anyhow::{Context, bail, ensure};
use lapin::uri::AMQPUri;

/// Class and number of a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Method(u16, u16);

impl Method {
    const START: Self = Self(10, 10);
    const START_OK: Self = Self(10, 11);
    const TUNE: Self = Self(10, 30);
    const TUNE_OK: Self = Self(10, 31);
    const OPEN: Self = Self(10, 40);
    const OPEN_OK: Self = Self(10, 41);
    const CHANNEL_OPEN: Self = Self(20, 10);
    const CHANNEL_OPEN_OK: Self = Self(20, 11);
    const DECLARE: Self = Self(50, 10);
    const DECLARE_OK: Self = Self(50, 11);
    const QOS: Self = Self(60, 10);
    const QOS_OK: Self = Self(60, 11);
    const CONSUME: Self = Self(60, 20);
    const CONSUME_OK: Self = Self(60, 21);
    const PUBLISH: Self = Self(60, 40);
    const DELIVER: Self = Self(60, 60);
    pub(super) const ACK: Self = Self(60, 80);
    const SELECT: Self = Self(85, 10);
    const SELECT_OK: Self = Self(85, 11);
}

const FRAME_METHOD: u8 = 1;
const FRAME_HEADER: u8 = 2;
const FRAME_BODY: u8 = 3;
const FRAME_END: u8 = 0xCE;
/// The property flag of the delivery mode.
const DELIVERY_MODE: u16 = 1 << 12;
/// How much one read takes at most.
const READ: usize = 1 << 18;

/// What a frame comes to here.
pub(super) enum Frame {
    /// Publishes were confirmed.
    Ack { tag: u64, multiple: bool },
    /// Part of a delivery, which is counted where it is read.
    Other,
}

/// A connection with one channel, in confirm mode.
pub(super) struct Wire {
    stream: TcpStream,
    input: Vec<u8>,
    /// Where in `input` what is unread begins.
    from: usize,
    out: Vec<u8>,
    channel: u16,
    /// Deliveries so far, which is the last one's tag, and the bytes of their messages.
    pub(super) delivered: u64,
    pub(super) bytes: u64,
}

impl Wire {
    pub(super) fn connect(url: &str) -> anyhow::Result<Self> {
        let uri: AMQPUri = url.parse().map_err(|why| anyhow::anyhow!("--url: {why}"))?;
        let stream =
            TcpStream::connect((uri.authority.host.as_str(), uri.authority.port)).context("connect to RabbitMQ")?;
        stream.set_nodelay(true)?;
        let mut wire = Self {
            stream,
            input: Vec::new(),
            from: 0,
            out: b"AMQP\0\0\x09\x01".to_vec(),
            channel: 0,
            delivered: 0,
            bytes: 0,
        };
        wire.wait(Method::START)?;
        let user = &uri.authority.userinfo;
        wire.method(Method::START_OK, |out| {
            out.extend([0; 4]);
            short(out, "PLAIN");
            long(out, &format!("\0{}\0{}", user.username, user.password));
            short(out, "en_US");
        });
        // One channel, frames as large as they come, no heartbeat.
        let tuned = wire.wait(Method::TUNE)?;
        wire.method(Method::TUNE_OK, |out| {
            out.extend_from_slice(&[tuned.get(..6).unwrap_or_default(), &[0, 0]].concat());
        });
        wire.method(Method::OPEN, |out| {
            short(out, &uri.vhost);
            out.extend([0, 0]);
        });
        wire.wait(Method::OPEN_OK)?;
        wire.channel = 1;
        wire.method(Method::CHANNEL_OPEN, |out| out.push(0));
        wire.wait(Method::CHANNEL_OPEN_OK)?;
        wire.method(Method::SELECT, |out| out.push(0));
        wire.wait(Method::SELECT_OK)?;
        Ok(wire)
    }

    /// Declares a durable queue of a kind, or without one asks for that there is; how many messages wait there.
    pub(super) fn declare(&mut self, queue: &str, kind: Option<&str>) -> anyhow::Result<usize> {
        const PASSIVE: u8 = 1;
        const DURABLE: u8 = 2;
        self.method(Method::DECLARE, |out| {
            out.extend([0, 0]);
            short(out, queue);
            out.push(if kind.is_some() { DURABLE } else { PASSIVE });
            let mut table = Vec::new();
            if let Some(kind) = kind {
                short(&mut table, "x-queue-type");
                table.push(b'S');
                long(&mut table, kind);
            }
            out.extend(length(&table));
            out.extend(table);
        });
        let answer = self.wait(Method::DECLARE_OK)?;
        let count = answer.get(1 + queue.len()..5 + queue.len()).context("a declaration's answer is short")?;
        Ok(usize::try_from(number(count))?)
    }

    pub(super) fn consume(&mut self, queue: &str, prefetch: u16) -> anyhow::Result<()> {
        self.method(Method::QOS, |out| {
            out.extend([0; 4]);
            out.extend(prefetch.to_be_bytes());
            out.push(0);
        });
        self.wait(Method::QOS_OK)?;
        self.method(Method::CONSUME, |out| {
            out.extend([0, 0]);
            short(out, queue);
            short(out, "limit");
            out.extend([0; 5]);
        });
        self.wait(Method::CONSUME_OK).map(drop)
    }

    /// A persistent message to a queue, sent with whatever else waits to be.
    pub(super) fn publish(&mut self, queue: &str, body: &[u8]) {
        self.method(Method::PUBLISH, |out| {
            out.extend([0; 3]);
            short(out, queue);
            out.push(0);
        });
        self.frame(FRAME_HEADER, |out| {
            out.extend([0, 60, 0, 0]);
            out.extend((body.len() as u64).to_be_bytes());
            out.extend(DELIVERY_MODE.to_be_bytes());
            out.push(2);
        });
        self.frame(FRAME_BODY, |out| out.extend_from_slice(body));
    }

    pub(super) fn method(&mut self, method: Method, arguments: impl FnOnce(&mut Vec<u8>)) {
        self.frame(FRAME_METHOD, |out| {
            out.extend(method.0.to_be_bytes());
            out.extend(method.1.to_be_bytes());
            arguments(out);
        });
    }

    fn frame(&mut self, kind: u8, payload: impl FnOnce(&mut Vec<u8>)) {
        let out = &mut self.out;
        out.push(kind);
        out.extend(self.channel.to_be_bytes());
        let at = out.len();
        out.extend([0; 4]);
        payload(out);
        let size = length(&out[at + 4..]);
        out[at..at + 4].copy_from_slice(&size);
        out.push(FRAME_END);
    }

    pub(super) fn send(&mut self) -> anyhow::Result<()> {
        self.stream.write_all(&self.out)?;
        self.out.clear();
        Ok(())
    }

    /// Reads once what has come, waiting until there is something, and gives its frames.
    pub(super) fn read(&mut self) -> anyhow::Result<Frames<'_>> {
        self.fill()?;
        Ok(Frames(self))
    }

    fn fill(&mut self) -> anyhow::Result<()> {
        self.input.drain(..self.from);
        self.from = 0;
        let had = self.input.len();
        self.input.resize(had + READ, 0);
        let got = self.stream.read(&mut self.input[had..])?;
        self.input.truncate(had + got);
        ensure!(got > 0, "RabbitMQ hung up");
        Ok(())
    }

    /// The next whole frame: its kind, and where its payload is.
    fn next(&mut self) -> anyhow::Result<Option<(u8, std::ops::Range<usize>)>> {
        let Some(head) = self.input.get(self.from..self.from + 7) else { return Ok(None) };
        let (kind, size) = (head[0], usize::try_from(number(&head[3..7]))?);
        let (at, end) = (self.from + 7, self.from + 7 + size);
        let Some(last) = self.input.get(end) else { return Ok(None) };
        ensure!(*last == FRAME_END, "a frame does not end where it should");
        self.from = end + 1;
        Ok(Some((kind, at..end)))
    }

    /// A message's header comes once it has been delivered.
    fn count(&mut self, kind: u8, at: &std::ops::Range<usize>) -> anyhow::Result<()> {
        if kind == FRAME_HEADER {
            let bytes = self.input.get(at.start + 4..at.start + 12).context("a header is short")?;
            self.bytes += number(bytes);
            self.delivered += 1;
        }
        Ok(())
    }

    /// Sends, and waits for an answer; what is delivered meanwhile counts, and nothing is left to be confirmed.
    fn wait(&mut self, wanted: Method) -> anyhow::Result<Vec<u8>> {
        self.send()?;
        loop {
            while let Some((kind, at)) = self.next()? {
                self.count(kind, &at)?;
                let payload = &self.input[at];
                if kind == FRAME_METHOD && method_of(payload)? == wanted {
                    return Ok(payload[4..].to_vec());
                }
                if kind == FRAME_METHOD && [Method(10, 50), Method(20, 40)].contains(&method_of(payload)?) {
                    bail!("RabbitMQ refuses: {}", String::from_utf8_lossy(payload.get(7..).unwrap_or_default()));
                }
            }
            self.fill()?;
        }
    }
}

/// The frames of one read.
pub(super) struct Frames<'a>(&'a mut Wire);

impl Frames<'_> {
    pub(super) fn next(&mut self) -> anyhow::Result<Option<Frame>> {
        let Some((kind, at)) = self.0.next()? else { return Ok(None) };
        self.0.count(kind, &at)?;
        let payload = &self.0.input[at];
        Ok(Some(match kind {
            FRAME_METHOD if method_of(payload)? == Method::ACK => {
                let tag = payload.get(4..12).context("a confirm is short")?;
                Frame::Ack { tag: number(tag), multiple: payload.get(12).is_some_and(|bits| bits & 1 == 1) }
            }
            FRAME_METHOD if method_of(payload)? == Method::DELIVER => Frame::Other,
            FRAME_HEADER | FRAME_BODY => Frame::Other,
            _ => bail!("RabbitMQ says something else: {}", String::from_utf8_lossy(payload)),
        }))
    }
}

fn method_of(payload: &[u8]) -> anyhow::Result<Method> {
    let head = payload.first_chunk::<4>().context("a method is short")?;
    Ok(Method(u16::from_be_bytes([head[0], head[1]]), u16::from_be_bytes([head[2], head[3]])))
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn length(bytes: &[u8]) -> [u8; 4] {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes()
}

fn short(out: &mut Vec<u8>, text: &str) {
    out.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
    out.extend_from_slice(text.as_bytes());
}

fn long(out: &mut Vec<u8>, text: &str) {
    out.extend(length(text.as_bytes()));
    out.extend_from_slice(text.as_bytes());
}
