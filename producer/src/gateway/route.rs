//! Which routes there are and what each takes: the one table that the router, the guard and the specification agree on.

use axum::Router;
use axum::http::Method;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, get, post};

use super::key::Role;
use super::problem::Problem;
use super::{Shared, batch, guard, job, openapi, result, stats};

/// One route.
#[derive(Debug)]
pub(super) struct Route {
    /// GET or POST; what is got may be asked for by HEAD.
    pub(super) method: Method,
    /// As the router and the specification write it.
    pub(super) path: &'static str,
    /// What a key must be at least; `None`: anybody may.
    pub(super) role: Option<Role>,
    /// The parameters that may stand behind the `?`.
    pub(super) takes: &'static [&'static str],
}

/// All of them.
pub(super) const ROUTES: &[Route] = &[
    Route { method: Method::POST, path: "/v1/jobs", role: Some(Role::Submitter), takes: &[] },
    Route { method: Method::GET, path: "/v1/jobs/{id}", role: Some(Role::Viewer), takes: &[] },
    Route { method: Method::GET, path: "/v1/jobs/{id}/result", role: Some(Role::Viewer), takes: &["wait"] },
    Route { method: Method::POST, path: "/v1/jobs/{id}/cancel", role: Some(Role::Operator), takes: &[] },
    Route {
        method: Method::POST,
        path: "/v1/batches",
        role: Some(Role::Submitter),
        takes: &["batch", "queue", "skip_invalid", "on_conflict"],
    },
    Route { method: Method::GET, path: "/v1/queues/{queue}/stats", role: Some(Role::Viewer), takes: &[] },
    Route { method: Method::GET, path: "/openapi.json", role: None, takes: &[] },
];

/// The route of a request.
pub(super) fn of(method: &Method, path: &str) -> Option<&'static Route> {
    let method = if *method == Method::HEAD { &Method::GET } else { method };
    ROUTES.iter().find(|route| route.method == *method && route.path == path)
}

/// Everything that is answered.
pub(super) fn router(gateway: Shared) -> Router {
    let routes = ROUTES.iter().fold(Router::new(), |router, route| router.route(route.path, handler(route)));
    routes
        .fallback(async || Problem::new("not-found", "there is no such route; GET /openapi.json lists them"))
        .method_not_allowed_fallback(async || Problem::new("bad-method", "GET /openapi.json lists what is done where"))
        .layer(from_fn_with_state(Shared::clone(&gateway), guard::guard))
        .with_state(gateway)
}

fn handler(route: &Route) -> MethodRouter<Shared> {
    match route.path {
        "/v1/jobs" => post(job::submit),
        "/v1/jobs/{id}" => get(job::show),
        "/v1/jobs/{id}/result" => get(result::result),
        "/v1/jobs/{id}/cancel" => post(job::cancel),
        "/v1/batches" => post(batch::submit),
        "/v1/queues/{queue}/stats" => get(stats::stats),
        "/openapi.json" => get(openapi::show),
        path => unreachable!("{path} has no handler"),
    }
}
