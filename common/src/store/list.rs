//! Looks around in a store: which objects and folders there are, in order and bounded; and replaces what was read.

use futures_util::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStoreExt, PutMode, UpdateVersion};
use std::collections::BTreeMap;

use super::upload::Payload;
use super::{Store, failed};
use crate::error::{Error, Kind, Result};
use crate::time::Timestamp;

/// An object in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its key below the folder that was asked for.
    pub name: String,
    /// When it was written, by the store's clock.
    pub modified: Timestamp,
}

/// An object as it was read.
#[derive(Clone, Debug)]
pub struct Tagged {
    /// Its bytes.
    pub bytes: Vec<u8>,
    version: UpdateVersion,
}

impl Store {
    /// Objects below `folder` (at any depth) whose names come after `after` (`None`: from the first), by name, at most
    /// `limit`. A request per 1,000; a local folder and Azure are read whole each time.
    pub async fn list(&self, folder: &str, after: Option<&str>, limit: usize) -> Result<Vec<Listed>> {
        const OP: &str = "list objects";
        let path = self.path(folder)?;
        let start = after.map(|after| Path::parse(format!("{path}/{after}"))).transpose();
        let start = start.map_err(|error| Error::new(Kind::Config, OP, "not a name").because(error))?;
        let objects = match &start {
            Some(start) => self.objects.list_with_offset(Some(&path), start),
            None => self.objects.list(Some(&path)),
        };
        let mut objects = objects.map_err(|error| failed(OP, &path, error));
        let mut found = BTreeMap::new();
        while found.len() < limit || self.folder.is_some() {
            let Some(object) = objects.try_next().await? else { break };
            let listed = listed(&path, &object);
            found.insert(listed.name.clone(), listed);
            // Only a folder gives names in no order.
            if found.len() > limit {
                found.pop_last();
            }
        }
        Ok(found.into_values().collect())
    }

    /// The names of the folders right below `folder`, by name.
    pub async fn folders(&self, folder: &str) -> Result<Vec<String>> {
        let path = self.path(folder)?;
        let found = self.objects.list_with_delimiter(Some(&path)).await;
        let found = found.map_err(|error| failed("list folders", &path, error))?;
        let names = found.common_prefixes.iter().filter_map(|folder| folder.filename().map(str::to_owned));
        let mut names: Vec<String> = names.collect();
        names.sort_unstable();
        Ok(names)
    }

    /// When an object was written, by the store's clock (some tell whole seconds); `None` when there is none.
    pub async fn modified(&self, key: &str) -> Result<Option<Timestamp>> {
        let path = self.path(key)?;
        match self.objects.head(&path).await {
            Ok(object) => Ok(Some(Timestamp::from_millis(object.last_modified.timestamp_millis()))),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(failed("look at an object", &path, error)),
        }
    }

    /// As [`Store::get`], to be replaced by [`Store::swap`].
    pub async fn get_tagged(&self, key: &str, limit: u64) -> Result<Option<Tagged>> {
        const OP: &str = "read an object";
        let path = self.path(key)?;
        let found = match self.objects.get(&path).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(failed(OP, &path, error)),
        };
        if found.meta.size > limit {
            let detail = format!("{key} has {} bytes; the limit is {limit}", found.meta.size);
            return Err(Error::new(Kind::TooLarge, OP, detail));
        }
        let version = UpdateVersion { e_tag: found.meta.e_tag.clone(), version: found.meta.version.clone() };
        let bytes = found.bytes().await.map_err(|error| failed(OP, &path, error))?;
        Ok(Some(Tagged { bytes: bytes.into(), version }))
    }

    /// Replaces an object if it is still what was read; false when it is not. Where the service cannot compare (a
    /// folder, some servers) it is read once more right before: two who replace it in the same moment may both succeed.
    pub async fn swap(&self, key: &str, was: &Tagged, bytes: Vec<u8>) -> Result<bool> {
        if self.folder.is_none() {
            let mode = PutMode::Update(was.version.clone());
            match self.upload(key, Payload::memory(bytes.clone()), mode).await {
                Ok(()) => return Ok(true),
                Err(error) if error.kind() == Kind::Unsupported => {}
                Err(error) => {
                    // Done perhaps, and only the answer was lost.
                    let now = self.get(key, u64::MAX).await?;
                    return match now {
                        Some(now) if now == bytes => Ok(true),
                        Some(now) if now == was.bytes && error.kind() != Kind::Conflict => Err(error),
                        _ => Ok(false),
                    };
                }
            }
        }
        if self.get(key, u64::MAX).await?.as_ref() != Some(&was.bytes) {
            return Ok(false);
        }
        self.put(key, bytes).await.map(|()| true)
    }
}

fn listed(folder: &Path, object: &ObjectMeta) -> Listed {
    let name = object.location.as_ref().strip_prefix(folder.as_ref()).unwrap_or_default().trim_start_matches('/');
    Listed { name: name.to_owned(), modified: Timestamp::from_millis(object.last_modified.timestamp_millis()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::key_part;

    async fn everywhere(check: impl AsyncFn(Store)) {
        check(Store::memory()).await;
        let home = tempfile::tempdir().unwrap();
        check(Store::open(&format!("file://{}", home.path().display())).await.unwrap()).await;
    }

    #[tokio::test]
    async fn a_list_is_in_order_and_goes_on_where_it_was_left() {
        everywhere(async |store| {
            for name in ["b/3", "a/1", "b/1", &format!("b/{}", key_part("2/ü")), "c/1"] {
                store.put(&format!("top/{name}"), Vec::new()).await.unwrap();
            }
            let names = async |after: Option<&str>, limit| {
                let found = store.list("top/b", after, limit).await.unwrap();
                found.into_iter().map(|listed| listed.name).collect::<Vec<_>>()
            };
            assert_eq!(names(None, 9).await, ["1", "2%2F%C3%BC", "3"]);
            assert_eq!(names(None, 2).await, ["1", "2%2F%C3%BC"]);
            assert_eq!(names(Some("2%2F%C3%BC"), 9).await, ["3"]);
            assert_eq!(names(Some("0~"), 1).await, ["1"]);
            assert_eq!(store.list("nothing", None, 9).await.unwrap(), []);
            assert_eq!(store.folders("top").await.unwrap(), ["a", "b", "c"]);
            assert!(store.folders("nothing").await.unwrap().is_empty());
        })
        .await;
    }

    #[tokio::test]
    async fn only_what_was_read_is_replaced() {
        everywhere(async |store| {
            assert!(store.get_tagged("x", 9).await.unwrap().is_none());
            store.put("x", b"1".to_vec()).await.unwrap();
            let was = store.get_tagged("x", 9).await.unwrap().unwrap();
            assert!(store.swap("x", &was, b"2".to_vec()).await.unwrap());
            assert!(!store.swap("x", &was, b"3".to_vec()).await.unwrap());
            assert_eq!(store.get("x", 9).await.unwrap().unwrap(), b"2");
            store.delete(&["x".into()]).await.unwrap();
            assert!(!store.swap("x", &was, b"4".to_vec()).await.unwrap());
            assert!(store.modified("x").await.unwrap().is_none());
        })
        .await;
    }
}
