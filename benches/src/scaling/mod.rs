//! What grows when a fleet grows, measured and then reckoned on: `fill` (waiting jobs), `queues`, `workers`, each on a
//! `place` of its own; `figures` keeps what was measured in a file, `model` reckons with it, `page` shows both.

mod figures;
mod fill;
mod hands;
mod model;
mod page;
mod place;
mod queues;
mod workers;

pub use figures::Figures;
pub use fill::fill;
pub use page::{page, tables};
pub use place::{Kind, Place};

pub use crate::process::own_time;
pub use queues::queues;
pub use workers::workers;
