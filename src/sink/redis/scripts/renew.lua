-- Lets keys live longer.
-- KEYS: checkpoint, keys. ARGV: fencing token, session, when the keys expire.
local refusal = fenced()
if refusal then return refusal end
for i = 2, #KEYS do redis.call('EXPIREAT', KEYS[i], ARGV[3]) end
return {'ok'}
