-- Writes one flush: absolute values, then they are covered by the checkpoint. All checks come before the first write.
-- KEYS: checkpoint, then the key of each step. ARGV: fencing token, session, the checkpoint expected ('' for none), the checkpoint to set;
-- then for each step: when the key expires ('' to leave that as it is), n, and n words of fields and values;
-- n = 0 deletes the key.
local refusal = fenced()
if refusal then return refusal end
if (redis.call('HGET', KEYS[1], 'checkpoint') or '') ~= ARGV[3] then
  return {'lost', 'the checkpoint is not the one that this flush goes on from'}
end
refusal = unexpected('HLEN', 2)
if refusal then return refusal end

redis.call('HSET', KEYS[1], 'checkpoint', ARGV[4])
local at = 5
for i = 2, #KEYS do
  local n = tonumber(ARGV[at + 1])
  if n == 0 then
    redis.call('DEL', KEYS[i])
  else
    redis.call('HSET', KEYS[i], unpack(ARGV, at + 2, at + 1 + n))
    if ARGV[at] ~= '' then redis.call('EXPIREAT', KEYS[i], ARGV[at]) end
  end
  at = at + 2 + n
end
return {'ok'}
