//! What promptq's ledger on Redis is told of jobs that are RabbitMQ's messages (`common/src/broker/redis/scripts/
//! claims.lua`), in the plainest form, a call for each batch:

// - register, before the publish: the head in a hash, the id among those unconfirmed and in the log of arrivals, the
//   batch's counts; confirm, after it: the id goes from there;
// - open, as a message comes: the claim with its end, lease id and worker in a sorted set, the batch's counts;
// - end, before the announcement: the claim goes, head and record in one, the id in the logs of ends, counts and sums;
// - announced, after it: the id among those announced.
//
// In promptq both are marks in the job itself; a set takes less than writing that again.

use anyhow::{Context, ensure};
use deadpool_redis::redis::aio::MultiplexedConnection;
use deadpool_redis::redis::{self, AsyncConnectionConfig, Client};
use lapin::message::Delivery;

use super::redis_scripts::script;
use super::rows::{self, Id, Stored};

/// The ledger's connection.
pub(super) struct Ledger {
    connection: MultiplexedConnection,
    scripts: [String; 5],
    head: Vec<u8>,
    ended: Vec<u8>,
}

const REGISTER: usize = 0;
const CONFIRM: usize = 1;
const OPEN: usize = 2;
const END: usize = 3;
const ANNOUNCED: usize = 4;

impl Ledger {
    pub(super) async fn connect(url: &str) -> anyhow::Result<Self> {
        let client = Client::open(url).context("--ledger")?;
        // Beside a busy disk a call may take longer than the half second that there is by default.
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        let connecting = client.get_multiplexed_async_connection_with_config(&config);
        let mut connection = connecting.await.context("connect to the ledger")?;
        let mut scripts = [const { String::new() }; 5];
        for (name, text) in scripts.iter_mut().zip([REGISTER_ALL, CONFIRM_ALL, OPEN_ALL, END_ALL, ANNOUNCED_ALL]) {
            *name = redis::cmd("SCRIPT").arg("LOAD").arg(text).query_async(&mut connection).await?;
        }
        let stored = Stored::new()?;
        Ok(Self { connection, scripts, ended: stored.ended(), head: stored.head })
    }

    pub(super) async fn register(&self, ids: &[Id]) -> anyhow::Result<()> {
        self.call(REGISTER, ids.len(), ids.iter().flat_map(|id| [id.as_slice(), &self.head])).await
    }

    pub(super) async fn confirm(&self, ids: &[Id]) -> anyhow::Result<()> {
        self.call(CONFIRM, ids.len(), ids.iter().map(Id::as_slice)).await
    }

    /// The claims on these: id, lease and worker of each.
    pub(super) async fn open(&self, ids: &[Id]) -> anyhow::Result<Vec<Vec<u8>>> {
        let till = (rows::now() + rows::LEASE).to_string().into_bytes();
        let names: Vec<Vec<u8>> =
            ids.iter().map(|id| [id, rand::random::<Id>().as_slice(), rows::WORKER.as_bytes()].concat()).collect();
        self.call(OPEN, ids.len(), names.iter().flat_map(|name| [till.as_slice(), name])).await?;
        Ok(names)
    }

    pub(super) async fn end(&self, names: &[Vec<u8>]) -> anyhow::Result<()> {
        self.call(END, names.len(), names.iter().flat_map(|name| [name.as_slice(), &self.ended])).await
    }

    pub(super) async fn announced(&self, ids: &[Id]) -> anyhow::Result<()> {
        self.call(ANNOUNCED, ids.len(), ids.iter().map(Id::as_slice)).await
    }

    /// How many have ended, ever; fails while claims stand.
    pub(super) async fn ended(&self) -> anyhow::Result<usize> {
        let mut connection = self.connection.clone();
        let claims: usize = redis::cmd("ZCARD").arg("limit:lease").query_async(&mut connection).await?;
        let ended: Option<usize> = redis::cmd("HGET").arg("limit:c").arg("cursor").query_async(&mut connection).await?;
        ensure!(claims == 0, "{claims} claims have not ended");
        Ok(ended.unwrap_or(0))
    }

    /// The id that a message names.
    pub(super) fn id_of(delivery: &Delivery) -> anyhow::Result<Id> {
        let name = delivery.properties.message_id().as_ref().context("a message without an id")?;
        Ok(u128::from_str_radix(&name.as_str().replace('-', ""), 16)?.to_be_bytes())
    }

    async fn call<'a>(&self, which: usize, count: usize, words: impl Iterator<Item = &'a [u8]>) -> anyhow::Result<()> {
        let mut call = script(&self.scripts[which]);
        for word in words {
            call.arg(word);
        }
        let answer: usize = call.query_async(&mut self.connection.clone()).await?;
        ensure!(answer == count, "the ledger took {answer} of {count} jobs");
        Ok(())
    }
}

const REGISTER_ALL: &str = "
local call, ids = redis.call, {}
for at = 1, #ARGV, 2 do ids[#ids + 1] = ARGV[at] end
call('HSET', 'limit:jobs', unpack(ARGV))
call('SADD', 'limit:unconfirmed', unpack(ids))
local count = #ids
local seq = call('HINCRBY', 'limit:c', 'seq', count)
local part = math.floor((seq - 1) / 256)
call('APPEND', 'limit:o:' .. part, table.concat(ids))
call('HINCRBY', 'limit:alive', part, count)
call('ZADD', 'limit:overdue', 'LT', 1e15, part)
for _, field in ipairs({ 'total', 'jobs', 'queued' }) do call('HINCRBY', 'limit:b', field, count) end
call('HSET', 'limit:b', 'latest', seq, 'going', '')
return count";

const CONFIRM_ALL: &str = "return redis.call('SREM', 'limit:unconfirmed', unpack(ARGV))";

const OPEN_ALL: &str = "
local call = redis.call
local count = call('ZADD', 'limit:lease', unpack(ARGV))
call('HINCRBY', 'limit:b', 'queued', -count)
call('HINCRBY', 'limit:b', 'running', count)
return count";

const END_ALL: &str = "
local call, names, ids, jobs, bytes = redis.call, {}, {}, {}, 0
for at = 1, #ARGV, 2 do
  names[#names + 1] = ARGV[at]
  local id = string.sub(ARGV[at], 1, 16)
  ids[#ids + 1], jobs[at], jobs[at + 1] = id, id, ARGV[at + 1]
  bytes = bytes + #ARGV[at + 1]
end
local count = #names
if call('ZREM', 'limit:lease', unpack(names)) ~= count then return redis.error_reply('ERR a claim has ended') end
call('HSET', 'limit:jobs', unpack(jobs))
local cursor, all = call('HINCRBY', 'limit:c', 'cursor', count), table.concat(ids)
local part = math.floor((cursor - 1) / 256)
call('APPEND', 'limit:log:' .. part, all)
call('HINCRBY', 'limit:c', 'bytes', bytes)
call('HINCRBY', 'limit:b', 'cursor', count)
call('APPEND', 'limit:bl:' .. part, all)
for field, by in pairs({ running = -1, succeeded = 1, input = 70, output = 60, cost = 1250, cost_known = 1 }) do
  call('HINCRBY', 'limit:b', field, by * count)
end
return count";

const ANNOUNCED_ALL: &str = "return redis.call('SADD', 'limit:announced', unpack(ARGV))";
