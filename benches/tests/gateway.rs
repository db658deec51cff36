//! That `benches/gateway` works from its command line to its file.

use std::process::Command;

use promptq_benches::limits::findings::Findings;

#[test]
fn the_gateway_and_the_exporter_are_measured_from_the_command_line_to_the_file() {
    let folder = tempfile::TempDir::new().unwrap();
    let out = folder.path().join("gateway.json");
    let mut command = Command::new(env!("CARGO_BIN_EXE_gateway"));
    let output = command.args(["--smoke", "--out"]).arg(&out).output().unwrap();
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", said(&output.stdout), said(&output.stderr));
    let findings = Findings::read(&out).unwrap().findings;
    let seen =
        |what: &str| findings.iter().filter(|found| found.what == what).map(|found| found.seen).collect::<Vec<_>>();
    assert_eq!(seen("jobs answered 201"), [100.0; 2], "{}", said(&output.stdout));
    assert_eq!(seen("of the slow clients still listened to at the end"), [5.0; 2], "{}", said(&output.stdout));
    assert!(seen("its page").iter().all(|kib| *kib > 1.0) && seen("its page").len() == 2);
}
