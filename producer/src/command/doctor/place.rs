//! Files and folders that are named and not there yet: whether their first use can make them. Makes nothing.

use std::path::Path;

use promptq_common::broker::{self, Access, FileState};
use promptq_common::config::Address;
use promptq_common::error::Error;
use rustix::fs::Access as May;

use super::{Finding, Health};

/// What is found of a broker or ledger that connecting would make or change, or that is of no use; `None` where there is
/// something to connect to.
pub(super) async fn of_server(check: &'static str, access: &Access) -> Option<Finding> {
    let url = &access.url;
    match broker::look(access).await {
        Ok(None | Some(FileState::Current)) => None,
        Ok(Some(FileState::Missing)) => {
            Some(Finding::new(check, Health::Ok, format!("{url}: not there yet; its first use makes it")))
        }
        Ok(Some(FileState::Older)) => {
            let what = format!("{url}: of an older promptq; its next use brings it up to date");
            Some(Finding::new(check, Health::Ok, what))
        }
        Err(error) => Some(failed(check, error)),
    }
}

fn failed(check: &'static str, error: Error) -> Finding {
    Finding::failed(check, &error.into())
}

/// What is found of a store in a folder that opening it would make; `None` where there is one to open.
pub(super) fn of_store(url: &Address) -> Option<Finding> {
    const CHECK: &str = "store";
    let path = url::Url::parse(url.expose()).ok().filter(|url| url.scheme() == "file")?.to_file_path().ok()?;
    if path.exists() {
        return None;
    }
    let above = path.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    let may = if above.is_dir() {
        rustix::fs::access(above, May::WRITE_OK | May::EXEC_OK).map_err(std::io::Error::from)
    } else {
        Err(std::io::ErrorKind::NotADirectory.into())
    };
    Some(match may {
        Ok(()) => Finding::new(CHECK, Health::Ok, format!("{url}: not there yet; its first use makes it")),
        Err(error) => {
            let what = format!("{url}: not there, and cannot be made: {}: {error}", above.display());
            Finding::new(CHECK, Health::Failed, what).hint("name a folder that this user may make")
        }
    })
}
