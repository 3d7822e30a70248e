-- Dispatch: runs the operations of a batch one by one.
-- Returns MessagePack: [BATCH_DONE, memory, own list vid, microseconds, [answer, …], writes], where writes is how many
-- batches have changed something, or 0 if this one has not. An operation that raises an error answers {FAILED, message}
-- and does not keep the others from running.

-- What the codes of operations and their slots stand between.
local codes = {}
if operation_count > 0 then
  codes = { unpack_limit(payload, 2 * operation_count, at) }
  at = codes[1]
end

-- An operation that reads and writes by itself: before it all is written, and after it all is read anew.
local function run_alone(code, operation)
  flush()
  raws = {}
  local shut
  if code < CLAIM then
    shut = gate(operation)
  else
    shut = closed()
  end
  if shut then
    return true, shut
  end
  local done, answer = pcall(UPKEEP[code] or QUEUES[code], operation)
  -- What failed half way may have gathered some.
  removals, additions = {}, {}
  return done, answer
end

-- Whether it was done, and the answer. What an operation needs is unpacked also where the gate is shut: the next follows it.
local function run(code, slot)
  local shut = code <= ACCEPT and slot ~= MEMBERS_SLOT and closed()
  if code == ACCEPT then
    local token, proposer, next_token, head, stamp_names, tail, listed, place, due, announce, wake
    at, token, proposer, next_token, head, stamp_names, tail, listed, place, due, announce, wake =
      unpack_limit(payload, 11, at)
    if not shut then
      return pcall(accept, slot, token, proposer, next_token, head, stamp_names, tail, listed, place, due, announce, wake)
    end
  elseif code == PREPARE then
    local token, proposer, soft
    at, token, proposer, soft = unpack_limit(payload, 3, at)
    if not shut then
      return pcall(prepare, slot, token, proposer, soft)
    end
  elseif code == READ then
    if not shut then
      return pcall(read, slot)
    end
  else
    local operation
    at, operation = unpack_limit(payload, 1, at)
    return run_alone(code, operation)
  end
  return true, shut
end

for i = 1, operation_count do
  local slot = codes[2 * i + 1]
  local done, answer = run(codes[2 * i], slot)
  answers[i] = done and answer or { FAILED, message_of(answer) }
  if is_changed[slot] then
    touched[#touched + 1] = i
  end
end
flush(true)
local writes = wrote and redis.call('INCR', WRITES_KEY) or 0
return cmsgpack.pack({ BATCH_DONE, node[NODE_MEMORY], own_list, now_us, answers, writes })
