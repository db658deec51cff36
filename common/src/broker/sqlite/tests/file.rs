//! The file itself: modes, strangers, versions.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use rusqlite::Connection;

use super::super::Sqlite;
use super::{Timestamp, job, jobs, open};
use crate::broker::backend::Backend as _;
use crate::error::Kind;

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn the_file_and_its_folder_are_private() {
    let folder = tempfile::tempdir().unwrap();
    let deep = folder.path().join("state/promptq");
    let sqlite = open(&deep).await;
    sqlite.enqueue(jobs(1)).await.unwrap();
    for name in ["q.db", "q.db-wal", "q.db-shm"] {
        assert_eq!(mode(&deep.join(name)), 0o600, "{name}");
    }
    assert_eq!((mode(&deep), mode(&folder.path().join("state"))), (0o700, 0o700));
}

#[tokio::test]
async fn what_is_not_our_database_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("q.db");
    std::fs::write(&path, "Dear diary, this is not a database at all. ".repeat(200)).unwrap();
    let refused = Sqlite::open(&path).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Config, "{refused}");
    assert!(refused.to_string().contains("hint:"), "{refused}");

    let path = folder.path().join("other.db");
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE music (title TEXT)").unwrap();
    let refused = Sqlite::open(&path).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Config, "{refused}");
    assert!(refused.to_string().contains("another program"), "{refused}");
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path()).await);
    let path = folder.path().join("q.db");
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let refused = Sqlite::open(&path).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Config, "{refused}");
    assert!(refused.to_string().contains("newer promptq"), "{refused}");
}

#[tokio::test]
async fn many_may_make_the_file_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let opened = futures_util::future::join_all((0..8).map(|_| open(folder.path()))).await;
    for sqlite in &opened {
        sqlite.enqueue(jobs(1)).await.unwrap();
    }
    assert_eq!(opened[0].depth(&super::queue()).await.unwrap().ready, 8);
}

#[tokio::test]
async fn every_byte_of_a_job_survives_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let mut full = job(0);
    full.batch = Some("bätch/1".parse().unwrap());
    full.row = Some(7);
    full.custom_id = Some("c".into());
    full.tenant = Some("t".into());
    full.tags = [("k".to_owned(), "v\"\n".to_owned())].into();
    full.not_before = Some(Timestamp::now() - std::time::Duration::from_secs(1));
    full.work.model = None;
    let sent = crate::broker::envelope(&full).unwrap();
    open(folder.path()).await.enqueue(vec![sent.clone()]).await.unwrap();

    let sqlite = open(folder.path()).await;
    let mut source = super::subscribe(&sqlite, "w", super::LEASE).await;
    let leased = source.next(&super::want(1)).await.unwrap();
    assert_eq!((&leased.deliveries[0].head, &leased.deliveries[0].payload), (&sent.head, &sent.payload));
}
