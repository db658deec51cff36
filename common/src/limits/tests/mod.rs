//! Tests of a worker's limits: its gates, what it shares over a ledger, and by which rules; a fleet simulated.

mod changes;
mod fleet;
mod frozen;
mod gates;
mod learning;
mod money;
mod nested;
mod shared;
mod sharing;
mod simulation;
