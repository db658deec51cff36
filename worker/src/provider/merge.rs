//! Pieces of a streamed answer laid over each other: what is told in pieces grows, lists grow, the rest is replaced.

use serde_json::{Map, Value};

/// What names a thing is said once and not continued.
const NAMES: [&str; 4] = ["role", "id", "type", "name"];
/// What is told in pieces that follow each other: said and thought, read aloud, asked of a function, sealed.
const TEXTS: [&str; 13] = [
    "content",
    "refusal",
    "reasoning",
    "reasoning_content",
    "thinking",
    "text",
    "summary",
    "transcript",
    "arguments",
    "input",
    "partial_json",
    "signature",
    "data",
];
/// The most choices or candidates of an answer, and how far back an item of a list is looked for: as many as
/// `OpenAI` gives choices for one request.
pub(super) const MOST: usize = 128;

/// Lays `piece` over `whole`: nothing over something changes nothing, lists are joined (items with an `index` meet their
/// equals), objects go member by member, the rest is replaced. Tells `size` by about how many bytes `whole` grew.
pub(super) fn lay(whole: &mut Value, piece: Value, size: &mut usize) {
    match (whole, piece) {
        (_, Value::Null) => {}
        (Value::Array(list), Value::Array(more)) => more.into_iter().for_each(|item| add(list, item, size)),
        (Value::Object(object), Value::Object(more)) => members(object, more, size),
        (whole, piece) => replace(whole, piece, size),
    }
}

/// Lays each member over its equal: texts are joined where they come in pieces, names stay.
pub(super) fn members(object: &mut Map<String, Value>, more: Map<String, Value>, size: &mut usize) {
    for (key, value) in more {
        let is = |names: &[&str]| names.contains(&key.as_str());
        match (object.get_mut(&key), value) {
            (Some(known), _) if is(&NAMES) && !known.is_null() => {}
            (Some(Value::String(text)), Value::String(more)) if is(&TEXTS) => {
                *size += more.len();
                text.push_str(&more);
            }
            (Some(known), value) => lay(known, value, size),
            (None, value) => {
                *size += key.len() + bytes(&value);
                object.insert(key, value);
            }
        }
    }
}

/// Puts a value in the place of another, unless it is nothing.
pub(super) fn replace(whole: &mut Value, piece: Value, size: &mut usize) {
    if !piece.is_null() {
        *size = size.saturating_sub(bytes(whole)) + bytes(&piece);
        *whole = piece;
    }
}

fn add(list: &mut Vec<Value>, item: Value, size: &mut usize) {
    let index = item.get("index").and_then(Value::as_u64);
    let same = |known: &&mut Value| known.get("index").and_then(Value::as_u64) == index;
    let known = index.and_then(|_| list.iter_mut().rev().take(MOST).find(same));
    if let Some(known) = known {
        lay(known, item, size);
    } else {
        *size += bytes(&item);
        list.push(item);
    }
}

/// About as many bytes as it has when written.
pub(super) fn bytes(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 8,
        Value::String(text) => text.len() + 2,
        Value::Array(items) => 2 + items.iter().map(bytes).sum::<usize>(),
        Value::Object(members) => 2 + members.iter().map(|(key, value)| key.len() + 4 + bytes(value)).sum::<usize>(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn texts_and_lists_grow_and_names_stay() {
        let (mut whole, mut size) = (json!({}), 0);
        for piece in [
            json!({ "role": "assistant", "content": null }),
            json!({ "role": "assistant", "content": "Hel" }),
            json!({ "content": "lo", "n": 1 }),
            json!({ "calls": [{ "index": 1, "id": "b", "f": { "name": "g", "arguments": "{" } }] }),
            json!({ "calls": [{ "index": 1, "f": { "arguments": "}" } }, { "index": 0, "id": "a" }], "n": 2, "content": null }),
        ] {
            lay(&mut whole, piece, &mut size);
        }
        assert_eq!(
            whole,
            json!({ "role": "assistant", "content": "Hello", "n": 2,
                "calls": [{ "index": 1, "id": "b", "f": { "name": "g", "arguments": "{}" } }, { "index": 0, "id": "a" }] })
        );
        assert!(size >= 60, "{size}");
    }

    #[test]
    fn only_what_comes_in_pieces_is_joined_and_only_growth_counts() {
        let (mut whole, mut size) = (json!({}), 0);
        for _ in 0..1_000 {
            let piece =
                json!({ "status": "running", "reasoning": "x", "usage": { "total": 7 }, "logprobs": { "seen": "a" } });
            lay(&mut whole, piece, &mut size);
        }
        assert_eq!(whole["status"], "running");
        assert_eq!((&whole["logprobs"]["seen"], whole["reasoning"].as_str().unwrap().len()), (&json!("a"), 1_000));
        assert!((1_000..1_200).contains(&size), "{size}");
    }
}
