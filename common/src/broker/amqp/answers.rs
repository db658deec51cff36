//! What is answered for on one channel: gathered while the last answers were on their way, and sent by one writer, as few
//! as say it all. What an answer is for is the receipt's affair.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicNackOptions};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// Fewer acknowledgements than this are sent one by one.
const TOGETHER: usize = 4;
/// An acknowledgement waits at most so long for those before it, to be sent with them: a moment beside the two seconds
/// after which a lane's prefetch is set anew.
const WAIT: Duration = Duration::from_millis(10);
/// Of what the server has delivered and holds no answer for, at most this part waits so: the rest of the prefetch brings
/// jobs meanwhile.
const PART: u64 = 4;

/// The answers to one channel's deliveries.
#[derive(Debug, Default)]
pub(super) struct Answers {
    book: Mutex<Book>,
    news: Notify,
}

/// Deliveries are numbered from 1 on by the server.
#[derive(Debug, Default)]
struct Book {
    /// The highest number seen.
    seen: u64,
    /// Every delivery up to this one is answered for.
    upto: u64,
    /// Those beyond it that are.
    beyond: BTreeSet<u64>,
    /// To be acknowledged.
    done: BTreeSet<u64>,
    /// To be given back.
    back: Vec<u64>,
    /// Since when an acknowledgement waits for those before it.
    waits: Option<Instant>,
    /// Whether no more answers come.
    ended: bool,
}

/// One thing to be said to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Back(u64),
    Done(u64),
    /// That delivery, and all before it that the server still waits for.
    DoneUpTo(u64),
}

impl Answers {
    /// Takes note of a delivery.
    pub(super) fn saw(&self, number: u64) {
        let mut book = self.book();
        book.seen = book.seen.max(number);
    }

    /// Acknowledges a delivery, soon.
    pub(super) fn done(&self, number: u64) {
        if self.book().done.insert(number) {
            self.news.notify_one();
        }
    }

    /// Puts a message back in its queue, soon.
    pub(super) fn back(&self, number: u64) {
        self.book().back.push(number);
        self.news.notify_one();
    }

    /// Takes note of a delivery that the server waits for no more.
    pub(super) fn forget(&self, number: u64) {
        self.book().answered(number);
    }

    /// No more answers come: the writer ends once all are sent.
    pub(super) fn end(&self) {
        self.book().ended = true;
        self.news.notify_one();
    }

    /// Sends answers over their channel until it is lost or no more come.
    pub(super) async fn write(self: Arc<Self>, channel: Channel) {
        while let Some(words) = self.next().await {
            let mut last = None;
            for word in words {
                let mut sending = Box::pin(say(&channel, word));
                // The first look at it is what sends it; they go in order, and behind the last one all are gone.
                match (&mut sending).now_or_never() {
                    None => last = Some(sending),
                    Some(Ok(())) => {}
                    Some(Err(error)) => return tracing::debug!(%error, "answers were not sent"),
                }
            }
            if let Some(last) = last
                && let Err(error) = last.await
            {
                return tracing::debug!(%error, "answers were not sent");
            }
        }
    }

    /// What is to be said now, once there is anything.
    async fn next(&self) -> Option<Vec<Word>> {
        loop {
            let until = {
                let mut book = self.book();
                let words = book.take(Instant::now());
                if !words.is_empty() {
                    return Some(words);
                }
                if book.ended {
                    return None;
                }
                book.waits.map(|since| since + WAIT)
            };
            match until {
                None => self.news.notified().await,
                Some(until) => tokio::select! {
                    () = self.news.notified() => {}
                    () = sleep_until(until) => {}
                },
            }
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    fn answered(&mut self, number: u64) {
        if number > self.upto {
            self.beyond.insert(number);
        }
        while self.beyond.remove(&(self.upto + 1)) {
            self.upto += 1;
        }
    }

    /// What is to be said at this moment. What goes back is said before anything that could take it for done.
    fn take(&mut self, now: Instant) -> Vec<Word> {
        let mut words: Vec<Word> = Vec::new();
        for number in std::mem::take(&mut self.back) {
            self.answered(number);
            words.push(Word::Back(number));
        }
        let place = self.done.iter().copied().collect::<Vec<_>>();
        for number in &place {
            self.answered(*number);
        }
        let later = self.done.split_off(&(self.upto + 1));
        let first = std::mem::replace(&mut self.done, later);
        match first.last() {
            Some(last) if first.len() >= TOGETHER => words.push(Word::DoneUpTo(*last)),
            Some(_) | None => words.extend(first.into_iter().map(Word::Done)),
        }
        if self.done.is_empty() {
            self.waits = None;
            return words;
        }
        let since = *self.waits.get_or_insert(now);
        let open = self.seen.saturating_sub(self.upto);
        let waiting = u64::try_from(self.done.len()).unwrap_or(u64::MAX);
        if self.ended || waiting < TOGETHER as u64 || waiting * PART > open || now >= since + WAIT {
            words.extend(std::mem::take(&mut self.done).into_iter().map(Word::Done));
            self.waits = None;
        }
        words
    }
}

async fn say(channel: &Channel, word: Word) -> lapin::Result<()> {
    match word {
        Word::Back(number) => {
            channel.basic_nack(number, BasicNackOptions { requeue: true, ..BasicNackOptions::default() }).await
        }
        Word::Done(number) => channel.basic_ack(number, BasicAckOptions { multiple: false }).await,
        Word::DoneUpTo(number) => channel.basic_ack(number, BasicAckOptions { multiple: true }).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn book(seen: u64) -> Book {
        Book { seen, ..Book::default() }
    }

    fn done(book: &mut Book, numbers: impl IntoIterator<Item = u64>) -> Vec<Word> {
        book.done.extend(numbers);
        book.take(Instant::now())
    }

    #[test]
    fn all_up_to_the_first_that_runs_are_acknowledged_at_once() {
        let mut book = book(100);
        assert_eq!(done(&mut book, [2, 1, 4, 3]), [Word::DoneUpTo(4)]);
        assert_eq!(done(&mut book, [5]), [Word::Done(5)]);
        assert_eq!(done(&mut book, 8..=15), [], "6 and 7 may end soon");
        assert_eq!(done(&mut book, [6, 7]), [Word::DoneUpTo(15)]);
    }

    #[test]
    fn what_runs_or_was_not_seen_yet_is_never_acknowledged_with_others() {
        let mut book = book(20);
        let all = done(&mut book, 2..=20);
        assert_eq!(all, (2..=20).map(Word::Done).collect::<Vec<_>>(), "too many to wait for the first");
        assert_eq!(done(&mut book, 22..=30), (22..=30).map(Word::Done).collect::<Vec<_>>());
        assert_eq!(done(&mut book, [1]), [Word::Done(1)]);
        assert_eq!(book.upto, 20);
    }

    #[test]
    fn nothing_waits_for_long() {
        let mut book = book(100);
        let now = Instant::now();
        book.done.extend(2..=9);
        assert_eq!(book.take(now), []);
        assert_eq!(book.take(now + WAIT).len(), 8);
        book.done.extend(11..=18);
        assert_eq!(book.take(now + WAIT), []);
        book.ended = true;
        assert_eq!(book.take(now + WAIT).len(), 8);
    }

    #[test]
    fn what_goes_back_goes_before_anything_that_would_take_it_for_done() {
        let mut book = book(100);
        book.back.push(3);
        assert_eq!(done(&mut book, [1, 2, 4, 5]), [Word::Back(3), Word::DoneUpTo(5)]);
        // The server has it already.
        book.answered(6);
        assert_eq!(done(&mut book, 7..=10), [Word::DoneUpTo(10)]);
    }
}
