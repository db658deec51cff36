//! A fake LLM provider: OpenAI's, Anthropic's and Gemini's APIs with true sliding limits, faults on demand and a bill of its
//! own. A program (`fake-provider`, see `tests/FAKE_PROVIDER.md`), and [`Fake`] for tests in their own process.
//!
//! A call's way: `wire` reads it, `shape` understands it, `call` decides (`fault`, `limits`), `answer` draws what is said,
//! `deliver` sends it, `state` writes it into `ledger` and `bill`.

mod admin;
pub mod allowance;
pub mod answer;
pub mod bill;
mod call;
pub mod config;
mod deliver;
pub mod fault;
pub mod headers;
pub mod kind;
pub mod ledger;
pub mod limits;
pub mod random;
pub mod refusal;
pub mod shape;
mod state;
pub mod window;
mod wire;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinSet;

use self::allowance::LimitRule;
use self::bill::Bill;
use self::config::Config;
use self::fault::FaultRule;
use self::ledger::Call;
use self::refusal::Refusal;
use self::shape::Route;
use self::state::Shared;
use self::wire::{NoRequest, Request, Wire};

/// Connections that may wait to be let in, at once.
const WAITING: u32 = 16_384;
/// Connections at once; further ones are closed as they come.
const CONNECTIONS: usize = 20_000;
/// How long a caller whose body is too large may take to read why.
const PARTING: Duration = Duration::from_secs(2);

/// A provider that runs; gone with this value.
#[derive(Debug)]
pub struct Fake {
    address: SocketAddr,
    shared: Arc<Shared>,
    server: JoinSet<()>,
}

impl Fake {
    /// On a free port of this machine, with the ledger in memory alone.
    ///
    /// # Errors
    /// When the configuration cannot be meant, or nothing can be listened on.
    ///
    /// # Panics
    /// Outside of a runtime of tokio.
    pub fn start(config: Config, seed: u64) -> anyhow::Result<Self> {
        Self::listen(SocketAddr::from(([127, 0, 0, 1], 0)), config, seed, None)
    }

    /// At an address, with its ledger in a file where one is given.
    ///
    /// # Errors
    /// As [`Fake::start`], or when the file cannot be written.
    ///
    /// # Panics
    /// Outside of a runtime of tokio.
    pub fn listen(at: SocketAddr, config: Config, seed: u64, ledger: Option<&Path>) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared::new(config, seed, ledger)?);
        let socket = if at.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(at).with_context(|| format!("cannot listen on {at}"))?;
        let listener = socket.listen(WAITING)?;
        let address = listener.local_addr()?;
        let mut server = JoinSet::new();
        server.spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self { address, shared, server })
    }

    /// Where it is: `http://127.0.0.1:41234`. Anthropic's clients want just that.
    pub fn origin(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What `OpenAI`'s clients want: with `/v1`.
    pub fn base_url(&self) -> String {
        format!("{}/v1", self.origin())
    }

    /// The same for a caller whom the ledger is to name.
    pub fn base_url_for(&self, caller: &str) -> String {
        format!("{}/{caller}/v1", self.origin())
    }

    /// What calls came to so far.
    pub fn bill(&self) -> Bill {
        self.shared.bill()
    }

    /// Up to [`ledger::PAGE`] calls that ended after that of this number.
    pub fn calls(&self, after: u64) -> Vec<Call> {
        self.shared.lock().ledger.after(after)
    }

    /// Puts other faults in place of those there are; their times and counts begin now.
    ///
    /// # Errors
    /// When one cannot be meant.
    pub fn set_faults(&self, rules: &[FaultRule]) -> anyhow::Result<()> {
        config::check_rules(&[], rules)?;
        self.shared.set_faults(rules);
        Ok(())
    }

    /// Puts other limits in place of those there are; what was used stays used.
    ///
    /// # Errors
    /// When one cannot be meant.
    pub fn set_limits(&self, rules: Vec<LimitRule>) -> anyhow::Result<()> {
        config::check_rules(&rules, &[])?;
        self.shared.set_limits(rules);
        Ok(())
    }

    /// Begins anew with the configuration of the start.
    pub fn reset(&self) {
        self.shared.reset();
    }

    /// Serves until the listener breaks.
    pub async fn serve(mut self) {
        self.server.join_next().await;
    }
}

/// Lets this process have as many connections as its host allows; often only 1,024 until it asks.
pub fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    // Where it may not, it serves as many as it can.
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).ok();
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if connections.len() < CONNECTIONS => {
                    connections.spawn(serve(Wire::new(stream), Arc::clone(&shared)));
                }
                Ok(_) => {}
                // One caller was gone too soon, or no file is free: others may be better off.
                Err(_) => tokio::task::yield_now().await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(mut wire: Wire, shared: Arc<Shared>) {
    loop {
        let request = match wire.request().await {
            Ok(request) => request,
            Err(NoRequest::Over) => return,
            Err(NoRequest::Malformed) => {
                deliver::refuse(&stray(400, "this is not HTTP/1.1"), &mut wire).await;
                return;
            }
            Err(NoRequest::TooLarge(request)) => {
                if let Some(route) = route_of(&request) {
                    deliver::deliver(call::too_large(&shared, &request, &route), false, &mut wire).await;
                } else {
                    deliver::refuse(&stray(413, "the body is too large"), &mut wire).await;
                }
                tokio::time::timeout(PARTING, wire.drain()).await.ok();
                return;
            }
        };
        let is_last = request.is_last();
        let goes_on = if let Some(told) = admin::answer(&shared, &request) {
            deliver::refuse(&told, &mut wire).await
        } else if let Some(route) = route_of(&request) {
            let in_array = route.stream && request.parameter("alt") != Some("sse");
            deliver::deliver(call::decide(&shared, &request, &route), in_array, &mut wire).await
        } else {
            deliver::refuse(&stray(404, "no API is here"), &mut wire).await
        };
        if is_last || !goes_on {
            return;
        }
    }
}

fn route_of(request: &Request) -> Option<Route> {
    Route::of(&request.path).filter(|_| request.method == "POST")
}

fn stray(status: u16, message: &str) -> Refusal {
    let body = serde_json::json!({ "error": { "message": message, "type": "invalid_request_error" } }).to_string();
    Refusal { status, headers: Vec::new(), content_type: "application/json", body }
}
