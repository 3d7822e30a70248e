-- read {READ, key}: what is held under the key, changing nothing (protocol, section 1).
-- Answers {RECORD, raw record or false}. The daemon works out ages from the batch's time. A repeat does the same again.
local function read(operation)
  local raw = redis.call('GET', RECORDS .. operation[2])
  return { RECORD, raw }
end
