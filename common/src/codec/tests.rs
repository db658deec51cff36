//! Bytes once written stay readable; bytes never written do no harm.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::broker::LeaseId;
use crate::job::{BatchName, Extras, JobId, Priority};
use crate::limits::{Amounts, Ask, Cap, Doubt, Heard, Measure, Per, Portion};
use crate::outcome::{Attempt, Body, CostSource, Detail, FailureClass, Origin, Usage, Usd};
use crate::record::{Answer, Cause, End, Output, Stored};
use crate::work::{Input, Prompt, Work};

fn job() -> Job {
    let prompt =
        Prompt { text: "Grüße ☂".into(), system: Some("short".into()), params: r#"{"max_tokens":64}"#.into() };
    let work = Work { model: Some("mock".into()), input: Input::Prompt(prompt) };
    let mut job = Job::new(Queue::new("bulk").unwrap(), work);
    job.id = JobId::from_bytes([3; 16]);
    job.priority = Priority::new(9).unwrap();
    job.batch = Some(BatchName::new("nov").unwrap());
    job.row = Some(300);
    job.custom_id = Some("r-300".into());
    job.tenant = Some("acme".into());
    job.tags = BTreeMap::from([("run".into(), "42".into())]);
    job.not_before = Some(Timestamp::from_millis(1_763_716_447_123));
    job.deadline = Timestamp::from_millis(1_764_321_247_123);
    job.created_at = Timestamp::from_millis(1_763_716_447_000);
    job.policy.timeout = Duration::from_millis(1_500);
    job.keyed = true;
    job
}

fn history() -> History {
    let mut history = History::default();
    history.push(Attempt {
        n: 1,
        worker: "w-1".into(),
        started_at: Timestamp::from_millis(10),
        ended_at: Timestamp::from_millis(20),
        class: Some(FailureClass::UnknownBilled),
        code: Some("cut".into()),
        detail: Some("cut after it was sent".into()),
        status_code: Some(502),
        usage: Usage { input_tokens: 1, output_tokens: 2, cached_tokens: 3, reasoning_tokens: 4 },
        cost: Some(Usd::from_nanos(26_600)),
    });
    history
}

fn record(end: End, output: Option<Output>) -> Record {
    let job = job();
    Record {
        id: job.id,
        epoch: 1,
        end,
        queue: job.queue,
        batch: job.batch,
        row: job.row,
        custom_id: job.custom_id,
        tenant: job.tenant,
        tags: job.tags,
        model: job.work.model,
        cause: output.is_none().then(|| Cause {
            class: Some(FailureClass::Fatal),
            code: "exit_1".into(),
            detail: "it broke".into(),
            status_code: None,
        }),
        answer: output.map(|output| Answer {
            status_code: 200,
            request_id: Some("req_1".into()),
            model: Some("mock-1".into()),
            finish_reason: Some("stop".into()),
            output,
            detail: None,
            origin: None,
        }),
        attempts: 2,
        history: history(),
        lease: LeaseId::from_bytes([9; 16]),
        worker: Some("w-1".into()),
        created_at: job.created_at,
        started_at: Some(Timestamp::from_millis(30)),
        ended_at: Timestamp::from_millis(40),
        trace: None,
    }
}

fn stored() -> Output {
    Output::Stored(Stored { key: "out/a/b".into(), sha256: "00ff".into(), bytes: 812, json: true })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

#[test]
fn every_version_ever_written_reads_as_it_did() {
    let inline = record(End::Succeeded, Some(Output::Inline(Body::Json("{}".into()))));
    let mut request = job();
    request.work.input = Input::Request { url: "/v1/responses".into(), body: "{}".into() };
    let golden = [
        ("job v1, prompt", hex(&encode_job(&job()).unwrap()), include_str!("../../golden/job-v1-prompt.hex")),
        ("job v1, request", hex(&encode_job(&request).unwrap()), include_str!("../../golden/job-v1-request.hex")),
        ("record v1, inline", hex(&encode_record(&inline).unwrap()), include_str!("../../golden/record-v1-inline.hex")),
        (
            "record v1, stored",
            hex(&encode_record(&record(End::Succeeded, Some(stored()))).unwrap()),
            include_str!("../../golden/record-v1-stored.hex"),
        ),
        (
            "record v1, dead",
            hex(&encode_record(&record(End::Dead, None)).unwrap()),
            include_str!("../../golden/record-v1-dead.hex"),
        ),
        ("history v1", hex(&encode_history(&history()).unwrap()), include_str!("../../golden/history-v1.hex")),
    ];
    let changed: Vec<_> = golden.iter().filter(|(_, bytes, kept)| bytes != kept.trim()).collect();
    assert!(changed.is_empty(), "a change of shape needs a new version byte: {changed:#?}");
    assert_eq!(decode_job(&encode_job(&request).unwrap()).unwrap(), request);
    assert_eq!(decode_record(&encode_record(&inline).unwrap()).unwrap(), inline);
    assert_eq!(decode_history(&encode_history(&history()).unwrap()).unwrap(), history());
}

/// A record whose answer has what else a provider may say.
fn detailed() -> Record {
    let mut record = record(End::Succeeded, Some(Output::Inline(Body::Json("{}".into()))));
    let detail = Detail {
        cache_write_tokens: 700,
        service_tier: Some("flex".into()),
        first_piece: Some(Duration::from_millis(412)),
    };
    record.answer.as_mut().unwrap().detail = Some(Box::new(detail));
    record
}

#[test]
fn what_else_was_said_of_an_answer_follows_a_record_of_the_first_version() {
    let bytes = encode_record(&detailed()).unwrap();
    assert_eq!(decode_record(&bytes).unwrap(), detailed());
    let golden = include_str!("../../golden/record-v2-detail.hex");
    assert_eq!(hex(&bytes), golden.trim(), "a change of shape needs a new version byte");
    let mut without = detailed();
    without.answer.as_mut().unwrap().detail = None;
    let plain = encode_record(&without).unwrap();
    assert_eq!((plain[0], &plain[1..]), (1, &bytes[1..plain.len()]), "nothing more where nothing was said");
    for wrong in [&bytes[..bytes.len() - 1], &[&bytes[..], &[0]].concat(), &bytes[..plain.len()]] {
        assert_eq!(decode_record(wrong).unwrap_err().kind(), Kind::Corrupt);
    }
    // Only an answer has such details.
    let mut dead = encode_record(&record(End::Dead, None)).unwrap();
    dead[0] = 2;
    dead.extend_from_slice(&bytes[plain.len()..]);
    assert_eq!(decode_record(&dead).unwrap_err().kind(), Kind::Corrupt);
}

#[test]
fn where_an_answer_is_from_follows_with_or_without_what_else_was_said_of_it() {
    let origin = Origin {
        route: Some("acme/fast-2".into()),
        cost_source: Some(CostSource::PriceTable),
        price_as_of: Some("2026-11-03".into()),
        reused_from: Some(JobId::from_bytes([7; 16])),
    };
    let mut whole = detailed();
    whole.answer.as_mut().unwrap().origin = origin.kept();
    let mut bare = whole.clone();
    bare.answer.as_mut().unwrap().detail = None;
    let bytes = encode_record(&whole).unwrap();
    let golden = include_str!("../../golden/record-v3-origin.hex");
    assert_eq!(hex(&bytes), golden.trim(), "a change of shape needs a new version byte");
    for record in [whole, bare] {
        let bytes = encode_record(&record).unwrap();
        assert_eq!(decode_record(&bytes).unwrap(), record);
        assert_eq!(decode_record(&bytes[..bytes.len() - 1]).unwrap_err().kind(), Kind::Corrupt);
        assert_eq!(decode_record(&[&bytes[..], &[0]].concat()).unwrap_err().kind(), Kind::Corrupt);
    }
}

#[test]
fn what_only_some_jobs_ask_for_follows_a_job_of_the_first_version() {
    let mut asking = job();
    let extras = Extras {
        reuse: Some(Duration::from_secs(86_400)),
        max_cost: Some(Usd::from_nanos(10_000_000)),
        batch_max_cost: Some(Usd::from_nanos(25_000_000_000)),
    };
    asking.extras = extras.kept();
    let (bytes, plain) = (encode_job(&asking).unwrap(), encode_job(&job()).unwrap());
    assert_eq!(decode_job(&bytes).unwrap(), asking);
    assert_eq!(asking.fingerprint(), job().fingerprint(), "it asks for the same");
    let golden = include_str!("../../golden/job-v2-extras.hex");
    assert_eq!(hex(&bytes), golden.trim(), "a change of shape needs a new version byte");
    assert_eq!((plain[0], &plain[1..]), (1, &bytes[1..plain.len()]), "nothing more where nothing is asked");
    for wrong in [&bytes[..bytes.len() - 1], &[&bytes[..], &[0]].concat(), &bytes[..plain.len()]] {
        assert_eq!(decode_job(wrong).unwrap_err().kind(), Kind::Corrupt);
    }
}

#[test]
fn how_often_a_job_may_be_repaired_follows_with_or_without_what_else_it_asks_for() {
    let mut bare = job();
    bare.policy.repair_attempts = 2;
    let whole =
        Job { extras: Extras { reuse: Some(Duration::from_secs(9)), ..Extras::default() }.kept(), ..bare.clone() };
    let golden = include_str!("../../golden/job-v3-repairs.hex");
    assert_eq!(hex(&encode_job(&whole).unwrap()), golden.trim(), "a change of shape needs a new version byte");
    assert_eq!(whole.fingerprint(), job().fingerprint(), "it asks for the same");
    let plain = encode_job(&job()).unwrap();
    for job in [whole, bare] {
        let bytes = encode_job(&job).unwrap();
        assert_eq!(decode_job(&bytes).unwrap(), job);
        assert_eq!((bytes[0], &bytes[1..plain.len()]), (3, &plain[1..]));
        for wrong in [&bytes[..bytes.len() - 1], &[&bytes[..], &[0]].concat(), &bytes[..plain.len()]] {
            assert_eq!(decode_job(wrong).unwrap_err().kind(), Kind::Corrupt);
        }
    }
}

#[test]
fn a_payload_in_json_is_a_job_line() {
    let job = decode_job(br#"{"prompt":"Hi","promptq":{"priority":1}}"#).unwrap();
    assert_eq!((job.queue.as_str(), job.priority.get()), ("default", 1));
    let error = decode_job(br#"{"prompt":"secret","nope":1}"#).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(!error.to_string().contains("secret"));
}

#[test]
fn a_wrong_version_an_excess_byte_and_a_giant_are_refused() {
    let mut bytes = encode_job(&job()).unwrap();
    bytes.push(0);
    assert_eq!(decode_job(&bytes).unwrap_err().kind(), Kind::Corrupt);
    bytes[0] = 5;
    assert!(decode_job(&bytes).unwrap_err().to_string().contains("version 5"));
    assert_eq!(decode_job(&[]).unwrap_err().kind(), Kind::Corrupt);
    assert_eq!(decode_job(&vec![1; MAX_BYTES + 1]).unwrap_err().kind(), Kind::TooLarge);
    let mut giant = job();
    giant.work = Work::prompt(None, "x".repeat(MAX_BYTES));
    assert_eq!(encode_job(&giant).unwrap_err().kind(), Kind::TooLarge);
}

/// Two workers of a key, the first gone without a word; heard of, refused, released and set.
fn pool() -> Pool {
    let cap = |measure, per, most| Cap { measure, per, most };
    let caps = vec![
        cap(Measure::Requests, Per::Minute, 600),
        cap(Measure::Usd, Per::Day, 20),
        cap(Measure::Concurrent, Per::Moment, 9),
    ];
    let amounts = Amounts { usd: 7, ..Amounts::call(900, 300) };
    let portion = Portion { amounts, doubt: Doubt { input: 2.5, output: 400.0 } };
    let heard = Heard { measure: Measure::Requests, per: Per::Minute, most: 500, left: Some(20) };
    let ask = |id, seq, refused| Ask {
        caps: caps.clone(),
        adaptive: true,
        spent: vec![(125, amounts)],
        held: portion,
        want: portion,
        least: portion,
        heard: vec![(0, heard)],
        heard_of: vec!["acme/fast".into()],
        ..Ask { id, seq, refused, ..Ask::default() }
    };
    let mut pool = Pool::default();
    pool.ask(1_000_000, &ask(1, 1, None));
    pool.release(1_020_000);
    pool.ask(1_030_000, &ask(2, 9, Some((0, 5_000))));
    pool.set(1_030_100, Measure::Tokens, Per::Day, Some(1_000_000));
    pool
}

#[test]
fn the_state_of_a_limit_reads_as_it_was_written() {
    let bytes = encode_pool(&pool()).unwrap();
    let golden = include_str!("../../golden/pool-v1.hex");
    assert_eq!(hex(&bytes), golden.trim(), "a change of shape needs a new version byte");
    assert_eq!(decode_pool(&bytes).unwrap(), pool());
    assert_eq!(decode_pool(&[]).unwrap(), Pool::default());
}

/// The most memory this process ever held, in KiB.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_length_that_lies_takes_no_memory() {
    let before = peak_kib();
    let honest = encode_record(&record(End::Dead, None)).unwrap();
    for at in 1..honest.len() {
        // 253: an eight-byte length follows.
        let mut lie = honest[..at].to_vec();
        lie.push(253);
        lie.extend([0xff; 7]);
        lie.extend([0; 40]);
        assert!(decode_record(&lie).is_err() && decode_job(&lie).is_err() && decode_history(&lie).is_err());
    }
    assert!(peak_kib() - before < 4 * (MAX_BYTES as u64 / 1024), "{} KiB", peak_kib() - before);
}

proptest! {
    #[test]
    fn no_bytes_at_all_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..400), first in 0..4u8) {
        if let Some(byte) = bytes.first_mut() {
            *byte = [*byte, 1, b'{', 0][usize::from(first)];
        }
        let _job = decode_job(&bytes);
        let _record = decode_record(&bytes);
        let _history = decode_history(&bytes);
    }

    #[test]
    fn a_flipped_byte_is_an_error_or_another_value(at in 0..500usize, byte in any::<u8>()) {
        for record in [record(End::Succeeded, Some(stored())), detailed()] {
            let mut bytes = encode_record(&record).unwrap();
            let at = at % bytes.len();
            bytes[at] = byte;
            let _record = decode_record(&bytes);
        }
    }

    #[test]
    fn a_limit_whose_bytes_were_flipped_is_an_error_or_another_that_can_be_asked(at in 0..500usize, byte in any::<u8>()) {
        let mut bytes = encode_pool(&pool()).unwrap();
        let at = at % bytes.len();
        bytes[at] = byte;
        if let Ok(mut pool) = decode_pool(&bytes) {
            let amounts = Amounts { usd: 7, ..Amounts::call(900, 300) };
            let portion = Portion { amounts, doubt: Doubt::default() };
            let _answers = [1, 2].map(|id| pool.ask(2_000_000, &Ask { id, want: portion, least: portion, ..Ask::default() }));
            pool.view(2_000_000);
        }
    }

    #[test]
    fn no_text_makes_a_line_panic(text in r#"\{("(prompt|promptq|id|tags|url|body)":("[a-z]{0,3}"|[0-9]{1,3}|\{\}|null),?){0,4}\}?"#) {
        let _line = Line::parse(&text);
    }
}

#[test]
fn a_place_in_a_trace_stands_before_everything_else_and_only_where_there_is_one() {
    let place = Context::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").unwrap();
    let plain = encode_job(&job()).unwrap();
    let bytes = encode_job(&Job { trace: Some(place), ..job() }).unwrap();
    assert_eq!((bytes[0], &bytes[1..26], &bytes[26..]), (4, &place.to_bytes()[..], &plain[..]));
    assert_eq!((place_of(&bytes), place_of(&plain), place_of(&[])), (Some(place), None, None));
    let read = decode_job(&bytes).unwrap();
    assert_eq!((read.trace, read.fingerprint()), (Some(place), job().fingerprint()), "it asks for the same");
    assert_eq!(Job { trace: None, ..read }, job());
    let line = [&bytes[..26], br#"{"prompt":"hi"}"#].concat();
    assert_eq!(decode_job(&line).unwrap().trace, Some(place), "whoever wrote the job");

    let record = Record { trace: Some(place), ..detailed() };
    let told = encode_record(&record).unwrap();
    assert_eq!((told[0], &told[26..]), (4, &encode_record(&detailed()).unwrap()[..]));
    assert_eq!(decode_record(&told).unwrap(), record);
    for record in [record, Record { trace: Some(place), ..self::record(End::Dead, None) }] {
        let part = encode_account("test", &(7_u8, &record), Some(&record)).unwrap();
        let read: (u8, Record) = decode_account("test", &part, |(_, record): &mut (u8, Record)| Some(record)).unwrap();
        assert_eq!(read, (7, record));
        let nowhere = decode_account::<(u8, Record)>("test", &part, |_| None);
        assert_eq!(nowhere.unwrap_err().kind(), Kind::Corrupt);
        for wrong in [&part[..part.len() - 1], &[&part[..], &[0]].concat()] {
            let read = decode_account("test", wrong, |(_, record): &mut (u8, Record)| Some(record));
            assert_eq!(read.unwrap_err().kind(), Kind::Corrupt);
        }
    }
    let twice = [&bytes[..26], &bytes].concat();
    let none = [&[4], &[0; 25][..], &plain].concat();
    for wrong in [&bytes[..20], &bytes[..26], &twice, &none] {
        assert_eq!(decode_job(wrong).unwrap_err().kind(), Kind::Corrupt);
    }
}
