-- KEYS[1] is the key of the checkpoint, ARGV[1] and ARGV[2] are the caller's fencing token and session. Whoever recovers puts
-- its own there: from then on nothing that was sent earlier, or by an older instance, changes anything.
local function fenced()
  local kind = redis.call('TYPE', KEYS[1]).ok
  if kind ~= 'none' and kind ~= 'hash' then return {'type', KEYS[1], kind} end
  local held = redis.call('HMGET', KEYS[1], 'fencing_token', 'session')
  if held[1] == ARGV[1] and held[2] == ARGV[2] then return nil end
  if held[1] and tonumber(held[1]) > tonumber(ARGV[1]) then return {'fenced', held[1]} end
  return {'lost', 'the session of this connection has been replaced or deleted'}
end

-- The answer for the first key that holds something else than what the probe asks for.
local function unexpected(probe, from)
  for i = from, #KEYS do
    local found = redis.pcall(probe, KEYS[i])
    if type(found) == 'table' then
      if not string.find(found.err, 'WRONGTYPE', 1, true) then return found end
      return {'type', KEYS[i], redis.call('TYPE', KEYS[i]).ok}
    end
  end
end

