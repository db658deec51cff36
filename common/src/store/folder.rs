//! Writes into a local folder so that what was confirmed survives a power cut: temporary file, fsync, rename, fsync of
//! the folder. Files are for their owner only. Reading and deleting are `object_store`'s.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path as FilePath, PathBuf};

use object_store::PutMode;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use uuid::Uuid;

use super::failed;
use super::upload::{Payload, blocking};
use crate::error::Result;

/// A folder, made when missing.
#[derive(Clone, Debug)]
pub(super) struct Folder {
    root: PathBuf,
    objects: LocalFileSystem,
}

impl Folder {
    /// Opens `root`, making it (mode 0700) with what is missing above it.
    pub(super) async fn open(root: PathBuf) -> Result<Self> {
        let made = root.clone();
        blocking(move || make_folders(&made)).await?;
        let objects = LocalFileSystem::new_with_prefix(&root)
            .map_err(|error| failed("open the store", &Path::default(), error))?
            // A folder for each job would otherwise stay for ever.
            .with_automatic_cleanup(true);
        Ok(Self { root, objects })
    }

    /// What reads here.
    pub(super) fn objects(&self) -> LocalFileSystem {
        self.objects.clone()
    }

    /// Writes an object; it appears whole or not at all. `Conflict` when `mode` is to create and it exists.
    pub(super) async fn write(&self, key: &Path, payload: Payload, mode: PutMode) -> Result<()> {
        let path = self.objects.path_to_filesystem(key).map_err(|error| failed("write an object", key, error))?;
        let root = self.root.clone();
        blocking(move || {
            let folder = path.parent().unwrap_or(&root);
            write_file(&path, folder, payload, &mode)
        })
        .await
    }
}

fn write_file(path: &FilePath, folder: &FilePath, mut payload: Payload, mode: &PutMode) -> io::Result<()> {
    // The form object_store leaves out of listings, should we die before the rename.
    let mut name = path.as_os_str().to_owned();
    name.push(format!("#{}", Uuid::now_v7().as_u128()));
    let temporary = PathBuf::from(name);
    let mut file = create(&temporary, folder)?;
    let written = (|| {
        loop {
            let part = payload.take()?;
            if part.is_empty() {
                break;
            }
            file.write_all(&part)?;
        }
        file.sync_all()?;
        match mode {
            PutMode::Create => std::fs::hard_link(&temporary, path).and_then(|()| std::fs::remove_file(&temporary)),
            PutMode::Overwrite | PutMode::Update(_) => std::fs::rename(&temporary, path),
        }
    })();
    if written.is_err() {
        // Gone already when only the last step failed.
        std::fs::remove_file(&temporary).ok();
    }
    match written.and_then(|()| sync(folder)) {
        // Deleted again already, with its folder.
        Err(error) if error.kind() == io::ErrorKind::NotFound && !folder.exists() => Ok(()),
        written => written,
    }
}

/// Creates the file, and what is missing above it: a folder that has become empty is removed by whoever empties it, and
/// with a file in it, it stays.
fn create(file: &FilePath, folder: &FilePath) -> io::Result<File> {
    /// As many have to empty it in just that moment.
    const TRIES: usize = 100;
    let mut tries = 0;
    loop {
        let made = make_folders(folder);
        let made = made.and_then(|()| OpenOptions::new().write(true).create_new(true).mode(0o600).open(file));
        match made {
            Err(error) if error.kind() == io::ErrorKind::NotFound && tries < TRIES => tries += 1,
            made => return made,
        }
    }
}

/// Makes `folder` and what is missing above it, each durable in its parent.
fn make_folders(folder: &FilePath) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent {
        make_folders(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) => sync(parent.unwrap_or(FilePath::new("."))),
        // Another process was faster; if it has removed the folder again by now, that is `NotFound`.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if std::fs::metadata(folder)?.is_dir() {
                Ok(())
            } else {
                Err(io::ErrorKind::NotADirectory.into())
            }
        }
        Err(error) => Err(error),
    }
}

fn sync(folder: &FilePath) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::{PutNew, Store};
    use super::create;
    use crate::broker::LeaseId;
    use crate::error::Kind;
    use crate::job::JobId;
    use crate::outcome::Body;

    async fn store(root: &std::path::Path) -> Store {
        Store::open(&format!("file://{}", root.display())).await.unwrap()
    }

    fn mode(path: &std::path::Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[tokio::test]
    async fn a_folder_keeps_objects_for_their_owner_only() {
        let home = tempfile::tempdir().unwrap();
        let root = home.path().join("a b/store");
        let store = store(&root).await;
        let job = JobId::fresh();
        let stored = store.put_output(job, LeaseId::random(), &Body::Text("x".into())).await.unwrap();
        assert_eq!(mode(&root.join(&stored.key)), 0o600);
        assert_eq!([mode(&root), mode(&root.join("out")), mode(&root.join(format!("out/{job}")))], [0o700; 3]);
        assert_eq!(std::fs::read_dir(root.join(format!("out/{job}"))).unwrap().count(), 1, "no temporary file is left");
        store.delete(std::slice::from_ref(&stored.key)).await.unwrap();
        assert!(root.is_dir() && !root.join("out").exists(), "no empty folder is left");
    }

    #[tokio::test]
    async fn a_folder_replaces_creates_once_and_streams() {
        let home = tempfile::tempdir().unwrap();
        let store = store(home.path()).await;
        store.put("a/b", b"1".to_vec()).await.unwrap();
        store.put("a/b", b"2".to_vec()).await.unwrap();
        assert_eq!(store.get("a/b", 9).await.unwrap().unwrap(), b"2");
        assert_eq!(store.put_new("a/c%2Fd", b"1".to_vec()).await.unwrap(), PutNew::Ours);
        assert_eq!(store.put_new("a/c%2Fd", b"2".to_vec()).await.unwrap(), PutNew::Theirs(b"1".to_vec()));
        assert!(home.path().join("a/c%2Fd").is_file());
        assert!(store.probe().await.unwrap());

        let large = home.path().join("large");
        std::fs::write(&large, vec![7; (20 << 20) + 1]).unwrap();
        store.put_file("large-copy", &large).await.unwrap();
        assert_eq!(store.get("large-copy", 64 << 20).await.unwrap().unwrap(), vec![7; (20 << 20) + 1]);
        assert_eq!(store.get("large-copy", 1 << 20).await.unwrap_err().kind(), Kind::TooLarge);
        assert_eq!(store.get("nothing", 1).await.unwrap(), None);
        assert_eq!(store.delete_older("nothing", crate::time::Timestamp::now(), 9).await.unwrap(), 0);
    }

    async fn write_and_delete(store: Store, key: String) {
        for _ in 0..50 {
            store.put(&key, b"1".to_vec()).await.unwrap();
            store.delete(std::slice::from_ref(&key)).await.unwrap();
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_folder_that_goes_while_it_is_written_to_is_made_again() {
        let home = tempfile::tempdir().unwrap();
        let store = store(home.path()).await;
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..4 {
            writers.spawn(write_and_delete(store.clone(), format!("a/b/{writer}")));
        }
        while let Some(written) = writers.join_next().await {
            written.unwrap();
        }
    }

    #[test]
    fn a_folder_that_comes_and_goes_meanwhile_is_no_file() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("probe");
        let come_and_go = |name: &str| {
            let file = folder.join(name);
            for _ in 0..2_000 {
                create(&file, &folder).unwrap();
                std::fs::remove_file(&file).unwrap();
                // Refused while another's file is in it.
                std::fs::remove_dir(&folder).ok();
            }
        };
        std::thread::scope(|threads| {
            for name in ["a", "b", "c", "d"] {
                threads.spawn(move || come_and_go(name));
            }
        });
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_made_is_for_a_person() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("file"), b"").unwrap();
        let url = format!("file://{}/file/store", home.path().display());
        assert_eq!(Store::open(&url).await.unwrap_err().kind(), Kind::Config);
    }
}
