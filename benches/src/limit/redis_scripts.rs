//! The scripts of the limit on Redis: the least there is, and all that promptq writes in the plainest form.

// What promptq writes of a job (`common/src/broker/redis/scripts`), and so do these:
// - enqueue: head and payload as one string in a hash, an entry in its lane's list, its id in the log of arrivals; a
//   call: the lane's count, the batch's total and waiting, the newest number, the arrivals and the earliest deadline of
//   the log's part, a token for idle workers;
// - lease: an entry with its end in a sorted set, which also holds lease id and worker; a call: counts of lane and batch;
// - end: that entry goes, head and record take the payload's place, its id in the logs of ends of queue and batch, its
//   announcement in a stream; a call: the cursor of both logs, the bytes of records, the batch's counts and sums.
//
// Not done, being no writes: looking whether an id was used, whether a job or its queue was cancelled or paused, claims.

use anyhow::Context;
use deadpool_redis::redis::{self, Cmd, Connection};

use super::arguments::Writes;

/// The names of the loaded scripts.
pub(super) struct Scripts {
    pub(super) enqueue: String,
    pub(super) claim: String,
    pub(super) done: String,
}

impl Scripts {
    pub(super) fn load(connection: &mut Connection, writes: Writes) -> anyhow::Result<Self> {
        let mut load = |text: &str| -> anyhow::Result<String> {
            redis::cmd("SCRIPT").arg("LOAD").arg(text).query(connection).context("load a script")
        };
        let [enqueue, claim, done] = match writes {
            Writes::Bare => [ENQUEUE, CLAIM, DONE],
            Writes::Promptq => [ENQUEUE_ALL, LEASE_ALL, END_ALL],
        };
        Ok(Self { enqueue: load(enqueue)?, claim: load(claim)?, done: load(done)? })
    }
}

/// A call of a script.
pub(super) fn script(name: &str) -> Cmd {
    let mut call = redis::cmd("EVALSHA");
    call.arg(name).arg(0);
    call
}

pub(super) const ENQUEUE: &str = "
redis.call('HSET', 'limit:jobs', unpack(ARGV))
local ids = {}
for at = 1, #ARGV, 2 do ids[#ids + 1] = ARGV[at] end
redis.call('RPUSH', 'limit:ready', unpack(ids))
if redis.call('LLEN', 'limit:wake') == 0 then redis.call('RPUSH', 'limit:wake', 1) end
return #ids";

pub(super) const CLAIM: &str = "
local ids = redis.call('LPOP', 'limit:ready', ARGV[1])
if not ids then return {} end
local leases = {}
for place, id in ipairs(ids) do leases[2 * place - 1], leases[2 * place] = ARGV[2], id end
redis.call('ZADD', 'limit:lease', unpack(leases))
return { ids, redis.call('HMGET', 'limit:jobs', unpack(ids)) }";

pub(super) const DONE: &str = "
redis.call('HSET', 'limit:result', unpack(ARGV))
local ids = {}
for at = 1, #ARGV, 2 do ids[#ids + 1] = ARGV[at] end
redis.call('ZREM', 'limit:lease', unpack(ids))
redis.call('HDEL', 'limit:jobs', unpack(ids))
return #ids";

const ENQUEUE_ALL: &str = "
local call, ids = redis.call, {}
for at = 1, #ARGV, 2 do ids[#ids + 1] = ARGV[at] end
local count = #ids
call('HSET', 'limit:jobs', unpack(ARGV))
call('RPUSH', 'limit:r:1:mock', unpack(ids))
local seq = call('HINCRBY', 'limit:c', 'seq', count)
local part = math.floor((seq - 1) / 256)
call('APPEND', 'limit:o:' .. part, table.concat(ids))
call('HINCRBY', 'limit:alive', part, count)
call('ZADD', 'limit:overdue', 'LT', 1e15, part)
call('HINCRBY', 'limit:lanes', '1:mock', count)
call('HINCRBY', 'limit:b', 'total', count)
call('HINCRBY', 'limit:b', 'jobs', count)
call('HINCRBY', 'limit:b', 'queued', count)
call('HSET', 'limit:b', 'latest', seq, 'going', '')
if call('LLEN', 'limit:wake') == 0 then call('RPUSH', 'limit:wake', 1) end
return count";

/// A lease's entry is id, lease id and worker in one: taking it away is also the proof that it was there.
const LEASE_ALL: &str = "
local call, sub = redis.call, string.sub
local ids = call('LPOP', 'limit:r:1:mock', ARGV[1])
if not ids then return {} end
local names, leases, worker = {}, {}, ARGV[3]
for place, id in ipairs(ids) do
  local name = id .. sub(ARGV[4], place * 16 - 15, place * 16) .. worker
  names[place], leases[2 * place - 1], leases[2 * place] = name, ARGV[2], name
end
call('ZADD', 'limit:lease', unpack(leases))
call('HINCRBY', 'limit:lanes', '1:mock', -#ids)
call('HINCRBY', 'limit:b', 'queued', -#ids)
call('HINCRBY', 'limit:b', 'running', #ids)
return { names, call('HMGET', 'limit:jobs', unpack(ids)) }";

const END_ALL: &str = "
local call, sub = redis.call, string.sub
local names, ids, jobs, bytes = {}, {}, {}, 0
for at = 1, #ARGV, 3 do
  local place, name = #names + 1, ARGV[at]
  local id = sub(name, 1, 16)
  names[place], ids[place], jobs[2 * place - 1], jobs[2 * place] = name, id, id, ARGV[at + 1]
  bytes = bytes + #ARGV[at + 1]
end
local count = #names
if call('ZREM', 'limit:lease', unpack(names)) ~= count then return redis.error_reply('ERR a lease has ended') end
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
call('XADD', 'limit:results', 'MAXLEN', '~', 10000, '*', 'result', ARGV[3])
for at = 6, #ARGV, 3 do call('XADD', 'limit:results', '*', 'result', ARGV[at]) end
return count";
