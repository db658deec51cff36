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
                while let Some(first) = inbox.blocking_recv() {
                    let rest = std::iter::from_fn(|| inbox.try_recv().ok()).take(WAITING);
                    answer(&conn, std::iter::once(first).chain(rest).collect());
                }
            }
            Err(error) => drop(opened.send(Err(error))),
        };
        start_thread("sqlite-read", body)?;
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
            // The asker may have gone.
            drop(reply.send(ask(conn).map_err(|fault| lift(op, fault))));
        });
        self.questions.send(question).await.map_err(|_| gone(op))?;
        answer.await.map_err(|_| gone(op))?
    }
}

/// Everything that was asked before the view was opened is answered from it. Without a view each question has its own.
fn answer(conn: &Connection, questions: Vec<Question>) {
    let viewing = run(conn, "BEGIN").is_ok();
    for question in questions {
        question(conn);
    }
    if viewing && let Err(error) = run(conn, "COMMIT") {
        tracing::warn!(%error, "closing a view of the embedded database failed");
        // A view left open would answer from the past for ever.
        if let Err(error) = run(conn, "ROLLBACK") {
            tracing::error!(%error, "dropping a view of the embedded database failed");
        }
    }
}

fn run(conn: &Connection, sql: &str) -> rusqlite::Result<()> {
    conn.prepare_cached(sql)?.execute([]).map(drop)
}
