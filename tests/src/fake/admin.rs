//! The routes under `/fake/`, for whoever runs the tests: the bill, the calls, faults and limits at run time, a fresh start.

use serde::Deserialize;
use serde_json::{Value, json};

use super::allowance::LimitRule;
use super::config::check_rules;
use super::fault::FaultRule;
use super::refusal::Refusal;
use super::state::Shared;
use super::wire::Request;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewFaults {
    faults: Vec<FaultRule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewLimits {
    limits: Vec<LimitRule>,
}

/// Answers a call of such a route, or of `/v1/models`; `None` when it is neither.
pub(super) fn answer(shared: &Shared, request: &Request) -> Option<Refusal> {
    let name = request.path.strip_prefix("/fake/");
    let told = match (request.method.as_str(), name) {
        ("GET", None) if request.path.ends_with("/v1/models") => Ok(models(shared)),
        (_, None) => return None,
        ("GET", Some("bill")) => serde_json::to_value(shared.bill()).map_err(|error| (500, error.to_string())),
        ("GET", Some("calls")) => calls(shared, request),
        ("GET", Some("faults")) => Ok(faults(shared)),
        ("GET", Some("limits")) => Ok(limits(shared)),
        ("POST", Some("faults")) => read::<NewFaults>(request).and_then(|new| {
            check_rules(&[], &new.faults).map_err(|error| (400, format!("{error:#}")))?;
            shared.set_faults(&new.faults);
            Ok(faults(shared))
        }),
        ("POST", Some("limits")) => read::<NewLimits>(request).and_then(|new| {
            check_rules(&new.limits, &[]).map_err(|error| (400, format!("{error:#}")))?;
            shared.set_limits(new.limits);
            Ok(limits(shared))
        }),
        ("POST", Some("reset")) => {
            shared.reset();
            Ok(json!({ "reset": true }))
        }
        (_, Some(_)) => {
            let there = "GET /fake/bill, /fake/calls?after=N, /fake/faults, /fake/limits, /v1/models; \
                         POST /fake/faults, /fake/limits, /fake/reset";
            Err((404, format!("there are {there}")))
        }
    };
    Some(match told {
        Ok(body) => whole(200, &body),
        Err((status, message)) => whole(status, &json!({ "error": { "message": message } })),
    })
}

fn read<'a, T: Deserialize<'a>>(request: &'a Request) -> Result<T, (u16, String)> {
    serde_json::from_slice(&request.body).map_err(|error| (400, error.to_string()))
}

fn calls(shared: &Shared, request: &Request) -> Result<Value, (u16, String)> {
    let after = request.parameter("after").unwrap_or("0");
    let after = after.parse().map_err(|_| (400, format!("after={after} is not a number")))?;
    let calls = shared.lock().ledger.after(after);
    let next = calls.last().map_or(after, |call| call.n);
    Ok(json!({ "calls": calls, "next": next }))
}

fn faults(shared: &Shared) -> Value {
    json!({ "faults": shared.lock().faults.rules() })
}

fn limits(shared: &Shared) -> Value {
    json!({ "limits": shared.lock().config.limits })
}

fn models(shared: &Shared) -> Value {
    let config = std::sync::Arc::clone(&shared.lock().config);
    let model = |name: &str| json!({ "id": name, "object": "model", "created": 0, "owned_by": "fake" });
    let data: Vec<Value> = config.models.iter().map(|known| model(&known.name.0)).collect();
    json!({ "object": "list", "data": data })
}

fn whole(status: u16, body: &Value) -> Refusal {
    Refusal { status, headers: Vec::new(), content_type: "application/json", body: format!("{body}\n") }
}
