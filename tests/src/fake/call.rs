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
use super::shape::{Api, Ask, Route, family};
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

/// Decides on a call that has just come.
pub(super) fn decide(shared: &Arc<Shared>, request: &Request, route: &Route) -> Decision {
    let api = route.endpoint.api();
    let asked = Ask::read(route, &request.body);
    let mut state = shared.lock();
    state.calls += 1;
    let nth = state.calls;
    let config = Arc::clone(&state.config);
    let account = account(&config, request);
    let call = blank(shared, route, request, account.as_deref(), asked.as_ref().ok());
    let ticket = Ticket::begin(shared, &mut state, call);
    let id = Dice::new(shared.seed, nth).bits(0);
    let request_id = format!("req_{id:016x}");
    let model = asked.as_ref().map_or("", |ask| &ask.model).to_owned();
    let about = About { model: &model, request_id: &request_id, unix_ms: shared.clock.unix() };
    let ask = match asked {
        _ if account.is_none() => Err((Kind::InvalidKey, None)),
        Err(why) => Err((Kind::InvalidRequest, Some(why))),
        Ok(_) if config.only_listed_models && config.model(&model).is_none() => Err((Kind::ModelNotFound, None)),
        Ok(ask) => Ok(ask),
    };
    let ask = match ask {
        Ok(ask) => ask,
        Err((kind, why)) => {
            let mut refusal = Refusal::of_kind(api, kind, why.as_deref(), None, about);
            refusal.headers.extend(id_header(api, &request_id));
            return Decision::Refuse(Box::new(refusal), Box::new(ticket));
        }
    };
    let now = shared.clock.now();
    match admit(&mut state, now, &ask, ticket, about) {
        Admission::Refused(mut refusal, ticket) => {
            refusal.headers.extend(id_header(api, &request_id));
            Decision::Refuse(refusal, Box::new(ticket))
        }
        Admission::In { fault, mut headers, mut ticket } => {
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
    In { fault: Option<Arc<FaultRule>>, headers: Vec<(String, String)>, ticket: Ticket },
}

/// Faults, money, limits, in this order.
fn admit(state: &mut State, now: u64, ask: &Ask, mut ticket: Ticket, about: About<'_>) -> Admission {
    let (api, account) = (ask.endpoint.api(), ticket.call.account.clone());
    let config = Arc::clone(&state.config);
    let applies = |rule: &&LimitRule| rule.account.fits(&account) && rule.model.fits(&ask.model);
    let unlimited = LimitRule::default();
    let rule = config.limits.iter().find(applies).unwrap_or(&unlimited);
    let group = state.limits.group(rule, &account, family(&ask.model));
    let counts_failed = rule.count_failed.unwrap_or(api == Api::OpenAi);
    let fault = state.faults.strike(now, &account, ask);
    ticket.call.fault = fault.as_ref().map(|fault| fault.called());
    let refused = match &fault {
        Some(fault) if fault.kind.stage() == Stage::Refused => {
            let in_time = if counts_failed { state.limits.requests(now, &group, rule) } else { Ok(()) };
            Some(in_time.map_or_else(
                |denied| deny(&mut ticket, api, rule, denied, about),
                |()| Refusal::of_fault(api, fault, about),
            ))
        }
        _ if rule.usd.is_some_and(|cap| state.book.spent(&account) >= cap) => {
            let kind = if api == Api::OpenAi { Kind::InsufficientQuota } else { Kind::SpendLimit };
            Some(Refusal::of_kind(api, kind, None, None, about))
        }
        _ => {
            let input = ask.input_tokens(config.bytes_per_token);
            let cached = times(input, config.answer(&ask.model).cached).min(input);
            let charge = Charge::of(api, input, cached, ask.most.unwrap_or(ASSUMED));
            let admitted = state.limits.admit(now, &group, rule, charge);
            admitted.err().map(|denied| deny(&mut ticket, api, rule, denied, about))
        }
    };
    if refused.is_some() && counts_failed {
        state.limits.failed(now, &group);
    }
    let standings = state.limits.standings(now, &group, rule);
    let told = headers::of(api, rule.headers, &standings, about.unix_ms);
    if let Some(mut refusal) = refused {
        refusal.headers.extend(told);
        return Admission::Refused(Box::new(refusal), ticket);
    }
    ticket.let_in(group);
    Admission::In { fault, headers: told, ticket }
}

fn deny(ticket: &mut Ticket, api: Api, rule: &LimitRule, denied: Denied, about: About<'_>) -> Refusal {
    ticket.call.limit = Some((denied.dimension, denied.per));
    ticket.call.fault = None;
    Refusal::denied(api, &denied, rule.retry_after, about)
}

fn blank(shared: &Shared, route: &Route, request: &Request, account: Option<&str>, ask: Option<&Ask>) -> Call {
    let caller = route.caller.as_deref().or_else(|| request.header("x-client-request-id"));
    let caller = caller.or_else(|| request.header("idempotency-key"));
    let now = shared.clock.unix();
    Call {
        n: 0,
        started_ms: now,
        ended_ms: now,
        account: account.unwrap_or("(unknown)").to_owned(),
        api: route.endpoint.api(),
        endpoint: route.endpoint.path().to_owned(),
        model: ask.map_or_else(String::new, |ask| ask.model.clone()),
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
