-- Ends a rebuild: what it wrote is covered by the checkpoint.
-- KEYS: rebuild, checkpoint. ARGV: fencing token, session, the checkpoint to set.
local refusal = fenced()
if refusal then return refusal end
redis.call('HSET', KEYS[2], 'checkpoint', ARGV[3])
redis.call('DEL', KEYS[1])
return {'ok'}
