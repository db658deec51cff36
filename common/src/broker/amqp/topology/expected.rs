//! What whoever only looks expects to find, by name.

use std::collections::BTreeSet;

use super::{names, wanted};
use crate::broker::amqp::Settings;
use crate::job::{Band, Lane, Queue};

/// The exchanges and queues that jobs of these queues need, whatever their models.
pub(in crate::broker::amqp) fn expected(queues: &[Queue], settings: &Settings) -> (Vec<String>, Vec<String>) {
    let exchanges = wanted::exchanges().into_iter().map(|exchange| exchange.name);
    let all = queues.iter().flat_map(|queue| wanted::all(queue, &[], settings)).map(|queue| queue.name);
    let once: BTreeSet<String> = all.collect();
    (exchanges.collect(), once.into_iter().collect())
}

/// The name of a lane that every queue has.
pub(in crate::broker::amqp) fn some_lane(queue: &Queue) -> String {
    names::lane_queue(&Lane { queue: queue.clone(), model: None, band: Band::Normal })
}
