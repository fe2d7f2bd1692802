-- Reads keys together with the checkpoint that covers them.
-- KEYS: checkpoint, keys. Answers with the checkpoint ('' for none), then with what each key holds; nothing for a key of a type
-- that walcast does not use, or that is not there.
local answer = {redis.call('HGET', KEYS[1], 'checkpoint') or ''}
for i = 2, #KEYS do
  local kind = redis.call('TYPE', KEYS[i]).ok
  if kind == 'hash' then
    answer[i] = redis.call('HGETALL', KEYS[i])
  elseif kind == 'zset' then
    answer[i] = redis.call('ZRANGE', KEYS[i], 0, -1, 'WITHSCORES')
  else
    answer[i] = {}
  end
end
return answer
