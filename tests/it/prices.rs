//! Money as people meet it: what results say that jobs cost, what nobody knows, and what a dry run says before anything costs.

use promptq_tests::process::{Home, Said};
use promptq_tests::site::Hand;
use serde_json::{Value, json};

use crate::providers::{KEY, Server};

/// Two providers at the server; a model of one has a price.
fn settled(server: &Server, more: &str) -> Home {
    let home = Home::new();
    settle(&home, server, more);
    home
}

fn settle(home: &Home, server: &Server, more: &str) {
    let url = server.url();
    let provider = |name: &str, api: &str, path: &str| {
        format!("[providers.{name}]\napi = \"{api}\"\nbase_url = \"{url}{path}\"\napi_key = \"{KEY}\"\n")
    };
    let price = "[prices.\"box/m\"]\ninput = \"2\"\noutput = \"10\"\nas_of = \"2026-11-03\"\n";
    let names =
        "[models.cheap]\nprovider = \"box\"\nmodel = \"m\"\n[models.other]\nprovider = \"google\"\nmodel = \"g\"\n";
    let (local, google) = (provider("box", "openai", "/v1"), provider("google", "gemini", ""));
    home.write("promptq.toml", &format!("{local}{google}{price}{names}{more}"));
}

fn promptq(home: &Home, args: &[&str]) -> Said {
    Said::of(&mut home.program("promptq", args))
}

#[test]
fn results_say_what_they_cost_and_who_says_so() {
    let server = Server::start();
    let home = settled(&server, "");
    let rows = [r#"{"id":"1","prompt":"Hi","model":"cheap"}"#, r#"{"id":"2","prompt":"Hi","model":"other"}"#];
    home.write("in.jsonl", &(rows.join("\n") + "\n"));
    let said = promptq(&home, &["run", "in.jsonl", "-o", "out.jsonl"]).ends(0);
    // 3 x 2 + 1 x 10, a million each.
    said.says(&["2 succeeded, $0.000016 and unknown for 1 job"]);
    let text = std::fs::read_to_string(home.path("out.jsonl")).unwrap();
    let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    lines.sort_by_key(|line| line["custom_id"].to_string());
    let account = |n: usize| lines[n]["promptq"].as_object().unwrap();
    assert_eq!((&account(0)["cost_usd"], &account(0)["cost_source"]), (&json!("0.000016"), &json!("price_table")));
    assert_eq!(account(0)["price_as_of"], "2026-11-03");
    assert_eq!((&account(1)["cost_usd"], account(1).contains_key("cost_source")), (&Value::Null, false));
    promptq(&home, &["doctor"]).ends(0).prints(&["warn    price: no price for google/g; its cost will be shown as ?"]);
}

#[test]
fn jobs_that_nobody_called_have_cost_nothing() {
    let home = Home::new();
    home.write("in.txt", "Hi\nHo\n");
    promptq(&home, &["submit", "in.txt", "--in", "lines", "-m", "gpt-none", "--batch", "b"]).ends(0);
    home.program("promptq-worker", &["--once"]).status().unwrap();
    promptq(&home, &["status", "b"]).ends(0).prints(&["dead 2", "cost $0\n", "2x no_provider"]);
    let seen = promptq(&home, &["status", "b", "--json"]).ends(0).json();
    assert_eq!((&seen["cost_usd"], &seen["cost_unknown"]), (&json!("0"), &json!(0)));
    let job = promptq(&home, &["jobs", "list", "--json"]).ends(0).json()["items"][0]["id"].as_str().unwrap().to_owned();
    promptq(&home, &["jobs", "show", &job]).ends(0).prints(&["0 tokens in / 0 out  cost $0\n"]);
    let results = promptq(&home, &["results", "b"]).ends(0).stdout;
    assert_eq!(results.matches("\"cost_usd\":\"0\"").count(), 2, "{results}");
}

#[test]
fn a_dry_run_says_what_it_would_take_and_takes_nothing() {
    let server = Server::start();
    let home = settled(&server, "[limits.box]\nrequests = \"1/min\"\n");
    // 36 bytes are 10 tokens.
    let row = |n: u64, model: &str| {
        format!("{{\"id\":\"r{n}\",\"prompt\":\"{}\",\"model\":\"{model}\",\"max_tokens\":400}}\n", "x".repeat(36))
    };
    let cheap: String = (1..=90).map(|n| row(n, "cheap")).collect();
    home.write("cheap.jsonl", &cheap);
    home.write("both.jsonl", &(cheap + &row(91, "other")));
    promptq(&home, &["submit", "cheap.jsonl", "--dry-run"]).ends(0).prints(&[
        "would enqueue 90 jobs to queue default (0 already known)\n  tokens  about 900 in, 23k out (at most 36k)\n",
        // 900 x 2 + 23,040 x 10 and 900 x 2 + 36,000 x 10
        "  cost    $0.23 to $0.36 (box/m; price of 2026-11-03)\n",
        "  limits  box: 1 requests/min: bound by requests, about 1h30m with any number of workers\n  calls   one for each job",
        "first prompt (row 1, id r1): \"xxx",
        "nothing was enqueued",
    ]);
    let both = promptq(&home, &["submit", "both.jsonl", "--dry-run", "--json"]).ends(0).json();
    let forecast = &both["forecast"];
    assert_eq!((&forecast["jobs"], &forecast["cost_unknown"]), (&json!(91), &json!(1)));
    assert_eq!(forecast["cost_usd"], json!({ "likely": "0.2322", "most": "0.3618" }));
    assert_eq!((&forecast["unpriced_models"], &forecast["least_seconds"]), (&json!(["google/g"]), &json!(5_400)));
    promptq(&home, &["run", "both.jsonl", "-o", "out.jsonl", "--dry-run"])
        .ends(0)
        .prints(&["and ? for 1 job (no price for google/g"]);
    let list = promptq(&home, &["jobs", "list", "--json"]).ends(0).json();
    assert_eq!((list["items"].as_array().unwrap().len(), home.path("out.jsonl").exists()), (0, false));
    assert_eq!(server.requests(), Vec::<String>::new());
}

#[test]
fn a_dry_run_weighs_what_a_cap_and_a_person_leave_of_it() {
    let server = Server::start();
    let home = settled(&server, "[limits.box]\nrequests = \"1/min\"\n");
    let row = |n: u64| format!("{{\"id\":\"{n}\",\"prompt\":\"Hi\",\"model\":\"cheap\",\"max_tokens\":400}}\n");
    home.write("in.jsonl", &(1..=90).map(row).collect::<String>());
    let dry =
        |more: &[&str]| promptq(&home, &[&["submit", "in.jsonl", "--batch", "b", "--dry-run"], more].concat()).ends(0);
    // 256 tokens likely are $0.00256; the last one needs some $0.004.
    dry(&["--max-cost", "0.1"]).prints(&[
        "money   batch:b: $0.1 (--max-cost): about 38 of 90 jobs fit into $0.1, the rest are held",
        "limits  box: 1 requests/min: bound by requests, about 38m with any number of workers for what is not held",
    ]);
    // What is set for the fleet is weighed, once there is one.
    home.write("one.jsonl", &row(1));
    promptq(&home, &["submit", "one.jsonl", "--batch", "first", "--max-cost", "1"]).ends(0);
    promptq(&home, &["limits", "set", "box", "requests=9/min"]).ends(0);
    dry(&[]).prints(&["limits  box: 9 requests/min (set): bound by requests, about 10m with any number of workers"]);
    promptq(&home, &["limits", "set", "batch:first", "usd=2"]).ends(0);
    let lowered = promptq(&home, &["submit", "one.jsonl", "--batch", "first", "--max-cost", "1"]).ends(0);
    lowered.says(&["warning: batch:first had a cap of $2; --max-cost makes it $1 (to keep it: --max-cost 2"]);
    assert_eq!(server.requests(), Vec::<String>::new());
}

#[test]
fn a_dry_run_refuses_what_submitting_would_refuse() {
    let home = settled(&Server::start(), "");
    home.write("bad.jsonl", "{\"prompt\":\"a\"}\n{\"prompt\":\n");
    let refused =
        |flags: &[&str]| promptq(&home, &[&["submit", "bad.jsonl", "-m", "cheap"], flags].concat()).ends(2).stderr;
    assert_eq!(refused(&["--dry-run"]), refused(&[]));
    home.write("promptq.toml", "[prices.cheap]\ninput = \"1\"\noutput = \"1\"\n");
    promptq(&home, &["config", "check"]).ends(2).says(&["promptq.toml:2:9", "prices are of PROVIDER/MODEL"]);
}

#[test]
fn a_run_that_is_out_of_money_ends_with_9_and_goes_on_when_there_is_more() {
    let server = Server::start();
    let home = settled(&server, "");
    // Each may be answered with 400 tokens, $ 0.004 of them.
    let row = |n: u64| format!("{{\"id\":\"{n}\",\"prompt\":\"Hi\",\"model\":\"cheap\",\"max_tokens\":400}}\n");
    home.write("in.jsonl", &(1..=5).map(row).collect::<String>());
    let run = |more: &[&str]| promptq(&home, &[&["run", "in.jsonl", "-o", "out.jsonl"], more].concat());
    let tried = run(&["--dry-run"]).ends(0).stdout;
    let queue = tried.split("to queue ").nth(1).unwrap().split(' ').next().unwrap();
    settle(&home, &server, &format!("[queues.{queue}]\nbudget = \"0.003/day\"\n"));
    run(&[]).ends(9).says(&["error[budget]: stopped for want of money: $0 of $0.003/day is spent", "0 done, 5 held"]);
    settle(&home, &server, "");
    // They were enqueued without a cap.
    let capped = run(&["--max-cost", "0.003"]).ends(9);
    capped.says(&["5 already known", "error[budget]: stopped at $0 of --max-cost 0.003; 0 done, 5 held", "a higher"]);
    assert_eq!(server.requests(), Vec::<String>::new());
    // What a person cancelled stays so until a person says otherwise.
    promptq(&home, &["cancel", "--batch", queue, "--yes"]).ends(0).prints(&["cancelled 5"]);
    let again =
        format!("5 jobs of this batch were cancelled, and stay so; to run them again: promptq retry --batch {queue}");
    run(&["--max-cost", "1"]).ends(3).says(&[&again, "5 cancelled"]);
    promptq(&home, &["retry", "--batch", queue, "--yes"]).ends(0).prints(&["back in line 5"]);
    run(&["--max-cost", "1"]).ends(0).says(&["5 succeeded, $0.00008"]);
    assert_eq!(server.requests().len(), 5);
    let line = "{\"id\":\"6\",\"prompt\":\"Hi\",\"model\":\"other\",\"max_tokens\":9}\n";
    home.write("unpriced.jsonl", line);
    promptq(&home, &["run", "unpriced.jsonl", "-o", "more.jsonl", "--max-cost", "1"])
        .ends(2)
        .says(&["nobody knows the price of its model", "section prices"]);
}

#[test]
fn who_waits_for_a_fleet_is_told_with_9_that_only_money_helps() {
    let server = Server::start();
    let home = settled(&server, "");
    let row = |n: u64| format!("{{\"id\":\"{n}\",\"prompt\":\"Hi\",\"model\":\"cheap\",\"max_tokens\":400}}\n");
    home.write("in.jsonl", &(1..=5).map(row).collect::<String>());
    let _worker = Hand::start(home.program("promptq-worker", &[]), home.path("worker.log"));
    let wait = |most: &str| {
        promptq(&home, &["submit", "in.jsonl", "--batch", "b", "--max-cost", most, "--wait=60s", "--progress", "none"])
    };
    let hint = "promptq limits set batch:b usd=AMOUNT";
    wait("0.003").ends(9).says(&["error[budget]: stopped at $0 of --max-cost 0.003; 0 done, 5 held", hint]);
    assert_eq!(server.requests(), Vec::<String>::new());
    wait("1").ends(0).says(&["done: 5 succeeded, 0 did not"]);
}
