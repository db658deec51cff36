//! Where the gateway listens: never where others can reach it unless they need a key.

use std::net::SocketAddr;

use tokio::net::TcpListener;

use super::keyring::Ring;
use crate::problem::{Exit, Problem, Result};

/// Listens at `address`; `is_insecure`: somebody said that no keys are wanted.
///
/// # Errors
/// Off loopback without a key that is good for something, or the address cannot be had (exit 2).
pub async fn listen(address: SocketAddr, ring: &Ring, is_insecure: bool) -> Result<TcpListener> {
    allowed(address, ring.usable(), is_insecure)?;
    TcpListener::bind(address).await.map_err(|error| {
        Problem::new(Exit::Usage, "listen", format!("cannot listen on {address}: {error}"))
            .hint("--listen 127.0.0.1:PORT names another place")
    })
}

fn allowed(address: SocketAddr, keys: usize, is_insecure: bool) -> Result<()> {
    let ip = address.ip();
    if ip.to_canonical().is_loopback() || keys > 0 || is_insecure {
        return Ok(());
    }
    Err(Problem::new(Exit::Usage, "no-keys", format!("refusing to listen on {ip} without authentication"))
        .hint("create one with `promptq keys create --role admin`, or bind 127.0.0.1, or pass --insecure-no-auth"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn off_loopback_takes_a_key_or_a_word() {
        let of = |address: &str, keys, word| allowed(address.parse().unwrap(), keys, word);
        for here in ["127.0.0.1:80", "127.9.9.9:80", "[::1]:80", "[::ffff:127.0.0.1]:80"] {
            assert!(of(here, 0, false).is_ok(), "{here}");
        }
        for there in ["0.0.0.0:80", "[::]:80", "10.0.0.1:80", "[::ffff:10.0.0.1]:80"] {
            assert!(of(there, 1, false).is_ok() && of(there, 0, true).is_ok(), "{there}");
            assert_eq!(of(there, 0, false).unwrap_err().slug, "no-keys", "{there}");
        }
        assert_eq!(
            of("0.0.0.0:8080", 0, false).unwrap_err().to_string(),
            "error[no-keys]: refusing to listen on 0.0.0.0 without authentication\n  hint: create one with `promptq keys create --role admin`, or bind 127.0.0.1, or pass --insecure-no-auth"
        );
    }
}
