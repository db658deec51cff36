//! The house rules that a compiler cannot check, each with a fixture that breaks it, so that a rule which stopped
//! looking is noticed. Function length, arguments and bans of single calls are clippy's.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A file of the tree, its path from the top with `/`.
struct File {
    path: String,
    text: String,
}

/// One rule: what it demands, how it complains of one file, what it must catch and what it must let pass.
struct Rule {
    demand: &'static str,
    /// Holds for this file too; the other rules would trip over their own fixtures here.
    of_shape: bool,
    check: fn(&File) -> Vec<String>,
    bad: &'static [(&'static str, &'static str)],
    good: &'static [(&'static str, &'static str)],
}

const RULES: &[Rule] = &[
    Rule {
        demand: "every file opens with 1 to 6 lines saying what it owns",
        of_shape: true,
        check: opens_with_its_purpose,
        bad: &[
            ("common/src/a.rs", "use x;\n"),
            ("common/src/a.rs", "//! 1\n//! 2\n//! 3\n//! 4\n//! 5\n//! 6\n//! 7\n"),
        ],
        good: &[("common/src/a.rs", "//! One.\n//! Two.\nuse x;\n")],
    },
    Rule {
        demand: "at most 400 lines a file",
        of_shape: true,
        check: is_short,
        bad: &[("common/src/a.rs", TOO_LONG)],
        good: &[("common/src/a.rs", "//! Short.\n")],
    },
    Rule {
        demand: "nothing unfinished, switched off or waved through",
        of_shape: false,
        check: has_no_loose_ends,
        bad: &[
            ("a.rs", "// TODO later"),
            ("a.rs", "// FIXME"),
            ("a.rs", "// XXX"),
            ("a.rs", "todo!()"),
            ("a.rs", "unimplemented!()"),
            ("a.rs", "#[ignore]"),
            ("a.rs", "#[ignore = \"slow\"]"),
            ("a.rs", "#[allow(dead_code)]"),
            ("a.rs", "#![allow(unused)]"),
        ],
        good: &[("a.rs", "#[expect(clippy::exit, reason = \"…\")] fn todo() {}")],
    },
    Rule {
        demand: "no path of one machine, no package registry's host",
        of_shape: false,
        check: names_no_machine,
        bad: &[
            ("a.md", "see /Users/me/notes"),
            ("a.sh", "/root/.cargo"),
            ("a.sh", concat!("https://pypi", ".org/simple")),
            ("a.toml", concat!("index.crates", ".io")),
        ],
        good: &[("a.md", "a worker in /var/lib")],
    },
    Rule {
        demand: "each outside package has one owner",
        of_shape: false,
        check: packages_have_owners,
        bad: &[
            ("worker/src/a.rs", "use bincode::config;"),
            ("worker/src/a.rs", "object_store::path::Path"),
            ("common/src/ledger/mod.rs", "use rusqlite::Connection;"),
            ("worker/src/a.rs", "metrics::counter!(\"x\")"),
            ("common/src/broker/redis.rs", "use lapin::Channel;"),
            ("common/src/broker/amqp.rs", "use deadpool_redis::Pool;"),
            ("worker/src/a.rs", "governor::RateLimiter"),
        ],
        good: &[
            ("common/src/codec.rs", "use bincode::config;"),
            ("common/src/store/mod.rs", "use object_store::path::Path;"),
            ("common/src/broker/sqlite/tx.rs", "use rusqlite::Connection;"),
            ("worker/src/a.rs", "own_metrics::x"),
        ],
    },
    Rule {
        demand: "backends do not know each other, and only connect.rs and tests name one",
        of_shape: false,
        check: backends_are_strangers,
        bad: &[
            ("common/src/broker/sqlite/mod.rs", "use crate::broker::memory::Memory;"),
            ("common/src/broker/memory/mod.rs", "super::super::sqlite::Sqlite"),
            ("worker/src/intake.rs", "use promptq_common::broker::sqlite::Sqlite;"),
        ],
        good: &[
            ("common/src/broker/sqlite/mod.rs", "use super::backend::Hold;"),
            ("common/src/broker/connect.rs", "use super::sqlite::Sqlite;"),
            ("worker/src/intake.rs", "Broker::memory()"),
        ],
    },
    Rule {
        demand: "only the printer prints",
        of_shape: false,
        check: only_the_printer_prints,
        bad: &[("producer/src/submit.rs", "println!(\"x\")"), ("common/src/a.rs", "eprint!(\"x\")")],
        good: &[("producer/src/printer.rs", "println!(\"x\")"), ("worker/src/main.rs", "eprintln!(\"x\")")],
    },
    Rule {
        demand: "the environment is read in common/src/config only",
        of_shape: false,
        check: only_config_reads_the_environment,
        bad: &[("worker/src/a.rs", "std::env::var(\"X\")"), ("producer/src/a.rs", "env::vars_os()")],
        good: &[
            ("common/src/config/mod.rs", "std::env::var(\"X\")"),
            ("worker/src/a.rs", "env!(\"CARGO_PKG_VERSION\")"),
        ],
    },
    Rule {
        demand: "tests wait for a condition with a deadline, never just for a while",
        of_shape: false,
        check: tests_do_not_just_sleep,
        bad: &[("tests/it/a.rs", "start();\nsleep(SECOND).await;\nassert!(done);")],
        good: &[("tests/it/a.rs", "while !done() {\n assert!(begun.elapsed() < LONG);\n sleep(TICK).await;\n}")],
    },
];

/// 401 lines.
const TOO_LONG: &str = {
    const LINES: [u8; 401] = [b'\n'; 401];
    match std::str::from_utf8(&LINES) {
        Ok(text) => text,
        Err(_) => panic!("newlines are text"),
    }
};

#[test]
fn the_tree_keeps_every_rule() {
    let files = tree();
    let mut complaints = Vec::new();
    for rule in RULES {
        for file in files.iter().filter(|file| rule.of_shape || file.path != "tests/it/tidy.rs") {
            complaints
                .extend((rule.check)(file).into_iter().map(|what| format!("{}: {what}: {}", file.path, rule.demand)));
        }
    }
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn every_rule_catches_what_breaks_it_and_nothing_else() {
    let complaints = |rule: &Rule, (path, text): &(&str, &str)| {
        (rule.check)(&File { path: (*path).to_owned(), text: (*text).to_owned() })
    };
    for rule in RULES {
        for bad in rule.bad {
            assert!(!complaints(rule, bad).is_empty(), "{:?} passes {bad:?}", rule.demand);
        }
        for good in rule.good {
            assert_eq!(complaints(rule, good), Vec::<String>::new(), "{:?} on {good:?}", rule.demand);
        }
    }
}

#[test]
fn crates_depend_one_way() {
    let allowed = |member: &str| -> &[&str] {
        match member {
            "common" => &[],
            "worker" => &["promptq-common"],
            "producer" => &["promptq-common", "promptq-worker"],
            _ => &["promptq-common", "promptq-worker", "promptq"],
        }
    };
    let backwards = |member: &str, manifest: &str| -> Vec<String> {
        let manifest: toml::Table = manifest.parse().unwrap();
        let sections = ["dependencies", "build-dependencies", "dev-dependencies"];
        let names = sections.iter().filter_map(|name| manifest.get(*name)?.as_table()).flat_map(toml::Table::keys);
        names.filter(|name| name.starts_with("promptq") && !allowed(member).contains(&name.as_str())).cloned().collect()
    };
    for member in MEMBERS {
        let manifest = std::fs::read_to_string(top().join(member).join("Cargo.toml")).unwrap();
        assert_eq!(backwards(member, &manifest), Vec::<String>::new(), "{member}");
    }
    assert_eq!(backwards("common", "[dependencies]\npromptq-worker.workspace = true"), ["promptq-worker"]);
    assert_eq!(backwards("worker", "[dev-dependencies]\npromptq.workspace = true"), ["promptq"]);
}

#[test]
fn the_top_level_is_what_was_agreed() {
    const AGREED: [&str; 11] = [
        "ARCHITECTURE.md",
        "CHANGELOG.md",
        "Cargo.lock",
        "Cargo.toml",
        "LICENSE",
        "README.md",
        "benches",
        "common",
        "deploy",
        "producer",
        "tests",
    ];
    let strange = |names: &BTreeSet<String>| -> Vec<String> {
        let agreed: BTreeSet<String> = AGREED.iter().chain(&["worker"]).map(|name| (*name).to_owned()).collect();
        names.symmetric_difference(&agreed).cloned().collect()
    };
    let names: BTreeSet<String> = std::fs::read_dir(top())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with('.') && name != "target")
        .collect();
    assert_eq!(strange(&names), Vec::<String>::new(), "missing from the top level, or too much there");
    let more = names.iter().cloned().chain(["scripts".to_owned()]).filter(|name| name != "LICENSE").collect();
    assert_eq!(strange(&more), ["LICENSE", "scripts"]);
}

#[test]
fn the_map_names_every_source_file_and_no_other() {
    let differences = |map: &str, sources: &BTreeSet<String>| -> Vec<String> {
        let named: BTreeSet<String> = map
            .lines()
            .filter_map(|line| line.strip_prefix("- `")?.split_once('`'))
            .map(|(path, _)| path.to_owned())
            .collect();
        named.symmetric_difference(sources).cloned().collect()
    };
    let text = std::fs::read_to_string(top().join("ARCHITECTURE.md")).unwrap();
    let is_path =
        |word: &&str| !word.contains(' ') && MEMBERS.iter().any(|member| word.starts_with(&format!("{member}/")));
    let gone: Vec<_> =
        text.split('`').skip(1).step_by(2).filter(is_path).filter(|path| !top().join(path).exists()).collect();
    assert_eq!(gone, Vec::<&str>::new(), "named in ARCHITECTURE.md and nowhere to be found");
    let map = text.split("\n## ").find(|section| section.starts_with("Map\n")).expect("a section named Map");
    let sources: BTreeSet<String> = tree().into_iter().map(|file| file.path).filter(|path| is_source(path)).collect();
    assert_eq!(differences(map, &sources), Vec::<String>::new(), "in one of the map and the tree only");
    let two = BTreeSet::from(["a/b.rs".to_owned(), "a/c.rs".to_owned()]);
    assert_eq!(differences("- `a/b.rs` one\n- `a/gone.rs` two", &two), ["a/c.rs", "a/gone.rs"]);
}

#[test]
fn the_seam_walk_names_tests_that_exist() {
    let missing = |walk: &str, code: &str| -> Vec<String> {
        let names = walk.split('`').skip(1).step_by(2).filter_map(|word| word.split_once("::"));
        let tests = names.filter(|(group, _)| group.chars().all(|c| c.is_ascii_lowercase()));
        tests.map(|(_, test)| test.to_owned()).filter(|test| !code.contains(&format!("fn {test}("))).collect()
    };
    let text = std::fs::read_to_string(top().join("ARCHITECTURE.md")).unwrap();
    let walk = text.split("\n## ").find(|section| section.starts_with("The seam walk\n")).expect("the seam walk");
    let code: String = tree().into_iter().filter(is_rust).map(|file| file.text).collect();
    assert_eq!(missing(walk, &code), Vec::<String>::new(), "named in the seam walk and nowhere to be found");
    assert_eq!(missing("x `lease::gone` `Hold::claim`", "fn here() {}"), ["gone"]);
}

fn opens_with_its_purpose(file: &File) -> Vec<String> {
    let lines = file.text.lines().take_while(|line| line.starts_with("//!")).count();
    complain(is_rust(file) && !(1..=6).contains(&lines), || format!("{lines} lines of //!"))
}

fn is_short(file: &File) -> Vec<String> {
    let lines = file.text.lines().count();
    complain(is_rust(file) && lines > 400, || format!("{lines} lines"))
}

fn has_no_loose_ends(file: &File) -> Vec<String> {
    const ENDS: [&str; 8] = ["TODO", "FIXME", "XXX", "todo!(", "unimplemented!(", "#[ignore", "#[allow(", "#![allow("];
    // A process that a test starts to die in has to be a test itself where the test binary is all there is to start.
    let text = file.text.replace("#[ignore = \"the victim of the test below", "");
    found(&File { path: file.path.clone(), text }, &ENDS)
}

fn names_no_machine(file: &File) -> Vec<String> {
    // In pieces, so that this file names none either.
    const HOSTS: [&str; 3] =
        [concat!("pypi", ".org"), concat!("index.crates", ".io"), concat!("registry.npmjs", ".org")];
    const NAMES: [&str; 5] = ["/root/", "/Users/", HOSTS[0], HOSTS[1], HOSTS[2]];
    found(file, &NAMES)
}

fn packages_have_owners(file: &File) -> Vec<String> {
    const OWNERS: [(&str, &[&str]); 8] = [
        ("lapin", &["common/src/broker/amqp", "tests/src/rabbit/"]),
        ("deadpool_redis", &["common/src/broker/redis", "common/src/ledger/redis", "common/src/limits/redis"]),
        ("bincode", &["common/src/codec"]),
        ("governor", &["common/src/limits/local", "producer/src/gateway/"]),
        ("rusqlite", &["common/src/broker/sqlite/", "common/src/ledger/sqlite", "common/src/limits/sqlite"]),
        ("object_store", &["common/src/store/"]),
        ("metrics", &["common/src/telemetry/"]),
        ("minijinja", &["producer/src/input/"]),
    ];
    let used = |package: &str| {
        let path = format!("{package}::");
        file.text.match_indices(&path).any(|(at, _)| {
            let before = file.text.get(..at).and_then(|text| text.chars().next_back());
            !before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '_' | ':' | '`'))
        })
    };
    // The limit programs stand on the same drivers, and so does what counts from outside how many jobs have ended.
    let is_free = ["benches/src/limit/", "benches/src/stage.rs"].iter().any(|place| file.path.starts_with(place));
    let bound = is_rust(file) && !is_free;
    let strange = OWNERS
        .iter()
        .filter(|(package, owners)| bound && used(package) && !owners.iter().any(|owner| file.path.starts_with(owner)));
    strange.map(|(package, _)| format!("uses {package}")).collect()
}

fn backends_are_strangers(file: &File) -> Vec<String> {
    const BACKENDS: [&str; 4] = ["memory", "sqlite", "redis", "amqp"];
    if ["tests/", "benches/"].iter().any(|tests| file.path.contains(tests)) || !is_rust(file) {
        return Vec::new();
    }
    let home = |name: &str| {
        let inside = ["broker", "ledger", "limits"].map(|seam| format!("common/src/{seam}/{name}"));
        inside.iter().any(|inside| file.path.starts_with(inside))
            || ["common/src/broker/connect.rs", "common/src/broker/mod.rs"].contains(&file.path.as_str())
    };
    let named = |name: &str| {
        ["broker::", "ledger::", "super::"].iter().any(|before| file.text.contains(&format!("{before}{name}::")))
    };
    BACKENDS.iter().filter(|name| named(name) && !home(name)).map(|name| format!("names {name}")).collect()
}

fn only_the_printer_prints(file: &File) -> Vec<String> {
    const PRINTERS: [&str; 5] = ["producer/src/printer", "worker/src/main.rs", "tests/", "benches/", "common/build.rs"];
    let may = PRINTERS.iter().any(|path| file.path.starts_with(path));
    if may || !is_rust(file) { Vec::new() } else { found(file, &["println!(", "print!("]) }
}

fn only_config_reads_the_environment(file: &File) -> Vec<String> {
    // exec hands on to its programs the variables that the configuration names.
    const READERS: [&str; 5] =
        ["common/src/config/", "common/src/crash.rs", "worker/src/runner/exec/mod.rs", "tests/", "benches/"];
    let may = READERS.iter().any(|path| file.path.starts_with(path));
    if may || !is_rust(file) { Vec::new() } else { found(file, &["env::var", "env::set_var", "env::remove_var"]) }
}

fn tests_do_not_just_sleep(file: &File) -> Vec<String> {
    if !file.path.starts_with("tests/") || !is_rust(file) {
        return Vec::new();
    }
    let lines: Vec<_> = file.text.lines().collect();
    let bare = |at: &usize| {
        let around = lines.get(at.saturating_sub(8)..lines.len().min(at + 5)).unwrap_or_default();
        let is_bounded =
            |line: &&str| ["elapsed()", "deadline", "timeout", "sleep(latency("].iter().any(|word| line.contains(word));
        lines.get(*at).is_some_and(|line| line.contains("sleep(")) && !around.iter().any(is_bounded)
    };
    (0..lines.len()).filter(bare).map(|at| format!("line {} sleeps", at + 1)).collect()
}

fn found(file: &File, needles: &[&str]) -> Vec<String> {
    needles.iter().filter(|needle| file.text.contains(**needle)).map(|needle| format!("holds {needle:?}")).collect()
}

fn complain(wrong: bool, what: impl FnOnce() -> String) -> Vec<String> {
    if wrong { vec![what()] } else { Vec::new() }
}

const MEMBERS: [&str; 5] = ["common", "worker", "producer", "tests", "benches"];

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn is_rust(file: &File) -> bool {
    has_extension(&file.path, &["rs"])
}

fn is_source(path: &str) -> bool {
    has_extension(path, &["rs", "sql", "lua"]) && MEMBERS.iter().any(|member| path.starts_with(member))
}

fn has_extension(path: &str, extensions: &[&str]) -> bool {
    Path::new(path).extension().and_then(|found| found.to_str()).is_some_and(|found| extensions.contains(&found))
}

/// Every text file of the project, build products and hidden folders but `.ci` and `.config` left out.
fn tree() -> Vec<File> {
    let mut files = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(top().join(&folder)).unwrap().map(Result::unwrap) {
            let path = folder.join(entry.file_name());
            let name = path.to_str().expect("a UTF-8 path").to_owned();
            let is_hidden = name.starts_with('.') && ![".ci", ".config", ".cargo"].contains(&name.as_str());
            if entry.file_type().unwrap().is_dir() {
                if !is_hidden && entry.file_name() != "target" {
                    folders.push(path);
                }
            } else if let (false, Ok(text)) = (name == ".git", std::fs::read_to_string(entry.path())) {
                files.push(File { path: name, text });
            }
        }
    }
    assert!(files.len() > 30, "the whole tree was read");
    files
}
