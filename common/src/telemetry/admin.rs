//! The admin listener: `/metrics` and the probes, for whoever runs promptq. A thread and a runtime of its own, so that no
//! load keeps a probe waiting; no secret, no job, nothing to change.

use std::convert::Infallible;
use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;
use tokio::time::{interval, timeout};

use super::health::{Health, Probe};
use super::recorder::{self, Recorder};
use crate::error::{Error, Kind, Result};

/// Where it listens unless told otherwise.
pub const STANDARD: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9091);
/// Requests at once; more wait in the kernel.
const AT_ONCE: usize = 256;
/// One request, from its first byte to the end of its answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Whoever says nothing for so long keeps no place.
const HEAD: Duration = Duration::from_secs(1);
const UPKEEP: Duration = Duration::from_secs(5);
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Where to listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listen {
    /// Nowhere.
    Off,
    /// At [`STANDARD`], unless somebody else does: then nowhere.
    Standard,
    /// Here, or not at all.
    At(SocketAddr),
}

impl Listen {
    /// Where a probe finds it; `None` where there is none.
    pub fn address(self) -> Option<SocketAddr> {
        match self {
            Self::Off => None,
            Self::Standard => Some(STANDARD),
            Self::At(address) => Some(address),
        }
    }
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::Off);
        }
        let address = text.parse().map(Self::At);
        address.map_err(|_| {
            format!("must be an address and a port, such as 127.0.0.1:9091 or 0.0.0.0:9091, or off, not {text:?}")
        })
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address() {
            Some(address) => write!(f, "{address}"),
            None => f.write_str("off"),
        }
    }
}

/// A listener; dropping it ends it.
#[derive(Debug)]
pub struct Admin {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Admin {
    /// Listens, and begins to keep this process's metrics: to be called within the runtime that does the work, before
    /// anything that has numbers is made. `None` where nobody is to listen, or another process has the standard port.
    ///
    /// # Errors
    /// `Config` for an address that was asked for and cannot be had.
    pub fn open(listen: Listen, component: &'static str, health: &Health) -> Result<Option<Self>> {
        const OP: &str = "listen for probes and metrics";
        let Some(address) = listen.address() else { return Ok(None) };
        let bound = match TcpListener::bind(address) {
            Ok(bound) => bound,
            Err(error) if listen == Listen::Standard => {
                tracing::warn!(%address, %error, "no metrics and no probes here; name another address with --admin");
                return Ok(None);
            }
            Err(error) => {
                let what = format!("{address} cannot be had; name another address with --admin, or off");
                return Err(Error::new(Kind::Config, OP, what).because(error));
            }
        };
        let refused = |error: io::Error| Error::new(Kind::Config, OP, "refused by the system").because(error);
        let address = bound.local_addr().map_err(refused)?;
        bound.set_nonblocking(true).map_err(refused)?;
        let recorder = recorder::install(component, tokio::runtime::Handle::current().metrics())?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(refused)?;
        let (stop, stopped) = oneshot::channel();
        let desk = Desk { recorder, health: health.clone() };
        let serving = move || {
            runtime.block_on(async {
                tokio::select! { () = serve(bound, desk) => {}, _ = stopped => {} }
            });
        };
        let thread = std::thread::Builder::new().name("admin".to_owned()).spawn(serving).map_err(refused)?;
        tracing::info!(%address, "serving /metrics, /livez, /readyz and /startupz");
        Ok(Some(Self { address, stop: Some(stop), thread: Some(thread) }))
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        drop(self.stop.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the admin listener broke");
        }
    }
}

#[derive(Clone, Debug)]
struct Desk {
    recorder: &'static Recorder,
    health: Health,
}

async fn serve(bound: TcpListener, desk: Desk) {
    let Ok(listener) = tokio::net::TcpListener::from_std(bound) else { return };
    let (places, mut open, mut upkeep) = (Arc::new(Semaphore::new(AT_ONCE)), JoinSet::new(), interval(UPKEEP));
    loop {
        let accepting = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        tokio::select! {
            _ = upkeep.tick() => desk.recorder.upkeep(),
            (place, accepted) = accepting => match accepted {
                Ok((stream, _)) => {
                    let desk = desk.clone();
                    open.spawn(async move {
                        // However it ends: who asked asks again.
                        drop(timeout(PATIENCE, talk(stream, desk)).await);
                        drop(place);
                    });
                }
                // Mostly too many open files: some close.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            },
        }
        while open.try_join_next().is_some() {}
    }
}

/// One request on each connection: a probe that keeps one open keeps others out.
async fn talk(stream: tokio::net::TcpStream, desk: Desk) -> hyper::Result<()> {
    let answering = service_fn(|request: Request<Incoming>| {
        let answer = desk.answer(request.method(), request.uri().path());
        async { Ok::<_, Infallible>(answer) }
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(16 << 10)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), answering)
        .await
}

impl Desk {
    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        let probe = path.strip_prefix('/').and_then(|name| Probe::ALL.into_iter().find(|probe| probe.as_str() == name));
        if path != "/metrics" && probe.is_none() {
            return text(StatusCode::NOT_FOUND, "there are /metrics, /livez, /readyz and /startupz\n".to_owned());
        }
        if method != Method::GET {
            let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "GET alone\n".to_owned());
            answer.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET"));
            return answer;
        }
        let Some(probe) = probe else { return text(StatusCode::OK, self.recorder.page()) };
        let answer = self.health.answer(probe);
        let status = if answer.is_ok() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let mut told = text(status, serde_json::to_string(&answer).unwrap_or_default());
        told.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
        told
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(TEXT));
    headers.insert(CACHE_CONTROL, hyper::header::HeaderValue::from_static("no-store"));
    answer
}

/// Asks the listener at `address` as an orchestrator would; the answer's body, which is the error where it says no.
///
/// # Errors
/// What the answer says, or why there is none.
pub fn ask(address: SocketAddr, probe: Probe) -> Result<String, String> {
    const WAIT: Duration = Duration::from_secs(2);
    let here = match address.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip @ (IpAddr::V4(_) | IpAddr::V6(_)) => ip,
    };
    let address = SocketAddr::new(here, address.port());
    // In one piece: a server that answers the first it reads, and closes, takes what comes later amiss.
    let request = format!("GET /{} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n", probe.as_str());
    let mut answer = Vec::new();
    let asked = (|| {
        let mut stream = TcpStream::connect_timeout(&address, WAIT)?;
        stream.set_read_timeout(Some(WAIT))?;
        stream.set_write_timeout(Some(WAIT))?;
        stream.write_all(request.as_bytes())?;
        stream.take(64 << 10).read_to_end(&mut answer)
    })();
    match asked.map_err(|error| error.kind()) {
        Ok(_) => {}
        Err(io::ErrorKind::ConnectionRefused) => {
            return Err(format!("nothing listens at {address}; where it is elsewhere: --admin ADDR, or PROMPTQ_ADMIN"));
        }
        Err(io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
            return Err(format!("{address} does not answer within {} s", WAIT.as_secs()));
        }
        Err(kind) => return Err(format!("{address} cannot be asked: {kind}")),
    }
    let answer = String::from_utf8_lossy(&answer);
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body.trim()).to_owned();
    // A probe says itself how it stands, as JSON; another server may say anything.
    match answer.split(' ').nth(1) {
        Some("200") if body.starts_with('{') => Ok(body),
        Some("503") if body.starts_with('{') => Err(format!("{} at {address}: {body}", probe.as_str())),
        _ => {
            let line: String = answer.lines().next().unwrap_or_default().chars().take(80).collect();
            Err(format!("what listens at {address} is no part of promptq: it answers {line:?}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here() -> Listen {
        Listen::At(SocketAddr::new(STANDARD.ip(), 0))
    }

    fn raw(address: SocketAddr, request: &str) -> String {
        let (mut stream, mut answer) = (TcpStream::connect(address).unwrap(), String::new());
        stream.write_all(request.as_bytes()).unwrap();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn probes_are_answered_while_the_work_keeps_every_thread() {
        let health = Health::default();
        let admin = Admin::open(here(), "worker", &health).unwrap().unwrap();
        // The test's own thread asks and its runtime's one thread waits for it: nobody but the listener is left.
        assert!(ask(admin.address(), Probe::Live).is_ok());
        let unready = ask(admin.address(), Probe::Ready).unwrap_err();
        assert!(unready.starts_with(&format!("readyz at {}: {{", admin.address())), "{unready}");
        assert!(unready.contains("\"status\":\"unavailable\""), "{unready}");
        health.report("consuming", Ok(()));
        assert!(ask(admin.address(), Probe::Ready).unwrap().contains("\"consuming\""));
        let page = raw(admin.address(), "GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n");
        assert!(page.starts_with("HTTP/1.1 200 ") && page.contains("version=0.0.4"), "{page}");
        assert!(page.contains("promptq_build_info{component=\"worker\""), "{page}");
        assert!(raw(admin.address(), "POST /metrics HTTP/1.1\r\nhost: x\r\n\r\n").starts_with("HTTP/1.1 405 "));
        assert!(raw(admin.address(), "GET /jobs HTTP/1.1\r\nhost: x\r\n\r\n").starts_with("HTTP/1.1 404 "));
        let address = admin.address();
        drop(admin);
        assert!(ask(address, Probe::Live).unwrap_err().starts_with(&format!("nothing listens at {address}; ")));
    }

    #[tokio::test]
    async fn connections_that_say_nothing_keep_no_probe_waiting() {
        let admin = Admin::open(here(), "worker", &Health::default()).unwrap().unwrap();
        let idle: Vec<_> = (0..200).map(|_| TcpStream::connect(admin.address()).unwrap()).collect();
        assert!(ask(admin.address(), Probe::Live).is_ok());
        drop(idle);
    }

    #[test]
    fn another_server_is_told_from_one_of_ours() {
        // Again and again: what comes in pieces may happen to be read in one.
        const ROUNDS: usize = 20;
        for (answer, says) in [
            ("HTTP/1.1 404 Not Found\r\n\r\n", "is no part of promptq: it answers \"HTTP/1.1 404 Not Found\""),
            ("HTTP/1.1 200 OK\r\n\r\n<html>", "it answers \"HTTP/1.1 200 OK\""),
            ("SSH-2.0-x\r\n", "it answers \"SSH-2.0-x\""),
            ("", "it answers \"\""),
        ] {
            let other = TcpListener::bind(SocketAddr::new(STANDARD.ip(), 0)).unwrap();
            let address = other.local_addr().unwrap();
            let served = std::thread::spawn(move || {
                let whole = (0..ROUNDS).filter(|_| {
                    let (mut stream, _) = other.accept().unwrap();
                    let mut asked = [0; 256];
                    let length = stream.read(&mut asked).unwrap();
                    stream.write_all(answer.as_bytes()).unwrap();
                    asked[..length].ends_with(b"\r\n\r\n")
                });
                whole.count()
            });
            let said: Vec<_> = (0..ROUNDS).map(|_| ask(address, Probe::Live).unwrap_err()).collect();
            assert_eq!(served.join().unwrap(), ROUNDS, "all of it comes at once");
            for said in said {
                assert!(said.starts_with(&format!("what listens at {address} ")) && said.ends_with(says), "{said}");
            }
        }
    }

    #[tokio::test]
    async fn an_address_that_was_asked_for_and_is_taken_is_an_error() {
        let taken = TcpListener::bind(SocketAddr::new(STANDARD.ip(), 0)).unwrap();
        let refused = Admin::open(Listen::At(taken.local_addr().unwrap()), "worker", &Health::default()).unwrap_err();
        assert_eq!(refused.kind(), Kind::Config);
        assert!(Admin::open(Listen::Off, "worker", &Health::default()).unwrap().is_none());
    }

    #[test]
    fn an_address_is_read_strictly() {
        assert_eq!("off".parse(), Ok(Listen::Off));
        assert_eq!("[::]:9091".parse(), Ok(Listen::At("[::]:9091".parse().unwrap())));
        assert!(
            "9091".parse::<Listen>().unwrap_err().ends_with("127.0.0.1:9091 or 0.0.0.0:9091, or off, not \"9091\"")
        );
        assert_eq!(Listen::Standard.to_string(), "127.0.0.1:9091");
    }
}
