//! A store in memory that misbehaves where a test says so: answers that are lost, refusals, slowness, no conditions.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use super::Store;

/// What goes wrong with one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A write is done, and answered with an error.
    AnswerLost,
    /// A write is done, and answered as if another had been there first: the driver's own second try.
    OursExists,
    /// A write is not done, and answered as if another had been there first.
    Refused,
    /// A read fails.
    Unreadable,
    /// A read finds nothing.
    Missing,
    /// A write fails and is not done.
    Unwritten,
}

/// What the test may set while the store is used.
#[derive(Debug, Default)]
pub(crate) struct Switches {
    faults: Mutex<Vec<(Fault, &'static str)>>,
    slow: Mutex<Duration>,
    careless: Mutex<bool>,
    keeps: Mutex<bool>,
}

impl Switches {
    /// The next request that this can happen to, for a key that contains `part`, meets it.
    pub(crate) fn next(&self, fault: Fault, part: &'static str) {
        self.faults.lock().unwrap().push((fault, part));
    }

    /// Every request takes so long from now on.
    pub(crate) fn slow(&self, each: Duration) {
        *self.slow.lock().unwrap() = each;
    }

    /// Creating only where nothing is, and replacing only what was read, are no longer heeded.
    pub(crate) fn careless(&self) {
        *self.careless.lock().unwrap() = true;
    }

    /// Nobody may delete any more.
    pub(crate) fn keeps(&self) {
        *self.keeps.lock().unwrap() = true;
    }

    /// Whether every fault has been met.
    pub(crate) fn are_met(&self) -> bool {
        self.faults.lock().unwrap().is_empty()
    }

    fn meet(&self, path: &Path, which: &[Fault]) -> Option<Fault> {
        let mut faults = self.faults.lock().unwrap();
        let here = |(fault, part): &(Fault, &str)| which.contains(fault) && path.as_ref().contains(part);
        let place = faults.iter().position(here)?;
        Some(faults.remove(place).0)
    }

    async fn pass(&self) {
        let slow = *self.slow.lock().unwrap();
        if !slow.is_zero() {
            tokio::time::sleep(slow).await;
        }
    }
}

/// Such a store, and its switches.
pub(crate) fn faulty() -> (Store, Arc<Switches>) {
    let switches = Arc::new(Switches::default());
    let objects = Arc::new(Faulty { inner: InMemory::new(), switches: Arc::clone(&switches) });
    (Store { objects, root: Path::default(), folder: None }, switches)
}

#[derive(Debug)]
struct Faulty {
    inner: InMemory,
    switches: Arc<Switches>,
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("faulty")
    }
}

fn broken() -> Error {
    Error::Generic { store: "faulty", source: "as the test said".into() }
}

fn exists(path: &Path) -> Error {
    Error::AlreadyExists { path: path.to_string(), source: "as the test said".into() }
}

#[async_trait::async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, path: &Path, payload: PutPayload, mut options: PutOptions) -> Result<PutResult> {
        self.switches.pass().await;
        if *self.switches.careless.lock().unwrap() {
            options.mode = PutMode::Overwrite;
        }
        let fault = self.switches.meet(path, &[Fault::AnswerLost, Fault::OursExists, Fault::Refused, Fault::Unwritten]);
        match fault {
            Some(Fault::Refused) => return Err(exists(path)),
            Some(Fault::Unwritten) => return Err(broken()),
            _ => {}
        }
        let done = self.inner.put_opts(path, payload, options).await?;
        match fault {
            Some(Fault::AnswerLost) => Err(broken()),
            Some(Fault::OursExists) => Err(exists(path)),
            _ => Ok(done),
        }
    }

    async fn put_multipart_opts(&self, path: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.switches.pass().await;
        match self.switches.meet(path, &[Fault::Unreadable, Fault::Missing]) {
            Some(Fault::Missing) => Err(Error::NotFound { path: path.to_string(), source: "as the test said".into() }),
            Some(_) => Err(broken()),
            None => self.inner.get_opts(path, options).await,
        }
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        if *self.switches.keeps.lock().unwrap() {
            let denied = |path: Path| Error::PermissionDenied { path: path.to_string(), source: "as told".into() };
            return paths.map(move |path| path.and_then(|path| Err(denied(path)))).boxed();
        }
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (switches, found) = (Arc::clone(&self.switches), self.inner.list(prefix));
        let passed = futures_util::stream::once(async move {
            switches.pass().await;
            found
        });
        passed.flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
