//! JSON in a form that is the same for values that mean the same: members sorted by name, no white space, texts escaped in
//! one way; numbers stay as they were written.

use promptq_common::line::Members;
use serde_json::Value;
use serde_json::value::RawValue;

/// Below so many levels a value stays as it was written: each level is read anew, and requests have about ten.
const DEEPEST: u32 = 32;

/// `json` in that form; what is no JSON stays as it is.
pub(crate) fn canonical(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    match serde_json::from_str::<&RawValue>(json) {
        Ok(value) => write(value.get(), DEEPEST, &mut text),
        Err(_) => text.push_str(json),
    }
    text
}

fn write(raw: &str, depth: u32, text: &mut String) {
    let raw = raw.trim();
    match raw.as_bytes().first() {
        Some(b'{') if depth > 0 => match serde_json::from_str(raw) {
            Ok(Members::<{ usize::MAX }>(mut members)) => {
                // Repeated names keep their order: which of them counts is the provider's to say.
                members.sort_by(|(a, _), (b, _)| a.cmp(b));
                list(text, ('{', '}'), members, |(name, value), text| {
                    text.push_str(&Value::String(name).to_string());
                    text.push(':');
                    write(value.get(), depth - 1, text);
                });
            }
            Err(_) => text.push_str(raw),
        },
        Some(b'[') if depth > 0 => match serde_json::from_str::<Vec<&RawValue>>(raw) {
            Ok(items) => list(text, ('[', ']'), items, |item, text| write(item.get(), depth - 1, text)),
            Err(_) => text.push_str(raw),
        },
        Some(b'"') => match serde_json::from_str::<String>(raw) {
            Ok(said) => text.push_str(&Value::String(said).to_string()),
            Err(_) => text.push_str(raw),
        },
        Some(_) | None => text.push_str(raw),
    }
}

fn list<T>(text: &mut String, (open, close): (char, char), items: Vec<T>, mut write: impl FnMut(T, &mut String)) {
    text.push(open);
    for (n, item) in items.into_iter().enumerate() {
        if n > 0 {
            text.push(',');
        }
        write(item, text);
    }
    text.push(close);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_means_the_same_is_the_same() {
        for (a, b) in [
            (
                r#"{"b":1,"a":[true,{"y":null,"x":"é"}]}"#,
                "{ \"a\" : [ true, {\"x\":\"\\u00e9\",\n\"y\":null} ],\"b\":1 }",
            ),
            ("[]", " [ ] "),
            ("{}", "{\n}"),
            (r#""a\/b""#, r#""a/b""#),
        ] {
            assert_eq!(canonical(a), canonical(b), "{a}");
        }
        assert_eq!(canonical(r#"{"b": 1, "a": "x\n"}"#), r#"{"a":"x\n","b":1}"#);
    }

    #[test]
    fn what_may_mean_something_else_is_not() {
        for (a, b) in [
            ("[1,2]", "[2,1]"),
            ("1", "1.0"),
            ("12345678901234567890123", "12345678901234567890124"),
            ("0.1", "0.10"),
            (r#"{"a":1,"a":2}"#, r#"{"a":2,"a":1}"#),
            (r#"{"a":1}"#, r#"{"a":"1"}"#),
            (r#"{"a":null}"#, "{}"),
            ("{broken", "{broken "),
            (r#""\ud800""#, r#""\ud801""#),
        ] {
            assert_ne!(canonical(a), canonical(b), "{a}");
        }
    }

    #[test]
    fn depth_is_no_trap() {
        let deep = |levels: usize, inside: &str| format!("{}{inside}{}", "[".repeat(levels), "]".repeat(levels));
        assert_eq!(canonical(&deep(100_000, "1")), deep(100_000, "1"));
        assert_eq!(canonical(&deep(31, r#"{"b":1, "a":2}"#)), deep(31, r#"{"a":2,"b":1}"#));
    }
}
