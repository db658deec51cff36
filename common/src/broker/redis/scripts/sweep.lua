-- Bounded walks over the jobs of a queue, and what is forgotten. ARGV[1] says what:
--   chunks                     the chunks of :o that hold jobs, in no order
--   stop BATCH                 marks the batch as cancelled; answers its first and latest job, as numbers
--   cancel CHUNK BATCH         ends and flags the batch's jobs of a chunk: how many ended, how many flagged
--   purge CHUNK LAST           ends the waiting jobs of a chunk up to number LAST: how many
--   newest                     the number of the newest job
--   expire                     ends overdue jobs of one chunk: how many, and whether more chunks are overdue
--   age SUCCEEDED DEAD LIFE    buries jobs that ended longer ago than that, in ms, keeping their mark for LIFE: how many,
--                              whether there is more, and the keys of stored outputs
--   room LIMIT LIFE            buries the oldest successes while records take more than LIMIT bytes: as `age`
--   trim AGE BYTES             drops announcements older than AGE ms, and the oldest ones above so many bytes
--   bytes                      of all records
--   batches AGE GRACE NAME…    deletes those of the batches that are empty, older than AGE ms and were already so GRACE ms
--                              ago: their names
--   close                      deletes what is left of a queue that holds nothing; whether it did
local act, STEP = {}, 200

function act.chunks()
  return call('HKEYS', P .. ':alive')
end

function act.newest()
  return call('HGET', P .. ':c', 'seq') or '0'
end

function act.stop(batch)
  local key = P .. ':b:' .. batch
  if call('EXISTS', key) == 0 then return {} end
  call('HSET', key, 'stopped', 1)
  turned = true
  return call('HMGET', key, 'first', 'latest')
end

-- Calls `see(id, job, state)` for the jobs of a chunk up to number `last`.
local function walk(chunk, last, see)
  local from = chunk * CHUNK + 1
  local to = math.min(from + CHUNK - 1, last)
  if to < from then return end
  local ids = {}
  each(P .. ':o', from, to, function(id) ids[#ids + 1] = id end)
  prefetch(ids)
  for place, id in ipairs(ids) do
    local j = job(id)
    if j and j.seq == from + place - 1 then see(id, j, state(id)) end
  end
end

function act.cancel(chunk, batch)
  local ended, flagged = 0, 0
  walk(tonumber(chunk), math.huge, function(id, j, st)
    if j.batch ~= batch or ENDED[st.s] then return end
    if st.s == 'l' then
      st.cancel, turned = true, true
      keep(id, j, st)
      flagged = flagged + 1
    else
      finish_unrun(id, j, st, 'c')
      ended = ended + 1
    end
  end)
  return { ended, flagged }
end

function act.purge(chunk, last)
  local ended = 0
  walk(tonumber(chunk), tonumber(last), function(id, j, st)
    if st.s ~= 'r' and st.s ~= 'd' and st.s ~= 'a' then return end
    finish_unrun(id, j, st, 'p')
    ended = ended + 1
  end)
  return ended
end

function act.expire()
  local chunk = call('ZRANGEBYSCORE', P .. ':overdue', '-inf', int(NOW), 'LIMIT', 0, 1)[1]
  if not chunk then return { 0, 0 } end
  local ended, next_one = 0, nil
  walk(tonumber(chunk), math.huge, function(id, j, st)
    if ENDED[st.s] then return end
    local deadline = st.deadline or j.deadline
    if st.s ~= 'l' and deadline <= NOW then
      finish_unrun(id, j, st, 'e')
      ended = ended + 1
    else
      -- One that runs past its deadline may come back to wait: it is looked at again in a minute.
      deadline = math.max(deadline, NOW + 60000)
      if not next_one or deadline < next_one then next_one = deadline end
    end
  end)
  if next_one then
    call('ZADD', P .. ':overdue', int(next_one), chunk)
  else
    call('ZREM', P .. ':overdue', chunk)
  end
  return { ended, call('ZCOUNT', P .. ':overdue', '-inf', int(NOW)) > 0 and 1 or 0 }
end

-- Forgets an ended job, keeping the mark that its id was used and its share of its batch's counts.
local function bury(id, j, st, life)
  if st.s == 'D' and not st.dropped then
    call('ZREM', P .. ':dead', id)
    add(lanes, '', 'dead', -1)
  end
  call('HINCRBY', P .. ':c', 'bytes', -st.size)
  if st.apart then call('HDEL', P .. ':body', id) end
  local left = life - (NOW - st.ended)
  if left > 0 then call('SET', P .. ':past:' .. id, st.s .. j.fp, 'PX', int(left)) end
  erase(id, j)
end

-- Buries jobs ended as one of `kinds`, from the place in the log that `pointer` names on, for as long as `is_old` says
-- so, at most STEP entries. Adds the keys of stored outputs to `outputs`; answers how many, and whether there is more.
local function bury_from(pointer, kinds, life, outputs, is_old)
  local at = tonumber(call('HGET', P .. ':c', pointer)) or 0
  local last, buried, seen, stopped = tonumber(call('HGET', P .. ':c', 'cursor')) or 0, 0, 0, false
  while at < last and seen < STEP and not stopped do
    local to = math.min(last, (floor(at / CHUNK) + 1) * CHUNK, at + STEP - seen)
    seen = seen + to - at
    each(P .. ':log', at + 1, to, function(id, number)
      if stopped then return end
      local st = state(id)
      if st.cursor == number and kinds[st.s] then
        if not is_old(st) then
          stopped = true
          return
        end
        if st.s == 'S' and st.code and st.code ~= '' then outputs[#outputs + 1] = st.code end
        bury(id, job(id), st, life)
        buried = buried + 1
      end
      at = number
    end)
    if not stopped then at = to end
  end
  call('HSET', P .. ':c', pointer, int(at))
  return buried, not stopped and at < last
end

-- Chunks of the log that neither kind of ended jobs needs any more.
local function cut_log()
  local marks = call('HMGET', P .. ':c', 'old_s', 'old_d', 'cut')
  local done, cut = math.min(tonumber(marks[1]) or 0, tonumber(marks[2]) or 0), tonumber(marks[3]) or 0
  local to = math.min(floor(done / CHUNK), cut + STEP)
  for chunk = cut, to - 1 do call('DEL', P .. ':log:' .. int(chunk)) end
  if to > cut then call('HSET', P .. ':c', 'cut', int(to)) end
end

local SUCCESS, FAILURE = { S = true }, { D = true, C = true, E = true }

function act.age(succeeded, dead, life)
  local outputs, limits = {}, { NOW - tonumber(succeeded), NOW - tonumber(dead) }
  life = tonumber(life)
  local some, more = bury_from('old_s', SUCCESS, life, outputs, function(st) return st.ended <= limits[1] end)
  local others, rest = bury_from('old_d', FAILURE, life, outputs, function(st) return st.ended <= limits[2] end)
  cut_log()
  return { some + others, (more or rest) and 1 or 0, outputs }
end

function act.room(limit, life)
  local outputs = {}
  local function over()
    return (tonumber(call('HGET', P .. ':c', 'bytes')) or 0) > tonumber(limit)
  end
  if not over() then return { 0, 0, outputs } end
  local buried, more = bury_from('old_s', SUCCESS, tonumber(life), outputs, over)
  cut_log()
  return { buried, more and over() and 1 or 0, outputs }
end

function act.trim(age, bytes)
  local key = P .. ':results'
  call('XTRIM', key, 'MINID', '~', int(NOW - tonumber(age)))
  local used = call('MEMORY', 'USAGE', key, 'SAMPLES', 20) or 0
  if used > tonumber(bytes) then call('XTRIM', key, 'MAXLEN', '~', int(floor(call('XLEN', key) * tonumber(bytes) / used))) end
end

function act.bytes()
  return int(tonumber(call('HGET', P .. ':c', 'bytes')) or 0)
end

-- A batch is marked first and deleted later: whoever is just putting a job into it takes the mark away. One that is not
-- here at all has been claimed and not used: that too may be happening now.
function act.batches(age, grace, ...)
  local gone = {}
  for _, name in ipairs({ ... }) do
    local key = P .. ':b:' .. name
    local found = call('HMGET', key, 'jobs', 'created', 'cursor', 'going')
    local going = tonumber(found[4] or '')
    local young = found[2] and tonumber(found[2]) > NOW - tonumber(age)
    if young or (tonumber(found[1]) or 0) > 0 then
      if going then call('HSET', key, 'going', '') end
    elseif not going then
      call('HSET', key, 'going', int(NOW))
    elseif going <= NOW - tonumber(grace) then
      for chunk = 0, floor((tonumber(found[3]) or 0) / CHUNK) do call('DEL', P .. ':bl:' .. name .. ':' .. int(chunk)) end
      call('DEL', key)
      if found[2] then call('HINCRBY', P .. ':c', 'batches', -1) end
      gone[#gone + 1] = name
    end
  end
  return gone
end

function act.close()
  if call('EXISTS', P .. ':jobs', P .. ':inbox') > 0 then return 0 end
  local counters = call('HMGET', P .. ':c', 'paused', 'batches', 'cut', 'cursor', 'seq')
  if counters[1] or (tonumber(counters[2]) or 0) > 0 then return 0 end
  local cut, cursor, seq = tonumber(counters[3]) or 0, tonumber(counters[4]) or 0, tonumber(counters[5]) or 0
  for chunk = cut, floor(cursor / CHUNK) do call('DEL', P .. ':log:' .. int(chunk)) end
  for _, chunk in ipairs(call('HKEYS', P .. ':alive')) do call('DEL', P .. ':o:' .. chunk) end
  if seq > 0 then call('DEL', P .. ':o:' .. chunk_of(seq)) end
  call('DEL', P .. ':c', P .. ':alive', P .. ':overdue', P .. ':wake', P .. ':results')
  return 1
end

local answer = act[ARGV[1]](unpack(ARGV, 2))
flush()
return answer
