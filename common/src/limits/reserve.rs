//! A call's reservation under all of its rules, in one step: it stands in the line of each, and takes from all of them at
//! once when each has enough, or from none. The narrowest comes first: in a wider line it stands aside, and in nobody's
//! way, for as long as the narrower one has nothing for it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::amount::Measure;
use super::need::Need;
use super::part::Part;
use super::purse::{Came, Reservation};
use super::quota::{Book, Denied, PATIENCE, Quotas};
use super::rules::Rules;
use crate::job::Lane;

/// Where nothing is known of a key any more it is known anew after this.
const SECOND: Duration = Duration::from_secs(1);

/// What a call has reserved of its rules, the narrowest first.
#[derive(Debug, Default)]
pub(super) struct Reservations {
    held: [Option<(Arc<str>, Reservation)>; 2],
    /// Which of them hears of refusals and headers: the narrowest that caps what providers tell of.
    hears: Option<usize>,
}

impl Reservations {
    /// The key of the rule that headers and refusals speak of, if one does.
    pub(super) fn hears(&self) -> Option<&Arc<str>> {
        self.held.get(self.hears?)?.as_ref().map(|(key, _)| key)
    }
}

/// A place in line.
pub(super) struct InLine<'a> {
    pub(super) quotas: &'a Quotas,
    pub(super) key: &'a Arc<str>,
    pub(super) ticket: u64,
    /// What is reserved when its turn comes.
    pub(super) need: Need,
    /// It has kept its distance to the call before.
    paced: bool,
}

impl<'a> InLine<'a> {
    pub(super) fn new(quotas: &'a Quotas, key: &'a Arc<str>, (ticket, need): (u64, Need)) -> Self {
        Self { quotas, key, ticket, need, paced: false }
    }
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        if let Some(part) = self.quotas.book().parts.get_mut(self.key) {
            part.purse.leave(self.ticket);
            // Whoever is first now may look.
            part.turned.notify_waiters();
        }
    }
}

type Lines<'a> = [Option<InLine<'a>>; 2];

/// Why a call may not be made, and the key of the rule that says so.
type Because = (Denied, Arc<str>);

impl Quotas {
    /// Waits until a call's needs are reserved under each of its rules, of which there is one at least. Dropping it leaves
    /// the lines.
    pub(super) async fn reserve(&self, rules: &Rules, lane: &Lane, need: &Need) -> Result<Reservations, Because> {
        let deadline = Instant::now() + PATIENCE;
        let Some(first) = rules.iter().next() else { return Ok(Reservations::default()) };
        let (mut lines, turned) = self.line_up(rules, lane, need)?;
        loop {
            let mut turn = std::pin::pin!(turned.notified());
            turn.as_mut().enable();
            let now = self.now();
            let pause = {
                let mut book = self.book();
                let binds = book.sort_out(now, need, &lines)?;
                if binds.is_none() && book.pass(now, &mut lines) {
                    return Ok(book.take(now, &lines));
                }
                if Instant::now() >= deadline {
                    return Err(book.turn_away(binds.unwrap_or(first)));
                }
                let pauses = lines.iter().flatten().filter_map(|line| Some(book.parts.get(line.key)?.purse.pause(now)));
                pauses.max().unwrap_or_default()
            };
            self.asking.notify_one();
            let pause = u64::try_from(pause).unwrap_or_default();
            let until = if pause > 0 { deadline.min(Instant::now() + Duration::from_millis(pause)) } else { deadline };
            tokio::select! {
                () = turn => {}
                () = sleep_until(until) => {}
            }
        }
    }

    /// A place in the line of each rule, and what wakes those who wait there.
    fn line_up<'a>(&'a self, rules: &'a Rules, lane: &Lane, need: &Need) -> Result<(Lines<'a>, Arc<Notify>), Because> {
        let (now, mut book) = (self.now(), self.book());
        let mut turned = None;
        for key in rules.iter() {
            // All keys of an account share it.
            turned = Some(Arc::clone(&book.is_possible(now, key, need)?.turned));
        }
        let mut lines = Lines::default();
        for (place, (key, inside)) in lines.iter_mut().zip(rules.nested()) {
            let Some(part) = book.parts.get_mut(key) else { continue };
            let within = part.purse.within(need);
            part.opened(lane, &within);
            let ticket = if inside.is_some() { part.purse.enter_aside(&within) } else { part.purse.enter(&within) };
            *place = Some(InLine::new(self, key, (ticket, within)));
        }
        Ok((lines, turned.unwrap_or_default()))
    }

    /// Books what a call has come to under each of its rules. A refusal is the affair of one of them.
    pub(super) fn settle_all(&self, reserved: Reservations, usd: Option<i64>, came: Came) {
        for (place, held) in reserved.held.into_iter().enumerate() {
            let Some((key, reservation)) = held else { continue };
            let came = match came {
                Came::Refused(_) | Came::TooFast(_) if reserved.hears != Some(place) => Came::Refused(None),
                Came::Used { .. } | Came::Refused(_) | Came::TooFast(_) | Came::Unknown | Came::Unsent => came,
            };
            let reservation = if let Some(usd) = usd { reservation.costs(usd) } else { reservation };
            self.settle(&key, reservation, came);
        }
    }
}

impl Book {
    /// Whether a job of that size may ever run under a rule.
    fn is_possible(&self, now: i64, key: &Arc<str>, need: &Need) -> Result<&Part, Because> {
        let Some(part) = self.parts.get(key) else { return Err((Denied::Later(SECOND), Arc::clone(key))) };
        match part.purse.above(need).filter(|_| part.purse.is_told(now)) {
            Some(cap) => Err((Denied::Never(cap), Arc::clone(key))),
            None => Ok(part),
        }
    }

    /// Has a call stand aside where it waits for a narrower key first. The key it waits for, if not for its distance alone;
    /// or why it is not to wait.
    fn sort_out<'a>(&mut self, now: i64, need: &Need, lines: &Lines<'a>) -> Result<Option<&'a Arc<str>>, Because> {
        let (mut reaches, mut binds) = (true, None);
        for InLine { key, ticket, need: within, .. } in lines.iter().flatten() {
            self.is_possible(now, key, need)?;
            let Some(part) = self.parts.get_mut(*key) else { continue };
            let is_news = part.purse.set_aside(*ticket, !reaches);
            let may = part.purse.may_take(now, *ticket, within);
            if is_news && !reaches {
                part.turned.notify_waiters();
            } else if is_news && !may {
                part.ask_now(now);
            }
            if !may {
                binds = binds.or(Some(*key));
                let usd = within.amounts.usd;
                if usd > 0 && part.till.is_broke(usd) {
                    // All that wait in vain go back at once, not one after the other as they come to be first.
                    return Err((Denied::Later(part.turn_away(usd)), Arc::clone(key)));
                }
                if let Some(wait) = part.too_long(now, *ticket) {
                    return Err((Denied::Later(wait), Arc::clone(key)));
                }
            }
            reaches = reaches && part.purse.reaches(now, *ticket);
        }
        Ok(binds)
    }

    /// Whether each rule lets the call go by its distance to the one before.
    fn pass(&mut self, now: i64, lines: &mut Lines<'_>) -> bool {
        lines.iter_mut().flatten().all(|line| {
            line.paced = line.paced || self.parts.get_mut(line.key).is_some_and(|part| part.purse.passes(now));
            line.paced
        })
    }

    fn take(&mut self, now: i64, lines: &Lines<'_>) -> Reservations {
        let mut reserved = Reservations::default();
        for (place, line) in lines.iter().enumerate() {
            let Some(InLine { key, ticket, need, .. }) = line else { continue };
            let Some(part) = self.parts.get_mut(*key) else { continue };
            if reserved.hears.is_none() && part.purse.counts(Measure::is_rate) {
                reserved.hears = Some(place);
            }
            let reservation = part.purse.reserve(now, *ticket, need);
            if let Some(held) = reserved.held.get_mut(place) {
                *held = Some((Arc::clone(key), reservation));
            }
        }
        reserved
    }

    /// A job has waited long enough.
    fn turn_away(&mut self, key: &Arc<str>) -> Because {
        let wait = self.parts.get_mut(key).map_or(SECOND, |part| {
            part.given_back = true;
            part.wait()
        });
        (Denied::Later(wait), Arc::clone(key))
    }
}
