//! A gateway process, and what a client says to it.

use std::net::SocketAddr;
use std::time::Duration;

use promptq_common::tls;
use reqwest::{Client, Method};
use serde_json::Value;

use crate::process::{Home, Said};
use crate::site::{Hand, until};

/// A gateway; killed when dropped.
#[derive(Debug)]
pub struct Gateway {
    /// Its process.
    pub hand: Hand,
    /// Where it listens.
    pub address: SocketAddr,
    client: Client,
}

/// What it answered.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// Its head.
    pub headers: reqwest::header::HeaderMap,
    /// Its body; null where there is no JSON in it.
    pub body: Value,
}

/// One request.
#[derive(Clone, Debug)]
pub struct Ask<'a> {
    method: Method,
    path: &'a str,
    headers: Vec<(&'a str, String)>,
    body: Option<String>,
}

impl<'a> Ask<'a> {
    /// GET.
    pub fn get(path: &'a str) -> Self {
        Self { method: Method::GET, path, headers: Vec::new(), body: None }
    }

    /// POST of JSON, or of lines of it.
    pub fn post(path: &'a str, body: impl Into<String>) -> Self {
        let kind = if path.starts_with("/v1/batches") { "application/x-ndjson" } else { "application/json" };
        Self { method: Method::POST, path, headers: Vec::new(), body: Some(body.into()) }.with("content-type", kind)
    }

    /// One more header.
    pub fn with(mut self, name: &'a str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// With a body of another type than it is.
    pub fn of_type(mut self, kind: &str) -> Self {
        self.headers.retain(|(name, _)| *name != "content-type");
        self.with("content-type", kind)
    }

    /// As somebody who has this secret.
    pub fn by(self, secret: &str) -> Self {
        self.with("authorization", format!("Bearer {secret}"))
    }
}

impl Gateway {
    /// One in this home with these variables, at a free port of loopback.
    pub async fn start(home: &Home, variables: &[(&str, &str)]) -> Self {
        Self::listening(home, &["serve", "--listen", "127.0.0.1:0"], variables).await
    }

    /// The same with other arguments.
    pub async fn listening(home: &Home, arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut command = home.program("promptq", arguments);
        command.env("PROMPTQ_LOG", "debug").envs(variables.iter().copied());
        let log = home.path(&format!("gateway-{}.log", rand::random::<u64>()));
        let mut hand = Hand::start(command, log);
        let address = until("the gateway listens", async || {
            assert!(hand.runs(), "the gateway ended: {}", hand.log());
            let said = hand.log();
            let (_, rest) = said.split_once("gateway   http://")?;
            rest.split_whitespace().next()?.parse::<SocketAddr>().ok()
        })
        .await;
        tls::install();
        let client = Client::builder().no_proxy().timeout(Duration::from_secs(60)).build().expect("a client");
        let address = SocketAddr::from(([127, 0, 0, 1], address.port()));
        Self { hand, address, client }
    }

    /// Asks; `None` when there was no answer.
    pub async fn try_ask(&self, ask: Ask<'_>) -> Option<Answer> {
        let mut request = self.client.request(ask.method, format!("http://{}{}", self.address, ask.path));
        for (name, value) in ask.headers {
            request = request.header(name, value);
        }
        if let Some(body) = ask.body {
            request = request.body(body);
        }
        let response = request.send().await.ok()?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = response.bytes().await.ok()?;
        Some(Answer { status, headers, body: serde_json::from_slice(&body).unwrap_or_default() })
    }

    /// Asks and is answered.
    ///
    /// # Panics
    /// When it is not.
    pub async fn ask(&self, ask: Ask<'_>) -> Answer {
        let path = ask.path.to_owned();
        self.try_ask(ask).await.unwrap_or_else(|| panic!("no answer to {path}: {}", self.hand.log()))
    }

    /// Asks until the broker has been reached.
    pub async fn ready(self) -> Self {
        until("the broker is reached", async || {
            let seen = self.ask(Ask::get("/v1/queues/default/stats")).await;
            // Who has no key is told so before the broker matters.
            let said = self.hand.log().contains("the broker is reached");
            (seen.status == 200 || said).then_some(())
        })
        .await;
        self
    }
}

impl Answer {
    /// That it is of this status.
    #[track_caller]
    pub fn is(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.body);
        self
    }

    /// That it is a problem of this status and code, told as it should be.
    #[track_caller]
    pub fn fails(self, status: u16, code: &str) -> Self {
        let problem = self.is(status);
        let body = &problem.body;
        assert_eq!(body["code"], code, "{body}");
        assert_eq!(problem.header("content-type"), "application/problem+json");
        assert_eq!((&body["type"], &body["status"]), (&format!("/problems/{code}").into(), &status.into()));
        assert!(body["detail"].as_str().is_some_and(|text| !text.is_empty()), "{body}");
        problem
    }

    /// A header as text; empty if it has none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// A member of its body as text.
    #[track_caller]
    pub fn text(&self, name: &str) -> String {
        self.body[name].as_str().unwrap_or_else(|| panic!("no {name:?} in {}", self.body)).to_owned()
    }
}

/// A key made in this home; its secret.
pub fn key(home: &Home, arguments: &[&str]) -> String {
    let said: Said = home.promptq(&[&["keys", "create"], arguments].concat()).ends(0);
    said.stdout.trim().to_owned()
}
