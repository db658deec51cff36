//! What goes on beside the jobs for as long as a worker is there: reports of it, upkeep, readings of the machine, and the
//! waking of what waits for something that is open again.

use std::sync::Arc;

use promptq_common::broker::HoldKey;
use tokio::sync::watch;

use super::Intake;
use crate::admission::Shortage;
use crate::upkeep;

impl Intake {
    /// Starts what ends with the worker.
    pub(super) fn start_chores(&mut self, readings: watch::Sender<Option<Shortage>>) {
        let (broker, board) = (&self.broker, &self.board);
        let (settings, limits, store) = (&self.desk.settings, &self.desk.limits, &self.desk.store);
        let shown = (board.clone(), Arc::clone(&self.desk.meter));
        self.chores.spawn(upkeep::sample(settings.disks.clone(), readings));
        self.chores.spawn(upkeep::reports(broker.clone(), limits.clone(), settings.clone(), shown));
        if let Some(health) = board.health() {
            self.chores.spawn(upkeep::pauses(broker.clone(), settings.clone(), health.clone()));
        }
        self.chores.spawn(upkeep::sweeps(broker.clone(), store.clone(), settings.clone()));
        if let Some(store) = store.clone() {
            self.chores.spawn(upkeep::orphans(broker.clone(), store, settings.clone()));
        }
        self.chores.spawn(upkeep::wake_held(broker.clone(), settings.clone()));
        self.chores.spawn(upkeep::caps(broker.clone(), settings.clone()));
        self.chores.spawn(upkeep::limits(broker.clone(), limits.clone(), settings.limit_share));
    }

    /// What waits for something that is open again need not wait any longer; `after` would free it too, only later.
    pub(super) fn wake_opened(&mut self) {
        let limits = self.desk.limits.take_opened().into_iter().map(|key| HoldKey::of_limit(&key));
        let tiers = self.desk.full.take_opened().into_iter().map(|key| HoldKey::of_flex(&key));
        for key in limits.chain(tiers) {
            let broker = self.broker.clone();
            self.chores.spawn(async move {
                if let Err(error) = broker.wake(&key).await {
                    tracing::debug!(%error, "waking held jobs failed; they wake by themselves");
                }
            });
        }
    }
}
