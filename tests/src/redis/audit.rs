//! Whether what a Redis broker keeps fits together: every job in one place, every counter what it counts. What that
//! means key by key is `audit.lua`.

use super::{RedisServer, Reply};

/// The shapes, as the scripts under test know them.
const BOOK: &str = concat!(
    include_str!("../../../common/src/broker/redis/scripts/book.lua"),
    "\n",
    include_str!("../../../common/src/broker/redis/scripts/moves.lua")
);
const AUDIT: &str = include_str!("audit.lua");

impl RedisServer {
    /// What does not fit together in any queue; empty is good. Each queue is looked at in one moment.
    ///
    /// # Panics
    /// When the server does not answer, or holds what cannot even be read.
    pub fn faults(&self) -> Vec<String> {
        let script = format!("{BOOK}\n{AUDIT}");
        let keys = self.must(&["KEYS", "{pq:*"]);
        let mut queues: Vec<String> = keys.list().iter().filter_map(queue_prefix).collect();
        queues.sort_unstable();
        queues.dedup();
        let faults = queues.iter().flat_map(|queue| {
            let found = self.must(&["EVAL", &script, "1", queue]);
            found.list().iter().map(|fault| format!("{queue}: {}", fault.text())).collect::<Vec<_>>()
        });
        faults.collect()
    }
}

/// `{pq:<queue>}` of a key.
fn queue_prefix(key: &Reply) -> Option<String> {
    key.text().split_once('}').map(|(prefix, _)| format!("{prefix}}}"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use promptq_common::broker::{Access, Broker};
    use promptq_common::job::Queue;
    use promptq_common::record::End;

    use crate::backends::{LONG, terms};
    use crate::fixture::{batch, job_of, retry};
    use crate::redis::{Options, RedisServer};
    use crate::steps::{Worker, end, put};

    #[tokio::test]
    async fn whatever_is_damaged_is_seen() {
        let server = RedisServer::start(Options::cheap());
        let broker = Broker::connect(&Access::new(&server.url()).unwrap()).await.unwrap();
        put(&broker, &(0..6).map(|_| job_of(&batch("b"))).collect::<Vec<_>>()).await;
        let mut worker = Worker::on(&broker, terms(&[(Queue::standard(), 1)], LONG)).await;
        let mut taken = worker.take(4).await;
        end(taken.pop().unwrap(), End::Succeeded).await;
        end(taken.pop().unwrap(), End::Dead).await;
        let late = taken.pop().unwrap();
        late.lease.settle(retry(&late.head, Duration::from_secs(600))).await.unwrap();
        assert_eq!(server.faults(), [""; 0]);
        let mut seen = Vec::new();
        for damage in [
            "HINCRBY :c dead 1",
            "HINCRBY :c bytes 1",
            "HINCRBY :b:b queued 1",
            "HINCRBY :alive 0 1",
            "HINCRBY :lanes 1:mock 1",
            "RPUSH :r:9:none x",
            "ZADD :lease 1 nobody",
            "ZADD :h:limit:k 1 nobody",
            "DEL :r:1:mock",
            "DEL :delayed",
            "DEL :lease",
            "DEL :dead",
            "DEL :overdue",
            "DEL :body",
            "DEL :log:0",
            "DEL :bl:b:0",
            "DEL :o:0",
            "DEL :b:b",
        ] {
            let damage = damage.replacen(' ', " {pq:default}", 1);
            server.must(&damage.split(' ').collect::<Vec<_>>());
            let faults = server.faults();
            assert_ne!(faults, seen, "{damage}");
            seen = faults;
        }
    }
}
