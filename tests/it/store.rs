//! The store against real S3 servers, started here on ports of their own.

use promptq_common::broker::LeaseId;
use promptq_common::error::Kind;
use promptq_common::job::JobId;
use promptq_common::outcome::Body;
use promptq_common::store::PutNew;
use promptq_tests::s3::{self, S3};

#[tokio::test]
async fn moto_keeps_outputs_small_and_in_parts() {
    keeps_outputs_small_and_in_parts(S3::moto().await).await;
}

#[tokio::test]
async fn s3s_keeps_outputs_small_and_in_parts() {
    keeps_outputs_small_and_in_parts(S3::s3s().await).await;
}

async fn keeps_outputs_small_and_in_parts(server: S3) {
    let store = server.store(&format!("{}/team a", server.bucket().await)).await;
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
async fn moto_creates_once_and_says_so() {
    creates_once_and_says_so(S3::moto().await).await;
}

#[tokio::test]
async fn s3s_creates_once_and_says_so() {
    creates_once_and_says_so(S3::s3s().await).await;
}

async fn creates_once_and_says_so(server: S3) {
    let store = server.store(&server.bucket().await).await;
    assert!(store.probe().await.unwrap(), "it honours If-None-Match");
    assert_eq!(store.put_new("ends/a%2Fb", b"1".to_vec()).await.unwrap(), PutNew::Ours);
    assert_eq!(store.put_new("ends/a%2Fb", b"1".to_vec()).await.unwrap(), PutNew::Ours);
    assert_eq!(store.put_new("ends/a%2Fb", b"2".to_vec()).await.unwrap(), PutNew::Theirs(b"1".to_vec()));
}

/// s3s-fs makes a bucket that it is written to.
#[tokio::test]
async fn a_bucket_that_is_not_there_is_told() {
    let server = S3::moto().await;
    let missing = server.store("s3://no-such-bucket").await;
    assert_eq!(missing.put("x", b"1".to_vec()).await.unwrap_err().kind(), Kind::Config);
    assert_eq!(missing.get("x", 9).await.unwrap(), None);
}

#[tokio::test]
async fn a_wrong_password_is_refused_and_not_said() {
    let server = S3::s3s().await;
    let url = server.bucket().await;
    let mut settings = server.settings();
    for (name, value) in &mut settings {
        if *name == "aws_secret_access_key" {
            "another-one".clone_into(value);
        }
    }
    let error = s3::open(&url, &settings).await.probe().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Denied, "{error}");
    assert!(!format!("{error:?}").contains("another-one"), "{error:?}");
    assert!(server.store(&url).await.probe().await.unwrap(), "with the right one it may");
}
