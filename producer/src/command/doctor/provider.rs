//! Whether a provider can be reached and takes its key: asked for the list of its models, which costs nothing.

use promptq_common::config::{self, Api, ConfigError, Provider};
use secrecy::ExposeSecret;

use super::{Finding, Health, PATIENCE};

const CHECK: &str = "provider";
/// The most bytes of an answer that are looked at: an error's body is a few hundred.
const LOOKED_AT: usize = 4 << 10;

/// Of a key that cannot be had.
pub(super) fn keyless(error: &ConfigError) -> Finding {
    Finding::new(CHECK, Health::Failed, error.to_string())
        .hint("nothing else needs it; workers do not start without it")
}

/// Asks for the list of models: free, and answers whether the key is right.
pub(super) async fn reach(name: &str, provider: &Provider) -> Finding {
    let url = format!("{}/models", provider.base_url.trim_end_matches('/'));
    let shown = config::redact_url(&url);
    promptq_common::tls::install();
    // A key goes to the address that was named and to no other.
    let client = reqwest::Client::builder().timeout(PATIENCE).redirect(reqwest::redirect::Policy::none()).build();
    let client = match client {
        Ok(client) => client,
        Err(error) => return Finding::new(CHECK, Health::Failed, format!("{name}: {error}")),
    };
    let mut request = client.get(&url);
    if let Some((header, version)) = provider.api.version_header() {
        request = request.header(header, version);
    }
    if let Some(key) = &provider.api_key {
        let (header, before) = provider.api.key_header();
        let Ok(mut value) = reqwest::header::HeaderValue::from_str(&format!("{before}{}", key.expose_secret())) else {
            let what = format!("{name}: the key holds a character no header may carry");
            return Finding::new(CHECK, Health::Failed, what).hint(format!("set providers.{name}.api_key"));
        };
        value.set_sensitive(true);
        request = request.header(header, value);
    }
    match request.send().await {
        Ok(answer) => {
            let status = answer.status().as_u16();
            let refused = matches!(status, 401 | 403) || (provider.api == Api::Gemini && is_bad_key(answer).await);
            answered(name, provider, (&shown, status), refused)
        }
        Err(error) => {
            let why = if error.is_timeout() { "no answer within 10 s" } else { "cannot be reached" };
            Finding::unreachable(CHECK, format!("{name}: {shown}: {why}"))
                .hint("is base_url right, and the network open?")
        }
    }
}

fn answered(name: &str, provider: &Provider, (shown, status): (&str, u16), refused: bool) -> Finding {
    match status {
        200..=299 => Finding::new(CHECK, Health::Ok, format!("{name}: {shown} answers")),
        status if refused => {
            let key = if provider.api_key.is_some() { "the key is refused" } else { "a key is wanted" };
            Finding::new(CHECK, Health::Failed, format!("{name}: {key} ({status} from {shown})"))
                .hint(format!("set providers.{name}.api_key"))
        }
        status => Finding::new(CHECK, Health::Warning, format!("{name}: {shown} answers {status}"))
            .hint("is base_url right, up to and including the version?"),
    }
}

/// Gemini answers 400 to a wrong key.
async fn is_bad_key(mut answer: reqwest::Response) -> bool {
    if answer.status().as_u16() != 400 {
        return false;
    }
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = answer.chunk().await {
        body.extend_from_slice(&chunk);
        if body.len() > LOOKED_AT {
            break;
        }
    }
    String::from_utf8_lossy(&body).contains("API_KEY_INVALID")
}
