//! What stands around a RabbitMQ broker: its users' rights, what the doctor says of it, clients that are not ours.

mod doctor;
mod foreign;
mod fresh;
mod ledgers;
mod lost;
mod moved;
mod moving;
mod reach;
mod refused;
mod rights;
mod runs;
mod topology;

use std::path::{Path, PathBuf};

use promptq_tests::rabbit::VirtualHost;
use serde_json::Value;

/// What is shipped for RabbitMQ.
fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/rabbitmq").join(name)
}

/// What a shipped user may configure, write and read.
fn rights(user: &str) -> [String; 3] {
    let definitions: Value =
        serde_json::from_str(&std::fs::read_to_string(shipped("definitions.json")).unwrap()).unwrap();
    let permissions = definitions["permissions"].as_array().unwrap();
    let found = permissions.iter().find(|permission| permission["user"] == user).unwrap();
    ["configure", "write", "read"].map(|right| found[right].as_str().unwrap().to_owned())
}

/// The address by which a shipped user, or one with its rights, comes into this virtual host.
fn login(host: &VirtualHost, user: &str) -> String {
    let [configure, write, read] = rights(user);
    host.url_of(user, [&configure, &write, &read])
}
