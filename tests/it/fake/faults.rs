//! Every fault of delivery as it shows on the wire, and how faults are set while it runs.

use promptq_tests::fake::Fake;
use promptq_tests::fake::fault::FaultRule;
use promptq_tests::fake::kind::Kind;
use promptq_tests::fake::ledger::End;
use serde_json::{Value, json};

use super::raw::{Raw, get, post, post_in_vain, send};
use super::{CHAT, MESSAGES, chat, fake, message, streamed};

const PRICED: &str = "[[models]]\nname = \"*\"\ninput = \"1\"\noutput = \"1\"\n[answer]\noutput = { fixed = 32 }";

fn with(kind: Kind) -> Fake {
    let fake = fake(PRICED);
    fake.set_faults(&[FaultRule::new(kind)]).unwrap();
    fake
}

/// A call that this fault strikes, whole and as a stream: what came, and how it was written down.
async fn struck(kind: Kind, stream: bool) -> (Raw, End, u16, bool) {
    let fake = with(kind);
    let body = if stream { streamed(message("x")) } else { message("x") };
    let said = if matches!(kind, Kind::Silent | Kind::Stalled) {
        post_in_vain(&fake, MESSAGES, "k", &body).await
    } else {
        post(&fake, MESSAGES, "k", &body).await
    };
    // Whoever hangs up is noticed a moment later.
    let began = std::time::Instant::now();
    while fake.calls(0).is_empty() {
        assert!(began.elapsed().as_secs() < 10, "the call was never written down");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let call = fake.calls(0).remove(0);
    assert_eq!(call.fault, Some(kind.name()));
    (said, call.end, call.status, call.usd.unwrap().as_nanos() > 0)
}

#[tokio::test]
async fn connections_are_cut_where_the_fault_says() {
    for stream in [false, true] {
        let (said, end, status, is_billed) = struck(Kind::CutBeforeHeaders, stream).await;
        assert!(said.head.is_empty() && said.has_ended, "{said:?}");
        assert_eq!((end, status, is_billed), (End::Broken, 0, true));
        let (said, end, status, _) = struck(Kind::CutInHeaders, stream).await;
        assert!(said.head.starts_with("HTTP/1.1 200") && said.status == 0 && said.has_ended, "{said:?}");
        assert_eq!((end, status), (End::Broken, 0));
        let (said, end, status, is_billed) = struck(Kind::CutInBody, stream).await;
        assert!(said.status == 200 && !said.body.is_empty() && !said.is_whole && said.has_ended, "{said:?}");
        assert_eq!((end, status, is_billed), (End::Broken, 200, true));
    }
}

#[tokio::test]
async fn connections_stay_and_nothing_comes() {
    for stream in [false, true] {
        let (said, end, status, is_billed) = struck(Kind::Silent, stream).await;
        assert!(said.head.is_empty() && !said.has_ended, "{said:?}");
        assert_eq!((end, status, is_billed), (End::Broken, 0, false));
        let (said, end, ..) = struck(Kind::Stalled, stream).await;
        assert!(said.status == 200 && !said.body.is_empty() && !said.is_whole && !said.has_ended, "{said:?}");
        assert_eq!(end, End::Broken);
    }
}

#[tokio::test]
async fn answers_are_whole_to_http_and_to_nobody_else() {
    let (said, end, ..) = struck(Kind::MalformedJson, false).await;
    assert!(said.is_whole && serde_json::from_str::<Value>(&said.body).is_err(), "{said:?}");
    assert_eq!(end, End::Broken);
    let (said, ..) = struck(Kind::MalformedJson, true).await;
    let events = said.events();
    assert!(said.is_whole && serde_json::from_str::<Value>(&events.last().unwrap().1).is_err(), "{said:?}");
    for stream in [false, true] {
        let (said, ..) = struck(Kind::EmptyBody, stream).await;
        assert!(said.status == 200 && said.is_whole && said.body.is_empty(), "{said:?}");
    }
}

#[tokio::test]
async fn an_error_comes_after_a_200() {
    let (said, end, status, is_billed) = struck(Kind::ErrorInside, false).await;
    assert_eq!((said.status, &said.json()["error"]["type"]), (200, &json!("overloaded_error")));
    assert_eq!((end, status, is_billed), (End::Broken, 200, false));
    let (said, ..) = struck(Kind::ErrorInside, true).await;
    let events = said.events();
    assert!(events.iter().any(|(name, _)| name == "content_block_delta"), "{events:?}");
    let (name, data) = events.last().unwrap();
    assert!(name == "error" && data.contains("overloaded_error"), "{events:?}");
    let fake = fake("[[faults]]\nkind = \"error_inside\"\ninner = \"server_error\"");
    let said = post(&fake, CHAT, "k", &streamed(chat("x"))).await;
    assert!(said.events().last().unwrap().1.contains("server_error"));
}

#[tokio::test]
async fn an_answer_may_be_refused_or_late() {
    let (said, end, ..) = struck(Kind::RefusedAnswer, false).await;
    assert_eq!((&said.json()["stop_reason"], end), (&json!("refusal"), End::Answered));
    let fake = fake("[[faults]]\nkind = \"slow\"\ndelay = \"150ms\"");
    let began = std::time::Instant::now();
    assert_eq!(post(&fake, CHAT, "k", &chat("x")).await.status, 200);
    assert!(began.elapsed().as_millis() >= 150);
}

#[tokio::test]
async fn a_storm_comes_and_goes_and_spares_others() {
    let fake = fake("[[faults]]\nkind = \"overloaded\"\nfirst = 3\nmodel = \"claude-*\"");
    let mut seen = Vec::new();
    for _ in 0..5 {
        seen.push(post(&fake, MESSAGES, "k", &message("x")).await.status);
        assert_eq!(post(&fake, CHAT, "k", &chat("x")).await.status, 200);
    }
    assert_eq!(seen, [529, 529, 529, 200, 200]);
}

#[tokio::test]
async fn faults_are_set_and_told_while_it_runs() {
    let fake = fake("");
    let set = |body: &str| {
        let length = body.len();
        format!("POST /fake/faults HTTP/1.1\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}")
    };
    let rule = r#"{"faults":[{"kind":"conflict","contains":"MARK"}]}"#;
    assert_eq!(send(&fake, &set(rule)).await.json()["faults"][0]["kind"], "conflict");
    assert_eq!(get(&fake, "/fake/faults").await.json()["faults"][0]["contains"], "MARK");
    assert_eq!(post(&fake, CHAT, "k", &chat("with a MARK in it")).await.status, 409);
    assert_eq!(post(&fake, CHAT, "k", &chat("without")).await.status, 200);
    let wrong = send(&fake, &set(r#"{"faults":[{"kind":"conflict","share":7}]}"#)).await;
    assert!(wrong.status == 400 && wrong.body.contains("share 7"), "{wrong:?}");
    assert_eq!(send(&fake, &set(r#"{"faults":[]}"#)).await.status, 200);
    assert_eq!(post(&fake, CHAT, "k", &chat("with a MARK in it")).await.status, 200);
}
