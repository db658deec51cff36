//! The harness of promptq's tests: [`backends`] gives every case a fresh broker, [`fixture`] makes what goes into it,
//! [`steps`] are the few moves every case is made of, [`messages`] those over a ledger that serves another broker. The
//! cases themselves are in `it/`.

pub mod admin;
pub mod backends;
pub mod binary;
pub mod carrier;
pub mod chaos;
pub mod collector;
pub mod fake;
pub mod farm;
pub mod fixture;
pub mod gateway;
pub mod llm;
pub mod messages;
pub mod metered;
pub mod process;
pub mod provider;
pub mod proxy;
pub mod rabbit;
pub mod redis;
pub mod s3;
pub mod site;
pub mod steps;
