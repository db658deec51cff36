//! What tests of every provider share: the reading of an answer, and the table of failure classes, row by row.

use std::time::Duration;

use promptq_common::config::Api;
use promptq_common::outcome::{Failure, FailureClass, Reply};
use promptq_common::time::Timestamp;

use super::{Endpoint, Read, Refusal, classify, read};

/// The moment at which every row is read.
pub(super) const NOW: &str = "2026-11-21T09:14:07.000Z";

/// One row: status, headers and body as they come, then class, code and the seconds asked for.
pub(super) type Row<'a> = (u16, &'a [(&'static str, &'a str)], &'a str, FailureClass, &'a str, Option<f64>);

/// The reply that a 200 with this body is.
#[track_caller]
pub(super) fn answered(endpoint: Endpoint, body: &str) -> Reply {
    match read(endpoint, b"", 200, body.as_bytes().to_vec()) {
        Read::Answer(reply) => *reply,
        odd @ (Read::Failed | Read::Garbage) => panic!("{odd:?}"),
    }
}

/// What becomes of an answer with these headers and this body.
pub(super) fn classed(api: Api, status: u16, headers: &[(&'static str, &str)], body: &str) -> Failure {
    let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
    let now: Timestamp = NOW.parse().unwrap();
    classify(api, Refusal { status, headers: &headers, body: body.as_bytes() }, &[], now)
}

/// Reads every row.
#[track_caller]
pub(super) fn hold(api: Api, rows: &[Row<'_>]) {
    for &(status, headers, body, class, code, wait) in rows {
        let failure = classed(api, status, headers, body);
        let got = (failure.class, failure.code.as_str(), failure.retry_after.map(|wait: Duration| wait.as_secs_f64()));
        assert_eq!(got, (class, code, wait), "{} {status} {headers:?} {body}", api.as_str());
    }
}
