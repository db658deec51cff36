//! Asking a server for exchanges, queues and bindings over one channel after another, as a refusal closes the one it
//! came over; the last one closes when the talk is dropped. What a refusal means here is the asker's affair; every
//! other failure is an error.

use lapin::options::{
    ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, ErrorKind};

use super::super::link::Link;
use super::wanted::{Binding, Exchange, WantedQueue};
use crate::error::{Error, Kind, Result};
use crate::job::Queue;

const OP: &str = "declare the topology";

/// One channel after another.
pub(super) struct Talk<'a> {
    link: &'a Link,
    channel: Channel,
    /// The queue that all of it is for, where it is for one.
    queue: Option<Queue>,
}

/// Why the server would not, and closed the channel.
#[derive(Debug)]
pub(super) struct Refused {
    /// Its reply code, such as 404.
    pub(super) code: u16,
    /// Its words.
    pub(super) said: String,
    /// The queue that was talked of.
    queue: Option<Queue>,
}

/// What a look at a queue shows: jobs that a consumer holds are not in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Look {
    pub(super) ready: u32,
    pub(super) consumers: u32,
}

impl<'a> Talk<'a> {
    pub(super) async fn open(link: &'a Link) -> Result<Self> {
        Ok(Self { link, channel: link.channel().await?, queue: None })
    }

    /// A talk about what this queue needs, which refusals name.
    pub(super) async fn about(link: &'a Link, queue: &Queue) -> Result<Self> {
        Ok(Self { queue: Some(queue.clone()), ..Self::open(link).await? })
    }

    /// Looks for a queue; `None` where there is none.
    pub(super) async fn look(&mut self, name: &str) -> Result<Option<Look>> {
        match self.peek(name).await? {
            Ok(look) => Ok(Some(look)),
            Err(refused) if refused.code == 404 => Ok(None),
            Err(refused) => Err(refused.error()),
        }
    }

    /// Whether there is a queue, or may be one: servers of 4.2.6 and 4.3.0 let nobody look who may not declare.
    pub(super) async fn may_have(&mut self, name: &str) -> Result<bool> {
        match self.peek(name).await? {
            Ok(_) => Ok(true),
            Err(refused) => refused.may_be_there(),
        }
    }

    /// The same of an exchange.
    pub(super) async fn finds(&mut self, exchange: &Exchange) -> Result<bool> {
        let options = ExchangeDeclareOptions { passive: true, ..exchange.options };
        match self.declare(exchange, options).await? {
            Ok(()) => Ok(true),
            Err(refused) => refused.may_be_there(),
        }
    }

    async fn peek(&mut self, name: &str) -> Result<Result<Look, Refused>> {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let asked = self.channel.queue_declare(name.into(), options, FieldTable::default());
        let answer = self.link.answer(OP, asked).await?;
        let heard = self.hear(answer).await?;
        Ok(heard.map(|queue| Look { ready: queue.message_count(), consumers: queue.consumer_count() }))
    }

    /// Makes an exchange; nothing happens when there is one just like it.
    pub(super) async fn make_exchange(&mut self, exchange: &Exchange) -> Result<Result<(), Refused>> {
        self.declare(exchange, exchange.options).await
    }

    /// Makes a queue; nothing happens when there is one just like it.
    pub(super) async fn make_queue(&mut self, queue: &WantedQueue) -> Result<Result<(), Refused>> {
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let asked = self.channel.queue_declare(short(&queue.name), options, queue.arguments.clone());
        let answer = self.link.answer(OP, asked).await?;
        Ok(self.hear(answer).await?.map(drop))
    }

    /// Leads a binding's messages to the queue; nothing happens when it does so already.
    pub(super) async fn bind(&mut self, queue: &str, binding: &Binding) -> Result<Result<(), Refused>> {
        let Binding { exchange, key, arguments } = binding;
        let options = QueueBindOptions::default();
        let asked = self.channel.queue_bind(short(queue), short(exchange), short(key), options, arguments.clone());
        let answer = self.link.answer(OP, asked).await?;
        self.hear(answer).await
    }

    /// Ends a binding; nothing happens when there is none.
    pub(super) async fn unbind(&mut self, queue: &str, binding: &Binding) -> Result<Result<(), Refused>> {
        let Binding { exchange, key, arguments } = binding;
        let asked = self.channel.queue_unbind(short(queue), short(exchange), short(key), arguments.clone());
        let answer = self.link.answer(OP, asked).await?;
        self.hear(answer).await
    }

    /// Deletes a queue with everything in it.
    pub(super) async fn delete(&mut self, queue: &str) -> Result<Result<(), Refused>> {
        let asked = self.channel.queue_delete(short(queue), QueueDeleteOptions::default());
        let answer = self.link.answer(OP, asked).await?;
        Ok(self.hear(answer).await?.map(drop))
    }

    /// Deletes an exchange; nothing happens when there is none.
    pub(super) async fn delete_exchange(&mut self, exchange: &str) -> Result<Result<(), Refused>> {
        let asked = self.channel.exchange_delete(short(exchange), ExchangeDeleteOptions::default());
        let answer = self.link.answer(OP, asked).await?;
        self.hear(answer).await
    }

    async fn declare(&mut self, exchange: &Exchange, options: ExchangeDeclareOptions) -> Result<Result<(), Refused>> {
        let (name, kind) = (short(&exchange.name), exchange.kind.clone());
        let asked = self.channel.exchange_declare(name, kind, options, exchange.arguments.clone());
        let answer = self.link.answer(OP, asked).await?;
        self.hear(answer).await
    }

    /// Tells a refusal, after which the talk goes on over a new channel, from a failure, after which it does not.
    async fn hear<T>(&mut self, answer: lapin::Result<T>) -> Result<Result<T, Refused>> {
        let error = match answer {
            Ok(answer) => return Ok(Ok(answer)),
            Err(error) => error,
        };
        let Some(refused) = refusal(&error, self.queue.as_ref()) else { return Err(self.link.peer().lift(OP, &error)) };
        self.channel = self.link.channel().await?;
        Ok(Err(refused))
    }
}

impl Refused {
    /// What it says of something that was only looked for.
    fn may_be_there(&self) -> Result<bool> {
        match self.code {
            403 => Ok(true),
            404 => Ok(false),
            _ => Err(self.error()),
        }
    }

    /// The error it is to somebody who had no reason to expect it.
    pub(super) fn error(&self) -> Error {
        let command = self.queue.as_ref().map_or_else(String::new, |queue| format!(" {queue}"));
        let command = format!("`promptq queues declare{command}`");
        match self.code {
            403 => Error::new(
                Kind::Denied,
                OP,
                format!(
                    "this user may not ({}); run {command} as a user that may, or give this one the rights in \
                     deploy/rabbitmq/README.md",
                    self.said
                ),
            ),
            406 => Error::new(
                Kind::Config,
                OP,
                format!("it is there with other arguments ({}); {command} shows all that differ", self.said),
            ),
            // A queue whose node is down is also "not found", and cannot be made.
            _ => Error::new(Kind::Unavailable, OP, self.said.clone()),
        }
    }
}

/// What closed the channel alone.
fn refusal(error: &lapin::Error, queue: Option<&Queue>) -> Option<Refused> {
    let ErrorKind::ProtocolError(said) = error.kind() else { return None };
    error.is_amqp_soft_error().then(|| Refused {
        code: said.get_id(),
        said: said.get_message().as_str().chars().take(300).collect(),
        queue: queue.cloned(),
    })
}

/// Names of ours are far below the 255 bytes that fit.
fn short(name: &str) -> ShortString {
    name.into()
}
