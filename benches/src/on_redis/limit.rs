//! The least that a queue on Redis could do, as `performance.md` section 1 has it: two clients send scripts of a
//! hash and a list each, answers are awaited as late as possible. No batches, bands, claims, cursors or announcements.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;

use anyhow::{Context, bail, ensure};
use tokio::task::JoinSet;

use crate::meter::{TEXT, prompt};
use crate::redis::RedisServer;

const CLIENTS: usize = 2;
/// Calls of one job each that are under way at once on a connection; of larger ones two are enough.
const SINGLES: usize = 16;

const ENQUEUE: &str = "
redis.call('HSET', 'limit:jobs', unpack(ARGV))
local ids = {}
for at = 1, #ARGV, 2 do ids[#ids + 1] = ARGV[at] end
redis.call('RPUSH', 'limit:ready', unpack(ids))
return #ids";

const CLAIM: &str = "
local ids = redis.call('LPOP', 'limit:ready', ARGV[1])
if not ids then return {} end
local leases = {}
for place, id in ipairs(ids) do leases[2 * place - 1], leases[2 * place] = ARGV[2], id end
redis.call('ZADD', 'limit:lease', unpack(leases))
return { ids, redis.call('HMGET', 'limit:jobs', unpack(ids)) }";

const DONE: &str = "
redis.call('HSET', 'limit:result', unpack(ARGV))
local ids = {}
for at = 1, #ARGV, 2 do ids[#ids + 1] = ARGV[at] end
redis.call('ZREM', 'limit:lease', unpack(ids))
redis.call('HDEL', 'limit:jobs', unpack(ids))
return #ids";

/// Puts in so many jobs, so many a call.
pub(super) async fn enqueue(server: &RedisServer, jobs: usize, batch: usize) -> anyhow::Result<()> {
    both(server, move |client, hand| put(client, hand * jobs / CLIENTS..(hand + 1) * jobs / CLIENTS, batch)).await
}

/// Takes and ends what was put in, so many a call.
pub(super) async fn drain(server: &RedisServer, batch: usize) -> anyhow::Result<()> {
    both(server, move |client, _| take(client, batch)).await
}

async fn both(
    server: &RedisServer,
    work: impl Fn(&mut Client, usize) -> anyhow::Result<()> + Copy + Send + 'static,
) -> anyhow::Result<()> {
    let mut hands = JoinSet::new();
    for hand in 0..CLIENTS {
        let port = server.port();
        hands.spawn_blocking(move || work(&mut Client::connect(port)?, hand));
    }
    while let Some(hand) = hands.join_next().await {
        hand??;
    }
    Ok(())
}

fn window(batch: usize) -> usize {
    if batch == 1 { SINGLES } else { 2 }
}

fn put(client: &mut Client, jobs: std::ops::Range<usize>, batch: usize) -> anyhow::Result<()> {
    let script = client.load(ENQUEUE)?;
    let mut under_way = 0;
    let all: Vec<_> = jobs.collect();
    for jobs in all.chunks(batch) {
        let args = jobs.iter().flat_map(|job| [id(*job), prompt(*job).into_bytes()]).collect::<Vec<_>>();
        client.ask(&script, &args);
        under_way += 1;
        if under_way == window(batch) {
            client.send()?;
            client.answer()?;
            under_way -= 1;
        }
    }
    client.send()?;
    (0..under_way).try_for_each(|_| client.answer().map(drop))
}

fn take(client: &mut Client, batch: usize) -> anyhow::Result<()> {
    let (claim, done) = (client.load(CLAIM)?, client.load(DONE)?);
    let asked = [batch.to_string().into_bytes(), b"9999999999999".to_vec()];
    let result = vec![b'r'; TEXT];
    let mut due = std::collections::VecDeque::new();
    for _ in 0..window(batch) {
        client.ask(&claim, &asked);
        due.push_back(true);
    }
    client.send()?;
    while let Some(is_claim) = due.pop_front() {
        let mut words = client.answer()?;
        if is_claim && !words.is_empty() {
            words.truncate(words.len() / 2);
            let args: Vec<_> = words.into_iter().flat_map(|id| [id, result.clone()]).collect();
            client.ask(&done, &args);
            client.ask(&claim, &asked);
            due.extend([false, true]);
            client.send()?;
        }
    }
    Ok(())
}

fn id(job: usize) -> Vec<u8> {
    format!("{job:016}").into_bytes()
}

/// A connection that sends many calls before it reads.
struct Client {
    answers: BufReader<TcpStream>,
    out: Vec<u8>,
}

impl Client {
    fn connect(port: u16) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        Ok(Self { answers: BufReader::with_capacity(1 << 16, stream), out: Vec::new() })
    }

    fn load(&mut self, script: &str) -> anyhow::Result<Vec<u8>> {
        self.command(&[b"SCRIPT", b"LOAD", script.as_bytes()]);
        self.send()?;
        self.answer()?.pop().context("no name of a script")
    }

    fn ask(&mut self, script: &[u8], args: &[Vec<u8>]) {
        let words: Vec<&[u8]> = [b"EVALSHA", script, b"0"].into_iter().chain(args.iter().map(Vec::as_slice)).collect();
        self.command(&words);
    }

    fn command(&mut self, words: &[&[u8]]) {
        self.out.extend(format!("*{}\r\n", words.len()).bytes());
        for word in words {
            self.out.extend(format!("${}\r\n", word.len()).bytes());
            self.out.extend(*word);
            self.out.extend(b"\r\n");
        }
    }

    fn send(&mut self) -> anyhow::Result<()> {
        self.answers.get_mut().write_all(&self.out)?;
        self.out.clear();
        Ok(())
    }

    /// The texts of one answer, lists within lists made flat.
    fn answer(&mut self) -> anyhow::Result<Vec<Vec<u8>>> {
        let (mut words, mut left) = (Vec::new(), 1_usize);
        while left > 0 {
            left -= 1;
            let mut line = String::new();
            self.answers.read_line(&mut line)?;
            let line = line.trim_end();
            let (kind, rest) = line.split_at_checked(1).context("the server hung up")?;
            match kind {
                ":" => {}
                "*" => left += rest.parse::<usize>()?,
                "$" => {
                    let length: usize = rest.parse()?;
                    let mut word = vec![0; length + 2];
                    self.answers.read_exact(&mut word)?;
                    word.truncate(length);
                    words.push(word);
                }
                _ => bail!("the server says {line}"),
            }
        }
        Ok(words)
    }
}

/// What the limit has put in and ended.
pub(super) fn check(server: &RedisServer, jobs: usize) -> anyhow::Result<()> {
    let results = server.must(&["HLEN", "limit:result"]).number();
    ensure!(results == i64::try_from(jobs)?, "{results} results of {jobs} jobs");
    Ok(())
}
