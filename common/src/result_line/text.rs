//! The text in an answer's body, whichever provider's shape it has.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::outcome::Body;

/// The text an answer gave: plain text as it is; of JSON the message of a chat completion, completion, response,
/// message or candidate, its parts joined. `None` where the shape has no text (embeddings).
pub fn answer_text(body: &Body) -> Option<Cow<'_, str>> {
    match body {
        Body::Text(text) => Some(Cow::Borrowed(text)),
        Body::Json(json) => {
            let shape: Shape<'_> = serde_json::from_str(json).ok()?;
            shape.text()
        }
    }
}

/// The parts of the providers' answers that hold text; whatever else they say is skipped unread.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Shape<'a> {
    #[serde(borrow)]
    choices: Vec<Choice<'a>>,
    #[serde(borrow)]
    output_text: Option<Said<'a>>,
    #[serde(borrow)]
    output: Vec<Item<'a>>,
    #[serde(borrow)]
    content: Option<Content<'a>>,
    #[serde(borrow)]
    candidates: Vec<Candidate<'a>>,
}

/// One answer of Gemini.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Candidate<'a> {
    #[serde(borrow)]
    content: Option<Parts<'a>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Parts<'a> {
    #[serde(borrow)]
    parts: Vec<Part<'a>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Choice<'a> {
    #[serde(borrow)]
    message: Option<Item<'a>>,
    #[serde(borrow)]
    text: Option<Said<'a>>,
    error: Option<IgnoredAny>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Item<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<Said<'a>>,
    #[serde(borrow)]
    content: Option<Content<'a>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content<'a> {
    #[serde(borrow)]
    Text(Said<'a>),
    Parts(Vec<Part<'a>>),
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Part<'a> {
    #[serde(borrow)]
    text: Option<Said<'a>>,
    /// Gemini's mark of a part that is no answer but how it came about.
    thought: bool,
}

/// A text, copied only where it is escaped.
#[derive(Deserialize)]
#[serde(transparent)]
struct Said<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'a> Shape<'a> {
    fn text(self) -> Option<Cow<'a, str>> {
        if !self.choices.is_empty() {
            let choice = self.choices.into_iter().find(|choice| choice.error.is_none())?;
            return choice.text.map(|text| text.0).or_else(|| choice.message?.content?.text());
        }
        if let Some(text) = self.output_text {
            return Some(text.0);
        }
        if !self.candidates.is_empty() {
            // One that was held back has nothing to say.
            return self.candidates.into_iter().find_map(|candidate| Content::Parts(candidate.content?.parts).text());
        }
        // Reasoning has content too.
        let messages =
            self.output.into_iter().filter(|item| item.kind.as_ref().is_some_and(|kind| kind.0 == "message"));
        let parts: Vec<_> = messages.filter_map(|item| item.content?.text()).collect();
        if parts.is_empty() { self.content?.text() } else { Some(parts.concat().into()) }
    }
}

impl<'a> Content<'a> {
    fn text(self) -> Option<Cow<'a, str>> {
        match self {
            Self::Text(text) => Some(text.0),
            Self::Parts(parts) => {
                let texts: Vec<_> = parts
                    .into_iter()
                    .filter(|part| !part.thought)
                    .filter_map(|part| part.text)
                    .map(|text| text.0)
                    .collect();
                (!texts.is_empty()).then(|| texts.concat().into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_found_in_every_shape() {
        let json = |text: &str| Body::Json(text.to_owned());
        for (body, text) in [
            (json(r#"{"choices":[{"message":{"role":"assistant","content":"a"}}]}"#), Some("a")),
            (json(r#"{"choices":[{"text":"b"}]}"#), Some("b")),
            (json(r#"{"output":[{"type":"message","content":[{"type":"output_text","text":"c"}]}]}"#), Some("c")),
            (
                json(
                    r#"{"output":[{"type":"reasoning","content":[{"type":"reasoning_text","text":"hm"}]},{"type":"message","content":[{"text":"c"}]}]}"#,
                ),
                Some("c"),
            ),
            (json(r#"{"choices":[{"error":{"code":5}},{"message":{"content":"a"}}]}"#), Some("a")),
            (json(r#"{"candidates":[{"finishReason":"SAFETY"},{"content":{"parts":[{"text":"g"}]}}]}"#), Some("g")),
            (json(r#"{"content":[{"type":"text","text":"d"},{"type":"text","text":"e"}]}"#), Some("de")),
            (json(r#"{"content":[{"type":"thinking","thinking":"hm"},{"type":"text","text":"f"}]}"#), Some("f")),
            (
                json(
                    r#"{"candidates":[{"content":{"parts":[{"text":"hm","thought":true},{"text":"g"},{"text":"h"}]}}]}"#,
                ),
                Some("gh"),
            ),
            (json(r#"{"data":[{"embedding":[0.1]}]}"#), None),
            (json(r#"{"choices":[{"message":{"content":null}}]}"#), None),
        ] {
            assert_eq!(answer_text(&body).as_deref(), text, "{body:?}");
        }
    }
}
