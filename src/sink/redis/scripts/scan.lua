-- Reads a part of a hash together with the checkpoint that covers it.
-- KEYS: checkpoint, hash. ARGV: cursor. Answers with the checkpoint ('' for none), the next cursor, fields and values.
local part = redis.call('HSCAN', KEYS[2], ARGV[1], 'COUNT', 1000)
return {redis.call('HGET', KEYS[1], 'checkpoint') or '', part[1], part[2]}
