//! The few lines of Redis's protocol that the harness needs, over the server's own socket file: no driver, so that
//! nothing of ours is used to check itself.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Longer than any command of a test takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a server answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Nothing.
    Nil,
    /// A number.
    Number(i64),
    /// Anything else that is one value; what is not UTF-8 in it is replaced.
    Text(String),
    /// Several.
    List(Vec<Reply>),
}

/// Why there is no reply.
#[derive(Debug)]
pub enum Problem {
    /// The server says no, in its words.
    Refused(String),
    /// It did not answer.
    Lost(std::io::Error),
}

/// A connection of the harness.
#[derive(Debug)]
pub struct Connection(BufReader<UnixStream>);

impl Reply {
    /// The text.
    ///
    /// # Panics
    /// When it is something else.
    pub fn text(&self) -> String {
        let Self::Text(text) = self else { panic!("{self:?} is not a text") };
        text.clone()
    }

    /// The number, also when it came as text.
    ///
    /// # Panics
    /// When it is something else.
    pub fn number(&self) -> i64 {
        let Self::Number(number) = self else {
            return self.text().parse().unwrap_or_else(|_| panic!("{self:?} is not a number"));
        };
        *number
    }

    /// The items.
    ///
    /// # Panics
    /// When it is something else.
    pub fn list(&self) -> &[Reply] {
        let Self::List(list) = self else { panic!("{self:?} is not a list") };
        list
    }
}

impl Connection {
    pub(super) fn open(socket: &Path) -> Result<Self, Problem> {
        Ok(Self(BufReader::new(UnixStream::connect(socket)?)))
    }

    /// One command.
    ///
    /// # Errors
    /// When it is refused, or no answer comes within 20 seconds; after that the connection is of no use.
    pub fn call(&mut self, words: &[&str]) -> Result<Reply, Problem> {
        self.call_within(words, PATIENCE)
    }

    /// One command, with less patience.
    ///
    /// # Errors
    /// When it is refused, or no answer comes in time; after that the connection is of no use.
    pub fn call_within(&mut self, words: &[&str], patience: Duration) -> Result<Reply, Problem> {
        let mut request = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            write!(request, "${}\r\n{word}\r\n", word.len())?;
        }
        let stream = self.0.get_mut();
        stream.set_read_timeout(Some(patience))?;
        stream.write_all(&request)?;
        self.read()
    }

    fn read(&mut self) -> Result<Reply, Problem> {
        let line = self.line()?;
        let Some((kind, rest)) = line.split_at_checked(1) else { return Err(strange(&line)) };
        match kind {
            "+" => Ok(Reply::Text(rest.to_owned())),
            "-" => Err(Problem::Refused(rest.to_owned())),
            ":" => Ok(Reply::Number(rest.parse().map_err(|_| strange(&line))?)),
            "$" => self.read_text(rest.parse().map_err(|_| strange(&line))?),
            "*" => {
                let count: i64 = rest.parse().map_err(|_| strange(&line))?;
                let list = (0..count).map(|_| self.read()).collect::<Result<_, _>>()?;
                Ok(if count < 0 { Reply::Nil } else { Reply::List(list) })
            }
            _ => Err(strange(&line)),
        }
    }

    fn read_text(&mut self, length: i64) -> Result<Reply, Problem> {
        let Ok(length) = usize::try_from(length) else { return Ok(Reply::Nil) };
        let mut bytes = vec![0; length + 2];
        self.0.read_exact(&mut bytes)?;
        bytes.truncate(length);
        Ok(Reply::Text(String::from_utf8_lossy(&bytes).into_owned()))
    }

    fn line(&mut self) -> Result<String, Problem> {
        let mut line = String::new();
        if self.0.read_line(&mut line)? == 0 {
            return Err(Problem::Lost(std::io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(line.trim_end().to_owned())
    }
}

impl From<std::io::Error> for Problem {
    fn from(error: std::io::Error) -> Self {
        Self::Lost(error)
    }
}

fn strange(line: &str) -> Problem {
    Problem::Lost(std::io::Error::other(format!("not Redis's protocol: {line:?}")))
}
