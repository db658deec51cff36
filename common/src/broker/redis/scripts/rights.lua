-- Which of the commands that other scripts use this user lacks the right to. Tries each on KEYS[1], a key that nothing
-- else uses, and leaves none there: who may not delete is told that alone.
local key, lacking = KEYS[1], {}

local function try(...)
  local answer = redis.pcall(...)
  local why = type(answer) == 'table' and answer.err
  if why and (why:find('ACL failure in script', 1, true) or why:find("executing the script can't", 1, true)) then
    lacking[#lacking + 1] = (...)
    return false
  end
  return true
end

if not try('del', key) then return lacking end
for _, commands in ipairs({
  { { 'time' }, { 'set', key, 'x' }, { 'append', key, 'x' }, { 'exists', key }, { 'get', key }, { 'getrange', key, 0, 0 },
    { 'mget', key }, { 'memory', 'usage', key } },
  { { 'hset', key, 'f', 1 }, { 'hsetnx', key, 'g', 1 }, { 'hincrby', key, 'f', 1 }, { 'hget', key, 'f' },
    { 'hgetall', key }, { 'hkeys', key }, { 'hmget', key, 'f' }, { 'hstrlen', key, 'f' }, { 'hdel', key, 'f' } },
  { { 'rpush', key, 'x' }, { 'lpush', key, 'x' }, { 'lindex', key, 0 }, { 'llen', key }, { 'lrange', key, 0, 0 },
    { 'ltrim', key, 0, 0 }, { 'lpop', key } },
  { { 'zadd', key, 1, 'm' }, { 'zcard', key }, { 'zcount', key, 0, 1 }, { 'zmscore', key, 'm' }, { 'zrange', key, 0, 0 },
    { 'zrangebyscore', key, 0, 1 }, { 'zscan', key, 0 }, { 'zscore', key, 'm' }, { 'zrem', key, 'm' } },
  { { 'xadd', key, '*', 'f', 'v' }, { 'xlen', key }, { 'xtrim', key, 'MAXLEN', 0 } },
}) do
  for _, command in ipairs(commands) do try(unpack(command)) end
  redis.call('del', key)
end
return lacking
