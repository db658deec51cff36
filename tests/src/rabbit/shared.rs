//! The one RabbitMQ that tests share, as starting one costs seconds of a processor: whoever needs it first starts it,
//! it lives as long as any test process holds a lock, and a little longer.

use std::fs::{DirBuilder, File, OpenOptions};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::node::{Failure, Node};
use super::options::Options;

/// Joins those who use the shared server, and starts it where nobody did. It stays as long as the file is open.
pub(super) fn join() -> (Node, File) {
    let home = home();
    // One at a time: whoever starts it keeps the others waiting, who need it up just as much. When it dies meanwhile,
    // its keeper goes on without it.
    let start = open(&home, "start");
    flock(&start, FlockOperation::LockExclusive).expect("the lock is taken");
    let users = open(&home, "users");
    flock(&users, FlockOperation::LockShared).expect("the lock is taken");
    let node = running(&home).unwrap_or_else(|| start_one(&home));
    drop(start);
    (node, users)
}

/// The server that somebody keeps, once it answers; one that nobody keeps any more is removed.
fn running(home: &Path) -> Option<Node> {
    let folder = home.join("node");
    let port = std::fs::read_to_string(folder.join("port")).ok().and_then(|port| port.parse().ok());
    let node = Node { folder, port: port.unwrap_or_default() };
    let is_kept = flock(open(home, "kept"), FlockOperation::NonBlockingLockExclusive).is_err();
    if is_kept && port.is_some() {
        match node.until_ready() {
            Ok(()) => return Some(node),
            Err(Failure::PortTaken) => {}
            Err(Failure::Other(why)) => panic!("the shared server: {why}"),
        }
    }
    node.kill();
    drop(std::fs::remove_dir_all(&node.folder));
    None
}

fn start_one(home: &Path) -> Node {
    let (node, _) = Node::start(home.join("node"), &Options::new(), |mut keeper| {
        // A group of its own: a test that is stopped with everything it started does not take this along.
        keeper.arg(home).process_group(0).spawn().expect("a shell starts")
    });
    node
}

/// The same for every test of one checkout and one user.
fn home() -> PathBuf {
    let mut hasher = DefaultHasher::new();
    env!("CARGO_MANIFEST_DIR").hash(&mut hasher);
    let user = rustix::process::getuid().as_raw();
    let home = in_memory().join(format!("promptq-tests-{user}-{:016x}", hasher.finish()));
    private_folder(&home);
    home
}

/// A file system in memory where there is one: what is tested on this server are steps, not the disk.
fn in_memory() -> PathBuf {
    let memory = Path::new("/dev/shm");
    let has_room = rustix::fs::statvfs(memory).is_ok_and(|stat| stat.f_bavail * stat.f_frsize > 2 << 30);
    if has_room { memory.to_owned() } else { std::env::temp_dir() }
}

fn private_folder(folder: &Path) {
    DirBuilder::new().recursive(true).mode(0o700).create(folder).expect("a folder of its own");
}

fn open(home: &Path, name: &str) -> File {
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(home.join(name));
    file.unwrap_or_else(|error| panic!("{}: {error}", home.join(name).display()))
}
