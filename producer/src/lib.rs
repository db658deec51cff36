//! promptq: submit prompt jobs, watch them, fetch their results.

pub mod printer;
pub mod problem;
