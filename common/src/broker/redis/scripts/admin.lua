-- What people do to jobs. ARGV[1] says what:
--   cancel ID…            each: E ended, F flagged, A and its state, U unknown
--   redrive ID…           each: Q and the epoch, W waiting, S succeeded, G gone, U unknown
--   drop ID…              how many left the dead set
--   forget ID EPOCH…      how many waiting jobs were removed without a trace
--   wake KEY MOST         how many jobs held under KEY were woken
--   recover WORKER FROM   how many leases of WORKER were ended, and where to go on from ('0': first call, and the end)
--   pause REASON, resume  nothing
--   seal BATCH            nothing; makes the batch when it is missing
local act = {}

function act.cancel(id)
  return cancel(id) or 'U'
end

function act.redrive(id)
  local j = job(id)
  if not j then return past(id) and 'G' or 'U' end
  local st = state(id)
  if st.s == 'S' then return 'S' end
  local deadline = st.deadline or j.deadline
  if st.s == 'l' or (not ENDED[st.s] and deadline > NOW) then return 'W' end
  if not j.payload then return 'G' end
  leave(id, j, st)
  -- Its allowance begins again, or one that expired would expire at once.
  st.deadline = math.max(deadline, NOW + deadline - (j.at - j.age))
  st.epoch, st.attempts, st.deaths, st.history, st.use = (st.epoch or 0) + 1, nil, nil, nil, nil
  make_ready(id, j, st, false, NOW)
  call('ZADD', P .. ':overdue', 'LT', int(st.deadline), chunk_of(j.seq))
  return 'Q' .. int(st.epoch)
end

function act.drop(id)
  local j = job(id)
  local st = j and state(id)
  if not j or st.s ~= 'D' or not j.payload then return 0 end
  drop_payload(id, j, st)
  st.dropped = true
  keep(id, j, st)
  call('ZREM', P .. ':dead', id)
  add(lanes, '', 'dead', -1)
  return 1
end

function act.forget(id, epoch)
  local j = job(id)
  local st = j and state(id)
  if not j or (st.s ~= 'r' and st.s ~= 'd' and st.s ~= 'a') or (st.epoch or 0) ~= tonumber(epoch) then return 0 end
  leave(id, j, st)
  if j.batch then tally(j.batch, 'total', -1) end
  erase(id, j)
  return 1
end

-- The last to be due first: each goes ahead of its lane, and of those that an earlier call put there.
local function wake_held(key, most)
  local held = call('ZRANGE', P .. ':h:' .. key, -tonumber(most), -1)
  for place = #held, 1, -1 do
    local id = held[place]
    local j, st = job(id), state(id)
    if j then
      leave(id, j, st)
      make_ready(id, j, st, true, NOW)
    else
      call('ZREM', P .. ':h:' .. key, id)
    end
  end
  return #held
end

-- Ranks and scores move while a worker's leases are walked; a scan names whatever is there from its first call to its
-- last.
local function recover(worker, from)
  local scan, found, seen = call('ZSCAN', P .. ':lease', from, 'COUNT', 500), {}, {}
  for at = 1, #scan[2], 2 do
    local id = scan[2][at]
    local st = state(id)
    if st.s == 'l' and st.worker == worker and not seen[id] then
      seen[id] = true
      found[#found + 1] = { id, job(id), st }
    end
  end
  table.sort(found, function(one, other) return one[2].seq > other[2].seq end)
  for _, lost in ipairs(found) do give_back(lost[1], lost[2], lost[3]) end
  return { #found, scan[1] }
end

local what, answer = ARGV[1], nil
if what == 'cancel' or what == 'redrive' then
  answer = {}
  for at = 2, #ARGV do answer[#answer + 1] = act[what](ARGV[at]) end
elseif what == 'drop' then
  answer = 0
  for at = 2, #ARGV do answer = answer + act.drop(ARGV[at]) end
elseif what == 'forget' then
  answer = 0
  for at = 2, #ARGV, 2 do answer = answer + act.forget(ARGV[at], ARGV[at + 1]) end
elseif what == 'wake' then
  answer = wake_held(ARGV[2], ARGV[3])
elseif what == 'recover' then
  answer = recover(ARGV[2], ARGV[3])
elseif what == 'pause' then
  call('HSET', P .. ':c', 'paused', ARGV[2])
elseif what == 'resume' then
  call('HDEL', P .. ':c', 'paused')
  woken = true
elseif what == 'seal' then
  call('HSET', ensure_batch(ARGV[2]), 'sealed', 1, 'going', '')
end
flush()
return answer
