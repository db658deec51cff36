-- Puts jobs in: see `admit.lua`. ARGV: the jobs. Answers for each.
local ids, answers = {}, {}
for at = 1, #ARGV, WORDS do ids[#ids + 1] = ARGV[at] end
look_up(ids)
for at = 1, #ARGV, WORDS do answers[#answers + 1] = admit(at) end
flush_admitted()
return answers
