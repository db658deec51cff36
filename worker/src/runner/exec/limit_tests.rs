//! Programs that say what CLI agents say of their account's limit, and programs that only seem to.

use promptq_common::config::{Command as Named, LimitTexts};
use promptq_common::limits::account_of;
use promptq_common::outcome::FailureClass::{Account, Crashed, Transient};

use super::tests::{job, run, settings};
use super::*;

const HOUR: u64 = 3_600;

fn agent(limit_texts: Option<LimitTexts>, script: &str) -> Exec {
    // What a shell writes for "in two hours".
    let script = format!("at=$(($(date +%s) + 7200))\n{script}");
    let argv = ["sh", "-c", script.as_str()].map(str::to_owned).to_vec();
    Exec::named("agent", &Named { argv, limit_texts }, &settings()).unwrap()
}

/// Class, code and words of its failure, and the wait it asks for in whole hours.
async fn fails(
    limit_texts: Option<LimitTexts>,
    script: &str,
    prompt: &str,
) -> (FailureClass, String, String, Option<u64>) {
    let failure = run(&agent(limit_texts, script), prompt).await.expect_err(script);
    let hours = failure.retry_after.map(|wait| (wait.as_secs() + HOUR / 2) / HOUR);
    (failure.class, failure.code, failure.detail, hours)
}

async fn holds(limit_texts: LimitTexts, script: &str, words: &str, hours: Option<u64>) {
    let expected = (Account, "usage_limit".to_owned(), words.to_owned(), hours);
    assert_eq!(fails(Some(limit_texts), script, "Hi").await, expected, "{script}");
}

const CLAUDE: &str = r#"cat << END
{"type":"system","subtype":"init"}
{"type":"rate_limit_event","rate_limit_info":{"status":"rejected","resetsAt":$at,"rateLimitType":"five_hour"}}
{"type":"assistant","message":{"role":"assistant","content":[]}}
{"type":"result","subtype":"success","is_error":true,"api_error_status":429,"result":"You've hit your limit · resets soon"}
END"#;

#[tokio::test]
async fn the_last_words_of_a_failed_run_tell_of_a_limit() {
    let words = "You've hit your limit · resets soon";
    holds(LimitTexts::Text, &format!("echo \"{words}\"; exit 1"), words, None).await;
    let words =
        "ERROR: You\u{2019}ve hit your usage limit. Upgrade (https://x.example) or try again in 2 hours 10 minutes.";
    holds(LimitTexts::Text, &format!("echo partly; printf '\\n{words}\\n\\nbye\\n' >&2; exit 1"), words, Some(2)).await;
    holds(LimitTexts::Json, &format!("echo '{words}' >&2; exit 1"), words, Some(2)).await;
    let failure = run(&agent(Some(LimitTexts::Text), "echo \"Claude AI usage limit reached|$at\"; exit 1"), "").await;
    let failure = failure.unwrap_err();
    assert!(failure.class == Account && failure.detail.starts_with("Claude AI usage limit reached|"), "{failure:?}");
    let wait = failure.retry_after.unwrap().as_secs();
    assert!((7_140..=7_200).contains(&wait), "{wait}");
}

#[tokio::test]
async fn the_final_record_tells_of_a_limit_whatever_the_exit_code() {
    let words = "You've hit your limit · resets soon";
    for end in ["", "; exit 1"] {
        holds(LimitTexts::Json, &format!("{CLAUDE}\ntrue{end}"), words, Some(2)).await;
    }
    let event = CLAUDE.replace("\"api_error_status\":429,", "").replace(words, "it broke off");
    holds(LimitTexts::Json, &event, "its usage limit is reached", Some(2)).await;
    let alone = r#"echo '{"type":"result","is_error":true,"api_error_status":429,"result":"API Error: 429"}'"#;
    holds(LimitTexts::Json, alone, "its usage limit is reached", None).await;
    let list = r#"echo '[{"type":"system"},{"type":"result","is_error":true,"result":"Weekly limit reached ∙ resets in 5h"}]'"#;
    holds(LimitTexts::Json, list, "Weekly limit reached ∙ resets in 5h", Some(5)).await;
    let codex = r#"cat << END
{"type":"thread.started","thread_id":"t"}
{"type":"error","message":"You've hit your usage limit. Try again in 3 hours."}
{"type":"turn.failed","error":{"message":"You've hit your usage limit. Try again in 3 hours."}}
END
exit 1"#;
    holds(LimitTexts::Json, codex, "You've hit your usage limit. Try again in 3 hours.", Some(3)).await;
    let gemini = r#"cat >&2 << END
Loaded cached credentials.
{
  "error": {
    "type": "TerminalQuotaError",
    "message": "You have exhausted your capacity on this model. Your quota will reset after 4h2m3s.",
    "code": 429
  }
}
END
exit 173"#;
    let words = "You have exhausted your capacity on this model. Your quota will reset after 4h2m3s.";
    holds(LimitTexts::Json, gemini, words, Some(4)).await;
    holds(LimitTexts::Json, "echo no more >&2; exit 173", "it exited with 173, for 429", None).await;
}

#[tokio::test]
async fn an_answer_is_never_read_for_a_limit() {
    let said = "You've hit your limit · resets 1pm";
    let honest = r#"echo '{"type":"result","is_error":false,"result":"You have hit your limit, resets 1pm"}'"#;
    let beyond = CLAUDE.replace("\"is_error\":true,\"api_error_status\":429", "\"is_error\":false");
    let other = r#"echo '{"type":"result","is_error":true,"result":"the tests tell of a usage limit reached"}'"#;
    let plain = format!("echo \"{said}\"");
    for (texts, script) in [
        (None, CLAUDE),
        (None, plain.as_str()),
        (Some(LimitTexts::Text), CLAUDE),
        (Some(LimitTexts::Text), &plain),
        (Some(LimitTexts::Json), &plain),
        (Some(LimitTexts::Json), honest),
        (Some(LimitTexts::Json), &beyond),
        (Some(LimitTexts::Json), other),
    ] {
        assert!(run(&agent(texts, script), "Hi").await.is_ok(), "{texts:?} {script}");
    }
}

#[tokio::test]
async fn failures_of_other_kinds_stay_what_they_are() {
    let said = "You've hit your usage limit. Try again in 3 hours.";
    let told = format!("echo \"{said}\" >&2; exit 1");
    let early = told.replace("; exit", "; seq 9 >&2; exit");
    let overage = CLAUDE
        .replace(
            "\"is_error\":true,\"api_error_status\":429,\"result\":\"You've",
            "\"is_error\":true,\"result\":\"Can't",
        )
        .replace("\"status\":\"rejected\"", "\"status\":\"rejected\",\"isUsingOverage\":true");
    let warned = overage.replace("rejected\",\"isUsingOverage\":true", "allowed_warning\"");
    for (texts, script, class, code) in [
        (None, told.as_str(), Transient, "exit_1"),
        (Some(LimitTexts::Text), "echo \"the page says: you've hit your limit\"; exit 3", Transient, "exit_3"),
        (Some(LimitTexts::Text), "echo \"Memory limit reached\" >&2; exit 3", Transient, "exit_3"),
        (Some(LimitTexts::Text), "echo \"Disk usage limit reached\" >&2; exit 3", Transient, "exit_3"),
        (Some(LimitTexts::Text), "echo \"You've reached your context limit\" >&2; exit 3", Transient, "exit_3"),
        (Some(LimitTexts::Text), &early, Transient, "exit_1"),
        (Some(LimitTexts::Text), "exit 173", Transient, "exit_173"),
        (Some(LimitTexts::Text), &format!("{CLAUDE}\nexit 1"), Transient, "exit_1"),
        (Some(LimitTexts::Json), &format!("{overage}\nexit 1"), Transient, "exit_1"),
        (Some(LimitTexts::Json), &format!("{warned}\nexit 1"), Transient, "exit_1"),
        (Some(LimitTexts::Json), &format!("echo \"{said}\" >&2; kill -9 $$"), Crashed, "signal_9"),
    ] {
        let failure = run(&agent(texts, script), "Hi").await.unwrap_err();
        assert_eq!((failure.class, failure.code.as_str()), (class, code), "{texts:?} {script}");
    }
    // Whoever wrote the prompt has no word in what is held back, nor is the prompt told.
    for texts in [LimitTexts::Text, LimitTexts::Json] {
        assert_eq!(fails(Some(texts), "cat >&2; exit 1", said).await.0, Transient);
    }
    let record =
        r#"echo "{\"is_error\":true,\"api_error_status\":429,\"result\":\"You've hit your limit for $(cat)\"}""#;
    let (class, _, words, _) = fails(Some(LimitTexts::Json), record, "what Ada Lovelace told nobody").await;
    assert_eq!((class, words.as_str()), (Account, "its words quote the job and are left out"));
}

#[test]
fn a_runners_name_is_its_account_up_to_a_slash() {
    let named = |name: &str| {
        let argv = vec!["/opt/bin/agent".to_owned()];
        Exec::named(name, &Named { argv, limit_texts: None }, &settings()).unwrap().limit_key(&job("", 1))
    };
    assert_eq!([named("upper"), named("agent/large")], ["exec:upper", "exec:agent/large"]);
    assert_eq!(account_of(&named("agent/large")), account_of(&named("agent/small")));
    assert_eq!(Exec::inline("/opt/bin/agent -p", &settings()).unwrap().limit_key(&job("", 1)), "exec:agent");
}
