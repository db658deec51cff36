//! What becomes of a call: whose it is, what it asks for, whether a fault strikes, whether it is let in. Sending what was
//! decided is `deliver.rs`'s.

use std::sync::Arc;

use promptq_common::outcome::Usd;
use sha2::{Digest, Sha256};

use super::allowance::LimitRule;
use super::answer::{ASSUMED, Answer, Finish};
use super::config::Config;
use super::fault::FaultRule;
use super::headers;
use super::kind::{Kind, Stage};
use super::ledger::{Call, End};
use super::limits::{Charge, Denied};
use super::random::{Dice, times};
use super::refusal::{About, Refusal};
use super::shape::{Api, Ask, Route, Unread, family};
use super::state::{Shared, State, Ticket};
use super::wire::Request;

/// What was decided.
#[derive(Debug)]
pub(super) enum Decision {
    /// No work is done.
    Refuse(Box<Refusal>, Box<Ticket>),
    /// An answer, or what a fault leaves of it.
    Work(Box<Work>),
}

/// Work that was let in.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) ask: Ask,
    pub(super) answer: Answer,
    pub(super) fault: Option<Arc<FaultRule>>,
    pub(super) headers: Vec<(String, String)>,
    pub(super) request_id: String,
    pub(super) config: Arc<Config>,
    pub(super) seed: u64,
    pub(super) ticket: Ticket,
}

/// Why a call is turned away whatever the limits are.
#[derive(Debug)]
struct Turned {
    kind: Kind,
    /// For people, in place of what the kind says.
    why: Option<String>,
    /// The model asked for; empty where none can be found.
    model: String,
}

/// Decides on a call that has just come.
pub(super) fn decide(shared: &Arc<Shared>, request: &Request, route: &Route) -> Decision {
    let turned = |unread: Unread| Turned { kind: Kind::InvalidRequest, why: Some(unread.why), model: unread.model };
    judge(shared, request, route, Ask::read(route, &request.body).map_err(turned))
}

/// The same for a call whose body is too large to be read.
pub(super) fn too_large(shared: &Arc<Shared>, request: &Request, route: &Route) -> Decision {
    let model = route.model.clone().unwrap_or_default();
    judge(shared, request, route, Err(Turned { kind: Kind::BodyTooLarge, why: None, model }))
}

fn judge(shared: &Arc<Shared>, request: &Request, route: &Route, asked: Result<Ask, Turned>) -> Decision {
    let api = route.endpoint.api();
    let mut state = shared.lock();
    state.calls += 1;
    let nth = state.calls;
    let config = Arc::clone(&state.config);
    let account = account(&config, request);
    let call = blank(shared, route, request, account.as_deref(), &asked);
    let ticket = Ticket::begin(shared, &mut state, call);
    let id = Dice::new(shared.seed, nth).bits(0);
    let request_id = format!("req_{id:016x}");
    let model = ticket.call.model.clone();
    let about = About { model: &model, request_id: &request_id, unix_ms: ticket.call.started_ms };
    let turned = |kind| Turned { kind, why: None, model: model.clone() };
    let asked = match asked {
        _ if account.is_none() => Err(turned(Kind::InvalidKey)),
        Ok(_) if config.only_listed_models && config.model(&model).is_none() => Err(turned(Kind::ModelNotFound)),
        asked => asked,
    };
    let now = shared.clock.now();
    let admission = match asked {
        Ok(ask) => admit(&mut state, now, ask, ticket, about),
        Err(turned) => turn_away(&mut state, now, &turned, ticket, about),
    };
    match admission {
        Admission::Refused(mut refusal, ticket) => {
            refusal.headers.extend(id_header(api, &request_id));
            Decision::Refuse(refusal, Box::new(ticket))
        }
        Admission::In { ask, fault, mut headers, mut ticket } => {
            drop(state);
            headers.extend(id_header(api, &request_id));
            let created = ticket.call.started_ms.div_euclid(1_000);
            let mut answer = Answer::draw(&config, shared.seed, &ask, nth, created);
            if fault.as_ref().is_some_and(|fault| fault.kind == Kind::RefusedAnswer) {
                answer.finish = Finish::Refused;
            }
            let usage = (answer.input, answer.cached, answer.reasoning);
            (ticket.call.input_tokens, ticket.call.cached_tokens, ticket.call.reasoning_tokens) = usage;
            let seed = shared.seed;
            Decision::Work(Box::new(Work { ask, answer, fault, headers, request_id, config, seed, ticket }))
        }
    }
}

enum Admission {
    Refused(Box<Refusal>, Ticket),
    In { ask: Ask, fault: Option<Arc<FaultRule>>, headers: Vec<(String, String)>, ticket: Ticket },
}

/// Faults, money, limits, in this order.
fn admit(state: &mut State, now: u64, ask: Ask, mut ticket: Ticket, about: About<'_>) -> Admission {
    let terms = Terms::of(state, now, &ticket.call, about);
    let (api, rule, config) = (terms.api, &terms.rule, Arc::clone(&state.config));
    let fault = state.faults.strike(now, &ticket.call.account, &ask);
    ticket.call.fault = fault.as_ref().map(|fault| fault.called());
    let refused = match &fault {
        Some(fault) if fault.kind.stage() == Stage::Refused => Some(match terms.over(state) {
            Some(denied) => terms.deny(&mut ticket, denied),
            None => Refusal::of_fault(api, fault, about),
        }),
        _ if rule.usd.is_some_and(|cap| state.book.spent(&ticket.call.account) >= cap) => {
            let kind = if api == Api::OpenAi { Kind::InsufficientQuota } else { Kind::SpendLimit };
            Some(Refusal::of_kind(api, kind, None, None, about))
        }
        _ => {
            let input = ask.input_tokens(config.bytes_per_token);
            let cached = times(input, config.answer(&ask.model).cached).min(input);
            let charge = Charge::of(api, input, cached, ask.most.unwrap_or(ASSUMED));
            let admitted = state.limits.admit(now, &terms.group, rule, charge);
            admitted.err().map(|denied| terms.deny(&mut ticket, denied))
        }
    };
    if let Some(refusal) = refused {
        return terms.refuse(state, refusal, ticket);
    }
    let headers = terms.told(state);
    ticket.let_in(terms.group);
    Admission::In { ask, fault, headers, ticket }
}

/// Refuses a call for what it is. It may count as a request all the same, where its account and model are known.
fn turn_away(state: &mut State, now: u64, turned: &Turned, mut ticket: Ticket, about: About<'_>) -> Admission {
    let refusal = Refusal::of_kind(ticket.call.api, turned.kind, turned.why.as_deref(), None, about);
    if turned.kind == Kind::InvalidKey || turned.model.is_empty() {
        return Admission::Refused(Box::new(refusal), ticket);
    }
    let terms = Terms::of(state, now, &ticket.call, about);
    let denied = terms.over(state);
    let refusal = denied.map_or(refusal, |denied| terms.deny(&mut ticket, denied));
    terms.refuse(state, refusal, ticket)
}

/// What a call is measured by, now.
struct Terms<'a> {
    now: u64,
    api: Api,
    about: About<'a>,
    rule: LimitRule,
    group: String,
    counts_failed: bool,
}

impl<'a> Terms<'a> {
    fn of(state: &State, now: u64, call: &Call, about: About<'a>) -> Self {
        let applies = |rule: &&LimitRule| rule.account.fits(&call.account) && rule.model.fits(&call.model);
        let rule = state.config.limits.iter().find(applies).cloned().unwrap_or_default();
        let group = state.limits.group(&rule, &call.account, family(&call.model));
        let counts_failed = rule.count_failed.unwrap_or(call.api == Api::OpenAi);
        Self { now, api: call.api, about, rule, group, counts_failed }
    }

    /// What is in the way of a call that fails, where such calls count.
    fn over(&self, state: &mut State) -> Option<Denied> {
        let counted = self.counts_failed.then(|| state.limits.requests(self.now, &self.group, &self.rule));
        counted.and_then(Result::err)
    }

    fn deny(&self, ticket: &mut Ticket, denied: Denied) -> Refusal {
        ticket.call.limit = Some((denied.dimension, denied.per));
        ticket.call.fault = None;
        Refusal::denied(self.api, &denied, self.rule.retry_after, self.about)
    }

    fn refuse(&self, state: &mut State, mut refusal: Refusal, ticket: Ticket) -> Admission {
        if self.counts_failed {
            state.limits.failed(self.now, &self.group);
        }
        refusal.headers.extend(self.told(state));
        Admission::Refused(Box::new(refusal), ticket)
    }

    /// The headers that tell how limits stand.
    fn told(&self, state: &mut State) -> Vec<(String, String)> {
        let standings = state.limits.standings(self.now, &self.group, &self.rule);
        headers::of(self.api, self.rule.headers, &standings, self.about.unix_ms)
    }
}

fn blank(
    shared: &Shared,
    route: &Route,
    request: &Request,
    account: Option<&str>,
    asked: &Result<Ask, Turned>,
) -> Call {
    let caller = route.caller.as_deref().or_else(|| request.header("x-client-request-id"));
    let caller = caller.or_else(|| request.header("idempotency-key"));
    let now = shared.clock.unix();
    let ask = asked.as_ref().ok();
    Call {
        n: 0,
        started_ms: now,
        ended_ms: now,
        account: account.unwrap_or("(unknown)").to_owned(),
        api: route.endpoint.api(),
        endpoint: route.endpoint.path().to_owned(),
        model: asked.as_ref().map_or_else(|turned| turned.model.clone(), |ask| ask.model.clone()),
        caller: caller.map(|caller| caller.chars().take(64).collect()),
        prompt: ask.map_or_else(String::new, |ask| ask.hash.clone()),
        stream: ask.is_some_and(|ask| ask.stream),
        status: 0,
        end: End::Gone,
        fault: None,
        limit: None,
        input_tokens: 0,
        cached_tokens: 0,
        output_tokens: 0,
        reasoning_tokens: 0,
        max_tokens: ask.and_then(|ask| ask.most),
        usd: Some(Usd::default()),
        trace: request.header("traceparent").map(|said| said.chars().take(64).collect()),
    }
}

/// The account's name, by its key; `None` for a key that is none of those there are. Where none are, `any` for calls
/// without a key and `key-` with the beginning of the key's SHA-256 otherwise.
fn account(config: &Config, request: &Request) -> Option<String> {
    let bearer = request.header("authorization").and_then(|value| value.split_once(' ')).map(|(_, key)| key.trim());
    let named = ["x-api-key", "api-key", "x-goog-api-key"].iter().find_map(|name| request.header(name));
    let key = named.or(bearer).or_else(|| request.parameter("key")).filter(|key| !key.is_empty());
    if !config.accounts.is_empty() {
        let known = config.accounts.iter().find(|(_, known)| Some(known.as_str()) == key);
        return known.map(|(name, _)| name.clone());
    }
    Some(key.map_or_else(|| "any".to_owned(), unnamed))
}

fn unnamed(key: &str) -> String {
    let digest = Sha256::digest(key.as_bytes());
    digest.iter().take(4).fold("key-".to_owned(), |name, byte| format!("{name}{byte:02x}"))
}

fn id_header(api: Api, request_id: &str) -> Option<(String, String)> {
    let name = match api {
        Api::OpenAi => "x-request-id",
        Api::Anthropic => "request-id",
        Api::Gemini => return None,
    };
    Some((name.to_owned(), request_id.to_owned()))
}
