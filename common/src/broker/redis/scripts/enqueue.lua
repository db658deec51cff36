-- Puts jobs in: see `admit.lua`. ARGV: the jobs. Answers for each.
local ids, answers = {}, {}
for at = 1, #ARGV, WORDS do ids[#ids + 1] = sub(ARGV[at], 1, 16) end
look_up(ids)
for at = 1, #ARGV, WORDS do answers[#answers + 1] = admit(at) end
flush_admitted()
return answers
