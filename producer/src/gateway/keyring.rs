//! The file of keys: read whole, changed under a lock and replaced at once; and the keys as a gateway holds them, which
//! follows the file.

use std::collections::HashMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use promptq_common::time::Timestamp;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;
use tokio::time::{Instant, sleep, sleep_until};

use super::key::{Key, Secret};
use crate::problem::{Exit, Problem, Result};

/// The most keys: a gateway reads all of them at each change.
const MOST: usize = 10_000;
/// The largest file that is read.
const LARGEST: u64 = 16 << 20;
/// How often a gateway looks whether the file has changed.
const LOOK: Duration = Duration::from_secs(1);
/// How often it does so for secrets that nobody knows: guessing them costs no more than that.
const AGAIN: Duration = Duration::from_millis(100);

/// The keys of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keys {
    /// In the order in which they were made.
    pub keys: Vec<Key>,
}

impl Keys {
    /// What the file holds; `None` where there is none.
    ///
    /// # Errors
    /// It cannot be read, or is no file of keys (exit 2).
    pub fn read(path: &Path) -> Result<Option<Self>> {
        let mut text = String::new();
        let read = File::open(path).and_then(|file| file.take(LARGEST + 1).read_to_string(&mut text));
        match read {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(trouble(path, &error)),
            Ok(_) if text.len() as u64 > LARGEST => {
                return Err(trouble(path, &io::Error::from(ErrorKind::FileTooLarge)));
            }
            Ok(_) => {}
        }
        serde_json::from_str(&text).map(Some).map_err(|error| {
            let what = format!("{} is no file of keys: {error}", path.display());
            Problem::new(Exit::Usage, "bad-keys", what).hint("restore it, or remove it and make new keys")
        })
    }

    /// Changes the file as one step that no other change comes between. Durable when it returns.
    ///
    /// # Errors
    /// What `change` says, and then the file is as it was; or it cannot be written.
    pub fn change<T>(path: &Path, change: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        let _lock = made.and_then(|()| lock(path)).map_err(|error| trouble(path, &error))?;
        let mut keys = Self::read(path)?.unwrap_or_default();
        let changed = change(&mut keys)?;
        if keys.keys.len() > MOST {
            return Err(Problem::new(Exit::Conflict, "too-many-keys", format!("more than {MOST} keys"))
                .hint("promptq keys revoke ID makes room"));
        }
        keys.replace(path, folder).map_err(|error| trouble(path, &error))?;
        Ok(changed)
    }

    fn replace(&self, path: &Path, folder: &Path) -> io::Result<()> {
        // Mode 0600 from the start.
        let mut draft = NamedTempFile::new_in(folder)?;
        serde_json::to_writer_pretty(&mut draft, self)?;
        draft.write_all(b"\n")?;
        draft.as_file().sync_all()?;
        draft.persist(path).map_err(|error| error.error)?;
        File::open(folder)?.sync_all()
    }
}

/// Held until dropped; beside the file, which is replaced.
fn lock(path: &Path) -> io::Result<File> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".lock");
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(false).mode(0o600).open(path.with_file_name(name))?;
    flock(&file, FlockOperation::LockExclusive)?;
    Ok(file)
}

fn trouble(path: &Path, error: &io::Error) -> Problem {
    let what = format!("cannot use the keys in {}: {error}", path.display());
    Problem::new(Exit::Usage, "bad-keys", what).hint("--keys FILE names another place")
}

/// The keys of a running gateway.
#[derive(Debug)]
pub struct Ring {
    path: PathBuf,
    held: RwLock<Held>,
    /// Held while the file is read: what was read first is never put in place of what was read later. The state of it that
    /// could not be read, the last such one.
    reading: Mutex<Option<Seen>>,
    /// When it was last looked at for a secret that nobody knew.
    again: tokio::sync::Mutex<Option<Instant>>,
}

#[derive(Debug, Default)]
struct Held {
    /// By id; `None`: there has been no file yet, and nobody needs a key.
    keys: Option<HashMap<String, Arc<Key>>>,
    seen: Option<Seen>,
}

/// What tells one state of the file from another.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

/// Why a secret opens nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It is no key's.
    Unknown,
    /// Its key has expired.
    Expired,
}

impl Ring {
    /// The keys of a file as it is now.
    ///
    /// # Errors
    /// As [`Keys::read`].
    pub fn open(path: PathBuf) -> Result<Self> {
        let ring =
            Self { path, held: RwLock::default(), reading: Mutex::default(), again: tokio::sync::Mutex::default() };
        ring.look()?;
        Ok(ring)
    }

    /// Whether nobody needs a key: there has never been a file of them. Once there was one it stays so, whatever
    /// becomes of it.
    pub fn is_open(&self) -> bool {
        self.held.read().unwrap_or_else(PoisonError::into_inner).keys.is_none()
    }

    /// How many keys are good for something.
    pub fn usable(&self) -> usize {
        let now = Timestamp::now();
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        held.keys.iter().flat_map(HashMap::values).filter(|key| !key.is_expired(now)).count()
    }

    /// The key of a secret. One that is not known may be new: the file is looked at once more before it is refused.
    pub async fn find(&self, secret: &Secret) -> Result<Arc<Key>, Refused> {
        match self.known(secret) {
            Err(Refused::Unknown) => {
                self.look_again().await;
                self.known(secret)
            }
            found => found,
        }
    }

    /// Looks at the file as it is now, with all who ask for that meanwhile. Of what is wrong with it [`Ring::follow`] tells, which
    /// alone tries again what could not be read as it is.
    async fn look_again(&self) {
        let came = Instant::now();
        let mut last = self.again.lock().await;
        match *last {
            Some(at) if at > came => return,
            Some(at) => sleep_until(at + AGAIN).await,
            None => {}
        }
        *last = Some(Instant::now());
        if !self.is_broken() {
            drop(self.look());
        }
    }

    /// Whether the file is as it was when it could not be read.
    fn is_broken(&self) -> bool {
        let broken = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        broken.is_some() && self.seen().is_ok_and(|seen| seen == *broken)
    }

    fn known(&self, secret: &Secret) -> Result<Arc<Key>, Refused> {
        let found = {
            let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
            held.keys.as_ref().and_then(|keys| keys.get(secret.id()).map(Arc::clone))
        };
        let key = found.filter(|key| key.is_of(secret)).ok_or(Refused::Unknown)?;
        if key.is_expired(Timestamp::now()) { Err(Refused::Expired) } else { Ok(key) }
    }

    /// Follows the file until dropped: within a second of a change it holds.
    #[expect(clippy::infinite_loop, reason = "ends with the gateway")]
    pub async fn follow(&self) {
        let mut broken = false;
        loop {
            sleep(LOOK).await;
            match self.look() {
                Ok(()) => broken = false,
                Err(problem) if !broken => {
                    broken = true;
                    tracing::error!(%problem, "the keys cannot be read again: those known so far stay in force");
                }
                Err(_) => {}
            }
        }
    }

    /// Reads the file if it is another than it was. A file that has gone holds no keys.
    fn look(&self) -> Result<()> {
        let mut broken = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = self.seen()?;
        if self.held.read().unwrap_or_else(PoisonError::into_inner).seen == seen {
            return Ok(());
        }
        let keys = match Keys::read(&self.path) {
            Ok(keys) => keys.unwrap_or_default().keys,
            Err(problem) => {
                *broken = seen;
                return Err(problem);
            }
        };
        let keys = keys.into_iter().map(|key| (key.id.clone(), Arc::new(key))).collect();
        *self.held.write().unwrap_or_else(PoisonError::into_inner) = Held { keys: Some(keys), seen };
        Ok(())
    }

    /// The file as it is; `None` where there is none.
    fn seen(&self) -> Result<Option<Seen>> {
        match std::fs::metadata(&self.path) {
            Ok(meta) => {
                Ok(Some(Seen { inode: meta.ino(), size: meta.size(), modified: (meta.mtime(), meta.mtime_nsec()) }))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(trouble(&self.path, &error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use futures_util::future::join_all;
    use promptq_common::job::Queue;

    use super::super::key::Role;
    use super::*;

    fn key(secret: &Secret) -> Key {
        Key::of(secret, "ci".into(), Role::Viewer, vec![Queue::standard()])
    }

    fn add(path: &Path, key: Key) {
        Keys::change(path, |keys| {
            keys.keys.push(key);
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn a_change_is_whole_private_and_the_next_one_builds_on_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("made/keys.json");
        let (one, two) = (key(&Secret::random()), key(&Secret::random()));
        add(&path, one.clone());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        add(&path, two.clone());
        let refused = Keys::change(&path, |keys| {
            keys.keys.clear();
            Err::<(), _>(Problem::usage("no"))
        });
        assert!(refused.is_err());
        assert_eq!(Keys::read(&path).unwrap().unwrap().keys, [one, two]);
    }

    #[test]
    fn changes_of_many_at_once_are_all_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.json");
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..5).for_each(|_| add(&path, key(&Secret::random()))));
            }
        });
        assert_eq!(Keys::read(&path).unwrap().unwrap().keys.len(), 40);
    }

    #[tokio::test]
    async fn a_ring_follows_its_file_and_is_never_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.json");
        let ring = Ring::open(path.clone()).unwrap();
        assert!(ring.is_open() && ring.usable() == 0);
        let secret = Secret::random();
        assert_eq!(ring.find(&secret).await, Err(Refused::Unknown));
        add(&path, key(&secret));
        ring.look().unwrap();
        assert!(!ring.is_open() && ring.known(&secret).is_ok() && ring.usable() == 1);
        std::fs::write(&path, "{").unwrap();
        assert!(ring.look().is_err() && ring.known(&secret).is_ok(), "what cannot be read takes nothing away");
        std::fs::remove_file(&path).unwrap();
        ring.look().unwrap();
        assert!(!ring.is_open() && ring.known(&secret) == Err(Refused::Unknown));
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_key_is_good_at_once_and_whoever_guesses_has_the_file_looked_at_seldom() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.json");
        let [old, new, late] = [(); 3].map(|()| Secret::random());
        add(&path, key(&old));
        let ring = Ring::open(path.clone()).unwrap();
        add(&path, key(&new));
        assert!(ring.find(&new).await.is_ok() && ring.find(&old).await.is_ok());
        let begun = Instant::now();
        for _ in 0..10 {
            assert_eq!(ring.find(&Secret::random()).await, Err(Refused::Unknown));
        }
        assert_eq!(begun.elapsed(), 10 * AGAIN, "each has waited for its look");
        let guess = async || ring.find(&Secret::random()).await.is_err();
        let begun = Instant::now();
        let guesses = join_all((0..1_000).map(|_| guess()));
        // It comes while the first of them waits for its look.
        let comes = async {
            sleep(AGAIN / 2).await;
            add(&path, key(&late));
            ring.find(&late).await.is_ok()
        };
        let (refused, is_found) = tokio::join!(guesses, comes);
        assert!(refused.into_iter().all(|refused| refused) && is_found);
        assert_eq!(begun.elapsed(), AGAIN, "all of them share one");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_guesses_does_not_have_a_broken_file_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.json");
        let [old, new] = [(); 2].map(|()| Secret::random());
        add(&path, key(&old));
        let ring = Ring::open(path.clone()).unwrap();
        add(&path, key(&new));
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, vec![b'{'; whole.len()]).unwrap();
        let broken = std::fs::metadata(&path).unwrap().modified().unwrap();
        assert_eq!(ring.find(&new).await, Err(Refused::Unknown));
        // Whoever reads it again would find the key.
        std::fs::write(&path, whole).unwrap();
        let at = |time| File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        at(broken);
        assert_eq!(ring.find(&new).await, Err(Refused::Unknown), "it is as it was");
        at(broken + Duration::from_secs(1));
        assert!(ring.find(&new).await.is_ok() && ring.find(&old).await.is_ok(), "it is another");
        std::fs::write(&path, "{").unwrap();
        assert!(ring.look().is_err() && ring.look().is_err(), "whoever follows it reads it each time");
    }

    #[tokio::test]
    async fn an_expired_key_is_told_from_an_unknown_one_by_its_secret_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.json");
        let secret = Secret::random();
        add(&path, Key { expires_at: Some(Timestamp::from_millis(1)), ..key(&secret) });
        let ring = Ring::open(path).unwrap();
        assert_eq!((ring.find(&secret).await, ring.usable()), (Err(Refused::Expired), 0));
        let other = Secret::random();
        let guessed = format!("{}_{}", secret.id(), other.expose().rsplit_once('_').unwrap().1);
        assert_eq!(ring.find(&Secret::read(&guessed).unwrap()).await, Err(Refused::Unknown));
    }
}
