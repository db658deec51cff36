//! A job's state as the file keeps it, and how it is seen and counted.

use crate::record::{End, State};

/// A job's state as the file keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Waits at another broker.
    Away = -1,
    Ready = 0,
    Delayed = 1,
    Running = 2,
    Succeeded = 3,
    Dead = 4,
    Cancelled = 5,
    Expired = 6,
}

impl Stage {
    const ALL: [Self; 8] = [
        Self::Away,
        Self::Ready,
        Self::Delayed,
        Self::Running,
        Self::Succeeded,
        Self::Dead,
        Self::Cancelled,
        Self::Expired,
    ];

    fn from_code(code: i64) -> Option<Self> {
        Self::ALL.into_iter().find(|stage| stage.code() == code)
    }

    pub(super) fn code(self) -> i64 {
        self as i64
    }

    pub(super) fn is_waiting(self) -> bool {
        matches!(self, Self::Away | Self::Ready | Self::Delayed)
    }

    /// As people see it: what waits at another broker is delayed there until it is due.
    pub(super) fn seen(self, due: i64, now: i64) -> Self {
        match self == Self::Away {
            true if due > now => Self::Delayed,
            true => Self::Ready,
            false => self,
        }
    }

    /// Where a job is that ended so.
    pub(super) fn of(end: End) -> Self {
        match end {
            End::Succeeded => Self::Succeeded,
            End::Dead => Self::Dead,
            End::Cancelled => Self::Cancelled,
            End::Expired => Self::Expired,
        }
    }

    /// The end it is, if it is one.
    pub(super) fn ended(self) -> Option<State> {
        match self {
            Self::Away | Self::Ready | Self::Delayed | Self::Running => None,
            Self::Succeeded => Some(State::Succeeded),
            Self::Dead => Some(State::Dead),
            Self::Cancelled => Some(State::Cancelled),
            Self::Expired => Some(State::Expired),
        }
    }

    /// Its column among a lane's counters.
    pub(super) fn lane_place(self) -> Option<usize> {
        match self {
            Self::Ready => Some(0),
            Self::Delayed => Some(1),
            Self::Running => Some(2),
            Self::Dead => Some(3),
            Self::Away | Self::Succeeded | Self::Cancelled | Self::Expired => None,
        }
    }

    /// Its column among a batch's counters.
    pub(super) fn batch_place(self) -> usize {
        match self {
            Self::Away | Self::Ready => 0,
            Self::Delayed => 1,
            Self::Running => 2,
            Self::Succeeded => 3,
            Self::Dead => 4,
            Self::Cancelled => 5,
            Self::Expired => 6,
        }
    }
}

impl rusqlite::types::FromSql for Stage {
    fn column_result(value: rusqlite::types::ValueRef<'_>) -> rusqlite::types::FromSqlResult<Self> {
        let code = value.as_i64()?;
        Self::from_code(code).ok_or(rusqlite::types::FromSqlError::OutOfRange(code))
    }
}
