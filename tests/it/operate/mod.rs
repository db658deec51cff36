//! Operating promptq: what its processes show of themselves to orchestrators, service managers and Prometheus.

mod catalogue;
mod exporter;
mod notify;
mod platform;
mod worker;

use std::io::Write as _;
use std::process::{Command, Stdio};

use promptq_tests::admin::Page;

/// That `promtool check metrics` finds nothing to complain of.
#[track_caller]
fn passes_promtool(page: &Page) {
    let (is_ok, said) = promtool(&page.text);
    assert!(is_ok && said.is_empty(), "{said}\n{}", page.text);
}

/// Whether promtool finds a page in order, and what it says.
#[track_caller]
fn promtool(page: &str) -> (bool, String) {
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("promtool is there; tests/install/prometheus.sh installs it");
    child.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}
