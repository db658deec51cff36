//! What every request passes, in this order: the bounds of its head, its host, its key, the key's role and rate; and what
//! every answer gets: its request's id, headers that keep browsers from misusing it, a log line without its content.

use axum::body::{Body, Bytes};
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, HOST, ORIGIN, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, Uri};
use axum::middleware::Next;
use axum::response::IntoResponse;
use promptq_common::job::JobId;
use tokio::time::Instant;

use super::auth::{Caller, Standing};
use super::key::Role;
use super::problem::{Counted, Problem, Result};
use super::watched::Watched;
use super::{Shared, route};

/// The longest address that is taken.
const URI: usize = 4_096;
/// The most bytes of names and values of headers.
const HEADERS: usize = 16 << 10;

/// Lets a request through to its route, or answers it.
pub(super) async fn guard(State(gateway): State<Shared>, mut request: Request, next: Next) -> Response<Body> {
    let (began, _counts) = (Instant::now(), gateway.watched.begin());
    let id = JobId::fresh();
    let method = request.method().clone();
    let template = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let (standing, admitted) = admit(&gateway, &request, template.as_deref());
    let mut response = match admitted {
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
    headers.extend(standing.into_iter().flat_map(Standing::headers));
    headers.extend(request_id(id));
    let route = template.as_deref().unwrap_or("unknown");
    let (code, took) = (response.status().as_u16(), began.elapsed());
    let is_counted = response.extensions().get::<Counted>().is_some();
    Watched::answered((route, &method), (code, is_counted), took);
    tracing::info!(request = %id, %method, route, code, seconds = took.as_secs_f64(), "request");
    response
}

/// What is answered to who has asked nothing that was understood, byte for byte; nothing comes after it.
pub(super) fn raw(problem: Problem) -> Bytes {
    let body = problem.body();
    let mut response = problem.into_response();
    let headers = response.headers_mut();
    headers.extend(safety());
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    headers.insert(CONTENT_LENGTH, body.len().into());
    headers.extend(request_id(JobId::fresh()));
    let mut text = format!("HTTP/1.1 {}\r\n", response.status()).into_bytes();
    for (name, value) in response.headers() {
        text.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    text.extend([b"\r\n", body.as_bytes()].concat());
    text.into()
}

fn request_id(id: JobId) -> Option<(HeaderName, HeaderValue)> {
    Some((HeaderName::from_static("x-request-id"), HeaderValue::try_from(id.to_string()).ok()?))
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

/// Who asks, where that matters, and how they stand with their rate, whether they are let through or not.
fn admit(gateway: &Shared, request: &Request, template: Option<&str>) -> (Option<Standing>, Result<Option<Caller>>) {
    let (role, caller) = match who(gateway, request, template) {
        Ok(Some(who)) => who,
        Ok(None) => return (None, Ok(None)),
        Err(problem) => return (None, Err(problem)),
    };
    let standing = gateway.rates.count(&caller);
    let allowed = standing.map_or(Ok(()), |standing| standing.allow(&caller)).and_then(|()| caller.must_be(role));
    (standing, allowed.map(|()| Some(caller)))
}

/// Who asks, and the least role that may ask that; `None` where anybody may.
fn who(gateway: &Shared, request: &Request, template: Option<&str>) -> Result<Option<(Role, Caller)>> {
    bounded(request.uri(), request.headers())?;
    if gateway.is_local && gateway.ring.is_open() {
        from_here(request.headers())?;
    }
    let role = template.and_then(|path| route::of(request.method(), path)).and_then(|route| route.role);
    let Some(role) = role else { return Ok(None) };
    Ok(Some((role, Caller::of(request.headers(), &gateway.ring)?)))
}

/// Refuses a head that is too long; one far longer is never read whole, see `Patient`.
fn bounded(uri: &Uri, headers: &HeaderMap) -> Result<()> {
    let length = uri.path().len() + uri.query().map_or(0, str::len);
    if length > URI {
        return Err(Problem::new("uri-too-long", format!("the address has {length} bytes; {URI} are taken")));
    }
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if bytes > HEADERS {
        return Err(Problem::new("head-too-large", format!("the headers have {bytes} bytes; {HEADERS} are taken")));
    }
    Ok(())
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
    fn a_head_is_bounded() {
        let of = |uri: usize, header: usize| {
            let mut headers = HeaderMap::new();
            headers.insert("x-long", "x".repeat(header).parse().unwrap());
            let uri = format!("/{}", "x".repeat(uri - 1)).parse().unwrap();
            bounded(&uri, &headers).map_err(|problem| problem.status().as_u16())
        };
        assert_eq!(of(URI, HEADERS - "x-long".len()), Ok(()));
        assert_eq!([of(URI + 1, 0), of(1, HEADERS)], [Err(414), Err(431)]);
    }

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
