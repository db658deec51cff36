//! Unit files: read by systemd's own checks, hardened as far as promised, and together with what they start.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use promptq_tests::process::{Home, Said};
use tempfile::TempDir;

use super::shipped::{as_said, finds, passes_and_finds, shipped, text, top};

const SERVICES: [&str; 4] =
    ["promptq-worker@.service", "promptq-gateway.service", "promptq-exporter.service", "promptq-backup.service"];

/// The most that systemd may find open, in tenths.
const EXPOSURE: &str = "--threshold=15";

/// Asks systemd whether it understands a unit, with programs that are there.
fn verify(path: &Path) -> Said {
    let folder = TempDir::new().unwrap();
    let name = path.file_name().unwrap().to_str().unwrap();
    let unit = std::fs::read_to_string(path).unwrap();
    let there =
        unit.replace("/usr/local/bin/promptq-worker", "/bin/true").replace("/usr/local/bin/promptq", "/bin/true");
    let there = there.replace("/usr/local/lib/promptq/backup/backup.sh", "/bin/true");
    std::fs::write(folder.path().join(name), there).unwrap();
    if path.extension().is_some_and(|kind| kind == "timer") {
        let service =
            text("systemd/promptq-backup.service").replace("/usr/local/lib/promptq/backup/backup.sh", "/bin/true");
        std::fs::write(folder.path().join("promptq-backup.service"), service).unwrap();
    }
    let mut command = Command::new("systemd-analyze");
    // With the instance that a person would name.
    let instance = name.replace("@.", "@default.");
    if instance != name {
        std::fs::copy(folder.path().join(name), folder.path().join(&instance)).unwrap();
    }
    let search = format!("{}:", folder.path().display());
    command.args(["verify", "--man=no", "--recursive-errors=yes"]).arg(folder.path().join(instance));
    Said::of(command.env("SYSTEMD_UNIT_PATH", search))
}

fn security(path: &Path) -> Said {
    Said::of(Command::new("systemd-analyze").args(["security", "--no-pager", "--offline=true", EXPOSURE]).arg(path))
}

/// The value of a key that is said once.
fn value<'a>(unit: &'a str, key: &str) -> Option<&'a str> {
    let mut values = unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let value = values.next();
    assert_eq!(values.next(), None, "{key} twice");
    value
}

/// What systemd takes and nobody wants.
fn unwanted(unit: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut demand = |holds: bool, what: &str| {
        if !holds {
            complaints.push(what.to_owned());
        }
    };
    let seconds = |key: &str| value(unit, key).and_then(|value| value.parse::<u64>().ok());
    demand(value(unit, "User") == Some("promptq"), "it runs as another user than the one that is made");
    if value(unit, "Type") == Some("oneshot") {
        demand(unit.contains("backup.sh --keep"), "backups pile up");
        return complaints;
    }
    demand(value(unit, "Type") == Some("notify"), "it counts as up before it is");
    demand(seconds("WatchdogSec").is_some_and(|length| length > 0), "nobody notices when it hangs");
    demand(value(unit, "Restart") == Some("on-failure"), "nobody starts it again");
    demand(value(unit, "RestartPreventExitStatus") == Some("2"), "wrong settings are tried for ever");
    let drain = unit.split("DRAIN_TIMEOUT=").nth(1).and_then(|rest| rest.split('s').next()?.parse::<u64>().ok());
    // A gateway's and an exporter's is their own default, 25 s and none.
    let drain = drain.unwrap_or(if unit.contains(" serve ") { 25 } else { 0 });
    let stop = seconds("TimeoutStopSec").unwrap_or_default();
    demand(stop >= drain + 10, "it is killed before it has drained");
    if drain > 0 {
        demand(value(unit, "KillMode") == Some("mixed"), "what its jobs started is asked to leave before them");
    }
    complaints
}

#[test]
fn systemd_understands_every_unit() {
    for service in SERVICES {
        passes_and_finds(
            &format!("systemd/{service}"),
            &[
                ("ProtectHome=", "ProtectHomes=", "ProtectHomes"),
                ("SystemCallFilter=@system-service", "SystemCallFilter=@system-servic", "system-servic"),
                ("Type=", "Type=x", "service type"),
            ],
            verify,
        );
    }
    passes_and_finds(
        "systemd/promptq-backup.timer",
        &[("02:30", "26:30", "26:30"), ("Persistent=", "Persistant=", "Persistant")],
        verify,
    );
}

#[test]
fn units_leave_little_open() {
    let root = "CapabilityBoundingSet=CAP_SYS_ADMIN CAP_NET_ADMIN CAP_SYS_PTRACE\n";
    let seeds = [("CapabilityBoundingSet=\n", root, "exposure level")];
    for service in SERVICES {
        let name = format!("systemd/{service}");
        // What reaches no other host is let some more by the threshold.
        passes_and_finds(&name, if service.contains("backup") { &[] } else { &seeds }, security);
        let bare: String = text(&name)
            .lines()
            .filter(|line| !line.contains("Protect") && !line.contains("Private"))
            .flat_map(|line| [line, "\n"])
            .collect();
        let home = Home::new();
        assert_ne!(security(&home.write(service, &bare)).code, 0, "{service} without walls");
    }
}

#[test]
fn units_say_what_systemd_does_not_ask() {
    let ask = |path: &Path| as_said(&unwanted(&std::fs::read_to_string(path).unwrap()));
    let common = [
        ("User=promptq", "User=root", "another user"),
        ("Type=notify", "Type=simple", "counts as up"),
        ("WatchdogSec=60", "WatchdogSec=0", "when it hangs"),
        ("Restart=on-failure", "Restart=no", "nobody starts it"),
        ("RestartPreventExitStatus=2", "RestartPreventExitStatus=78", "tried for ever"),
        ("TimeoutStopSec=", "TimeoutStopSec=0", "killed before it has drained"),
    ];
    for service in &SERVICES[..3] {
        // 0 in front of it is no less: the last one is said in full.
        let mut seeds = common.to_vec();
        let unit = text(&format!("systemd/{service}"));
        let stop = format!("TimeoutStopSec={}", value(&unit, "TimeoutStopSec").unwrap());
        seeds[5].0 = &stop;
        seeds[5].1 = "TimeoutStopSec=9";
        passes_and_finds(&format!("systemd/{service}"), &seeds, ask);
    }
    passes_and_finds(
        "systemd/promptq-worker@.service",
        &[("KillMode=mixed", "KillMode=control-group", "asked to leave")],
        ask,
    );
    passes_and_finds("systemd/promptq-backup.service", &[("--keep 14 ", "", "pile up")], ask);
}

#[test]
fn a_worker_reads_its_keys_from_credentials() {
    let home = Home::new();
    let drop_in = text("systemd/promptq-worker@.service.d/credentials.conf");
    let whole = format!("{}\n{drop_in}", text("systemd/promptq-worker@.service"));
    let unit = home.write("promptq-worker@.service", &whole);
    verify(&unit).ends(0);
    finds(&whole, "promptq-worker@.service", &[("LoadCredential=", "LoadCredentials=", "LoadCredentials")], verify);
}

#[test]
fn the_user_and_the_folders_are_made() {
    let root = TempDir::new().unwrap();
    let at = |name: &str| root.path().join(name);
    std::fs::create_dir(at("etc")).unwrap();
    for (name, line) in [("passwd", "root:x:0:0::/:/bin/sh\n"), ("group", "root:x:0:\n")] {
        std::fs::write(at("etc").join(name), line).unwrap();
    }
    let run = |program: &str, more: &[&str], file: &str| {
        let mut command = Command::new(program);
        command.arg(format!("--root={}", root.path().display())).args(more).arg(shipped(file));
        Said::of(&mut command)
    };
    run("systemd-sysusers", &[], "systemd/sysusers.conf").ends(0);
    let users = std::fs::read_to_string(at("etc/passwd")).unwrap();
    assert!(users.lines().any(|line| line.starts_with("promptq:") && line.contains(":/var/lib/promptq:")), "{users}");
    run("systemd-tmpfiles", &["--create"], "systemd/tmpfiles.conf").ends(0);
    let id: u32 =
        users.lines().find(|line| line.starts_with("promptq:")).unwrap().split(':').nth(2).unwrap().parse().unwrap();
    let backups = std::fs::metadata(at("var/backups/promptq")).unwrap();
    assert_eq!((backups.mode() & 0o777, backups.uid()), (0o700, id));
    let keys = std::fs::metadata(at("etc/promptq/credentials")).unwrap();
    assert_eq!((keys.mode() & 0o777, keys.uid()), (0o700, 0));
}

#[test]
fn the_page_names_files_that_are_there() {
    let page = text("systemd/README.md");
    let named = page.split(|c: char| c.is_whitespace() || c == '`').filter(|word| word.starts_with("deploy/"));
    let gone: Vec<_> = named.filter(|word| !word.contains('*') && !top().join(word).exists()).collect();
    assert_eq!(gone, Vec::<&str>::new());
}
