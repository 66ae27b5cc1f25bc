#!lua
-- One operation of the journal contract, atomically. Every check comes before the first write, and no write after it can fail.
-- KEYS: 1 fence of the shard, 2 head of the entity, 3 its events, 4 record of the command (as many as the operation needs).
-- Answers: the outcome's name, then its values.
local operation = ARGV[1]

local function refusal(nonce)
  local fence = redis.call('HMGET', KEYS[1], 'epoch', 'nonce')
  if not fence[1] then return {'uninitialised'} end
  if fence[2] ~= nonce then return {'fenced', fence[1]} end
  return nil
end

if operation == 'append' then
  local nonce, binding, expected, outcome, window, snapshot = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
  local refused = refusal(nonce)
  if refused then return refused end
  local head = redis.call('HMGET', KEYS[2], 'seq', 'binding', 'epoch')
  if head[2] ~= binding then return {'unbound', head[3] or '0'} end
  if KEYS[4] then
    local recorded = redis.call('GET', KEYS[4])
    if recorded then return {'duplicate', recorded} end
  end
  if head[1] ~= expected then return {'regressed', head[1]} end
  local count = #ARGV - 7
  for first = 8, #ARGV, 1000 do
    redis.call('RPUSH', KEYS[3], unpack(ARGV, first, math.min(first + 999, #ARGV)))
  end
  local seq = string.format('%.0f', tonumber(expected) + count)
  if snapshot ~= '' then
    redis.call('HSET', KEYS[2], 'seq', seq, 'snapshot', snapshot, 'snapshot_seq', seq)
  else
    redis.call('HSET', KEYS[2], 'seq', seq)
  end
  if KEYS[4] then redis.call('SET', KEYS[4], outcome, 'EX', window) end
  return {'appended', seq}

elseif operation == 'activate' then
  local nonce, epoch, binding = ARGV[2], ARGV[3], ARGV[4]
  local refused = refusal(nonce)
  if refused then return refused end
  local held = redis.call('HGET', KEYS[2], 'epoch')
  if held and tonumber(held) > tonumber(epoch) then return {'fenced', held} end
  redis.call('HSETNX', KEYS[2], 'seq', '0')
  redis.call('HSET', KEYS[2], 'epoch', epoch, 'binding', binding)
  local head = redis.call('HMGET', KEYS[2], 'seq', 'snapshot_seq', 'snapshot')
  local from = head[2] or '0'
  return {'active', head[1], from, head[3] or '', redis.call('LRANGE', KEYS[3], from, '-1')}

elseif operation == 'claim' then
  local expected, since, owner, nonce = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
  local fence = redis.call('HMGET', KEYS[1], 'epoch', 'nonce', 'generation')
  if not fence[1] then return {'uninitialised'} end
  if fence[2] == nonce then return {'claimed', fence[1]} end
  if tonumber(since) < tonumber(fence[3]) then return {'stale', fence[3]} end
  if expected ~= '-1' and expected ~= fence[1] then return {'raced', fence[1]} end
  local epoch = string.format('%.0f', tonumber(fence[1]) + 1)
  redis.call('HSET', KEYS[1], 'epoch', epoch, 'nonce', nonce, 'generation', since, 'owner', owner)
  return {'claimed', epoch}

elseif operation == 'seal' then
  local refused = refusal(ARGV[2])
  if refused then return refused end
  local epoch = redis.call('HINCRBY', KEYS[1], 'epoch', 1)
  redis.call('HSET', KEYS[1], 'nonce', ARGV[3], 'owner', '')
  return {'sealed', tostring(epoch)}

elseif operation == 'check' then
  return refusal(ARGV[2]) or {'current'}

elseif operation == 'lookup' then
  local recorded = redis.call('GET', KEYS[1])
  if recorded then return {'found', recorded} end
  return {'found'}

elseif operation == 'layout' then
  -- The layout comes last, so that a keyspace has one only when all its fences are there.
  if redis.call('EXISTS', KEYS[1]) == 0 then
    redis.call('HSET', KEYS[1], 'journal_id', ARGV[2], 'shards', ARGV[3], 'hash', ARGV[4], 'format', ARGV[5])
  end
  return redis.call('HMGET', KEYS[1], 'journal_id', 'shards', 'hash', 'format')
end
return redis.error_reply('unknown operation ' .. operation)
