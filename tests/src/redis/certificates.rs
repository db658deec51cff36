//! Certificates for servers that tests start with TLS: two authorities, and one for `localhost` by the first.

use std::path::Path;
use std::process::{Command, Stdio};

/// Writes `ca.pem`, `other-ca.pem`, and `server.pem` with `server.key`, which the first has signed for `localhost` and
/// 127.0.0.1, into a folder.
///
/// # Panics
/// When openssl is not there, or fails.
pub(crate) fn write(folder: &Path) {
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
    for (name, subject) in [("ca", "/CN=promptq tests"), ("other-ca", "/CN=somebody else")] {
        let files = ["-keyout", &format!("{name}.key"), "-out", &format!("{name}.pem"), "-subj", subject];
        openssl(folder, &[&["req", "-x509"], &key[..], &files].concat());
    }
    let names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-addext", "basicConstraints=CA:FALSE"];
    let files = ["-keyout", "server.key", "-out", "server.pem", "-subj", "/CN=localhost"];
    let signer = ["-CA", "ca.pem", "-CAkey", "ca.key"];
    openssl(folder, &[&["req", "-x509"], &key[..], &files, &names, &signer].concat());
}

fn openssl(folder: &Path, arguments: &[&str]) {
    let output = Command::new("openssl").args(arguments).current_dir(folder).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("openssl: {error}; run: apt-get install openssl"));
    assert!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}
