//! The way to a RabbitMQ server against servers that a test plays.

mod link;
mod peer;
mod played;
mod publisher;
mod versions;

use lapin::BasicProperties;

use super::publisher::Message;

/// A mandatory message with this id, to `exchange`.
fn message(id: &str, exchange: &str) -> Message {
    let properties = BasicProperties::default().with_message_id(id.into());
    let (exchange, key) = (exchange.to_owned(), format!("key.{id}"));
    Message { exchange, key, properties, body: format!("body of {id}").into_bytes(), mandatory: true }
}
