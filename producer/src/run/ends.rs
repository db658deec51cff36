//! How workers and other parts of a run ended, as a problem of it.

use promptq_common::error::{Error, Kind};
use promptq_worker::{Drained, StopReason};

use crate::problem::{Exit, Problem};

/// Why the workers left before the run was over.
pub(super) fn left(ended: Result<anyhow::Result<Drained>, tokio::task::JoinError>) -> Problem {
    match ended {
        Ok(Ok(drained)) if drained.reason == StopReason::BackendLost => {
            Problem::new(Exit::Unreachable, "unreachable", "the workers lost the broker")
        }
        Ok(Ok(drained)) if drained.reason == StopReason::Refused => {
            Problem::new(Exit::NotAllowed, "not-allowed", "the workers may not take jobs; the log says why")
        }
        Ok(Ok(_)) => Problem::new(Exit::Failed, "failed", "the workers left before the work was done"),
        Ok(Err(error)) => {
            let kind = error.downcast_ref::<Error>().map(Error::kind);
            let exit = match promptq_worker::error_code(&error) {
                _ if kind == Some(Kind::Denied) => Exit::NotAllowed,
                2 => Exit::Usage,
                7 => Exit::Unreachable,
                _ => Exit::Failed,
            };
            Problem::new(exit, "worker", format!("{error:#}"))
        }
        Err(_) => broke_off("a worker"),
    }
}

/// A part of the run that ended as none should.
pub(super) fn broke_off(what: &str) -> Problem {
    Problem::new(Exit::Failed, "failed", format!("{what} broke off"))
}
