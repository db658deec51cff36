-- Reads what a queue holds, changing nothing. ARGV[1] says what:
--   known ID…                   of each: '' unknown, or its state and its fingerprint
--   fetch ID…                   why the queue is paused or '', then of each: '' unknown, or its state and view with record
--   payload ID                  the payload, or ''
--   depth                       ready, delayed, running, dead, inbox, when the oldest ready job became so (0: none), pause
--   results BATCH AFTER MOST BYTES   the log of the batch ('': of the queue): the last place looked at, whether there
--                               is more, and place and view of each record found
--   list TO MOST BYTES BATCH CODE LETTERS CHUNK…   of chunks, newest first, from number TO: why the queue is paused or '',
--                               the number to go on from (0: these chunks are done), and of each job its number, its
--                               state, when it came, and its view with record
--   waiting FROM MOST BYTES CHUNK…   of chunks, oldest first, from number FROM: the number to go on from (0: these chunks
--                               are done), and views with payload
--   dead FROM MOST BYTES        views of the dead set with their records, from that rank
local act = {}

function act.known(...)
  local found = {}
  prefetch({ ... })
  for place, id in ipairs({ ... }) do
    local j = job(id)
    if j then
      found[place] = seen_as(j, state(id)) .. j.fp
    else
      local mark, stood = past(id)
      found[place] = mark and stood .. mark or ''
    end
  end
  return found
end

local function pause()
  return call('HGET', P .. ':c', 'paused') or ''
end

function act.fetch(...)
  local found = {}
  prefetch({ ... })
  for place, id in ipairs({ ... }) do
    local j = job(id)
    local st = j and state(id)
    found[place] = j and { seen_as(j, st), view(id, j, st, { body = true }) } or ''
  end
  return { pause(), found }
end

function act.payload(id)
  local j = job(id)
  return j and payload_of(id, j) or ''
end

-- When the oldest ready job of a lane became so: jobs put in front of their lane stand before older ones, so the first
-- LOOK entries are looked at; of many lanes fewer each, LOOKS in all, but never less than two.
local LOOK, LOOKS = 50, 2000

local function oldest_of(lane, most)
  local oldest, ids = nil, {}
  local entries = call('LRANGE', P .. ':r:' .. lane, 0, most - 1)
  for place, entry in ipairs(entries) do ids[place] = string.sub(entry, 1, 16) end
  prefetch(ids)
  for place, entry in ipairs(entries) do
    local id = ids[place]
    local j = job(id)
    local st = j and state(id)
    if j and st.s == 'r' and (st.gen or 0) == string.byte(entry, 17) then
      local since = st.since or j.at
      if not oldest or since < oldest then oldest = since end
    end
  end
  return oldest
end

function act.depth()
  local ready, oldest = 0, 0
  local found = call('HGETALL', P .. ':lanes')
  local most = math.max(2, math.min(LOOK, floor(LOOKS * 2 / #found)))
  for at = 1, #found, 2 do
    ready = ready + tonumber(found[at + 1])
    local since = oldest_of(found[at], most)
    if since and (oldest == 0 or since < oldest) then oldest = since end
  end
  -- Without a worker nobody has promoted what is due, yet it could be leased.
  local due, delayed = call('ZCOUNT', P .. ':delayed', '-inf', int(NOW)), call('ZCARD', P .. ':delayed')
  local first = due > 0 and tonumber(call('ZRANGE', P .. ':delayed', 0, 0, 'WITHSCORES')[2])
  if first and (oldest == 0 or first < oldest) then oldest = first end
  return {
    ready + due, delayed - due, call('ZCARD', P .. ':lease'), tonumber(call('HGET', P .. ':c', 'dead')) or 0,
    call('LLEN', P .. ':inbox'), int(oldest), pause(),
  }
end

-- Adds a row unless the page is full; says whether it did. Whatever its size, the first fits.
local function page(most, bytes)
  local rows = {}
  most, bytes = tonumber(most), tonumber(bytes)
  return rows, function(size, row)
    if #rows >= most or (#rows > 0 and size > bytes) then return false end
    bytes = bytes - size
    rows[#rows + 1] = row()
    return true
  end
end

-- At most so many places of a log are looked at in one call.
local PLACES = 20 * CHUNK

function act.results(batch, after, most, bytes)
  local name, key, place = P .. ':log', P .. ':c', 'cursor'
  if batch ~= '' then name, key, place = P .. ':bl:' .. batch, P .. ':b:' .. batch, 'bcursor' end
  local marks = call('HMGET', key, 'cursor', 'cut')
  local last, at = tonumber(marks[1]) or 0, tonumber(after)
  -- What is cut off the front holds nothing.
  at = math.max(at, math.min((tonumber(marks[2]) or 0) * CHUNK, last))
  local rows, add_row = page(most, bytes)
  local end_of_look, full = math.min(last, at + PLACES), false
  while at < end_of_look and not full do
    local to = math.min(end_of_look, (floor(at / CHUNK) + 1) * CHUNK)
    each(name, at + 1, to, function(id, number)
      if full then return end
      local st = state(id)
      if ENDED[st.s] and st[place] == number then
        full = not add_row(st.size, function() return { int(number), view(id, job(id), st, { body = true }) } end)
      end
      if not full then at = number end
    end)
    if not full then at = to end
  end
  return { int(at), at < last and 1 or 0, rows }
end

-- Calls `see(id, number, job, state)` for the jobs of a chunk within the numbers, oldest or newest first, until it says
-- stop; the number that it stopped at.
local function walk(from, to, newest_first, see)
  if to < from then return nil end
  local ids = {}
  each(P .. ':o', from, to, function(id) ids[#ids + 1] = id end)
  prefetch(ids)
  for step = 1, #ids do
    local place = newest_first and #ids - step + 1 or step
    local id, number = ids[place], from + place - 1
    local j = job(id)
    if j and j.seq == number and see(id, number, j, state(id)) then return number end
  end
end

function act.list(to, most, bytes, batch, code, letters, ...)
  local rows, add_row = page(most, bytes)
  local function see(id, number, j, st)
    if batch ~= '' and j.batch ~= batch then return false end
    -- A success has a key there.
    if code ~= '' and (st.code ~= code or st.s == 'S') then return false end
    local seen = seen_as(j, st)
    if letters ~= '' and not string.find(letters, seen, 1, true) then return false end
    return not add_row(st.size or 0, function()
      return { int(number), seen, int(j.at), view(id, j, st, { body = true }) }
    end)
  end
  for _, chunk in ipairs({ ... }) do
    local from = tonumber(chunk) * CHUNK + 1
    local stopped = walk(from, math.min(from + CHUNK - 1, tonumber(to)), true, see)
    if stopped then return { pause(), int(stopped), rows } end
  end
  return { pause(), '0', rows }
end

function act.waiting(from, most, bytes, ...)
  local rows, add_row = page(most, bytes)
  local function see(id, _, j, st)
    if st.s ~= 'r' and st.s ~= 'd' then return false end
    -- Those only have to be ended yet.
    if (st.deadline or j.deadline) <= NOW or is_cancelled(j.batch, st) then return false end
    local seen = view(id, j, st, { payload = true })
    return not add_row(#seen[2], function() return seen end)
  end
  for _, chunk in ipairs({ ... }) do
    local first = tonumber(chunk) * CHUNK + 1
    local stopped = walk(math.max(first, tonumber(from)), first + CHUNK - 1, false, see)
    if stopped then return { int(stopped), rows } end
  end
  return { '0', rows }
end

function act.dead(from, most, bytes)
  local rows, add_row = page(most, bytes)
  for _, id in ipairs(call('ZRANGE', P .. ':dead', from, from + most - 1)) do
    local j, st = job(id), state(id)
    if j and not add_row(st.size, function() return view(id, j, st, { body = true }) end) then break end
  end
  return rows
end

return act[ARGV[1]](unpack(ARGV, 2))
