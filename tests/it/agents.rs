//! Programs with an account of their own, as CLI agents have: what becomes of their jobs while its usage limit is reached.

use promptq_common::job::{Job, JobId, Queue};
use promptq_common::record::State;
use promptq_common::time::Timestamp;
use promptq_common::work::Work;
use promptq_tests::process::Home;
use promptq_tests::site::{Hand, until};
use promptq_tests::steps::{put, see, state};
use serde_json::json;

/// Says for two hours that its limit is reached, unless there is a file that says otherwise.
const AGENT: &str = r#"echo called >> calls
if test -e free; then exec cat; fi
echo "Claude AI usage limit reached|$(($(date +%s) + 7200))"
exit 1
"#;
const SETTINGS: &str = r#"[runners.agent]
argv = ["sh", "agent.sh"]
limit_texts = "text"
[runners.other]
argv = ["cat"]
"#;

fn jobs(model: &str) -> Vec<Job> {
    (0..6).map(|n| Job::new(Queue::standard(), Work::prompt(Some(model), format!("p{n}")))).collect()
}

fn ids(jobs: &[Job]) -> Vec<JobId> {
    jobs.iter().map(|job| job.id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_an_account_at_its_limit_wait_until_it_resets_or_is_released() {
    let home = Home::new();
    home.write("agent.sh", AGENT);
    home.write("promptq.toml", SETTINGS);
    let broker = home.broker().await;
    let (agents, others) = (jobs("agent"), jobs("other"));
    put(&broker, &agents).await;
    let _worker =
        Hand::start(home.program("promptq-worker", &["--admin=off", "--concurrency=2"]), home.path("worker.log"));
    let held = until("the account is held", async || {
        let shown = home.promptq(&["limits", "show", "exec:agent", "--json"]);
        let shown = (shown.code == 0).then(|| shown.json()).filter(|shown| shown["state"] == "refused")?;
        Some(shown["blocked"][0].clone())
    })
    .await;
    let called = || std::fs::read_to_string(home.path("calls")).unwrap().lines().count();
    let calls = called();
    assert!(calls <= 2 && held["class"] == "account", "{calls} {held}");
    let until_then = held["until"].as_str().unwrap().parse::<Timestamp>().unwrap().since(Timestamp::now());
    assert!((7_000..=7_201).contains(&until_then.as_secs()), "{held}");

    let ended = async |jobs: &[Job]| {
        for id in ids(jobs) {
            until("it succeeds", async || (state(&broker, id).await == State::Succeeded).then_some(())).await;
        }
    };
    put(&broker, &others).await;
    ended(&others).await;
    for id in ids(&agents) {
        let view = see(&broker, id).await;
        assert!(view.record.is_none() && view.attempts == 0 && view.deaths == 0, "{view:?}");
    }
    let why = home.promptq(&["jobs", "why", &agents[0].id.to_string()]).ends(0);
    why.prints(&[
        "usage_limit: Claude AI usage limit reached|",
        "tried again in 1h5",
        "promptq limits release exec:agent",
    ]);
    home.promptq(&["limits", "list", "--fields", "key,brief"])
        .ends(0)
        .prints(&["exec:agent\taccount refused, tried again in 1h5"]);
    home.promptq(&["queues", "list"])
        .ends(0)
        .prints(&["account refused: exec:agent (usage_limit: Claude AI usage limit"]);
    assert_eq!(called(), calls, "nobody tries it before its time");

    home.write("free", "");
    home.promptq(&["limits", "release", "exec:agent"]).ends(0);
    ended(&agents).await;
    for id in ids(&agents) {
        assert_eq!(see(&broker, id).await.attempts, 1);
    }
    assert_eq!(called(), calls + agents.len());
    let is_held = |item: &serde_json::Value| item["key"] == "exec:agent" && item["state"] != json!("open");
    // The worker's next report says so.
    until("nothing is held any more", async || {
        let limits = home.promptq(&["limits", "list", "--json"]).ends(0).json();
        (!limits["items"].as_array().unwrap().iter().any(is_held)).then_some(())
    })
    .await;
}
