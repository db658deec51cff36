-- Whether leases may run their jobs now. ARGV[1]: of each (ASKED) id, lease, epoch, and (GRANTED) what the answer that
-- granted the lease said: its end, or 0 when the job itself is to be looked at, and `turned`. Answers Y of each that
-- stands as it was granted, or E and its state; C cancelled; P and the reason; F and its deaths; T and the end of the
-- other lease; X stale.
local ASKED, GRANTED, SIZE = '<c16c16I4', '<I6c8', 50
local paused, now_turned = unpack(call('HMGET', P .. ':c', 'paused', 'turned'))

local function claim(id, lease, epoch)
  local j, st = job(id), state(id)
  if not j then return { 'X' } end
  if ENDED[st.s] then
    if st.s == 'S' or (st.epoch or 0) == epoch then return { 'E', st.s } end
    return { 'X' }
  end
  if st.s ~= 'l' then return { 'X' } end
  local till = tonumber(call('ZSCORE', P .. ':lease', id))
  if st.lease ~= lease then return { 'T', till } end
  if till <= NOW then return { 'X' } end
  if is_cancelled(j.batch, st) then return { 'C' } end
  if paused then return { 'P', paused } end
  return { 'F', st.deaths or 0 }
end

local answers, others = {}, {}
for at = 1, #ARGV[1], SIZE do
  local till, turned_then = read(GRANTED, ARGV[1], at + 36)
  -- Only its holder can have made anything else of it since.
  local stands = till > NOW and turned_then == (now_turned or NEVER) and not paused
  answers[#answers + 1] = stands and 'Y' or ''
  if not stands then others[#others + 1] = sub(ARGV[1], at, at + 15) end
end
if #others == 0 then return string.rep('Y', #answers) end
prefetch(others)
for place, answer in ipairs(answers) do
  if answer == '' then answers[place] = claim(read(ASKED, ARGV[1], (place - 1) * SIZE + 1)) end
end
return answers
