//! Messages that are published together, and what became of each. Pure but for the answers: a window is judged as a
//! whole, because the driver hands a returned message to whichever confirm comes next.

use std::collections::{HashSet, VecDeque};

use lapin::BasicProperties;
use lapin::message::BasicReturnMessage;
use lapin::types::{AMQPValue, LongString, ShortString};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::publisher::Sent;
use crate::error::Result;

/// What the server's confirms come in anyway under load; more would only make the first wait for the last.
const MOST: usize = 500;
/// So that one window is on its way within the confirm time-out on a slow network too.
const MOST_BYTES: usize = 4 << 20;
/// The header that tells a message without an id from others, should it come back.
const MARK: &str = "pq-mark";

/// One message on its way, and who waits for it.
pub(super) struct Request {
    pub(super) exchange: ShortString,
    pub(super) key: ShortString,
    pub(super) properties: BasicProperties,
    pub(super) body: Vec<u8>,
    /// What it is known by when it comes back; `None` when it cannot.
    pub(super) mark: Option<String>,
    pub(super) answer: oneshot::Sender<Result<Sent>>,
    /// Its share of the memory that waiting messages may take.
    pub(super) _weight: OwnedSemaphorePermit,
}

/// What the server said of one message.
pub(super) enum Fate {
    /// Confirmed; perhaps with a message that came back, whose it may be or not.
    Acked(Option<String>),
    /// The queue refused it.
    Nacked(Option<String>),
    /// The channel or connection ended first.
    Failed(lapin::Error),
    /// Nothing within the time allowed.
    Silent,
}

/// What is to be told of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Taken,
    Returned,
    Refused,
    /// The channel or connection ended first.
    Failed,
    Silent,
}

/// What it is known by when it comes back.
pub(super) fn mark_of(properties: &BasicProperties) -> Option<String> {
    if let Some(id) = properties.message_id() {
        return Some(format!("id {id}"));
    }
    let headers = properties.headers().as_ref()?;
    match headers.inner().get(MARK) {
        Some(AMQPValue::LongString(mark)) => Some(format!("mark {}", String::from_utf8_lossy(mark.as_bytes()))),
        Some(_) | None => None,
    }
}

/// The same message with something it is known by.
pub(super) fn marked(properties: BasicProperties, number: u64) -> BasicProperties {
    if properties.message_id().is_some() {
        return properties;
    }
    let mut headers = properties.headers().clone().unwrap_or_default();
    headers.insert(MARK.into(), AMQPValue::LongString(LongString::from(number.to_string())));
    properties.with_headers(headers)
}

/// What a confirm carried.
pub(super) fn returned(message: Option<BasicReturnMessage>) -> Option<String> {
    // One without a mark is of no message that could be asked about; that one came back still counts.
    message.map(|message| mark_of(&message.properties).unwrap_or_default())
}

/// The next messages to go together: in order, but that one with the id of another in the window waits for the next.
/// Leaves out whom nobody waits for any more. `held` is what earlier windows left.
pub(super) fn gather(
    first: Request,
    held: &mut VecDeque<Request>,
    inbox: &mut mpsc::Receiver<Request>,
    most: usize,
) -> Vec<Request> {
    let (mut window, mut bytes) = (Vec::new(), 0);
    let (mut marks, mut left) = (HashSet::new(), VecDeque::new());
    let mut next = Some(first);
    while let Some(request) = next.take().or_else(|| held.pop_front()).or_else(|| inbox.try_recv().ok()) {
        if request.answer.is_closed() {
            continue;
        }
        let size = request.body.len();
        if !window.is_empty() && bytes + size > MOST_BYTES {
            left.push_back(request);
            break;
        }
        if request.mark.as_ref().is_some_and(|mark| !marks.insert(mark.clone())) {
            left.push_back(request);
            continue;
        }
        bytes += size;
        window.push(request);
        if window.len() >= most.min(MOST) {
            break;
        }
    }
    left.append(held);
    *held = left;
    window
}

/// One word per message. Which confirm carried a returned message says nothing; that it was carried by one of this
/// window says that it is of this window, and once every confirm is in, none is missing.
pub(super) fn judge(marks: &[Option<String>], fates: &[Fate]) -> Vec<Told> {
    let mut back = HashSet::new();
    for fate in fates {
        if let Fate::Acked(Some(mark)) | Fate::Nacked(Some(mark)) = fate {
            back.insert(mark.as_str());
        }
    }
    let whole = fates.iter().all(|fate| matches!(fate, Fate::Acked(_) | Fate::Nacked(_)));
    let told = |(mark, fate): (&Option<String>, &Fate)| match fate {
        Fate::Failed(_) => Told::Failed,
        Fate::Silent => Told::Silent,
        Fate::Nacked(_) => Told::Refused,
        Fate::Acked(_) => match mark {
            Some(mark) if back.contains(mark.as_str()) => Told::Returned,
            // Its own return may be one that no confirm was there to carry.
            Some(_) if !whole && !back.is_empty() => Told::Failed,
            Some(_) | None => Told::Taken,
        },
    };
    marks.iter().zip(fates).map(told).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Semaphore;

    use super::*;

    type Answers = Vec<oneshot::Receiver<Result<Sent>>>;

    /// Requests with these marks and sizes, and those who wait for them.
    fn requests(wanted: &[(&str, usize)]) -> (VecDeque<Request>, Answers) {
        let weights = Arc::new(Semaphore::new(wanted.len()));
        let request = |(mark, size): &(&str, usize)| {
            let (answer, answered) = oneshot::channel();
            let request = Request {
                exchange: "".into(),
                key: "".into(),
                properties: BasicProperties::default(),
                body: vec![0; *size],
                mark: Some((*mark).to_owned()),
                answer,
                _weight: Arc::clone(&weights).try_acquire_owned().unwrap(),
            };
            (request, answered)
        };
        wanted.iter().map(request).unzip()
    }

    fn next_window(held: &mut VecDeque<Request>) -> Vec<String> {
        let (_sender, mut inbox) = mpsc::channel(1);
        let first = held.pop_front().unwrap();
        gather(first, held, &mut inbox, usize::MAX).into_iter().filter_map(|request| request.mark).collect()
    }

    #[test]
    fn a_window_is_bounded_and_in_order() {
        let (mut held, _answers) = requests(&[("a", MOST_BYTES), ("b", 1), ("c", MOST_BYTES + 1), ("d", 1)]);
        assert_eq!(next_window(&mut held), ["a"]);
        assert_eq!(next_window(&mut held), ["b"]);
        assert_eq!(next_window(&mut held), ["c"]);
        assert_eq!(next_window(&mut held), ["d"]);
        let (mut held, _answers) = requests(&[("", 0); 2]);
        assert_eq!((next_window(&mut held).len(), held.len()), (1, 1));
        let marks: Vec<String> = (0..=MOST).map(|number| number.to_string()).collect();
        let (mut held, _answers) = requests(&marks.iter().map(|mark| (mark.as_str(), 0)).collect::<Vec<_>>());
        assert_eq!((next_window(&mut held).len(), held.len()), (MOST, 1));
    }

    #[test]
    fn nobody_is_published_for_who_has_left() {
        let (mut held, mut answers) = requests(&[("a", 1), ("b", 1), ("c", 1)]);
        answers.remove(1);
        assert_eq!(next_window(&mut held), ["a", "c"]);
    }

    #[test]
    fn a_return_belongs_to_whom_it_names() {
        let marks = ["a", "b", "c"].map(|mark| Some(mark.to_owned()));
        let fates = [Fate::Acked(Some("c".to_owned())), Fate::Acked(None), Fate::Acked(None)];
        assert_eq!(judge(&marks, &fates), [Told::Taken, Told::Taken, Told::Returned]);
        // With one confirm missing, the return of a or b may be too.
        let fates = [Fate::Acked(Some("c".to_owned())), Fate::Acked(None), Fate::Silent];
        assert_eq!(judge(&marks, &fates), [Told::Failed, Told::Failed, Told::Silent]);
        let fates = [Fate::Acked(None), Fate::Nacked(None), Fate::Silent];
        assert_eq!(judge(&marks, &fates), [Told::Taken, Told::Refused, Told::Silent]);
    }
}
