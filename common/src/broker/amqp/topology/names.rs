//! What promptq's exchanges, queues and keys at RabbitMQ are called: pure, and read back where that is needed.
//!
//! A part of a name is percent-encoded, all but `A-Z a-z 0-9 - _`, so that parts hold no dot and no wildcard. A model
//! that is called `_`, as the lane without a model is, becomes `%5F`, and an empty one `%`. What is longer than
//! [`PART_BYTES`] then becomes `~` and the first 16 bytes of its SHA-256 in hexadecimal digits.

use std::time::Duration;

use lapin::types::AMQPValue;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sha2::{Digest, Sha256};

use crate::broker::WorkerId;
use crate::job::{Band, Lane, Queue};

/// Where everybody publishes jobs, under [`key`].
pub(in crate::broker::amqp) const IN: &str = "pq1.in";
/// Where the server takes jobs whose key no lane has.
pub(super) const REST: &str = "pq1.rest";
/// Where jobs that wait are published, under the key of their lane and with [`delay_header`].
pub(in crate::broker::amqp) const DELAY: &str = "pq1.delay";
/// What says which ledger the records of a virtual host's jobs are kept in.
pub(super) const LEDGER: &str = "pq1.ledger";
/// The queue of messages that the server or a decoder rejected.
pub(in crate::broker::amqp) const DEAD: &str = "pq1.dead";

/// A part of a key has at most so many bytes. Three make a name: the server's longest has 255.
const PART_BYTES: usize = 64;

/// Dots part a key, `*` and `#` are wildcards in it.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_');

/// What a job of this lane is published under: `<queue>.<model>.<band>`, `_` for no model.
pub(in crate::broker::amqp) fn key(lane: &Lane) -> String {
    let model = lane.model.as_ref().map_or_else(|| "_".to_owned(), |model| part(model.as_str()));
    format!("{}.{model}.{}", part(lane.queue.as_str()), lane.band)
}

/// The queue that a lane of the topology waits in.
pub(in crate::broker::amqp) fn lane_queue(lane: &Lane) -> String {
    format!("pq1.q.{}", key(lane))
}

/// The key for clients that know a queue's name and nothing else: its normal band.
pub(super) fn bare_key(queue: &Queue) -> String {
    part(queue.as_str())
}

/// What every job of a queue and band is published under, whatever its model.
pub(super) fn any_model(queue: &Queue, band: Band) -> String {
    format!("{}.*.{band}", part(queue.as_str()))
}

/// Where results of a queue's jobs are announced.
pub(in crate::broker::amqp) fn results_queue(queue: &Queue) -> String {
    format!("pq1.results.{}", part(queue.as_str()))
}

/// The exchange and the queue in which a worker's long jobs lie while they run.
pub(in crate::broker::amqp) fn hold_name(worker: &WorkerId) -> String {
    format!("pq1.hold.{}", part(worker.as_str()))
}

/// The queue in which messages wait for as long as the level is.
pub(in crate::broker::amqp) fn delay_queue(level: Duration) -> String {
    format!("{DELAY}.{}", level.as_millis())
}

/// The header that sends a message to this level: its milliseconds as text, because the server compares types as well,
/// and drivers differ in which kind of number they send.
pub(in crate::broker::amqp) fn delay_header(level: Duration) -> (&'static str, AMQPValue) {
    ("pq-delay", AMQPValue::LongString(level.as_millis().to_string().into()))
}

/// Whether a queue of this name is promptq's own, of whatever version: begins with `pq<digits>.`.
pub(in crate::broker::amqp) fn is_ours(queue_name: &str) -> bool {
    let Some((version, _)) = queue_name.strip_prefix("pq").and_then(|rest| rest.split_once('.')) else { return false };
    !version.is_empty() && version.bytes().all(|byte| byte.is_ascii_digit())
}

/// The queue that a message with this key belongs to; `None` for a key that is none of ours, or whose queue's name
/// stands in it as a hash.
pub(in crate::broker::amqp) fn queue_of_key(key: &str) -> Option<Queue> {
    let mut parts = key.split('.');
    let first = parts.next()?;
    let ours = match (parts.next(), parts.next(), parts.next()) {
        (None, None, None) => true,
        (Some(_), Some(band), None) => Band::ALL.iter().any(|known| known.to_string() == band),
        _ => false,
    };
    let queue = Queue::new(&percent_decode_str(first).decode_utf8().ok()?).ok()?;
    (ours && part(queue.as_str()) == first).then_some(queue)
}

/// The queue whose lane this is the queue of.
pub(in crate::broker::amqp) fn queue_of_lane(name: &str) -> Option<Queue> {
    queue_of_key(name.strip_prefix("pq1.q.")?)
}

fn part(name: &str) -> String {
    let encoded = match name {
        "" => "%".to_owned(),
        "_" => "%5F".to_owned(),
        _ => utf8_percent_encode(name, ENCODED).to_string(),
    };
    if encoded.len() <= PART_BYTES { encoded } else { hashed(name) }
}

fn hashed(name: &str) -> String {
    let digest = Sha256::digest(name.as_bytes());
    let mut short = [0; 16];
    short.copy_from_slice(&digest[..16]);
    format!("~{:032x}", u128::from_be_bytes(short))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::job::ModelName;

    fn lane(queue: &str, model: Option<&str>, band: Band) -> Lane {
        Lane { queue: Queue::new(queue).unwrap(), model: model.map(ModelName::new), band }
    }

    fn key_of(queue: &str, model: Option<&str>) -> String {
        key(&lane(queue, model, Band::High))
    }

    #[test]
    fn keys_read_as_queue_model_and_band() {
        assert_eq!(key_of("default", None), "default._.high");
        assert_eq!(key_of("default", Some("gpt-5_mini")), "default.gpt-5_mini.high");
        assert_eq!(key_of("a.b", Some("openai/gpt-5.1")), "a%2Eb.openai%2Fgpt-5%2E1.high");
        assert_eq!(key_of("q", Some("*")), "q.%2A.high");
        assert_eq!(key_of("q", Some("#")), "q.%23.high");
        assert_eq!(key_of("q", Some("_")), "q.%5F.high");
        assert_eq!(key_of("q", Some("%5F")), "q.%255F.high");
        assert_eq!(key_of("q", Some("")), "q.%.high");
        assert_eq!(key_of("q", Some("ä")), "q.%C3%A4.high");
        let long = key_of("q", Some(&"m".repeat(65)));
        assert!(long.starts_with("q.~") && long.len() == "q.~.high".len() + 32, "{long}");
        assert_eq!(lane_queue(&lane("q", None, Band::Low)), "pq1.q.q._.low");
        assert_eq!(results_queue(&Queue::new("a.b").unwrap()), "pq1.results.a%2Eb");
        assert_eq!(hold_name(&WorkerId::known("host.lan-00ff")), "pq1.hold.host%2Elan-00ff");
        assert_eq!(delay_queue(Duration::from_secs(30)), "pq1.delay.30000");
    }

    #[test]
    fn only_our_own_queues_are_ours() {
        for name in ["pq1.q.default._.high", "pq12.dead", "pq1."] {
            assert!(is_ours(name), "{name}");
        }
        for name in ["", "pq", "pq.in", "pq1", "replies", "pqx.in", "my.pq1.q", "pq1x.in"] {
            assert!(!is_ours(name), "{name}");
        }
    }

    #[test]
    fn a_key_that_is_none_of_ours_belongs_to_no_queue() {
        let queue = |key: &str| queue_of_key(key).map(|queue| queue.to_string());
        assert_eq!(queue("default"), Some("default".to_owned()));
        assert_eq!(queue("a%2Eb.m.low"), Some("a.b".to_owned()));
        for key in ["", ".", "a.b", "a.m.lowest", "a.m.low.x", "a%2eb", "%61", "~00", "a b", "%FF", "a.m."] {
            assert_eq!(queue(key), None, "{key:?}");
        }
        let long = Queue::new(&format!("a{}", ".".repeat(63))).unwrap();
        assert_eq!(queue_of_key(&bare_key(&long)), None);
    }

    /// Names as people give them, and such as are nearly alike.
    fn model() -> impl Strategy<Value = Option<String>> {
        prop_oneof![
            1 => Just(None),
            3 => "[_.%*#~a ]{0,4}".prop_map(Some),
            2 => any::<String>().prop_map(Some),
            1 => "[a.]{60,70}".prop_map(Some),
            1 => "(%5F|%|~[0-9a-f]{32}|_)".prop_map(Some),
        ]
    }

    fn any_lane() -> impl Strategy<Value = Lane> {
        let queue = prop_oneof!["[a_][a._-]{0,3}", "[a_][a._-]{55,63}"];
        (queue, model(), 0_usize..3).prop_map(|(queue, model, band)| lane(&queue, model.as_deref(), Band::ALL[band]))
    }

    proptest! {
        #[test]
        fn no_two_lanes_share_a_key(one in any_lane(), other in any_lane()) {
            prop_assert_eq!(one == other, key(&one) == key(&other), "{} {}", key(&one), key(&other));
        }

        #[test]
        fn every_key_is_plain_and_short_and_belongs_to_its_queue(lane in any_lane()) {
            let key = key(&lane);
            let parts: Vec<&str> = key.split('.').collect();
            prop_assert_eq!(parts.len(), 3);
            prop_assert!(parts.iter().all(|part| (1..=PART_BYTES).contains(&part.len())));
            prop_assert!(key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_%~.".contains(&byte)), "{}", key);
            prop_assert!(lane_queue(&lane).len() <= 255 && is_ours(&lane_queue(&lane)));
            if !key.starts_with('~') {
                prop_assert_eq!(queue_of_key(&key), Some(lane.queue.clone()));
                prop_assert_eq!(queue_of_key(&bare_key(&lane.queue)), Some(lane.queue));
            }
        }
    }
}
