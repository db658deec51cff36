//! Sends what was decided, at the pace that was drawn, whole or piece by piece, and broken where a fault says so.

use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::call::{Decision, Work};
use super::config::Latency;
use super::kind::Kind;
use super::ledger::End;
use super::random::Dice;
use super::refusal::{About, Refusal, said};
use super::shape::{Api, data, event};
use super::wire::{Gone, Wire, head};

/// What pauses are drawn for.
const PAUSES: u64 = 1 << 40;

/// Sends it; whether the connection can take another call.
pub(super) async fn deliver(decision: Decision, in_array: bool, wire: &mut Wire) -> bool {
    match decision {
        Decision::Refuse(refusal, ticket) => {
            let sent = refuse(&refusal, wire).await;
            ticket.end(refusal.status, if sent { End::Refused } else { End::Gone }, false);
            sent
        }
        Decision::Work(work) => work.deliver(in_array, wire).await,
    }
}

/// Sends a refusal; whether it could be.
pub(super) async fn refuse(refusal: &Refusal, wire: &mut Wire) -> bool {
    let mut bytes = head(refusal.status, refusal.content_type, Some(refusal.body.len()), &refusal.headers);
    bytes.push_str(&refusal.body);
    wire.write(bytes.as_bytes()).await.is_ok()
}

/// How a delivery went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Went {
    /// To its end, and the connection stands.
    Through,
    /// As the fault wanted it, and the connection stands.
    Bent,
    /// The fault ended the connection, after the head or before.
    Cut { status: u16 },
}

/// When pieces are due.
struct Pace<'a> {
    dice: Dice,
    latency: &'a Latency,
    delay: Duration,
    at: Instant,
}

impl Pace<'_> {
    /// When the piece of this number is due; asked in order.
    fn due(&mut self, piece: usize) -> Instant {
        let spread = if piece == 0 { &self.latency.first } else { &self.latency.between };
        self.at += Duration::from_micros(spread.draw(self.dice, PAUSES + piece as u64));
        if piece == 0 {
            self.at += self.delay;
        }
        self.at
    }
}

impl Work {
    async fn deliver(mut self, in_array: bool, wire: &mut Wire) -> bool {
        let config = std::sync::Arc::clone(&self.config);
        let mut pace = Pace {
            dice: Dice::new(self.seed, self.ask.about),
            latency: config.latency(&self.ask.model),
            delay: self.fault.as_ref().and_then(|fault| fault.delay).map_or(Duration::ZERO, |delay| delay.0),
            at: Instant::now(),
        };
        let is_billed = self.fault.as_ref().is_none_or(|fault| fault.is_billed());
        let by_pieces = self.ask.stream && !in_array;
        let went = if self.is(Kind::Silent) {
            let Gone = wire.rest().await;
            Ok(Went::Cut { status: 0 })
        } else if by_pieces {
            self.stream(&mut pace, wire).await
        } else {
            self.whole(&mut pace, in_array, wire).await
        };
        // What is answered in one piece is made to its end, whoever still listens.
        let is_silent = self.is(Kind::Silent);
        if if is_silent { is_billed } else { !by_pieces } {
            let rest = self.answer.output.saturating_sub(self.ticket.call.output_tokens);
            self.ticket.appeared(rest);
        }
        if is_silent && !is_billed {
            (self.ticket.call.input_tokens, self.ticket.call.cached_tokens, self.ticket.call.reasoning_tokens) =
                (0, 0, 0);
        }
        match went {
            Ok(Went::Through) => self.ticket.end(200, End::Answered, is_billed),
            Ok(Went::Bent) => self.ticket.end(200, End::Broken, is_billed),
            Ok(Went::Cut { status }) => self.ticket.end(status, End::Broken, is_billed),
            Err(Gone) => self.ticket.end(0, End::Gone, is_billed),
        }
        matches!(went, Ok(Went::Through | Went::Bent))
    }

    fn is(&self, kind: Kind) -> bool {
        self.fault.as_ref().is_some_and(|fault| fault.kind == kind)
    }

    async fn whole(&mut self, pace: &mut Pace<'_>, in_array: bool, wire: &mut Wire) -> Result<Went, Gone> {
        for at in 0..self.answer.pieces.len().max(1) {
            wire.rest_until(pace.due(at)).await?;
            let tokens = self.answer.pieces.get(at).map_or(0, |piece| piece.tokens);
            self.ticket.appeared(tokens);
        }
        let body = if self.is(Kind::ErrorInside) {
            self.error().to_string()
        } else if self.is(Kind::EmptyBody) {
            String::new()
        } else {
            let whole = self.ask.endpoint.whole(&self.answer);
            if in_array { format!("[{whole}]") } else { whole.to_string() }
        };
        let half = body.as_bytes().get(..body.len() / 2).unwrap_or_default();
        let sent = if self.is(Kind::MalformedJson) { half } else { body.as_bytes() };
        let head = head(200, "application/json", Some(sent.len()), &self.headers);
        let cut = |status| Ok(Went::Cut { status });
        match self.fault.as_ref().map(|fault| fault.kind) {
            Some(Kind::CutBeforeHeaders) => cut(0),
            Some(Kind::CutInHeaders) => {
                wire.write(head.as_bytes().get(..head.len() / 2).unwrap_or_default()).await?;
                cut(0)
            }
            Some(kind @ (Kind::CutInBody | Kind::Stalled)) => {
                wire.write(&[head.as_bytes(), half].concat()).await?;
                if kind == Kind::Stalled {
                    let Gone = wire.rest().await;
                }
                cut(200)
            }
            bent => {
                wire.write(&[head.as_bytes(), sent].concat()).await?;
                let is_bent = matches!(bent, Some(Kind::MalformedJson | Kind::EmptyBody | Kind::ErrorInside));
                Ok(if is_bent { Went::Bent } else { Went::Through })
            }
        }
    }

    async fn stream(&mut self, pace: &mut Pace<'_>, wire: &mut Wire) -> Result<Went, Gone> {
        let (endpoint, half) = (self.ask.endpoint, self.answer.pieces.len() / 2);
        let head = head(200, "text/event-stream; charset=utf-8", None, &self.headers);
        for at in 0..self.answer.pieces.len() {
            wire.rest_until(pace.due(at)).await?;
            if at == 0 {
                if let Some(went) = self.cut_early(&head, wire).await? {
                    return Ok(went);
                }
                wire.write(head.as_bytes()).await?;
                wire.chunk(&endpoint.opening(&self.answer)).await?;
            }
            if at == half
                && let Some(went) = self.break_off(wire).await?
            {
                return Ok(went);
            }
            let tokens = self.answer.pieces.get(at).map_or(0, |piece| piece.tokens);
            self.ticket.appeared(tokens);
            wire.chunk(&endpoint.piece(&self.answer, at)).await?;
        }
        wire.chunk(&endpoint.closing(&self.answer)).await?;
        wire.last_chunk().await?;
        Ok(Went::Through)
    }

    /// Faults before the first event.
    async fn cut_early(&self, head: &str, wire: &mut Wire) -> Result<Option<Went>, Gone> {
        if self.is(Kind::CutBeforeHeaders) {
            return Ok(Some(Went::Cut { status: 0 }));
        }
        if self.is(Kind::CutInHeaders) {
            wire.write(head.as_bytes().get(..head.len() / 2).unwrap_or_default()).await?;
            return Ok(Some(Went::Cut { status: 0 }));
        }
        if self.is(Kind::EmptyBody) {
            wire.write(head.as_bytes()).await?;
            wire.last_chunk().await?;
            return Ok(Some(Went::Bent));
        }
        Ok(None)
    }

    /// Faults in the middle of a stream.
    async fn break_off(&self, wire: &mut Wire) -> Result<Option<Went>, Gone> {
        if self.is(Kind::CutInBody) {
            return Ok(Some(Went::Cut { status: 200 }));
        }
        if self.is(Kind::Stalled) {
            let Gone = wire.rest().await;
            return Ok(Some(Went::Cut { status: 200 }));
        }
        if self.is(Kind::MalformedJson) {
            wire.chunk("data: {\"id\":\"cut, \n\n").await?;
        } else if self.is(Kind::ErrorInside) {
            let error = self.error();
            let told = if self.ask.endpoint.api() == Api::Anthropic { event("error", &error) } else { data(&error) };
            wire.chunk(&told).await?;
        } else {
            return Ok(None);
        }
        wire.last_chunk().await?;
        Ok(Some(Went::Bent))
    }

    /// The error in an answer of status 200.
    fn error(&self) -> Value {
        let fault = self.fault.as_ref();
        let inner = fault.and_then(|fault| fault.inner).unwrap_or(Kind::Overloaded);
        let about =
            About { model: &self.ask.model, request_id: &self.request_id, unix_ms: self.ticket.call.started_ms };
        said(self.ask.endpoint.api(), inner, fault.and_then(|fault| fault.message.as_deref()), None, about).1
    }
}
