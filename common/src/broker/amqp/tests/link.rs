//! Connecting to, losing and leaving a server that is played.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use futures_util::StreamExt;
use lapin::BasicProperties;
use lapin::options::BasicConsumeOptions;
use lapin::types::FieldTable;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::level_filters::LevelFilter;

use super::peer::{Peer, Session};
use super::{Written, message};
use crate::broker::Access;
use crate::broker::amqp::link::Link;
use crate::error::{Error, Kind, Result};
use crate::telemetry::{self, LogFormat};

async fn linked(peer: &Peer) -> (Link, Session, Session) {
    let access = peer.access();
    let (link, (consuming, publishing)) = tokio::join!(Link::connect(&access), peer.both());
    (link.unwrap(), consuming, publishing)
}

/// The error of a connect whose first connection is met with `serve`; the other hears nothing, and is left for it.
async fn refused(peer: &Peer, scheme: &str, serve: impl AsyncFn(&mut Session)) -> Error {
    let access = peer.access_as(scheme);
    let serving = async {
        let (mut one, other) = (peer.arrival().await, peer.arrival().await);
        serve(&mut one).await;
        (one, other)
    };
    let connecting = Link::connect(&access);
    tokio::pin!(connecting);
    let error = tokio::select! {
        link = &mut connecting => link.unwrap_err(),
        _kept = serving => connecting.await.unwrap_err(),
    };
    let text = error.to_string();
    assert!(text.contains("me:***@127.0.0.1") && !text.contains("hunter2"), "{text}");
    error
}

#[tokio::test]
async fn both_connections_say_who_they_are() {
    let peer = Peer::listen().await;
    let (link, consuming, publishing) = linked(&peer).await;
    let host = crate::config::host();
    assert_eq!(consuming.name, format!("promptq {host} consume"));
    assert_eq!(publishing.name, format!("promptq {host} publish"));
    assert!(*link.up().borrow());
    assert_eq!((link.peer().user.as_str(), link.peer().vhost.as_str()), ("me", "team"));
}

#[tokio::test]
async fn what_a_server_refuses_a_login_with_is_for_a_person() {
    let peer = Peer::listen().await;
    let wrong = refused(&peer, "amqp", async |session| {
        session.start().await;
        session.close(403, "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN.").await;
        session.goodbye().await;
    });
    let error = wrong.await;
    assert_eq!(error.kind(), Kind::Denied);
    assert!(error.to_string().contains("refuses user me or the password"), "{error}");
    for (said, kind, word) in [
        ("NOT_ALLOWED - vhost team not found", Kind::Config, "no virtual host \"team\""),
        (
            "NOT_ALLOWED - access to vhost 'team' refused for user 'me'",
            Kind::Denied,
            "may not use virtual host \"team\"",
        ),
    ] {
        let error = refused(&peer, "amqp", async |session| {
            session.start().await;
            session.tune(10).await;
            session.close(530, said).await;
            session.goodbye().await;
        });
        let error = error.await;
        assert_eq!(error.kind(), kind, "{said}");
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[tokio::test]
async fn what_answers_but_is_no_amqp_is_told_of_with_a_hint() {
    let peer = Peer::listen().await;
    // A port with TLS answers what is none with an alert, or hangs up.
    let alert = refused(&peer, "amqp", async |session| {
        session.raw(&[0x15, 3, 3, 0, 2, 2, 40]).await;
        session.read().await;
    });
    let error = alert.await;
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.to_string().contains("write amqps://"), "{error}");
    // A port without answers a greeting in TLS with the protocol that it speaks.
    let plain = refused(&peer, "amqps", async |session| session.raw(b"AMQP\0\0\x09\x01").await);
    let error = plain.await;
    assert_eq!(error.kind(), Kind::Config);
    assert!(error.to_string().contains("speaks no TLS; write amqp://"), "{error}");
}

#[tokio::test]
async fn a_port_that_nobody_listens_on_is_told_of() {
    let access = {
        let peer = Peer::listen().await;
        peer.access()
    };
    let error = Link::connect(&access).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.to_string().contains("connection refused"), "{error}");
}

#[tokio::test]
async fn a_lost_connection_is_told_and_made_again() {
    let peer = Peer::listen().await;
    let (link, mut consuming, _publishing) = linked(&peer).await;
    let mut up = link.up();
    let opening = async { tokio::join!(link.channel(), consuming.channel()).0.unwrap() };
    let channel = opening.await;
    consuming.close(320, "CONNECTION_FORCED - broker forced connection closure with reason 'shutdown'").await;
    up.wait_for(|up| !up).await.unwrap();
    assert!(!channel.status().connected());
    // Asked for while there is none, a channel waits for the connection.
    let again = async {
        let mut session = peer.session().await;
        session.channel().await;
        session
    };
    let (channel, session) = tokio::join!(link.channel(), again);
    assert!(channel.unwrap().status().connected() && session.name.ends_with("consume"));
    assert!(*up.borrow_and_update());
}

#[tokio::test]
async fn a_server_that_falls_silent_is_noticed() {
    let mut peer = Peer::listen().await;
    peer.heartbeat = 1;
    let (link, _consuming, _publishing) = linked(&peer).await;
    let mut up = link.up();
    let down = timeout(Duration::from_secs(10), up.wait_for(|up| !up)).await;
    assert!(down.expect("nobody noticed").is_ok());
    let lasting = async {
        while link.publisher().trouble().is_none() {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(10), lasting).await.expect("nor the publisher");
}

/// The server has a thread to itself, and the one that everything else here runs on waits for its end.
#[tokio::test]
async fn work_that_blocks_its_threads_costs_no_heartbeat() {
    const BLOCKED: Duration = Duration::from_secs(6);
    let (tell, told) = oneshot::channel();
    let server = std::thread::spawn(move || {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            let mut peer = Peer::listen().await;
            peer.heartbeat = 2;
            tell.send(peer.access()).unwrap();
            let (mut consuming, mut publishing) = peer.both().await;
            tokio::join!(consuming.longest_silence(BLOCKED), publishing.longest_silence(BLOCKED))
        })
    });
    let _link = Link::connect(&told.await.unwrap()).await.unwrap();
    let (consuming, publishing) = server.join().unwrap();
    let most = consuming.max(publishing);
    assert!(most < Duration::from_secs(4), "silent for {most:?}, where a server gives up after two heartbeats of 2 s");
}

#[tokio::test]
async fn a_consumer_that_is_cancelled_ends_and_its_channel_does_not() {
    let peer = Peer::listen().await;
    let (link, mut consuming, _publishing) = linked(&peer).await;
    let (channel, _) = tokio::join!(link.channel(), consuming.channel());
    let channel = channel.unwrap();
    let options = BasicConsumeOptions::default();
    let consuming_from = channel.basic_consume("pq1.q.a".into(), "".into(), options, FieldTable::default());
    let (consumer, (id, tag)) = tokio::join!(consuming_from, consuming.consumer());
    let mut consumer = consumer.unwrap();
    consuming.deliver(id, &tag, 7, (BasicProperties::default().with_message_id("a".into()), b"body")).await;
    let delivery = consumer.next().await.unwrap().unwrap();
    assert_eq!((delivery.delivery_tag, delivery.data.as_slice()), (7, b"body".as_slice()));
    consuming.cancel(id, &tag).await;
    assert!(consumer.next().await.is_none());
    assert!(channel.status().connected());
}

#[tokio::test]
async fn the_last_clone_says_goodbye_and_leaves_nothing_behind() {
    let peer = Peer::listen().await;
    let (link, mut consuming, mut publishing) = linked(&peer).await;
    let (channel, _) = tokio::join!(link.channel(), consuming.channel());
    let clone = link.clone();
    drop(link);
    assert!(*clone.up().borrow());
    drop(clone);
    assert_eq!(tokio::join!(consuming.goodbye(), publishing.goodbye()), (true, true));
    drop(channel);
    threads_end().await;
}

#[tokio::test]
async fn a_connect_that_fails_or_is_given_up_leaves_nothing_behind() {
    let peer = Peer::listen().await;
    refused(&peer, "amqp", async |session| {
        session.start().await;
        session.close(403, "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN.").await;
        session.goodbye().await;
    })
    .await;
    // Nothing is ever said to these.
    let access = peer.access();
    let (given_up, _sessions) = tokio::join!(timeout(Duration::from_millis(300), Link::connect(&access)), async {
        (peer.arrival().await, peer.arrival().await)
    });
    assert!(given_up.is_err());
    threads_end().await;
}

/// The other connection is still being made at that moment, by a thread of the driver's that uses our runtime.
#[tokio::test]
async fn a_connect_that_fails_lets_no_thread_of_the_drivers_panic() {
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    std::panic::set_hook(Box::new(|_| {
        PANICS.fetch_add(1, Relaxed);
    }));
    let peer = Peer::listen().await;
    for scheme in ["amqps", "amqp"] {
        refused(&peer, scheme, async |session| session.raw(b"HTTP/1.1 400 Bad Request\r\n\r\n").await).await;
        threads_end().await;
    }
    // Where nobody listens, both fail, and the first ends it.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let access = Access::new(&format!("amqp://{nobody}")).unwrap();
    for _ in 0..50 {
        Link::connect(&access).await.unwrap_err();
    }
    threads_end().await;
    assert_eq!(PANICS.load(Relaxed), 0);
}

#[tokio::test]
async fn a_blocked_connection_ends_without_a_goodbye() {
    let peer = Peer::listen().await;
    let (link, mut consuming, mut publishing) = linked(&peer).await;
    let blocking = async {
        publishing.published().await;
        publishing.block("low on disk").await;
    };
    let (answer, ()) = tokio::join!(link.publisher().publish(message("a", "q")), blocking);
    assert!(answer.is_err());
    drop(link);
    assert_eq!(tokio::join!(consuming.goodbye(), publishing.goodbye()), (true, false));
    threads_end().await;
}

#[tokio::test]
async fn no_log_line_holds_a_message_or_a_password() {
    let written = Written::default();
    let writer = written.clone();
    telemetry::init((LevelFilter::TRACE, LevelFilter::INFO), LogFormat::Text, move || writer.clone());
    let peer = Peer::listen().await;
    let (link, _consuming, mut publishing) = linked(&peer).await;
    let serving = async {
        let one = publishing.published().await;
        publishing.give_back(&one).await;
        publishing.ack(one.channel, 1, false).await;
        publishing.close(320, "CONNECTION_FORCED").await;
        publishing.goodbye().await;
    };
    let (sent, ()): (Result<_>, ()) = tokio::join!(link.publisher().publish(message("planted", "q")), serving);
    sent.unwrap();
    // Both ways: what is to be heard is heard.
    let heard = async {
        while !written.text().contains("connecting again") {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(10), heard).await.expect("no line of ours");
    let text = written.text();
    assert!(!text.contains("body of planted") && !text.contains("hunter2") && !text.contains("lapin"), "{text}");
}

/// Waits until no thread of a link or of the driver is left in this process, which runs this test alone.
async fn threads_end() {
    let left = || {
        let threads = std::fs::read_dir("/proc/self/task").unwrap();
        let names = threads.filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("comm")).ok());
        names.filter(|name| name.starts_with("lapin") || name.starts_with("promptq-amqp")).collect::<Vec<_>>()
    };
    let ending = async {
        while !left().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(10), ending).await.unwrap_or_else(|_| panic!("still there: {:?}", left()));
}
