//! Files of `deploy/`, the tools that look at them, and copies with a fault in them, which those must find.

use std::path::{Path, PathBuf};
use std::process::Command;

use promptq_tests::process::Said;
use tempfile::TempDir;

/// A fault: what becomes of the first such words in a file, and what a validator must say of it.
pub(super) type Seed<'a> = (&'a str, &'a str, &'a str);

/// The top of the repository.
pub(super) fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// A file that is shipped.
pub(super) fn shipped(name: &str) -> PathBuf {
    top().join("deploy").join(name)
}

/// Its text.
pub(super) fn text(name: &str) -> String {
    std::fs::read_to_string(shipped(name)).unwrap_or_else(|error| panic!("deploy/{name}: {error}"))
}

/// A program that `tests/install/platforms.sh` installs.
pub(super) fn tool(name: &str) -> Command {
    let path = top().join("target/tools/platforms/bin").join(name);
    assert!(path.exists(), "{name} is not installed; hint: run tests/install/platforms.sh");
    Command::new(path)
}

/// One of the scripts in `tests/src/deploy`, about to look at something.
pub(super) fn script(name: &str) -> Command {
    let mut python = tool("python");
    python.arg(top().join("tests/src/deploy").join(name));
    python
}

/// That a validator passes a file as it is, and finds each fault in a copy that stands in a folder of its own.
#[track_caller]
pub(super) fn passes_and_finds(name: &str, seeds: &[Seed<'_>], look: impl Fn(&Path) -> Said) {
    look(&shipped(name)).ends(0);
    finds(&text(name), name, seeds, look);
}

/// That a validator finds each fault in a text.
#[track_caller]
pub(super) fn finds(text: &str, name: &str, seeds: &[Seed<'_>], look: impl Fn(&Path) -> Said) {
    let folder = TempDir::new().unwrap();
    let copy = folder.path().join(Path::new(name).file_name().unwrap());
    for (from, to, told) in seeds {
        assert!(text.contains(from), "{from:?} is not in {name}, so nothing can be wrong with it");
        std::fs::write(&copy, text.replacen(from, to, 1)).unwrap();
        let said = look(&copy);
        let heard = format!("{}{}", said.stdout, said.stderr);
        assert_ne!(said.code, 0, "{to:?} in place of {from:?} passes: {heard}");
        assert!(heard.contains(told), "of {to:?} in place of {from:?} is not said {told:?}: {heard}");
    }
}

/// What a check of ours says, as a program would.
pub(super) fn as_said(complaints: &[String]) -> Said {
    Said { code: i32::from(!complaints.is_empty()), stdout: complaints.join("\n"), stderr: String::new() }
}
