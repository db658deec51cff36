//! What every request passes, in this order: the bounds of its head, its host, its key, the key's rate and role, the names
//! of its parameters; and what every answer gets: its request's id, headers that keep browsers from misusing it, a log line
//! without its content.

use axum::body::{Body, Bytes};
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, HOST, ORIGIN, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Response, Uri};
use axum::middleware::Next;
use axum::response::IntoResponse;
use promptq_common::job::JobId;
use tokio::time::Instant;

use super::auth::{Caller, Standing};
use super::key::Role;
use super::problem::{Counted, Problem, Result};
use super::route::Route;
use super::watched::Watched;
use super::{Shared, query, route};

/// The longest address that is taken.
const URI: usize = 4_096;
/// The most bytes of names and values of headers.
const HEADERS: usize = 16 << 10;

/// What is looked at of a request.
type Head<'a> = (&'a Method, &'a Uri, &'a HeaderMap);

/// Lets a request through to its route, or answers it.
pub(super) async fn guard(State(gateway): State<Shared>, mut request: Request, next: Next) -> Response<Body> {
    let (began, _counts) = (Instant::now(), gateway.watched.begin());
    let id = JobId::fresh();
    let method = request.method().clone();
    let template = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let head = (&method, request.uri(), request.headers());
    let (standing, admitted) = admit(&gateway, head, template.as_deref()).await;
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
async fn admit(gateway: &Shared, head: Head<'_>, template: Option<&str>) -> (Option<Standing>, Result<Option<Caller>>) {
    let (route, role, caller) = match who(gateway, head, template).await {
        Ok(Some(who)) => who,
        Ok(None) => return (None, Ok(None)),
        Err(problem) => return (None, Err(problem)),
    };
    let standing = gateway.rates.count(&caller);
    let allowed = standing.map_or(Ok(()), |standing| standing.allow(&caller));
    let allowed = allowed.and_then(|()| caller.must_be(role)).and_then(|()| query::check(head.1, route.takes));
    (standing, allowed.map(|()| Some(caller)))
}

/// Who asks for which route, and the least role that may; `None` where anybody may.
async fn who(
    gateway: &Shared,
    (method, uri, headers): Head<'_>,
    template: Option<&str>,
) -> Result<Option<(&'static Route, Role, Caller)>> {
    bounded(uri, headers)?;
    if gateway.is_local && gateway.ring.is_open() {
        from_here(headers)?;
    }
    let Some(route) = template.and_then(|path| route::of(method, path)) else { return Ok(None) };
    let Some(role) = route.role else { return query::check(uri, route.takes).map(|()| None) };
    Ok(Some((route, role, Caller::of(headers, &gateway.ring).await?)))
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
