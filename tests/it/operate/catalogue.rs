//! The catalogue of metrics for people is what the code says.

use std::path::Path;

use promptq_common::telemetry::metric::catalogue;

#[test]
fn the_page_of_metrics_is_made_from_their_table() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let page = std::fs::read_to_string(top.join("deploy/metrics.md")).unwrap_or_default();
    let made = catalogue();
    if page != made {
        let anew = top.join("target/metrics.md");
        std::fs::write(&anew, made).unwrap();
        panic!("deploy/metrics.md is not what the table says: cp target/metrics.md deploy/metrics.md");
    }
}
