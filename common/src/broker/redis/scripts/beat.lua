-- Extends leases. ARGV[1]: id, lease and length in ms of each (HEAD). Answers a letter for each: K kept, C cancelled,
-- E ended, L lost.
local HEAD, SIZE = '<c16c16I6', 38

local function beat(id, lease, length)
  local j, st = job(id), state(id)
  if not j or ENDED[st.s] then return 'E' end
  if st.s ~= 'l' or st.lease ~= lease then return 'L' end
  leases_until[id] = NOW + length
  return is_cancelled(j.batch, st) and 'C' or 'K'
end

local ids, answers = {}, {}
for at = 1, #ARGV[1], SIZE do ids[#ids + 1] = sub(ARGV[1], at, at + 15) end
prefetch(ids)
for at = 1, #ARGV[1], SIZE do answers[#answers + 1] = beat(read(HEAD, ARGV[1], at)) end
flush()
return table.concat(answers)
