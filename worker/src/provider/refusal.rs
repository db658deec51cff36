//! What was answered in place of an answer, and the one line about it that people see: never a prompt, never a key.

use promptq_common::outcome::{Failure, FailureClass};
use promptq_common::work::{Input, Work};
use reqwest::header::HeaderMap;
use serde_json::Value;

use crate::echo::echoes;

/// How much of a provider's message is quoted, in characters.
const QUOTED: usize = 300;

/// What was answered in place of an answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refusal<'a> {
    /// HTTP status; 200 where the failure came in an ordinary answer.
    pub(crate) status: u16,
    /// The answer's headers.
    pub(crate) headers: &'a HeaderMap,
    /// As much of its body as was read.
    pub(crate) body: &'a [u8],
}

/// The texts of a job that no failure may repeat. Out of JSON they are taken as they read, for there each letter may be
/// written in many ways; together they are no longer than it.
pub(crate) fn secrets(work: &Work) -> Vec<String> {
    match &work.input {
        Input::Prompt(prompt) => {
            vec![prompt.text.clone(), prompt.system.clone().unwrap_or_default(), texts(&prompt.params)]
        }
        Input::Request { body, .. } => vec![texts(body)],
    }
}

/// Every text of an object one after the other but the model's name; what is none is its own text.
fn texts(json: &str) -> String {
    fn gather(value: &Value, texts: &mut String) {
        match value {
            Value::String(text) => texts.extend([text.as_str(), " "]),
            Value::Array(items) => items.iter().for_each(|item| gather(item, texts)),
            Value::Object(members) => members.values().for_each(|member| gather(member, texts)),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
    let Ok(Value::Object(mut body)) = serde_json::from_str(json) else { return json.to_owned() };
    body.remove("model");
    let mut texts = String::new();
    body.values().for_each(|value| gather(value, &mut texts));
    texts
}

/// The failure of a class: status, code and one line with the provider's words, unless they repeat one of the secrets.
pub(super) fn failure(status: u16, (class, code): (FailureClass, String), message: &str, secrets: &[&str]) -> Failure {
    let detail = detail(status, &code, message, secrets);
    Failure { status_code: Some(status), ..Failure::new(class, code, &detail) }
}

fn detail(status: u16, code: &str, message: &str, secrets: &[&str]) -> String {
    match status {
        300..=399 => return format!("HTTP {status}: redirects are refused; hint: set base_url to where it leads"),
        // The message of a 401 quotes parts of the key.
        401 => return "HTTP 401: the provider refused the key; hint: check api_key of this provider".to_owned(),
        _ => {}
    }
    let message: String = message.chars().map(|c| if c.is_control() { ' ' } else { c }).take(QUOTED).collect();
    if message.is_empty() {
        return format!("HTTP {status} {code}").trim_end().to_owned();
    }
    if secrets.iter().any(|secret| echoes(&message, secret)) {
        return format!("HTTP {status} {code}; the message quotes the request and is left out");
    }
    format!("HTTP {status}: {message}")
}

/// The first of the names that is short and plain, or `otherwise`: dead jobs are grouped by it.
pub(super) fn name(names: &[&str], otherwise: &str) -> String {
    let plain = |name: &&&str| {
        (1..=64).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
    };
    names.iter().find(plain).map_or_else(|| otherwise.to_owned(), |name| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_repeats_neither_prompt_nor_key() {
        let prompt = "the patient's name is Ada Lovelace and she lives in London";
        let fatal = || (FailureClass::Fatal, "bad".to_owned());
        let quoting =
            failure(400, fatal(), "near: 'patient's name is Ada Lovelace and she'", &[prompt, "sk-secret-key"]);
        assert_eq!(quoting.detail, "HTTP 400 bad; the message quotes the request and is left out");
        for (status, message) in [(401, "Incorrect API key provided: sk-se****-key"), (400, "no sk-secret-key here")] {
            let said = failure(status, fatal(), message, &["sk-secret-key"]);
            assert!(!said.detail.contains("sk-"), "{}", said.detail);
        }
        let plain = failure(400, fatal(), "max_tokens is too large:\n5000", &[prompt]);
        assert_eq!((plain.detail.as_str(), plain.status_code), ("HTTP 400: max_tokens is too large: 5000", Some(400)));
    }

    #[test]
    fn a_prompt_is_known_again_however_it_was_written() {
        let bodies = [
            (
                r#"{"model":"m","input":"\u041f\u0430\u0446\u0438\u0435\u043d\u0442 \u0410\u043d\u043d\u0430"}"#,
                "near 'Пациент Анна'",
            ),
            (r#"{"input":[{"content":"Ada\nis ill\nin bed\nat home"}]}"#, "near:\nAda\nis ill\nin bed\nat home"),
        ];
        for (body, message) in bodies {
            let input = Input::Request { url: "/v1/responses".into(), body: body.into() };
            let texts = secrets(&Work { model: None, input });
            let texts: Vec<_> = texts.iter().map(String::as_str).collect();
            let failure = failure(400, (FailureClass::Fatal, "bad".to_owned()), message, &texts);
            assert_eq!(failure.detail, "HTTP 400 bad; the message quotes the request and is left out");
        }
        let params = r#"{"stop":["Ada Lovelace is in the room"]}"#.to_owned();
        let prompt = promptq_common::work::Prompt { text: "Hi".into(), system: None, params };
        assert!(secrets(&Work { model: None, input: Input::Prompt(prompt) })[2].contains("Ada Lovelace"));
        assert_eq!(texts(r#"{"model":"claude-3-5-haiku-20241022","max_completion_tokens":5}"#), "");
    }

    #[test]
    fn only_short_plain_names_group_dead_jobs() {
        assert_eq!(name(&["", "has spaces", "api_error", "other"], "http_500"), "api_error");
        assert_eq!(name(&["x".repeat(65).as_str()], "http_500"), "http_500");
    }
}
