-- What another broker asks of its ledger: who may run the jobs its messages stand for. ARGV: questions one after another,
-- each a word and what belongs to it; one answer each. JOB is what `admit.lua` says, without payload.
--   register JOB              N new, A again (never confirmed), K and its state, C conflict
--   confirm ID EPOCH          nothing
--   open JOB LEASE WORKER LENGTH   as `claim.lua`, save that a job that may not run any more ends here: that answer, what
--                             belongs to it, and as 0 or 1 whether its end is not announced, and its payload not kept; Y is
--                             short for a claim on a job without deaths
--   announced ID EPOCH END    nothing
--   keep ID EPOCH PAYLOAD     1, or 0 when the job has been put back in line
--   raise ID                  P and its view with payload, R restored and its epoch, W waiting, S succeeded, G gone, U unknown
--   published ID EPOCH        nothing
--   cancel ID LIFE            as `admin.lua`, but F of an id that is not known: it ends if it is opened within LIFE ms
--   purge                     nothing
--   reclaim MOST              how many claims that ran out have ended
local ARITY = {
  register = WORDS, confirm = 2, open = WORDS + 3, announced = 3, keep = 3, raise = 1, published = 2, cancel = 2, purge = 0,
  reclaim = 1,
}
local act = {}
-- The marks with which a waiting job is no plain one: all but that its message is not confirmed or may be missing.
local NOT_MARKED = bit.bnot(MARKS.unconfirmed + MARKS.raised)

-- Marks stand second in a base; behind them there is nothing in that of a job that was never tried.
local UNTRIED = sub(PLAIN, 3)
-- Where a base stands behind letter, length of trail and what comes ahead of it by this format with empty strings.
local function behind(format)
  return 5 + struct.size((string.gsub(format, 'c0', '')))
end

-- Of a job that waits as a message: where the base stands if there is neither a reason to wait nor a hold key, and
-- where the lengths of those do.
local AWAY_BASE = behind(WAITS)
local AWAY_WHY = AWAY_BASE - struct.size('<BH')
-- Where the core of one that was never tried begins, and in that what is fixed.
local AWAY_CORE = AWAY_BASE + #PLAIN
local AWAY_ITEM = AWAY_CORE + struct.size(CORE)
-- What that one begins with up to the moment since when it waits, and what stands between that and the base.
local AWAY_FRONT, AWAY_WAITS = pack('<c1I3', 'a', AWAY_CORE - 5), string.rep('\0', AWAY_BASE - 5 - struct.size('<I6'))
-- Of one that runs.
local LEASED_BASE = behind(RUNS)
-- Of a success whose record a lease wrote, and where the length of that lease stands.
local DONE_BASE = behind(ENDS) + 16
local DONE_BY = DONE_BASE - struct.size('<Bc16B')

-- Where the marks of a job stand in its bytes, if nobody has decoded it and that is easily told; then its bytes too.
local function marks_of(id)
  local bytes = jobs[id] == nil and raws[id]
  if not bytes then return nil end
  local letter, place = byte(bytes), nil
  if letter == 97 then
    -- Neither a reason to wait nor a hold key stands before them.
    place = sub(bytes, AWAY_WHY, AWAY_BASE - 1) == '\0\0\0' and AWAY_BASE + 1
  elseif letter == 108 then
    place = LEASED_BASE + 1
  elseif letter == 83 then
    -- A success by a worker.
    place = byte(bytes, DONE_BY) == 16 and byte(bytes, DONE_BASE - 1) == 0 and DONE_BASE + 1
  end
  if place and #bytes >= place + #UNTRIED then return place, bytes end
end

-- The same bytes with other marks.
local function remark(id, bytes, place, marks)
  put(id, sub(bytes, 1, place - 1) .. string.char(marks) .. sub(bytes, place + 1))
end

-- The bytes of a job that waits as a message from now on and was never tried. `length`: of its item and head.
local function away_bytes(seq, item, length, marks)
  return AWAY_FRONT .. pack('<I6', NOW) .. AWAY_WAITS .. '\0' .. string.char(marks) .. UNTRIED
    .. pack(CORE, 12 + length, AWAY, seq, NOW) .. item
end

-- What a job in its first lease, from now on, has ahead of its core.
local function leased(lease, worker)
  local trail = pack(RUNS, lease, NOW) .. PLAIN .. worker
  return pack('<c1I3', 'l', #trail) .. trail
end

-- As `admit`, of the bytes of a job that nobody has heard of and was never tried.
local function register_new(id, item, length)
  local deadline, batch = read('<' .. ITEM, item)
  if batch ~= '' then
    if not batches[batch] then ensure_batch(batch) end
    local counts = of_batch(batch)
    counts.total, counts.jobs, counts.queued = counts.total + 1, counts.jobs + 1, counts.queued + 1
  end
  local seq = append(COUNTERS, 'seq', ORDER, id)
  if batch ~= '' then batches[batch].latest = seq end
  enter(seq, deadline)
  jobs[id], states[id] = nil, nil
  put(id, away_bytes(seq, item, length, MARKS.unconfirmed))
end

function act.register(at)
  local id, due, length, epoch, attempts, history, use = read(JOB, ARGV[at])
  if raws[id] == false and not marks[id] and due <= NOW and epoch == 0 and attempts == 0 and history == '' and use == '' then
    register_new(id, ARGV[at + 1], length)
    return 'N'
  end
  local st = job(id) and state(id)
  local answer = admit(at, nil, true)
  if answer == 'N' then
    state(id).unconfirmed = true
  elseif st and st.unconfirmed and answer ~= 'C' and not ENDED[string.sub(answer, 2)] then
    return 'A'
  end
  return answer
end

-- Takes a mark away from a job that is still in that epoch.
local function unmark(at, name)
  local id, epoch = ARGV[at], tonumber(ARGV[at + 1])
  local place, bytes = marks_of(id)
  if place then
    local found = byte(bytes, place)
    if bit.band(found, MARKS[name]) > 0 and read('<I4', bytes, place + 1) == epoch then
      remark(id, bytes, place, found - MARKS[name])
    end
    return
  end
  local st = job(id) and state(id)
  if not st or not st[name] or (st.epoch or 0) ~= epoch then return end
  st[name] = nil
  keep(id, job(id), st)
end

function act.confirm(at)
  unmark(at, 'unconfirmed')
end

function act.published(at)
  unmark(at, 'raised')
end

-- When the claim on a job runs out.
local function till_of(id)
  return leases_until[id] or tonumber(call('ZSCORE', P .. ':lease', id)) or 0
end

-- Why this message may not have a new claim, if it is for what became of its job.
local function find(m, j, st, lease, length)
  local epoch, attempts = st.epoch or 0, st.attempts or 0
  if st.s == 'S' or (ENDED[st.s] and epoch == m.epoch) then return { 'E', st.s } end
  if epoch > m.epoch or (epoch == m.epoch and attempts > m.attempts) then return { 'X', '' } end
  if st.s ~= 'l' then return nil end
  if st.lease == lease then
    leases_until[m.id] = NOW + length
    return is_cancelled(j.batch, st) and { 'C', '' } or { 'F', st.deaths or 0 }
  end
  local till = till_of(m.id)
  if till > NOW then return { 'T', till } end
  give_back(m.id, j, st)
  return ENDED[st.s] and { 'E', st.s } or nil
end

-- A message may be ahead of the ledger: a retry's copy is published before its claim ends.
local function adopt(m, j, st)
  if (st.epoch or 0) < m.epoch then
    leave(m.id, j, st)
    st.epoch, st.deadline, st.attempts, st.deaths, st.history, st.use = m.epoch, m.deadline, nil, nil, nil, nil
    make_away(m.id, j, st)
  end
  if (st.attempts or 0) < m.attempts then
    st.attempts, st.history, st.use = m.attempts, m.history, m.use
    keep(m.id, j, st)
  end
end

local paused, purged = unpack(call('HMGET', P .. ':c', 'paused', 'purged'))
purged = tonumber(purged or 0)

-- Ends a job that may not run any more, or gives the claim unless the queue is paused.
local function grant(m, j, st, lease, worker, length)
  adopt(m, j, st)
  local why = is_cancelled(j.batch, st) and 'c' or st.since < purged and 'p' or (st.deadline or j.deadline) <= NOW and 'e'
  if why then
    finish_unrun(m.id, j, st, why)
    return { 'E', st.s }
  end
  if paused then return { 'P', paused } end
  leave(m.id, j, st)
  st.s, st.lease, st.worker, st.leased = 'l', lease, worker, NOW
  st.unconfirmed, st.raised = nil, nil
  keep(m.id, j, st)
  leases_until[m.id] = NOW + length
  count(j.batch, j.lane, 'l', 1)
  return { 'F', st.deaths or 0 }
end

-- Which of the opened were cancelled before they were seen.
local stops = {}

-- Whether a message is the first that is heard of its job, which has no batch and was never tried.
local function is_new(m, batch)
  return raws[m.id] == false and not marks[m.id] and not stops[m.id] and batch == '' and m.epoch == 0 and m.attempts == 0
    and m.history == ''
end

-- As `admit` and `grant`, of the bytes of a new job.
local function grant_new(m, item, lease, worker, length)
  local seq = append(COUNTERS, 'seq', ORDER, m.id)
  enter(seq, m.deadline)
  jobs[m.id], states[m.id] = nil, nil
  put(m.id, leased(lease, worker) .. pack(CORE, 12 + m.length, AWAY, seq, NOW) .. sub(item, 1, m.length))
  leases_until[m.id] = NOW + length
  return 'Y'
end

-- As `find` and `grant`, of the bytes of a job that waits as this message and was never tried, if it may have the claim.
local function grant_waiting(m, lease, worker, length)
  local bytes = jobs[m.id] == nil and raws[m.id]
  if not bytes or m.epoch > 0 or m.attempts > 0 or sub(bytes, 1, 4) ~= AWAY_FRONT
    or sub(bytes, AWAY_WHY, AWAY_BASE) ~= '\0\0\0\0' or sub(bytes, AWAY_BASE + 2, AWAY_CORE - 1) ~= UNTRIED then
    return nil
  end
  local found, since = byte(bytes, AWAY_BASE + 1), read('<I6', bytes, 5)
  local deadline, batch = read('<I6Hc0', bytes, AWAY_ITEM)
  batch = batch ~= '' and batch
  if bit.band(found, NOT_MARKED) > 0 or since < purged or deadline <= NOW or is_stopped(batch) then return nil end
  if batch then
    local counts = of_batch(batch)
    counts.queued, counts.running = counts.queued - 1, counts.running + 1
  end
  put(m.id, leased(lease, worker) .. sub(bytes, AWAY_CORE))
  leases_until[m.id] = NOW + length
  return 'Y'
end

function act.open(at)
  local more, m = at + WORDS, {}
  local lease, worker, length = ARGV[more], ARGV[more + 1], tonumber(ARGV[more + 2])
  m.id, m.due, m.length, m.epoch, m.attempts, m.history, m.use = read(JOB, ARGV[at])
  local granted = not paused and grant_waiting(m, lease, worker, length)
  if granted then return granted end
  local deadline, batch, _, created = read('<' .. ITEM, ARGV[at + 1])
  m.deadline = deadline
  if not paused and created >= purged and deadline > NOW and is_new(m, batch) then
    return grant_new(m, ARGV[at + 1], lease, worker, length)
  end
  m.history, m.use = some(m.history), some(m.use)
  local known = job(m.id)
  if not known then
    if marks[m.id] then return { 'E', string.sub(marks[m.id], 1, 1), 0, 0 } end
    admit(at, nil, true)
    state(m.id).since = created
  end
  local j, st = job(m.id), state(m.id)
  if not known and stops[m.id] and call('DEL', P .. ':stop:' .. m.id) == 1 then finish_unrun(m.id, j, st, 'c') end
  local answer = find(m, j, st, lease, length) or grant(m, j, st, lease, worker, length)
  answer[3] = ENDED[st.s] and not st.announced and 1 or 0
  answer[4] = answer[1] == 'E' and st.unrun and not j.payload and 1 or 0
  return answer
end

-- A success is one whatever its epoch.
function act.announced(at)
  local id, epoch, how = ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2]
  local place, bytes = marks_of(id)
  if place and how == 'S' and byte(bytes) == 83 then
    return remark(id, bytes, place, bit.bor(byte(bytes, place), MARKS.announced))
  end
  local st = job(id) and state(id)
  if not st or st.s ~= how or (how ~= 'S' and (st.epoch or 0) ~= epoch) then return end
  st.announced = true
  keep(id, job(id), st)
end

function act.keep(at)
  local id, epoch = ARGV[at], tonumber(ARGV[at + 1])
  local j = job(id)
  if not j then return 1 end
  local st = state(id)
  if st.unrun and not j.payload then keep_payload(id, j, st, ARGV[at + 2]) end
  return (ENDED[st.s] or (st.epoch or 0) > epoch) and 1 or 0
end

function act.raise(at)
  local id = ARGV[at]
  local j = job(id)
  if not j then return { past(id) and 'G' or 'U', '' } end
  local st = state(id)
  if st.s == 'S' then return { 'S', '' } end
  local deadline = st.deadline or j.deadline
  local waits = not ENDED[st.s] and (st.s ~= 'a' or deadline > NOW)
  if not waits then
    if not j.payload and ENDED[st.s] and not st.unrun then return { 'G', '' } end
    -- What was consumed goes into the next record of the same epoch.
    if not j.payload and st.unrun then spend(j, st.use, -1) end
    local later, later_why = not j.payload and (st.later or st.due), st.later_why or st.why
    leave(id, j, st)
    if not j.away then
      -- A job of our own waits there from now on.
      j.away = true
    end
    -- Its allowance begins again, or one that expired would expire at once.
    st.deadline = math.max(deadline, NOW + deadline - (j.at - j.age))
    -- Its message comes when it would have come.
    if later and later > NOW then make_away(id, j, st, later, later_why) else make_away(id, j, st) end
    call('ZADD', P .. ':overdue', 'LT', int(st.deadline), chunk_of(j.seq))
    if not j.payload then
      st.spared = true
      return { 'R', st.epoch or 0 }
    end
    st.epoch, st.attempts, st.deaths, st.history, st.use, st.raised = (st.epoch or 0) + 1, nil, nil, nil, nil, true
  end
  if not st.raised then return { 'W', '' } end
  return { 'P', view(id, j, st, { payload = true }) }
end

function act.cancel(at)
  local id = ARGV[at]
  local said = cancel(id)
  if said then return said end
  call('SET', P .. ':stop:' .. id, 1, 'PX', ARGV[at + 1])
  stops[id] = true
  return 'F'
end

function act.purge()
  call('HSET', P .. ':c', 'purged', int(NOW))
end

function act.reclaim(at)
  local lost = call('ZRANGEBYSCORE', P .. ':lease', '-inf', int(NOW), 'LIMIT', 0, ARGV[at])
  for _, id in ipairs(lost) do give_back(id, job(id), state(id)) end
  return #lost
end

local ids, opened, names, answers, at = {}, {}, {}, {}, 1
while at <= #ARGV do
  local word, words = ARGV[at], ARITY[ARGV[at]]
  if words > 0 and word ~= 'reclaim' then ids[#ids + 1] = sub(ARGV[at + 1], 1, 16) end
  if word == 'open' then opened[#opened + 1] = ids[#ids] end
  at = at + 1 + words
end
prefetch(ids)
-- What is left of others is asked for only where there is no job.
local strangers, unseen = {}, {}
for _, id in ipairs(ids) do
  if not raws[id] then strangers[#strangers + 1], names[#names + 1] = id, P .. ':past:' .. id end
end
for _, id in ipairs(opened) do
  if not raws[id] then unseen[#unseen + 1], names[#names + 1] = id, P .. ':stop:' .. id end
end
if #names > 0 then
  for place, found in ipairs(call('MGET', unpack(names))) do
    if place <= #strangers then
      marks[strangers[place]] = found
    else
      stops[unseen[place - #strangers]] = found
    end
  end
end
at = 1
while at <= #ARGV do
  answers[#answers + 1] = act[ARGV[at]](at + 1) or ''
  at = at + 1 + ARITY[ARGV[at]]
end
flush_admitted()
return answers
