//! Bytes from a broker and lines from a file: whatever they hold, reading them gives a value or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use promptq_common::codec;
use promptq_common::line::Line;
use promptq_common::result_line::result_line;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(job) = codec::decode_job(bytes) {
        // What was read can be written, and means the same when read again.
        let bytes = codec::encode_job(&job).expect("a job that fit before fits again");
        let again = codec::decode_job(&bytes).expect("our own bytes");
        assert_eq!(codec::encode_job(&again).expect("the same job"), bytes);
    }
    if let Ok(record) = codec::decode_record(bytes) {
        let line = result_line(&record, None);
        assert!(!line.contains('\n'), "a result is one line");
    }
    drop(codec::decode_history(bytes));
    if let Ok(text) = std::str::from_utf8(bytes) {
        drop(Line::parse(text));
    }
});
