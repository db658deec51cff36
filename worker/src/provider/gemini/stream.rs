//! Streamed content, put together.

use promptq_common::outcome::Usage;
use serde_json::{Map, Value, json};

use super::answer::usage;
use crate::provider::merge::{MOST, bytes, replace};
use crate::provider::stream::{Piece, error};

/// Generated content out of its pieces, each a small answer of its own.
#[derive(Debug, Default)]
pub(crate) struct Generate {
    head: Map<String, Value>,
    candidates: Vec<Map<String, Value>>,
    pub(crate) size: usize,
    pub(crate) has_content: bool,
}

impl Generate {
    /// Takes a piece: parts follow each other, everything else is the latest that was said.
    pub(crate) fn push(&mut self, mut piece: Map<String, Value>) -> Piece {
        if let Some(said) = piece.remove("error") {
            return error(said);
        }
        let candidates = piece.remove("candidates");
        for (key, value) in piece {
            replace(self.head.entry(key).or_insert(Value::Null), value, &mut self.size);
        }
        if let Some(Value::Array(candidates)) = candidates {
            for candidate in candidates {
                let Value::Object(candidate) = candidate else { return Piece::Odd };
                self.candidate(candidate);
                if self.candidates.len() > MOST {
                    return Piece::Odd;
                }
            }
        }
        Piece::Part
    }

    fn candidate(&mut self, piece: Map<String, Value>) {
        let index = |candidate: &Map<String, Value>| candidate.get("index").and_then(Value::as_u64).unwrap_or(0);
        let known = self.candidates.iter().position(|known| index(known) == index(&piece));
        let at = known.unwrap_or_else(|| {
            self.candidates.push(Map::new());
            self.candidates.len() - 1
        });
        let whole = &mut self.candidates[at];
        for (key, value) in piece {
            let is_content = key == "content";
            let known = whole.entry(key).or_insert(Value::Null);
            if is_content && let Value::Object(content) = value {
                if !known.is_object() {
                    *known = json!({ "parts": [] });
                }
                self.has_content |= content.get("parts").is_some_and(|parts| parts.get(0).is_some());
                content_over(known, content, &mut self.size);
            } else {
                replace(known, value, &mut self.size);
            }
        }
    }

    /// What has been said of the usage so far.
    pub(crate) fn usage(&self) -> Usage {
        self.head.get("usageMetadata").map(usage).unwrap_or_default()
    }

    /// The content, once every candidate has its end, or the prompt was refused.
    pub(crate) fn body(mut self) -> Option<Value> {
        let ended = |candidate: &Map<String, Value>| candidate.get("finishReason").is_some_and(Value::is_string);
        let refused = self.head.get("promptFeedback").is_some_and(|feedback| feedback["blockReason"].is_string());
        if !refused && (self.candidates.is_empty() || !self.candidates.iter().all(ended)) {
            return None;
        }
        if !self.candidates.is_empty() {
            let candidates = self.candidates.into_iter().map(Value::Object).collect();
            self.head.insert("candidates".to_owned(), Value::Array(candidates));
        }
        Some(Value::Object(self.head))
    }
}

fn content_over(whole: &mut Value, content: Map<String, Value>, size: &mut usize) {
    for (key, value) in content {
        if key == "parts"
            && let Value::Array(parts) = value
        {
            for part in parts {
                part_over(whole, part, size);
            }
        } else {
            replace(&mut whole[key.as_str()], value, size);
        }
    }
}

/// Text goes on from the text before it, if both are thoughts or none is; everything else is a part of its own.
fn part_over(whole: &mut Value, part: Value, size: &mut usize) {
    let Some(parts) = whole.get_mut("parts").and_then(Value::as_array_mut) else { return };
    let plain = |part: &Value| {
        let members = part.as_object();
        members.is_some_and(|members| members.keys().all(|key| key == "text" || key == "thought"))
            && part["text"].is_string()
    };
    let goes_on = parts.last().is_some_and(|last| plain(last) && plain(&part) && last["thought"] == part["thought"]);
    if goes_on
        && let Some(Value::String(text)) = parts.last_mut().and_then(|last| last.get_mut("text"))
        && let Some(more) = part["text"].as_str()
    {
        *size += more.len();
        text.push_str(more);
        return;
    }
    *size += bytes(&part);
    parts.push(part);
}

#[cfg(test)]
mod tests {
    use crate::provider::merge::MOST;
    use crate::provider::{Assembly, Endpoint, Piece};
    use serde_json::{Value, json};

    const PIECES: [&str; 4] = [
        r#"{"candidates":[{"content":{"parts":[{"text":"h","thought":true}],"role":"model"},"index":0}],"usageMetadata":{"promptTokenCount":4},"modelVersion":"g","responseId":"r"}"#,
        r#"{"candidates":[{"content":{"parts":[{"text":"m","thought":true}],"role":"model"},"index":0}]}"#,
        r#"{"candidates":[{"content":{"parts":[{"text":"Hel"}],"role":"model"},"index":0}]}"#,
        r#"{"candidates":[{"content":{"parts":[{"text":"lo"},{"functionCall":{"name":"f"}}],"role":"model"},"finishReason":"STOP","index":0}],"usageMetadata":{"promptTokenCount":4,"candidatesTokenCount":2}}"#,
    ];

    fn body(pieces: &[&str]) -> Option<Value> {
        let mut assembly = Assembly::of(Endpoint::Generate);
        for piece in pieces {
            assert_eq!(assembly.push(piece.as_bytes()), Piece::Part, "{piece}");
        }
        assembly.body().map(|body| serde_json::from_slice(&body).unwrap())
    }

    #[test]
    fn content_in_pieces_has_the_body_of_a_whole_one() {
        let parts =
            json!([{ "text": "hm", "thought": true }, { "text": "Hello" }, { "functionCall": { "name": "f" } }]);
        let whole = json!({
            "usageMetadata": { "promptTokenCount": 4, "candidatesTokenCount": 2 },
            "modelVersion": "g",
            "responseId": "r",
            "candidates": [{ "content": { "parts": parts, "role": "model" }, "index": 0, "finishReason": "STOP" }],
        });
        assert_eq!(body(&PIECES), Some(whole));
    }

    #[test]
    fn usage_and_content_are_known_on_the_way_and_the_size_is_what_is_kept() {
        let mut assembly = Assembly::of(Endpoint::Generate);
        assembly.push(br#"{"candidates":[{"content":{"role":"model"}}],"usageMetadata":{"promptTokenCount":4}}"#);
        assert!(!assembly.has_content());
        for _ in 0..20_000 {
            assembly.push(PIECES[2].as_bytes());
        }
        assert!(assembly.has_content());
        assert!((60_000..61_000).contains(&assembly.size()), "{}", assembly.size());
        assert_eq!(assembly.usage().input_tokens, 4);
        let many: Vec<_> = (0..=MOST).map(|index| json!({ "index": index })).collect();
        let many = json!({ "candidates": many }).to_string();
        assert_eq!(Assembly::of(Endpoint::Generate).push(many.as_bytes()), Piece::Odd);
    }

    #[test]
    fn odd_pieces_do_no_harm() {
        for odd in [
            r#"{"candidates":[{"content":"text"},{"content":{"parts":7}},{"content":{"parts":[1]}},{"content":{"parts":[{"text":"a"}]}}]}"#,
            r#"{"candidates":[{"content":{"parts":[{"text":"a"}]}},{"content":null}],"usageMetadata":[]}"#,
            r#"{"candidates":{}}"#,
        ] {
            assert_eq!(body(&[odd]), None, "{odd}");
        }
    }

    #[test]
    fn content_without_its_end_is_none_and_a_refused_prompt_has_one() {
        for cut in 0..PIECES.len() {
            assert_eq!(body(&PIECES[..cut]), None, "{cut}");
        }
        assert!(body(&[r#"{"promptFeedback":{"blockReason":"SAFETY"}}"#]).is_some());
    }

    #[test]
    fn an_error_in_the_middle_becomes_the_body_of_a_refusal() {
        let piece = br#"{"error":{"code":503,"status":"UNAVAILABLE","message":"overloaded"}}"#;
        let Piece::Error(body) = Assembly::of(Endpoint::Generate).push(piece) else { panic!("no error") };
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["error"]["status"], "UNAVAILABLE");
    }
}
