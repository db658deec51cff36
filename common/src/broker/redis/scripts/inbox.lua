-- Moves lines of foreign clients from the inbox into the queue: each line goes and its job comes in one step. ARGV: for
-- each line its digest, 1 if its id is derived from what it says, record and cause of one that is dead on arrival ('' and
-- '' otherwise), its announcement, then the job (see `admit.lua`). Answers for each line that was looked at what became
-- of its job; stops before a line that is not the one expected, which somebody else has taken, and at one that stays.
local MORE = 5
local STEP = MORE + WORDS

local ids, answers, told, taken = {}, {}, {}, 0
for at = 1, #ARGV, STEP do ids[#ids + 1] = sub(ARGV[at + MORE], 1, 16) end
look_up(ids)
for at = 1, #ARGV, STEP do
  local line = call('LINDEX', P .. ':inbox', taken)
  if not line or redis.sha1hex(line) ~= ARGV[at] then break end
  local body, code = ARGV[at + 2], ARGV[at + 3]
  local dead = body ~= '' and { s = 'D', body = body, code = code } or nil
  local answer = admit(at + MORE, dead)
  answers[#answers + 1] = answer
  -- An id of its own is known only when this very call has run before: the line that stands here now is another.
  if answer == 'C' or (answer ~= 'N' and ARGV[at + 1] ~= '1') then break end
  if dead and answer == 'N' then told[#told + 1] = ARGV[at + 4] end
  taken = taken + 1
end
flush_admitted()
for _, announcement in ipairs(told) do announce(announcement) end
if taken > 0 then call('LTRIM', P .. ':inbox', taken, -1) end
-- Whoever pushes a token with each line leaves more than anybody needs.
call('LTRIM', P .. ':wake', 0, 63)
return answers
