-- What a queue holds in Redis, and the only functions that move a job from one place to another. Put before every
-- script that touches jobs. KEYS[1] is the queue's prefix `{pq:<queue>}`, so that all its keys share one slot.
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

-- Takes a job out of where it is. Its entry in a lane's list stays and is void.
local function leave(id, j, st)
  if not (st.s == 'D' and st.dropped) then
    count(j, st.s, -1)
  elseif j.batch then
    add(batches, j.batch, 'dead', -1)
  end
  if st.s == 'd' then
    call('ZREM', P .. ':delayed', id)
    if st.hold and st.hold ~= '' then call('ZREM', P .. ':h:' .. st.hold, id) end
  elseif st.s == 'l' then
    leases_until[id] = false
  elseif ENDED[st.s] then
    if st.s == 'D' then call('ZREM', P .. ':dead', id) end
    if st.size then add(lanes, '', 'bytes', -st.size) end
    bodies[id] = nil
    call('HDEL', P .. ':body', id)
  end
  st.due, st.why, st.hold, st.lease, st.worker, st.leased, st.cancel, st.batch = nil, nil, nil, nil, nil, nil, nil, nil
  st.cursor, st.bcursor, st.ended, st.size, st.code, st.by, st.unrun, st.dropped = nil, nil, nil, nil, nil, nil, nil, nil
  st.announced = nil
end

-- A job whose message waits at another broker is in no lane and in no set.
local function make_away(id, j, st, due, why, hold)
  st.s, st.since, st.due, st.why, st.hold = 'a', NOW, due, why, hold
  keep_state(id, st)
  count(j, 'a', 1)
end

-- Puts a job that is nowhere into its lane: in front or at the back.
local function make_ready(id, j, st, front, since)
  if j.away then return make_away(id, j, st) end
  st.s, st.since, st.gen = 'r', since, ((st.gen or 0) + 1) % 256
  keep_state(id, st)
  call(front and 'LPUSH' or 'RPUSH', P .. ':r:' .. j.lane, id .. string.char(st.gen))
  count(j, 'r', 1)
end

local function make_delayed(id, j, st, due, why, hold)
  if j.away then return make_away(id, j, st, due, why, hold) end
  st.s, st.due, st.why, st.hold = 'd', due, why, hold
  keep_state(id, st)
  call('ZADD', P .. ':delayed', due, id)
  if hold and hold ~= '' then call('ZADD', P .. ':h:' .. hold, due, id) end
  count(j, 'd', 1)
  -- Whoever sleeps until a later moment has to learn of an earlier one.
  if call('ZRANGE', P .. ':delayed', 0, 0)[1] == id then woken = true end
end

local function payload_of(id, j)
  if j.payload == true then return call('HGET', P .. ':big', id) or '' end
  return j.payload or ''
end

local function keep_payload(id, j, payload)
  local big = #payload > INLINE
  if big then call('HSET', P .. ':big', id, payload) end
  j.payload = big or payload
  keep_job(id, j)
end

local function drop_payload(id, j)
  if j.payload == true then call('HDEL', P .. ':big', id) end
  if j.payload then
    j.payload = false
    keep_job(id, j)
  end
end

local stopped = {}

-- Whether the batch (false: none) was cancelled as a whole.
local function is_stopped(batch)
  if not batch then return false end
  if stopped[batch] == nil then stopped[batch] = call('HGET', P .. ':b:' .. batch, 'stopped') == '1' end
  return stopped[batch]
end

-- Whether a user stopped the job: by itself, or with its batch. One redriven from a cancelled batch runs all the same:
-- whoever redrove it asked for that.
local function is_cancelled(batch, st)
  return st.cancel or ((st.epoch or 0) == 0 and not st.spared and is_stopped(batch))
end

-- Ends a job wherever it is; the caller has made sure that it has no success. `how`: s, ended, use, and either body and
-- code and by, or unrun.
local function finish(id, j, st, how)
  leave(id, j, st)
  bodies[id] = how.body
  st.s, st.ended, st.use, st.code, st.by, st.unrun = how.s, how.ended, how.use, how.code, how.by, how.unrun
  st.size = how.body and #how.body or 64
  st.since, st.history = nil, how.unrun and st.history or nil
  st.cursor = append(P .. ':c', 'cursor', P .. ':log', id)
  if j.batch then st.bcursor = append(P .. ':b:' .. j.batch, 'cursor', P .. ':bl:' .. j.batch, id) end
  if st.s == 'S' then drop_payload(id, j) end
  if st.s == 'D' then call('ZADD', P .. ':dead', st.cursor, id) end
  keep_state(id, st)
  add(lanes, '', 'bytes', st.size)
  count(j, st.s, 1)
  spend(j, how.use, 1)
end

-- About how many announcements the stream holds: their readers are a few seconds behind, not a day.
local ANNOUNCED = 10000

local announced = false

-- Tells foreign clients of an end. The first one of a call makes room for all of them. Anybody may write there: what is
-- no stream tells nobody, and stops no step halfway.
local function announce(text)
  if announced then return redis.pcall('XADD', P .. ':results', '*', 'result', text) end
  announced = true
  redis.pcall('XADD', P .. ':results', 'MAXLEN', '~', ANNOUNCED, '*', 'result', text)
end

-- The submitter's name for a job, out of what scripts do not read otherwise: `Rest` in `wire.rs` behind a version, whose
-- third place is the row and whose fourth is the name.
local function custom_id(head)
  local lengths = { [251] = 2, [252] = 4, [253] = 8 }
  local function number(at)
    local first = string.byte(head, at)
    local value, length = first, lengths[first] or 0
    if length > 0 then
      value = 0
      for place = length, 1, -1 do value = value * 256 + string.byte(head, at + place) end
    end
    return value, at + 1 + length
  end
  local at = string.byte(head, 4) == 1 and select(2, number(5)) or 5
  if string.byte(head, at) ~= 1 then return cjson.null end
  local length, from = number(at + 1)
  return string.sub(head, from, from + length - 1)
end

local UNRUN = {
  c = { 'C', 'cancelled_by_user', 'cancelled by a user', 'cancelled' },
  p = { 'C', 'purged', 'its queue was purged', 'cancelled' },
  e = { 'E', 'deadline_passed', 'its deadline passed before it ran', 'expired' },
}

-- Ends a job that no worker ends. Its announcement holds what a script knows: the members that name it and say why.
local function finish_unrun(id, j, st, why)
  local letter, code, detail, state_name = unpack(UNRUN[why])
  finish(id, j, st, { s = letter, ended = NOW, use = st.use, code = code, unrun = why })
  -- Whoever carries its message tells of it.
  if j.away then return end
  local hex = string.gsub(id, '.', function(byte) return string.format('%02x', string.byte(byte)) end)
  local name = string.gsub(hex, '^(........)(....)(....)(....)', '%1-%2-%3-%4-')
  announce(cjson.encode({
    id = 'batch_req_' .. name, custom_id = custom_id(j.head), response = cjson.null,
    error = { code = code, message = detail },
    promptq = {
      job_id = name, batch = j.batch or cjson.null, queue = string.match(P, '^{pq:(.*)}$'), state = state_name,
      epoch = st.epoch or 0,
    },
  }))
end

-- Takes a job from a worker that is gone: one death more, ahead of its lane.
local function give_back(id, j, st)
  local cancelled = is_cancelled(j.batch, st)
  st.deaths = (st.deaths or 0) + 1
  if cancelled then return finish_unrun(id, j, st, 'c') end
  leave(id, j, st)
  make_ready(id, j, st, true, NOW)
end

-- The batch's hash, made when missing.
local function ensure_batch(batch)
  local key = P .. ':b:' .. batch
  if call('HSETNX', key, 'created', NOW) == 1 then
    call('HSET', key, 'first', (tonumber(call('HGET', P .. ':c', 'seq')) or 0) + 1)
    call('HINCRBY', P .. ':c', 'batches', 1)
  end
  return key
end

-- What a caller is told of a job: fixed places, '' for what is not there.
local function view(id, j, st, with)
  -- Nothing here notices when a message falls due.
  local delayed = st.due and (st.s == 'd' or st.due > NOW)
  local body = with.body and ENDED[st.s] and call('HGET', P .. ':body', id)
  return {
    id, j.lane, j.batch or '', st.deadline or j.deadline, j.head, st.s, st.epoch or 0, st.attempts or 0, st.deaths or 0,
    st.history or '', delayed and st.due or 0, st.why or '', delayed and st.hold or '', st.worker or '',
    st.leased or 0, st.cancel and 1 or 0, st.dropped and 1 or 0, j.payload and 1 or 0, st.ended or 0, st.unrun or '', body or '',
    with.payload and payload_of(id, j) or '', st.lease or '', st.since or j.at, j.fp, j.at - j.age,
  }
end

-- A state's letter as people see it: s scheduled, q queued, l running, y retrying, S D C E.
local function seen_as(j, st)
  if ENDED[st.s] or st.s == 'l' then return st.s end
  if (st.deadline or j.deadline) <= NOW then return 'E' end
  -- What is due waits only for a worker to see it.
  if st.due and st.why ~= 'h' and st.due > NOW then return st.why end
  return 'q'
end

-- What is left of a used id: fingerprint, end, nil when there is nothing.
local function past(id)
  local bytes = call('GET', P .. ':past:' .. id)
  if bytes then return string.sub(bytes, 2), string.sub(bytes, 1, 1) end
end

-- Forgets a chunk of numbers that no job has any more; the newest stays, for jobs still to come.
local function drop_chunk(chunk)
  if chunk == chunk_of(tonumber(call('HGET', P .. ':c', 'seq'))) then return end
  call('HDEL', P .. ':alive', chunk)
  call('ZREM', P .. ':overdue', chunk)
  call('DEL', P .. ':o:' .. chunk)
end

-- Removes every trace of a job that is nowhere.
local function erase(id, j)
  call('HDEL', P .. ':jobs', id)
  call('HDEL', P .. ':state', id)
  jobs[id], states[id], changed_jobs[id], changed_states[id] = false, false, nil, nil
  if j.payload == true then call('HDEL', P .. ':big', id) end
  if j.batch then add(batches, j.batch, 'jobs', -1) end
  local chunk = chunk_of(j.seq)
  if call('HINCRBY', P .. ':alive', chunk, -1) <= 0 then drop_chunk(chunk) end
end

-- Calls `see(id, number)` for what stands in a log from `from` to `to`, a range within one chunk.
local function each(name, from, to, see)
  local offset = (from - 1) % CHUNK
  local ids = call('GETRANGE', name .. ':' .. chunk_of(from), offset * 16, (offset + to - from + 1) * 16 - 1)
  for place = 0, #ids / 16 - 1 do see(string.sub(ids, place * 16 + 1, place * 16 + 16), from + place) end
end
