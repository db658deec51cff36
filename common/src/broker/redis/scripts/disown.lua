-- Gives back the jobs of leases whose answer never reached the worker: they were not run, so nothing is spent. Those that were
-- cancelled meanwhile end.
-- ARGV: worker, those lease ids (16 bytes each), the rank in :lease to go on from. Answers the next rank, '' at the end.
local PAGE = 500
local worker, from, lost = ARGV[1], tonumber(ARGV[3]), {}
for at = 1, #ARGV[2], 16 do lost[string.sub(ARGV[2], at, at + 15)] = true end

local ids = call('ZRANGE', P .. ':lease', from, from + PAGE - 1)
if #ids > 0 then prefetch(ids) end
local given = 0
for place = #ids, 1, -1 do
  local id = ids[place]
  local st = state(id)
  if st.worker == worker and lost[st.lease] then
    local j = job(id)
    if is_cancelled(j.batch, st) then
      finish_unrun(id, j, st, 'c')
    else
      leave(id, j, st)
      make_ready(id, j, st, true, NOW)
    end
    given = given + 1
  end
end
flush()
return #ids == PAGE and from + PAGE - given or ''
