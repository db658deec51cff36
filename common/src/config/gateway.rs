//! Section `gateway`: where the HTTP gateway listens, whose keys it takes, how much it takes of them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::layer::Sources;
use super::places;
use super::reader::Reader;

/// Section `gateway`.
#[derive(Clone, Debug)]
pub struct Gateway {
    /// Where it listens; `None`: nobody said, see [`Gateway::standard`].
    pub listen: Option<SocketAddr>,
    /// The file of API keys.
    pub keys: PathBuf,
    /// Requests a second of one key that says nothing else.
    pub rate_per_key: u32,
    /// The most bytes of one batch.
    pub max_batch: u64,
    /// How long requests may go on once it is asked to stop.
    pub drain_timeout: Duration,
}

impl Gateway {
    /// Where it listens unless told: on all interfaces at the port that a platform gives in `PORT`, else on loopback.
    ///
    /// # Errors
    /// Says so of a `PORT` that is none.
    pub fn standard(port: Option<&str>) -> Result<SocketAddr, String> {
        let Some(port) = port else { return Ok(([127, 0, 0, 1], 8080).into()) };
        let number = port.trim().parse::<u16>();
        number.map(|port| ([0, 0, 0, 0], port).into()).map_err(|_| format!("PORT is {port:?}, which is no port"))
    }
}

pub(super) fn gateway(r: &mut Reader<'_>, sources: &Sources<'_>) -> Gateway {
    let at = |name: &'static str| ["gateway", name];
    let listen = r.parsed(&at("listen"), None, |text| {
        text.parse::<SocketAddr>().map_err(|_| "must be an address with a port, such as 127.0.0.1:8080".to_owned())
    });
    let keys = r.path(&at("keys")).unwrap_or_else(|| places::state(sources).with_file_name("keys.json"));
    r.stands_for(&at("keys"), keys.to_string_lossy().into_owned());
    Gateway {
        listen,
        keys,
        rate_per_key: r.integer(&at("rate_per_key"), 1..=1_000_000, 100),
        // It is kept on disk while it is checked.
        max_batch: r.size(&at("max_batch"), 1 << 40, 1 << 30),
        // As a worker's: under the 30 s that container platforms commonly grant between SIGTERM and SIGKILL.
        drain_timeout: r.duration(
            &at("drain_timeout"),
            Duration::ZERO..=Duration::from_secs(3_600),
            Duration::from_secs(25),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_platforms_port_is_on_all_interfaces_and_the_default_on_loopback() {
        assert_eq!(Gateway::standard(None).unwrap().to_string(), "127.0.0.1:8080");
        assert_eq!(Gateway::standard(Some("3000")).unwrap().to_string(), "0.0.0.0:3000");
        assert!(Gateway::standard(Some("tcp://1.2.3.4:80")).unwrap_err().contains("which is no port"));
    }
}
