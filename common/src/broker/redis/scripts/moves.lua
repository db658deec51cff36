-- How a job goes from one place to another, how it ends, what a caller is told of it, and how its last trace goes: the
-- only functions that do. Behind `book.lua`, in every script that touches jobs.

-- Takes a job out of where it is. Its entry in a lane's list stays and is void.
local function leave(id, j, st)
  if not (st.s == 'D' and st.dropped) then
    count(j.batch, j.lane, st.s, -1)
  elseif j.batch then
    tally(j.batch, 'dead', -1)
  end
  if st.s == 'd' then
    call('ZREM', P .. ':delayed', id)
    if st.hold and st.hold ~= '' then call('ZREM', P .. ':h:' .. st.hold, id) end
  elseif st.s == 'l' then
    leases_until[id] = false
    -- Its holder has not let go of it.
    if st.lease then turned = true end
  elseif ENDED[st.s] then
    if st.s == 'D' then call('ZREM', P .. ':dead', id) end
    add(lanes, '', 'bytes', -st.size)
    if st.apart then
      bodies[id] = nil
      call('HDEL', P .. ':body', id)
    end
  end
  st.due, st.why, st.hold, st.lease, st.worker, st.leased, st.cancel, st.announced = nil, nil, nil, nil, nil, nil, nil, nil
  st.cursor, st.bcursor, st.ended, st.size, st.code, st.by, st.unrun, st.dropped = nil, nil, nil, nil, nil, nil, nil, nil
  st.body, st.apart, st.later, st.later_why = nil, nil, nil, nil
end

-- A job whose message waits at another broker is in no lane and in no set.
local function make_away(id, j, st, due, why, hold)
  st.s, st.since, st.due, st.why, st.hold = 'a', NOW, due, why, hold
  keep(id, j, st)
  count(j.batch, j.lane, 'a', 1)
end

-- Puts a job that is nowhere into its lane: in front or at the back.
local function make_ready(id, j, st, front, since)
  if j.away then return make_away(id, j, st) end
  st.s, st.since, st.gen = 'r', since, ((st.gen or 0) + 1) % 256
  keep(id, j, st)
  call(front and 'LPUSH' or 'RPUSH', P .. ':r:' .. j.lane, id .. string.char(st.gen))
  count(j.batch, j.lane, 'r', 1)
end

local function make_delayed(id, j, st, due, why, hold)
  if j.away then return make_away(id, j, st, due, why, hold) end
  st.s, st.due, st.why, st.hold = 'd', due, why, hold
  keep(id, j, st)
  call('ZADD', P .. ':delayed', due, id)
  if hold and hold ~= '' then call('ZADD', P .. ':h:' .. hold, due, id) end
  count(j.batch, j.lane, 'd', 1)
  -- Whoever sleeps until a later moment has to learn of an earlier one.
  if call('ZRANGE', P .. ':delayed', 0, 0)[1] == id then woken = true end
end

local function payload_of(id, j)
  if j.payload == true then return call('HGET', P .. ':big', id) or '' end
  return j.payload and (j.text or sub(j.raw, j.payload_at)) or ''
end

local function keep_payload(id, j, st, payload)
  local big = #payload > INLINE
  if big then call('HSET', P .. ':big', id, payload) end
  j.payload, j.text = big or 'here', not big and payload or nil
  keep(id, j, st)
end

local function drop_payload(id, j, st)
  if j.payload == true then call('HDEL', P .. ':big', id) end
  if j.payload then
    j.payload, j.text = false, nil
    keep(id, j, st)
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

-- Ends a job wherever it is; the caller has made sure that it has no success. `how`: s, use, code, and either body and by,
-- or unrun.
local function finish(id, j, st, how)
  leave(id, j, st)
  st.s, st.ended, st.use, st.code, st.by, st.unrun = how.s, NOW, how.use, how.code, how.by, how.unrun
  if how.body and #how.body > INLINE then
    st.apart, bodies[id] = true, how.body
  else
    st.body = how.body
  end
  st.size = how.body and #how.body or 64
  st.since, st.history = nil, how.unrun and st.history or nil
  st.cursor = append(COUNTERS, 'cursor', LOG, id)
  if j.batch then st.bcursor = append(P .. ':b:' .. j.batch, 'cursor', P .. ':bl:' .. j.batch, id) end
  if st.s == 'S' then drop_payload(id, j, st) end
  if st.s == 'D' then call('ZADD', P .. ':dead', st.cursor, id) end
  keep(id, j, st)
  add(lanes, '', 'bytes', st.size)
  count(j.batch, j.lane, st.s, 1)
  spend(j, how.use, 1)
end

-- About how many announcements the stream holds: their readers are a few seconds behind, not a day.
local ANNOUNCED = 10000

local announced = false

-- Tells foreign clients of an end. The first one of a call makes room for all of them. Anybody may write there: what is
-- no stream tells nobody, and stops no step halfway.
local function announce(text)
  if announced then return redis.pcall('XADD', RESULTS, '*', 'result', text) end
  announced = true
  redis.pcall('XADD', RESULTS, 'MAXLEN', '~', ANNOUNCED, '*', 'result', text)
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
  local later, later_why = j.away and st.due, st.why
  finish(id, j, st, { s = letter, use = st.use, code = code, unrun = why })
  -- When its message comes, should the end be taken back.
  if later and later > NOW then st.later, st.later_why = later, later_why end
  -- Whoever carries its message tells of it.
  if j.away then return end
  local hex = string.gsub(id, '.', function(byte) return string.format('%02x', string.byte(byte)) end)
  local name = string.gsub(hex, '^(........)(....)(....)(....)', '%1-%2-%3-%4-')
  local readable, label = pcall(custom_id, sub(j.raw, j.head_at, j.payload_at - 1))
  announce(cjson.encode({
    id = 'batch_req_' .. name, custom_id = readable and label or cjson.null, response = cjson.null,
    error = { code = code, message = detail },
    promptq = {
      job_id = name, batch = j.batch or cjson.null, queue = string.match(P, '^{pq:(.*)}$'), state = state_name,
      epoch = st.epoch or 0,
    },
  }))
end

-- Takes a job from a worker that is gone: one death more, ahead of its lane.
local function give_back(id, j, st)
  -- Of what nobody can read only the lease ends.
  if not j then
    leases_until[id] = false
    return
  end
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

-- What a caller is told of a job: its id, its bytes, with its payload behind them if it asks so, and a record that is not
-- among them, if it asks so.
local function view(id, j, st, with)
  -- Nothing here notices when a message falls due.
  if st.s == 'a' and st.due and st.due <= NOW then st.due, st.hold = nil, nil end
  local body = with.body and st.apart and call('HGET', P .. ':body', id)
  return { id, encode(j, st) .. (with.payload and payload_of(id, j) or ''), body or '' }
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

-- Stops a job for a user: E ended, F flagged, A and its state; nil for an id that was never seen.
local function cancel(id)
  local j = job(id)
  if not j then
    local _, stood = past(id)
    return stood and 'A' .. stood
  end
  local st = state(id)
  if ENDED[st.s] then return 'A' .. st.s end
  if st.s == 'l' then
    st.cancel, turned = true, true
    keep(id, j, st)
    return 'F'
  end
  -- It has been seen as expired since.
  if (st.deadline or j.deadline) <= NOW then
    finish_unrun(id, j, st, 'e')
    return 'AE'
  end
  finish_unrun(id, j, st, 'c')
  return 'E'
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
  raws[id], jobs[id], states[id], changed[id] = false, false, false, nil
  if j.payload == true then call('HDEL', P .. ':big', id) end
  if j.batch then tally(j.batch, 'jobs', -1) end
  local chunk = chunk_of(j.seq)
  if call('HINCRBY', P .. ':alive', chunk, -1) <= 0 then drop_chunk(chunk) end
end

-- Calls `see(id, number)` for what stands in a log from `from` to `to`, a range within one chunk.
local function each(name, from, to, see)
  local offset = (from - 1) % CHUNK
  local ids = call('GETRANGE', name .. ':' .. chunk_of(from), offset * 16, (offset + to - from + 1) * 16 - 1)
  for place = 0, #ids / 16 - 1 do see(string.sub(ids, place * 16 + 1, place * 16 + 16), from + place) end
end
