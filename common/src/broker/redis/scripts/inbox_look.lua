-- Looks at the lines that foreign clients left. KEYS[1]: the queue's prefix. ARGV: most lines, most bytes of them, the
-- longest line that is worth reading, and how much of a longer one is shown. Answers for each line its digest, its length
-- and its bytes. Changes nothing.
local key, most, room = KEYS[1] .. ':inbox', tonumber(ARGV[1]), tonumber(ARGV[2])
local longest, shown = tonumber(ARGV[3]), tonumber(ARGV[4])
local found = {}
for place = 0, most - 1 do
  local line = redis.call('LINDEX', key, place)
  if not line or (#line > room and place > 0) then break end
  room = room - #line
  found[#found + 1] = redis.sha1hex(line)
  found[#found + 1] = #line
  found[#found + 1] = #line > longest and string.sub(line, 1, shown) or line
end
return found
