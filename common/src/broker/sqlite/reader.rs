//! A thread that reads: ledger queries and claims never wait for a write, nor a write for them.

use std::path::PathBuf;

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

use super::file::{self, Fault, lift};
use super::writer::{gone, start_thread};
use crate::error::Result;

/// How many questions may wait; more callers wait outside.
const WAITING: usize = 256;

type Question = Box<dyn FnOnce(&Connection) + Send>;

/// A handle to a reading thread; the thread ends when the last one is dropped.
#[derive(Clone, Debug)]
pub(super) struct Reader {
    questions: mpsc::Sender<Question>,
}

impl Reader {
    /// Opens the file, which must exist, and starts the thread.
    pub(super) async fn start(path: PathBuf) -> Result<Self> {
        let (questions, mut inbox) = mpsc::channel::<Question>(WAITING);
        let (opened, open) = oneshot::channel();
        let body = move || match file::open_reader(&path) {
            Ok(conn) => {
                drop(opened.send(Ok(())));
                while let Some(question) = inbox.blocking_recv() {
                    question(&conn);
                }
            }
            Err(error) => drop(opened.send(Err(error))),
        };
        start_thread("promptq-sqlite-read", body)?;
        open.await.map_err(|_| gone("open the embedded database"))??;
        Ok(Self { questions })
    }

    /// Runs `ask` over one consistent view of the file.
    pub(super) async fn read<T, F>(&self, op: &'static str, ask: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, Fault> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let question: Question = Box::new(move |conn| {
            let found = in_one_view(conn, ask).map_err(|fault| lift(op, fault));
            // The asker may have gone.
            drop(reply.send(found));
        });
        self.questions.send(question).await.map_err(|_| gone(op))?;
        answer.await.map_err(|_| gone(op))?
    }
}

fn in_one_view<T>(conn: &Connection, ask: impl FnOnce(&Connection) -> Result<T, Fault>) -> Result<T, Fault> {
    let view = conn.unchecked_transaction()?;
    let found = ask(conn);
    view.finish()?;
    found
}
