#!lua
-- Make a keyspace once: its layout and the fences of all its shards; afterwards answer with the layout that is there.
-- KEYS: the layout, then the fence of each shard. ARGV: journal id, shard count, hash, format, random bytes (8 for each shard).
-- Answers journal id, shard count, hash, format; nothing at all when there are fences without a layout.

local layout = redis.call('HMGET', KEYS[1], 'journal', 'shards', 'hash', 'format')
if layout[1] then
  return layout
end
if redis.call('EXISTS', unpack(KEYS, 2)) > 0 then
  return {}
end
for n = 2, #KEYS do
  local nonce = string.sub(ARGV[5], 8 * n - 15, 8 * n - 8)
  redis.call('HSET', KEYS[n], 'journal', ARGV[1], 'epoch', '0', 'nonce', nonce, 'generation', '0', 'owner', '')
end
redis.call('HSET', KEYS[1], 'journal', ARGV[1], 'shards', ARGV[2], 'hash', ARGV[3], 'format', ARGV[4])
return {ARGV[1], ARGV[2], ARGV[3], ARGV[4]}
