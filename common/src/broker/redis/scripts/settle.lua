-- Ends leases. ARGV[1]: of each (HEAD) id, lease, kind, epoch, attempts, wait in ms, and what its second word is: t its
-- announcement, p its payload (it is not here), - nothing. Then two words for each, the first by kind:
--   S D C E: use, code and record (HOW); `code` is the cause's, or of a success the key of its stored output
--   y retry: use and history (PAST)
--   h release: hold key or ''
-- Answers a letter for each: A applied, K a late success kept, S stale.
local HEAD, SIZE, HOW, PAST = '<c16c16c1I4I4I6c1', 48, '<Bc0Hc0', '<Bc0'
-- What stands before `use` in a job that succeeds in its first lease, and how much of its trail that is.
local SIMPLE, SIMPLE_SIZE = '<c1I3I6I6I6I4Bc16BBBI4I4I4I6Bc16I4', 81

-- An end of the same epoch that a late success takes the place of has its history in that success: it counts once.
local function finish_by(id, j, st, by, word)
  if ENDED[st.s] and (st.epoch or 0) == by.epoch then spend(j, st.use, -1) end
  local use, code, from = read(HOW, ARGV[word])
  st.attempts = by.attempts
  finish(id, j, st, { s = by.kind, body = sub(ARGV[word], from), code = code, use = use, by = by.lease })
  if by.second == 't' then announce(ARGV[word + 1]) end
  if st.s ~= 'S' and not j.payload and by.second == 'p' then keep_payload(id, j, st, ARGV[word + 1]) end
  -- Nothing of it can be redriven.
  if st.s == 'D' and not j.payload then
    st.dropped = true
    call('ZREM', P .. ':dead', id)
    add(lanes, '', 'dead', -1)
  end
end

local function give_up(id, j, st, by, word)
  local retry, from = by.kind == 'y', nil
  if retry then
    st.use, from = read(PAST, ARGV[word])
    st.attempts, st.history = by.attempts, sub(ARGV[word], from)
  end
  if is_cancelled(j.batch, st) then return finish_unrun(id, j, st, 'c') end
  leave(id, j, st)
  if by.wait > 0 then
    make_delayed(id, j, st, NOW + by.wait, retry and 'y' or 'h', not retry and ARGV[word] or nil)
  else
    make_ready(id, j, st, not retry, NOW)
  end
end

-- Where the core begins in the bytes of a job that succeeds in its first lease, with its record here and its payload
-- here or in a message; nil for all others.
local function is_simple(bytes, lease, kind, word)
  if kind ~= 'S' or sub(bytes, 1, 1) ~= 'l' or sub(bytes, 5, 20) ~= lease or sub(bytes, 27, 26 + #PLAIN) ~= PLAIN then
    return nil
  end
  local at = 5 + read('<I3', bytes, 2)
  local payload = byte(bytes, at + 3)
  return (payload == 1 or payload == AWAY) and #ARGV[word] <= INLINE and at
end

-- As `finish`, of the bytes of a simple job.
local function finish_simple(id, bytes, at, lease, attempts, word)
  local how, length, batch = ARGV[word], read('<I3', bytes, at), read('<Hc0', bytes, at + 21)
  local j = { batch = batch ~= '' and batch }
  local cursor, bcursor = append(COUNTERS, 'cursor', LOG, id), 0
  if j.batch then
    bcursor = append(P .. ':b:' .. batch, 'cursor', P .. ':bl:' .. batch, id)
    local counts = of_batch(batch)
    counts.running, counts.succeeded = counts.running - 1, counts.succeeded + 1
    spend(j, read(PAST, how), 1)
  end
  local length_of_trail = SIMPLE_SIZE + #how
  local front = pack(
    SIMPLE, 'S', length_of_trail, cursor, bcursor, NOW, #how, 16, lease, 0, 0, 0, 0, attempts, 0, 0, 16, lease, 0)
  local payload = byte(bytes, at + 3) == AWAY and '\4' or '\0'
  put(id, front .. how .. sub(bytes, at, at + 2) .. payload .. sub(bytes, at + 4, at + 2 + length))
  ended[#ended + 1] = id
  add(lanes, '', 'bytes', #how)
end

local function settle(bytes, at, word)
  local id, lease, kind, epoch, attempts, wait, second = read(HEAD, ARGV[1], at)
  local core = bytes and raws[id] == nil and is_simple(bytes, lease, kind, word)
  if core then
    finish_simple(id, bytes, core, lease, attempts, word)
    if second == 't' then announce(ARGV[word + 1]) end
    return 'A'
  end
  remember(id, bytes)
  local j, st = job(id), state(id)
  -- A verdict on what nobody can read is an error of its own: nobody is to think that it came too late.
  if not j and bytes then error('a job cannot be read') end
  if not j then return 'S' end
  local by = { lease = lease, kind = kind, epoch = epoch, attempts = attempts, wait = wait, second = second }
  if st.s == 'l' and st.lease == lease then
    st.settled, st.lease = lease, nil
    if ENDED[kind] then finish_by(id, j, st, by, word) else give_up(id, j, st, by, word) end
    return 'A'
  end
  local ours = st.settled == lease
  if kind == 'S' and st.s ~= 'S' then
    finish_by(id, j, st, by, word)
    return 'K'
  end
  if kind == 'S' and not ours and st.by == lease then return 'K' end
  return ours and 'A' or 'S'
end

local ids, answers = {}, {}
for at = 1, #ARGV[1], SIZE do ids[#ids + 1] = sub(ARGV[1], at, at + 15) end
local found = call('HMGET', JOBS, unpack(ids))
for place, bytes in ipairs(found) do answers[place] = settle(bytes, (place - 1) * SIZE + 1, place * 2) end
flush()
return table.concat(answers)
