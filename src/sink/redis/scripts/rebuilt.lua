-- Ends a rebuild: what it wrote is covered by the mark.
-- KEYS: rebuild, mark. ARGV: token, session, the mark to set.
local refusal = fenced()
if refusal then return refusal end
redis.call('HSET', KEYS[2], 'mark', ARGV[3])
redis.call('DEL', KEYS[1])
return {'ok'}
