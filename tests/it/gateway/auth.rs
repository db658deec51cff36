//! Who may do what: keys, roles, queues, rates; and what listens where.

use std::os::unix::fs::PermissionsExt;

use promptq_tests::gateway::{Ask, Gateway, key};
use promptq_tests::process::Home;
use promptq_tests::site::until;
use serde_json::json;

use super::{job, lines};

async fn gateway(home: &Home) -> Gateway {
    let gateway = Gateway::start(home, &[]).await;
    until("the broker is reached", async || gateway.hand.log().contains("the broker is reached").then_some(())).await;
    gateway
}

#[tokio::test]
async fn each_role_may_do_what_it_may_on_each_route_and_no_more() {
    let home = Home::new();
    let secrets = ["viewer", "submitter", "operator", "admin"].map(|role| key(&home, &["k", "--role", role]));
    let gateway = gateway(&home).await;
    let made = gateway.ask(Ask::post("/v1/jobs", job("first")).by(&secrets[3])).await.is(201);
    let (show, result) = (made.header("location").to_owned(), format!("{}/result", made.header("location")));
    let cancel = format!("{show}/cancel");
    // What is asked, the least role that may, and what it is answered then.
    let asks = [
        (Ask::post("/v1/jobs", job("x")), 1, 201),
        (Ask::post("/v1/batches", lines(1..=2)), 1, 201),
        (Ask::get(&show), 0, 200),
        (Ask::get(&result), 0, 202),
        (Ask::get("/v1/queues/default/stats"), 0, 200),
        (Ask::post(&cancel, ""), 2, 200),
    ];
    for (ask, least, status) in &asks {
        for (at, secret) in secrets.iter().enumerate() {
            // Whoever cancelled it has changed what its result is.
            let ask = ask.clone().by(secret);
            if at >= *least {
                gateway.ask(ask).await.is(*status);
            } else {
                gateway.ask(ask).await.fails(403, "not-allowed");
            }
        }
        gateway.ask(ask.clone()).await.fails(401, "no-key");
        let unknown = format!("pq_{}_{}", "0".repeat(12), "0".repeat(64));
        for wrong in [unknown.as_str(), "nonsense", ""] {
            let refused = gateway.ask(ask.clone().by(wrong)).await.fails(401, "bad-key");
            assert_eq!(refused.header("www-authenticate"), "Bearer");
        }
        gateway.ask(ask.clone().with("authorization", "Basic cHE6cHE=")).await.fails(401, "bad-key");
    }
    gateway.ask(Ask::get("/openapi.json")).await.is(200);
    gateway.ask(Ask::get("/nowhere")).await.fails(404, "not-found");
}

#[tokio::test]
async fn a_key_for_some_queues_sees_nothing_of_others() {
    let home = Home::new();
    let all = key(&home, &["all", "--role", "admin"]);
    let some = key(&home, &["some", "--role", "admin", "-Q", "a", "-Q", "b"]);
    let gateway = gateway(&home).await;
    let to = |queue: &str| json!({ "prompt": "x", "promptq": { "queue": queue } }).to_string();
    let theirs = gateway.ask(Ask::post("/v1/jobs", to("c")).by(&all)).await.is(201).header("location").to_owned();
    let ours = gateway.ask(Ask::post("/v1/jobs", to("a")).by(&some)).await.is(201).header("location").to_owned();
    gateway.ask(Ask::get(&ours).by(&some)).await.is(200);
    for path in [theirs.clone(), format!("{theirs}/result")] {
        gateway.ask(Ask::get(&path).by(&some)).await.fails(404, "not-found");
    }
    gateway.ask(Ask::post(&format!("{theirs}/cancel"), "").by(&some)).await.fails(404, "not-found");
    gateway.ask(Ask::post("/v1/jobs", to("c")).by(&some)).await.fails(403, "not-allowed");
    gateway.ask(Ask::post("/v1/jobs", job("default")).by(&some)).await.fails(403, "not-allowed");
    gateway.ask(Ask::post("/v1/batches?queue=c", lines(1..=1)).by(&some)).await.fails(403, "not-allowed");
    gateway.ask(Ask::post("/v1/batches?queue=b", lines(1..=1)).by(&some)).await.is(201);
    gateway.ask(Ask::post("/v1/batches?queue=b", to("c")).by(&some)).await.fails(422, "bad-row");
    gateway.ask(Ask::get("/v1/queues/c/stats").by(&some)).await.fails(403, "not-allowed");
    gateway.ask(Ask::get("/v1/queues/a/stats").by(&some)).await.is(200);
    gateway.ask(Ask::get("/v1/queues/nobodys/stats").by(&some)).await.fails(403, "not-allowed");
    assert_eq!(gateway.ask(Ask::get(&theirs).by(&all)).await.is(200).text("state"), "queued");
}

#[tokio::test]
async fn keys_come_and_go_while_it_runs_and_the_last_one_leaves_the_door_shut() {
    let home = Home::new();
    let gateway = gateway(&home).await;
    let stats = || Ask::get("/v1/queues/default/stats");
    gateway.ask(stats()).await.is(200);
    let (short, long) = (key(&home, &["--role", "viewer", "--expires", "1s"]), key(&home, &["--role", "viewer"]));
    until("the keys are seen", async || (gateway.ask(stats()).await.status == 401).then_some(())).await;
    until("both are known", async || (gateway.ask(stats().by(&long)).await.status == 200).then_some(())).await;
    until("one has expired", async || {
        let told = gateway.ask(stats().by(&short)).await;
        (told.status == 401 && told.text("detail").contains("expired")).then_some(())
    })
    .await;
    let id = long.rsplit_once('_').unwrap().0.to_owned();
    home.promptq(&["keys", "list"]).ends(0).prints(&[&id, "viewer", "expired", "good"]);
    home.promptq(&["keys", "revoke", &id, "--reason", "leaked"]).ends(0);
    until("it is revoked", async || (gateway.ask(stats().by(&long)).await.status == 401).then_some(())).await;
    std::fs::remove_file(home.path(".local/state/promptq/keys.json")).unwrap();
    // Once a second.
    let begun = std::time::Instant::now();
    until("the file is looked for again", async || (begun.elapsed().as_millis() > 1_500).then_some(())).await;
    gateway.ask(stats()).await.fails(401, "no-key");
    home.promptq(&["keys", "revoke", &id]).ends(5).says(&["there is no key"]);
}

#[tokio::test]
async fn a_key_is_good_as_soon_as_it_was_made() {
    let home = Home::new();
    key(&home, &["first", "--role", "viewer"]);
    let gateway = gateway(&home).await;
    for _ in 0..5 {
        let secret = key(&home, &["next", "--role", "viewer"]);
        gateway.ask(Ask::get("/v1/queues/default/stats").by(&secret)).await.is(200);
    }
}

#[tokio::test]
async fn a_secret_is_shown_once_and_is_in_no_file_and_no_log() {
    let home = Home::new();
    let said = home.promptq(&["keys", "create", "ci", "--role", "admin"]).ends(0);
    let secret = said.stdout.trim().to_owned();
    let hidden = secret.rsplit_once('_').unwrap().1.to_owned();
    assert!(!said.stderr.contains(&hidden), "{}", said.stderr);
    let file = home.path(".local/state/promptq/keys.json");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!std::fs::read_to_string(&file).unwrap().contains(&hidden));
    let listed = home.promptq(&["keys", "list", "--json"]).ends(0).stdout;
    assert!(!listed.contains(&hidden) && !listed.contains("sha256"), "{listed}");
    let gateway = Gateway::start(&home, &[("PROMPTQ_LOG", "trace")]).await;
    gateway.ask(Ask::post("/v1/jobs", job("zebra-quartz-prompt")).by(&secret)).await;
    gateway.ask(Ask::post("/v1/batches", "{\"prompt\":\"zebra-quartz-prompt").by(&secret)).await;
    gateway.ask(Ask::post("/v1/jobs", "{\"prompt\":\"zebra-quartz-prompt").by(&secret)).await.fails(422, "bad-row");
    let log = gateway.hand.log();
    assert!(log.contains("/v1/jobs") && !log.contains(&hidden) && !log.contains("zebra-quartz"), "{log}");
}

#[tokio::test]
async fn who_asks_too_often_is_told_when_to_come_again() {
    let home = Home::new();
    let (slow, quick) = (key(&home, &["--role", "viewer", "--rate", "2"]), key(&home, &["--role", "viewer"]));
    let gateway = gateway(&home).await;
    let stats = |secret: &str| Ask::get("/v1/queues/default/stats").by(secret);
    let mut refused = None;
    for _ in 0..20 {
        let answer = gateway.ask(stats(&slow)).await;
        if answer.status == 429 {
            refused = Some(answer.fails(429, "too-many-requests"));
            break;
        }
    }
    let refused = refused.expect("it is refused");
    assert_eq!((refused.header("retry-after"), refused.header("ratelimit")), ("1", "\"key\";r=0;t=1"));
    assert_eq!(refused.header("ratelimit-policy"), "\"key\";q=2;w=1");
    let through = gateway.ask(stats(&quick)).await.is(200);
    assert_eq!(through.header("ratelimit-policy"), "\"key\";q=100;w=1");
    assert!(through.header("ratelimit").starts_with("\"key\";r="), "{:?}", through.headers);
    let may_not = gateway.ask(Ask::post("/v1/jobs", job("x")).by(&quick)).await.fails(403, "not-allowed");
    assert!(may_not.header("ratelimit").starts_with("\"key\";r="), "{:?}", may_not.headers);
    for unlimited in [gateway.ask(Ask::get("/openapi.json")).await, gateway.ask(stats("")).await] {
        assert_eq!((unlimited.header("ratelimit"), unlimited.header("ratelimit-policy")), ("", ""));
    }
    until("there is room again", async || (gateway.ask(stats(&slow)).await.status == 200).then_some(())).await;
}

#[tokio::test]
async fn it_listens_for_others_only_when_they_need_a_key() {
    let home = Home::new();
    let words = [
        "error[no-keys]: refusing to listen on 0.0.0.0 without authentication",
        "hint: create one with `promptq keys create --role admin`, or bind 127.0.0.1, or pass --insecure-no-auth",
    ];
    home.promptq(&["serve", "--listen", "0.0.0.0:0"]).ends(2).says(&words);
    let of_platform = |port: &str| {
        let mut command = home.program("promptq", &["serve"]);
        promptq_tests::process::Said::of(command.env("PORT", port))
    };
    of_platform("0").ends(2).says(&words);
    of_platform("many").ends(2).says(&["PORT is \"many\", which is no port"]);
    home.promptq(&["serve", "--listen", "nowhere"]).ends(2).says(&["must be an address with a port"]);
    let everywhere = ["serve", "--listen", "0.0.0.0:0"];
    let open = Gateway::listening(&home, &[&everywhere[..], &["--insecure-no-auth"]].concat(), &[]).await;
    open.ask(Ask::get("/openapi.json").with("host", "elsewhere.example")).await.is(200);
    let at_once = ["keys", "create", "k", "--role", "viewer", "--expires", "0s"];
    home.promptq(&at_once).ends(2).says(&["it would be expired at once"]);
    key(&home, &["--role", "viewer", "--expires", "1ms"]);
    home.promptq(&everywhere).ends(2).says(&words);
    let secret = key(&home, &["--role", "viewer"]);
    let shut = Gateway::listening(&home, &everywhere, &[]).await;
    shut.ask(Ask::get("/v1/queues/default/stats")).await.fails(401, "no-key");
    assert_ne!(shut.ask(Ask::get("/v1/queues/default/stats").by(&secret)).await.status, 401);
    let taken = shut.address.port().to_string();
    let again = home.promptq(&["serve", "--listen", &format!("127.0.0.1:{taken}")]).ends(2);
    again.says(&["error[listen]", "in use"]);
    home.write("keys.json", "{");
    home.promptq(&["serve", "--keys", "keys.json"]).ends(2).says(&["is no file of keys"]);
}

#[tokio::test]
async fn without_keys_a_page_of_another_site_reaches_nothing() {
    let home = Home::new();
    let gateway = gateway(&home).await;
    let stats = || Ask::get("/v1/queues/default/stats");
    gateway.ask(stats().with("host", "rebound.example")).await.fails(421, "wrong-host");
    gateway.ask(stats().with("host", "localhost:1")).await.is(200);
    let made = gateway.ask(Ask::post("/v1/jobs", job("kept"))).await.is(201);
    let path = format!("{}/cancel", made.header("location"));
    let cancel = || Ask::post(&path, "");
    for origin in ["https://evil.example", "null"] {
        gateway.ask(cancel().with("origin", origin)).await.fails(421, "wrong-host");
    }
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"] {
        gateway.ask(Ask::post("/v1/jobs", job("x")).of_type(kind)).await.fails(415, "bad-type");
    }
    assert_eq!(gateway.ask(stats()).await.is(200).body["ready"], 1, "the one job is neither cancelled nor joined");
    gateway.ask(cancel().with("origin", "http://localhost:3000")).await.is(200);
}
