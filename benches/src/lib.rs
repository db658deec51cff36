//! promptq beside the limits of its brokers and beside its peers, in one run: `contest` measures, `report` keeps it,
//! `account` and `goals` say what follows, `table` and `chart` show it. `single` measures what has nobody beside it.

pub mod account;
pub mod chart;
pub mod contest;
pub mod form;
pub mod gateway;
pub mod goals;
pub mod library;
pub mod limit;
pub mod limits;
mod machine;
mod process;
mod provider;
/// A private RabbitMQ, as the tests have it.
#[path = "../../tests/src/rabbit/mod.rs"]
pub mod rabbit;
/// A private Redis, as the tests have it.
#[path = "../../tests/src/redis/mod.rs"]
pub mod redis;
pub mod report;
pub mod scaling;
pub mod single;
mod stage;
pub mod table;

pub use process::monotonic;
