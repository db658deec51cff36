//! What is answered for on one channel: gathered while the last answers were on their way, and sent by one writer, as few
//! as say it all. What an answer is for is the receipt's affair.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
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
    answered: Answered,
    /// To be acknowledged, unless the server has taken their consumer away.
    done: BTreeMap<u64, Arc<AtomicBool>>,
    /// To be given back, likewise.
    back: Vec<(u64, Arc<AtomicBool>)>,
    /// Since when an acknowledgement waits for those before it.
    waits: Option<Instant>,
    /// Whether no more answers come.
    ended: bool,
}

/// Which deliveries are answered for: no more is kept than there are gaps, however long one stays open.
#[derive(Debug, Default)]
struct Answered {
    /// Every delivery up to this one.
    upto: u64,
    /// Those beyond it: runs without a gap, first and last.
    beyond: BTreeMap<u64, u64>,
    /// How many those are.
    apart: u64,
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

    /// Acknowledges a delivery, soon. Not if `taken_back` is set by then: the server may close the channel over what it
    /// does not know any more.
    pub(super) fn done(&self, number: u64, taken_back: &Arc<AtomicBool>) {
        if self.book().done.insert(number, Arc::clone(taken_back)).is_none() {
            self.news.notify_one();
        }
    }

    /// Puts a message back in its queue, soon; with `taken_back` as for [`Self::done`].
    pub(super) fn back(&self, number: u64, taken_back: &Arc<AtomicBool>) {
        self.book().back.push((number, Arc::clone(taken_back)));
        self.news.notify_one();
    }

    /// Takes note of a delivery that the server waits for no more.
    pub(super) fn forget(&self, number: u64) {
        let mut book = self.book();
        book.seen = book.seen.max(number);
        book.answered.add(number);
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

impl Answered {
    fn add(&mut self, number: u64) {
        let before = self.beyond.range(..=number).next_back().map(|(&first, &last)| (first, last));
        if number <= self.upto || before.is_some_and(|(_, last)| number <= last) {
            return;
        }
        let first = before.filter(|(_, last)| last + 1 == number).map_or(number, |(first, _)| first);
        let last = self.beyond.remove(&(number + 1)).unwrap_or(number);
        if first == self.upto + 1 {
            self.apart -= last - number;
            self.upto = last;
        } else {
            self.apart += 1;
            self.beyond.insert(first, last);
        }
    }
}

impl Book {
    /// What is to be said at this moment. What goes back is said before anything that could take it for done.
    fn take(&mut self, now: Instant) -> Vec<Word> {
        let mut words: Vec<Word> = Vec::new();
        for (number, taken_back) in std::mem::take(&mut self.back) {
            self.answered.add(number);
            if !taken_back.load(Ordering::Relaxed) {
                words.push(Word::Back(number));
            }
        }
        for number in self.done.keys() {
            self.answered.add(*number);
        }
        self.done.retain(|_, taken_back| !taken_back.load(Ordering::Relaxed));
        let later = self.done.split_off(&(self.answered.upto + 1));
        let first = std::mem::replace(&mut self.done, later);
        match first.last_key_value() {
            Some((last, _)) if first.len() >= TOGETHER => words.push(Word::DoneUpTo(*last)),
            Some(_) | None => words.extend(first.into_keys().map(Word::Done)),
        }
        if self.done.is_empty() {
            self.waits = None;
            return words;
        }
        let since = *self.waits.get_or_insert(now);
        let waiting = u64::try_from(self.done.len()).unwrap_or(u64::MAX);
        // What waits is answered for here, and to the server it is not.
        let open = self.seen.saturating_sub(self.answered.upto + self.answered.apart) + waiting;
        if self.ended || waiting < TOGETHER as u64 || waiting * PART > open || now >= since + WAIT {
            words.extend(std::mem::take(&mut self.done).into_keys().map(Word::Done));
            self.waits = None;
        }
        words
    }
}

async fn say(channel: &Channel, word: Word) -> lapin::Result<()> {
    let (number, multiple) = match word {
        Word::Back(number) => {
            let options = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
            return channel.basic_nack(number, options).await;
        }
        Word::Done(number) => (number, false),
        Word::DoneUpTo(number) => (number, true),
    };
    channel.basic_ack(number, BasicAckOptions { multiple }).await?;
    crate::crash_point!("amqp.answers.after_ack");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn book(seen: u64) -> Book {
        Book { seen, ..Book::default() }
    }

    fn done(book: &mut Book, numbers: impl IntoIterator<Item = u64>) -> Vec<Word> {
        ended(book, numbers, &Arc::default());
        book.take(Instant::now())
    }

    /// Jobs end that came by the same consumer.
    fn ended(book: &mut Book, numbers: impl IntoIterator<Item = u64>, taken_back: &Arc<AtomicBool>) {
        book.done.extend(numbers.into_iter().map(|number| (number, Arc::clone(taken_back))));
    }

    /// All of these end and are answered for, each alone.
    fn answered(book: &mut Book, numbers: impl IntoIterator<Item = u64>) {
        for number in numbers {
            assert_eq!(done(book, [number]), [Word::Done(number)]);
        }
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
        assert_eq!(book.answered.upto, 20);
    }

    #[test]
    fn one_long_job_has_nobody_wait_who_ends_behind_it() {
        let mut book = book(10_021);
        answered(&mut book, 2..=10_001);
        assert_eq!(done(&mut book, 10_002..=10_005), [], "a fifth of what is open waits");
        assert_eq!(done(&mut book, 10_006..=10_007), (10_002..=10_007).map(Word::Done).collect::<Vec<_>>());
    }

    #[test]
    fn what_ended_behind_a_long_job_is_remembered_in_one() {
        let mut book = book(100_000);
        answered(&mut book, (2..=50_000).rev().chain(50_001..=100_000));
        assert_eq!((book.answered.beyond.len(), book.answered.apart), (1, 99_999));
        assert_eq!(done(&mut book, [1]), [Word::Done(1)]);
        assert_eq!((book.answered.upto, book.answered.beyond.len(), book.answered.apart), (100_000, 0, 0));
    }

    #[test]
    fn what_is_answered_for_is_known_in_whatever_order_it_ended() {
        let mut answered = Answered::default();
        let mut other = std::collections::BTreeSet::new();
        // 7 is no divisor of 97: each of them once, and then again.
        for number in (0..200).map(|turn| turn * 7 % 97 + 1) {
            answered.add(number);
            other.insert(number);
            let upto = (1..=98).find(|number| !other.contains(number)).unwrap() - 1;
            let beyond: Vec<u64> = other.iter().copied().filter(|number| *number > upto).collect();
            let kept: Vec<u64> = answered.beyond.iter().flat_map(|(first, last)| *first..=*last).collect();
            assert_eq!((answered.upto, &kept), (upto, &beyond));
            assert_eq!(answered.apart, u64::try_from(beyond.len()).unwrap());
        }
    }

    #[test]
    fn nothing_is_said_of_what_the_server_has_taken_back() {
        let mut book = book(20);
        let (gone, stays) = (Arc::default(), Arc::default());
        ended(&mut book, 2..=4, &stays);
        ended(&mut book, 5..=6, &gone);
        book.back.extend([(7, Arc::clone(&gone)), (8, Arc::clone(&stays))]);
        gone.store(true, Ordering::Relaxed);
        ended(&mut book, [1], &stays);
        assert_eq!(book.take(Instant::now()), [Word::Back(8), Word::DoneUpTo(4)]);
        assert_eq!(done(&mut book, 9..=12), [Word::DoneUpTo(12)], "they leave no gap");
    }

    #[test]
    fn nothing_waits_for_long() {
        let mut book = book(100);
        let now = Instant::now();
        ended(&mut book, 2..=9, &Arc::default());
        assert_eq!(book.take(now), []);
        assert_eq!(book.take(now + WAIT).len(), 8);
        ended(&mut book, 11..=18, &Arc::default());
        assert_eq!(book.take(now + WAIT), []);
        book.ended = true;
        assert_eq!(book.take(now + WAIT).len(), 8);
    }

    #[test]
    fn what_goes_back_goes_before_anything_that_would_take_it_for_done() {
        let mut book = book(100);
        book.back.push((3, Arc::default()));
        assert_eq!(done(&mut book, [1, 2, 4, 5]), [Word::Back(3), Word::DoneUpTo(5)]);
        // The server has it already.
        book.answered.add(6);
        assert_eq!(done(&mut book, 7..=10), [Word::DoneUpTo(10)]);
    }
}
