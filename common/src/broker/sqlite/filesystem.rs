//! Where the file may live: a private folder on a local file system. What is in the file is `file.rs`.

use std::fs::{DirBuilder, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::Access;

use crate::error::{Error, Kind, Result};

const OP: &str = "open the embedded database";

/// Makes the folder (0700) and the file (0600) where missing, and refuses network file systems. SQLite gives its
/// `-wal` and `-shm` files the mode of the file itself.
pub(super) fn prepare(path: &Path) -> Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|error| refused(folder, error))?;
    check_local(folder)?;
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(refused(path, error)),
    }
}

/// Whether the file is, or could be made, where it is named: on a local disk, in a folder that is there or could be.
/// Makes nothing.
pub(super) fn check_home(path: &Path) -> Result<()> {
    let mut folders = path.ancestors().skip(1);
    let folder = folders.find(|folder| folder.as_os_str().is_empty() || folder.exists()).unwrap_or(Path::new("."));
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    check_local(folder)?;
    if path.exists() {
        return Ok(());
    }
    // Opened as what it has to be.
    std::fs::read_dir(folder).map_err(|error| refused(folder, error))?;
    let may = rustix::fs::access(folder, Access::WRITE_OK | Access::EXEC_OK);
    may.map_err(|error| refused(folder, error.into()))
}

fn refused(path: &Path, error: std::io::Error) -> Error {
    let full = [ErrorKind::StorageFull, ErrorKind::QuotaExceeded].contains(&error.kind());
    let denied = [ErrorKind::PermissionDenied, ErrorKind::ReadOnlyFilesystem].contains(&error.kind());
    let (kind, hint) = if full {
        (Kind::Unavailable, "free some space")
    } else if denied {
        (Kind::Denied, "choose a folder this user may write, such as sqlite:///var/lib/promptq/q.db")
    } else {
        (Kind::Config, "choose another file: sqlite:///path/to/file.db")
    };
    Error::new(kind, OP, format!("{}: {error}\nhint: {hint}", path.display())).because(error)
}

#[cfg(target_os = "linux")]
fn check_local(folder: &Path) -> Result<()> {
    let found = rustix::fs::statfs(folder).map_err(|error| refused(folder, error.into()))?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "magic numbers have 32 bits")]
    match network_name(found.f_type as u32) {
        None => Ok(()),
        Some(name) => Err(Error::new(
            Kind::Config,
            OP,
            format!(
                "{} is on {name}, where file locks do not hold between machines\nhint: name a file on a local disk: \
                 sqlite:///path/to/file.db",
                folder.display()
            ),
        )),
    }
}

#[cfg(not(target_os = "linux"))]
fn check_local(_folder: &Path) -> Result<()> {
    Ok(())
}

/// The file systems SQLite must not be used on, by the numbers of statfs(2) and the kernel's `magic.h`.
#[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "only Linux numbers file systems"))]
fn network_name(magic: u32) -> Option<&'static str> {
    Some(match magic {
        0x6969 => "NFS",
        0x517B | 0xFF53_4D42 | 0xFE53_4D42 => "an SMB share",
        0x0102_1997 => "a 9p share",
        0x6573_5546 => "a FUSE file system",
        0x00C3_6400 => "Ceph",
        0x0BD0_0BD0 => "Lustre",
        0x5346_414F | 0x6B41_4653 => "AFS",
        0x7375_7245 => "Coda",
        0x0116_1970 => "GFS2",
        0x7461_636F => "OCFS2",
        0x4750_4653 => "GPFS",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_file_systems_are_known_by_number() {
        for magic in [0x6969, 0xFF53_4D42, 0x517B, 0x0102_1997, 0x6573_5546] {
            assert!(network_name(magic).is_some(), "{magic:x}");
        }
        for (name, magic) in [("ext4", 0xEF53), ("tmpfs", 0x0102_1994), ("btrfs", 0x9123_683E), ("xfs", 0x5846_5342)] {
            assert_eq!(network_name(magic), None, "{name}");
        }
    }
}
