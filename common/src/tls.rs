//! The one TLS provider of the process: rustls with ring. Whoever makes an HTTP client calls [`install`] first.

use std::sync::Once;

/// Makes ring the provider of every TLS client made after it. Cheap to call again; a provider that the embedding
/// program installed before stays.
pub fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if rustls::crypto::ring::default_provider().install_default().is_err() {
            tracing::debug!("another TLS provider was installed before");
        }
    });
}
