//! The programs under test, as built beside the tests.

use std::path::PathBuf;

/// Where the program `name` is.
///
/// # Panics
/// When it has not been built, saying how to.
pub fn binary(name: &str) -> PathBuf {
    let here = std::env::current_exe().expect("this program has a path");
    let folder = here.ancestors().skip(1).find(|folder| !folder.ends_with("deps")).expect("a build folder");
    let path = folder.join(name);
    assert!(path.exists(), "{} is not built; run tests/run, or: cargo build --workspace --bins", path.display());
    path
}
