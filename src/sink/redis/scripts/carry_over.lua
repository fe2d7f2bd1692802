-- Version 0.1 kept checkpoint and fence in another key, in fields of other names. They are moved once. The number stays
-- there for a month, raised to the caller's: an instance of version 0.1 that wakes up is refused.
local function carry_over(from, to)
  if redis.call('EXISTS', to) == 1 or redis.call('TYPE', from).ok ~= 'hash' then return end
  local held = redis.call('HMGET', from, 'token', 'mark')
  if not held[1] or tonumber(held[1]) > tonumber(ARGV[1]) then return end
  redis.call('HSET', to, 'fencing_token', held[1])
  if held[2] then redis.call('HSET', to, 'checkpoint', held[2]) end
  redis.call('DEL', from)
  redis.call('HSET', from, 'token', ARGV[1])
  redis.call('EXPIRE', from, 30 * 86400)
end

