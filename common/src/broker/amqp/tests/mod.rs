//! The way to a RabbitMQ server against servers that a test plays.

mod desk;
mod link;
mod lost;
mod peer;
mod played;
mod publisher;
mod settling;
mod stage;
mod trapped;
mod versions;

use std::io::Write;
use std::sync::{Arc, Mutex};

use lapin::BasicProperties;

use super::publisher::Message;

/// A mandatory message with this id, to `exchange`.
fn message(id: &str, exchange: &str) -> Message {
    let properties = BasicProperties::default().with_message_id(id.into());
    let (exchange, key) = (exchange.to_owned(), format!("key.{id}"));
    Message { exchange, key, properties, body: format!("body of {id}").into_bytes(), mandatory: true }
}

/// What the program logs, for a test that listens.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Written {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
