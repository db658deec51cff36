//! promptq's tests against real processes and services.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod agents;
mod chaos;
mod commands;
mod conformance;
mod crash;
mod crash_carried;
mod deploy;
mod doctor;
mod fake;
mod faults;
mod foreign;
mod gateway;
mod limit;
mod limits;
mod limits_shown;
mod llm;
mod messages;
mod model;
mod moving;
mod operate;
mod prices;
mod providers;
mod rabbit;
mod rabbitmq;
mod reach;
mod readme;
mod redis;
mod rights;
mod run;
mod secrets;
mod store;
mod tidy;
mod told;
mod traces;
mod worker;
