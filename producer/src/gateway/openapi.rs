//! The specification of the API, `OpenAPI` 3.1, as the file beside this one: GET /openapi.json.

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, Response};

const SPECIFICATION: &str = include_str!("openapi.json");

/// The file as it is.
pub(super) async fn show() -> Response<Body> {
    let mut response = Response::new(Body::from(SPECIFICATION));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::super::problem::CODES;
    use super::super::route::ROUTES;
    use super::*;

    fn specification() -> Value {
        serde_json::from_str(SPECIFICATION).unwrap()
    }

    /// Each operation with its path and method.
    fn operations(of: &Value) -> Vec<(String, String, &Value)> {
        let paths = of["paths"].as_object().unwrap().iter();
        let each = paths.flat_map(|(path, item)| item.as_object().unwrap().iter().map(move |one| (path, one)));
        each.map(|(path, (method, of))| (path.clone(), method.to_uppercase(), of)).collect()
    }

    #[test]
    fn it_tells_of_every_route_and_no_other_and_who_may() {
        let of = specification();
        let told = operations(&of).into_iter().map(|(path, method, of)| {
            let is_free =
                of["security"].as_array().is_some_and(|list| list.iter().any(|one| one == &serde_json::json!({})));
            (path, method, of["x-role"].as_str().map(str::to_owned), is_free)
        });
        let routes = ROUTES.iter().map(|route| {
            let role = route.role.map(|role| role.to_string());
            (route.path.to_owned(), route.method.to_string(), role, route.role.is_none())
        });
        assert_eq!(told.collect::<BTreeSet<_>>(), routes.collect());
    }

    #[test]
    fn it_tells_of_every_parameter_and_no_other() {
        let of = specification();
        for (path, method, of) in operations(&of) {
            let told = of["parameters"].as_array().into_iter().flatten().filter(|one| one["in"] == "query");
            let told: Vec<&str> = told.map(|one| one["name"].as_str().unwrap()).collect();
            let route = ROUTES.iter().find(|route| route.path == path && route.method.as_str() == method).unwrap();
            assert_eq!(told, route.takes, "{method} {path}");
            assert!(of["responses"]["400"].is_object(), "{method} {path}");
        }
    }

    #[test]
    fn it_tells_of_every_code_and_no_other() {
        let of = specification();
        let told = of["components"]["schemas"]["Problem"]["properties"]["code"]["enum"].as_array().unwrap();
        let told: BTreeSet<&str> = told.iter().map(|code| code.as_str().unwrap()).collect();
        assert_eq!(told, CODES.iter().map(|(code, ..)| *code).collect());
        for (path, method, of) in operations(&of) {
            let responses = of["responses"].as_object().unwrap();
            assert!(responses.keys().any(|status| status.starts_with('2')), "{method} {path}");
            let names = path.split('{').skip(1).filter_map(|part| part.split('}').next());
            for name in names {
                let parameters = of["parameters"].as_array().unwrap();
                let is_told = |one: &Value| {
                    let at = one["$ref"].as_str().map(|at| at.rsplit('/').next().unwrap().to_lowercase());
                    at.as_deref() == Some(name) || one["name"] == name && one["required"] == true
                };
                assert!(parameters.iter().any(is_told), "{method} {path}: {name}");
            }
        }
    }

    #[test]
    fn everything_it_refers_to_is_there() {
        let of = specification();
        let (mut left, mut count) = (vec![&of], 0);
        while let Some(value) = left.pop() {
            match value {
                Value::Object(members) => {
                    if let Some(at) = members.get("$ref").and_then(Value::as_str) {
                        count += 1;
                        assert!(of.pointer(at.strip_prefix('#').unwrap()).is_some(), "{at}");
                    }
                    left.extend(members.values());
                }
                Value::Array(items) => left.extend(items),
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
            }
        }
        assert!(of["openapi"].as_str().unwrap().starts_with("3.1.") && count > 20, "{count}");
    }
}
