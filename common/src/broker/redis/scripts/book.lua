-- What a queue holds in Redis, how it is read, and how changes are gathered and written once. Put before every script
-- that touches jobs; what moves them is `moves.lua`. KEYS[1] is the queue's prefix `{pq:<queue>}`, so that all its keys share one slot.
--
--   :jobs    hash  id -> job: fixed once enqueued, save that a payload goes (see `job`)
--   :state   hash  id -> what changes (see `state`); a job that has only ever waited in its lane has none
--   :big     hash  id -> payload above INLINE bytes
--   :body    hash  id -> encoded record, where a worker wrote one
--   :lanes   hash  lane -> ready jobs; :r:<lane> list of id .. generation, of which older generations are void
--   :delayed zset  id by due time; :h:<hold key> zset of those released under it
--   :lease   zset  id by the end of its lease: being in it is what running means
--   :dead    zset  id by its place in the log: the dead set
--   :c       hash  counters: seq, cursor, bytes of records, batches, `paused`, the reason while the queue is, and
--            `purged`, when messages of another broker were
--   :b:<batch> hash  a batch, `going` since when a sweep means to forget it; :bl:<batch>:<n> its log
--   :log:<n> string  ids in the order of their ends, CHUNK a string; :o:<n> ids in the order they came
--   :alive   hash  n of :o -> jobs of it that are left; :overdue zset of n by its earliest deadline, or earlier
--   :past:<id> string with a life time: the mark that an id has been used
--   :stop:<id> string with a life time: cancelled before its message was seen (see `claims.lua`)
--   :wake    list  tokens that idle workers wait for; :results stream of announcements; :inbox list of foreign jobs

local P = KEYS[1]
local CHUNK, INLINE, ENDED = 256, 1024, { S = true, D = true, C = true, E = true }
local call, pack, unpack_one, floor = redis.call, cmsgpack.pack, cmsgpack.unpack, math.floor
local time = call('TIME')
local NOW = time[1] * 1000 + floor(time[2] / 1000)

-- What a script changes is gathered here and written once, by `flush`: counters of lanes and batches, jobs and states
-- (false: there is none), records, ends of leases (false: no lease any more), and what logs are appended to.
local lanes, batches, woken = {}, {}, false
local jobs, states, bodies, changed_jobs, changed_states, leases_until, logs = {}, {}, {}, {}, {}, {}, {}

-- A number as part of a key: `..` would write a large one with an exponent.
local function int(number)
  return string.format('%.0f', number)
end

-- Calls a command with the items of a list behind its own words; Lua's stack bounds how many at a time.
local function call_with(items, ...)
  local words = { ... }
  for from = 1, #items, 1000 do
    local part, length = { unpack(words) }, #words - from + 1
    for place = from, math.min(from + 999, #items) do part[length + place] = items[place] end
    call(unpack(part))
  end
end

-- Reads many jobs or states at once that will be asked for one by one; what was read before stays as it is.
local function prefetch(field, cache, ids)
  for from = 1, #ids, 1000 do
    local found = call('HMGET', P .. field, unpack(ids, from, math.min(from + 999, #ids)))
    for place, bytes in ipairs(found) do
      local id = ids[from + place - 1]
      if cache[id] == nil then cache[id] = bytes and unpack_one(bytes) or false end
    end
  end
end

-- fp, seq, at (enqueued), deadline, age (at - created), lane, batch or false, head, payload: a string, true when it is
-- in :big, false when it is gone; away: true when it waits as a message of another broker.
local function job(id)
  local j = jobs[id]
  if j == nil then
    local bytes = call('HGET', P .. ':jobs', id)
    j = bytes and unpack_one(bytes) or false
    jobs[id] = j
  end
  if j and not j.seq then
    j = {
      fp = j[1], seq = j[2], at = j[3], deadline = j[4], age = j[5], lane = j[6], batch = j[7], head = j[8], payload = j[9],
      away = j[10],
    }
    jobs[id] = j
  end
  return j or nil
end

local function keep_job(id, j)
  jobs[id], changed_jobs[id] = j, true
end

-- s: r ready, d delayed, a away, l leased, S D C E ended. gen: of its entry in the lane. since: when it became ready.
-- delayed, and some that are away: due, why (s scheduled, y retrying, h released), hold. leased: lease, worker, leased,
-- cancel, batch.
-- epoch, attempts, deaths, deadline (a redriven job's), history, use (consumed so far, see `spend`): absent means 0 or none. settled: the last lease
-- whose verdict was applied. ended: cursor, bcursor, ended, size, code, by (the lease that wrote the record), use,
-- and unrun (c, p or e: cancelled, purged, expired) where no worker wrote one; dropped. Of a job that is away when it
-- waits: unconfirmed and raised (its message may not be durable yet), spared (from its batch's cancel), and ended: announced.
local function state(id)
  local st = states[id]
  if st == nil then
    local bytes = call('HGET', P .. ':state', id)
    st = bytes and unpack_one(bytes) or false
    states[id] = st
  end
  return st or { s = 'r' }
end

local function keep_state(id, st)
  states[id], changed_states[id] = st, true
end

local function add(table, name, field, by)
  local counts = table[name]
  if not counts then counts = {}; table[name] = counts end
  counts[field] = (counts[field] or 0) + by
end

local FIELD = {
  r = 'queued', d = 'delayed', a = 'queued', l = 'running', S = 'succeeded', D = 'dead', C = 'cancelled', E = 'expired',
}

local function count(j, stage, by)
  if j.batch then add(batches, j.batch, FIELD[stage], by) end
  if stage == 'r' then
    add(lanes, j.lane, 'ready', by)
    woken = woken or by > 0
  elseif stage == 'D' then
    add(lanes, '', 'dead', by)
  end
end

-- input, output, cached and reasoning tokens, nanodollars, 1 when a cost is known, 1 when one is not.
local SPENT = { 'input', 'output', 'cached', 'reasoning', 'cost', 'cost_known', 'cost_unknown' }

local function spend(j, use, sign)
  if not j.batch or not use then return end
  for place, field in ipairs(SPENT) do
    if use[place] ~= 0 then add(batches, j.batch, field, sign * use[place]) end
  end
end

local function parse_use(text)
  local use = { string.match(text, '(-?%d+),(-?%d+),(-?%d+),(-?%d+),(-?%d+),(%d),(%d)') }
  for place = 1, #use do use[place] = tonumber(use[place]) end
  return use[1] and use
end

-- Leaves one token for idle workers; `hops` is how often it may be handed on.
local function wake(hops)
  if call('LLEN', P .. ':wake') == 0 then call('RPUSH', P .. ':wake', hops) end
end

local function flush_jobs()
  local items = {}
  for id in pairs(changed_jobs) do
    local j = jobs[id]
    items[#items + 1] = id
    items[#items + 1] = pack({ j.fp, j.seq, j.at, j.deadline, j.age, j.lane, j.batch, j.head, j.payload, j.away })
  end
  call_with(items, 'HSET', P .. ':jobs')
  items = {}
  for id in pairs(changed_states) do items[#items + 1], items[#items + 2] = id, pack(states[id]) end
  call_with(items, 'HSET', P .. ':state')
  local kept, gone = {}, {}
  for id, till in pairs(leases_until) do
    if till then kept[#kept + 1], kept[#kept + 2] = till, id else gone[#gone + 1] = id end
  end
  call_with(gone, 'ZREM', P .. ':lease')
  call_with(kept, 'ZADD', P .. ':lease')
  items = {}
  for id, body in pairs(bodies) do items[#items + 1], items[#items + 2] = id, body end
  call_with(items, 'HSET', P .. ':body')
  changed_jobs, changed_states, leases_until, bodies = {}, {}, {}, {}
end

local function flush_logs()
  for name, log in pairs(logs) do
    call('HSET', log.key, log.counter, log.last)
    local place = log.first
    while place <= log.last do
      local chunk = floor((place - 1) / CHUNK)
      local to = math.min(log.last, (chunk + 1) * CHUNK)
      call('APPEND', name .. ':' .. chunk, table.concat(log.ids, '', place - log.first + 1, to - log.first + 1))
      place = to + 1
    end
  end
  logs = {}
end

-- Writes what was gathered. The last thing a script does that changes anything.
local function flush()
  flush_jobs()
  flush_logs()
  for lane, counts in pairs(lanes) do
    for _, field in ipairs({ 'dead', 'bytes' }) do
      if counts[field] and counts[field] ~= 0 then call('HINCRBY', P .. ':c', field, counts[field]) end
    end
    if counts.ready and counts.ready ~= 0 and call('HINCRBY', P .. ':lanes', lane, counts.ready) <= 0 then
      -- Whatever is left in the list is void.
      call('HDEL', P .. ':lanes', lane)
      call('DEL', P .. ':r:' .. lane)
    end
  end
  for batch, counts in pairs(batches) do
    for field, by in pairs(counts) do
      if by ~= 0 then call('HINCRBY', P .. ':b:' .. batch, field, by) end
    end
  end
  lanes, batches = {}, {}
  if woken then wake(8) end
  woken = false
end

-- The next number of `counter` in hash `key`, its id appended to the log `name`.
local function append(key, counter, name, id)
  local log = logs[name]
  if not log then
    local last = tonumber(call('HGET', key, counter)) or 0
    log = { key = key, counter = counter, first = last + 1, last = last, ids = {} }
    logs[name] = log
  end
  log.last = log.last + 1
  log.ids[#log.ids + 1] = id
  return log.last
end

local function chunk_of(seq)
  return int(floor((seq - 1) / CHUNK))
end
