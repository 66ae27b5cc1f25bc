#!lua
-- Operations on one shard, in order, each all or nothing: the guards of rules.py, in the same order, in one atomic step.
-- KEYS: the shard's fence, then the keys that each operation names. ARGV: journal id, seconds that a command is remembered, then the
-- name and the arguments of each operation. Answers one array for each operation: the outcome's name, then its values.
--
-- A script is not undone when it fails. So everything is read and compared first, and the first write is the only one that can fail (a key
-- of another kind); what an append wrote to the log before its events is taken back. Without the flag `no-writes` the server runs none of it
-- where it takes no writes, not even a `check`: a replica must not tell an old owner that it is current. Without `allow-oom` nothing runs
-- when memory is full; the reading operations may be asked with it.

local next_key, next_argument = 1, 2

local function key()
  next_key = next_key + 1
  return KEYS[next_key]
end

local function argument()
  next_argument = next_argument + 1
  return ARGV[next_argument]
end

local row = redis.call('HMGET', KEYS[1], 'journal', 'epoch', 'nonce', 'generation')
if row[1] and row[1] ~= ARGV[1] then
  return {'replaced', row[1]}
end
local epoch, nonce, generation = tonumber(row[2]), row[3], tonumber(row[4])

local function refused_by_fence(theirs)
  if not epoch then
    return {'uninitialised'}
  end
  if theirs ~= nonce then
    return {'fenced', epoch}
  end
end

local operations = {}

-- The guards of whatever changes an entity; then its count of puts.
local function guarded(head, theirs, binding, command, expected)
  local refused = refused_by_fence(theirs)
  if refused then
    return refused
  end
  local entity = redis.call('HMGET', head, 'seq', 'epoch', 'binding', 'puts')
  if entity[3] ~= binding then
    return {'unbound', tonumber(entity[2] or '0')}
  end
  local recorded = command and redis.call('GET', command)
  if recorded then
    return {'duplicate', recorded}
  end
  if entity[1] ~= expected then
    return {'regressed', tonumber(entity[1])}
  end
  return nil, entity[4] or '0'
end

-- The events of log entries that were written; without them, those are taken back.
local function push_or_undo(log, entries, events, ...)
  local pushed = redis.pcall('RPUSH', events, ...)
  if type(pushed) == 'table' then
    redis.call('LTRIM', log, 0, -1 - entries)
    error(pushed.err, 0)
  end
end

function operations.append()
  local k, a = next_key, next_argument
  local head, events, log = KEYS[k + 1], KEYS[k + 2], KEYS[k + 3]
  local theirs, binding, expected, following, id, count = ARGV[a + 1], ARGV[a + 2], ARGV[a + 3], ARGV[a + 4], ARGV[a + 5], tonumber(ARGV[a + 6])
  next_key, next_argument = k + 3, a + 6
  local command = argument() == '1' and key()
  local outcome = command and argument()
  local snapshot = argument() == '1' and argument()
  local first = next_argument + 1
  next_argument = next_argument + count

  local refused, puts = guarded(head, theirs, binding, command, expected)
  if refused then
    return refused
  end

  local suffix = ' ' .. puts .. ' ' .. id
  if count == 1 then
    redis.call('RPUSH', log, following .. suffix)
    push_or_undo(log, 1, events, ARGV[first])
  else
    for from = first, first + count - 1, 1000 do
      local upto, entries = math.min(from + 999, first + count - 1), {}
      for n = from, upto do
        entries[n - from + 1] = expected + n - first + 1 .. suffix
      end
      redis.call('RPUSH', log, unpack(entries))
      push_or_undo(log, #entries, events, unpack(ARGV, from, upto))
    end
  end
  if snapshot then
    redis.call('HSET', head, 'seq', following, 'snapshot_seq', following, 'snapshot', snapshot)
  else
    redis.call('HSET', head, 'seq', following)
  end
  if command then
    redis.call('SET', command, outcome, 'EX', ARGV[2])
  end
  return {'appended'}
end

-- Functions are made anew in each call of a script, and a dozen of them cost as much as an append's writes: these are for whoever asks.
local function make_others()
  local function write_fence(fresh, ...)
    redis.call('HSET', KEYS[1], 'epoch', string.format('%.0f', epoch + 1), 'nonce', fresh, ...)
    epoch, nonce = epoch + 1, fresh
  end

  function operations.claim()
    local expected, since, owner, fresh = tonumber(argument()), argument(), argument(), argument()
    if not epoch then
      return {'uninitialised'}
    end
    if nonce == fresh then
      return {'claimed', epoch}
    end
    if tonumber(since) < generation then
      return {'stale', generation}
    end
    if expected ~= -1 and expected ~= epoch then
      return {'raced', epoch}
    end
    write_fence(fresh, 'generation', since, 'owner', owner)
    generation = tonumber(since)
    return {'claimed', epoch}
  end

  function operations.seal()
    local theirs, fresh = argument(), argument()
    local refused = refused_by_fence(theirs)
    if refused then
      return refused
    end
    write_fence(fresh, 'owner', '')
    return {'sealed', epoch}
  end

  function operations.check()
    return refused_by_fence(argument()) or {'current'}
  end

  function operations.lookup()
    return {'found', redis.call('GET', key())}
  end

  function operations.activate()
    local head, events = key(), key()
    local theirs, their_epoch, binding = argument(), argument(), argument()
    local refused = refused_by_fence(theirs)
    if refused then
      return refused
    end
    local entity = redis.call('HMGET', head, 'epoch', 'seq', 'snapshot_seq', 'puts', 'snapshot')
    if entity[1] and tonumber(entity[1]) > tonumber(their_epoch) then
      return {'fenced', tonumber(entity[1])}
    end
    local seq, covered, puts = entity[2] or '0', tonumber(entity[3] or '0'), tonumber(entity[4] or '0')
    local length = redis.call('LLEN', events)
    if length + puts ~= tonumber(seq) then
      return {'damaged', tonumber(seq) - puts, length}
    end
    local tail = {}
    if tonumber(seq) > covered then
      tail = redis.call('LRANGE', events, covered - tonumber(seq), -1)
    end
    redis.call('HSET', head, 'epoch', their_epoch, 'binding', binding, 'seq', seq)
    return {'active', tonumber(seq), covered, entity[5], tail}
  end

  function operations.put()
    local head = key()
    local theirs, binding, expected, following = argument(), argument(), argument(), argument()
    local command = argument() == '1' and key()
    local outcome = command and argument()
    local value = argument() == '1' and argument()

    local refused, puts = guarded(head, theirs, binding, command, expected)
    if refused then
      return refused
    end
    local counted = string.format('%.0f', puts + 1)
    if value then
      redis.call('HSET', head, 'seq', following, 'snapshot_seq', following, 'puts', counted, 'snapshot', value)
    else
      redis.call('HSET', head, 'seq', following, 'snapshot_seq', following, 'puts', counted)
      redis.call('HDEL', head, 'snapshot')
    end
    if command then
      redis.call('SET', command, outcome, 'EX', ARGV[2])
    end
    return {'appended'}
  end

  local function read(record)
    local found = redis.call('HMGET', record, 'version', 'value')
    return {'stored', tonumber(found[1] or '0'), found[2]}
  end

  function operations.read()
    return read(key())
  end

  function operations.swap()
    local record, expected, following = key(), argument(), argument()
    local value = argument() == '1' and argument()
    if not epoch then
      return {'uninitialised'}
    end
    if (redis.call('HGET', record, 'version') or '0') ~= expected then
      return read(record)
    end
    if value then
      redis.call('HSET', record, 'version', following, 'value', value)
    else
      redis.call('HSET', record, 'version', following)
      redis.call('HDEL', record, 'value')
    end
    return {'swapped'}
  end

  operations['read-log'] = function()
    local log, before, between, from, to = key(), argument(), argument(), argument(), argument()
    local answer = {'log'}
    for n, entry in ipairs(redis.call('LRANGE', log, from, to)) do
      local seq, puts, id = string.match(entry, '^(%d+) (%d+) (.*)$')
      answer[n + 1] = {tonumber(seq), id, redis.call('LINDEX', before .. #id .. between .. id, seq - puts - 1)}
    end
    return answer
  end

  function operations.commit()
    local cursors, theirs, consumer, offset = key(), argument(), argument(), argument()
    local refused = refused_by_fence(theirs)
    if refused then
      return refused
    end
    local present = redis.call('HGET', cursors, consumer) or '0'
    if tonumber(offset) > tonumber(present) then
      redis.call('HSET', cursors, consumer, offset)
      present = offset
    end
    return {'at', tonumber(present)}
  end

  function operations.cursor()
    return {'at', tonumber(redis.call('HGET', key(), argument()) or '0')}
  end
end

local answers = {}
while next_argument < #ARGV do
  local name = argument()
  if not operations[name] then
    make_others()
  end
  local done, answer = pcall(operations[name])
  if not done then
    answer = {'failed', type(answer) == 'table' and answer.err or answer}
  end
  answers[#answers + 1] = answer
end
return answers
