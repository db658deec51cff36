//! Publishing against a server that is played: which message came back, what was refused, alarms, channels and
//! connections that end under a window.

use std::time::Duration;

use lapin::BasicProperties;
use tokio::time::timeout;

use super::message;
use super::peer::{Peer, Session};
use crate::broker::amqp::link::Link;
use crate::broker::amqp::publisher::{Message, Sent};
use crate::error::{Kind, Result};

const SOON: Duration = Duration::from_millis(400);
/// Longer than any test.
const LONG: Duration = Duration::from_secs(600);

/// A link, the server's end of its publishing connection, and that of the other, to be kept.
async fn publishing(peer: &Peer) -> (Link, Session, Session) {
    let access = peer.access();
    let (link, (consuming, publishing)) = tokio::join!(Link::patient(&access, SOON, LONG), peer.both());
    (link.unwrap(), publishing, consuming)
}

/// Has `messages` published in one window, their delivery tags from 2 on: one before them keeps the publisher waiting
/// until all are in. The server then does what `serve` says.
async fn in_one_window(
    link: &Link,
    session: &mut Session,
    messages: Vec<Message>,
    serve: impl AsyncFnOnce(&mut Session),
) -> Vec<Result<Sent>> {
    let publisher = link.publisher();
    let first = publisher.publish(message("first", "pq1.in"));
    let rest = async {
        let first = session.published().await;
        let serving = async {
            session.ack(first.channel, 1, false).await;
            serve(session).await;
        };
        tokio::join!(biased; publisher.publish_all(messages), serving).0
    };
    let (first, answers) = tokio::join!(first, rest);
    assert_eq!(first.unwrap(), Sent::Taken);
    answers
}

fn kinds(answers: &[Result<Sent>]) -> Vec<Result<Sent, Kind>> {
    answers.iter().map(|answer| answer.as_ref().copied().map_err(crate::error::Error::kind)).collect()
}

#[tokio::test]
async fn a_confirm_of_many_does_not_say_whose_message_came_back() {
    let peer = Peer::listen().await;
    let (link, mut session, _other) = publishing(&peer).await;
    let messages = ["a", "b", "c", "d", "e", "f"].map(|id| message(id, "pq1.in")).into();
    let answers = in_one_window(&link, &mut session, messages, async |session| {
        let mut all = Vec::new();
        for _ in 0..6 {
            all.push(session.published().await);
        }
        // The driver hands what came back to whichever confirm it looks at next.
        session.give_back(&all[4]).await;
        session.ack(all[0].channel, 2, false).await;
        session.give_back(&all[1]).await;
        session.ack(all[0].channel, 7, true).await;
    })
    .await;
    let (taken, returned) = (Ok(Sent::Taken), Ok(Sent::Returned));
    assert_eq!(kinds(&answers), [taken, returned, taken, taken, returned, taken]);
}

#[tokio::test]
async fn a_message_without_an_id_is_known_again() {
    let peer = Peer::listen().await;
    let (link, mut session, _other) = publishing(&peer).await;
    let nameless = || Message { properties: BasicProperties::default(), ..message("x", "") };
    let answers = in_one_window(&link, &mut session, vec![nameless(), nameless(), nameless()], async |session| {
        let all = [session.published().await, session.published().await, session.published().await];
        session.give_back(&all[2]).await;
        session.ack(all[0].channel, 4, true).await;
    })
    .await;
    assert_eq!(kinds(&answers), [Ok(Sent::Taken), Ok(Sent::Taken), Ok(Sent::Returned)]);
}

#[tokio::test]
async fn two_of_one_id_are_never_on_their_way_together() {
    let peer = Peer::listen().await;
    let (link, mut session, _other) = publishing(&peer).await;
    let messages = ["a", "a", "b"].map(|id| message(id, "pq1.in")).into();
    let answers = in_one_window(&link, &mut session, messages, async |session| {
        let (one, other) = (session.published().await, session.published().await);
        assert_eq!([one.key.as_str(), other.key.as_str()], ["key.a", "key.b"]);
        session.give_back(&one).await;
        session.ack(one.channel, 3, true).await;
        let again = session.published().await;
        assert_eq!((again.key.as_str(), again.exchange.as_str(), again.mandatory), ("key.a", "pq1.in", true));
        session.ack(one.channel, 4, false).await;
    })
    .await;
    assert_eq!(kinds(&answers), [Ok(Sent::Returned), Ok(Sent::Taken), Ok(Sent::Taken)]);
}

#[tokio::test]
async fn a_queue_that_refuses_is_told_of_and_is_a_trouble_until_something_is_taken() {
    let peer = Peer::listen().await;
    let (link, mut session, _other) = publishing(&peer).await;
    let answers = in_one_window(&link, &mut session, vec![message("a", "q"), message("b", "q")], async |session| {
        let (one, _) = (session.published().await, session.published().await);
        session.nack(one.channel, 2).await;
        session.ack(one.channel, 3, false).await;
    })
    .await;
    assert_eq!(kinds(&answers), [Err(Kind::Unavailable), Ok(Sent::Taken)]);
    let text = answers[0].as_ref().unwrap_err().to_string();
    assert!(text.contains("\"key.a\" is full"), "{text}");
    assert_eq!(link.publisher().trouble(), None);
    let refused = async {
        let message = session.published().await;
        session.nack(message.channel, 4).await;
    };
    let (answer, ()) = tokio::join!(link.publisher().publish(message("c", "q")), refused);
    assert_eq!(answer.unwrap_err().kind(), Kind::Unavailable);
    assert!(link.publisher().trouble().is_some());
    let taken = async {
        let message = session.published().await;
        session.ack(message.channel, 5, false).await;
    };
    let (answer, ()) = tokio::join!(link.publisher().publish(message("d", "q")), taken);
    assert_eq!((answer.unwrap(), link.publisher().trouble()), (Sent::Taken, None));
}

#[tokio::test]
async fn a_missing_exchange_is_the_fault_of_those_who_name_it() {
    let peer = Peer::listen().await;
    let (link, mut session, _other) = publishing(&peer).await;
    let messages = vec![message("a", "pq1.in"), message("b", "nowhere"), message("c", "pq1.in")];
    let answers = in_one_window(&link, &mut session, messages, async |session| {
        let (one, _) = (session.published().await, session.published().await);
        session.ack(one.channel, 2, false).await;
        session.close_channel(one.channel, 404, "NOT_FOUND - no exchange 'nowhere' in vhost '/'").await;
    })
    .await;
    assert_eq!(kinds(&answers), [Ok(Sent::Taken), Err(Kind::NotFound), Err(Kind::Unavailable)]);
    let serving = async {
        let channel = session.confirms().await;
        session.published().await;
        session.ack(channel, 1, false).await;
    };
    let (answer, ()) = tokio::join!(link.publisher().publish(message("d", "pq1.in")), serving);
    assert_eq!(answer.unwrap(), Sent::Taken);
}

#[tokio::test]
async fn a_message_that_the_server_will_not_have_is_found_among_others() {
    const WHY: &str = "PRECONDITION_FAILED - message size 20 is larger than configured max size 16";
    let peer = Peer::listen().await;
    let (link, mut session, _other) = publishing(&peer).await;
    let messages = vec![message("a", "pq1.in"), message("b", "pq1.in")];
    let answers = in_one_window(&link, &mut session, messages, async |session| {
        let one = session.published().await;
        session.close_channel(one.channel, 406, WHY).await;
    })
    .await;
    assert_eq!(kinds(&answers), [Err(Kind::Unavailable), Err(Kind::Unavailable)]);
    let serving = async {
        let channel = session.confirms().await;
        let one = session.published().await;
        session.close_channel(channel, 406, WHY).await;
        assert_eq!(one.key, "key.a");
        let channel = session.confirms().await;
        session.published().await;
        session.ack(channel, 1, false).await;
    };
    let messages = vec![message("a", "pq1.in"), message("b", "pq1.in")];
    let (answers, ()) = tokio::join!(link.publisher().publish_all(messages), serving);
    assert_eq!(kinds(&answers), [Err(Kind::TooLarge), Ok(Sent::Taken)]);
}

#[tokio::test]
async fn a_right_that_is_missing_is_for_a_person() {
    let peer = Peer::listen().await;
    let (link, mut session, _other) = publishing(&peer).await;
    let serving = async {
        let one = session.published().await;
        let why = "ACCESS_REFUSED - access to exchange 'pq1.in' in vhost 'team' refused for user 'me'";
        session.close_channel(one.channel, 403, why).await;
    };
    let (answer, ()) = tokio::join!(link.publisher().publish(message("a", "pq1.in")), serving);
    let error = answer.unwrap_err();
    assert_eq!(error.kind(), Kind::Denied);
    let text = error.to_string();
    assert!(text.contains("too few rights") && text.contains("'pq1.in'") && !text.contains("hunter2"), "{text}");
}

#[tokio::test]
async fn what_is_not_confirmed_in_time_is_unknown_and_holds_nobody_up() {
    let peer = Peer::listen().await;
    let (link, mut session, _other) = publishing(&peer).await;
    let answers = in_one_window(&link, &mut session, vec![message("a", "q"), message("b", "q")], async |session| {
        let (one, _) = (session.published().await, session.published().await);
        session.ack(one.channel, 3, false).await;
    })
    .await;
    assert_eq!(kinds(&answers), [Err(Kind::TimedOut), Ok(Sent::Taken)]);
    let serving = async {
        let channel = session.confirms().await;
        session.published().await;
        session.ack(channel, 1, false).await;
    };
    let (answer, ()) = tokio::join!(link.publisher().publish(message("c", "q")), serving);
    assert_eq!(answer.unwrap(), Sent::Taken);
}

#[tokio::test]
async fn an_alarm_is_told_with_its_reason_and_passes() {
    let peer = Peer::listen().await;
    let access = peer.access();
    let (link, (_consuming, mut session)) = tokio::join!(Link::connect(&access), peer.both());
    let link = link.unwrap();
    let blocking = async {
        session.published().await;
        session.block("low on memory").await;
    };
    let begun = std::time::Instant::now();
    let (answer, ()) = tokio::join!(link.publisher().publish(message("a", "q")), blocking);
    let text = answer.unwrap_err().to_string();
    assert!(text.contains("(low on memory)"), "{text}");
    // Two seconds of patience with the alarm, not the fifteen with a confirm.
    assert!((2..10).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    assert!(link.publisher().trouble().is_some_and(|lasting| lasting >= Duration::from_secs(2)));
    let again = timeout(Duration::from_secs(1), link.publisher().publish(message("b", "q"))).await;
    let error = again.expect("told at once").unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    let serving = async {
        session.unblock().await;
        let channel = session.confirms().await;
        session.published().await;
        session.ack(channel, 1, false).await;
    };
    let publishing = async {
        // Until the alarm's end has come through, it is refused.
        loop {
            match link.publisher().publish(message("c", "q")).await {
                Ok(sent) => return sent,
                Err(error) => assert_eq!(error.kind(), Kind::Unavailable, "{error}"),
            }
            tokio::task::yield_now().await;
        }
    };
    let (sent, ()) = tokio::join!(publishing, serving);
    assert_eq!((sent, link.publisher().trouble()), (Sent::Taken, None));
}

#[tokio::test]
async fn an_alarm_that_comes_and_goes_keeps_nobody_for_ever() {
    let peer = Peer::listen().await;
    let (link, mut session, _other) = publishing(&peer).await;
    let flickering = async {
        session.published().await;
        for _ in 0..200 {
            session.block("low on memory").await;
            session.unblock().await;
            tokio::time::sleep(SOON / 8).await;
        }
    };
    tokio::select! {
        answer = link.publisher().publish(message("a", "q")) => assert!(answer.unwrap_err().is_transient()),
        () = flickering => panic!("it waits for as long as the alarm flickers"),
    }
}

#[tokio::test]
async fn a_caller_that_leaves_disturbs_nobody() {
    let peer = Peer::listen().await;
    let (link, mut session, _other) = publishing(&peer).await;
    let publisher = link.publisher();
    // One leaves while its message is on its way.
    assert!(timeout(SOON / 8, publisher.publish(message("a", "q"))).await.is_err());
    let serving = async {
        let one = session.published().await;
        session.ack(one.channel, 1, false).await;
        let other = session.published().await;
        assert_eq!(other.key, "key.b");
        session.ack(one.channel, 2, false).await;
    };
    let (answer, ()) = tokio::join!(publisher.publish(message("b", "q")), serving);
    assert_eq!(answer.unwrap(), Sent::Taken);
}

#[tokio::test]
async fn a_connection_that_ends_under_a_window_leaves_what_was_confirmed_confirmed() {
    let peer = Peer::listen().await;
    let (link, mut session, _other) = publishing(&peer).await;
    let messages = ["a", "b", "c"].map(|id| message(id, "q")).into();
    let answers = in_one_window(&link, &mut session, messages, async |session| {
        let all = [session.published().await, session.published().await, session.published().await];
        session.ack(all[0].channel, 3, false).await;
        session.close(320, "CONNECTION_FORCED - broker forced connection closure with reason 'shutdown'").await;
    })
    .await;
    assert_eq!(kinds(&answers), [Err(Kind::Unavailable), Ok(Sent::Taken), Err(Kind::Unavailable)]);
    let text = answers[0].as_ref().unwrap_err().to_string();
    assert!(text.contains("closes its connections"), "{text}");
    let serving = async {
        let mut session = peer.session().await;
        let channel = session.confirms().await;
        session.published().await;
        session.ack(channel, 1, false).await;
        session
    };
    let (answer, _session) = tokio::join!(link.publisher().publish(message("d", "q")), serving);
    assert_eq!((answer.unwrap(), link.publisher().trouble()), (Sent::Taken, None));
}

#[tokio::test]
async fn after_an_end_a_confirm_is_not_trusted_whose_return_may_be_missing() {
    let peer = Peer::listen().await;
    let (link, mut session, _other) = publishing(&peer).await;
    let answers = in_one_window(&link, &mut session, vec![message("a", "q"), message("b", "q")], async |session| {
        let (one, other) = (session.published().await, session.published().await);
        session.give_back(&other).await;
        session.give_back(&one).await;
        // It carries what came back first: that its own message did too, the driver keeps to itself.
        session.ack(one.channel, 2, false).await;
        session.close_channel(one.channel, 541, "INTERNAL_ERROR").await;
    })
    .await;
    assert_eq!(kinds(&answers), [Err(Kind::Unavailable), Err(Kind::Unavailable)]);
}

#[tokio::test]
async fn a_key_that_does_not_fit_is_refused_before_it_is_sent() {
    let peer = Peer::listen().await;
    let (link, _session, _other) = publishing(&peer).await;
    let long = Message { key: "k".repeat(256), ..message("a", "q") };
    assert_eq!(link.publisher().publish(long).await.unwrap_err().kind(), Kind::TooLarge);
}
