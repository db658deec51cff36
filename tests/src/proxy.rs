//! A network in trouble between a program and its server: a TCP proxy in this process that forwards, cuts, stalls,
//! lets connections dangle or slows them down, switched while it runs.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What the network does to every connection, those that exist as well as new ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// Forwards both ways.
    Whole,
    /// Forwards each piece this much later.
    Slow(Duration),
    /// Resets what exists, and what comes as soon as it was accepted.
    Cut,
    /// Delivers nothing either way; what is sent meanwhile arrives when this is over.
    Stalled,
    /// Delivers requests and no answer: the worst moment for whoever asked. Answers arrive when this is over.
    Deaf,
    /// As a host that went without a word, while connections stay open for ever at this end: nothing is delivered,
    /// connections that exist never come back to life, even when this is over; new ones are accepted and dangle too.
    HalfOpen,
}

/// The proxy; gone with this value, and its connections with it.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    network: watch::Sender<Network>,
    open: Arc<AtomicUsize>,
    _server: JoinSet<()>,
}

/// More connections at once than any test makes; further ones are refused, so that a loop that connects for ever shows.
const CONNECTIONS: usize = 1_000;

impl Proxy {
    /// In front of a server on this machine.
    ///
    /// # Panics
    /// When it cannot listen.
    pub async fn before(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
        let here = listener.local_addr().expect("has an address").port();
        let (network, seen) = watch::channel(Network::Whole);
        let open = Arc::new(AtomicUsize::new(0));
        let mut server = JoinSet::new();
        server.spawn(accept(listener, port, seen, Arc::clone(&open)));
        Self { port: here, network, open, _server: server }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on the network does this.
    pub fn set(&self, network: Network) {
        self.network.send_replace(network);
    }

    /// Connections that are open at this end.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }
}

async fn accept(listener: TcpListener, port: u16, network: watch::Receiver<Network>, open: Arc<AtomicUsize>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((client, _)) = accepted else { return };
                if connections.len() < CONNECTIONS {
                    connections.spawn(serve(client, port, network.clone()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
        open.store(connections.len(), Ordering::Relaxed);
    }
}

/// One connection until it ends or is cut.
async fn serve(client: TcpStream, port: u16, network: watch::Receiver<Network>) {
    let mut cut = network.clone();
    tokio::select! {
        () = connect(&client, port, network) => {}
        _ = cut.wait_for(|network| *network == Network::Cut) => {}
    }
    // Unread and unsent bytes are lost, and the other side is told so.
    client.set_zero_linger().ok();
}

/// Ends when either side does; one that dangles never ends by itself.
async fn connect(client: &TcpStream, port: u16, network: watch::Receiver<Network>) {
    let mut when = network.clone();
    let Ok(true) = when.wait_for(|network| *network != Network::Stalled).await.map(|now| *now != Network::HalfOpen)
    else {
        return std::future::pending().await;
    };
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    // Small pieces are delivered as they come.
    if client.set_nodelay(true).is_err() || server.set_nodelay(true).is_err() {
        return;
    }
    tokio::select! {
        () = forward(client, &server, network.clone(), |now| now == Network::Stalled) => {}
        () = forward(&server, client, network, |now| matches!(now, Network::Stalled | Network::Deaf)) => {}
    }
}

/// Until `from` ends, `to` is gone, or the network has left both dangling.
async fn forward(from: &TcpStream, to: &TcpStream, mut network: watch::Receiver<Network>, held: fn(Network) -> bool) {
    let mut piece = vec![0; 16 * 1024];
    loop {
        let length = tokio::select! {
            biased;
            _ = network.wait_for(|now| held(*now) || *now == Network::HalfOpen) => 0,
            read = read(from, &mut piece) => match read {
                0 => return,
                length => length,
            },
        };
        // What was read as the network changed is subject to the change.
        let Ok(now) = network.wait_for(|now| !held(*now)).await.map(|now| *now) else { return };
        // What was held back when the connection is cut is never delivered.
        if matches!(now, Network::HalfOpen | Network::Cut) {
            return std::future::pending().await;
        }
        if let Network::Slow(delay) = now {
            // A change of the network ends the wait.
            tokio::time::timeout(delay, network.changed()).await.ok();
        }
        if !write(to, piece.get(..length).unwrap_or_default()).await {
            return;
        }
    }
}

/// How much there is; 0 at the end.
async fn read(from: &TcpStream, piece: &mut [u8]) -> usize {
    loop {
        if from.readable().await.is_err() {
            return 0;
        }
        match from.try_read(piece) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            read => return read.unwrap_or(0),
        }
    }
}

/// Whether all of it was taken.
async fn write(to: &TcpStream, mut piece: &[u8]) -> bool {
    while !piece.is_empty() {
        if to.writable().await.is_err() {
            return false;
        }
        match to.try_write(piece) {
            Ok(length) => piece = piece.get(length..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::{Instant, timeout};

    use super::*;

    const SOON: Duration = Duration::from_millis(100);
    const PATIENCE: Duration = Duration::from_secs(10);

    /// A server that repeats what it hears, and a proxy before it.
    async fn echo() -> (Proxy, JoinSet<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy::before(listener.local_addr().unwrap().port()).await;
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                connections.spawn(async move {
                    let (mut from, mut to) = stream.split();
                    tokio::io::copy(&mut from, &mut to).await.ok();
                });
            }
        });
        (proxy, server)
    }

    async fn connect(proxy: &Proxy) -> TcpStream {
        TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap()
    }

    async fn say(stream: &mut TcpStream, word: &str) {
        stream.write_all(word.as_bytes()).await.unwrap();
    }

    async fn hears(stream: &mut TcpStream, word: &str) {
        let mut heard = vec![0; word.len()];
        timeout(PATIENCE, stream.read_exact(&mut heard)).await.expect("hears").unwrap();
        assert_eq!(String::from_utf8(heard).unwrap(), word);
    }

    async fn hears_nothing(stream: &mut TcpStream) {
        let heard = timeout(SOON, stream.read_u8()).await;
        assert!(heard.is_err(), "{heard:?}");
    }

    #[tokio::test]
    async fn it_forwards_at_once_or_later() {
        let (proxy, _server) = echo().await;
        let mut stream = connect(&proxy).await;
        say(&mut stream, "one").await;
        hears(&mut stream, "one").await;
        assert_eq!(proxy.open(), 1);
        proxy.set(Network::Slow(SOON));
        let began = Instant::now();
        say(&mut stream, "two").await;
        hears(&mut stream, "two").await;
        assert!(began.elapsed() >= SOON * 2, "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn a_cut_resets_what_is_there_and_what_comes() {
        let (proxy, _server) = echo().await;
        let mut old = connect(&proxy).await;
        say(&mut old, "one").await;
        hears(&mut old, "one").await;
        proxy.set(Network::Cut);
        assert_eq!(timeout(PATIENCE, old.read_u8()).await.unwrap().unwrap_err().kind(), ErrorKind::ConnectionReset);
        let mut new = connect(&proxy).await;
        assert_eq!(timeout(PATIENCE, new.read_u8()).await.unwrap().unwrap_err().kind(), ErrorKind::ConnectionReset);
        proxy.set(Network::Whole);
        let mut later = connect(&proxy).await;
        say(&mut later, "two").await;
        hears(&mut later, "two").await;
    }

    #[tokio::test]
    async fn what_was_stalled_arrives_later() {
        let (proxy, _server) = echo().await;
        let mut stream = connect(&proxy).await;
        for (network, word) in [(Network::Stalled, "one"), (Network::Deaf, "two")] {
            proxy.set(network);
            say(&mut stream, word).await;
            hears_nothing(&mut stream).await;
            proxy.set(Network::Whole);
            hears(&mut stream, word).await;
        }
    }

    #[tokio::test]
    async fn what_dangles_dangles_for_ever() {
        let (proxy, _server) = echo().await;
        let mut old = connect(&proxy).await;
        say(&mut old, "one").await;
        hears(&mut old, "one").await;
        proxy.set(Network::HalfOpen);
        let mut new = connect(&proxy).await;
        say(&mut old, "two").await;
        say(&mut new, "three").await;
        hears_nothing(&mut new).await;
        proxy.set(Network::Whole);
        hears_nothing(&mut old).await;
        hears_nothing(&mut new).await;
        let mut later = connect(&proxy).await;
        say(&mut later, "four").await;
        hears(&mut later, "four").await;
    }
}
