//! Whether an answer that was to be JSON is: asked for in each API's own way, and no more than parsed. Whether it keeps to a
//! schema is not looked at.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

/// Whether this text may answer this request: it does not ask for JSON, or the text is one JSON value.
pub(super) fn fits(request: &[u8], text: &str) -> bool {
    !asks_for_json(request) || serde_json::from_str::<IgnoredAny>(text).is_ok()
}

fn asks_for_json(request: &[u8]) -> bool {
    // Most requests do not, and may be megabytes long.
    let Some(body) = std::str::from_utf8(request).ok().filter(|body| body.contains("json")) else { return false };
    serde_json::from_str::<Request>(body).is_ok_and(|request| request.asks_for_json())
}

/// Where a request says how its answer is to look.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Request {
    /// Chat completions.
    response_format: Value,
    /// Responses.
    text: Value,
    /// Anthropic's messages.
    output_format: Value,
    output_config: Value,
    /// Gemini's content.
    #[serde(rename = "generationConfig")]
    generation: Value,
    generation_config: Value,
}

impl Request {
    fn asks_for_json(&self) -> bool {
        let formats = [&self.response_format, &self.text["format"], &self.output_format, &self.output_config["format"]];
        let is_json = |format: &&Value| matches!(format["type"].as_str(), Some("json_object" | "json_schema"));
        let kinds = [&self.generation, &self.generation_config].into_iter();
        let mut kinds = kinds.flat_map(|config| [&config["responseMimeType"], &config["response_mime_type"]]);
        formats.iter().any(is_json) || kinds.any(|kind| kind == "application/json")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_api_asks_for_json_in_its_own_way() {
        for request in [
            r#"{"messages":[],"response_format":{"type":"json_object"}}"#,
            r#"{"response_format":{"type":"json_schema","json_schema":{"schema":{}}}}"#,
            r#"{"input":"x","text":{"format":{"type":"json_schema","schema":{}}}}"#,
            r#"{"output_format":{"type":"json_schema","schema":{}}}"#,
            r#"{"output_config":{"format":{"type":"json_schema","schema":{}}}}"#,
            r#"{"contents":[],"generationConfig":{"responseMimeType":"application/json"}}"#,
            r#"{"generation_config":{"response_mime_type":"application/json"}}"#,
        ] {
            for (text, is_json) in [
                (r#"{"a":1}"#, true),
                (" [1]\n", true),
                ("\"yes\"", true),
                ("", false),
                (r#"{"a":1"#, false),
                ("{} and more", false),
                ("```json\n{}\n```", false),
            ] {
                assert_eq!(fits(request.as_bytes(), text), is_json, "{request} {text:?}");
            }
        }
    }

    #[test]
    fn where_nobody_asked_any_text_will_do() {
        for request in [
            "",
            "{}",
            "no json",
            r#"{"messages":[{"content":"answer in json_object, please"}]}"#,
            r#"{"response_format":{"type":"text"},"user":"json"}"#,
            r#"{"response_format":"json_object","text":"json","generationConfig":["json"]}"#,
        ] {
            assert!(fits(request.as_bytes(), "plain"), "{request}");
        }
    }
}
