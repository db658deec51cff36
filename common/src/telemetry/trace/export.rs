//! From finished spans to the collector: a bounded queue, batches, OTLP over HTTP. Nobody waits for any of it: what finds
//! no room, or a collector that cannot be reached, is counted and gone.

use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Response, StatusCode, redirect};
use secrecy::ExposeSecret;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{Data, Fate, INSTALLED, Tally, Tracer, counters, otlp};
use crate::config::{Remark, Traces, redact_url};
use crate::error::{Error, Kind, Result};
use crate::tls;

/// Spans that wait: at a kilobyte each some 2 MiB.
const QUEUE: usize = 2048;
/// Spans in one request.
const BATCH: usize = 512;
/// How long a span waits for others to go with.
const COMPANY: Duration = Duration::from_secs(1);
/// The longest one request may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The waits between tries; after the last one a batch is lost.
const PAUSES: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(9)];
/// What is read of an answer that says yes, and how long.
const ANSWER: (usize, Duration) = (64 << 10, Duration::from_secs(1));
/// What is left when the process ends may take so long.
const LAST: Duration = Duration::from_secs(3);

/// Sends this process's spans, from now on until it is closed.
#[derive(Debug)]
pub struct Exporter {
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
    tally: Arc<Tally>,
}

impl Exporter {
    /// Begins to trace, where a collector is named: to be called within the runtime. A second
    /// call in one process changes nothing. `service` is what this process is called unless it was told.
    ///
    /// # Errors
    /// `Config` for headers that no request can carry.
    pub fn open(settings: Option<&Traces>, service: &str) -> Result<Option<Self>> {
        let Some(settings) = settings else { return Ok(None) };
        let (tracer, shipping, exporter) = Self::parts(settings, service)?;
        if INSTALLED.set(tracer).is_err() {
            return Ok(None);
        }
        counters();
        tracing::debug!(endpoint = %redact_url(&settings.endpoint), "spans are sent there");
        match &settings.remark {
            Some(Remark::Warning(remark)) => tracing::warn!("{remark}"),
            Some(Remark::Note(remark)) => tracing::info!("{remark}"),
            None => {}
        }
        Ok(Some(exporter.ship(shipping)))
    }

    fn parts(settings: &Traces, service: &str) -> Result<(Tracer, Shipping, Self)> {
        let (sender, queue) = mpsc::channel(QUEUE);
        let (stop, stopped) = watch::channel(false);
        let tally = Arc::<Tally>::default();
        let tracer = Tracer { sampler: settings.sampler, queue: sender, tally: Arc::clone(&tally) };
        let post =
            Post { settings: settings.clone(), resource: resource(settings, service), headers: headers(settings)? };
        let (batch, pauses, well, whole) = (Vec::new(), PAUSES, true, true);
        let shipping = Shipping { queue, stopped, post, batch, pauses, well, whole, tally: Arc::clone(&tally) };
        Ok((tracer, shipping, Self { stop, tasks: JoinSet::new(), tally }))
    }

    fn ship(mut self, shipping: Shipping) -> Self {
        self.tasks.spawn(shipping.run());
        self
    }

    /// Sends what is left, within three seconds; what comes later is not taken any more. Says how many spans never arrived.
    pub async fn close(mut self) {
        self.stop.send_replace(true);
        let in_time = timeout(LAST, self.tasks.join_next()).await.is_ok();
        self.tasks.shutdown().await;
        let [lost, dropped] = [Fate::Lost, Fate::Dropped].map(|fate| self.tally.of(fate));
        if lost + dropped > 0 {
            tracing::warn!(
                lost,
                dropped,
                in_time,
                "traces are incomplete: the collector did not take some spans (lost), or there was no room or no time for \
                 them (dropped)"
            );
        }
    }
}

/// Closes what there is to close.
pub async fn close(exporter: Option<Exporter>) {
    if let Some(exporter) = exporter {
        exporter.close().await;
    }
}

fn resource(settings: &Traces, service: &str) -> otlp::Resource {
    let own = [
        ("service.name", settings.service.as_deref().unwrap_or(service)),
        ("service.version", env!("CARGO_PKG_VERSION")),
    ];
    let said = settings.resource.iter().filter(|(key, _)| key != "service.name" || settings.service.is_none());
    let mut resource: otlp::Resource = said.cloned().collect();
    for (key, value) in own {
        if resource.iter().all(|(known, _)| known != key) {
            resource.push((key.to_owned(), value.to_owned()));
        }
    }
    resource
}

fn headers(settings: &Traces) -> Result<HeaderMap> {
    // Neither name nor value is shown: both may be a secret that stands in the wrong place.
    let bad = || Error::new(Kind::Config, "send traces", "telemetry.otlp_headers holds what no header may carry");
    let said = settings.headers.as_ref().map_or("", ExposeSecret::expose_secret);
    let mut headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
    for (name, value) in Traces::pairs(said).map_err(|_| bad())? {
        let mut value = HeaderValue::from_str(&value).map_err(|_| bad())?;
        value.set_sensitive(true);
        headers.insert(HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad())?, value);
    }
    Ok(headers)
}

/// Where requests go, and with what.
#[derive(Debug)]
struct Post {
    settings: Traces,
    resource: otlp::Resource,
    headers: HeaderMap,
}

/// How a try went.
enum Tried {
    /// All but so many spans.
    Taken(usize),
    /// It may go better later.
    Later(String),
    Refused(String),
}

impl Post {
    fn client() -> reqwest::Result<Client> {
        tls::install();
        let named = concat!("promptq/", env!("CARGO_PKG_VERSION"));
        Client::builder().user_agent(named).redirect(redirect::Policy::none()).timeout(PATIENCE).build()
    }

    async fn once(&self, client: &Client, body: &[u8]) -> Tried {
        let request = client.post(&self.settings.endpoint).headers(self.headers.clone()).body(body.to_vec());
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) => {
                let why = Error::new(Kind::Unavailable, "send spans", "no answer").because(error.without_url());
                return Tried::Later(why.to_string());
            }
        };
        match answer.status() {
            status if status.is_success() => {
                Tried::Taken(timeout(ANSWER.1, rejected(answer)).await.unwrap_or_default())
            }
            status @ (StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT) => Tried::Later(format!("HTTP {}", status.as_u16())),
            status => Tried::Refused(format!("HTTP {}", status.as_u16())),
        }
    }
}

/// How many spans a collector says it did not take though it took the others; none where it says nothing that is
/// understood.
async fn rejected(mut answer: Response) -> usize {
    let mut body = Vec::new();
    while let Ok(Some(piece)) = answer.chunk().await {
        body.extend_from_slice(&piece[..piece.len().min(ANSWER.0 - body.len())]);
        if body.len() == ANSWER.0 {
            break;
        }
    }
    let said: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    // A whole number of 64 bits is text in this JSON; not all collectors know.
    let count = &said["partialSuccess"]["rejectedSpans"];
    let count = count.as_u64().or_else(|| count.as_str()?.parse().ok()).unwrap_or(0);
    usize::try_from(count).unwrap_or(usize::MAX)
}

/// Takes spans from the queue to the collector.
#[derive(Debug)]
struct Shipping {
    queue: mpsc::Receiver<Data>,
    stopped: watch::Receiver<bool>,
    post: Post,
    /// What is on its way.
    batch: Vec<Data>,
    /// The waits between tries.
    pauses: [Duration; 3],
    /// Whether the last batch arrived.
    well: bool,
    /// Whether each batch that arrived was taken whole.
    whole: bool,
    tally: Arc<Tally>,
}

impl Shipping {
    async fn run(mut self) {
        let client = Post::client().map_err(|error| tracing::warn!(%error, "spans cannot be sent")).ok();
        while self.gather().await {
            let arrived = match &client {
                Some(client) => self.deliver(client).await,
                None => 0,
            };
            self.tally.add(Fate::Sent, arrived);
            self.tally.add(Fate::Lost, self.batch.len() - arrived);
            self.batch.clear();
        }
    }

    /// Waits for spans, and a moment for others. False: there are none any more.
    async fn gather(&mut self) -> bool {
        let Self { queue, stopped, batch, .. } = self;
        tokio::select! {
            biased;
            came = queue.recv_many(batch, BATCH) => if came == 0 { return false },
            () = asked(stopped) => {
                queue.close();
                return queue.recv_many(batch, BATCH).await > 0;
            }
        }
        let company = async { while batch.len() < BATCH && queue.recv_many(batch, BATCH - batch.len()).await > 0 {} };
        tokio::select! {
            () = company => {}
            () = tokio::time::sleep(COMPANY) => {}
            () = asked(stopped) => {}
        }
        true
    }

    /// Tries until it arrives, or cannot; once the process ends, only once more. How many spans did.
    async fn deliver(&mut self, client: &Client) -> usize {
        let body = otlp::encode(&self.post.resource, &self.batch);
        let mut pauses = self.pauses.into_iter();
        loop {
            let (why, again) = match self.post.once(client, &body).await {
                Tried::Taken(rejected) => {
                    self.note(None);
                    return self.batch.len() - self.note_rejected(rejected);
                }
                Tried::Later(why) => (why, pauses.next().filter(|_| !*self.stopped.borrow())),
                Tried::Refused(why) => (why, None),
            };
            self.note(Some(&why));
            let Some(pause) = again else { return 0 };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = asked(&mut self.stopped) => {}
            }
        }
    }

    /// Once for a whole outage.
    fn note(&mut self, why: Option<&str>) {
        let endpoint = redact_url(&self.post.settings.endpoint);
        match (why, self.well) {
            (Some(why), true) => tracing::warn!(
                %endpoint, why,
                "spans cannot be sent; jobs go on without; hint: it must be OTLP over HTTP, mostly port 4318"
            ),
            (Some(why), false) => tracing::debug!(%endpoint, why, "spans cannot be sent"),
            (None, false) => tracing::info!(%endpoint, "spans are sent again"),
            (None, true) => {}
        }
        self.well = why.is_none();
    }

    /// Once for a process: what a collector does not take it hardly ever takes later. How many that were, of this batch.
    fn note_rejected(&mut self, rejected: usize) -> usize {
        let (spans, rejected) = (self.batch.len(), rejected.min(self.batch.len()));
        if rejected > 0 && std::mem::take(&mut self.whole) {
            let endpoint = redact_url(&self.post.settings.endpoint);
            tracing::warn!(%endpoint, rejected, spans, "the collector takes some spans and rejects others, which are lost; its log says why");
        }
        rejected
    }
}

/// What it was still to send when it was stopped is dropped.
impl Drop for Shipping {
    fn drop(&mut self) {
        self.queue.close();
        let waiting = std::iter::from_fn(|| self.queue.try_recv().ok()).count();
        self.tally.add(Fate::Dropped, self.batch.len() + waiting);
    }
}

async fn asked(stopped: &mut watch::Receiver<bool>) {
    // An error means that nobody is left who could ask, which is asking too.
    drop(stopped.wait_for(|stopped| *stopped).await);
}

#[cfg(test)]
#[path = "export_tests.rs"]
mod tests;
