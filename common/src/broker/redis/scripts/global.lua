-- What belongs to no queue. KEYS[1] is `{pq}`, so that all its keys share one slot. ARGV[1] says what:
--   form OURS                  nothing, or the form in which the queues here lie when it is another ('': nobody has said)
--   touch QUEUE OURS           notes that the queue is used, unless the form is another: as `form`
--   claim BATCH QUEUE          gives the batch to the queue unless another has it; the queue that has it
--   newest FROM MOST           batches from that rank on, newest first: name and queue in turn
--   old AGE MOST               batches made longer ago than AGE ms, from where the last call ended on, round and round:
--                              whether the round ended, then name and queue in turn
--   drop BATCH QUEUE…          takes the batches from the queues
--   unused AGE MOST            queues not used for AGE ms
--   lose AGE QUEUE…            forgets those of the queues that were not used for AGE ms
--   report ID BODY, leave ID   keeps or forgets what a worker told of itself
--   workers                    what workers told that reported lately
--   lock NAME OWNER LENGTH     whether the owner holds the lock now, for LENGTH ms
--   unlock NAME OWNER          lets go of it
--   identity FRESH             which ledger this is: FRESH unless it is another already
--   limit KEY                  the time, and what is kept of a limit key ('': nothing)
--   swap KEY OLD NEW           keeps NEW of it if that was OLD: whether it was
--
--   :queues  zset  queue by when it was last used; :form string, the form of all that they hold: see `global.rs`
--   :batches hash  batch -> queue; :order zset of them by number, which is when they were made, in microseconds;
--            :made the last number, :swept the last one that `old` answered
--   :workers hash  worker -> report; :seen zset of them by when they reported
--   :lock:<name> string with a life time, its owner; :note:<key> string
--   :identity string, which ledger this is: written once; :limits hash, limit key -> what is kept of it
local G, SILENCE, call = KEYS[1], 60000, redis.call
local time = call('TIME')
local NOW = time[1] * 1000 + math.floor(time[2] / 1000)
local act = {}

local function int(number)
  return string.format('%.0f', number)
end

function act.form(ours)
  local form = call('ZCARD', G .. ':queues') > 0 and (call('GET', G .. ':form') or '')
  return form and form ~= ours and form
end

function act.touch(queue, ours)
  local other = act.form(ours)
  if other then return other end
  call('SET', G .. ':form', ours)
  call('ZADD', G .. ':queues', int(NOW), queue)
end

function act.claim(batch, queue)
  local owner = call('HGET', G .. ':batches', batch)
  if owner then return owner end
  local number = math.max((tonumber(call('GET', G .. ':made')) or 0) + 1, time[1] * 1000000 + time[2])
  call('SET', G .. ':made', int(number))
  call('ZADD', G .. ':order', int(number), batch)
  call('HSET', G .. ':batches', batch, queue)
  return queue
end

local function with_queues(names)
  local found = {}
  for _, name in ipairs(names) do
    local queue = call('HGET', G .. ':batches', name)
    if queue then
      found[#found + 1] = name
      found[#found + 1] = queue
    end
  end
  return found
end

function act.newest(from, most)
  return with_queues(call('ZRANGE', G .. ':order', from, from + most - 1, 'REV'))
end

function act.old(age, most)
  local from = call('GET', G .. ':swept')
  local limit = int((NOW - tonumber(age)) * 1000)
  local names = call('ZRANGEBYSCORE', G .. ':order', from and '(' .. from or '-inf', limit, 'LIMIT', 0, most)
  local ended = #names < tonumber(most)
  if ended then
    call('DEL', G .. ':swept')
  else
    call('SET', G .. ':swept', call('ZSCORE', G .. ':order', names[#names]))
  end
  return { ended and 1 or 0, with_queues(names) }
end

function act.drop(...)
  local pairs_given = { ... }
  for at = 1, #pairs_given, 2 do
    local name = pairs_given[at]
    if call('HGET', G .. ':batches', name) == pairs_given[at + 1] then
      call('HDEL', G .. ':batches', name)
      call('ZREM', G .. ':order', name)
    end
  end
end

function act.unused(age, most)
  return call('ZRANGEBYSCORE', G .. ':queues', '-inf', int(NOW - tonumber(age)), 'LIMIT', 0, most)
end

function act.lose(age, ...)
  for _, queue in ipairs({ ... }) do
    local used = call('ZSCORE', G .. ':queues', queue)
    if used and tonumber(used) <= NOW - tonumber(age) then call('ZREM', G .. ':queues', queue) end
  end
end

function act.report(id, body)
  local silent = call('ZRANGEBYSCORE', G .. ':seen', '-inf', int(NOW - SILENCE), 'LIMIT', 0, 1000)
  for _, gone in ipairs(silent) do act.leave(gone) end
  call('HSET', G .. ':workers', id, body)
  call('ZADD', G .. ':seen', int(NOW), id)
end

function act.leave(id)
  call('HDEL', G .. ':workers', id)
  call('ZREM', G .. ':seen', id)
end

function act.workers()
  local found = {}
  for _, id in ipairs(call('ZRANGEBYSCORE', G .. ':seen', '(' .. int(NOW - SILENCE), '+inf')) do
    found[#found + 1] = call('HGET', G .. ':workers', id) or nil
  end
  return found
end

function act.lock(name, owner, length)
  local holder = call('GET', G .. ':lock:' .. name)
  if holder and holder ~= owner then return 0 end
  call('SET', G .. ':lock:' .. name, owner, 'PX', length)
  return 1
end

function act.unlock(name, owner)
  if call('GET', G .. ':lock:' .. name) == owner then call('DEL', G .. ':lock:' .. name) end
end

function act.identity(fresh)
  call('SET', G .. ':identity', fresh, 'NX')
  return call('GET', G .. ':identity')
end

function act.limit(key)
  return { int(NOW), call('HGET', G .. ':limits', key) or '' }
end

function act.swap(key, old, new)
  if (call('HGET', G .. ':limits', key) or '') ~= old then return 0 end
  if new == '' then
    call('HDEL', G .. ':limits', key)
  else
    call('HSET', G .. ':limits', key, new)
  end
  return 1
end

return act[ARGV[1]](unpack(ARGV, 2))
