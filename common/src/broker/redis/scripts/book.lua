-- What a queue holds in Redis, how it is read, and how changes are gathered and written once. Put before every script
-- that touches jobs; what moves them is `moves.lua`. KEYS[1] is the queue's prefix `{pq:<queue>}`: its keys share a slot.
--
--   :jobs    hash  id -> the job, one string (see `decode`)
--   :big     hash  id -> payload above INLINE bytes; :body that of encoded records
--   :lanes   hash  lane -> ready jobs; :r:<lane> list of id .. generation, of which older generations are void
--   :delayed zset  id by due time; :h:<hold key> zset of those released under it
--   :lease   zset  id by the end of its lease: being in it is what running means
--   :dead    zset  id by its place in the log: the dead set
--   :c       hash  counters: seq, cursor, bytes of records, batches, `paused`, the reason while the queue is,
--            `purged`, when messages of another broker were, and `turned`: 8 bytes, other ones whenever something else
--            than their holders' settling may have changed what claims of leases say
--   :b:<batch> hash  a batch, `going` since when a sweep means to forget it; :bl:<batch>:<n> its log
--   :log:<n> string  ids in the order of their ends, CHUNK a string; :o:<n> ids in the order they came
--   :alive   hash  n of :o -> jobs of it that are left; :overdue zset of n by its earliest deadline, or earlier
--   :past:<id> string with a life time: the mark that an id has been used
--   :stop:<id> string with a life time: cancelled before its message was seen (see `claims.lua`)
--   :wake    list  tokens that idle workers wait for; :results stream of announcements; :inbox list of foreign jobs

local P = KEYS[1]
local CHUNK, INLINE, ENDED = 256, 1024, { S = true, D = true, C = true, E = true }
local call, pack, read, sub, byte, floor = redis.call, struct.pack, struct.unpack, string.sub, string.byte, math.floor
local JOBS, COUNTERS, LOG, RESULTS = P .. ':jobs', P .. ':c', P .. ':log', P .. ':results'
local time = call('TIME')
local NOW = time[1] * 1000 + floor(time[2] / 1000)

-- What a script changes is gathered here and written once, by `flush`: counters of lanes and batches, jobs and states
-- (false: there is none) and which of them changed, ids and bytes of jobs in turn, ends of leases (false: no lease any
-- more) or in turn with their ids, ids that have no lease any more, records for :body, what logs are appended to.
local lanes, batches, woken, turned = {}, {}, false, false
local raws, jobs, states, changed, written, bodies, logs = {}, {}, {}, {}, {}, {}, {}
local leases_until, kept, ended = {}, {}, {}

-- A number as part of a key: `..` would write a large one with an exponent.
local function int(number)
  return string.format('%.0f', number)
end

-- Calls a command with the items of a list behind its key; Lua's stack bounds how many at a time.
local function call_with(items, command, key)
  for from = 1, #items, 1000 do call(command, key, unpack(items, from, math.min(from + 999, #items))) end
end

-- Remembers the bytes of a job that will be asked for; what was read before stays as it is.
local function remember(id, bytes)
  if raws[id] == nil then raws[id] = bytes end
end

-- Reads many jobs at once that will be asked for one by one.
local function prefetch(ids)
  for from = 1, #ids, 1000 do
    local found = call('HMGET', JOBS, unpack(ids, from, math.min(from + 999, #ids)))
    for place, bytes in ipairs(found) do remember(ids[from + place - 1], bytes) end
  end
end

-- A job as bytes; numbers are little-endian, strings stand behind their length. `stored.rs` reads it too.
--   job    s c1, trail's length I3, trail, core's length I3, core, payload if it is kept here
--   trail  what changes; none of a job that has only ever waited in its lane. Of r d a (ready, delayed, away): WAITS and
--          BASE; of l (leased): RUNS, BASE, worker; of S D C E (ended): ENDS, BASE, code, the record if it is kept here,
--          or later and later_why where no worker wrote one and they are there
--   core   what is fixed once it is enqueued, save that a payload goes: where the payload is (0 gone, 1 here, 2 in :big;
--          + AWAY of one that waits as a message of another broker), seq I5, at (enqueued) I6, and what came with it:
--          ITEM and head
-- gen: of its entry in the lane. since: when it became ready. due, why (s scheduled, y retrying, h released), hold: of
-- delayed jobs and some that are away. settled: the last lease whose verdict was applied. deadline: a redriven job's.
-- use: consumed so far (see `spend`). by: the lease that wrote the record. unrun: c, p or e (cancelled, purged, expired)
-- where no worker wrote one. later, later_why: when its message comes, should such an end be taken back, and why then.
-- MARKS: cancel; dropped; of a job that is away when it waits unconfirmed and raised (its message may not be durable yet),
-- spared (from its batch's cancel), and ended announced; apart: its record is in :body.
local AWAY, ITEM, CORE = 4, 'I6Hc0Hc0I6c16', '<I3BI5I6'
local WAITS, RUNS, ENDS, BASE = '<I6I6Bc0Hc0', '<c16I6', '<I6I6I6I4Bc0Bc0', '<BBI4I4I4I6Bc0I4c0Bc0'
local MARKS = { cancel = 1, dropped = 2, unconfirmed = 4, raised = 8, spared = 16, announced = 32, apart = 64 }
-- The base of a job that was never tried, what its bytes begin with while it waits for the first time, and `turned`
-- before anything turned.
local PLAIN, FRESH, NEVER = string.rep('\0', 26), 'r\0\0\0', string.rep('\0', 8)

local function some(text)
  return text ~= '' and text or nil
end

local function above_0(number)
  return number > 0 and number or nil
end

local function decode_trail(bytes, st, at, last)
  local marks, from
  if ENDED[st.s] then
    st.cursor, st.bcursor, st.ended, st.size, st.by, st.unrun, from = read(ENDS, bytes, at)
    st.by, st.unrun = some(st.by), some(st.unrun)
  elseif st.s == 'l' then
    st.lease, st.leased, from = read(RUNS, bytes, at)
  else
    st.since, st.due, st.why, st.hold, from = read(WAITS, bytes, at)
    st.since, st.due, st.why, st.hold = above_0(st.since), above_0(st.due), some(st.why), some(st.hold)
  end
  st.gen, marks, st.epoch, st.attempts, st.deaths, st.deadline, st.settled, st.history, st.use, from =
    read(BASE, bytes, from)
  st.deadline, st.settled, st.history, st.use = above_0(st.deadline), some(st.settled), some(st.history), some(st.use)
  if marks > 0 then
    for name, mark in pairs(MARKS) do st[name] = bit.band(marks, mark) > 0 or nil end
  end
  if st.s == 'l' then
    st.worker = sub(bytes, from, last)
  elseif ENDED[st.s] then
    st.code, from = read('<Hc0', bytes, from)
    if st.unrun then
      if from <= last then st.later, st.later_why = read('<I6Bc0', bytes, from) end
    elseif not st.apart then
      st.body = sub(bytes, from, last)
    end
  end
end

-- fp, seq, at, deadline, age (at - created), lane, batch or false, payload: 'here', true when it is in :big, false when
-- it is gone; away. Of what came with it: where in `raw` the item, its head and its payload begin.
local function decode(id, bytes)
  local s, length = read('<c1I3', bytes)
  assert(ENDED[s] or s == 'r' or s == 'd' or s == 'a' or s == 'l')
  local st, at = { s = s }, 5 + length
  if length > 0 then decode_trail(bytes, st, 5, at - 1) end
  local core, payload, seq, enqueued, deadline, batch, lane, created, fp, head_at = read(CORE .. ITEM, bytes, at)
  local away = payload >= AWAY
  if away then payload = payload - AWAY end
  jobs[id], states[id] = {
    fp = fp, seq = seq, at = enqueued, deadline = deadline, age = enqueued - created, lane = lane,
    batch = batch ~= '' and batch, payload = payload == 1 and 'here' or payload == 2, away = away or nil,
    raw = bytes, item_at = at + 15, head_at = head_at, payload_at = at + 3 + core,
  }, st
end

local function encode_trail(st)
  local marks, settled, history, use = 0, st.settled or '', st.history or '', st.use or ''
  for name, mark in pairs(MARKS) do
    if st[name] then marks = marks + mark end
  end
  local base = pack(BASE, st.gen or 0, marks, st.epoch or 0, st.attempts or 0, st.deaths or 0, st.deadline or 0,
    #settled, settled, #history, history, #use, use)
  if st.s == 'l' then return pack(RUNS, st.lease, st.leased) .. base .. st.worker end
  if ENDED[st.s] then
    local by, unrun, code = st.by or '', st.unrun or '', st.code or ''
    local later = st.later and pack('<I6Bc0', st.later, #(st.later_why or ''), st.later_why or '') or ''
    return pack(ENDS, st.cursor, st.bcursor or 0, st.ended, st.size, #by, by, #unrun, unrun) .. base
      .. pack('<Hc0', #code, code) .. (st.body or later)
  end
  if st.s == 'r' and not st.since and base == PLAIN then return '' end
  local why, hold = st.why or '', st.hold or ''
  return pack(WAITS, st.since or 0, st.due or 0, #why, why, #hold, hold) .. base
end

-- All but the payload.
local function encode(j, st)
  local trail, item = encode_trail(st), sub(j.raw, j.item_at, j.payload_at - 1)
  local payload = (j.payload == true and 2 or j.payload and 1 or 0) + (j.away and AWAY or 0)
  return table.concat({ pack('<c1I3', st.s, #trail), trail, pack(CORE, 12 + #item, payload, j.seq, j.at), item })
end

local function look(id)
  local bytes = raws[id]
  if bytes == nil then bytes = call('HGET', JOBS, id) end
  if bytes and pcall(decode, id, bytes) then return end
  -- What nobody can read is no job, and stays where it is: `raws` has its bytes.
  raws[id], jobs[id], states[id] = bytes, false, false
end

local function job(id)
  if jobs[id] == nil then look(id) end
  return jobs[id] or nil
end

local function state(id)
  if jobs[id] == nil then look(id) end
  return states[id] or { s = 'r' }
end

-- Writes down that the job or its state is another now.
local function keep(id, j, st)
  jobs[id], states[id], changed[id] = j, st, true
end

-- Writes a job as bytes; nobody has decoded it.
local function put(id, bytes)
  local place = #written
  raws[id], written[place + 1], written[place + 2] = bytes, id, bytes
end

local function add(table, name, field, by)
  local counts = table[name]
  if not counts then counts = {}; table[name] = counts end
  counts[field] = (counts[field] or 0) + by
end

local FIELD = {
  r = 'queued', d = 'delayed', a = 'queued', l = 'running', S = 'succeeded', D = 'dead', C = 'cancelled', E = 'expired',
}

-- The counts of a batch that are gathered.
local function of_batch(batch)
  local counts = batches[batch]
  if not counts then
    counts = {
      total = 0, jobs = 0, queued = 0, delayed = 0, running = 0, succeeded = 0, dead = 0, cancelled = 0, expired = 0,
      input = 0, output = 0, cached = 0, reasoning = 0, cost = 0, cost_known = 0, cost_unknown = 0,
    }
    batches[batch] = counts
  end
  return counts
end

local function tally(batch, field, by)
  local counts = of_batch(batch)
  counts[field] = counts[field] + by
end

local function count(batch, lane, stage, by)
  if batch then tally(batch, FIELD[stage], by) end
  if stage == 'r' then
    add(lanes, lane, 'ready', by)
    woken = woken or by > 0
  elseif stage == 'D' then
    add(lanes, '', 'dead', by)
  end
end

-- input, output, cached and reasoning tokens, nanodollars, 1 when a cost is known, 1 when one is not.
local SPENDING = '<I6I6I6I6i8BB'

local function spend(j, use, sign)
  if not j.batch or not use or use == '' then return end
  local counts = of_batch(j.batch)
  local input, output, cached, reasoning, cost, known, unknown = read(SPENDING, use)
  counts.input, counts.output = counts.input + sign * input, counts.output + sign * output
  counts.cached, counts.reasoning = counts.cached + sign * cached, counts.reasoning + sign * reasoning
  counts.cost, counts.cost_known = counts.cost + sign * cost, counts.cost_known + sign * known
  counts.cost_unknown = counts.cost_unknown + sign * unknown
end

-- Leaves one token for idle workers; `hops` is how often it may be handed on.
local function wake(hops)
  if call('LLEN', P .. ':wake') == 0 then call('RPUSH', P .. ':wake', hops) end
end

local function flush_jobs()
  for id in pairs(changed) do
    local j, place = jobs[id], #written
    local payload = j.text or (j.payload == 'here' and sub(j.raw, j.payload_at)) or ''
    written[place + 1], written[place + 2] = id, encode(j, states[id]) .. payload
  end
  for id, till in pairs(leases_until) do
    if till then kept[#kept + 1], kept[#kept + 2] = int(till), id else ended[#ended + 1] = id end
  end
  call_with(written, 'HSET', JOBS)
  call_with(ended, 'ZREM', P .. ':lease')
  call_with(kept, 'ZADD', P .. ':lease')
  local items = {}
  for id, body in pairs(bodies) do items[#items + 1], items[#items + 2] = id, body end
  call_with(items, 'HSET', P .. ':body')
  changed, written, bodies, leases_until, kept, ended = {}, {}, {}, {}, {}, {}
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
  -- Of a server that came back with less than it had, moments are never the same again.
  if turned then call('HSET', P .. ':c', 'turned', pack('<I8', time[1] * 1000000 + time[2])) end
  woken, turned = false, false
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
