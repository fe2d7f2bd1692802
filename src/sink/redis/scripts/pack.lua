-- Moves a bucket's hash into its string.
-- KEYS: checkpoint, string, hash. ARGV: fencing token, session, the hash's records, when the string expires.
local refusal = fenced()
if refusal then return refusal end
if type(redis.pcall('STRLEN', KEYS[2])) == 'table' then
  return {'type', KEYS[2], redis.call('TYPE', KEYS[2]).ok}
end
redis.call('APPEND', KEYS[2], ARGV[3])
redis.call('EXPIREAT', KEYS[2], ARGV[4])
redis.call('UNLINK', KEYS[3])
return {'ok'}
