//! Crash points for the tests: a process that dies right after a step, on demand.

use std::sync::Once;

/// Ends the process with code 137 when `name` is armed by the environment variable `FAILPOINTS`: `name=return` at the
/// first passage, `name=2*off->return` at the third; several are separated by `;`.
pub fn point(name: &str) {
    static ARMED: Once = Once::new();
    ARMED.call_once(arm);
    fail::eval(name, |_: Option<String>| die());
}

#[expect(clippy::disallowed_methods, reason = "armed by the tests, not configured by users")]
fn arm() {
    let points = std::env::var("FAILPOINTS").unwrap_or_default();
    for (name, actions) in points.split(';').filter_map(|point| point.split_once('=')) {
        fail::cfg(name, actions).expect("FAILPOINTS holds name=actions");
    }
}

#[expect(clippy::exit, reason = "dying without cleaning up is what a crash point is for")]
fn die() {
    std::process::exit(137);
}
