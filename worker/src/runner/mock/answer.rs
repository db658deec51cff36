//! What the mock says, in the shape of the endpoint it was asked through.

use promptq_common::job::Job;
use promptq_common::outcome::{AnswerClass, Body, Failure, FailureClass, Reply, Usage, Usd};
use promptq_common::work::Input;
use serde::Serialize;
use serde_json::{Value, json};

use super::Dice;

/// Numbers in one mock embedding: enough to compute with, small enough to read.
const DIMENSIONS: usize = 8;
/// The most embeddings in one answer, as OpenAI's own endpoint has it.
const INPUTS_MAX: usize = 2_048;
const MOODS: [&str; 3] = ["positive", "negative", "mixed"];
const WORDS: [&str; 32] = [
    "amber", "brief", "calm", "clear", "cloud", "delta", "early", "ember", "field", "frost", "green", "grove",
    "harbor", "hollow", "island", "lantern", "level", "linen", "meadow", "north", "orbit", "paper", "quiet", "river",
    "silver", "stone", "summer", "thread", "timber", "velvet", "water", "window",
];

/// A short, made-up answer of about `tokens` tokens; a prompt that asks about sentiment gets one.
pub(super) fn answer(job: &Job, tokens: (u64, u64), dice: &mut Dice) -> Result<Reply, Failure> {
    let mut said = Said {
        id: format!("{:016x}", dice.next()),
        created: job.created_at.as_millis() / 1_000,
        model: job.work.model.clone().unwrap_or_else(|| "mock".to_owned()),
        text: String::new(),
        usage: Usage::default(),
    };
    let (asked, url, body) = match &job.work.input {
        Input::Prompt(prompt) => (prompt.text.as_str(), "/v1/chat/completions", ""),
        Input::Request { url, body } => (body.as_str(), url.as_str(), body.as_str()),
    };
    let system = match &job.work.input {
        Input::Prompt(prompt) => prompt.system.as_deref().map_or(0, str::len),
        Input::Request { .. } => 0,
    };
    said.usage.input_tokens = tokens_in(asked.len() + system);
    if url != "/v1/embeddings" {
        said.text = text(asked, tokens, dice);
        said.usage.output_tokens = tokens_in(said.text.len());
    }
    let shape = match url {
        "/v1/chat/completions" => said.chat(),
        "/v1/responses" => said.response(),
        "/v1/embeddings" => said.embeddings(body, dice)?,
        _ => {
            let detail = "the mock provider serves /v1/chat/completions, /v1/responses and /v1/embeddings";
            return Err(refused(404, "unknown_url", detail));
        }
    };
    let embeddings = said.text.is_empty();
    Ok(Reply {
        status_code: 200,
        request_id: Some(format!("mock-{}", said.id)),
        body: Body::Json(shape),
        finish_reason: (!embeddings).then(|| "stop".to_owned()),
        text: (!embeddings).then_some(said.text),
        model: Some(said.model),
        class: AnswerClass::Complete,
        usage: said.usage,
        cost: Some(Usd::default()),
        detail: None,
        origin: None,
    })
}

struct Said {
    id: String,
    created: i64,
    model: String,
    text: String,
    usage: Usage,
}

impl Said {
    fn chat(&self) -> String {
        let message = Message { role: "assistant", content: &self.text };
        written(&Chat {
            id: format!("chatcmpl-{}", self.id),
            object: "chat.completion",
            created: self.created,
            model: &self.model,
            choices: [Choice { index: 0, message, finish_reason: "stop" }],
            usage: ChatUsage {
                prompt_tokens: self.usage.input_tokens,
                completion_tokens: self.usage.output_tokens,
                total_tokens: self.usage.input_tokens + self.usage.output_tokens,
            },
        })
    }

    fn response(&self) -> String {
        written(&json!({
            "id": format!("resp_{}", self.id),
            "object": "response",
            "created_at": self.created,
            "status": "completed",
            "model": self.model,
            "output": [{
                "id": format!("msg_{}", self.id),
                "type": "message",
                "status": "completed",
                "role": "assistant",
                "content": [{ "type": "output_text", "text": self.text, "annotations": [] }],
            }],
            "usage": {
                "input_tokens": self.usage.input_tokens,
                "output_tokens": self.usage.output_tokens,
                "total_tokens": self.usage.input_tokens + self.usage.output_tokens,
            },
        }))
    }

    fn embeddings(&self, body: &str, dice: &mut Dice) -> Result<String, Failure> {
        let data: Vec<Value> = (0..inputs(body)?)
            .map(|index| {
                let embedding: Vec<f64> = (0..DIMENSIONS).map(|_| dice.share().mul_add(2.0, -1.0)).collect();
                json!({ "object": "embedding", "index": index, "embedding": embedding })
            })
            .collect();
        Ok(written(&json!({
            "object": "list",
            "data": data,
            "model": self.model,
            "usage": { "prompt_tokens": self.usage.input_tokens, "total_tokens": self.usage.input_tokens },
        })))
    }
}

/// What most jobs are answered with: written without a tree of values in between.
#[derive(Serialize)]
struct Chat<'a> {
    id: String,
    object: &'static str,
    created: i64,
    model: &'a str,
    choices: [Choice<'a>; 1],
    usage: ChatUsage,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: u32,
    message: Message<'a>,
    finish_reason: &'static str,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: &'a str,
}

#[derive(Serialize)]
#[expect(clippy::struct_field_names, reason = "the names of the API")]
struct ChatUsage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
}

/// As one line. Nothing here can fail to be written.
fn written(shape: &impl Serialize) -> String {
    serde_json::to_string(shape).unwrap_or_default()
}

/// How many texts an embeddings request brings: a list of strings or of token lists is many, anything else is one.
fn inputs(body: &str) -> Result<usize, Failure> {
    let body: Value =
        serde_json::from_str(body).map_err(|_| refused(400, "invalid_json", "the request's body is not JSON"))?;
    let count = match body.get("input") {
        Some(Value::Array(list)) if list.first().is_some_and(|first| !first.is_number()) => list.len(),
        Some(Value::Array(list)) if list.is_empty() => 0,
        Some(Value::Array(_) | Value::String(_)) => 1,
        _ => 0,
    };
    if (1..=INPUTS_MAX).contains(&count) {
        return Ok(count);
    }
    Err(refused(400, "invalid_request", "input must be a text or a list of 1 to 2048 texts"))
}

fn refused(status_code: u16, code: &str, detail: &str) -> Failure {
    Failure { status_code: Some(status_code), ..Failure::new(FailureClass::Fatal, code, detail) }
}

fn text(asked: &str, (least, most): (u64, u64), dice: &mut Dice) -> String {
    let pick = |list: &[&'static str], dice: &mut Dice| {
        let at = usize::try_from(dice.below(list.len() as u64)).unwrap_or(0);
        list.get(at).copied().unwrap_or("mock")
    };
    let tokens = least + dice.below(most.saturating_sub(least) + 1);
    if mentions(asked, "sentiment") {
        return pick(&MOODS, dice).to_owned();
    }
    let mut text = String::from("Mock:");
    while tokens_in(text.len() + 1) < tokens {
        text.push(' ');
        text.push_str(pick(&WORDS, dice));
    }
    text.push('.');
    text
}

/// Whether the beginning of a prompt, which may be megabytes long, has this word in it.
fn mentions(asked: &str, word: &str) -> bool {
    let head = asked.as_bytes().get(..2_000).unwrap_or(asked.as_bytes());
    let first = word.as_bytes().first().map(u8::to_ascii_lowercase);
    let begins = |piece: &[u8]| piece.first().map(u8::to_ascii_lowercase) == first;
    head.windows(word.len()).any(|piece| begins(piece) && piece.eq_ignore_ascii_case(word.as_bytes()))
}

/// About four bytes of English a token: the providers' own rule of thumb.
fn tokens_in(bytes: usize) -> u64 {
    bytes.div_ceil(4).max(1) as u64
}

#[cfg(test)]
mod tests {
    use promptq_common::job::Queue;
    use promptq_common::work::Work;

    use super::*;

    fn asked(url: &str, body: &str) -> Result<Reply, Failure> {
        let input = Input::Request { url: url.to_owned(), body: body.to_owned() };
        let work = Work { model: Some("mock".to_owned()), input };
        answer(&Job::new(Queue::standard(), work), (8, 32), &mut Dice(7))
    }

    fn json(reply: &Reply) -> Value {
        let Body::Json(text) = &reply.body else { panic!("not JSON: {reply:?}") };
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn each_endpoint_is_answered_in_its_own_shape() {
        let chat = asked("/v1/chat/completions", "{}").unwrap();
        assert_eq!(json(&chat)["choices"][0]["message"]["content"], chat.text.clone().unwrap());
        let response = asked("/v1/responses", "{}").unwrap();
        assert_eq!(json(&response)["output"][0]["content"][0]["text"], response.text.clone().unwrap());
        let embeddings = asked("/v1/embeddings", r#"{"input":["a","b","c"]}"#).unwrap();
        assert_eq!(json(&embeddings)["data"].as_array().unwrap().len(), 3);
        assert_eq!((embeddings.text, embeddings.usage.output_tokens), (None, 0));
        for (url, body, code) in [
            ("/v1/moderations", "{}", "unknown_url"),
            ("/v1/embeddings", "{", "invalid_json"),
            ("/v1/embeddings", "{}", "invalid_request"),
        ] {
            assert_eq!(asked(url, body).unwrap_err().code, code);
        }
    }

    #[test]
    fn sentiment_is_answered_with_a_sentiment() {
        let job = Job::new(Queue::standard(), Work::prompt(Some("mock"), "Sentiment of: it broke twice"));
        let reply = answer(&job, (8, 32), &mut Dice(7)).unwrap();
        assert!(MOODS.contains(&reply.text.unwrap().as_str()));
        assert_eq!((reply.usage.input_tokens, reply.cost), (7, Some(Usd::default())));
    }

    #[test]
    fn an_answer_has_about_the_tokens_asked_for() {
        let job = Job::new(Queue::standard(), Work::prompt(Some("mock"), "Tell me"));
        let reply = answer(&job, (100, 100), &mut Dice(7)).unwrap();
        assert!((100..=103).contains(&reply.usage.output_tokens), "{:?}", reply.usage);
    }
}
