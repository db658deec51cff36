//! Taking lines in, below the subscription: calls that are repeated because their answer was lost.

use super::{Server, link, must};
use crate::broker::redis::global::queues;
use crate::broker::redis::inbox::{look, take, take_in};
use crate::job::Queue;

#[tokio::test]
async fn a_call_that_is_repeated_takes_no_other_line() {
    let server = Server::start(&[]);
    let link = link(&server).await;
    let queue = Queue::standard();
    for line in [r#"{"prompt":"the same"}"#, r#"{"prompt":"the same"}"#] {
        must::<u64>(&link, &["RPUSH", "{pq:default}:inbox", line]).await;
    }
    let first = &look(&link, &queue).await.unwrap()[..1];
    assert_eq!(take(&link, &queue, first).await.unwrap(), ["N"]);
    assert_eq!(take(&link, &queue, first).await.unwrap(), ["Kq"]);
    assert_eq!(must::<u64>(&link, &["LLEN", "{pq:default}:inbox"]).await, 1);
    let second = look(&link, &queue).await.unwrap();
    assert_eq!(take(&link, &queue, &second).await.unwrap(), ["N"]);
    assert_eq!(must::<u64>(&link, &["LLEN", "{pq:default}:inbox"]).await, 0);
    // One that somebody else has taken meanwhile is left alone.
    must::<u64>(&link, &["RPUSH", "{pq:default}:inbox", r#"{"id":"b","prompt":"another"}"#]).await;
    assert_eq!(take(&link, &queue, &second).await.unwrap(), [""; 0]);
}

#[tokio::test]
async fn a_queue_that_was_forgotten_is_listed_again_once_lines_come() {
    let server = Server::start(&[]);
    let link = link(&server).await;
    let queue = Queue::standard();
    must::<u64>(&link, &["RPUSH", "{pq:default}:inbox", r#"{"prompt":"at last"}"#]).await;
    assert!(queues(&link).await.unwrap().is_empty());
    assert_eq!(take_in(&link, &queue).await.unwrap(), 1);
    assert_eq!(queues(&link).await.unwrap(), [queue]);
}
