//! The least writes on Redis over a plain socket: commands made by hand, as many as fit sent before an answer is read.
//! The wall behind any driver; nobody has to reach it.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;

use anyhow::{Context, bail, ensure};

use super::Contestant;
use super::arguments::Setting;
use super::redis_scripts::{CLAIM, DONE, ENQUEUE};
use super::rows;

const CLIENTS: usize = 2;
/// Calls under way on a connection.
const WINDOW: usize = 2;

/// Two connections, and two more for live runs.
pub(super) struct RedisRaw {
    address: String,
    batch: usize,
}

impl RedisRaw {
    pub(super) fn new(setting: &Setting) -> anyhow::Result<Self> {
        let address = setting.url.trim_start_matches("redis://").split('/').next().context("--url has no address")?;
        Ok(Self { address: address.to_owned(), batch: setting.batch })
    }

    /// As many connections as that, each doing its part of so many jobs.
    fn each(
        &self,
        jobs: usize,
        work: impl Fn(&mut Client, usize, usize) -> anyhow::Result<()> + Sync,
    ) -> anyhow::Result<()> {
        let hand = |hand: usize| {
            let part = (hand + 1) * jobs / CLIENTS - hand * jobs / CLIENTS;
            work(&mut Client::connect(&self.address)?, part, self.batch)
        };
        let hand = &hand;
        std::thread::scope(|scope| {
            let hands = (0..CLIENTS).map(|number| scope.spawn(move || hand(number))).collect::<Vec<_>>();
            for hand in hands {
                hand.join().map_err(|_| anyhow::anyhow!("a connection's thread broke off"))??;
            }
            Ok(())
        })
    }
}

impl Contestant for RedisRaw {
    fn enqueue(&mut self, jobs: usize) -> anyhow::Result<()> {
        self.each(jobs, put)
    }

    fn work(&mut self, jobs: usize) -> anyhow::Result<()> {
        self.each(jobs, take)
    }

    fn live(&mut self, jobs: usize) -> anyhow::Result<()> {
        std::thread::scope(|scope| {
            let putting = scope.spawn(|| self.each(jobs, put));
            self.each(jobs, take)?;
            putting.join().map_err(|_| anyhow::anyhow!("the producers broke off"))?
        })
    }

    fn settled(&mut self) -> anyhow::Result<usize> {
        let mut client = Client::connect(&self.address)?;
        let mut count = |words: &[&[u8]]| -> anyhow::Result<usize> {
            client.command(words);
            client.send()?;
            Ok(client.answer()?.number)
        };
        let leases = count(&[b"ZCARD", b"limit:lease"])?;
        ensure!(leases == 0, "{leases} leases have not ended");
        count(&[b"HLEN", b"limit:result"])
    }
}

fn put(client: &mut Client, jobs: usize, batch: usize) -> anyhow::Result<()> {
    let (script, (prompt, _)) = (client.load(ENQUEUE)?, rows::texts());
    let (mut left, mut under_way) = (jobs, VecDeque::new());
    while left > 0 || !under_way.is_empty() {
        if left > 0 {
            let count = left.min(batch);
            client.call(&script, 2 * count);
            for _ in 0..count {
                client.word(&rows::next_id());
                client.word(&prompt);
            }
            client.send()?;
            under_way.push_back(count);
            left -= count;
        }
        if under_way.len() == WINDOW || left == 0 {
            let due = under_way.pop_front().context("a call is under way")?;
            ensure!(client.answer()?.number == due, "a call did not take {due} jobs");
        }
    }
    Ok(())
}

/// A claim and the end of what it gave, by turns; two such turns under way. A live run's empty claims are asked again.
fn take(client: &mut Client, jobs: usize, batch: usize) -> anyhow::Result<()> {
    let (claim, done, (_, answer)) = (client.load(CLAIM)?, client.load(DONE)?, rows::texts());
    let (mut left, mut due) = (jobs, VecDeque::new());
    while left > 0 || !due.is_empty() {
        while left > 0 && due.len() < WINDOW {
            let count = left.min(batch);
            client.call(&claim, 2);
            client.word(count.to_string().as_bytes());
            client.word(b"9999999999999");
            due.push_back((count, true));
            left -= count;
        }
        client.send()?;
        let (count, is_claim) = due.pop_front().context("a call is under way")?;
        let found = client.answer()?;
        if is_claim {
            let ids = &found.words[..found.words.len() / 2];
            left += count - ids.len();
            if !ids.is_empty() {
                client.call(&done, 2 * ids.len());
                for id in ids {
                    client.word(id);
                    client.word(&answer);
                }
                due.push_back((ids.len(), false));
            }
        } else {
            ensure!(found.number == count, "a call did not end {count} jobs");
        }
    }
    Ok(())
}

/// A connection that sends many calls before it reads.
struct Client {
    answers: BufReader<TcpStream>,
    out: Vec<u8>,
}

/// An answer, lists within lists made flat.
struct Answer {
    words: Vec<Vec<u8>>,
    number: usize,
}

impl Client {
    fn connect(address: &str) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).context("connect to Redis")?;
        stream.set_nodelay(true)?;
        Ok(Self { answers: BufReader::with_capacity(1 << 16, stream), out: Vec::new() })
    }

    fn load(&mut self, script: &str) -> anyhow::Result<Vec<u8>> {
        self.command(&[b"SCRIPT", b"LOAD", script.as_bytes()]);
        self.send()?;
        self.answer()?.words.pop().context("no name of a script")
    }

    fn command(&mut self, words: &[&[u8]]) {
        self.out.extend(format!("*{}\r\n", words.len()).bytes());
        for word in words {
            self.word(word);
        }
    }

    /// The head of a call with so many words.
    fn call(&mut self, script: &[u8], words: usize) {
        self.out.extend(format!("*{}\r\n", words + 3).bytes());
        for word in [b"EVALSHA", script, b"0"] {
            self.word(word);
        }
    }

    fn word(&mut self, word: &[u8]) {
        self.out.extend(format!("${}\r\n", word.len()).bytes());
        self.out.extend(word);
        self.out.extend(b"\r\n");
    }

    fn send(&mut self) -> anyhow::Result<()> {
        self.answers.get_mut().write_all(&self.out)?;
        self.out.clear();
        Ok(())
    }

    fn answer(&mut self) -> anyhow::Result<Answer> {
        let (mut answer, mut left, mut line) = (Answer { words: Vec::new(), number: 0 }, 1_usize, String::new());
        while left > 0 {
            left -= 1;
            line.clear();
            self.answers.read_line(&mut line)?;
            let (kind, rest) = line.trim_end().split_at_checked(1).context("the server hung up")?;
            match kind {
                ":" => answer.number = rest.parse()?,
                "*" => left += rest.parse::<usize>()?,
                "$" => {
                    let length: usize = rest.parse()?;
                    let mut word = vec![0; length + 2];
                    self.answers.read_exact(&mut word)?;
                    word.truncate(length);
                    answer.words.push(word);
                }
                _ => bail!("the server says {}", line.trim_end()),
            }
        }
        Ok(answer)
    }
}
