//! Answers piece by piece: which events come in which order, and that their texts and usage are those of the whole.

use serde_json::Value;

use super::raw::{Raw, post};
use super::{CHAT, MESSAGES, chat, contents, fake, message, streamed};

const PIECES: &str = "[answer]\noutput = { fixed = 20 }\nchunk = 8";

fn parsed(events: &[(String, String)]) -> Vec<Value> {
    events.iter().filter_map(|(_, data)| serde_json::from_str(data).ok()).collect()
}

fn texts(events: &[Value], at: &str) -> String {
    events.iter().filter_map(|event| event.pointer(at)?.as_str()).collect()
}

fn is_stream(said: &Raw) {
    assert!(said.status == 200 && said.is_whole, "{said:?}");
    assert!(said.header("content-type").unwrap().starts_with("text/event-stream"));
}

#[tokio::test]
async fn a_chat_streams_deltas_then_why_it_ends_then_usage() {
    let fake = fake(PIECES);
    let mut body = streamed(chat("x"));
    body["stream_options"] = serde_json::json!({ "include_usage": true });
    let said = post(&fake, CHAT, "k", &body).await;
    is_stream(&said);
    let events = said.events();
    assert_eq!(events.last().unwrap().1, "[DONE]");
    let chunks = parsed(&events);
    assert_eq!(chunks.len(), 1 + 3 + 1 + 1, "{chunks:?}");
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(chunks[4]["choices"][0]["finish_reason"], "stop");
    assert_eq!(chunks[5]["usage"]["completion_tokens"], 20);
    let whole = post(&fake, CHAT, "k", &chat("x")).await.json();
    assert_eq!(texts(&chunks, "/choices/0/delta/content"), whole["choices"][0]["message"]["content"].as_str().unwrap());
    let without = post(&fake, CHAT, "k", &streamed(chat("x"))).await;
    assert_eq!(parsed(&without.events()).iter().filter(|chunk| chunk.get("usage").is_some()).count(), 0);
}

#[tokio::test]
async fn a_response_streams_numbered_events_and_ends_with_the_whole() {
    let fake = fake(PIECES);
    let body = serde_json::json!({ "model": "m", "input": "x", "stream": true, "max_output_tokens": 16 });
    let said = post(&fake, "/v1/responses", "k", &body).await;
    is_stream(&said);
    let events = said.events();
    let names: Vec<_> = events.iter().map(|(name, _)| name.as_str()).collect();
    let expected = "response.created response.in_progress response.output_item.added response.content_part.added \
                    response.output_text.delta response.output_text.delta response.output_text.done \
                    response.content_part.done response.output_item.done response.incomplete";
    assert_eq!(names, expected.split_whitespace().collect::<Vec<_>>());
    for (at, event) in parsed(&events).iter().enumerate() {
        assert_eq!((&event["sequence_number"], &event["type"]), (&Value::from(at), &Value::from(names[at])));
    }
    let last = parsed(&events).pop().unwrap();
    assert_eq!(last["response"]["usage"]["output_tokens"], 16);
    assert_eq!(
        texts(&parsed(&events), "/delta"),
        last["response"]["output"][0]["content"][0]["text"].as_str().unwrap()
    );
}

#[tokio::test]
async fn a_message_streams_its_events_in_order() {
    let fake = fake(PIECES);
    let said = post(&fake, MESSAGES, "k", &streamed(message("x"))).await;
    is_stream(&said);
    let events = said.events();
    let names: Vec<_> = events.iter().map(|(name, _)| name.as_str()).collect();
    let expected = "message_start content_block_start ping content_block_delta content_block_delta \
                    content_block_delta content_block_stop message_delta message_stop";
    assert_eq!(names, expected.split_whitespace().collect::<Vec<_>>());
    let parsed = parsed(&events);
    assert!(parsed.iter().zip(&names).all(|(event, name)| event["type"] == **name));
    assert_eq!(parsed[7]["usage"]["output_tokens"], 20);
    assert_eq!(parsed[7]["delta"]["stop_reason"], "end_turn");
    let whole = post(&fake, MESSAGES, "k", &message("x")).await.json();
    assert_eq!(texts(&parsed, "/delta/text"), whole["content"][0]["text"].as_str().unwrap());
}

#[tokio::test]
async fn gemini_streams_answers_of_which_the_last_ends() {
    let fake = fake(PIECES);
    let said = post(&fake, "/v1beta/models/g:streamGenerateContent?alt=sse", "k", &contents("x")).await;
    is_stream(&said);
    let parts = parsed(&said.events());
    assert_eq!(parts.len(), 3);
    let ends: Vec<_> = parts.iter().map(|part| part["candidates"][0].get("finishReason").is_some()).collect();
    assert_eq!(ends, [false, false, true]);
    assert_eq!(parts[2]["usageMetadata"]["candidatesTokenCount"], 20);
    let array = post(&fake, "/v1beta/models/g:streamGenerateContent", "k", &contents("x")).await.json();
    assert_eq!(
        texts(&parts, "/candidates/0/content/parts/0/text"),
        array[0]["candidates"][0]["content"]["parts"][0]["text"]
    );
}

#[tokio::test]
async fn pieces_come_at_their_pace() {
    let pace = format!("{PIECES}\n[latency]\nfirst = {{ fixed = \"120ms\" }}\nbetween = {{ fixed = \"60ms\" }}");
    let fake = fake(&pace);
    for body in [streamed(message("x")), message("x")] {
        let began = std::time::Instant::now();
        assert!(post(&fake, MESSAGES, "k", &body).await.is_whole);
        assert!(began.elapsed().as_millis() >= 240, "{:?}", began.elapsed());
    }
    assert!(fake.calls(0).iter().all(|call| call.ended_ms - call.started_ms >= 240));
}
