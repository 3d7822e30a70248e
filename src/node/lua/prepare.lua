-- prepare {PREPARE, key, token, proposer, soft}: promise to refuse lower ballots (protocol, section 1).
-- Answers {PROMISED, raw record, floor}, {HELD, raw record} if soft and guarded, {CONFLICT, token, proposer},
-- or TOO_FAR_AHEAD. The node's clock decides whether a guard has aged. A repeat of the same ballot is promised again.
local function prepare_loaded(key, record, raw, token, proposer, soft)
  if too_far_ahead(token) then
    return TOO_FAR_AHEAD
  end
  local _, _, forgotten = floor()
  if not record then
    if under_floor(key, token) then
      local forgotten_token, forgotten_proposer = floor()
      return { CONFLICT, forgotten_token, forgotten_proposer }
    end
    record = { token, proposer, 0, NO_PROPOSER, '', '', '', {}, 0, 0, 0, false }
    return { PROMISED, store(key, record), forgotten }
  end
  if soft == 1 and is_guarded(record) then
    return { HELD, raw }
  end
  local promised = record[PROMISE_TOKEN]
  -- By token alone, so that two daemons with one token never both get a quorum of promises: tokens order grants.
  if token > promised then
    record[PROMISE_TOKEN], record[PROMISE_PROPOSER] = token, proposer
    local stamps = record[STAMPS]
    for i = 2, #stamps, 2 do
      stamps[i] = not_ahead(stamps[i])
    end
    return { PROMISED, store(key, record), forgotten }
  end
  if token == promised and proposer == record[PROMISE_PROPOSER] then
    return { PROMISED, raw, forgotten }
  end
  return { CONFLICT, promised, record[PROMISE_PROPOSER] }
end

local function prepare(operation)
  local key = operation[2]
  local record, raw = load(key)
  return prepare_loaded(key, record, raw, operation[3], operation[4], operation[5])
end
