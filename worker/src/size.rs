//! How large a call will be, as far as its job says: what the limits reckon with.

use promptq_common::limits::Size;
use promptq_common::work::{Input, Work};
use serde::Deserialize;

/// The names that providers have for the most tokens of an answer, and for how many they are to give.
#[derive(Debug, Default, Deserialize)]
struct Named {
    max_tokens: Option<u64>,
    max_completion_tokens: Option<u64>,
    max_output_tokens: Option<u64>,
    n: Option<u64>,
    #[serde(rename = "generationConfig")]
    generation: Option<Generation>,
}

#[derive(Debug, Default, Deserialize)]
struct Generation {
    #[serde(rename = "maxOutputTokens")]
    most: Option<u64>,
    #[serde(rename = "candidateCount")]
    count: Option<u64>,
}

/// So many bytes without a space or a mark are no text but data in it, such as an image.
const DATA: usize = 8 << 10;
/// What that counts as: about 1,500 tokens, as images mostly come to.
const IMAGE: usize = 5_400;

/// The bytes of a job's texts, and the most tokens that all its answers may have.
pub fn size(work: &Work) -> Size {
    let (each, count) = answers(work);
    let data = data(work).fold(0_usize, |more, run| more.saturating_add(run.saturating_sub(IMAGE)));
    Size { bytes: bytes(work).saturating_sub(data), max_tokens: each.map(|each| each.saturating_mul(count)) }
}

/// The bytes of all that a job sends.
pub(crate) fn bytes(work: &Work) -> usize {
    match &work.input {
        Input::Prompt(prompt) => prompt.text.len() + prompt.system.as_ref().map_or(0, String::len),
        Input::Request { body, .. } => body.len(),
    }
}

/// The lengths of what is data in a request.
fn data(work: &Work) -> impl Iterator<Item = usize> {
    let is_data = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=' | b'-' | b'_');
    let body = match &work.input {
        Input::Prompt(_) => "",
        Input::Request { body, .. } => body.as_str(),
    };
    body.as_bytes().split(move |byte| !is_data(byte)).map(<[u8]>::len).filter(|run| *run >= DATA)
}

/// The most tokens of each of its answers, by any name; and how many it asks for.
pub fn answers(work: &Work) -> (Option<u64>, u64) {
    let named: Named = serde_json::from_str(parameters(work)).unwrap_or_default();
    let (inside, count) = named.generation.map_or((None, None), |config| (config.most, config.count));
    let each = named.max_completion_tokens.or(named.max_output_tokens).or(named.max_tokens).or(inside);
    (each, named.n.or(count).unwrap_or(1).max(1))
}

/// What a job says of its request beside the texts, as JSON; of a ready-made one all of it.
pub(crate) fn parameters(work: &Work) -> &str {
    match &work.input {
        Input::Prompt(prompt) => &prompt.params,
        Input::Request { body, .. } => body,
    }
}

#[cfg(test)]
mod tests {
    use promptq_common::work::Prompt;

    use super::*;

    #[test]
    fn every_provider_names_the_most_tokens_in_its_own_way() {
        for (body, most) in [
            (r#"{"max_tokens":5,"stream":true}"#, Some(5)),
            (r#"{"max_completion_tokens":6,"max_tokens":5}"#, Some(6)),
            (r#"{"max_output_tokens":7}"#, Some(7)),
            (r#"{"generationConfig":{"maxOutputTokens":8}}"#, Some(8)),
            (r#"{"max_tokens":5,"n":3}"#, Some(15)),
            (r#"{"generationConfig":{"maxOutputTokens":8,"candidateCount":2}}"#, Some(16)),
            (r#"{"max_tokens":"many"}"#, None),
            ("", None),
        ] {
            let request = Work { model: None, input: Input::Request { url: "/v1/x".into(), body: body.into() } };
            assert_eq!(size(&request), Size { bytes: body.len(), max_tokens: most }, "{body}");
            let (text, system) = ("12345".to_owned(), Some("67".to_owned()));
            let prompt = Work { model: None, input: Input::Prompt(Prompt { text, system, params: body.into() }) };
            assert_eq!(size(&prompt), Size { bytes: 7, max_tokens: most }, "{body}");
        }
    }

    #[test]
    fn an_image_within_a_request_is_not_taken_for_text() {
        let of = |data: &str| {
            let body = format!(r#"{{"url":"data:image/png;base64,{data}"}}"#);
            (
                size(&Work { model: None, input: Input::Request { url: "/v1/x".into(), body: body.clone() } }).bytes,
                body.len(),
            )
        };
        let (large, whole) = of(&"iVBO+/w0".repeat(100_000));
        assert!(whole > 800_000 && large < 6_000, "{large}");
        let (small, whole) = of(&"iVBO".repeat(1_000));
        assert_eq!(small, whole);
        let (escaped, whole) = of(&r"\u4e2d\u6587".repeat(10_000));
        assert_eq!(escaped, whole, "text of a script that is escaped");
        let text = "a".repeat(100_000);
        assert_eq!(size(&Work::prompt(None, text)).bytes, 100_000);
    }
}
