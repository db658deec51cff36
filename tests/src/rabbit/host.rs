//! A virtual host of a test's own: its users, and what is in its queues as the server itself knows it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::RngExt as _;

use super::node::{Node, wait_a_little};

/// What the tests' users log in with.
const PASSWORD: &str = "of-a-test-and-nothing-else";

/// How long every queue may take to have a leader.
const READY: Duration = Duration::from_secs(20);

/// Every queue of a virtual host, a line each: name, type, ready, unacknowledged, consumers, arguments. Quorum queues
/// show their counts late, so these are asked for what they hold.
const QUEUES: &str = r#"
  Counts = fun(Q) ->
    case amqqueue:get_type(Q) of
      rabbit_quorum_queue ->
        {ok, Found, _} = ra:consistent_query(amqqueue:get_pid(Q), fun(S) ->
          [rabbit_fifo:query_messages_ready(S), rabbit_fifo:query_messages_checked_out(S),
            rabbit_fifo:query_consumer_count(S)] end),
        Found;
      _ ->
        [N || {_, N} <- rabbit_amqqueue:info(Q, [messages_ready, messages_unacknowledged, consumers])]
    end
  end,
  Argument = fun({K, _, V}) when is_binary(V) -> [$\t, K, $=, V]; ({K, _, V}) -> io_lib:format("\t~ts=~0tp", [K, V]) end,
  Line = fun(Q) ->
    try
      {resource, _, _, Name} = amqqueue:get_name(Q),
      io_lib:format("~ts\t~ts\t~b\t~b\t~b~ts\n",
        [Name, amqqueue:get_type(Q)] ++ Counts(Q) ++ [[Argument(A) || A <- amqqueue:get_arguments(Q)]])
    catch exit:{noproc, _} -> []; error:{badmatch, {error, noproc}} -> [] end
  end,
  {text, [Line(Q) || Q <- rabbit_amqqueue:list(Host), binary:match(element(4, amqqueue:get_name(Q)), <<".after">>) == nomatch]}.
"#;

/// A virtual host. Dropping it removes it with everything in it.
#[derive(Debug)]
pub struct VirtualHost {
    node: Node,
    name: String,
    tls: bool,
}

/// One queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueSeen {
    /// Its name.
    pub name: String,
    /// Whether it is a quorum queue; otherwise a classic one.
    pub quorum: bool,
    /// How many messages wait in it.
    pub ready: u64,
    /// How many are with consumers.
    pub unacked: u64,
    /// Who consumes.
    pub consumers: u64,
    /// What it was declared with; numbers as text.
    pub arguments: BTreeMap<String, String>,
}

impl VirtualHost {
    pub(super) fn new(node: Node, tls: bool) -> Self {
        let host = Self { node, name: format!("t{:016x}", rand::rng().random::<u64>()), tls };
        let name = host.quoted();
        host.must(&format!("rabbit_vhost:add({name}, <<\"tests\">>)."));
        host.permit(super::options::LOGIN[0], [".*", ".*", ".*"]);
        host
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address, for the harness's own account, which may do everything.
    pub fn url(&self) -> String {
        self.node.harness_url(&self.name, self.tls)
    }

    /// As [`VirtualHost::url`] without TLS, where something that listens on `port` stands between.
    pub fn url_through(&self, port: u16) -> String {
        Node { port, ..self.node.clone() }.harness_url(&self.name, false)
    }

    /// Makes a user, or gives one new permissions, and tells the address by which it comes in. `rights` are the regular
    /// expressions of what it may configure, write and read.
    pub fn url_of(&self, user: &str, rights: [&str; 3]) -> String {
        // Users belong to the whole server.
        let user = format!("{}-{user}", self.name);
        let quoted = binary(&user);
        self.must(&format!(
            "case rabbit_auth_backend_internal:exists({quoted}) of true -> ok; false -> \
             rabbit_auth_backend_internal:add_user({quoted}, {}, <<\"tests\">>) end.",
            binary(PASSWORD)
        ));
        self.permit(&user, rights);
        self.node.url([&user, PASSWORD], &self.name, self.tls)
    }

    fn permit(&self, user: &str, rights: [&str; 3]) {
        let [configure, write, read] = rights.map(binary);
        let (user, host) = (binary(user), self.quoted());
        self.must(&format!(
            "rabbit_auth_backend_internal:set_permissions({user}, {host}, {configure}, {write}, {read}, <<\"tests\">>)."
        ));
    }

    /// Its queues, by name. Without those that are only made to be deleted: of a server that was killed over one, it has
    /// no leader any more that could be asked.
    pub fn queues(&self) -> Vec<QueueSeen> {
        let asked = format!("Host = {},{QUEUES}", self.quoted());
        let began = Instant::now();
        let said = loop {
            match self.node.evaluate(&asked) {
                // A queue that is being declared, or recovered, has no leader yet.
                Err(why) if why.contains("noproc") && began.elapsed() < READY => wait_a_little(),
                Ok(said) => break said,
                Err(_) => break self.must(&asked),
            }
        };
        let mut queues: Vec<_> = said.lines().map(QueueSeen::read).collect();
        queues.sort_by(|one, other| one.name.cmp(&other.name));
        queues
    }

    /// One of its queues, if it is there.
    pub fn queue(&self, name: &str) -> Option<QueueSeen> {
        self.queues().into_iter().find(|queue| queue.name == name)
    }

    /// What is in queues whose names begin with `prefix`: how many messages wait, and how many are with consumers.
    pub fn counts(&self, prefix: &str) -> (u64, u64) {
        let queues = self.queues().into_iter().filter(|queue| queue.name.starts_with(prefix));
        queues.fold((0, 0), |(ready, unacked), queue| (ready + queue.ready, unacked + queue.unacked))
    }

    /// How many consumers the server still counts whose channel is gone: what they had is on its way back, and what comes
    /// now may be given to them yet.
    pub fn gone_consumers(&self) -> usize {
        let said = self.must(&format!(
            "Of = fun(Q) -> case catch rabbit_amqqueue:consumers(Q) of Found when is_list(Found) -> Found; _ -> [] end end, \
             length([C || Q <- rabbit_amqqueue:list({}), C <- Of(Q), is_pid(element(1, C)), \
             not is_process_alive(element(1, C))]).",
            self.quoted()
        ));
        said.parse().expect("a number")
    }

    /// How many connections are open in it.
    pub fn connections(&self) -> usize {
        let said = self.must(&format!("length(rabbit_connection_tracking:list({})).", self.quoted()));
        said.parse().expect("a number")
    }

    /// Closes every connection in it, as an operator may.
    pub fn close_connections(&self) {
        self.must(&format!(
            "[rabbit_networking:close_connection(element(6, C), \"closed by the test\") || \
             C <- rabbit_connection_tracking:list({})].",
            self.quoted()
        ));
    }

    fn must(&self, expressions: &str) -> String {
        let said = self.node.evaluate(expressions);
        said.unwrap_or_else(|why| panic!("{expressions}: {why}\n{}", self.node.log()))
    }

    fn quoted(&self) -> String {
        binary(&self.name)
    }
}

impl Drop for VirtualHost {
    fn drop(&mut self) {
        // Not waited for: it takes longer than making it. A server that is gone has none.
        let name = self.quoted();
        drop(self.node.evaluate(&format!(
            "spawn(fun() -> rabbit_vhost:delete({name}, <<\"tests\">>), [rabbit_auth_backend_internal:delete_user(U, \
             <<\"tests\">>) || L <- rabbit_auth_backend_internal:list_users(), U <- [proplists:get_value(user, L)], \
             binary:match(U, {name}) =/= nomatch] end)."
        )));
    }
}

impl QueueSeen {
    fn read(line: &str) -> Self {
        let mut words = line.split('\t');
        let mut word = || words.next().unwrap_or_else(|| panic!("{line:?} is no queue"));
        let (name, kind) = (word().to_owned(), word());
        let quorum = kind == "rabbit_quorum_queue";
        let mut number = || word().parse().unwrap_or_else(|_| panic!("{line:?} has no numbers"));
        let (ready, unacked, consumers) = (number(), number(), number());
        let argument = |word: &str| word.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
        Self { name, quorum, ready, unacked, consumers, arguments: words.filter_map(argument).collect() }
    }
}

/// A text as Erlang writes it.
fn binary(text: &str) -> String {
    format!("<<{text:?}/utf8>>")
}
