-- Leases jobs: what is due comes back, what is over is ended, and the rest goes to the caller, lane by lane.
-- ARGV: worker, lease length in ms, lease ids (16 bytes each), hops of the token that woke the caller (0: none),
-- most bytes of payload, then lane and how many from it, in turn. Answers: now, reason of a pause or '', the next moment
-- something is due (0: none), length of the inbox, lanes with their ready jobs, and the leased jobs.
local CHORES, STALE = 200, 500

local function promote()
  local due = call('ZRANGEBYSCORE', P .. ':delayed', '-inf', NOW, 'LIMIT', 0, CHORES)
  local front = {}
  for _, id in ipairs(due) do
    local j, st = job(id), state(id)
    if st.why == 'h' then
      front[#front + 1] = { id, j, st }
    else
      local since = st.due
      leave(id, j, st)
      make_ready(id, j, st, false, since)
    end
  end
  for place = #front, 1, -1 do
    local id, j, st = front[place][1], front[place][2], front[place][3]
    local since = st.due
    leave(id, j, st)
    make_ready(id, j, st, true, since)
  end
end

local function reclaim()
  local lost = call('ZRANGEBYSCORE', P .. ':lease', '-inf', NOW, 'LIMIT', 0, CHORES)
  for place = #lost, 1, -1 do give_back(lost[place], job(lost[place]), state(lost[place])) end
end

local function payload_size(id, j)
  return j.payload == true and call('HSTRLEN', P .. ':big', id) or #(j.payload or '')
end

local worker, length, leases, hops, room = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local taken = {}

-- The job behind an entry of a lane, if the entry is not void.
local function ready(entry)
  local id = string.sub(entry, 1, 16)
  local j = job(id)
  if not j then return nil end
  local st = state(id)
  if st.s == 'r' and (st.gen or 0) == string.byte(entry, 17) then return id, j, st end
end

local function grant(id, j, st)
  count(j, 'r', -1)
  st.s, st.lease, st.worker, st.leased = 'l', string.sub(leases, #taken * 16 + 1, #taken * 16 + 16), worker, NOW
  st.batch = j.batch or nil
  keep_state(id, st)
  leases_until[id] = NOW + length
  count(j, 'l', 1)
  taken[#taken + 1] = view(id, j, st, { payload = true })
end

local function take(lane, most)
  local key, had, looked = P .. ':r:' .. lane, 0, 0
  while had < most and looked < most + STALE do
    local entries = call('LPOP', key, most - had)
    if not entries then return end
    looked = looked + #entries
    local ids = {}
    for place, entry in ipairs(entries) do ids[place] = string.sub(entry, 1, 16) end
    prefetch(':jobs', jobs, ids)
    prefetch(':state', states, ids)
    for place, entry in ipairs(entries) do
      local id, j, st = ready(entry)
      local size = id and payload_size(id, j) or 0
      if size > room and #taken > 0 then
        for back = #entries, place, -1 do call('LPUSH', key, entries[back]) end
        room = 0
        return
      elseif not id then
        -- Void: the job went another way.
      elseif (st.deadline or j.deadline) <= NOW then
        finish_unrun(id, j, st, 'e')
      elseif is_cancelled(j.batch, st) then
        finish_unrun(id, j, st, 'c')
      else
        grant(id, j, st)
        had, room = had + 1, room - size
      end
    end
  end
end

-- When something of that is due; 0: never.
local function first_due()
  local due = 0
  for _, set in ipairs({ ':delayed', ':lease' }) do
    local first = tonumber(call('ZRANGE', P .. set, 0, 0, 'WITHSCORES')[2])
    if first and (due == 0 or first < due) then due = first end
  end
  return due
end

local due = first_due()
local is_due = due > 0 and due <= NOW
if is_due then
  promote()
  reclaim()
end
local paused = call('HGET', P .. ':c', 'paused') or ''
if paused == '' then
  for at = 6, #ARGV, 2 do take(ARGV[at], tonumber(ARGV[at + 1])) end
end
woken = false
flush()
local open = call('HGETALL', P .. ':lanes')
if #open > 0 and paused == '' then
  -- Somebody else may take what this caller could not; tokens are handed on a few times only, or idle workers to whom
  -- all lanes are closed would wake each other for ever.
  if #taken > 0 then wake(8) elseif hops > 1 then wake(hops - 1) end
end
if is_due or #taken > 0 then due = first_due() end
-- Anybody may write there: what is no list is nothing to take in, and keeps nobody from leasing.
local inbox = redis.pcall('LLEN', P .. ':inbox')
return { NOW, paused, due, type(inbox) == 'number' and inbox or 0, open, taken }
