-- Putting jobs in, between the book and every script that does. A job is WORDS arguments: JOB, which is its id, not
-- before (0: at once), the length of its item and head, epoch, attempts, history, use; then item, head and payload. Each
-- is answered by N new, K known and its state, or C conflict.
local WORDS, JOB = 2, '<c16I6I3I4I4I4c0Bc0'
local ORDER = P .. ':o'
local lists, chunks, firsts, marks = {}, {}, {}, {}

-- Counts the job in the chunk of its number, with the earliest deadline there.
local function enter(seq, deadline)
  local chunk = floor((seq - 1) / CHUNK)
  chunks[chunk] = (chunks[chunk] or 0) + 1
  if not firsts[chunk] or deadline < firsts[chunk] then firsts[chunk] = deadline end
end

-- Puts it at the back of its lane.
local function line_up(id, lane, batch)
  local list = lists[lane]
  if not list then
    list = {}
    lists[lane] = list
  end
  list[#list + 1] = id .. '\0'
  count(batch ~= '' and batch, lane, 'r', 1)
end

-- One that is not simply ready. `way`: dead, away, due.
local function place(id, way, epoch, attempts, history, use)
  local j, st = job(id), state(id)
  st.epoch, st.attempts, st.history, st.use = epoch, attempts, some(history), some(use)
  keep(id, j, st)
  if way.dead then
    count(j.batch, j.lane, 'r', 1)
    finish(id, j, st, way.dead)
  elseif way.due > NOW then
    make_delayed(id, j, st, way.due, attempts > 0 and 'y' or 's')
  elseif way.away then
    make_away(id, j, st)
  else
    line_up(id, j.lane, j.batch or '')
  end
end

-- Puts the job at ARGV[at] in, or finds that it is known. `dead`: nil, or how it has ended already (see `finish`);
-- `away`: true when it comes as a message, which has the payload.
local function admit(at, dead, away)
  local id, due, length, epoch, attempts, history, use = read(JOB, ARGV[at])
  local item = ARGV[at + 1]
  local deadline, batch, lane, _, fp = read('<' .. ITEM, item)
  local known = raws[id] ~= false and job(id)
  if known then return known.fp == fp and 'K' .. seen_as(known, state(id)) or 'C' end
  -- Whether it has run, nobody can read.
  if raws[id] then return 'C' end
  local mark = marks[id]
  if mark then return sub(mark, 2) == fp and 'K' .. sub(mark, 1, 1) or 'C' end
  if batch ~= '' and not batches[batch] then ensure_batch(batch) end
  local seq = append(COUNTERS, 'seq', ORDER, id)
  local payload = away and AWAY or 1
  if #item - length > INLINE then
    payload = 2
    call('HSET', P .. ':big', id, sub(item, length + 1))
    item = sub(item, 1, length)
  end
  enter(seq, deadline)
  if batch ~= '' then
    tally(batch, 'total', 1)
    tally(batch, 'jobs', 1)
    batches[batch].latest = seq
  end
  jobs[id], states[id] = nil, nil
  put(id, FRESH .. pack(CORE, 12 + length, payload, seq, NOW) .. item)
  if dead or away or due > NOW or epoch > 0 or attempts > 0 then
    place(id, { dead = dead, away = away, due = due }, epoch, attempts, history, use)
  else
    line_up(id, lane, batch)
  end
  return 'N'
end

-- Reads at once what is known of jobs that will be admitted one by one.
local function look_up(ids)
  if #ids == 0 then return end
  local names, prefix = {}, P .. ':past:'
  for number, id in ipairs(ids) do names[number] = prefix .. id end
  prefetch(ids)
  for number, mark in ipairs(call('MGET', unpack(names))) do marks[ids[number]] = mark end
end

-- Writes what was gathered while jobs were admitted. The last thing that changes jobs.
local function flush_admitted()
  for lane, list in pairs(lists) do call_with(list, 'RPUSH', P .. ':r:' .. lane) end
  for batch, counts in pairs(batches) do
    if counts.latest then call('HSET', P .. ':b:' .. batch, 'latest', counts.latest, 'going', '') end
    counts.latest = 0
  end
  flush()
  for chunk, more in pairs(chunks) do
    call('HINCRBY', P .. ':alive', int(chunk), more)
    call('ZADD', P .. ':overdue', 'LT', int(firsts[chunk]), int(chunk))
  end
  -- A chunk is not dropped while it is the newest, however empty.
  for chunk in pairs(chunks) do
    local older = int(chunk - 1)
    if call('HGET', P .. ':alive', older) == '0' then drop_chunk(older) end
  end
end
