-- Begins a rebuild, or begins it again: until it is done nobody else writes, and the former checkpoint is gone.
-- KEYS: checkpoint, rebuild, the checkpoint of version 0.1. ARGV: fencing token, session.
carry_over(KEYS[3], KEYS[1])
for i = 1, 2 do
  local kind = redis.call('TYPE', KEYS[i]).ok
  if kind ~= 'none' and kind ~= 'hash' then return {'type', KEYS[i], kind} end
  local fencing_token = redis.call('HGET', KEYS[i], 'fencing_token')
  if fencing_token and tonumber(fencing_token) > tonumber(ARGV[1]) then return {'fenced', fencing_token} end
end
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[2], 'fencing_token', ARGV[1], 'session', ARGV[2])
redis.call('HDEL', KEYS[1], 'checkpoint')
redis.call('HSET', KEYS[1], 'fencing_token', ARGV[1], 'session', ARGV[2])
return {'ok'}
