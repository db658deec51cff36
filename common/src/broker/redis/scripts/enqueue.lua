-- Puts jobs in. ARGV: for each job id, fingerprint, deadline, created, not before (0: at once), lane, batch ('' none),
-- head, payload, epoch, attempts, history, use. Answers for each N new, K known and its state, C conflict.

local function enqueue(at)
  local id, fp, deadline = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2])
  local created, due, lane, batch = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4]), ARGV[at + 5], ARGV[at + 6]
  local head, payload = ARGV[at + 7], ARGV[at + 8]
  local known = job(id)
  if known then return known.fp == fp and 'K' .. seen_as(known, state(id)) or 'C' end
  local mark, stood = past(id)
  if mark then return mark == fp and 'K' .. stood or 'C' end
  local key = batch ~= '' and ensure_batch(batch)
  local seq = append(P .. ':c', 'seq', P .. ':o', id)
  if seq % CHUNK == 1 and seq > 1 and call('HGET', P .. ':alive', chunk_of(seq - 1)) == '0' then drop_chunk(chunk_of(seq - 1)) end
  local big = #payload > INLINE
  local j = {
    fp = fp, seq = seq, at = NOW, deadline = deadline, age = NOW - created, lane = lane, batch = key and batch or false,
    head = head, payload = big or payload,
  }
  if big then call('HSET', P .. ':big', id, payload) end
  keep_job(id, j)
  call('HINCRBY', P .. ':alive', chunk_of(seq), 1)
  call('ZADD', P .. ':overdue', 'LT', int(deadline), chunk_of(seq))
  if key then
    add(batches, batch, 'total', 1)
    add(batches, batch, 'jobs', 1)
    call('HSET', key, 'latest', int(seq))
  end
  local epoch, attempts, history = tonumber(ARGV[at + 9]), tonumber(ARGV[at + 10]), ARGV[at + 11]
  local st = { s = 'r' }
  if epoch > 0 or attempts > 0 then
    st.epoch, st.attempts, st.history, st.use = epoch, attempts, history ~= '' and history or nil, parse_use(ARGV[at + 12])
    keep_state(id, st)
  end
  if due > NOW then
    make_delayed(id, j, st, due, attempts > 0 and 'y' or 's')
  else
    call('RPUSH', P .. ':r:' .. lane, id .. '\0')
    count(j, 'r', 1)
  end
  return 'N'
end

local answers = {}
for at = 1, #ARGV, 13 do answers[#answers + 1] = enqueue(at) end
flush()
return answers
