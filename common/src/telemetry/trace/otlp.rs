//! Spans as a request of OTLP, in the protocol's JSON encoding. Where it is sent is `export.rs`.

use serde::{Serialize, Serializer};

use super::{Context, Data, Value, name};

/// What spans are of: the process, by its attributes.
pub(super) type Resource = Vec<(String, String)>;

/// A request that tells of these spans.
pub(super) fn encode(resource: &Resource, spans: &[Data]) -> Vec<u8> {
    let request = Request {
        resource_spans: [ResourceSpans {
            resource: Attributes { attributes: resource.iter().map(|(key, value)| said(key, value)).collect() },
            scope_spans: [ScopeSpans {
                scope: Scope { name: name::SCOPE, version: env!("CARGO_PKG_VERSION") },
                spans: spans.iter().filter_map(span).collect(),
            }],
        }],
    };
    // Of texts and numbers alone nothing can fail.
    serde_json::to_vec(&request).unwrap_or_default()
}

fn span(data: &Data) -> Option<Span<'_>> {
    let place = data.place?;
    Some(Span {
        trace_id: place.trace_id(),
        id: place.span_id(),
        parent_span_id: data.parent.map(|parent| parent.span_id()),
        flags: flags(&place),
        name: &data.name,
        kind: data.kind as u8,
        start_time_unix_nano: data.start.to_string(),
        end_time_unix_nano: data.start.saturating_add(data.nanos).to_string(),
        attributes: data.attributes.iter().map(|(key, value)| Attribute { key, value: any(value) }).collect(),
        links: data.links.iter().map(link).collect(),
        status: Status { code: if data.failed { 2 } else { 0 } },
    })
}

fn link(to: &Context) -> Link {
    Link { trace_id: to.trace_id(), span_id: to.span_id(), flags: flags(to) }
}

fn flags(place: &Context) -> u8 {
    u8::from(place.is_sampled())
}

fn said<'a>(key: &'a str, value: &'a str) -> Attribute<'a> {
    Attribute { key, value: Any::String(value) }
}

fn any(value: &Value) -> Any<'_> {
    match value {
        Value::Text(text) => Any::String(text),
        Value::Texts(texts) => Any::Array { values: texts.iter().map(|text| Any::String(text)).collect() },
        Value::Number(number) => Any::Int(*number),
        Value::Fraction(number) => Any::Double(*number),
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    resource_spans: [ResourceSpans<'a>; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ResourceSpans<'a> {
    resource: Attributes<'a>,
    scope_spans: [ScopeSpans<'a>; 1],
}

#[derive(Serialize)]
struct Attributes<'a> {
    attributes: Vec<Attribute<'a>>,
}

#[derive(Serialize)]
struct ScopeSpans<'a> {
    scope: Scope,
    spans: Vec<Span<'a>>,
}

#[derive(Serialize)]
struct Scope {
    name: &'static str,
    version: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Span<'a> {
    trace_id: String,
    #[serde(rename = "spanId")]
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_span_id: Option<String>,
    flags: u8,
    name: &'a str,
    kind: u8,
    start_time_unix_nano: String,
    end_time_unix_nano: String,
    attributes: Vec<Attribute<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    links: Vec<Link>,
    status: Status,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Link {
    trace_id: String,
    span_id: String,
    flags: u8,
}

#[derive(Serialize)]
struct Status {
    code: u8,
}

#[derive(Serialize)]
struct Attribute<'a> {
    key: &'a str,
    value: Any<'a>,
}

#[derive(Serialize)]
enum Any<'a> {
    #[serde(rename = "stringValue")]
    String(&'a str),
    /// 64 bits are text in this encoding.
    #[serde(rename = "intValue", serialize_with = "as_text")]
    Int(i64),
    #[serde(rename = "doubleValue")]
    Double(f64),
    #[serde(rename = "arrayValue")]
    Array { values: Vec<Any<'a>> },
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature serde calls")]
fn as_text<S: Serializer>(number: &i64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(number)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Kind;
    use super::*;

    #[test]
    fn spans_are_told_as_the_protocol_has_it() {
        let place = Context::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").unwrap();
        let parent = Context::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000001-01").unwrap();
        let data = Data {
            place: Some(place),
            parent: Some(parent),
            kind: Kind::Consumer,
            name: "process default".into(),
            start: 7,
            nanos: 3,
            attributes: vec![
                (name::SYSTEM, "redis".into()),
                (name::INPUT, 5_u64.into()),
                (name::FINISH, Value::Texts(vec!["stop".into()])),
                (name::COST, Value::Fraction(0.5)),
            ],
            links: vec![parent],
            failed: true,
        };
        let told = encode(&vec![("service.name".into(), "s".into())], &[data, Data::default()]);
        let told: serde_json::Value = serde_json::from_slice(&told).unwrap();
        let all = &told["resourceSpans"][0];
        assert_eq!(all["resource"]["attributes"][0], json!({"key":"service.name","value":{"stringValue":"s"}}));
        assert_eq!(
            all["scopeSpans"][0]["spans"],
            json!([{
                "traceId": "4bf92f3577b34da6a3ce929d0e0e4736", "spanId": "00f067aa0ba902b7",
                "parentSpanId": "0000000000000001", "flags": 1, "name": "process default", "kind": 5,
                "startTimeUnixNano": "7", "endTimeUnixNano": "10",
                "attributes": [
                    {"key": "messaging.system", "value": {"stringValue": "redis"}},
                    {"key": "gen_ai.usage.input_tokens", "value": {"intValue": "5"}},
                    {"key": "gen_ai.response.finish_reasons",
                        "value": {"arrayValue": {"values": [{"stringValue": "stop"}]}}},
                    {"key": "promptq.cost.usd", "value": {"doubleValue": 0.5}},
                ],
                "links": [{"traceId": "4bf92f3577b34da6a3ce929d0e0e4736", "spanId": "0000000000000001", "flags": 1}],
                "status": {"code": 2},
            }])
        );
    }
}
