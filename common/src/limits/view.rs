//! A limit key's shared state as people see it. What it is, is `pool.rs`.

use super::amount::Cap;

/// What people see of a limit key.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolView {
    /// Each cap, in the order of the configuration.
    pub caps: Vec<CapView>,
    /// For how many milliseconds nobody calls yet.
    pub frozen_for: i64,
    /// What the refusal said, if that was told.
    pub why: Option<String>,
    /// The share of its limits that is used after refusals; 1 for all of them.
    pub rate: f64,
    /// Workers that have it now.
    pub workers: usize,
    /// Those of them that wait for more of it.
    pub starving: usize,
    /// The money that is missing, if jobs wait for no less than that.
    pub lacks: Option<Lack>,
}

/// Money that no cap has left, as workers have told: those that are here, or else the last one that left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lack {
    /// The least that a waiting job may cost.
    pub least: i64,
    /// How many milliseconds ago that was told; 0 while somebody is there who says so.
    pub ago: i64,
}

/// One cap as people see it. Amounts are what the cap counts, of money billionths of a dollar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CapView {
    /// As it is in force now.
    pub cap: Cap,
    /// As configured; `i64::MAX` where it is not.
    pub configured: i64,
    /// As a person set it for the fleet.
    pub set: Option<i64>,
    /// As the provider's headers have it.
    pub learned: Option<i64>,
    /// Consumed within its window.
    pub used: i64,
    /// Held by workers: granted, or reserved by calls in flight.
    pub held: i64,
    /// Of that what calls in flight have reserved; the others wait for the next calls, for 2 s at most.
    pub in_calls: i64,
}
