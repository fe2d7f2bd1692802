-- Reads a page of a hash together with the checkpoint that covers it.
-- KEYS: checkpoint, hash, and if it is a bucket's, the string of what is packed. ARGV: cursor, fields of a page, bytes of the string
-- to give. Answers with the checkpoint ('' for none), the next cursor, fields and values, the string's length and its beginning;
-- with the checkpoint alone when a key is of another type.
local answer = {redis.call('HGET', KEYS[1], 'checkpoint') or ''}
for i, wanted in ipairs({'hash', 'string'}) do
  local kind = KEYS[i + 1] and redis.call('TYPE', KEYS[i + 1]).ok or 'none'
  if kind ~= 'none' and kind ~= wanted then return answer end
end
local page = redis.call('HSCAN', KEYS[2], ARGV[1], 'COUNT', ARGV[2])
answer[2], answer[3] = page[1], page[2]
if KEYS[3] then
  answer[4] = redis.call('STRLEN', KEYS[3])
  answer[5] = tonumber(ARGV[3]) > 0 and redis.call('GETRANGE', KEYS[3], 0, ARGV[3] - 1) or ''
end
return answer
