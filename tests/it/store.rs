//! The store against a real S3 server (moto), started here on a port of its own.

use promptq_common::broker::LeaseId;
use promptq_common::error::Kind;
use promptq_common::job::JobId;
use promptq_common::outcome::Body;
use promptq_common::store::PutNew;
use promptq_tests::moto::Moto;

#[tokio::test]
async fn s3_keeps_outputs_small_and_in_parts() {
    let moto = Moto::start().await;
    let store = moto.store("s3://jobs/team a").await;
    let job = JobId::fresh();
    // 20 MiB goes in three parts.
    for body in [Body::Text("grüße".into()), Body::Json(format!("\"{}\"", "x".repeat(20 << 20)))] {
        let lease = LeaseId::random();
        let stored = store.put_output(job, lease, &body).await.unwrap();
        assert_eq!(stored, store.put_output(job, lease, &body).await.unwrap(), "a repeat changes nothing");
        assert_eq!(store.get_output(&stored).await.unwrap(), body);
        store.delete(&[stored.key.clone(), "out/never/was".into()]).await.unwrap();
        assert_eq!(store.get_output(&stored).await.unwrap_err().kind(), Kind::NotFound);
    }
}

#[tokio::test]
async fn s3_creates_once_and_says_so() {
    let moto = Moto::start().await;
    let store = moto.store("s3://jobs").await;
    assert!(store.probe().await.unwrap(), "moto honours If-None-Match");
    assert_eq!(store.put_new("ends/a%2Fb", b"1".to_vec()).await.unwrap(), PutNew::Ours);
    assert_eq!(store.put_new("ends/a%2Fb", b"1".to_vec()).await.unwrap(), PutNew::Ours);
    assert_eq!(store.put_new("ends/a%2Fb", b"2".to_vec()).await.unwrap(), PutNew::Theirs(b"1".to_vec()));
    let missing = moto.store("s3://no-such-bucket").await;
    assert_eq!(missing.put("x", b"1".to_vec()).await.unwrap_err().kind(), Kind::Config);
    assert_eq!(missing.get("x", 9).await.unwrap(), None);
}
