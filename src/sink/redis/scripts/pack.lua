-- Moves a part of a bucket's hash into its string.
-- KEYS: checkpoint, string, hash. ARGV: fencing token, session, the records, when the string expires, the records' fields.
local refusal = fenced()
if refusal then return refusal end
if type(redis.pcall('STRLEN', KEYS[2])) == 'table' then
  return {'type', KEYS[2], redis.call('TYPE', KEYS[2]).ok}
end
redis.call('APPEND', KEYS[2], ARGV[3])
redis.call('EXPIREAT', KEYS[2], ARGV[4])
redis.call('HDEL', KEYS[3], unpack(ARGV, 5))
return {'ok'}
