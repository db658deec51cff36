-- Ends leases. ARGV: for each id, lease, kind, then by kind
--   S D C E: epoch, attempts, ended at (the worker's clock, which counts for nothing here), record, code, use,
--     announcement ('' for none), payload ('' for none: it is here, or not needed)
--   y retry: wait in ms, attempts, '', history, '', use, '', ''
--   h release: wait in ms, '', '', hold key or '', '', '', '', ''
-- `code` is the cause's, or of a success the key of its stored output. Answers for each A applied, K a late success kept, S stale.
local WORDS = 11

-- An end of the same epoch that a late success takes the place of has its history in that success: it counts once.
local function finish_by(id, j, st, lease, at)
  local epoch = tonumber(ARGV[at + 3])
  if ENDED[st.s] and (st.epoch or 0) == epoch then spend(j, st.use, -1) end
  st.attempts = tonumber(ARGV[at + 4])
  finish(id, j, st, {
    s = ARGV[at + 2], ended = NOW, body = ARGV[at + 6], code = ARGV[at + 7],
    use = parse_use(ARGV[at + 8]), by = lease,
  })
  if ARGV[at + 9] ~= '' then announce(ARGV[at + 9]) end
  if st.s ~= 'S' and not j.payload and ARGV[at + 10] ~= '' then keep_payload(id, j, ARGV[at + 10]) end
  -- Nothing of it can be redriven.
  if st.s == 'D' and not j.payload then
    st.dropped = true
    call('ZREM', P .. ':dead', id)
    add(lanes, '', 'dead', -1)
  end
end

local function give_up(id, j, st, at)
  local wait = tonumber(ARGV[at + 3])
  local retry = ARGV[at + 2] == 'y'
  if retry then
    st.attempts, st.history, st.use = tonumber(ARGV[at + 4]), ARGV[at + 6], parse_use(ARGV[at + 8])
  end
  if is_cancelled(j.batch, st) then return finish_unrun(id, j, st, 'c') end
  leave(id, j, st)
  if wait > 0 then
    make_delayed(id, j, st, NOW + wait, retry and 'y' or 'h', not retry and ARGV[at + 6] or nil)
  else
    make_ready(id, j, st, not retry, NOW)
  end
end

local function settle(at)
  local id, lease, kind = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local j = job(id)
  if not j then return 'S' end
  local st = state(id)
  if st.s == 'l' and st.lease == lease then
    st.settled = lease
    if ENDED[kind] then finish_by(id, j, st, lease, at) else give_up(id, j, st, at) end
    return 'A'
  end
  local ours = st.settled == lease
  if kind == 'S' and st.s ~= 'S' then
    finish_by(id, j, st, lease, at)
    return 'K'
  end
  if kind == 'S' and not ours and st.by == lease then return 'K' end
  return ours and 'A' or 'S'
end

local ids, answers = {}, {}
for at = 1, #ARGV, WORDS do ids[#ids + 1] = ARGV[at] end
prefetch(':jobs', jobs, ids)
prefetch(':state', states, ids)
for at = 1, #ARGV, WORDS do answers[#answers + 1] = settle(at) end
flush()
return answers
