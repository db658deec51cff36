//! That every process of a virtual host keeps its records in one ledger: with two of them jobs run twice, and results are
//! not where they are looked for. How a server remembers whose it is, is `topology/ledger`.

use std::sync::atomic::{AtomicBool, Ordering};

use super::check::{Health, Hop};
use super::fault::Peer;
use super::link::Link;
use super::topology::{self, Word};
use crate::broker::Access;
use crate::error::{Error, Kind, Result};
use crate::job::Queue;
use crate::ledger::{Claims, LedgerId};

const OP: &str = "agree on the ledger";
const UNTOLD: &str = "this user may not ask whose the virtual host is, so a second ledger would go unnoticed";
const HINT: &str = "give every process the same [ledger]; if it was changed on purpose, or has lost its data, stop every \
                    worker and run `promptq queues declare --new-ledger` as an administrator";

/// What a process knows of whose the virtual host is; asked once, not with every call.
#[derive(Debug, Default)]
pub(super) struct Agreement(AtomicBool);

impl Agreement {
    /// Sees to it that the virtual host is not another ledger's. Makes nothing.
    ///
    /// # Errors
    /// `Config` when it is; else when one of them cannot be asked.
    pub(super) async fn look(&self, link: &Link, claims: &dyn Claims) -> Result<()> {
        if topology::has_ledger(link).await? {
            // Who only looks need not hear that this user may not ask.
            self.0.store(ask(link, claims).await?.is_none(), Ordering::Relaxed);
        }
        Ok(())
    }

    /// Sees to it that the virtual host is this ledger's. For a user who may not, it goes on without, and says so once.
    ///
    /// # Errors
    /// As [`Agreement::look`].
    pub(super) async fn reach(&self, link: &Link, claims: &dyn Claims) -> Result<()> {
        if self.0.load(Ordering::Relaxed) {
            return Ok(());
        }
        if let Some(said) = ask(link, claims).await? {
            tracing::warn!("{UNTOLD} ({said}); deploy/rabbitmq has the rights that it wants");
        }
        self.0.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Asks anew next time: somebody deleted what was there.
    pub(super) fn doubt(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// Asks whose the virtual host is, ours if nobody's; `Some` with the server's words for a user who may not ask.
async fn ask(link: &Link, claims: &dyn Claims) -> Result<Option<String>> {
    let ours = claims.identity().await?;
    match topology::name_ledger(link, ours).await? {
        Word::Ours => Ok(None),
        Word::Others(theirs) => Err(another(link.peer(), ours, theirs.as_deref())),
        Word::Untold(said) => Ok(Some(said)),
    }
}

fn another(peer: &Peer, ours: LedgerId, theirs: Option<&str>) -> Error {
    let why = format!("{}\nhint: {HINT}", is_anothers(peer, ours, theirs));
    peer.error(Kind::Config, OP, &why)
}

fn is_anothers(peer: &Peer, ours: LedgerId, theirs: Option<&str>) -> String {
    let theirs = theirs.map_or_else(String::new, |theirs| format!(" ({theirs}…)"));
    format!(
        "the jobs of virtual host {} are recorded in another ledger{theirs} than the one that is named here ({}…)",
        peer.vhost,
        ours.short()
    )
}

/// Makes the virtual host that `access` names this ledger's, whosever it was, and says which that is. What waits there
/// is entered in it when it runs; what the old one knows stays there.
///
/// # Errors
/// `Conflict` while workers take jobs of these queues; `Denied` where the user may not; else when one of them cannot be
/// asked.
pub async fn renew_ledger(access: &Access, claims: &dyn Claims, queues: &[Queue]) -> Result<LedgerId> {
    let ledger = claims.identity().await?;
    topology::renew_ledger(&Link::connect(access).await?, ledger, queues, &access.amqp).await?;
    Ok(ledger)
}

/// What the virtual host that `access` names says to the ledger beside it, for the doctor. Makes nothing there, and opens
/// the ledger only to compare it with what is there, when one without an identity gets it.
pub async fn examine_ledger(access: &Access) -> Hop {
    try_ledger(access).await.unwrap_or_else(|error| Hop::failed("identity", &error))
}

async fn try_ledger(access: &Access) -> Result<Hop> {
    let hop = |health, what, hint: Option<&str>| Hop { name: "identity", health, what, hint: hint.map(str::to_owned) };
    let link = Link::connect(access).await?;
    let vhost = &link.peer().vhost;
    if !topology::has_ledger(&link).await? {
        let what = format!("virtual host {vhost} is no ledger's yet; it becomes that of whoever uses it first");
        return Ok(hop(Health::Fine, what, None));
    }
    let ours = crate::broker::ledger(access).await?.identity().await?;
    Ok(match topology::name_ledger(&link, ours).await? {
        Word::Ours => hop(Health::Fine, format!("virtual host {vhost} is this ledger's ({}…)", ours.short()), None),
        Word::Others(theirs) => hop(Health::Broken, is_anothers(link.peer(), ours, theirs.as_deref()), Some(HINT)),
        Word::Untold(_) => {
            hop(Health::Doubtful, UNTOLD.to_owned(), Some("deploy/rabbitmq has the rights of each kind of user"))
        }
    })
}
