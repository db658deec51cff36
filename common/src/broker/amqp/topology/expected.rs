//! What whoever only looks expects to find, by name.

use super::{names, wanted};
use crate::broker::amqp::Settings;
use crate::job::{Band, Lane, Queue};

/// What jobs of a queue need, by name.
pub(in crate::broker::amqp) struct Expected {
    pub(in crate::broker::amqp) queue: Queue,
    pub(in crate::broker::amqp) exchanges: Vec<String>,
    /// The queues that are needed whatever the settings say of models.
    pub(in crate::broker::amqp) queues: Vec<String>,
    /// The lanes of models that the settings give some.
    pub(in crate::broker::amqp) lanes: Vec<String>,
}

/// What jobs of this queue need.
pub(in crate::broker::amqp) fn expected(queue: &Queue, settings: &Settings) -> Expected {
    let models = settings.models.get(queue).map_or(&[][..], Vec::as_slice);
    let of = |models| wanted::all(queue, models, settings).into_iter().map(|queue| queue.name).collect::<Vec<_>>();
    let queues = of(&[]);
    let lanes = of(models).into_iter().filter(|name| !queues.contains(name)).collect();
    let exchanges = wanted::exchanges().into_iter().map(|exchange| exchange.name).collect();
    Expected { queue: queue.clone(), exchanges, queues, lanes }
}

/// The name of a lane that every queue has.
pub(in crate::broker::amqp) fn some_lane(queue: &Queue) -> String {
    names::lane_queue(&Lane { queue: queue.clone(), model: None, band: Band::Normal })
}
