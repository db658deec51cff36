//! Limits over the wire: who is refused when, in which words, with which headers, and what may be changed meanwhile.

use promptq_tests::fake::Fake;
use promptq_tests::fake::allowance::Dimension;
use serde_json::Value;

use super::raw::{Raw, post, send};
use super::{CHAT, MESSAGES, chat, contents, fake, message};

const GEMINI: &str = "/v1beta/models/gemini-2.5-pro:generateContent";

async fn statuses(fake: &Fake, path: &str, key: &str, body: &Value, calls: usize) -> Vec<u16> {
    let mut seen = Vec::new();
    for _ in 0..calls {
        seen.push(post(fake, path, key, body).await.status);
    }
    seen
}

#[tokio::test]
async fn openai_tells_its_limits_and_charges_what_a_call_may_come_to() {
    let fake = fake("minute = \"30s\"\n[[limits]]\nminute = { requests = 10, tokens = 250 }");
    let first = post(&fake, CHAT, "k", &chat("x")).await;
    assert_eq!(first.header("x-ratelimit-limit-requests"), Some("10"));
    assert_eq!(first.header("x-ratelimit-remaining-requests"), Some("9"));
    assert_eq!(first.header("x-ratelimit-remaining-tokens"), Some("149"), "1 in, 100 allowed");
    assert!(first.header("x-ratelimit-reset-tokens").unwrap().ends_with('s'));
    assert_eq!(post(&fake, CHAT, "k", &chat("x")).await.status, 200);
    let third = post(&fake, CHAT, "k", &chat("x")).await;
    assert_eq!((third.status, &third.json()["error"]["code"]), (429, &"rate_limit_exceeded".into()));
    assert!(third.header("retry-after-ms").unwrap().parse::<u64>().unwrap() > 20_000);
    assert!(third.json()["error"]["message"].as_str().unwrap().contains("Limit 250, Used 202, Requested 101"));
    assert_eq!(third.header("x-ratelimit-remaining-requests"), Some("7"), "a refused call counts as a request");
    let mut large = chat("x");
    large["max_tokens"] = 300.into();
    let never = post(&fake, CHAT, "k", &large).await;
    assert!(never.body.contains("Request too large") && never.header("retry-after").is_none(), "{never:?}");
    assert_eq!(fake.calls(0)[2].limit.unwrap().0, Dimension::Tokens);
}

#[tokio::test]
async fn a_call_that_is_none_counts_where_failed_ones_do() {
    let listed = "only_listed_models = true\n[[models]]\nname = \"gpt-4o*\"\n[[models]]\nname = \"claude-*\"\n";
    let fake = fake(&format!("{listed}[accounts]\nk = \"k\"\n[[limits]]\nminute = {{ requests = 2 }}"));
    let (empty, mut unlisted) = (serde_json::json!({ "model": "gpt-4o" }), chat("x"));
    unlisted["model"] = "gpt-5".into();
    assert_eq!(statuses(&fake, CHAT, "wrong", &unlisted, 3).await, [401; 3], "nobody's");
    assert_eq!(statuses(&fake, CHAT, "k", &unlisted, 3).await, [404, 404, 429]);
    assert_eq!(statuses(&fake, CHAT, "k", &empty, 3).await, [400, 400, 429]);
    assert_eq!(statuses(&fake, CHAT, "k", &"no object".into(), 3).await, [400; 3], "no model's");
    let nothing = serde_json::json!({ "model": "claude-sonnet-4" });
    assert_eq!(statuses(&fake, MESSAGES, "k", &nothing, 3).await, [400; 3]);
    let (calls, bill) = (fake.calls(0), fake.bill());
    assert_eq!((calls.len(), bill.total.calls, bill.total.by_end["refused"]), (15, 15, 15));
    assert_eq!((calls[5].model.as_str(), calls[5].limit.unwrap().0), ("gpt-5", Dimension::Requests));
    assert_eq!((calls[6].model.as_str(), calls[6].limit), ("gpt-4o", None));
}

#[tokio::test]
async fn anthropic_counts_what_it_reads_and_what_it_writes() {
    let config = "[answer]\noutput = { fixed = 30 }\n[[limits]]\nminute = { requests = 9, input_tokens = 5, output_tokens = 60 }";
    let fake = fake(config);
    let first = post(&fake, MESSAGES, "k", &message("x")).await;
    assert_eq!(first.header("anthropic-ratelimit-input-tokens-remaining"), Some("4"));
    assert_eq!(first.header("anthropic-ratelimit-output-tokens-remaining"), Some("60"), "max_tokens is not charged");
    assert!(first.header("anthropic-ratelimit-requests-reset").unwrap().ends_with('Z'));
    assert_eq!(statuses(&fake, MESSAGES, "k", &message("x"), 2).await, [200, 429], "60 tokens were written");
    let refused = post(&fake, MESSAGES, "k", &message("x")).await;
    assert_eq!(refused.json()["error"]["type"], "rate_limit_error");
    assert!(refused.json()["error"]["message"].as_str().unwrap().contains("output tokens per minute"));
    assert!(refused.header("retry-after").unwrap().parse::<u64>().unwrap() >= 50);
    assert_eq!(refused.header("anthropic-ratelimit-requests-remaining"), Some("7"), "a refused call does not count");
}

#[tokio::test]
async fn gemini_tells_nothing_but_the_quota_and_the_wait() {
    let fake = fake("[[limits]]\nday = { requests = 1 }");
    assert_eq!(post(&fake, GEMINI, "k", &contents("x")).await.status, 200);
    let refused = post(&fake, GEMINI, "k", &contents("x")).await;
    assert!(!refused.head.contains("ratelimit") && !refused.head.contains("retry-after"), "{refused:?}");
    let error = &refused.json()["error"];
    assert_eq!(error["details"][0]["violations"][0]["quotaId"], "GenerateRequestsPerDayPerProjectPerModel");
    assert!(error["details"][1]["retryDelay"].as_str().unwrap().starts_with("86"));
}

#[tokio::test]
async fn accounts_and_families_have_windows_of_their_own_unless_they_share() {
    let of = |model: &str| {
        let mut body = chat("x");
        body["model"] = model.into();
        body
    };
    let apart = fake("[[limits]]\nminute = { requests = 1 }");
    for (key, model, status) in
        [("a", "gpt-4o-2024-08-06", 200), ("a", "gpt-4o-latest", 429), ("a", "o3", 200), ("b", "gpt-4o", 200)]
    {
        assert_eq!(post(&apart, CHAT, key, &of(model)).await.status, status, "{key} {model}");
    }
    let shared = fake("[[limits]]\nmodel = \"gpt-*\"\nshared = true\nminute = { requests = 1 }");
    for (model, status) in [("gpt-4o", 200), ("gpt-5", 429), ("o3", 200)] {
        assert_eq!(post(&shared, CHAT, "a", &of(model)).await.status, status, "{model}");
    }
}

#[tokio::test]
async fn a_window_slides() {
    let fake = fake("minute = \"400ms\"\n[[limits]]\nminute = { requests = 1 }\ncount_failed = false");
    assert_eq!(statuses(&fake, CHAT, "k", &chat("x"), 2).await, [200, 429]);
    let began = std::time::Instant::now();
    while post(&fake, CHAT, "k", &chat("x")).await.status == 429 {
        assert!(began.elapsed().as_secs() < 20, "it never let go");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let calls = fake.calls(0);
    let in_time: Vec<_> = calls.iter().filter(|call| call.status == 200).map(|call| call.started_ms).collect();
    assert!(in_time[1] - in_time[0] >= 399, "{in_time:?}");
}

#[tokio::test]
async fn headers_can_be_missing_or_empty_and_waits_untold() {
    let told = async |how: &str| -> Raw {
        let fake = fake(&format!("[[limits]]\nminute = {{ requests = 1 }}\n{how}"));
        post(&fake, CHAT, "k", &chat("x")).await;
        post(&fake, CHAT, "k", &chat("x")).await
    };
    let silent = told("headers = \"none\"\nretry_after = \"none\"").await;
    assert!(silent.status == 429 && !silent.head.contains("ratelimit") && !silent.head.contains("retry-after"));
    assert!(!silent.body.contains("try again"), "{silent:?}");
    assert_eq!(told("headers = \"minus_one\"").await.header("x-ratelimit-remaining-tokens"), Some("-1"));
    assert!(told("retry_after = \"date\"").await.header("retry-after").unwrap().ends_with("GMT"));
    let seconds = told("retry_after = \"seconds\"").await;
    assert!(seconds.header("retry-after").is_some() && seconds.header("retry-after-ms").is_none());
}

#[tokio::test]
async fn limits_change_while_it_runs_told_and_untold() {
    let fake = fake("[[limits]]\nminute = { requests = 8 }");
    let set = async |limit: &str| {
        let body = format!(r#"{{"limits":[{limit}]}}"#);
        let request =
            format!("POST /fake/limits HTTP/1.1\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        send(&fake, &request).await
    };
    assert_eq!(post(&fake, CHAT, "k", &chat("x")).await.header("x-ratelimit-remaining-requests"), Some("7"));
    assert_eq!(set(r#"{"minute":{"requests":8},"announced":0.5}"#).await.status, 200);
    let halved = post(&fake, CHAT, "k", &chat("x")).await;
    assert_eq!(halved.header("x-ratelimit-limit-requests"), Some("4"));
    assert_eq!(halved.header("x-ratelimit-remaining-requests"), Some("2"), "what was used stays used");
    assert_eq!(set(r#"{"minute":{"requests":8},"enforced":0.25}"#).await.status, 200);
    let refused = post(&fake, CHAT, "k", &chat("x")).await;
    assert_eq!((refused.status, refused.header("x-ratelimit-limit-requests")), (429, Some("8")));
    assert_eq!(set(r#"{"minutes":{}}"#).await.status, 400);
}

#[tokio::test]
async fn money_runs_out_in_each_providers_words() {
    let config = "[[models]]\nname = \"*\"\noutput = \"1000\"\n[[limits]]\nusd = \"0.03\"";
    let fake = fake(config);
    assert_eq!(statuses(&fake, CHAT, "a", &chat("x"), 3).await, [200, 200, 429]);
    assert_eq!(post(&fake, CHAT, "a", &chat("x")).await.json()["error"]["code"], "insufficient_quota");
    statuses(&fake, MESSAGES, "b", &message("x"), 2).await;
    let refused = post(&fake, MESSAGES, "b", &message("x")).await;
    assert_eq!(refused.json()["error"]["details"]["error_code"], "enforced_spend_limit_reached");
    assert!(refused.header("retry-after").is_none());
}

#[tokio::test]
async fn calls_at_once_are_limited_and_make_room_when_they_end() {
    let fake = fake("[latency]\nfirst = { fixed = \"600ms\" }\n[[limits]]\nconcurrent = 2");
    let body = message("x");
    let (one, two, three) = tokio::join!(
        post(&fake, MESSAGES, "k", &body),
        post(&fake, MESSAGES, "k", &body),
        post(&fake, MESSAGES, "k", &body)
    );
    let mut statuses = [one.status, two.status, three.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 429]);
    assert_eq!(post(&fake, MESSAGES, "k", &body).await.status, 200);
}
