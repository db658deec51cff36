//! Does what `publisher` takes in: owns the publishing channel, sends what has gathered as a window, waits until every
//! confirm of it is in, and tells each caller what became of its message. Nothing is sent twice by itself.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::pending;
use std::time::Duration;

use futures_util::future::{FusedFuture, FutureExt};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::address::Target;
use super::dial::{CLOSE, CONNECT, Line, News};
use super::fault::{self, Blame, Peer};
use super::link::gone;
use super::publisher::{OP, Sent};
use super::trouble::{GRACE, Trouble};
use super::window::{Fate, Request, Told, gather, judge, returned};
use crate::error::{Error, Kind, Result};

/// Confirms are waited for anew when an alarm is over; one that comes and goes has so many times the patience in all.
const ALARMS: u32 = 4;

/// The publishing side, on the link's thread.
pub(super) struct Outbox {
    inbox: mpsc::Receiver<Request>,
    /// What did not fit into the last window. Bounded as all that waits is: by its bytes, of which each takes some.
    held: VecDeque<Request>,
    /// The one in use; one that is dropped while its connection closes makes the driver break the connection off.
    channel: Option<Channel>,
    trouble: Trouble,
    peer: Peer,
    is_blocked: bool,
    /// How long a confirm may take.
    confirm: Duration,
    /// How many messages still go alone, to find the one that the server closes the channel for.
    careful: usize,
}

/// What a channel was left for.
enum After {
    /// It is gone, or of no use any more.
    Renew,
    Lost(Error),
}

impl Outbox {
    /// Waits for what comes into `inbox`; a confirm may take as long as `confirm`.
    pub(super) fn new(inbox: mpsc::Receiver<Request>, trouble: Trouble, peer: Peer, confirm: Duration) -> Self {
        Self { inbox, held: VecDeque::new(), channel: None, trouble, peer, is_blocked: false, confirm, careful: 0 }
    }

    /// Publishes on `first` and on what comes after it, until nobody wants it any more.
    pub(super) async fn serve(mut self, first: Line, role: &str, target: &Target, mut stopped: watch::Receiver<()>) {
        let mut line = first;
        loop {
            let lost = tokio::select! {
                biased;
                () = gone(&mut stopped) => None,
                error = self.on_line(&mut line, target) => Some(error),
            };
            let Some(error) = lost else { return line.close().await };
            tracing::warn!("{error}; connecting again");
            self.trouble.stuck(error);
            self.is_blocked = false;
            self.channel = None;
            drop(line);
            line = tokio::select! {
                biased;
                () = gone(&mut stopped) => return,
                line = Line::redial(target, role) => line,
                () = self.turn_away() => return,
            };
            self.trouble.free();
        }
    }

    /// Publishes on one connection until it is lost.
    async fn on_line(&mut self, line: &mut Line, target: &Target) -> Error {
        loop {
            let channel = match self.open(line).await {
                Ok(channel) => channel,
                Err(error) => return error,
            };
            if let After::Lost(error) = self.on_channel(line, target, &channel).await {
                return error;
            }
            if let Err(error) = self.sit_out(line, target).await {
                return error;
            }
            if channel.status().connected() && timeout(CLOSE, channel.close(200, "late".into())).await.is_err() {
                tracing::debug!("a channel at RabbitMQ did not close in order");
            }
        }
    }

    async fn open(&mut self, line: &Line) -> Result<Channel> {
        let opening = async {
            let channel = line.connection().create_channel().await?;
            self.channel = Some(channel.clone());
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            Ok(channel)
        };
        match timeout(CONNECT, opening).await {
            Ok(opened) => opened.map_err(|error| self.peer.lost(OP, &error)),
            Err(_) => Err(self.peer.error(
                Kind::Unavailable,
                OP,
                "the server opens no channel in time; rabbitmq-diagnostics status shows what it is at",
            )),
        }
    }

    async fn on_channel(&mut self, line: &mut Line, target: &Target, channel: &Channel) -> After {
        loop {
            let request = tokio::select! {
                biased;
                news = line.news(target) => match self.note(news) {
                    Err(error) => return After::Lost(error),
                    Ok(()) => None,
                },
                request = next(&mut self.held, &mut self.inbox) => Some(request),
            };
            if let Some(request) = request {
                let most = if self.careful > 0 { 1 } else { usize::MAX };
                self.careful = self.careful.saturating_sub(1);
                let window = gather(request, &mut self.held, &mut self.inbox, most);
                if let Some(after) = self.send(line, target, channel, window).await {
                    return after;
                }
            } else if let Err(error) = self.sit_out(line, target).await {
                return After::Lost(error);
            }
        }
    }

    /// Waits until the server takes something again, if it does not; answers those who wait for too long.
    async fn sit_out(&mut self, line: &mut Line, target: &Target) -> Result<()> {
        while self.is_blocked {
            let news = tokio::select! {
                biased;
                news = line.news(target) => news,
                () = self.turn_away() => continue,
            };
            self.note(news)?;
        }
        Ok(())
    }

    /// Takes note of what is new; `Err` when the connection is lost.
    fn note(&mut self, news: News) -> Result<()> {
        match news {
            News::Blocked(why) => {
                let why = format!(
                    "the server takes nothing for now ({why}); free its memory or disk (rabbitmq-diagnostics alarms)"
                );
                let error = self.peer.error(Kind::Unavailable, OP, &why);
                if !self.is_blocked {
                    tracing::warn!("{error}");
                }
                self.trouble.stuck(error);
                self.is_blocked = true;
            }
            News::Unblocked => {
                tracing::info!("{}: the server takes messages again", self.peer.shown);
                self.trouble.free();
                self.is_blocked = false;
            }
            News::Lost(error) => return Err(error),
        }
        Ok(())
    }

    /// Answers those who have waited for longer than a trouble is sat out, and those who come while it lasts. Never
    /// ends by itself. Cancel-safe.
    async fn turn_away(&mut self) {
        loop {
            let Some((_, left)) = self.trouble.stuck_for() else { return pending().await };
            sleep(left).await;
            let request = next(&mut self.held, &mut self.inbox).await;
            if let Some((error, _)) = self.trouble.stuck_for() {
                tell(request, Err(error));
            } else {
                self.held.push_front(request);
            }
        }
    }

    /// Sends one window and answers for it. `Some` when the channel is not to be used any more.
    async fn send(
        &mut self,
        line: &mut Line,
        target: &Target,
        channel: &Channel,
        mut window: Vec<Request>,
    ) -> Option<After> {
        let properties: Vec<_> = window.iter_mut().map(|request| std::mem::take(&mut request.properties)).collect();
        let fates: Vec<_> = window.iter().map(|_| RefCell::new(None)).collect();
        let (mut late, mut lost) = (false, None);
        {
            let each = window.iter().zip(properties).zip(&fates);
            let each = each.map(|((request, with), fate)| Box::pin(fly(channel, request, with, fate).fuse()));
            let mut each: Vec<_> = each.collect();
            // The first look at each is what sends it: one after the other, whatever order they end in.
            look(&mut each);
            let mut deadline = Instant::now() + self.confirm;
            let limit = Instant::now() + self.confirm * ALARMS;
            loop {
                let news = tokio::select! {
                    biased;
                    () = landed(&mut each) => break,
                    news = line.news(target) => news,
                    () = sleep_until(deadline) => { late = true; break },
                };
                if let Err(error) = self.note(news) {
                    lost = Some(error);
                    break;
                }
                let now = Instant::now();
                deadline = if self.is_blocked { deadline.min(now + GRACE) } else { limit.min(now + self.confirm) };
            }
            // What was confirmed by then is, whatever stands before it.
            look(&mut each);
        }
        let fates: Vec<Fate> = fates.into_iter().map(|fate| fate.into_inner().unwrap_or(Fate::Silent)).collect();
        self.answer(window, &fates, lost.as_ref());
        match lost {
            Some(error) => Some(After::Lost(error)),
            // A lost connection is told of by its news.
            None if late || !channel.status().connected() => Some(After::Renew),
            None => None,
        }
    }

    /// Tells everybody what became of its message.
    fn answer(&mut self, window: Vec<Request>, fates: &[Fate], lost: Option<&Error>) {
        let marks: Vec<_> = window.iter().map(|request| request.mark.clone()).collect();
        let told = judge(&marks, fates);
        if told.iter().any(|one| matches!(one, Told::Taken | Told::Returned)) {
            self.trouble.taken();
        } else if told.iter().any(|one| matches!(one, Told::Refused | Told::Silent)) {
            self.trouble.refused();
        }
        // Those that were sent after it know only that the channel is closed.
        let errors = || fates.iter().filter_map(|fate| if let Fate::Failed(error) = fate { Some(error) } else { None });
        let cause = errors().find(|error| fault::code(error).is_some()).or_else(|| errors().next());
        let blame = cause.map_or(Blame::Nobody, fault::blame);
        if window.len() > 1 && blame == Blame::Someone {
            self.careful = window.len();
        }
        let alone = window.len() == 1;
        for (request, told) in window.into_iter().zip(told) {
            let answer = match (told, lost) {
                (Told::Taken, _) => Ok(Sent::Taken),
                (Told::Returned, _) => Ok(Sent::Returned),
                (Told::Refused, _) => Err(self.full(&request)),
                (Told::Failed | Told::Silent, Some(lost)) => Err(lost.shared()),
                (Told::Silent, None) => Err(self.unconfirmed()),
                (Told::Failed, None) => Err(self.failed(&request, cause, &blame, alone)),
            };
            tell(request, answer);
        }
    }

    fn full(&self, request: &Request) -> Error {
        let why = format!(
            "the queue for {:?} is full or cannot take it; workers make room, or raise the limit that \
             a policy of the server sets (rabbitmqctl list_policies)",
            request.key.as_str()
        );
        self.peer.error(Kind::Unavailable, OP, &why)
    }

    fn unconfirmed(&self) -> Error {
        if self.is_blocked
            && let Some((error, _)) = self.trouble.stuck_for()
        {
            return error;
        }
        self.peer.error(Kind::TimedOut, OP, "not confirmed in time, as where a quorum queue lacks a majority; whether it was taken is unknown, and repeating is safe")
    }

    /// For one whose channel or connection ended with `cause`.
    fn failed(&self, request: &Request, cause: Option<&lapin::Error>, blame: &Blame, alone: bool) -> Error {
        let Some(cause) = cause else {
            return self.peer.error(Kind::Unavailable, OP, "whether it was taken is unknown; another failed with it");
        };
        match blame {
            Blame::Nobody => self.peer.lost(OP, cause),
            Blame::Exchange(named) if *named == request.exchange.as_str() => self.peer.lift(OP, cause),
            Blame::Someone if alone => self.peer.lift(OP, cause),
            Blame::Exchange(_) | Blame::Someone => {
                let why = "the server closed the channel because of another message on it";
                self.peer.error(Kind::Unavailable, OP, why)
            }
        }
    }
}

/// Looks once at each that has not landed.
fn look(each: &mut [impl FusedFuture<Output = ()> + Unpin]) {
    for one in each.iter_mut().filter(|one| !one.is_terminated()) {
        _ = one.now_or_never();
    }
}

/// Waits for one after the other: confirms come in order, and each that was waited for alone would be a wake-up.
/// Cancel-safe.
async fn landed(each: &mut [impl FusedFuture<Output = ()> + Unpin]) {
    for one in each.iter_mut().filter(|one| !one.is_terminated()) {
        one.await;
    }
}

/// Publishes a message, and waits until it is confirmed.
async fn fly(channel: &Channel, request: &Request, with: BasicProperties, fate: &RefCell<Option<Fate>>) {
    let options = BasicPublishOptions { mandatory: request.mark.is_some(), immediate: false };
    let (exchange, key) = (request.exchange.clone(), request.key.clone());
    let sending = async { channel.basic_publish(exchange, key, options, &request.body, with).await?.await };
    let came = match sending.await {
        Ok(Confirmation::Ack(message)) => Fate::Acked(returned(message)),
        Ok(Confirmation::Nack(message)) => Fate::Nacked(returned(message)),
        // Never on a channel that confirms.
        Ok(Confirmation::NotRequested) => Fate::Silent,
        Err(error) => Fate::Failed(error),
    };
    *fate.borrow_mut() = Some(came);
}

/// The next to be published. Cancel-safe.
async fn next(held: &mut VecDeque<Request>, inbox: &mut mpsc::Receiver<Request>) -> Request {
    match held.pop_front() {
        Some(request) => request,
        None => match inbox.recv().await {
            Some(request) => request,
            // The link is going; its thread hears of it by itself.
            None => pending().await,
        },
    }
}

fn tell(request: Request, answer: Result<Sent>) {
    if request.answer.send(answer).is_err() {
        tracing::trace!("nobody waits for a confirm any more");
    }
}
