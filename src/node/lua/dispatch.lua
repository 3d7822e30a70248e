-- Dispatch: runs the operations of a batch one by one.
-- Returns MessagePack: [BATCH_DONE, memory, own list vid, microseconds, [answer, …], writes], where writes is how many
-- batches have changed something, or 0 if this one has not. An operation that raises an error answers {FAILED, message}
-- and does not keep the others from running. Each takes what it needs from the payload, also where the gate is shut: the next
-- follows it.

-- What the codes of operations and their slots stand between.
local codes = {}
if operation_count > 0 then
  codes = { unpack_limit(payload, 2 * operation_count, at) }
  at = codes[1]
end

-- How many operations have been begun, and where in the payload what the last of them needs begins.
local begun, began_at = 0, at

local function run_on()
  for i = begun + 1, operation_count do
    begun, began_at = i, at
    local code, slot, answer = codes[2 * i], codes[2 * i + 1]
    if code == ACCEPT then
      answer = accept(slot)
    elseif code == PREPARE then
      answer = prepare(slot)
    elseif code == READ then
      answer = read(slot)
    else
      answer = run_alone(code)
    end
    answers[i] = answer
    if is_changed[slot] then
      touched[#touched + 1] = i
    end
  end
end

while begun < operation_count do
  local done, raised = pcall(run_on)
  if not done then
    if at == began_at and codes[2 * begun] ~= READ then
      -- Where the next one begins is not known.
      error(raised, 0)
    end
    answers[begun] = { FAILED, message_of(raised) }
  end
end
flush(true)
local writes = wrote and redis.call('INCR', WRITES_KEY) or 0
return cmsgpack.pack({ BATCH_DONE, memory, own_list, now_us, answers, writes })
