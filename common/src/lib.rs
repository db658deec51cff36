//! promptq-common: what a job is, how it travels, what it may consume, what is known about it.
//!
//! Read in this order: [`job`], [`work`], [`outcome`], [`record`], then [`broker`] and [`ledger`].

pub mod broker;
pub mod codec;
pub mod config;
pub mod error;
pub mod job;
pub mod ledger;
pub mod limits;
pub mod line;
pub mod outcome;
pub mod price;
pub mod record;
pub mod result_line;
pub mod store;
pub mod telemetry;
mod text_or_number;
pub mod time;
pub mod tls;
pub mod work;

/// A named crash point: when the tests arm it (`FAILPOINTS=name=return`), the process ends here with code 137, as if
/// killed. Compiled away without the feature `failpoints`.
#[macro_export]
macro_rules! crash_point {
    ($name:expr) => {
        #[cfg(feature = "failpoints")]
        $crate::crash::point($name);
    };
}

#[cfg(feature = "failpoints")]
pub mod crash;
