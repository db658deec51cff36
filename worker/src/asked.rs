//! What a request asks for that its bytes do not show: several answers, a tier of service, images, and what costs something
//! that no price of tokens says. Read where a job's cost is limited or guessed at; how many bytes and tokens it has is
//! `size.rs`.

use promptq_common::work::{Input, Work};
use serde_json::{Map, Value};

use crate::size::parameters;

/// The most tokens that an image comes to wherever it is public how they are counted: eight tiles of a long one for
/// gpt-4o-mini, each 5,667, and 2,833 for the whole. Claude and Gemini count a tenth of it at most.
pub const IMAGE_TOKENS: u64 = 48_169;

/// The names that APIs have for several answers to one request.
const ANSWERS: [&str; 4] = ["n", "best_of", "candidateCount", "candidate_count"];
const CONFIGS: [&str; 2] = ["generationConfig", "generation_config"];
/// What a request is answered in; a price is one of texts.
const MODALITIES: [&str; 3] = ["modalities", "responseModalities", "response_modalities"];
/// Members that bring in what lies at the provider, have it do more than answer, or raise its prices.
const MORE: [&str; 12] = [
    "previous_response_id",
    "conversation",
    "prompt",
    "cachedContent",
    "cached_content",
    "container",
    "mcp_servers",
    "web_search_options",
    "plugins",
    "audio",
    "speed",
    "inference_geo",
];
/// Where the parts of a conversation are.
const CONTENTS: [&str; 5] = ["messages", "input", "contents", "systemInstruction", "system_instruction"];
/// Words in the kind of a part that say that it is no text, and nobody knows how many tokens it comes to.
const UNREAD: [&str; 6] = ["file", "document", "audio", "video", "reference", "upload"];

/// The members of a request beside its texts, of a ready-made one all of them.
#[derive(Debug)]
pub struct Asked {
    members: Map<String, Value>,
    is_embedding: bool,
}

/// What a request shows beside its texts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Images {
    /// How many.
    pub count: u64,
    /// Bytes of theirs that are in the request itself.
    pub bytes: usize,
}

impl Asked {
    /// Reads them; `None` where they are no JSON object.
    pub fn of(work: &Work) -> Option<Self> {
        let members = match parameters(work).trim() {
            "" => Map::new(),
            text => serde_json::from_str(text).ok()?,
        };
        let is_embedding = matches!(&work.input, Input::Request { url, .. } if url == "/v1/embeddings");
        Some(Self { members, is_embedding })
    }

    /// The service tier, in small letters.
    pub fn tier(&self) -> Option<String> {
        let said = |name| self.members.get(name).filter(|said| !said.is_null());
        let tier = said("service_tier").or_else(|| said("serviceTier"))?;
        Some(tier.as_str().map_or_else(|| tier.to_string(), str::to_ascii_lowercase))
    }

    /// How many answers, each of which may have the most tokens; none where only vectors come, `None` where it is no number.
    pub fn answers(&self) -> Option<u64> {
        if self.is_embedding {
            return Some(0);
        }
        let said = self.objects().flat_map(|object| ANSWERS.iter().filter_map(move |name| object.get(*name)));
        said.filter(|said| !said.is_null()).try_fold(1, |most, said| Some(said.as_u64()?.max(most)))
    }

    /// The images it shows.
    ///
    /// # Errors
    /// The name of something in it of which nobody can say beforehand what it costs.
    pub fn images(&self) -> Result<Images, String> {
        if let Some(name) = MORE.iter().find(|name| self.members.get(**name).is_some_and(|more| !is_nothing(more))) {
            return Err((*name).to_owned());
        }
        let mut spoken = self.objects().flat_map(|object| MODALITIES.iter().filter_map(move |name| object.get(*name)));
        if !spoken.all(is_text) {
            return Err("modalities".to_owned());
        }
        if !self.members.get("tools").is_none_or(are_own_tools) {
            return Err("tools".to_owned());
        }
        let mut images = Images::default();
        CONTENTS.iter().filter_map(|name| self.members.get(*name)).try_for_each(|part| count(part, &mut images))?;
        Ok(images)
    }

    fn objects(&self) -> impl Iterator<Item = &Map<String, Value>> {
        let nested = CONFIGS.iter().filter_map(|name| self.members.get(*name)?.as_object());
        std::iter::once(&self.members).chain(nested)
    }
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Bool(true) | Value::Number(_) | Value::String(_) | Value::Object(_) => false,
    }
}

fn is_text(modalities: &Value) -> bool {
    let text = |one: &Value| one.as_str().is_some_and(|one| one.eq_ignore_ascii_case("text"));
    is_nothing(modalities) || modalities.as_array().is_some_and(|all| all.iter().all(text))
}

/// Whether all of them are the caller's to run: a provider's own (searches, code) cost something for each use.
fn are_own_tools(tools: &Value) -> bool {
    const DECLARED: [&str; 2] = ["functionDeclarations", "function_declarations"];
    let is_own = |tool: &Value| match (tool.get("type").map(Value::as_str), tool.as_object()) {
        (Some(Some("function" | "custom")), _) => true,
        (None, Some(tool)) => tool.contains_key("name") || tool.keys().all(|name| DECLARED.contains(&name.as_str())),
        (Some(_), _) | (None, None) => false,
    };
    is_nothing(tools) || tools.as_array().is_some_and(|tools| tools.iter().all(is_own))
}

/// Counts the images of a conversation, or names what can be counted by nobody.
fn count(part: &Value, images: &mut Images) -> Result<(), String> {
    let object = match part {
        Value::Array(parts) => return parts.iter().try_for_each(|part| count(part, images)),
        Value::Object(object) => object,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => return Ok(()),
    };
    if let Some(kind) = object.get("type").and_then(Value::as_str) {
        if kind.contains("image") {
            images.add(part);
            return Ok(());
        }
        if UNREAD.iter().any(|unread| kind.contains(unread)) {
            return Err(kind.to_owned());
        }
    }
    for (name, inside) in object {
        match name.as_str() {
            "inlineData" | "inline_data" | "fileData" | "file_data" => {
                let kind = ["mimeType", "mime_type"].iter().find_map(|name| inside.get(*name)?.as_str());
                if !kind.is_some_and(|kind| kind.starts_with("image/")) {
                    return Err(kind.unwrap_or(name).to_owned());
                }
                images.add(inside);
            }
            // What a model has asked a tool for, which may be of any form.
            "input" | "args" | "arguments" => {}
            _ => count(inside, images)?,
        }
    }
    Ok(())
}

impl Images {
    fn add(&mut self, image: &Value) {
        self.count += 1;
        self.bytes = self.bytes.saturating_add(length(image));
    }
}

/// The bytes of all texts in a value.
fn length(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(length).sum(),
        Value::Object(object) => object.values().map(length).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(url: &str, body: &str) -> Asked {
        Asked::of(&Work { model: None, input: Input::Request { url: url.into(), body: body.into() } }).unwrap()
    }

    fn chat(body: &str) -> Asked {
        asked("/v1/chat/completions", body)
    }

    #[test]
    fn every_api_has_its_own_name_for_several_answers() {
        for (body, count) in [
            ("{}", Some(1)),
            (r#"{"n":null}"#, Some(1)),
            (r#"{"n":3}"#, Some(3)),
            (r#"{"n":0}"#, Some(1)),
            (r#"{"n":1,"n":5}"#, Some(5)),
            (r#"{"n":2,"best_of":4}"#, Some(4)),
            (r#"{"candidateCount":2}"#, Some(2)),
            (r#"{"generationConfig":{"candidateCount":2}}"#, Some(2)),
            (r#"{"generation_config":{"candidate_count":6}}"#, Some(6)),
            (r#"{"n":5,"generationConfig":0}"#, Some(5)),
            (r#"{"n":"5"}"#, None),
            (r#"{"n":3.0}"#, None),
        ] {
            assert_eq!(chat(body).answers(), count, "{body}");
        }
        assert_eq!(asked("/v1/embeddings", r#"{"input":"x"}"#).answers(), Some(0), "vectors have no length to pay for");
    }

    #[test]
    fn a_tier_is_known_by_both_names_and_never_overlooked() {
        for (body, tier) in [
            ("{}", None),
            (r#"{"service_tier":null}"#, None),
            (r#"{"service_tier":"Priority"}"#, Some("priority")),
            (r#"{"serviceTier":"flex"}"#, Some("flex")),
            (r#"{"service_tier":"auto","service_tier":"priority"}"#, Some("priority")),
            (r#"{"service_tier":7}"#, Some("7")),
        ] {
            assert_eq!(chat(body).tier().as_deref(), tier, "{body}");
        }
    }

    #[test]
    fn images_are_counted_in_every_shape() {
        for (body, images) in [
            (r#"{"messages":[{"role":"user","content":"an image"}]}"#, 0),
            (
                r#"{"messages":[{"content":[{"type":"text","text":"a"},{"type":"image_url","image_url":{"url":"https://x/y"}},
                {"type":"image_url","image_url":{"url":"data:image/png;base64,AA"}}]}]}"#,
                2,
            ),
            (r#"{"input":[{"role":"user","content":[{"type":"input_image","file_id":"f"}]}]}"#, 1),
            (r#"{"messages":[{"content":[{"type":"image","source":{"type":"url","url":"https://x"}}]}]}"#, 1),
            (r#"{"messages":[{"content":[{"type":"tool_result","content":[{"type":"image","source":{}}]}]}]}"#, 1),
            (r#"{"contents":[{"parts":[{"fileData":{"mimeType":"image/png","fileUri":"u"}},{"text":"a"}]}]}"#, 1),
            (r#"{"contents":[{"parts":[{"inline_data":{"mime_type":"image/png","data":"AA"}}]}]}"#, 1),
            (r#"{"messages":[{"content":[{"type":"tool_use","input":{"type":"document"}}]}]}"#, 0),
            (r#"{"input":"text","tools":[{"type":"function","name":"f"}],"modalities":["text"],"audio":null}"#, 0),
            (r#"{"tools":[{"name":"f","input_schema":{"type":"object"}}]}"#, 0),
            (r#"{"tools":[{"functionDeclarations":[]}],"generationConfig":{"responseModalities":["TEXT"]}}"#, 0),
        ] {
            assert_eq!(chat(body).images().map(|images| images.count), Ok(images), "{body}");
        }
    }

    #[test]
    fn what_an_image_brings_along_is_no_text() {
        let body = r#"{"messages":[{"content":[{"type":"text","text":"aaaa"},
            {"type":"image","source":{"type":"base64","media_type":"image/png","data":"AAAAAAAAAA"}}]}]}"#;
        let told = "image".len() + "base64".len() + "image/png".len();
        assert_eq!(chat(body).images(), Ok(Images { count: 1, bytes: told + 10 }));
    }

    #[test]
    fn what_nobody_can_count_beforehand_is_named() {
        for (body, name) in [
            (r#"{"previous_response_id":"r","input":"a"}"#, "previous_response_id"),
            (r#"{"cachedContent":"c"}"#, "cachedContent"),
            (r#"{"web_search_options":{}}"#, "web_search_options"),
            (r#"{"speed":"fast"}"#, "speed"),
            (r#"{"modalities":["text","audio"]}"#, "modalities"),
            (r#"{"generationConfig":{"responseModalities":["IMAGE"]}}"#, "modalities"),
            (r#"{"tools":[{"type":"web_search_20250305","name":"web_search"}]}"#, "tools"),
            (r#"{"tools":[{"googleSearch":{}}]}"#, "tools"),
            (r#"{"input":[{"type":"item_reference","id":"i"}]}"#, "item_reference"),
            (r#"{"messages":[{"content":[{"type":"document","source":{"type":"url"}}]}]}"#, "document"),
            (r#"{"messages":[{"content":[{"type":"input_audio","input_audio":{}}]}]}"#, "input_audio"),
            (r#"{"contents":[{"parts":[{"fileData":{"mimeType":"video/mp4"}}]}]}"#, "video/mp4"),
            (r#"{"contents":[{"parts":[{"fileData":{"fileUri":"u"}}]}]}"#, "fileData"),
        ] {
            assert_eq!(chat(body).images(), Err(name.to_owned()), "{body}");
        }
    }

    #[test]
    fn what_is_no_object_cannot_be_read() {
        let of = |body: &str| {
            Asked::of(&Work { model: None, input: Input::Request { url: "/v1/x".into(), body: body.into() } })
        };
        assert!(of("[]").is_none() && of("{").is_none());
        assert!(Asked::of(&Work::prompt(None, "a")).is_some_and(|asked| asked.images() == Ok(Images::default())));
    }
}
