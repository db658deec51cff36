//! `OpenAI`'s embeddings: a list of vectors, as numbers or as base64 of their bytes.

use serde_json::{Value, json};

use crate::fake::answer::Answer;

/// In one piece; there is no other way.
pub(super) fn whole(answer: &Answer) -> Value {
    let told = |vector: &Vec<f32>| if answer.base64 { Value::from(base64(vector)) } else { json!(vector) };
    let data: Vec<Value> = answer
        .vectors
        .iter()
        .enumerate()
        .map(|(at, vector)| json!({ "object": "embedding", "index": at, "embedding": told(vector) }))
        .collect();
    let usage = json!({ "prompt_tokens": answer.input, "total_tokens": answer.input });
    json!({ "object": "list", "data": data, "model": answer.model, "usage": usage })
}

/// Of the numbers' bytes, the smallest first.
fn base64(vector: &[f32]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bytes: Vec<u8> = vector.iter().flat_map(|number| number.to_le_bytes()).collect();
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let bits = three.iter().fold(0_u32, |bits, &byte| bits << 8 | u32::from(byte)) << (8 * (3 - three.len()));
        for at in 0..4_usize {
            let digit = DIGITS.get((bits >> (18 - 6 * at) & 63) as usize).copied().unwrap_or(b'A');
            text.push(if at <= three.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn base64_is_as_others_write_it() {
        assert_eq!(base64(&[1.0]), "AACAPw==");
        assert_eq!(base64(&[1.0, -0.5]), "AACAPwAAAL8=");
        assert_eq!(base64(&[1.0, -0.5, 0.25]), "AACAPwAAAL8AAIA+");
    }
}
