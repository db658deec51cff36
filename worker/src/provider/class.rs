//! From how an answer says that it ended to how whole it is. What holds content is each API's own `answer.rs`; whether text
//! is the JSON that was asked for, `form.rs`.

use promptq_common::outcome::AnswerClass;
use serde_json::Value;

/// Why a model stopped where it had said all it wanted to say, in the words of all APIs.
const ENDS: [&str; 4] = ["stop", "end_turn", "stop_sequence", "completed"];
/// Why it stopped where it wants something done: its words are in the call.
const CALLS: [&str; 3] = ["tool_calls", "tool_use", "function_call"];
/// Where it had more to say.
const CUTS: [&str; 7] = [
    "length",
    "max_tokens",
    "max_output_tokens",
    "model_length",
    "model_context_window_exceeded",
    "pause_turn",
    "incomplete",
];
/// Where it would not, or was not let.
const REFUSALS: [&str; 11] = [
    "refusal",
    "content_filter",
    "safety",
    "prohibited_content",
    "blocklist",
    "spii",
    "recitation",
    "language",
    "image_safety",
    "image_prohibited_content",
    "image_recitation",
];
/// Where what it said can be used for nothing.
const ODD: [&str; 2] = ["malformed_function_call", "unexpected_tool_call"];

/// The end of an answer, or of one of its choices.
#[derive(Clone, Copy, Debug)]
pub(super) struct End<'a> {
    /// Why it stopped, as the API says it.
    pub(super) reason: &'a Value,
    /// Whether it says otherwise that it was refused.
    pub(super) refused: bool,
    /// Whether it holds anything but how it came about.
    pub(super) holds: bool,
}

impl End<'_> {
    pub(super) fn class(self) -> AnswerClass {
        let reason = self.reason.as_str().unwrap_or_default().to_ascii_lowercase();
        let is = |words: &[&str]| words.contains(&reason.as_str());
        if self.refused || is(&REFUSALS) {
            AnswerClass::Refused
        } else if is(&CUTS) {
            AnswerClass::Truncated
        } else if is(&ODD) {
            AnswerClass::InvalidOutput
        } else if is(&CALLS) {
            AnswerClass::Complete
        } else if !self.holds {
            AnswerClass::InvalidOutput
        } else if is(&ENDS) {
            AnswerClass::Complete
        } else {
            AnswerClass::Unknown
        }
    }
}

/// Of several choices that of the first that is not whole; where there is none, nothing was said.
pub(super) fn of_all(choices: impl Iterator<Item = AnswerClass>) -> AnswerClass {
    let mut all = AnswerClass::InvalidOutput;
    for class in choices {
        all = class;
        if class != AnswerClass::Complete {
            break;
        }
    }
    all
}

/// Whether a reason to stop is a call of a function: text beside it is no answer.
pub(super) fn is_call(reason: Option<&str>) -> bool {
    reason.is_some_and(|reason| CALLS.contains(&reason))
}

/// Whether a text says anything.
pub(super) fn says(text: &str) -> bool {
    !text.trim().is_empty()
}

#[cfg(test)]
mod tests {
    use super::AnswerClass::{self, Complete, InvalidOutput, Refused, Truncated, Unknown};
    use crate::provider::Endpoint::{self, Chat, Embeddings, Generate, Messages, Responses};
    use crate::provider::rows::answered;

    #[track_caller]
    fn hold(rows: &[(Endpoint, &str, AnswerClass)]) {
        for (endpoint, body, class) in rows {
            assert_eq!(answered(*endpoint, body).class, *class, "{body}");
        }
    }

    #[test]
    fn every_api_says_in_its_own_way_that_an_answer_is_whole() {
        hold(&[
            (Chat, r#"{"choices":[{"finish_reason":"stop","message":{"content":"a","refusal":null}}]}"#, Complete),
            (
                Chat,
                r#"{"choices":[{"finish_reason":"stop","message":{"content":[{"type":"text","text":"a"}]}}]}"#,
                Complete,
            ),
            (
                Chat,
                r#"{"choices":[{"finish_reason":"tool_calls"},{"finish_reason":"stop","message":{"content":"a"}}]}"#,
                Complete,
            ),
            (Chat, r#"{"choices":[{"finish_reason":"stop","message":{"tool_calls":[{}],"content":null}}]}"#, Complete),
            (
                Responses,
                r#"{"status":"completed","output":[{"type":"message","content":[{"type":"output_text","text":"a"}]}]}"#,
                Complete,
            ),
            (Responses, r#"{"status":"completed","output":[{"type":"function_call","name":"f"}]}"#, Complete),
            (Messages, r#"{"stop_reason":"end_turn","content":[{"type":"text","text":"a"}]}"#, Complete),
            (Messages, r#"{"stop_reason":"tool_use","content":[]}"#, Complete),
            (Generate, r#"{"candidates":[{"finishReason":"STOP","content":{"parts":[{"text":"a"}]}}]}"#, Complete),
            (
                Generate,
                r#"{"candidates":[{"finishReason":"STOP","content":{"parts":[{"functionCall":{}}]}}]}"#,
                Complete,
            ),
            (Embeddings, r#"{"object":"list","data":[{"embedding":[0.5]},{"embedding":"AAAA"}]}"#, Complete),
        ]);
    }

    #[test]
    fn an_answer_that_met_its_length_is_truncated_whatever_it_holds() {
        hold(&[
            (Chat, r#"{"choices":[{"finish_reason":"length","message":{"content":"a"}}]}"#, Truncated),
            (Chat, r#"{"choices":[{"finish_reason":"length","message":{"content":""}}]}"#, Truncated),
            (
                Chat,
                r#"{"choices":[{"finish_reason":"stop","message":{"content":"a"}},{"finish_reason":"length"}]}"#,
                Truncated,
            ),
            (
                Responses,
                r#"{"status":"incomplete","incomplete_details":{"reason":"max_output_tokens"},"output":[]}"#,
                Truncated,
            ),
            (Responses, r#"{"status":"incomplete","output":[]}"#, Truncated),
            (Messages, r#"{"stop_reason":"max_tokens","content":[{"type":"text","text":"a"}]}"#, Truncated),
            (Messages, r#"{"stop_reason":"model_context_window_exceeded","content":[]}"#, Truncated),
            (Messages, r#"{"stop_reason":"pause_turn","content":[{"type":"server_tool_use"}]}"#, Truncated),
            (Generate, r#"{"candidates":[{"finishReason":"MAX_TOKENS"}]}"#, Truncated),
        ]);
    }

    #[test]
    fn what_a_model_or_a_filter_would_not_say_is_refused() {
        hold(&[
            (Chat, r#"{"choices":[{"finish_reason":"content_filter","message":{"content":""}}]}"#, Refused),
            (
                Chat,
                r#"{"choices":[{"finish_reason":"stop","message":{"content":null,"refusal":"I cannot"}}]}"#,
                Refused,
            ),
            (
                Responses,
                r#"{"status":"completed","output":[{"type":"message","content":[{"type":"refusal","refusal":"no"}]}]}"#,
                Refused,
            ),
            (
                Responses,
                r#"{"status":"incomplete","incomplete_details":{"reason":"content_filter"},"output":[]}"#,
                Refused,
            ),
            (Messages, r#"{"stop_reason":"refusal","content":[{"type":"text","text":"a"}]}"#, Refused),
            (
                Generate,
                r#"{"candidates":[{"finishReason":"STOP","content":{"parts":[{"text":"a"}]}},{"finishReason":"SAFETY"}]}"#,
                Refused,
            ),
            (Generate, r#"{"candidates":[{"finishReason":"RECITATION"}]}"#, Refused),
        ]);
    }

    #[test]
    fn an_answer_that_says_nothing_is_invalid_output() {
        hold(&[
            (Chat, r#"{"choices":[{"finish_reason":"stop","message":{"content":""}}]}"#, InvalidOutput),
            (
                Chat,
                r#"{"choices":[{"finish_reason":"stop","message":{"content":" \n","tool_calls":[]}}]}"#,
                InvalidOutput,
            ),
            (
                Chat,
                r#"{"choices":[{"finish_reason":"stop","message":{"content":null,"reasoning_content":"hm"}}]}"#,
                InvalidOutput,
            ),
            (
                Chat,
                r#"{"choices":[{"finish_reason":"stop","message":{"content":"a"}},{"finish_reason":"stop","error":{"code":500}}]}"#,
                InvalidOutput,
            ),
            (
                Responses,
                r#"{"status":"completed","output":[{"type":"reasoning","content":[{"text":"hm"}]}]}"#,
                InvalidOutput,
            ),
            (Messages, r#"{"stop_reason":"end_turn","content":[{"type":"thinking","thinking":"hm"}]}"#, InvalidOutput),
            (
                Generate,
                r#"{"candidates":[{"finishReason":"STOP","content":{"parts":[{"text":"hm","thought":true}]}}]}"#,
                InvalidOutput,
            ),
            (Generate, r#"{"candidates":[{"finishReason":"MALFORMED_FUNCTION_CALL"}]}"#, InvalidOutput),
            (Embeddings, r#"{"data":[]}"#, InvalidOutput),
            (Embeddings, r#"{"data":[{"embedding":[1]},{"embedding":null}]}"#, InvalidOutput),
        ]);
    }

    #[test]
    fn a_reason_that_nobody_knows_is_neither_whole_nor_at_fault() {
        hold(&[
            (Chat, r#"{"choices":[{"finish_reason":null,"message":{"content":"a"}}]}"#, Unknown),
            (Chat, r#"{"choices":[{"finish_reason":"eos_token","message":{"content":"a"}}]}"#, Unknown),
            (Generate, r#"{"candidates":[{"finishReason":"OTHER","content":{"parts":[{"text":"a"}]}}]}"#, Unknown),
        ]);
        assert!(!Unknown.is_faulty() && !Complete.is_faulty());
    }
}
