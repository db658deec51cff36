//! What backups and restores promise wherever they die: a backup is there whole or not at all, nothing is written over,
//! damage is told. What comes back is `drills.rs`.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use promptq_tests::process::{Home, Said};
use promptq_tests::redis::{Options, RedisServer};

use super::shipped::shipped;

/// `backup.sh` or `restore.sh`.
pub(super) fn script(name: &str, words: &[&str]) -> Command {
    let mut command = Command::new(shipped("backup").join(name));
    command.args(words).env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin");
    command
}

/// A home whose file has so many jobs, and a folder for backups.
fn filled(count: usize) -> (Home, String, String) {
    let home = Home::new();
    let rows: String = (1..=count).flat_map(|row| ["{\"prompt\":\"job ".to_owned(), format!("{row}\"}}\n")]).collect();
    home.write("rows.jsonl", &rows);
    home.promptq(&["submit", "rows.jsonl", "--batch", "b", "--model", "mock"]).ends(0);
    // Where large answers go unless a store is named.
    std::fs::create_dir(home.path("q.db.store")).unwrap();
    home.write("q.db.store/answer", "an answer");
    let (file, folder) = (home.path("q.db").display().to_string(), home.path("backups").display().to_string());
    (home, file, folder)
}

/// The finished backups in a folder.
fn finished(folder: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
    let mut finished: Vec<_> =
        entries.filter(|path| !path.file_name().unwrap().to_str().unwrap().starts_with('.')).collect();
    finished.sort();
    finished
}

fn jobs_in(file: &Path) -> String {
    let url = format!("sqlite://{}", file.display());
    let home = Home::new();
    let mut command = home.program("promptq", &["status", "b", "--json"]);
    let status = Said::of(command.env("PROMPTQ_BROKER", url)).ends(0).json();
    status.to_string()
}

/// A folder of programs that stand before the real ones in the search path: of these names, each kills whoever started
/// it, before or after it has done its work.
fn deadly(home: &Home, program: &str, after: bool) -> String {
    let folder = home.path("deadly");
    std::fs::remove_dir_all(&folder).unwrap_or_default();
    std::fs::create_dir(&folder).unwrap();
    let real = Said::of(Command::new("sh").args(["-c", &format!("command -v {program}")])).ends(0).stdout;
    let work = if after { format!("{} \"$@\"\n", real.trim()) } else { String::new() };
    // The whole group, so that nobody is left to tidy up.
    std::fs::write(folder.join(program), format!("#!/bin/sh\n{work}kill -9 0\n")).unwrap();
    std::fs::set_permissions(folder.join(program), std::fs::Permissions::from_mode(0o755)).unwrap();
    format!("{}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", folder.display())
}

#[test]
fn a_backup_that_dies_is_whole_or_not_there() {
    let (home, file, folder) = filled(20);
    let run = || script("backup.sh", &["sqlite", &file, &folder]);
    let mut dead = 0;
    for program in ["sqlite3", "sha256sum", "sync", "mkdir", "mv"] {
        for after in [false, true] {
            let before = finished(&folder).len();
            let said = Said::of(run().env("PATH", deadly(&home, program, after)).process_group(0));
            assert_eq!(said.code, -1, "{program} killed it: {}", said.stderr);
            dead += 1;
            let is_done = (program, after) == ("mv", true);
            assert_eq!(finished(&folder).len(), before + usize::from(is_done), "{program}, {after}");
        }
    }
    assert_eq!(dead, 10);
    let whole = Said::of(&mut run()).ends(0).stdout;
    assert_eq!(finished(&folder).last().unwrap(), Path::new(whole.trim()), "the newest is the last");
    let hidden = std::fs::read_dir(&folder)
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_str().unwrap().starts_with(".part"));
    assert_eq!(hidden.count(), 0, "what was left of the dead is gone");
    for (number, backup) in finished(&folder).into_iter().enumerate() {
        let target = home.path(&format!("restored-{number}.db"));
        Said::of(&mut script("restore.sh", &["sqlite", &backup.display().to_string(), target.to_str().unwrap()]))
            .ends(0);
        assert_eq!(jobs_in(&target), jobs_in(Path::new(&file)));
        assert_eq!(std::fs::read(target.with_extension("db.store").join("answer")).unwrap(), b"an answer");
    }
}

#[test]
fn a_restore_that_dies_is_whole_or_not_there() {
    let (home, file, folder) = filled(20);
    let backup = Said::of(&mut script("backup.sh", &["sqlite", &file, &folder])).ends(0).stdout.trim().to_owned();
    for program in ["sha256sum", "cp", "chown", "sync", "mv"] {
        for after in [false, true] {
            let target = home.path(&format!("{program}-{after}.db"));
            let run = || script("restore.sh", &["sqlite", &backup, target.to_str().unwrap()]);
            let said = Said::of(run().env("PATH", deadly(&home, program, after)).process_group(0));
            assert_eq!(said.code, -1, "{program} killed it: {}", said.stderr);
            if target.exists() {
                assert_eq!((program, after), ("mv", true), "there before it was whole");
            } else {
                Said::of(&mut run()).ends(0);
            }
            assert_eq!(jobs_in(&target), jobs_in(Path::new(&file)));
            assert_eq!(std::fs::read(target.with_extension("db.store").join("answer")).unwrap(), b"an answer");
            Said::of(&mut run()).ends(1).says(&["is there already", "nothing is written over"]);
        }
    }
}

#[test]
fn nothing_is_written_over_and_logs_of_another_file_are_no_ones() {
    let (home, file, folder) = filled(3);
    let backup = Said::of(&mut script("backup.sh", &["sqlite", &file, &folder])).ends(0).stdout.trim().to_owned();
    let restore = |target: &Path| Said::of(&mut script("restore.sh", &["sqlite", &backup, target.to_str().unwrap()]));
    let before = std::fs::read(&file).unwrap();
    restore(Path::new(&file)).ends(1).says(&["error[backup]:", "is there already"]);
    assert_eq!(std::fs::read(&file).unwrap(), before);
    for suffix in ["-wal", "-shm", "-journal"] {
        let target = home.path("other.db");
        let log = home.write(&format!("other.db{suffix}"), "");
        restore(&target).ends(1).says(&[suffix, "is there already"]);
        assert!(!target.exists());
        std::fs::remove_file(log).unwrap();
    }
    let target = home.path("other.db");
    std::fs::create_dir(home.path("other.db.store")).unwrap();
    home.write("other.db.store/answer", "another");
    restore(&target).ends(1).says(&["other.db.store is there already"]);
    assert!(!target.exists());
}

#[test]
fn a_backup_that_was_touched_is_refused() {
    let (home, file, folder) = filled(3);
    let backup = Said::of(&mut script("backup.sh", &["sqlite", &file, &folder])).ends(0).stdout.trim().to_owned();
    let target = home.path("restored.db");
    let restore = |kind: &str| Said::of(&mut script("restore.sh", &[kind, &backup, target.to_str().unwrap()])).ends(1);
    restore("results").says(&["holds sqlite, not results"]);
    let data = Path::new(&backup).join("queue.db");
    let whole = std::fs::read(&data).unwrap();
    let mut bytes = whole.clone();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&data, &bytes).unwrap();
    restore("sqlite").says(&["is damaged"]);
    std::fs::write(&data, &whole[..whole.len() / 2]).unwrap();
    restore("sqlite").says(&["is damaged"]);
    std::fs::write(&data, &whole).unwrap();
    std::fs::remove_file(Path::new(&backup).join("SHA256SUMS")).unwrap();
    restore("sqlite").says(&["is no backup"]);
    assert!(!target.exists());
}

#[test]
fn only_as_many_are_kept_as_were_asked_for() {
    let (home, file, folder) = filled(3);
    for _ in 0..3 {
        Said::of(&mut script("backup.sh", &["sqlite", &file, &folder])).ends(0);
    }
    std::fs::create_dir(home.path("store")).unwrap();
    let store = home.path("store").display().to_string();
    Said::of(&mut script("backup.sh", &["results", &store, &folder])).ends(0);
    let all = finished(&folder);
    assert_eq!(all.len(), 4);
    let newest = Said::of(&mut script("backup.sh", &["--keep", "2", "sqlite", &file, &folder])).ends(0).stdout;
    let left = finished(&folder);
    assert_eq!(left, [all[0].clone(), all[3].clone(), PathBuf::from(newest.trim())], "of that kind alone");
}

#[test]
fn what_cannot_be_backed_up_is_one_clear_error() {
    let (home, file, folder) = filled(1);
    let refused = |words: &[&str]| {
        // Nobody listens there.
        Said::of(script("backup.sh", words).env("REDIS_URL", "redis://127.0.0.1:1")).ends(1)
    };
    refused(&["sqlite", "/nowhere/q.db", &folder]).says(&["no file /nowhere/q.db"]);
    refused(&["kafka", &file, &folder]).says(&["kafka is nothing that can be backed up"]);
    refused(&["sqlite", &file]).says(&["three words"]);
    refused(&["--keep", "0", "sqlite", &file, &folder]).says(&["a number from 1"]);
    refused(&["results", "/nowhere", &folder]).says(&["no folder /nowhere"]);
    refused(&["redis", &folder, &folder]).says(&["the server does not do INFO", "REDIS_URL"]);
    home.write("broken.db", "this is no database, however long it may be");
    refused(&["sqlite", home.path("broken.db").to_str().unwrap(), &folder]).says(&["cannot copy"]);
    assert_eq!(finished(&folder), Vec::<PathBuf>::new());
}

#[test]
fn a_folder_that_the_server_has_left_is_no_backup_of_it() {
    let (home, server) = (Home::new(), RedisServer::start(Options::durable()));
    let (left, own) = (home.path("left"), server.folder());
    std::fs::create_dir_all(left.join("appendonlydir")).unwrap();
    for entry in std::fs::read_dir(own.join("appendonlydir")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, left.join("appendonlydir").join(path.file_name().unwrap())).unwrap();
    }
    let backups = home.path("backups");
    let of = |folder: &Path| {
        let words = ["redis", folder.to_str().unwrap(), backups.to_str().unwrap()];
        Said::of(script("backup.sh", &words).env("REDIS_URL", server.plain_url()))
    };
    of(&left).ends(1).says(&["the server did not rewrite the log in", "CONFIG GET dir"]);
    home.write("left/appendonlydir/other.manifest", "");
    of(&left).ends(1).says(&["error[backup]: there is no manifest in", "or more than one", "CONFIG GET dir"]);
    assert_eq!(finished(backups.to_str().unwrap()), Vec::<PathBuf>::new());
    of(own).ends(0);
}

/// Answers as `rabbitmqctl` does: what a server has of each kind; whether its guest may come in.
fn rabbitmqctl(home: &Home, has: &[(&str, &str)], guest: bool) -> PathBuf {
    let cases: String = has.iter().flat_map(|(kind, says)| [*kind, ") printf '", says, "\\n' ;;\n"]).collect();
    let path = home.write(
        "ctl",
        &format!(
            "#!/bin/sh\nshift\n[ \"$1\" != --no-table-headers ] || shift\ncase $1 in\nauthenticate_user) exit {} ;;\n{cases}\
             import_definitions) cp \"$2\" imported ;;\nesac\n",
            i32::from(!guest),
        ),
    );
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn a_server_that_is_in_use_keeps_its_guest_its_queues_and_its_policies() {
    const FRESH: [(&str, &str); 3] = [
        ("list_users", "guest\\t[administrator]"),
        ("list_vhosts", "/"),
        ("list_user_permissions", "/\\t.*\\t.*\\t.*"),
    ];
    let home = Home::new();
    let backup = home.path("backup");
    std::fs::create_dir(&backup).unwrap();
    let definitions = r#"{"users":[{"name":"guest"}],"vhosts":[{"name":"/"},{"name":"pq"}],
        "queues":[{"name":"q","vhost":"/"},{"name":"other","vhost":"pq"}],"policies":[{"name":"p","vhost":"/"}]}"#;
    home.write("backup/definitions.json", definitions);
    home.write("backup/KIND", "rabbitmq\n");
    let sums = "sha256sum ./KIND ./definitions.json >SHA256SUMS";
    Said::of(Command::new("sh").args(["-c", sums]).current_dir(&backup)).ends(0);
    let restore = |has: &[(&str, &str)], guest| {
        // The first answer of a kind is given.
        let ctl = rabbitmqctl(&home, &[has, &FRESH[..]].concat(), guest);
        let mut restore = script("restore.sh", &["rabbitmq", backup.to_str().unwrap(), "-"]);
        Said::of(restore.env("RABBITMQCTL", ctl).current_dir(home.path("")))
    };
    let used: [(&[_], bool); 3] =
        [(&[], false), (&[("list_users", "guest\\t[]")], true), (&[("list_user_permissions", "/\\t\\t\\t")], true)];
    for (has, guest) in used {
        restore(has, guest).ends(1).says(&["the server has guest already (users)"]);
    }
    // However many there are.
    let queues: String = (1..20_000).flat_map(|n| [format!("queue-{n}"), "\\n".to_owned()]).collect();
    restore(&[("list_queues", &format!("q\\n{queues}"))], true).ends(1).says(&["the server has q already (queues)"]);
    restore(&[("list_policies", "/\\tp\\t.*\\tall\\t{}\\t0")], true)
        .ends(1)
        .says(&["the server has p already (policies)"]);
    assert!(!home.path("imported").exists());
    restore(&[("list_queues", "other"), ("list_policies", "/\\tq\\tp\\tall\\t{}\\t0")], true).ends(0);
    assert!(home.path("imported").exists());
}

#[test]
fn a_store_comes_back_object_for_object() {
    let home = Home::new();
    std::fs::create_dir_all(home.path("store/out/job")).unwrap();
    home.write("store/out/job/lease", "an answer");
    home.write("store/out/job/ä name", "another");
    let at = |name: &str| home.path(name).display().to_string();
    let backup = Said::of(&mut script("backup.sh", &["results", &at("store"), &at("backups")])).ends(0).stdout;
    std::fs::remove_dir_all(home.path("store")).unwrap();
    let restore = || Said::of(&mut script("restore.sh", &["results", backup.trim(), &at("store")]));
    // An empty folder, as a mount is, is no data.
    std::fs::create_dir(home.path("store")).unwrap();
    restore().ends(0);
    assert_eq!(std::fs::read_to_string(home.path("store/out/job/lease")).unwrap(), "an answer");
    assert_eq!(std::fs::read_to_string(home.path("store/out/job/ä name")).unwrap(), "another");
    restore().ends(1).says(&["is there already"]);
}
