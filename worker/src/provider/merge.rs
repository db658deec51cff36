//! Pieces of a streamed answer laid over each other: texts grow, lists grow, the rest is replaced.

use serde_json::{Map, Value};

/// What names a thing is said once and not continued.
const NAMES: [&str; 4] = ["role", "id", "type", "name"];

/// Lays `piece` over `whole`: nothing over something changes nothing, texts are joined unless they name something, lists
/// are joined (items with an `index` meet their equals), objects member by member, the rest is replaced. Adds to `size`
/// about as many bytes as `whole` grew by.
pub(super) fn lay(whole: &mut Value, piece: Value, size: &mut usize) {
    match (whole, piece) {
        (_, Value::Null) => {}
        (Value::String(text), Value::String(more)) => {
            *size += more.len();
            text.push_str(&more);
        }
        (Value::Array(list), Value::Array(more)) => more.into_iter().for_each(|item| add(list, item, size)),
        (Value::Object(object), Value::Object(more)) => members(object, more, size),
        (whole, piece) => replace(whole, piece, size),
    }
}

/// Lays each member over its equal.
pub(super) fn members(object: &mut Map<String, Value>, more: Map<String, Value>, size: &mut usize) {
    for (key, value) in more {
        let named = NAMES.contains(&key.as_str());
        match object.get_mut(&key) {
            Some(known) if named && !known.is_null() => {}
            Some(known) => lay(known, value, size),
            None => {
                *size += key.len() + bytes(&value);
                object.insert(key, value);
            }
        }
    }
}

/// Puts a value in the place of another, unless it is nothing.
pub(super) fn replace(whole: &mut Value, piece: Value, size: &mut usize) {
    if !piece.is_null() {
        *size += bytes(&piece);
        *whole = piece;
    }
}

fn add(list: &mut Vec<Value>, item: Value, size: &mut usize) {
    let index = item.get("index").and_then(Value::as_u64);
    let known = list.iter_mut().find(|known| index.is_some() && known.get("index").and_then(Value::as_u64) == index);
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
}
