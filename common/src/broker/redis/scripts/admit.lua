-- Putting jobs in, between the book and every script that does. A job is WORDS arguments: id, fingerprint, deadline,
-- created, not before (0: at once), lane, batch ('' none), head, payload, epoch, attempts, history, use. Each is answered
-- by N new, K known and its state, or C conflict.
local WORDS = 13
local lists, chunks, firsts, marks = {}, {}, {}, {}

local function place(id, j, due, attempts)
  local st = states[id] or { s = 'r' }
  if due > NOW then return make_delayed(id, j, st, due, attempts > 0 and 'y' or 's') end
  if j.away then return make_away(id, j, st) end
  local list = lists[j.lane] or {}
  lists[j.lane], list[#list + 1] = list, id .. '\0'
  count(j, 'r', 1)
end

-- Counts the job in the chunk of its number, with the earliest deadline there.
local function enter(seq, deadline)
  local chunk = chunk_of(seq)
  chunks[chunk] = (chunks[chunk] or 0) + 1
  firsts[chunk] = math.min(firsts[chunk] or deadline, deadline)
end

-- Puts the job at ARGV[at] in, or finds that it is known. `dead`: nil, or how it has ended already (see `finish`);
-- `away`: true when it comes as a message, which has the payload.
local function admit(at, dead, away)
  local id, fp, deadline = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2])
  local created, due, lane, batch = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4]), ARGV[at + 5], ARGV[at + 6]
  local payload, epoch, attempts = ARGV[at + 8], tonumber(ARGV[at + 9]), tonumber(ARGV[at + 10])
  local known = job(id)
  if known then return known.fp == fp and 'K' .. seen_as(known, state(id)) or 'C' end
  local mark = marks[id]
  if mark then return string.sub(mark, 2) == fp and 'K' .. string.sub(mark, 1, 1) or 'C' end
  if batch ~= '' and not batches[batch] then ensure_batch(batch) end
  local seq = append(P .. ':c', 'seq', P .. ':o', id)
  local j = {
    fp = fp, seq = seq, at = NOW, deadline = deadline, age = NOW - created, lane = lane, batch = batch ~= '' and batch,
    head = ARGV[at + 7], payload = false, away = away,
  }
  if away then keep_job(id, j) else keep_payload(id, j, payload) end
  enter(seq, deadline)
  if j.batch then
    add(batches, batch, 'total', 1)
    add(batches, batch, 'jobs', 1)
    batches[batch].latest = seq
  end
  if epoch > 0 or attempts > 0 then
    local history = ARGV[at + 11]
    keep_state(id, {
      s = 'r', epoch = epoch, attempts = attempts, history = history ~= '' and history or nil, use = parse_use(ARGV[at + 12]),
    })
  end
  if dead then
    count(j, 'r', 1)
    finish(id, j, states[id] or { s = 'r' }, dead)
  else
    place(id, j, due, attempts)
  end
  return 'N'
end

-- Reads at once what is known of jobs that will be admitted one by one.
local function look_up(ids)
  if #ids == 0 then return end
  local names = {}
  for number, id in ipairs(ids) do names[number] = P .. ':past:' .. id end
  prefetch(':jobs', jobs, ids)
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
    call('HINCRBY', P .. ':alive', chunk, more)
    call('ZADD', P .. ':overdue', 'LT', firsts[chunk], chunk)
  end
  -- A chunk is not dropped while it is the newest, however empty.
  for chunk in pairs(chunks) do
    local older = int(tonumber(chunk) - 1)
    if call('HGET', P .. ':alive', older) == '0' then drop_chunk(older) end
  end
end
