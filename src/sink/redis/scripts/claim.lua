-- Takes the fence: from now on only writes of this session count. Answers with the checkpoint, if there is one.
-- KEYS: checkpoint, rebuild, the checkpoint of version 0.1. ARGV: fencing token, session.
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'none' and kind ~= 'hash' then return {'type', KEYS[1], kind} end
if redis.call('EXISTS', KEYS[2]) == 1 then return {'rebuilding', KEYS[2]} end
carry_over(KEYS[3], KEYS[1])
local held = redis.call('HMGET', KEYS[1], 'fencing_token', 'checkpoint')
if held[1] and tonumber(held[1]) > tonumber(ARGV[1]) then return {'fenced', held[1]} end
redis.call('HSET', KEYS[1], 'fencing_token', ARGV[1], 'session', ARGV[2])
return held[2] and {'ok', held[2]} or {'ok'}
