-- Writes one flush: absolute values, then they are covered by the checkpoint. All checks come before the first write.
-- KEYS: checkpoint, the bits of keys that lack events dated too far ahead, then the key of each step. ARGV: fencing token,
-- session, the checkpoint expected ('' for none), the checkpoint to set, m and m bits to set; then for each step: when the
-- key expires ('' to leave that as it is), n, and n words of fields and values; n = 0 deletes the key.
local refusal = fenced()
if refusal then return refusal end
if (redis.call('HGET', KEYS[1], 'checkpoint') or '') ~= ARGV[3] then
  return {'lost', 'the checkpoint is not the one that this flush goes on from'}
end
local m = tonumber(ARGV[5])
if m > 0 and type(redis.pcall('STRLEN', KEYS[2])) == 'table' then
  return {'type', KEYS[2], redis.call('TYPE', KEYS[2]).ok}
end
refusal = unexpected('HLEN', 3)
if refusal then return refusal end

redis.call('HSET', KEYS[1], 'checkpoint', ARGV[4])
for i = 6, 5 + m do redis.call('SETBIT', KEYS[2], ARGV[i], 1) end
local at = 6 + m
for i = 3, #KEYS do
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
