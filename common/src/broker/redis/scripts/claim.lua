-- Whether leases may run their jobs now. ARGV[1]: of each (ASKED) id, lease, epoch, and (GRANTED) what the answer that
-- granted the lease said: its end, or 0 when the job itself is to be looked at, and `turned`. Answers Y of each that
-- stands as it was granted, or E and its state; C cancelled; P and the reason; F and its deaths; T and the end of the
-- other lease; X stale.
local ASKED, GRANTED, SIZE = '<c16c16I4', '<I6c8', 50
local paused, now_turned = unpack(call('HMGET', P .. ':c', 'paused', 'turned'))

-- `till`: when a lease on the job runs out, 0 when there is none.
local function claim(till, id, lease, epoch)
  local j, st = job(id), state(id)
  if not j then return { 'X' } end
  if ENDED[st.s] then
    if st.s == 'S' or (st.epoch or 0) == epoch then return { 'E', st.s } end
    return { 'X' }
  end
  if st.s ~= 'l' then return { 'X' } end
  if st.lease ~= lease then return { 'T', till } end
  if till <= NOW then return { 'X' } end
  if is_cancelled(j.batch, st) then return { 'C' } end
  if paused then return { 'P', paused } end
  return { 'F', st.deaths or 0 }
end

local ids, answers, others = {}, {}, {}
for at = 1, #ARGV[1], SIZE do ids[#ids + 1] = sub(ARGV[1], at, at + 15) end
local tills = call('ZMSCORE', P .. ':lease', unpack(ids))
for place, id in ipairs(ids) do
  local till, turned_then = read(GRANTED, ARGV[1], place * SIZE - 13)
  tills[place] = tonumber(tills[place] or 0)
  -- Only its holder can have made anything else of it since. But a server that came back with less than it had may have
  -- forgotten the lease itself: then there is none, or somebody else's, which ends at another moment. So does one that
  -- was extended: that is looked at like those.
  local stands = till > NOW and till == tills[place] and turned_then == (now_turned or NEVER) and not paused
  answers[place] = stands and 'Y' or ''
  if not stands then others[#others + 1] = id end
end
if #others == 0 then return string.rep('Y', #answers) end
prefetch(others)
for place, answer in ipairs(answers) do
  if answer == '' then answers[place] = claim(tills[place], read(ASKED, ARGV[1], (place - 1) * SIZE + 1)) end
end
return answers
