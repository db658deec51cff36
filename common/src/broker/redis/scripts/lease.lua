-- Leases jobs: what is due comes back, what is over is ended, and the rest goes to the caller, lane by lane.
-- ARGV: worker, lease length in ms, lease ids (16 bytes each), hops of the token that woke the caller (0: none),
-- most bytes of payload, then lane and how many from it, in turn; of a caller that knows no lane with jobs (see
-- `take_all`) how many from each lane comes first, '' of all others. Answers: now, reason of a pause or '', the next moment
-- something is due (0: none), length of the inbox, `turned`, lanes with their ready jobs, the ids of the leased jobs (16
-- bytes each), in the order of the lease ids, and their bytes with payload; the ids of jobs that nobody can read, which
-- were taken out of the lane or set they stood in: their bytes stay in :jobs.
local CHORES, STALE = 200, 500
local damaged = {}

local function promote()
  local due = call('ZRANGEBYSCORE', P .. ':delayed', '-inf', NOW, 'LIMIT', 0, CHORES)
  local front = {}
  for _, id in ipairs(due) do
    local j, st = job(id), state(id)
    if not j then
      damaged[#damaged + 1] = id
      call('ZREM', P .. ':delayed', id)
    elseif st.why == 'h' then
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
  for place = #lost, 1, -1 do
    local id = lost[place]
    if not job(id) then damaged[#damaged + 1] = id end
    give_back(id, job(id), state(id))
  end
end

local worker, length, leases, hops, room = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local taken, views = {}, {}
local till = int(NOW + length)
-- What the trail of a job that is leased for the first time has around the lease's id.
local FIRST, REST = pack('<c1I3', 'l', 22 + #PLAIN + #worker), pack('<I6', NOW) .. PLAIN .. worker

local function next_lease()
  return sub(leases, #taken * 16 + 1, #taken * 16 + 16)
end

-- The batch of a job that waits for the first time and may be leased as it is; nil for all others.
local function is_simple(id, entry, bytes)
  if raws[id] ~= nil or jobs[id] ~= nil then return nil end
  if sub(bytes, 1, 4) ~= FRESH or byte(bytes, 8) ~= 1 or byte(entry, 17) ~= 0 then return nil end
  local deadline, batch = read('<I6Hc0', bytes, 20)
  return deadline > NOW and (batch == '' or not is_stopped(batch)) and batch
end

-- As `grant`, of the bytes of a simple job.
local function grant_simple(id, bytes, lane, batch)
  local place, both = #taken + 1, #kept
  put(id, FIRST .. sub(leases, place * 16 - 15, place * 16) .. REST .. sub(bytes, 5))
  kept[both + 1], kept[both + 2] = till, id
  taken[place], views[place] = id, bytes
  add(lanes, lane, 'ready', -1)
  if batch ~= '' then
    local counts = of_batch(batch)
    counts.queued, counts.running = counts.queued - 1, counts.running + 1
  end
end

local function grant(id, j, st)
  count(j.batch, j.lane, 'r', -1)
  st.s, st.lease, st.worker, st.leased = 'l', next_lease(), worker, NOW
  keep(id, j, st)
  leases_until[id] = NOW + length
  count(j.batch, j.lane, 'l', 1)
  taken[#taken + 1], views[#views + 1] = id, encode(j, st) .. payload_of(id, j)
end

local function size_of(id, j)
  return j.payload == true and call('HSTRLEN', P .. ':big', id) or #j.raw - j.payload_at + 1
end

-- How many bytes of payload were leased: nil when there is no room for it, 0 when it is not leased.
local function take_one(id, bytes, entry, lane)
  local readable, batch = pcall(is_simple, id, entry, bytes or '')
  if readable and batch then
    local size = #bytes
    if size > room and #taken > 0 then return nil end
    grant_simple(id, bytes, lane, batch)
    return size
  end
  remember(id, bytes)
  local j, st = job(id), state(id)
  if not j and bytes then damaged[#damaged + 1] = id end
  -- Void: the job went another way.
  if not j or st.s ~= 'r' or (st.gen or 0) ~= byte(entry, 17) then return 0 end
  local size = size_of(id, j)
  if size > room and #taken > 0 then return nil end
  if (st.deadline or j.deadline) <= NOW then
    finish_unrun(id, j, st, 'e')
  elseif is_cancelled(j.batch, st) then
    finish_unrun(id, j, st, 'c')
  else
    grant(id, j, st)
    return size
  end
  return 0
end

-- No entry is left in the lane: whatever is still counted there is gone or cannot be read.
local function none_left(lane)
  add(lanes, lane, 'ready', 0)
  lanes[lane].ready = -(tonumber(call('HGET', P .. ':lanes', lane)) or 0)
end

-- What was taken out of the list is not put back by an error: nothing here may raise one because of one job's bytes.
local function take(lane, most)
  local key, had, looked = P .. ':r:' .. lane, #taken, 0
  most = most + had
  while #taken < most and looked < most - had + STALE do
    local entries = call('LPOP', key, most - #taken)
    if not entries then return none_left(lane) end
    looked = looked + #entries
    local ids = {}
    for place, entry in ipairs(entries) do ids[place] = sub(entry, 1, 16) end
    local found = call('HMGET', JOBS, unpack(ids))
    for place, entry in ipairs(entries) do
      local size = take_one(ids[place], found[place], entry, lane)
      if not size then
        for back = #entries, place, -1 do call('LPUSH', key, entries[back]) end
        room = 0
        return
      end
      room = room - size
    end
  end
end

-- For a caller that knows no lane yet: when there are leases for all that is ready it makes no difference whose turn it
-- is, unless the bytes end the call. Up to `rest` of each lane, or what the caller says of that one. By name, which begins
-- with the band's digit: the highest band first.
local function take_all(rest)
  local caps, ready, names, jobs, open = {}, {}, {}, 0, call('HGETALL', P .. ':lanes')
  for at = 7, #ARGV, 2 do caps[ARGV[at]] = tonumber(ARGV[at + 1]) end
  for at = 1, #open, 2 do
    names[#names + 1], ready[open[at]] = open[at], tonumber(open[at + 1])
    jobs = jobs + ready[open[at]]
  end
  if jobs > #leases / 16 then return end
  table.sort(names)
  for _, lane in ipairs(names) do take(lane, math.min(caps[lane] or rest, ready[lane])) end
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
  if ARGV[6] ~= '' then
    take_all(tonumber(ARGV[6]))
  else
    for at = 7, #ARGV, 2 do take(ARGV[at], tonumber(ARGV[at + 1])) end
  end
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
return {
  NOW, paused, due, type(inbox) == 'number' and inbox or 0, call('HGET', P .. ':c', 'turned') or NEVER, open,
  table.concat(taken), views, table.concat(damaged),
}
