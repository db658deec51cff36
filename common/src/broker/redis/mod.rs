//! The Redis backend. Here: how a server is reached (`address`, `link`, `blocker`), what is asked of it before it is
//! used (`check`), what its refusals mean (`fault`), and the shape of a script (`script`).

mod address;
mod blocker;
mod check;
mod fault;
mod link;
mod script;

pub use check::{Fsync, Survey, survey};

use blocker::Blocker;
use link::Link;
use script::{Script, When};
