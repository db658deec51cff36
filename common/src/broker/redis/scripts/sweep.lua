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
--   batches AGE NAME…          deletes those of the batches that are empty and older than AGE ms: their names
--   empty                      whether the queue holds nothing at all
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
  return call('HMGET', key, 'first', 'latest')
end

-- Calls `see(id, job, state)` for the jobs of a chunk up to number `last`.
local function walk(chunk, last, see)
  local from = chunk * CHUNK + 1
  local to = math.min(from + CHUNK - 1, last)
  if to < from then return end
  each(P .. ':o', from, to, function(id)
    local j = job(id)
    if j then see(id, j, state(id)) end
  end)
end

function act.cancel(chunk, batch)
  local ended, flagged = 0, 0
  walk(tonumber(chunk), math.huge, function(id, j, st)
    if j.batch ~= batch or ENDED[st.s] then return end
    if st.s == 'l' then
      st.cancel = true
      keep_state(id, st)
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
    if st.s ~= 'r' and st.s ~= 'd' then return end
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
  call('HDEL', P .. ':body', id)
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

-- `names` are the queue's oldest batches.
function act.batches(before, ...)
  local gone = {}
  for _, name in ipairs({ ... }) do
    local key = P .. ':b:' .. name
    local found = call('HMGET', key, 'jobs', 'created', 'cursor')
    if found[2] and (tonumber(found[1]) or 0) == 0 and tonumber(found[2]) <= NOW - tonumber(before) then
      for chunk = 0, floor((tonumber(found[3]) or 0) / CHUNK) do call('DEL', P .. ':bl:' .. name .. ':' .. int(chunk)) end
      call('DEL', key)
      gone[#gone + 1] = name
    end
  end
  return gone
end

function act.empty()
  if call('EXISTS', P .. ':jobs', P .. ':inbox') > 0 or call('HEXISTS', P .. ':c', 'paused') == 1 then return 0 end
  return 1
end

local answer = act[ARGV[1]](unpack(ARGV, 2))
flush()
return answer
