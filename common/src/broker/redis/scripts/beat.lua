-- Extends leases. ARGV: id, lease and length in ms of each. Answers for each K kept, C cancelled, E ended, L lost.
local function beat(id, lease, length)
  local st = states[id]
  if not st or ENDED[st.s] then return 'E' end
  if st.s ~= 'l' or st.lease ~= lease then return 'L' end
  leases_until[id] = NOW + tonumber(length)
  return is_cancelled(st.batch, st) and 'C' or 'K'
end

local ids, answers = {}, {}
for at = 1, #ARGV, 3 do ids[#ids + 1] = ARGV[at] end
prefetch(':state', states, ids)
for at = 1, #ARGV, 3 do answers[#answers + 1] = beat(ARGV[at], ARGV[at + 1], ARGV[at + 2]) end
flush()
return answers
