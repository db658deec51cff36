-- Walks everything a queue holds and says what does not fit together: each job in one place, that place knowing it, every
-- counter equal to what it counts. KEYS[1]: the queue's prefix. Answers a list of faults, none when all is well. Put
-- behind `book.lua`, whose shapes it reads; it calls none of that file's functions that change anything.
local faults = {}

local function fault(...)
  faults[#faults + 1] = string.format(...)
end

local function hex(id)
  return (string.gsub(id, '.', function(byte) return string.format('%02x', string.byte(byte)) end))
end

local function pairs_of(list)
  local found = {}
  for at = 1, #list, 2 do found[list[at]] = list[at + 1] end
  return found
end

local function hash(field)
  return pairs_of(call('HGETALL', P .. field))
end

local function zset(field)
  return pairs_of(call('ZRANGE', P .. field, 0, -1, 'WITHSCORES'))
end

local function same(what, counted, held)
  counted, held = tonumber(counted) or 0, tonumber(held) or 0
  if counted ~= held then fault('%s: the count is %s, there are %s', what, int(counted), int(held)) end
end

local function bump(counts, name, by)
  counts[name] = (counts[name] or 0) + (by or 1)
end

local c, big, body = hash(':c'), hash(':big'), hash(':body')
local delayed, lease, dead, overdue = zset(':delayed'), zset(':lease'), zset(':dead'), zset(':overdue')
local ids = hash(':jobs')
local ready, alive, bytes, dead_count, per_batch = {}, {}, 0, 0, {}
local held, entries = {}, {}

for _, key in ipairs(call('KEYS', P .. ':h:*')) do
  for id, due in pairs(pairs_of(call('ZRANGE', key, 0, -1, 'WITHSCORES'))) do
    held[id .. string.sub(key, #P + 4)] = due
  end
end
for _, key in ipairs(call('KEYS', P .. ':r:*')) do
  local lane = string.sub(key, #P + 4)
  if call('HEXISTS', P .. ':lanes', lane) == 0 then fault('lane %s has a list and no count', lane) end
  for _, entry in ipairs(call('LRANGE', key, 0, -1)) do entries[lane .. '\0' .. entry] = true end
end

-- A place in a set that a job must have exactly when it is in that stage.
local function stands(set, id, wanted, what)
  local score = set[id]
  if wanted and tonumber(score) ~= wanted then
    fault('%s is not where %s has it: %s', hex(id), what, tostring(score))
  end
  set[id] = nil
end

local function in_log(name, number, id, what)
  local at = ((number - 1) % CHUNK) * 16
  local found = call('GETRANGE', name .. ':' .. chunk_of(number), at, at + 15)
  if found ~= id then fault('%s: place %s of %s is not its own', hex(id), int(number), what) end
end

local function ended(id, j, st)
  in_log(P .. ':log', st.cursor, id, 'the log')
  if j.batch then in_log(P .. ':bl:' .. j.batch, st.bcursor, id, 'the log of its batch') end
  bytes = bytes + st.size
  local record = st.apart and body[id] or not st.apart and st.body
  if not st.unrun and not record then fault('%s has no record', hex(id)) end
  if st.unrun and record then fault('%s has a record that nobody wrote', hex(id)) end
  if st.s == 'S' and j.payload then fault('%s succeeded and has its payload still', hex(id)) end
  if st.apart then body[id] = nil end
end

local function waits(id, j, st)
  local first = tonumber(overdue[chunk_of(j.seq)])
  if not first then return fault('%s: nobody looks whether its deadline passes', hex(id)) end
  -- One that runs past its deadline is looked at a minute later.
  local deadline = math.max(st.deadline or j.deadline, NOW + 60000)
  if first > deadline then fault('%s: its deadline is looked at too late', hex(id)) end
end

for id in pairs(ids) do
  local j, st = job(id), state(id)
  local bytes = encode(j, st) .. payload_of(id, j)
  if bytes ~= ids[id] .. (j.payload == true and payload_of(id, j) or '') then
    fault('%s is written in another way than it would be now', hex(id))
  end
  in_log(P .. ':o', j.seq, id, 'the order of arrival')
  bump(alive, chunk_of(j.seq))
  if j.payload == true and not big[id] then fault('%s has lost its payload', hex(id)) end
  if j.payload == true then big[id] = nil end
  if j.batch then
    per_batch[j.batch] = per_batch[j.batch] or { jobs = 0 }
    bump(per_batch[j.batch], 'jobs')
    bump(per_batch[j.batch], FIELD[st.s])
  end
  stands(delayed, id, st.s == 'd' and st.due, ':delayed')
  stands(dead, id, st.s == 'D' and not st.dropped and st.cursor, ':dead')
  if st.s == 'l' and not lease[id] then fault('%s runs without a lease', hex(id)) end
  if st.s == 'l' then lease[id] = nil end
  if st.s == 'd' and st.hold and st.hold ~= '' then stands(held, id .. st.hold, st.due, ':h:' .. st.hold) end
  if st.s == 'r' then
    bump(ready, j.lane)
    if not entries[j.lane .. '\0' .. id .. string.char(st.gen or 0)] then fault('%s is ready and in no list', hex(id)) end
  end
  if st.s == 'D' and not st.dropped then dead_count = dead_count + 1 end
  if ENDED[st.s] then ended(id, j, st) else waits(id, j, st) end
end

for name, left in pairs({
  [':big'] = big, [':body'] = body, [':delayed'] = delayed, [':lease'] = lease,
  [':dead'] = dead, [':h'] = held,
}) do
  for id in pairs(left) do fault('%s is in %s and should not be', hex(id), name) end
end
local lanes_counted = hash(':lanes')
for lane, count_of in pairs(lanes_counted) do same('lane ' .. lane, count_of, ready[lane]) end
for lane, count_of in pairs(ready) do
  if not lanes_counted[lane] then fault('lane %s has %d ready jobs and no count', lane, count_of) end
end
same('dead', c.dead, dead_count)
same('bytes of records', c.bytes, bytes)
local chunks_counted = hash(':alive')
for chunk, count_of in pairs(chunks_counted) do same('chunk ' .. chunk, count_of, alive[chunk]) end
for chunk in pairs(alive) do
  if not chunks_counted[chunk] then fault('chunk %s holds jobs and is not counted', chunk) end
end
for chunk in pairs(overdue) do
  if not chunks_counted[chunk] then fault('chunk %s is gone and is looked at for deadlines', chunk) end
end
for _, key in ipairs(call('KEYS', P .. ':o:*')) do
  if not chunks_counted[string.sub(key, #P + 4)] then fault('%s holds nothing and stays', key) end
end

local batch_count = 0
for _, key in ipairs(call('KEYS', P .. ':b:*')) do
  local name = string.sub(key, #P + 4)
  local found, there = pairs_of(call('HGETALL', key)), per_batch[name] or { jobs = 0 }
  per_batch[name] = nil
  -- A sweep marks those too that were claimed and never used.
  if found.created then batch_count = batch_count + 1 end
  same('jobs of batch ' .. name, found.jobs, there.jobs)
  local total, summed = 0, {}
  for stage, field in pairs(FIELD) do
    -- What waits here and what waits at another broker are counted together.
    if not summed[field] then total = total + (tonumber(found[field]) or 0) end
    summed[field] = true
    -- What was forgotten stays in the counts of ends.
    if not ENDED[stage] then
      same(field .. ' of batch ' .. name, found[field], there[field])
    elseif (tonumber(found[field]) or 0) < (there[field] or 0) then
      same(field .. ' of batch ' .. name, found[field], there[field])
    end
  end
  same('total of batch ' .. name, found.total, total)
end
same('batches', c.batches, batch_count)
for name in pairs(per_batch) do fault('batch %s has jobs and no counts', name) end
return faults
