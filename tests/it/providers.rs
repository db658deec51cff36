//! Providers as processes meet them: each API end to end, names of one's own for models, proxies, the doctor, keys that are
//! never said.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::mpsc::{Receiver, sync_channel};

use promptq_tests::process::{Home, Said};
use serde_json::Value;

pub(crate) const KEY: &str = "sk-planted-4711";
const MESSAGE: &str = r#"{"id":"msg_1","model":"claude-x","content":[{"type":"text","text":"from anthropic"}],"stop_reason":"end_turn","usage":{"input_tokens":3,"cache_creation_input_tokens":4,"output_tokens":1,"service_tier":"standard"}}"#;
const CONTENT: &str = r#"{"candidates":[{"content":{"parts":[{"text":"from gemini"}]},"finishReason":"STOP"}],"usageMetadata":{"promptTokenCount":7,"candidatesTokenCount":1},"modelVersion":"g"}"#;
const CHAT: &str = r#"{"id":"c","model":"m","choices":[{"message":{"content":"from openai"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":1}}"#;
const CUT: &str = r#"{"id":"c","model":"m","choices":[{"message":{"content":"from"},"finish_reason":"length"}],"usage":{"prompt_tokens":3,"completion_tokens":1}}"#;
const STREAM: &str = "data: {\"type\":\"message_start\",\"message\":{\"id\":\"m\",\"content\":[],\"stop_reason\":null,\"usage\":{\"input_tokens\":5,\"output_tokens\":0}}}\n\n\
    data: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"streamed\"}}\n\n\
    data: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":2}}\n\n\
    data: {\"type\":\"message_stop\"}\n\n";

/// A server that plays every provider, by the path it is asked at, and tells what it was sent.
pub(crate) struct Server {
    port: u16,
    seen: Receiver<String>,
}

impl Server {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (see, seen) = sync_channel(1_000);
        std::thread::spawn(move || {
            for mut peer in listener.incoming().flatten() {
                let Some(request) = request(&mut peer) else { continue };
                let (status, kind, body) = answer(&request);
                // A test that has seen enough is gone.
                let _gone = see.send(request);
                let head = format!("HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n", body.len());
                let _heard = write!(peer, "{head}connection: close\r\n\r\n{body}");
            }
        });
        Self { port, seen }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn requests(&self) -> Vec<String> {
        self.seen.try_iter().collect()
    }
}

fn answer(request: &str) -> (&'static str, &'static str, &'static str) {
    const JSON: &str = "application/json";
    let line = request.lines().next().unwrap_or_default();
    let has_key = request.contains(KEY);
    match line.split(' ').nth(1).unwrap_or_default() {
        _ if line.starts_with("CONNECT ") => ("502 Bad Gateway", "text/plain", ""),
        "/v1beta/models" if !has_key => {
            ("400 Bad Request", JSON, r#"{"error":{"details":[{"reason":"API_KEY_INVALID"}]}}"#)
        }
        _ if !has_key => ("401 Unauthorized", JSON, r#"{"error":{"message":"a key is wanted"}}"#),
        "/v1/messages" if request.contains("\"stream\":true") => ("200 OK", "text/event-stream", STREAM),
        "/v1/messages" => ("200 OK", JSON, MESSAGE),
        path if path.ends_with(":generateContent") => ("200 OK", JSON, CONTENT),
        path if path.ends_with("/v1/chat/completions") && request.contains("\"max_tokens\":1,") => {
            ("200 OK", JSON, CUT)
        }
        path if path.ends_with("/v1/chat/completions") => ("200 OK", JSON, CHAT),
        path if path.ends_with("/models") => ("200 OK", JSON, r#"{"data":[]}"#),
        _ => ("404 Not Found", JSON, "{}"),
    }
}

fn request(peer: &mut TcpStream) -> Option<String> {
    let (mut got, mut chunk) = (Vec::new(), [0; 4_096]);
    loop {
        let text = String::from_utf8_lossy(&got).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.and_then(|length| length.trim().parse().ok()).unwrap_or(0) {
                return Some(text);
            }
        }
        match peer.read(&mut chunk) {
            Ok(read @ 1..) => got.extend_from_slice(&chunk[..read]),
            Ok(0) | Err(_) => return None,
        }
    }
}

/// A home whose settings name the server as every provider.
fn settled(server: &Server) -> Home {
    let home = Home::new();
    let url = server.url();
    home.write(
        "promptq.toml",
        &format!(
            "[providers.anthropic]\nbase_url = \"{url}\"\napi_key = {{ env = \"MY_KEY\" }}\n\
             [providers.google]\napi = \"gemini\"\nbase_url = \"{url}\"\napi_key = {{ file = \"key\" }}\n\
             [providers.box]\nbase_url = \"{url}/box/v1\"\napi_key = {{ env = \"MY_KEY\" }}\n\
             [models.fast]\nprovider = \"anthropic\"\nmodel = \"claude-x\"\n"
        ),
    );
    home.write("key", &format!("{KEY}\n"));
    home
}

/// Runs it with the key, at its loudest, and makes sure that the key is not said.
fn run(home: &Home, args: &[&str]) -> Said {
    let mut command = home.program("promptq", args);
    quiet(command.env("MY_KEY", KEY).env("PROMPTQ_LOG", "trace"))
}

fn quiet(command: &mut Command) -> Said {
    let said = Said::of(command);
    assert!(!said.stderr.contains(KEY) && !said.stdout.contains(KEY), "{} {}", said.stderr, said.stdout);
    said
}

fn results(home: &Home, name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(home.path(name)).unwrap();
    let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    lines.sort_by_key(|line| line["custom_id"].to_string());
    lines
}

#[test]
fn every_api_is_asked_by_prompts_and_by_requests_of_its_own() {
    let server = Server::start();
    let home = settled(&server);
    home.write(
        "in.jsonl",
        concat!(
            r#"{"id":"1","prompt":"Hi","model":"fast"}"#,
            "\n",
            r#"{"id":"2","prompt":"Hi","model":"google/gemini-x"}"#,
            "\n",
            r#"{"id":"3","prompt":"Hi","model":"box/small"}"#,
            "\n",
            r#"{"id":"4","url":"/v1/messages","body":{"model":"claude-x","max_tokens":5,"messages":[]}}"#,
            "\n",
            r#"{"id":"5","url":"/v1beta/models/gemini-x:generateContent","body":{"contents":[]}}"#,
            "\n",
            r#"{"id":"6","prompt":"Hi","model":"anthropic/claude-y","max_tokens":32000}"#,
            "\n",
        ),
    );
    run(&home, &["run", "in.jsonl", "-o", "out.jsonl"]).ends(0);
    let lines = results(&home, "out.jsonl");
    let texts: Vec<_> = lines.iter().map(|line| line["promptq"]["text"].as_str().unwrap()).collect();
    let anthropic = "from anthropic";
    assert_eq!(texts, [anthropic, "from gemini", "from openai", anthropic, "from gemini", "streamed"]);
    let account = &lines[0]["promptq"];
    assert_eq!((&account["service_tier"], &account["cache_write_tokens"]), (&"standard".into(), &4.into()));
    assert_eq!(account["usage"]["input_tokens"], 7);
    assert!(lines[5]["promptq"]["timing"]["time_to_first_chunk_s"].is_number(), "{}", lines[5]);
    assert_eq!(lines[5]["response"]["body"]["usage"], serde_json::json!({ "input_tokens": 5, "output_tokens": 2 }));
    let seen = server.requests();
    let untouched = r#"{"model":"claude-x","max_tokens":5,"messages":[]}"#;
    assert!(seen.iter().any(|request| request.ends_with(untouched)), "{seen:?}");
    assert!(seen.iter().any(|request| request.starts_with("POST /box/v1/chat/completions ")), "{seen:?}");
}

#[test]
fn an_answer_that_is_not_whole_says_so_and_is_asked_for_again_where_its_line_says() {
    let server = Server::start();
    let home = settled(&server);
    home.write(
        "in.jsonl",
        concat!(
            r#"{"id":"1","model":"box/small","prompt":"Hi","params":{"max_tokens":1,"n":1}}"#,
            "\n",
            r#"{"id":"2","url":"/v1/chat/completions","body":{"model":"box/small","messages":[],"response_format":{"type":"json_object"}},"promptq":{"repair_attempts":1}}"#,
            "\n",
            r#"{"id":"3","model":"box/small","prompt":"Hi"}"#,
            "\n",
        ),
    );
    let said = run(&home, &["run", "in.jsonl", "-o", "out.jsonl"]).ends(0);
    said.says(&["3 succeeded (1 invalid_output, 1 truncated)"]);
    assert_eq!(server.requests().len(), 4);
    let lines = results(&home, "out.jsonl");
    let account = |at: usize| &lines[at]["promptq"];
    let classes: Vec<_> = (0..3).map(|at| account(at)["class"].as_str()).collect();
    assert_eq!(classes, [Some("truncated"), Some("invalid_output"), None]);
    assert_eq!((&account(0)["text"], &account(1)["text"]), (&"from".into(), &"from openai".into()));
    assert_eq!(account(1)["usage"]["input_tokens"], 6, "both were paid");
    let tries: Vec<_> = account(1)["attempts"].as_array().unwrap().iter().map(|of| of["class"].as_str()).collect();
    assert_eq!(tries, [Some("invalid_output"); 2]);
    let listed = run(&home, &["jobs", "list", "--where", "class=truncated", "--json"]).ends(0).json();
    assert_eq!((listed["items"].as_array().unwrap().len(), &listed["items"][0]["custom_id"]), (1, &"1".into()));
    for (at, answer) in [(0, "truncated: the answer was cut off (length)"), (1, "is not the JSON that was asked for")] {
        let id = account(at)["job_id"].as_str().unwrap();
        run(&home, &["jobs", "show", id]).ends(0).prints(&["answer     ", answer]);
    }
}

#[test]
fn a_model_that_no_provider_has_is_told_before_anything_runs() {
    let home = settled(&Server::start());
    home.write("in.txt", "Hi\n");
    let said = run(&home, &["run", "in.txt", "--in", "lines", "-m", "gpt-none", "-o", "out.jsonl"]).ends(2);
    said.says(&["anthropic/MODEL", "fast", "google/MODEL", "hint: "]);
}

#[test]
fn a_job_cannot_say_where_it_goes() {
    let server = Server::start();
    let home = settled(&server);
    let elsewhere = Server::start();
    for url in [
        format!("{}/v1/messages", elsewhere.url()),
        "//127.0.0.1/v1/messages".to_owned(),
        "/v1/../latest/meta-data".to_owned(),
        "/v1beta/models/..%2fx:generateContent".to_owned(),
    ] {
        home.write("in.jsonl", &format!("{{\"url\":\"{url}\",\"body\":{{\"model\":\"fast\"}}}}\n"));
        run(&home, &["run", "in.jsonl", "-o", "out.jsonl"]).ends(2).says(&["not supported"]);
    }
    assert_eq!(elsewhere.requests(), Vec::<String>::new());
}

#[test]
fn the_doctor_asks_each_provider_at_no_cost() {
    let server = Server::start();
    let home = settled(&server);
    let said = run(&home, &["doctor"]).ends(0);
    let url = server.url();
    said.prints(&[
        &format!("ok      provider: anthropic: {url}/v1/models answers"),
        &format!("ok      provider: google: {url}/v1beta/models answers"),
        &format!("ok      provider: box: {url}/box/v1/models answers"),
    ]);
    let seen = server.requests();
    assert!(seen.iter().all(|request| request.starts_with("GET ")), "{seen:?}");
    assert!(seen.iter().any(|request| request.contains(&format!("x-goog-api-key: {KEY}"))), "{seen:?}");
    home.write("key", "wrong");
    let mut command = home.program("promptq", &["doctor"]);
    let said = quiet(command.env("MY_KEY", "wrong")).ends(1);
    said.prints(&[
        "FAILED  provider: anthropic: the key is refused",
        "FAILED  provider: google: the key is refused (400",
    ]);
}

#[test]
fn a_proxy_is_used_as_the_environment_says() {
    let proxy = Server::start();
    let home = Home::new();
    home.write("in.txt", "Hi\n");
    let ask = |url: &str, out: &str, env: &[(&str, &str)]| {
        let args = ["run", "in.txt", "--in", "lines", "-m", "m", "-o", out];
        let mut command = home.program("promptq", &args);
        command.env("OPENAI_API_KEY", KEY).env("OPENAI_BASE_URL", url).envs(env.iter().copied());
        command
    };
    let (far, at) = ("http://far.invalid/v1", proxy.url());
    quiet(&mut ask(far, "a.jsonl", &[("http_proxy", at.as_str())])).ends(0);
    let seen = proxy.requests();
    assert!(seen[0].starts_with("POST http://far.invalid/v1/chat/completions HTTP/1.1\r\n"), "{seen:?}");

    // One that is not to be asked through it is asked directly.
    let direct = Server::start();
    let env = [("http_proxy", at.as_str()), ("no_proxy", "127.0.0.1")];
    quiet(&mut ask(&format!("{}/v1", direct.url()), "b.jsonl", &env)).ends(0);
    assert_eq!((proxy.requests().len(), direct.requests().len()), (0, 1));

    // With TLS the proxy is asked for a tunnel and sees no key; one that gives none has cost nothing.
    let submit = ["submit", "in.txt", "--in", "lines", "-m", "m"];
    quiet(&mut home.program("promptq", &submit)).ends(0);
    let mut worker = home.program("promptq-worker", &["--once"]);
    worker.env("OPENAI_API_KEY", KEY).env("OPENAI_BASE_URL", "https://far.invalid/v1").env("HTTPS_PROXY", &at);
    quiet(&mut worker).ends(0);
    let seen = proxy.requests();
    assert!(seen[0].starts_with("CONNECT far.invalid:443 ") && !seen.concat().contains(KEY), "{seen:?}");
    let jobs = quiet(&mut home.program("promptq", &["jobs", "list", "--json"])).ends(0).json();
    let waiting = jobs["items"].as_array().unwrap().iter().find(|job| job["state"] != "succeeded").unwrap().clone();
    assert_eq!(waiting["attempts"], 0, "{waiting}");
}
