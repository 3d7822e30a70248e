-- Dispatch: runs the operations of a batch one by one. ARGV[1] is MessagePack: [list vid, [operation, …]].
-- Returns MessagePack: [BATCH_DONE, memory, own list vid, microseconds, [answer, …], writes], where writes is how many
-- batches have changed something, or 0 if this one has not. An operation that raises an error answers {FAILED, message}
-- and does not keep the others from running.

local OPERATIONS = { [READ] = read, [PREPARE] = prepare, [ACCEPT] = accept, [LIST] = list, [FOUND] = found }

local function message_of(raised)
  if type(raised) == 'table' then
    return tostring(raised.err)
  end
  return tostring(raised)
end

local answers = {}
for i, operation in ipairs(batch[2]) do
  local answer = gate(batch[1], operation)
  if not answer then
    local code = operation[1]
    local done, result = pcall(OPERATIONS[code] or UPKEEP[code] or QUEUES[code], operation)
    answer = done and result or { FAILED, message_of(result) }
  end
  answers[i] = answer
end
local writes = wrote and redis.call('INCR', WRITES_KEY) or 0
return cmsgpack.pack({ BATCH_DONE, node[NODE_MEMORY], own_list, now_us, answers, writes })
