-- Brings boards up to date. Answers with the number of each board that did not hold what was expected; that one is
-- left as it is.
-- KEYS: checkpoint, boards. ARGV: fencing token, session; then for each board: how many members it must have now ('' to begin
-- with none), the seconds it then lives ('' for ever), n and n members to remove, m and m words of score and
-- member to put.
local refusal = fenced() or unexpected('ZCARD', 2)
if refusal then return refusal end

local answer = {'ok'}
local at = 3
for i = 2, #KEYS do
  local expected, seconds = ARGV[at], ARGV[at + 1]
  local n = tonumber(ARGV[at + 2])
  local gone = at + 3
  local m = tonumber(ARGV[gone + n])
  local put = gone + n + 1
  if expected ~= '' and redis.call('ZCARD', KEYS[i]) ~= tonumber(expected) then
    answer[#answer + 1] = tostring(i - 2)
  else
    if expected == '' then redis.call('DEL', KEYS[i]) end
    if n > 0 then redis.call('ZREM', KEYS[i], unpack(ARGV, gone, gone + n - 1)) end
    if m > 0 then redis.call('ZADD', KEYS[i], unpack(ARGV, put, put + m - 1)) end
    if seconds ~= '' then redis.call('EXPIRE', KEYS[i], seconds) end
  end
  at = put + m
end
return answer
