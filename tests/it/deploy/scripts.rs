//! Shell scripts and YAML of `deploy/`, each file of theirs, under linters.

use std::path::{Path, PathBuf};

use promptq_tests::process::Said;

use super::shipped::{finds, shipped, text, tool, top};

/// Long lines are comments, and lists may stand in one.
const STYLE: &str = "{extends: default, rules: {line-length: disable, document-start: disable, \
                     braces: {max-spaces-inside: 1}, comments: {min-spaces-from-content: 1}, truthy: {check-keys: false}}}";

/// The folders whose files are looked at here.
const FOLDERS: [&str; 6] = ["backup", "cloudrun", "compose", "compose/observability", "ecs", "systemd"];

fn files(extension: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = FOLDERS
        .iter()
        .flat_map(|folder| std::fs::read_dir(shipped(folder)).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    files.sort();
    files
}

fn shellcheck(paths: &[&Path]) -> Said {
    Said::of(tool("shellcheck").current_dir(top()).args(["-x", "-P", "SCRIPTDIR"]).args(paths))
}

fn yamllint(paths: &[&Path]) -> Said {
    Said::of(tool("yamllint").args(["-s", "-d", STYLE]).args(paths))
}

#[test]
fn scripts_pass_shellcheck() {
    let mut scripts = files("sh");
    assert!(scripts.len() >= 5, "{scripts:?}");
    scripts.push(top().join("tests/install/platforms.sh"));
    shellcheck(&scripts.iter().map(PathBuf::as_path).collect::<Vec<_>>()).ends(0);
    let seeds = [("mkdir \"$part\"", "mkdir $part", "SC2086"), ("umask 077", "umaks=077", "SC2034")];
    finds(&text("backup/backup.sh"), "backup.sh", &seeds, |path| shellcheck(&[path]));
}

#[test]
fn scripts_stop_at_the_first_thing_that_goes_wrong() {
    for script in files("sh") {
        let text = std::fs::read_to_string(&script).unwrap();
        let is_sourced = script.ends_with("lib.sh");
        assert!(is_sourced || text.contains("\nset -euo pipefail\n"), "{}", script.display());
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&script).unwrap().permissions());
        assert_eq!(mode & 0o111 != 0, !is_sourced, "{} is started as it is", script.display());
    }
}

#[test]
fn yaml_passes_yamllint() {
    let yaml = files("yaml");
    assert!(yaml.len() >= 5, "{yaml:?}");
    yamllint(&yaml.iter().map(PathBuf::as_path).collect::<Vec<_>>()).ends(0);
    let seeds = [
        ("    restart: unless-stopped\n", "    restart: unless-stopped\n    restart: always\n", "duplication"),
        ("    init: true\n", "      init: true\n", "mapping"),
    ];
    finds(&text("compose/compose.yaml"), "compose.yaml", &seeds, |path| yamllint(&[path]));
}
