-- Deletes keys.
-- KEYS: rebuild, keys. ARGV: fencing token, session.
local refusal = fenced()
if refusal then return refusal end
for i = 2, #KEYS do redis.call('UNLINK', KEYS[i]) end
return {'ok'}
