-- Whether leases may run their jobs now. ARGV: id, lease and epoch of each. Answers for each: E and its state; C cancelled;
-- P and the reason; F and its deaths; T and the end of the other lease; X stale.
local function claim(id, lease, epoch)
  local j = job(id)
  if not j then return { 'X' } end
  local st = state(id)
  if ENDED[st.s] then
    if st.s == 'S' or (st.epoch or 0) == epoch then return { 'E', st.s } end
    return { 'X' }
  end
  if st.s ~= 'l' then return { 'X' } end
  local till = tonumber(call('ZSCORE', P .. ':lease', id))
  if st.lease ~= lease then return { 'T', int(till) } end
  if till <= NOW then return { 'X' } end
  if is_cancelled(j, st) then return { 'C' } end
  local paused = call('HGET', P .. ':c', 'paused')
  if paused then return { 'P', paused } end
  return { 'F', st.deaths or 0 }
end

local answers = {}
for at = 1, #ARGV, 3 do answers[#answers + 1] = claim(ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2])) end
return answers
