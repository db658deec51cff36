//! The admin listener of a process, as Prometheus and orchestrators see it: asked over a plain socket.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use promptq_common::telemetry::metric::{ALL, Kind};
use serde_json::Value;

/// Where a process of a test shows itself.
#[derive(Clone, Copy, Debug)]
pub struct Admin(SocketAddr);

impl Admin {
    /// An address that nobody has.
    ///
    /// # Panics
    /// When there is none.
    pub fn free() -> Self {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        Self(taken.local_addr().expect("an address"))
    }

    /// As a flag says it.
    pub fn flag(&self) -> String {
        format!("--admin={}", self.0)
    }

    /// As it is.
    pub fn address(&self) -> SocketAddr {
        self.0
    }

    /// The answer to a GET: its status and its body; `None` when nobody answers.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(self.0).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: {}\r\n\r\n", self.0).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let status = answer.split(' ').nth(1)?.parse().ok()?;
        Some((status, answer.split_once("\r\n\r\n")?.1.to_owned()))
    }

    /// The status of a probe and what it says.
    pub fn probe(&self, name: &str) -> Option<(u16, Value)> {
        let (status, body) = self.get(&format!("/{name}"))?;
        Some((status, serde_json::from_str(&body).ok()?))
    }

    /// The metrics there are now.
    pub fn page(&self) -> Option<Page> {
        let (status, text) = self.get("/metrics")?;
        (status == 200).then(|| Page::read(text))
    }
}

/// A page of metrics.
#[derive(Clone, Debug)]
pub struct Page {
    /// As it came.
    pub text: String,
    series: BTreeMap<String, f64>,
}

impl Page {
    fn read(text: String) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        let series = lines.filter_map(|line| {
            line.rsplit_once(' ').and_then(|(name, value)| Some((name.to_owned(), value.parse().ok()?)))
        });
        let series = series.collect();
        Self { text, series }
    }

    /// The value of a series, named as on the page.
    pub fn value(&self, series: &str) -> Option<f64> {
        self.series.get(series).copied()
    }

    /// Whether there is any series of this name.
    pub fn has(&self, name: &str) -> bool {
        self.series.keys().any(|series| series.split('{').next() == Some(name))
    }

    /// Series whose name, labels or values the catalogue does not know.
    pub fn strange(&self) -> Vec<&String> {
        self.series.keys().filter(|series| !is_known(series)).collect()
    }
}

fn is_known(series: &str) -> bool {
    let (name, labels) = series.split_once('{').unwrap_or((series, ""));
    let Some(metric) = ALL.iter().find(|metric| match metric.kind {
        Kind::Histogram(_) => {
            ["_bucket", "_sum", "_count"].iter().any(|end| name.strip_suffix(end) == Some(metric.name))
        }
        Kind::Counter | Kind::Sum | Kind::Gauge => name == metric.name,
    }) else {
        return false;
    };
    let pairs = labels.trim_end_matches('}').split(',').filter_map(|pair| pair.split_once('='));
    let pairs = pairs.map(|(label, value)| (label, value.trim_matches('"'))).filter(|(label, _)| *label != "le");
    let mut labels = 0;
    for (label, value) in pairs {
        labels += 1;
        let known = metric.labels.iter().find(|known| known.name == label);
        if !known.is_some_and(|known| known.values.is_empty() || known.values.contains(&value)) {
            return false;
        }
    }
    labels == metric.labels.len()
}
