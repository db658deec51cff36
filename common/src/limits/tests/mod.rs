//! Tests of a worker's limits: its gates, and what it shares over a ledger.

mod fleet;
mod gates;
mod learning;
mod money;
mod shared;
