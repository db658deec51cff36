//! Object storage for answers too large for a record or kept to be given again, and for batch roll-ups, behind one URL.
//! Which URL is which service is `connect.rs`; how a local folder is written durably is `folder.rs`.

mod connect;
#[cfg(test)]
pub(crate) mod faulty;
mod folder;
mod list;
mod reuse;
mod stream;
mod upload;

pub use list::{Listed, Tagged};
pub use reuse::{Kept, REUSE_BYTES, REUSE_FOLDER, ReuseKey};
pub use stream::Pieces;

use std::fmt::Write as _;
use std::path::Path as FilePath;
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest, Sha256};

use crate::broker::LeaseId;
use crate::error::{Error, Kind, Result};
use crate::job::JobId;
use crate::outcome::Body;
use crate::record::Stored;
use crate::time::Timestamp;
use folder::Folder;
use upload::Payload;

/// A folder, bucket or memory to keep objects in. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    /// Reads and deletes; writes too, save into a folder.
    objects: Arc<dyn ObjectStore>,
    /// What the URL says after the bucket.
    root: Path,
    /// Writes into a folder go through this: modes and fsync are ours.
    folder: Option<Folder>,
}

/// What [`Store::put_new`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PutNew {
    /// The object is there with these bytes, written now or by an earlier try.
    Ours,
    /// Another object was there first; these are its bytes.
    Theirs(Vec<u8>),
}

impl Store {
    /// One in this process's memory.
    pub fn memory() -> Self {
        Self { objects: Arc::new(InMemory::new()), root: Path::default(), folder: None }
    }

    /// Keeps an answer's body under `out/<job>/<lease>`; `Ok` means durable. Repeatable. Dropped before it returns:
    /// the object is there whole or not at all.
    pub async fn put_output(&self, job: JobId, lease: LeaseId, body: &Body) -> Result<Stored> {
        let (text, json) = match body {
            Body::Json(text) => (text, true),
            Body::Text(text) => (text, false),
        };
        let key = format!("out/{job}/{lease}");
        let stored = Stored { key, sha256: hex(&Sha256::digest(text.as_bytes())), bytes: text.len() as u64, json };
        self.put(&stored.key, text.clone().into_bytes()).await?;
        Ok(stored)
    }

    /// Fetches a body and checks its size and hash: `Corrupt` when they differ, `NotFound` when it is gone.
    pub async fn get_output(&self, stored: &Stored) -> Result<Body> {
        const OP: &str = "fetch an output";
        let Some(bytes) = self.get(&stored.key, stored.bytes).await? else {
            return Err(Error::new(Kind::NotFound, OP, format!("{} is not in the store", stored.key)));
        };
        if bytes.len() as u64 != stored.bytes || hex(&Sha256::digest(&bytes)) != stored.sha256 {
            return Err(Error::new(Kind::Corrupt, OP, format!("{} is not what was stored there", stored.key)));
        }
        let text = String::from_utf8(bytes)
            .map_err(|_| Error::new(Kind::Corrupt, OP, format!("{} is not UTF-8", stored.key)))?;
        Ok(if stored.json { Body::Json(text) } else { Body::Text(text) })
    }

    /// Deletes objects; ones that are gone already are no error.
    pub async fn delete(&self, keys: &[String]) -> Result<()> {
        self.delete_all(keys.iter().map(|key| self.path(key)).collect::<Result<_>>()?).await
    }

    /// Deletes objects below `folder` that were written before `before`, at most `limit` of them, and says how many.
    pub async fn delete_older(&self, folder: &str, before: Timestamp, limit: usize) -> Result<usize> {
        let folder = self.path(folder)?;
        let old = self.objects.list(Some(&folder)).try_filter_map(|object| async move {
            Ok((object.last_modified.timestamp_millis() < before.as_millis()).then_some(object.location))
        });
        let paths: Vec<Path> =
            old.take(limit).try_collect().await.map_err(|error| failed("look for old objects", &folder, error))?;
        let count = paths.len();
        self.delete_all(paths).await?;
        Ok(count)
    }

    async fn delete_all(&self, paths: Vec<Path>) -> Result<()> {
        /// Requests in flight at once; deletes are small, and a sweep must not crowd out answers.
        const AT_ONCE: usize = 8;
        futures_util::stream::iter(paths)
            .map(|path| async move {
                match self.objects.delete(&path).await {
                    Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
                    Err(error) => Err(failed("delete an object", &path, error)),
                }
            })
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await
    }

    /// Writes an object whole, replacing what was there; `Ok` means durable. Above 8 MiB in parts.
    pub async fn put(&self, key: &str, bytes: Vec<u8>) -> Result<()> {
        self.upload(key, Payload::memory(bytes), PutMode::Overwrite).await
    }

    /// Writes an object from a file, replacing what was there; `Ok` means durable. Holds at most 8 MiB in memory.
    pub async fn put_file(&self, key: &str, file: &FilePath) -> Result<()> {
        self.upload(key, Payload::file(file).await?, PutMode::Overwrite).await
    }

    /// Writes an object only where there is none. After any error, and when one is there, it is read back and
    /// compared, so that a try whose answer was lost still ends as `Ours`. At most 8 MiB. `Unsupported` where the
    /// service cannot create only (see [`Store::probe`]).
    pub async fn put_new(&self, key: &str, bytes: Vec<u8>) -> Result<PutNew> {
        const OP: &str = "create an object";
        if bytes.len() > upload::PART {
            return Err(Error::new(
                Kind::TooLarge,
                OP,
                format!("{} bytes; the limit is {}", bytes.len(), upload::PART),
            ));
        }
        let error = match self.upload(key, Payload::memory(bytes.clone()), PutMode::Create).await {
            Ok(()) => return Ok(PutNew::Ours),
            Err(error) if error.kind() == Kind::Unsupported => return Err(error),
            Err(error) => error,
        };
        match self.get(key, upload::PART as u64).await {
            Ok(Some(found)) if found == bytes => Ok(PutNew::Ours),
            Ok(Some(found)) => Ok(PutNew::Theirs(found)),
            // Some services say so of two creations at the same time, though neither has succeeded.
            Ok(None) if error.kind() == Kind::Conflict => {
                Err(Error::new(Kind::Unavailable, OP, "another creation is under way").because(error))
            }
            // Nobody can say yet whose it is.
            Err(unread) if error.kind() == Kind::Conflict => Err(unread),
            Ok(None) | Err(_) => Err(error),
        }
    }

    /// Reads an object whole, at most `limit` bytes (else `TooLarge`); `None` when there is none.
    pub async fn get(&self, key: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        Ok(self.get_tagged(key, limit).await?.map(|found| found.bytes))
    }

    /// Checks on the real service that objects can be written, read and deleted here, and says whether "create only"
    /// is honoured: the second creation of a fresh key must be refused. Leaves nothing behind.
    pub async fn probe(&self) -> Result<bool> {
        let key = format!("probe/{}", LeaseId::random());
        // First, as whoever may not delete would leave it there.
        self.delete(std::slice::from_ref(&key)).await?;
        let tried = self.probe_at(&key).await;
        let deleted = self.delete(&[key]).await;
        let tried = tried?;
        deleted.map(|()| tried)
    }

    async fn probe_at(&self, key: &str) -> Result<bool> {
        self.put(key, b"first".to_vec()).await?;
        let kept = match self.upload(key, Payload::memory(b"second".to_vec()), PutMode::Create).await {
            Ok(()) => false,
            Err(error) if error.kind() == Kind::Conflict => true,
            Err(error) if error.kind() == Kind::Unsupported => false,
            Err(error) => return Err(error),
        };
        let there = self.get(key, 16).await?;
        Ok(kept && there.as_deref() == Some(b"first"))
    }

    async fn upload(&self, key: &str, payload: Payload, mode: PutMode) -> Result<()> {
        let path = self.path(key)?;
        match &self.folder {
            Some(folder) => folder.write(&path, payload, mode).await,
            None => upload::send(&*self.objects, &path, payload, mode).await,
        }
    }

    /// `key` below the root; a key with `..`, empty parts or control characters is refused.
    fn path(&self, key: &str) -> Result<Path> {
        let bad = || Error::new(Kind::Config, "name an object", format!("{key:?} is not a key"));
        let path = Path::parse(key).map_err(|error| bad().because(error))?;
        if path.as_ref() != key || key.is_empty() {
            return Err(bad());
        }
        let both = [self.root.as_ref(), key].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/");
        Path::parse(both).map_err(|error| bad().because(error))
    }
}

/// A user's name as one part of a key: percent-encoded; one longer than 160 bytes so encoded keeps its beginning and
/// ends in a hash, because file systems take names of 255 bytes at most and a temporary suffix must fit too.
pub fn key_part(name: &str) -> String {
    const LONGEST: usize = 160;
    /// All but letters, digits and these; `~` is left for the hash, a first `.` would hide a file or mean a folder.
    const SET: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.');
    let encoded = utf8_percent_encode(name, SET).to_string();
    let encoded = match encoded.strip_prefix('.') {
        Some(rest) => format!("%2E{rest}"),
        None => encoded,
    };
    if encoded.len() <= LONGEST {
        return encoded;
    }
    let head: String = encoded.chars().take(LONGEST - 65).collect();
    format!("{head}~{}", hex(&Sha256::digest(name.as_bytes())))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        write!(text, "{byte:02x}").ok();
        text
    })
}

/// An error of the service as ours; what it said stays in the cause, since it may hold addresses and tokens.
fn failed(op: &'static str, path: &Path, error: object_store::Error) -> Error {
    use object_store::Error as E;
    let (kind, why) = match &error {
        E::NotFound { .. } => (Kind::Config, "no such bucket or container"),
        E::AlreadyExists { .. } | E::Precondition { .. } | E::NotModified { .. } => (Kind::Conflict, "exists already"),
        E::PermissionDenied { .. } => (Kind::Denied, "permission denied"),
        E::Unauthenticated { .. } => (Kind::Denied, "the credentials were refused"),
        E::NotSupported { .. } | E::NotImplemented { .. } => (Kind::Unsupported, "this service cannot do that"),
        E::InvalidPath { .. } | E::UnknownConfigurationKey { .. } => (Kind::Config, "not a usable name or setting"),
        E::Generic { .. } | E::JoinError { .. } | _ => (Kind::Unavailable, "the service did not answer as it should"),
    };
    Error::new(kind, op, format!("{path}: {why}")).because(error)
}

#[cfg(test)]
mod tests {
    use super::faulty::Fault;
    use super::*;

    fn lease() -> LeaseId {
        LeaseId::random()
    }

    #[tokio::test]
    async fn a_probe_leaves_nothing_whatever_goes_wrong() {
        let (store, switches) = faulty::faulty();
        let left = async || store.objects.list(None).count().await;
        assert!(store.probe().await.unwrap() && left().await == 0);
        for fault in [Fault::AnswerLost, Fault::Unreadable, Fault::Unwritten] {
            switches.next(fault, "probe/");
            assert_eq!(store.probe().await.unwrap_err().kind(), Kind::Unavailable, "{fault:?}");
            assert_eq!(left().await, 0, "{fault:?}");
        }
        switches.keeps();
        assert_eq!((store.probe().await.unwrap_err().kind(), left().await), (Kind::Denied, 0));
    }

    #[tokio::test]
    async fn an_output_comes_back_as_it_was_put() {
        let store = Store::memory();
        let job = JobId::fresh();
        for body in [Body::Text("grüße".into()), Body::Json("{\"a\": 1}".into()), Body::Text(String::new())] {
            let stored = store.put_output(job, lease(), &body).await.unwrap();
            assert!(stored.key.starts_with(&format!("out/{job}/")));
            assert_eq!(store.get_output(&stored).await.unwrap(), body);
        }
    }

    #[tokio::test]
    async fn a_changed_or_missing_output_is_an_error() {
        let store = Store::memory();
        let stored = store.put_output(JobId::fresh(), lease(), &Body::Text("right".into())).await.unwrap();
        store.put(&stored.key, b"wrong".to_vec()).await.unwrap();
        assert_eq!(store.get_output(&stored).await.unwrap_err().kind(), Kind::Corrupt);
        store.put(&stored.key, b"longer than it was".to_vec()).await.unwrap();
        assert_eq!(store.get_output(&stored).await.unwrap_err().kind(), Kind::TooLarge);
        store.delete(&[stored.key.clone(), stored.key.clone()]).await.unwrap();
        assert_eq!(store.get_output(&stored).await.unwrap_err().kind(), Kind::NotFound);
    }

    #[tokio::test]
    async fn only_what_is_old_and_in_its_folder_goes_by_age() {
        let store = Store::memory();
        let stored = store.put_output(JobId::fresh(), lease(), &Body::Text("x".into())).await.unwrap();
        store.put("batches/b/part-1.jsonl", Vec::new()).await.unwrap();
        let later = Timestamp::now() + std::time::Duration::from_secs(1);
        assert_eq!(store.delete_older("out", Timestamp::from_millis(1), 10).await.unwrap(), 0);
        assert!(store.get_output(&stored).await.is_ok());
        assert_eq!(store.delete_older("out", later, 10).await.unwrap(), 1);
        assert_eq!(store.get_output(&stored).await.unwrap_err().kind(), Kind::NotFound);
        assert!(store.get("batches/b/part-1.jsonl", 1).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_second_creation_tells_whose_object_it_is() {
        let store = Store::memory();
        assert_eq!(store.put_new("ends/1", b"mine".to_vec()).await.unwrap(), PutNew::Ours);
        assert_eq!(store.put_new("ends/1", b"mine".to_vec()).await.unwrap(), PutNew::Ours);
        assert_eq!(store.put_new("ends/1", b"other".to_vec()).await.unwrap(), PutNew::Theirs(b"mine".to_vec()));
        assert_eq!(store.get("ends/1", 99).await.unwrap().unwrap(), b"mine");
        assert!(store.probe().await.unwrap());
    }

    #[tokio::test]
    async fn keys_that_leave_the_root_are_refused() {
        let store = Store::memory();
        for key in ["", "../x", "a/../b", "/a", "a//b", "a/", "."] {
            assert_eq!(store.put(key, Vec::new()).await.unwrap_err().kind(), Kind::Config, "{key}");
        }
    }

    #[test]
    fn a_users_name_is_one_part_of_a_key() {
        assert_eq!(key_part("nov reviews/1"), "nov%20reviews%2F1");
        assert_eq!(key_part(".."), "%2E.");
        let long = [key_part(&"ü".repeat(128)), key_part(&"ü".repeat(127))];
        assert!(long.iter().all(|part| part.len() <= 160) && long[0] != long[1]);
        assert!(Path::parse(key_part("a~b#1\u{7f}")).is_ok());
    }
}
