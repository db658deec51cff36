-- Reads what a queue holds, changing nothing. ARGV[1] says what:
--   fetch BODY ID…              of each: '' unknown, fingerprint and end of a used id, or its view (with its record)
--   payload ID                  the payload, or ''
--   depth                       ready, delayed, running, dead, inbox, when the oldest ready job became so (0: none), pause
--   batch NAME                  the batch's hash, or nothing
--   results BATCH AFTER MOST BYTES   the log of the batch ('': of the queue): the last place looked at, whether there
--                               is more, and place and view of each record found
--   list CHUNK TO MOST BYTES BATCH CODE LETTERS   of a chunk, newest first, from number TO: number and view
--   waiting CHUNK FROM MOST BYTES   of a chunk, oldest first, from number FROM: number and view with payload
--   dead FROM MOST              views of the dead set with their records, from that rank
local act = {}

function act.fetch(body, ...)
  local found = {}
  for place, id in ipairs({ ... }) do
    local j = job(id)
    if j then
      local st = state(id)
      found[place] = { seen_as(j, st), view(id, j, st, { body = body == '1' }) }
    else
      local mark, stood = past(id)
      found[place] = mark and { stood, mark } or ''
    end
  end
  return found
end

function act.payload(id)
  local j = job(id)
  return j and payload_of(id, j) or ''
end

-- When the oldest ready job of a lane became so: jobs put in front of their lane stand before older ones, so the first
-- LOOK entries are looked at.
local LOOK = 50

local function oldest_of(lane)
  local oldest = nil
  for _, entry in ipairs(call('LRANGE', P .. ':r:' .. lane, 0, LOOK - 1)) do
    local id = string.sub(entry, 1, 16)
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
  for at = 1, #found, 2 do
    ready = ready + tonumber(found[at + 1])
    local since = oldest_of(found[at])
    if since and (oldest == 0 or since < oldest) then oldest = since end
  end
  -- Without a worker nobody has promoted what is due, yet it could be leased.
  local due, delayed = call('ZCOUNT', P .. ':delayed', '-inf', int(NOW)), call('ZCARD', P .. ':delayed')
  local first = due > 0 and tonumber(call('ZRANGE', P .. ':delayed', 0, 0, 'WITHSCORES')[2])
  if first and (oldest == 0 or first < oldest) then oldest = first end
  local kept = call('HMGET', P .. ':c', 'dead', 'paused')
  return {
    ready + due, delayed - due, call('ZCARD', P .. ':lease'), tonumber(kept[1]) or 0, call('LLEN', P .. ':inbox'),
    int(oldest), kept[2] or '',
  }
end

function act.batch(name)
  return call('HGETALL', P .. ':b:' .. name)
end

function act.results(batch, after, most, bytes)
  local name, key, place = P .. ':log', P .. ':c', 'cursor'
  if batch ~= '' then name, key, place = P .. ':bl:' .. batch, P .. ':b:' .. batch, 'bcursor' end
  local at, last, rows, looked = tonumber(after), tonumber(call('HGET', key, 'cursor')) or 0, {}, 0
  most, bytes = tonumber(most), tonumber(bytes)
  while at < last and #rows < most and bytes > 0 and looked < 5000 do
    local to = math.min(last, (floor(at / CHUNK) + 1) * CHUNK)
    local full = false
    each(name, at + 1, to, function(id, number)
      if full then return end
      local st = state(id)
      if ENDED[st.s] and st[place] == number then
        local seen = view(id, job(id), st, { body = true })
        rows[#rows + 1] = { int(number), seen }
        bytes = bytes - #seen[21]
        full = #rows >= most or bytes <= 0
      end
      at = number
    end)
    looked = looked + CHUNK
    if not full then at = to end
  end
  return { int(at), at < last and 1 or 0, rows }
end

-- Calls `see(id, number, job, state)` for the jobs of a chunk within the numbers, oldest or newest first, until it says stop.
local function walk(from, to, newest_first, see)
  local ids = {}
  each(P .. ':o', from, to, function(id, number) ids[#ids + 1] = { id, number } end)
  for place = 1, #ids do
    local id, number = unpack(ids[newest_first and #ids - place + 1 or place])
    local j = job(id)
    if j and j.seq == number and see(id, number, j, state(id)) then return end
  end
end

function act.list(chunk, to, most, bytes, batch, code, letters)
  local rows, from = {}, tonumber(chunk) * CHUNK + 1
  most, bytes = tonumber(most), tonumber(bytes)
  walk(from, math.min(from + CHUNK - 1, tonumber(to)), true, function(id, number, j, st)
    local fits = (batch == '' or j.batch == batch) and (code == '' or st.code == code)
    if not fits or (letters ~= '' and not string.find(letters, seen_as(j, st), 1, true)) then return false end
    local seen = view(id, j, st, { body = true })
    rows[#rows + 1] = { int(number), seen_as(j, st), seen }
    bytes = bytes - #seen[21]
    return #rows >= most or bytes <= 0
  end)
  return rows
end

function act.waiting(chunk, from, most, bytes)
  local rows, first = {}, tonumber(chunk) * CHUNK + 1
  most, bytes = tonumber(most), tonumber(bytes)
  walk(math.max(first, tonumber(from)), first + CHUNK - 1, false, function(id, number, j, st)
    if st.s ~= 'r' and st.s ~= 'd' then return false end
    local seen = view(id, j, st, { payload = true })
    rows[#rows + 1] = { int(number), seen }
    bytes = bytes - #seen[22]
    return #rows >= most or bytes <= 0
  end)
  return rows
end

function act.dead(from, most)
  local rows = {}
  for _, id in ipairs(call('ZRANGE', P .. ':dead', from, from + most - 1)) do
    rows[#rows + 1] = view(id, job(id), state(id), { body = true })
  end
  return rows
end

return act[ARGV[1]](unpack(ARGV, 2))
