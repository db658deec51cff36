//! Sends bytes from memory or a file to a service, in parts when they are large.

use std::fs::File;
use std::io::Read;
use std::path::Path as FilePath;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions};

use super::failed;
use crate::error::{Error, Kind, Result};

/// The most bytes sent in one request, and held in memory: 8 MiB, above every service's least part of 5 MiB.
pub(super) const PART: usize = 8 << 20;

const OP: &str = "write an object";

/// Bytes to be written.
#[derive(Debug)]
pub(super) enum Payload {
    /// All here.
    Memory(Bytes),
    /// Read as they are sent.
    File { file: File, left: u64 },
}

impl Payload {
    pub(super) fn memory(bytes: Vec<u8>) -> Self {
        Self::Memory(bytes.into())
    }

    pub(super) async fn file(path: &FilePath) -> Result<Self> {
        let path = path.to_owned();
        blocking(move || {
            let file = File::open(&path)?;
            let left = file.metadata()?.len();
            Ok(Self::File { file, left })
        })
        .await
    }

    /// How many bytes are left.
    fn left(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File { left, .. } => *left,
        }
    }

    /// The next at most [`PART`] bytes; empty at the end. Blocks on a file.
    pub(super) fn take(&mut self) -> std::io::Result<Bytes> {
        match self {
            Self::Memory(bytes) => Ok(bytes.split_to(bytes.len().min(PART))),
            Self::File { file, left } => {
                let size = usize::try_from(*left).map_or(PART, |left| left.min(PART));
                let mut part = vec![0; size];
                file.read_exact(&mut part)?;
                *left -= size as u64;
                Ok(part.into())
            }
        }
    }
}

/// Writes `payload` under `path`; the object appears whole or not at all.
pub(super) async fn send(objects: &dyn ObjectStore, path: &Path, payload: Payload, mode: PutMode) -> Result<()> {
    let (payload, first) = next(payload).await?;
    if payload.left() == 0 {
        let put = objects.put_opts(path, first.into(), PutOptions::from(mode)).await;
        return put.map(drop).map_err(|error| failed(OP, path, error));
    }
    let mut upload = objects.put_multipart(path).await.map_err(|error| failed(OP, path, error))?;
    let sent = send_parts(&mut *upload, path, payload, first).await;
    if sent.is_err() {
        // Best effort: what stays is parts nobody can read, which a bucket's lifecycle rule removes.
        upload.abort().await.ok();
    }
    sent
}

async fn send_parts(
    upload: &mut dyn object_store::MultipartUpload,
    path: &Path,
    mut payload: Payload,
    mut part: Bytes,
) -> Result<()> {
    while !part.is_empty() {
        upload.put_part(part.into()).await.map_err(|error| failed(OP, path, error))?;
        (payload, part) = next(payload).await?;
    }
    upload.complete().await.map(drop).map_err(|error| failed(OP, path, error))
}

async fn next(mut payload: Payload) -> Result<(Payload, Bytes)> {
    if matches!(payload, Payload::Memory(_)) {
        let part = payload.take().map_err(|error| broken(&error))?;
        return Ok((payload, part));
    }
    blocking(move || {
        let part = payload.take()?;
        Ok((payload, part))
    })
    .await
}

/// Runs file system calls away from the async threads.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|error| broken(&error)),
        Err(gone) => Err(Error::new(Kind::Closed, OP, "the process is going away").because(gone)),
    }
}

fn broken(error: &std::io::Error) -> Error {
    use std::io::ErrorKind as E;
    let mendable = [E::PermissionDenied, E::ReadOnlyFilesystem, E::NotADirectory, E::InvalidFilename];
    let kind = if error.kind() == E::AlreadyExists {
        Kind::Conflict
    } else if mendable.contains(&error.kind()) {
        Kind::Config
    } else {
        Kind::Unavailable
    };
    Error::new(kind, OP, error.to_string())
}
