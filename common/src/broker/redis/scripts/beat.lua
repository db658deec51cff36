-- Extends leases. ARGV: id, lease and length in ms of each. Answers for each K kept, C cancelled, E ended, L lost.
local function beat(id, lease, length)
  local j = job(id)
  if not j then return 'E' end
  local st = state(id)
  if ENDED[st.s] then return 'E' end
  if st.s ~= 'l' or st.lease ~= lease then return 'L' end
  call('ZADD', P .. ':lease', 'XX', int(NOW + tonumber(length)), id)
  return is_cancelled(j, st) and 'C' or 'K'
end

local answers = {}
for at = 1, #ARGV, 3 do answers[#answers + 1] = beat(ARGV[at], ARGV[at + 1], ARGV[at + 2]) end
return answers
