//! Sends a job to a provider and reads what comes back. One call a run: retries are the queue's. What is sent and what an
//! answer means is `provider`'s, how its bytes are read `read.rs`.

mod read;
mod sent;

use std::time::Duration;

use anyhow::{Context, bail};
use async_trait::async_trait;
use promptq_common::config::{Api, Model};
use promptq_common::job::Job;
use promptq_common::limits::Counts;
use promptq_common::outcome::{CostSource, Failure, FailureClass, Outcome, Reply, Usage};
use promptq_common::store::ReuseKey;
use promptq_common::telemetry::trace::Context as Place;
use promptq_common::time::{Timestamp, format_duration};
use promptq_common::tls;
use promptq_common::work::{Input, family};
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Response, redirect, retry};
use secrecy::ExposeSecret;
use url::Url;

use self::read::{ANSWER_MAX, Got, Patience, Whole};
use self::sent::Sent;
use super::{ProviderSettings, RunContext, Runner, WhenLost};
use crate::provider::request::{Request, Target};
use crate::provider::{Read, Refusal, allowance, classify, secrets};
use crate::reuse::canonical;

/// The longest wait for a connection with TLS: three SYN retransmissions and a slow handshake.
const CONNECT: Duration = Duration::from_secs(10);
/// How long an unused connection is kept: under the 5 s after which llama.cpp and uvicorn (vLLM) close theirs, since a
/// request that meets a closing connection may or may not have been read.
const IDLE: Duration = Duration::from_secs(4);
/// The most bytes of an error's body that are looked at.
const ERROR_MAX: usize = 64 << 10;
/// How long they are waited for: its status alone says most of what an error is.
const REFUSAL: Duration = Duration::from_secs(5);
/// A stream may take so many times the job's timeout, which for it is the longest silence: with the usual ten minutes an
/// hour, enough for 128,000 tokens, the most that models answer with, at 36 a second.
const STREAM_TIMES: u32 = 6;

/// The HTTP client that every provider shares.
///
/// # Errors
/// When this host's TLS set-up cannot be read.
pub(super) fn client() -> anyhow::Result<Client> {
    tls::install();
    Client::builder()
        .user_agent(concat!("promptq/", env!("CARGO_PKG_VERSION")))
        .redirect(redirect::Policy::none())
        .retry(retry::never())
        .connect_timeout(CONNECT)
        .pool_idle_timeout(IDLE)
        .tcp_nodelay(true)
        .build()
        .context("cannot set up HTTPS; hint: are the system's CA certificates installed (package ca-certificates)?")
}

/// One provider, or one model of it under a name of one's own.
#[derive(Clone)]
pub struct Chat {
    name: String,
    base_url: Url,
    settings: ProviderSettings,
    client: Client,
    alias: Option<(String, String)>,
}

impl Chat {
    /// The provider `name`.
    ///
    /// # Errors
    /// When its base URL is none, carries a password, or its key cannot be sent in a header.
    pub(super) fn new(name: &str, settings: ProviderSettings, client: Client) -> anyhow::Result<Self> {
        let at = format!("providers.{name}.base_url");
        let base_url = Url::parse(&settings.base_url).with_context(|| format!("{at} is not a URL"))?;
        if !matches!(base_url.scheme(), "http" | "https") || base_url.cannot_be_a_base() {
            bail!("{at} does not begin with http:// or https://");
        }
        if !base_url.username().is_empty() || base_url.password().is_some() {
            bail!("{at} carries a user name or password; hint: use providers.{name}.api_key");
        }
        let chat = Self { name: name.to_owned(), base_url, settings, client, alias: None };
        chat.headers(false)
            .with_context(|| format!("providers.{name}.api_key holds a character no header may carry"))?;
        Ok(chat)
    }

    /// Whether a job without a model can be sent: there is a default, or its body says.
    pub(super) fn serves_unnamed(&self, job: &Job) -> bool {
        self.settings.default_model.is_some() || matches!(job.work.input, Input::Request { .. })
    }

    /// The same provider for the model that jobs call `name`.
    pub(super) fn called(&self, name: &str, model: &Model) -> Self {
        Self { alias: Some((name.to_owned(), model.model.clone())), ..self.clone() }
    }

    /// What it speaks.
    pub(super) fn api(&self) -> Api {
        self.settings.api
    }

    fn target(&self) -> Target<'_> {
        Target {
            provider: &self.name,
            api: self.settings.api,
            alias: self.alias.as_ref().map(|(name, model)| (name.as_str(), model.as_str())),
            fallback: self.settings.default_model.as_deref(),
            stream_above: self.settings.stream_above,
        }
    }

    fn headers(&self, stream: bool) -> anyhow::Result<HeaderMap> {
        let accept = if stream { "text/event-stream" } else { "application/json" };
        let mut headers = HeaderMap::from_iter([
            (CONTENT_TYPE, HeaderValue::from_static("application/json")),
            (ACCEPT, HeaderValue::from_static(accept)),
        ]);
        if let Some((name, version)) = self.settings.api.version_header() {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(version));
        }
        if let Some(key) = &self.settings.api_key {
            let (name, before) = self.settings.api.key_header();
            let mut value = HeaderValue::from_str(&format!("{before}{}", key.expose_secret()))?;
            value.set_sensitive(true);
            headers.insert(HeaderName::from_static(name), value);
        }
        Ok(headers)
    }

    async fn call(&self, job: &Job, cx: &RunContext) -> Result<Reply, Failure> {
        let stream_above = if cx.stream { 0 } else { self.settings.stream_above };
        let request = Request::new(&job.work, &Target { stream_above, ..self.target() })?;
        let (sent, timeout) = (Sent::default(), job.policy.timeout);
        let patience = Patience::new(timeout, if request.stream { streamed(timeout) } else { timeout });
        let response = patience.wait(self.send(&request, &sent, cx.trace)).await.unwrap_or_else(|| {
            let waited = format!("no answer from {} within {}", self.place(), format_duration(timeout));
            Err(cut(&request, &sent, "timeout", &waited))
        })?;
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        if let Some(ear) = &cx.ear {
            ear.hear(allowance::heard(&headers, Timestamp::now()));
        }
        if !response.status().is_success() {
            let got = read::body(response, ERROR_MAX, Patience::new(REFUSAL, REFUSAL)).await;
            return Err(self.refused(job, Refusal { status, headers: &headers, body: &got.body }));
        }
        let got = if request.stream && read::is_stream(&headers) {
            read::stream(response, request.endpoint, patience).await
        } else {
            read::body(response, ANSWER_MAX, patience).await
        };
        self.answered(job, &request, (status, &headers), &got)
    }

    async fn send(&self, request: &Request, sent: &Sent, place: Option<Place>) -> Result<Response, Failure> {
        let mut url = self.base_url.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(&request.path);
        }
        if let Some(query) = request.query {
            let known = url.query().map(|known| format!("{known}&")).unwrap_or_default();
            url.set_query(Some(&format!("{known}{query}")));
        }
        let mut headers = self.headers(request.stream).unwrap_or_default();
        if let Some(place) = place.filter(|_| self.settings.traceparent)
            && let Ok(value) = HeaderValue::try_from(place.to_string())
        {
            headers.insert(HeaderName::from_static(Place::NAME), value);
        }
        let body = reqwest::Body::wrap(sent.watch(request.body.clone()));
        self.client.post(url).headers(headers).body(body).send().await.map_err(|error| {
            let (code, what) = if error.is_connect() && error.is_timeout() {
                ("connect_timeout", "no connection to")
            } else if error.is_connect() {
                ("connect_failed", "cannot connect to")
            } else {
                ("connection_lost", "the connection broke before an answer came from")
            };
            cut(request, sent, code, &format!("{what} {}{}", self.place(), deepest(&error.without_url())))
        })
    }

    fn answered(
        &self,
        job: &Job,
        request: &Request,
        (status, headers): (u16, &HeaderMap),
        got: &Got,
    ) -> Result<Reply, Failure> {
        let consumed = || told_or(got.seen, request);
        let unknown = |class, code: &str, what: &str| {
            let detail = format!("{what} from {} after HTTP {}", self.place(), status);
            Failure { status_code: Some(status), usage: consumed(), ..Failure::new(class, code, &detail) }
        };
        let refused = |body: &[u8]| {
            let mut failure = self.refused(job, Refusal { status, headers, body });
            // What came of the answer before has probably been paid for.
            if got.first_piece.is_some() {
                if !matches!(failure.class, FailureClass::Fatal | FailureClass::Content) {
                    failure.class = FailureClass::UnknownBilled;
                }
                if failure.usage == Usage::default() {
                    failure.usage = consumed();
                }
            }
            failure
        };
        // It was probably worked on and paid for, so it may not be tried as often as a plain fault.
        let garbage = || unknown(FailureClass::UnknownBilled, "invalid_answer", "something else than an answer came");
        match got.whole {
            Whole::Yes => {}
            Whole::Failed => return Err(refused(&got.body)),
            Whole::Odd => return Err(garbage()),
            Whole::Cut => {
                return Err(unknown(FailureClass::UnknownBilled, "answer_cut", "the answer was cut"));
            }
            Whole::Late => {
                let waited = format_duration(job.policy.timeout);
                let what = format!("no end of the answer came in time (nothing for {waited}, or not all of it)");
                return Err(unknown(FailureClass::UnknownBilled, "timeout", &what));
            }
            Whole::TooLarge => {
                return Err(unknown(FailureClass::Fatal, "output_too_large", "an answer of more than 16 MiB came"));
            }
        }
        match crate::provider::read(request.endpoint, &request.body, status, got.body.clone()) {
            Read::Answer(mut reply) => {
                if let Some(id) = request_id(headers) {
                    reply.request_id = Some(id);
                }
                if reply.usage == Usage::default() {
                    reply.usage = request.estimate();
                    reply.origin.get_or_insert_default().cost_source = Some(CostSource::Estimate);
                }
                if got.first_piece.is_some() {
                    reply.detail.get_or_insert_default().first_piece = got.first_piece;
                }
                Ok(*reply)
            }
            Read::Failed => Err(refused(&got.body)),
            Read::Garbage => Err(garbage()),
        }
    }

    fn refused(&self, job: &Job, refusal: Refusal<'_>) -> Failure {
        let key = self.settings.api_key.as_ref().map_or("", ExposeSecret::expose_secret);
        let texts = secrets(&job.work);
        let secrets: Vec<_> = texts.iter().map(String::as_str).chain([key]).collect();
        classify(self.settings.api, refusal, &secrets, Timestamp::now())
    }

    /// Scheme, host and port: all of an address that an error may show.
    fn place(&self) -> String {
        self.base_url.origin().ascii_serialization()
    }
}

/// By hand: neither the key nor what else a URL may hold is shown.
impl std::fmt::Debug for Chat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chat").field("name", &self.name).field("at", &self.place()).finish_non_exhaustive()
    }
}

#[async_trait]
impl Runner for Chat {
    async fn run(&self, job: &Job, cx: &RunContext) -> Outcome {
        match self.call(job, cx).await {
            Ok(reply) => Outcome::Success(reply),
            Err(failure) => Outcome::Failure(failure),
        }
    }

    fn when_lost(&self) -> WhenLost {
        WhenLost::Finish
    }

    fn longest(&self, job: &Job) -> Duration {
        streamed(job.policy.timeout)
    }

    fn estimate(&self, job: &Job) -> Usage {
        Request::new(&job.work, &self.target()).map(|request| request.estimate()).unwrap_or_default()
    }

    fn most_output(&self, job: &Job) -> Option<u64> {
        Request::new(&job.work, &self.target()).ok()?.output_max
    }

    fn endpoint(&self) -> Option<Counts> {
        Some(allowance::counts(self.settings.api))
    }

    fn limit_key(&self, job: &Job) -> String {
        let target = self.target();
        let model = job.work.model.as_deref().map(|model| target.real(model)).or(target.fallback).unwrap_or("_");
        format!("{}/{}", self.name, family(model))
    }

    /// What would be sent, and where to; whether its answer comes as a stream makes no other one of it.
    fn reuse_key(&self, job: &Job) -> Option<ReuseKey> {
        let request = Request::new(&job.work, &Target { stream_above: u64::MAX, ..self.target() }).ok()?;
        let body = canonical(std::str::from_utf8(&request.body).ok()?);
        let (api, base) = (self.settings.api.as_str(), self.base_url.as_str().trim_end_matches('/'));
        Some(ReuseKey::new(job.tenant.as_deref(), &["chat", api, base, &request.path.join("/"), &body]))
    }

    fn priced_as(&self, job: &Job) -> Option<(String, String)> {
        let target = self.target();
        let model = job.work.model.as_deref().map(|model| target.real(model)).or(target.fallback)?;
        Some((self.name.clone(), model.to_owned()))
    }
}

/// How long a stream may take.
fn streamed(timeout: Duration) -> Duration {
    timeout.saturating_mul(STREAM_TIMES)
}

/// What a stream has said that it consumed, or what the request says. What it says of its output on the way is at times said
/// before it was made.
fn told_or(told: Usage, request: &Request) -> Usage {
    let guess = request.estimate();
    if told == Usage::default() {
        return guess;
    }
    Usage { output_tokens: told.output_tokens.max(guess.output_tokens), ..told }
}

/// A call that ended without an answer: nobody's doing before the body was sent, perhaps paid for afterwards.
fn cut(request: &Request, sent: &Sent, code: &str, detail: &str) -> Failure {
    if sent.begun() {
        let failure = Failure::new(FailureClass::UnknownBilled, code, detail);
        return Failure { usage: request.estimate(), ..failure };
    }
    Failure::new(FailureClass::Capacity, code, detail)
}

fn request_id(headers: &HeaderMap) -> Option<String> {
    let id = ["x-request-id", "request-id"].iter().find_map(|name| headers.get(*name))?.to_str().ok()?;
    Some(id.chars().take(200).collect())
}

/// The innermost cause, which names the fault ("Connection refused").
fn deepest(error: &reqwest::Error) -> String {
    let mut inner: &dyn std::error::Error = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    format!(": {inner}")
}

#[cfg(test)]
mod apis_tests;
#[cfg(test)]
mod tests;
