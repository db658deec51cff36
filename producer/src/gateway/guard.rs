//! What every request passes, in this order: the bounds of its head, its host, its key, the key's role and rate; and what
//! every answer gets: its request's id, headers that keep browsers from misusing it, a log line without its content.

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, HOST, ORIGIN, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response};
use axum::middleware::Next;
use axum::response::IntoResponse;
use promptq_common::job::JobId;
use tokio::time::Instant;

use super::auth::Caller;
use super::problem::{Problem, Result};
use super::watched::Watched;
use super::{Shared, route};

/// The longest address that is taken.
const URI: usize = 4_096;

/// Lets a request through to its route, or answers it.
pub(super) async fn guard(State(gateway): State<Shared>, mut request: Request, next: Next) -> Response<Body> {
    let (began, _counts) = (Instant::now(), gateway.watched.begin());
    let id = JobId::fresh();
    let method = request.method().clone();
    let template = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let mut response = match admit(&gateway, &request, template.as_deref()) {
        Ok(caller) => {
            let key = caller.as_ref().map_or("", Caller::id).to_owned();
            if let Some(caller) = caller {
                request.extensions_mut().insert(caller);
            }
            let response = next.run(request).await;
            tracing::debug!(request = %id, key, "answered");
            response
        }
        Err(problem) => problem.into_response(),
    };
    let headers = response.headers_mut();
    headers.extend(safety());
    if let Ok(id) = HeaderValue::try_from(id.to_string()) {
        headers.insert("x-request-id", id);
    }
    let route = template.as_deref().unwrap_or("unknown");
    let (code, took) = (response.status().as_u16(), began.elapsed());
    Watched::answered(route, &method, code, took);
    tracing::info!(request = %id, %method, route, code, seconds = took.as_secs_f64(), "request");
    response
}

fn safety() -> [(HeaderName, HeaderValue); 5] {
    [
        (CACHE_CONTROL, "no-store"),
        (CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
        (REFERRER_POLICY, "no-referrer"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
    ]
    .map(|(name, value)| (name, HeaderValue::from_static(value)))
}

/// Who asks, where that matters.
fn admit(gateway: &Shared, request: &Request, template: Option<&str>) -> Result<Option<Caller>> {
    let uri = request.uri();
    let length = uri.path().len() + uri.query().map_or(0, str::len);
    if length > URI {
        return Err(Problem::new("uri-too-long", format!("the address has {length} bytes; {URI} are taken")));
    }
    if gateway.is_local && gateway.ring.is_open() {
        from_here(request.headers())?;
    }
    let Some(role) = template.and_then(|path| route::of(request.method(), path)).and_then(|route| route.role) else {
        return Ok(None);
    };
    let caller = Caller::of(request.headers(), &gateway.ring)?;
    gateway.rates.count(&caller)?;
    caller.must_be(role)?;
    Ok(Some(caller))
}

/// Refuses requests for other hosts, and of pages from there, where nobody needs a key: a page elsewhere makes the
/// first if its name leads here, the second in any case.
fn from_here(headers: &HeaderMap) -> Result<()> {
    let refused = |what: &str| {
        Err(Problem::new("wrong-host", what).hint("ask http://127.0.0.1, or make keys: promptq keys create"))
    };
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if !is_here(host) {
        return refused("without keys only requests for this machine by its own name are answered");
    }
    // A page that hides where it is from sends "null".
    let ours = |origin: &HeaderValue| {
        origin.to_str().is_ok_and(|origin| origin.split_once("://").is_some_and(|(_, host)| is_here(host)))
    };
    if !headers.get_all(ORIGIN).iter().all(ours) {
        return refused("without keys no page of another site is answered");
    }
    Ok(())
}

/// Whether a host, with its port or without, is this machine by its own name.
fn is_here(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_names_are_here() {
        let of = |host: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, host.parse().unwrap());
            from_here(&headers).is_ok()
        };
        for host in ["localhost", "LOCALHOST:8080", "127.0.0.1", "127.0.0.1:9", "[::1]:8080", "127.8.8.8"] {
            assert!(of(host), "{host}");
        }
        for host in ["evil.example", "evil.example:8080", "10.0.0.1:80", "localhost.evil.example", "", "[::2]"] {
            assert!(!of(host), "{host}");
        }
        assert!(from_here(&HeaderMap::new()).is_err());
    }

    #[test]
    fn only_pages_of_this_machine_are_from_here() {
        let of = |origin: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, HeaderValue::from_static("localhost:8080"));
            headers.insert(ORIGIN, origin.parse().unwrap());
            from_here(&headers).is_ok()
        };
        for origin in ["http://localhost:3000", "https://127.0.0.1", "http://[::1]:8080"] {
            assert!(of(origin), "{origin}");
        }
        for origin in ["null", "", "localhost", "https://evil.example", "https://localhost.evil.example", "file://"] {
            assert!(!of(origin), "{origin}");
        }
    }
}
