//! A process group that ends with its owner: asked to stop, then killed; killed at once when dropped.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use tokio::process::Child;
use tokio::time::{sleep, timeout};

/// Between SIGTERM and SIGKILL: enough to flush files, short against the worker's 25 s drain.
pub(super) const GRACE: Duration = Duration::from_secs(2);
/// How often a group that was asked to stop is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// The group that `child` leads. Dropping it kills whatever is left of the group.
#[derive(Debug)]
pub(super) struct Group(Option<Pid>);

impl Group {
    /// The group of a child that was started as its own group's leader.
    pub(super) fn of(child: &Child) -> Self {
        Self(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)))
    }

    /// SIGTERM to the group, up to [`GRACE`] for all of it to end, then SIGKILL.
    pub(super) async fn stop(&mut self, child: &mut Child) {
        let Some(pid) = self.0 else { return };
        // A group that is gone already is what is wanted.
        kill_process_group(pid, Signal::TERM).ok();
        let ended = async {
            drop(child.wait().await);
            while test_kill_process_group(pid).is_ok() {
                sleep(LOOK).await;
            }
        };
        drop(timeout(GRACE, ended).await);
        self.kill();
        drop(child.wait().await);
    }

    /// SIGKILL to what is left of the group, once: later its number may belong to others.
    pub(super) fn kill(&mut self) {
        if let Some(pid) = self.0.take() {
            kill_process_group(pid, Signal::KILL).ok();
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}
