//! The bill and the ledger add up, whatever was called, refused and broken.

use promptq_common::outcome::Usd;
use promptq_tests::fake::config::Config;
use promptq_tests::fake::ledger::{Call, End};
use promptq_tests::fake::{Fake, bill::Bill};
use tempfile::TempDir;

use super::raw::{get, post, send};
use super::{CHAT, MESSAGES, chat, fake, message, streamed};

const CONFIG: &str = r#"
[answer]
output = { uniform = [1, 60] }
cached = 0.3
[[models]]
name = "gpt-*"
input = "2.5"
cached = "1.25"
output = "10"
[[models]]
name = "claude-*"
input = "3"
output = "15"
[[limits]]
model = "claude-*"
minute = { requests = 12 }
[[faults]]
kind = "server_error"
every = 7
[[faults]]
kind = "cut_in_body"
every = 5
"#;

async fn mix(fake: &Fake) {
    for n in 0..40 {
        let text = "word ".repeat(n % 9 + 1);
        post(fake, CHAT, "a", &chat(&text)).await;
        post(fake, MESSAGES, "b", &streamed(message(&text))).await;
    }
}

fn sums(calls: &[Call]) -> (u64, u64, u64, Usd) {
    let mut sums = (0, 0, 0, Usd::default());
    for call in calls {
        sums.0 += call.input_tokens;
        sums.1 += call.output_tokens;
        sums.2 += u64::from(call.status == 429);
        sums.3 += call.usd.unwrap();
    }
    sums
}

fn told(bill: &Bill) -> (u64, u64, u64, Usd) {
    let total = &bill.total;
    let refused = total.by_status.get(&429).copied().unwrap_or(0);
    (total.input_tokens, total.output_tokens, refused, total.usd)
}

#[tokio::test]
async fn the_bill_is_the_sum_of_the_calls_and_of_its_lines() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("calls.jsonl");
    let config: Config = toml::from_str(CONFIG).unwrap();
    let fake = Fake::listen("127.0.0.1:0".parse().unwrap(), config, 3, Some(&path)).unwrap();
    mix(&fake).await;
    let (calls, bill) = (fake.calls(0), fake.bill());
    assert_eq!((calls.len(), bill.total.calls, bill.open), (80, 80, 0));
    assert_eq!(told(&bill), sums(&calls));
    let by_line: u64 = bill.lines.iter().map(|line| line.sums.output_tokens).sum();
    assert_eq!((bill.lines.len(), by_line), (2, bill.total.output_tokens));
    for kind in [200, 429, 500] {
        assert!(bill.total.by_status[&kind] > 0, "{kind}: {:?}", bill.total.by_status);
    }
    assert!(bill.total.by_end["broken"] > 0 && bill.total.usd > Usd::default());
    // By hand, from the rules: what was answered is paid for.
    for call in &calls {
        let expected = match (call.end, call.model.starts_with("gpt")) {
            (End::Refused, _) => 0,
            (_, true) => {
                (call.input_tokens - call.cached_tokens) * 2_500
                    + call.cached_tokens * 1_250
                    + call.output_tokens * 10_000
            }
            (_, false) => call.input_tokens * 3_000 + call.output_tokens * 15_000,
        };
        assert_eq!(call.usd, Some(Usd::from_nanos(i64::try_from(expected).unwrap())), "{call:?}");
    }
    let requests = bill.limits.iter().find(|line| line.limit == Some(12)).unwrap();
    assert_eq!((requests.highest, requests.highest_percent), (12, 100.0));
    let file = std::fs::read_to_string(&path).unwrap();
    let written: Vec<Call> = file.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(sums(&written), sums(&calls));
    assert!(!file.contains("word"), "prompts are not written down");
}

#[tokio::test]
async fn calls_are_read_from_a_number_on_and_forgotten_by_a_reset() {
    let fake = fake("calls_kept = 5\n[[limits]]\nminute = { requests = 8 }");
    for _ in 0..9 {
        post(&fake, CHAT, "a", &chat("x")).await;
    }
    let page = get(&fake, "/fake/calls?after=6").await.json();
    let numbers: Vec<_> = page["calls"].as_array().unwrap().iter().map(|call| call["n"].as_u64().unwrap()).collect();
    assert_eq!((numbers, page["next"].as_u64()), (vec![7, 8, 9], Some(9)));
    assert_eq!(get(&fake, "/fake/calls").await.json()["calls"].as_array().unwrap().len(), 5);
    assert_eq!(get(&fake, "/fake/bill").await.json()["total"]["by_status"]["429"], 1);
    let reset = send(&fake, "POST /fake/reset HTTP/1.1\r\nconnection: close\r\n\r\n").await;
    assert_eq!(reset.status, 200);
    assert_eq!(get(&fake, "/fake/bill").await.json()["total"]["calls"], 0);
    assert_eq!(post(&fake, CHAT, "a", &chat("x")).await.status, 200, "the windows are empty");
    assert_eq!(fake.calls(0)[0].n, 10, "numbers go on");
}

#[tokio::test]
async fn an_unknown_price_is_not_nothing() {
    let fake = fake("");
    post(&fake, CHAT, "a", &chat("x")).await;
    assert_eq!(fake.calls(0)[0].usd, None);
    assert_eq!(fake.bill().total.unpriced, 1);
}
