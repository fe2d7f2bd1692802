-- Begins a rebuild, or begins it again: until it is done nobody else writes, and the former mark is gone.
-- KEYS: mark, rebuild. ARGV: token, session.
for i = 1, 2 do
  local kind = redis.call('TYPE', KEYS[i]).ok
  if kind ~= 'none' and kind ~= 'hash' then return {'type', KEYS[i], kind} end
  local token = redis.call('HGET', KEYS[i], 'token')
  if token and tonumber(token) > tonumber(ARGV[1]) then return {'fenced', token} end
end
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[2], 'token', ARGV[1], 'session', ARGV[2])
redis.call('HDEL', KEYS[1], 'mark')
redis.call('HSET', KEYS[1], 'token', ARGV[1], 'session', ARGV[2])
return {'ok'}
