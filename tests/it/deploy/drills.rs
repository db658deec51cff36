//! Drills of `deploy/runbooks/restore.md` on real servers: jobs before and after a backup, everything destroyed, the
//! backup put back, and every job ended once in the end. Each prints how long that took and what was lost meanwhile.

use std::path::Path;
use std::time::{Duration, Instant};

use promptq_common::broker::Broker;
use promptq_common::record::{End, Record};
use promptq_tests::process::{Home, Said};
use promptq_tests::rabbit::{Options as RabbitOptions, RabbitServer};
use promptq_tests::redis::Options;
use promptq_tests::site::{Setup, Site, records, until};

use super::backup::script;

/// Rows in the file, and how many of them were submitted before the backup.
const ROWS: usize = 60;
const BEFORE: usize = 40;

fn rows(count: usize) -> String {
    (1..=count).flat_map(|row| ["{\"prompt\":\"job ".to_owned(), format!("{row}\"}}\n")]).collect()
}

/// What a drill prints.
#[expect(clippy::print_stdout, reason = "how long it took is for people")]
fn report(what: &str, since_backup: Instant, destroyed: Instant, lost: usize) {
    println!(
        "drill {what}: RTO {:.1} s from destroyed to every job ended; RPO {:.1} s, the age of the backup: of {ROWS} jobs \
         it knew {lost} not, or not as ended, and they were put in again",
        destroyed.elapsed().as_secs_f64(),
        destroyed.duration_since(since_backup).as_secs_f64(),
    );
}

/// Waits until so many jobs have ended.
async fn ended(broker: &Broker, count: usize) {
    until(&format!("{count} jobs have ended"), async || (records(broker).await.len() >= count).then_some(())).await;
}

/// That each row has one end, and that those of before are the same as they were.
async fn every_row_ended_once(broker: &Broker, before: &[Record]) {
    ended(broker, ROWS).await;
    let after = records(broker).await;
    let mut ids: Vec<_> = after.iter().map(|record| record.id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!((ids.len(), after.len()), (ROWS, ROWS));
    assert!(after.iter().all(|record| record.end == End::Succeeded));
    for old in before {
        assert!(after.iter().any(|new| new == old), "{old:?} is not what it was");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_file_is_lost_and_comes_back() {
    let home = Home::new();
    home.write("before.jsonl", &rows(BEFORE));
    home.write("all.jsonl", &rows(ROWS));
    let submit = |file: &str| home.promptq(&["submit", file, "--batch", "b", "--model", "mock:latency=20ms"]).ends(0);
    submit("before.jsonl");
    let work = |words: &[&str]| Said::of(&mut home.program("promptq-worker", words)).ends(0);
    work(&["--max-jobs", "10", "--concurrency", "2"]);
    let before = records(&home.broker().await).await;
    assert!(before.len() >= 10, "{}", before.len());
    // While others use it.
    let mut busy = home.program("promptq-worker", &["--concurrency", "1", "--lease", "2s", "--heartbeat", "500ms"]);
    let mut busy = busy.stderr(std::process::Stdio::null()).spawn().unwrap();
    let (file, folder) = (home.path("q.db").display().to_string(), home.path("backups").display().to_string());
    let backup = Said::of(&mut script("backup.sh", &["sqlite", &file, &folder])).ends(0).stdout;
    let saved = Instant::now();
    submit("all.jsonl");
    busy.kill().unwrap();
    busy.wait().unwrap();

    for suffix in ["", "-wal", "-shm"] {
        std::fs::remove_file(format!("{file}{suffix}")).unwrap_or_default();
    }
    let destroyed = Instant::now();
    Said::of(&mut script("restore.sh", &["sqlite", backup.trim(), &file])).ends(0);
    let known = records(&home.broker().await).await;
    assert!(known.len() < ROWS, "the backup is of before");
    home.promptq(&["doctor"]).ends(0);
    submit("all.jsonl");
    work(&["--exit-when-idle", "100ms"]);
    every_row_ended_once(&home.broker().await, &before).await;
    report("sqlite", saved, destroyed, ROWS - BEFORE);
}

fn save_redis(site: &Site) -> String {
    let (folder, backups) = (site.server.folder().display().to_string(), site.path("backups").display().to_string());
    let mut command = script("backup.sh", &["redis", &folder, &backups]);
    Said::of(command.env("REDIS_URL", site.server.plain_url())).ends(0).stdout.trim().to_owned()
}

/// Puts a backup back into a server whose data are gone.
fn restore_redis(site: &mut Site, backup: &str) {
    let folder = site.server.folder().to_owned();
    let restore = || Said::of(&mut script("restore.sh", &["redis", backup, folder.to_str().unwrap()]));
    restore().ends(1).says(&["is there already"]);
    std::fs::remove_dir_all(folder.join("appendonlydir")).unwrap();
    restore().ends(0);
    site.server.restart();
}

fn submit(site: &Site, variables: &[(&str, String)], words: &[&str]) {
    let mut command = site.promptq(&[&["submit"][..], words, &["--batch", "b", "--model", "storm"]].concat());
    Said::of(command.envs(variables.iter().map(|(name, value)| (*name, value)))).ends(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_is_lost_and_comes_back() {
    let mut site = Site::new(Options::durable(), 20..=20).await;
    std::fs::write(site.path("before.jsonl"), rows(BEFORE)).unwrap();
    std::fs::write(site.path("all.jsonl"), rows(ROWS)).unwrap();
    submit(&site, &[], &["before.jsonl"]);
    // What runs at the time of the backup comes back when its lease has run out.
    let hasty = Setup { lease: Duration::from_secs(2), ..site.setup() };
    let worker = site.worker(1, &hasty);
    ended(&site.broker().await, 10).await;
    // While it works.
    let before = records(&site.broker().await).await;
    let backup = save_redis(&site);
    let saved = Instant::now();
    submit(&site, &[], &["all.jsonl"]);
    worker.leaves();
    let called = site.provider.calls().len();

    site.server.kill();
    let destroyed = Instant::now();
    restore_redis(&mut site, &backup);
    let broker = site.broker().await;
    let known = records(&broker).await.len();
    assert!((before.len()..=called).contains(&known), "{known} of {called} ends are in the backup");
    submit(&site, &[], &["all.jsonl"]);
    let worker = site.worker(2, &hasty);
    every_row_ended_once(&broker, &before).await;
    worker.leaves();
    // Those that ended after the backup were called once more, and no other.
    let twice = site.provider.calls().len() - ROWS;
    assert_eq!(twice, called - known, "of {called} calls before, {known} were in the backup");
    report("redis", saved, destroyed, ROWS - BEFORE);
}

/// What programs are told of a RabbitMQ beside which the site's Redis is the ledger.
fn on(site: &Site, url: String) -> [(&'static str, String); 2] {
    [("PROMPTQ_BROKER", url), ("PROMPTQ_LEDGER", site.server.url())]
}

fn setup(site: &Site, variables: &[(&str, String); 2]) -> Setup {
    let [(_, url), (name, ledger)] = variables;
    Setup { url: url.clone(), environment: vec![((*name).to_owned(), ledger.clone())], ..site.setup() }
}

/// `backup.sh` or `restore.sh` beside this server, as its host's administrator runs it.
fn beside(server: &RabbitServer, name: &str, words: &[&str]) -> Said {
    let mut command = script(name, words);
    let program = "/usr/lib/rabbitmq/bin/rabbitmqctl";
    let program = if Path::new(program).exists() { program } else { "rabbitmqctl" };
    let port = server.port();
    command
        .env("RABBITMQCTL", program)
        .env("LANG", "C.UTF-8")
        .env("HOME", server.folder())
        .env("ERL_EPMD_PORT", (port + 3).to_string())
        .env("ERL_EPMD_ADDRESS", "127.0.0.1")
        .env("RABBITMQ_NODENAME", format!("pq{port}@localhost"))
        .env("RABBITMQ_CONF_ENV_FILE", server.folder().join("none"));
    Said::of(&mut command)
}

#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_and_its_ledger_are_lost_and_come_back() {
    let mut site = Site::new(Options::durable(), 20..=20).await;
    std::fs::write(site.path("before.jsonl"), rows(BEFORE)).unwrap();
    std::fs::write(site.path("all.jsonl"), rows(ROWS)).unwrap();
    let mut first = tokio::task::block_in_place(|| RabbitServer::start(RabbitOptions::new()));
    let host = first.host();
    let variables = on(&site, host.url_through(first.port()));
    submit(&site, &variables, &["before.jsonl"]);
    let worker = site.worker(1, &setup(&site, &variables));
    ended(&site.broker().await, 10).await;
    worker.leaves();
    let before = records(&site.broker().await).await;
    let backups = site.path("backups").display().to_string();
    let definitions = beside(&first, "backup.sh", &["rabbitmq", "-", &backups]).ends(0).stdout.trim().to_owned();
    let ledger = save_redis(&site);
    let saved = Instant::now();
    submit(&site, &variables, &["all.jsonl"]);
    // A server that has them already is left alone.
    beside(&first, "restore.sh", &["rabbitmq", &definitions, "-"]).ends(1).says(&["has harness already (users)"]);

    tokio::task::block_in_place(|| first.kill_rashly());
    site.server.kill();
    let destroyed = Instant::now();
    restore_redis(&mut site, &ledger);
    let second = tokio::task::block_in_place(|| RabbitServer::start(RabbitOptions::new()));
    // The harness's own account is among what comes back.
    second.must("rabbit_auth_backend_internal:delete_user(<<\"harness\">>, <<\"tests\">>).");
    beside(&second, "restore.sh", &["rabbitmq", &definitions, "-"]).ends(0);
    let variables = on(&site, host.url_through(second.port()));
    submit(&site, &variables, &["all.jsonl", "--republish"]);
    let worker = site.worker(2, &setup(&site, &variables));
    every_row_ended_once(&site.broker().await, &before).await;
    worker.leaves();
    assert_eq!(site.provider.calls().len(), ROWS, "nothing is paid for twice");
    report("rabbitmq", saved, destroyed, ROWS - BEFORE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_is_lost_beside_a_rabbitmq_that_kept_its_messages() {
    let mut site = Site::new(Options::durable(), 200..=200).await;
    std::fs::write(site.path("before.jsonl"), rows(BEFORE)).unwrap();
    std::fs::write(site.path("all.jsonl"), rows(ROWS)).unwrap();
    let server = tokio::task::block_in_place(|| RabbitServer::start(RabbitOptions::new()));
    let host = server.host();
    let variables = on(&site, host.url_through(server.port()));
    submit(&site, &variables, &["before.jsonl"]);
    let hasty = Setup { lease: Duration::from_secs(3), slots: 8, ..setup(&site, &variables) };
    let worker = site.worker(1, &hasty);
    let ledger = site.broker().await;
    ended(&ledger, 8).await;
    // While it works: some jobs run in the backup that end right after it.
    let before = records(&ledger).await;
    let backup = save_redis(&site);
    let saved = Instant::now();
    submit(&site, &variables, &["all.jsonl"]);
    ended(&ledger, 32).await;
    worker.leaves();
    let called = site.provider.calls().len();

    site.server.kill();
    let destroyed = Instant::now();
    restore_redis(&mut site, &backup);
    let ledger = site.broker().await;
    let known = records(&ledger).await.len();
    assert!(known < called, "{known} of {called} ends are in the backup");
    let worker = site.worker(2, &hasty);
    submit(&site, &variables, &["all.jsonl", "--republish"]);
    every_row_ended_once(&ledger, &before).await;
    worker.leaves();
    let twice = site.provider.calls().len() - ROWS;
    assert_eq!(twice, called - known, "of {called} calls before, {known} were in the backup");
    report("ledger of a rabbitmq", saved, destroyed, ROWS - known);
}
