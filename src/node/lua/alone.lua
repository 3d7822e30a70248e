-- Alone: operations that read and write by themselves. Before one all is written, and after it all is read anew.
run_alone = function(code)
  local operation
  at, operation = unpack_limit(payload, 1, at)
  flush()
  raws = {}
  local refusal = shut
  if code < CLAIM then
    refusal = gate(operation)
  end
  if refusal then
    return refusal
  end
  local done, answer = pcall(UPKEEP[code] or QUEUES[code], operation)
  -- What failed half way may have gathered some.
  removals, additions, displaced = {}, {}, {}
  shut = closed()
  if not done then
    error(answer, 0)
  end
  return answer
end
