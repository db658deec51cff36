-- Whether leases may run their jobs now. ARGV: id, lease and epoch of each. Answers for each: E and its state; C cancelled;
-- P and the reason; F and its deaths; T and the end of the other lease; X stale.
local paused = call('HGET', P .. ':c', 'paused')

local function claim(id, lease, epoch, till)
  local st = states[id]
  if not st then return { 'X' } end
  if ENDED[st.s] then
    if st.s == 'S' or (st.epoch or 0) == epoch then return { 'E', st.s } end
    return { 'X' }
  end
  if st.s ~= 'l' then return { 'X' } end
  till = tonumber(till)
  if st.lease ~= lease then return { 'T', till } end
  if till <= NOW then return { 'X' } end
  if is_cancelled(st.batch, st) then return { 'C' } end
  if paused then return { 'P', paused } end
  return { 'F', st.deaths or 0 }
end

local ids, answers = {}, {}
for at = 1, #ARGV, 3 do ids[#ids + 1] = ARGV[at] end
prefetch(':state', states, ids)
local tills = call('ZMSCORE', P .. ':lease', unpack(ids))
for at = 1, #ARGV, 3 do
  local place = #answers + 1
  answers[place] = claim(ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2]), tills[place])
end
return answers
