-- prepare {PREPARE, slot}, token, proposer, soft: promise to refuse lower ballots (protocol, section 1).
-- Answers {PROMISED, raw record, floor}, {HELD, raw record} if soft and guarded, {CONFLICT, token, proposer},
-- or TOO_FAR_AHEAD. The node's clock decides whether a guard has aged. A repeat of the same ballot is promised again.

-- Whether what guards a record has yet to age, by this node's clock. <= because a lease of exactly its length is not aged
-- yet: aged means longer. Below zero the clock has gone back, which a promise sets right.
is_guarded = function(guard_ms, stamps)
  if guard_ms == 0 then
    return false
  end
  local age = now_us - tonumber(string.sub(stamps, STAMP_NAME + 1, STAMP_LENGTH))
  return age >= 0 and age <= guard_ms * 1000
end

local function without_future(stamps)
  for i = 1, #stamps, STAMP_LENGTH do
    local since = tonumber(string.sub(stamps, i + STAMP_NAME, i + STAMP_LENGTH - 1))
    if not_ahead(since) ~= since then
      stamps = string.sub(stamps, 1, i + STAMP_NAME - 1) .. digits_of_now()
        .. string.sub(stamps, i + STAMP_LENGTH)
    end
  end
  return stamps
end

-- The record with another promise. The other fields stay as they are.
local function with_promise(raw, token, proposer, stamps)
  local rest = unpack_limit(raw, 2, 0)
  local own = without_future(stamps)
  if own == stamps then
    return cmsgpack.pack(token, proposer) .. string.sub(raw, rest + 1)
  end
  local tail, ballot_token, ballot_proposer, copied, listed, place, due, guard_ms = unpack_limit(raw, 8, rest)
  return cmsgpack.pack(token, proposer, ballot_token, ballot_proposer, copied, listed, place, due, guard_ms, own)
    .. string.sub(raw, tail + 1)
end

-- Beside the answer what is to be stored, if anything is.
promise = function(slot, raw, token, proposer, soft)
  if token > last_token then
    return TOO_FAR_AHEAD
  end
  local _, _, forgotten = floor()
  if not raw then
    if under_floor(slot, token) then
      local forgotten_token, forgotten_proposer = floor()
      return { CONFLICT, forgotten_token, forgotten_proposer }
    end
    local bare = cmsgpack.pack(token, proposer, 0, NO_PROPOSER, 0, 0, '', 0, 0, '', '', '', '')
    return { PROMISED, bare, forgotten }, bare
  end
  local _, promised, promised_to, _, _, _, _, _, _, guard_ms, stamps = unpack_limit(raw, STAMPS, 0)
  if soft == 1 and is_guarded(guard_ms, stamps) then
    return { HELD, raw }
  end
  -- By token alone, so that two daemons with one token never both get a quorum of promises: tokens order grants.
  if token > promised then
    local stored = with_promise(raw, token, proposer, stamps)
    return { PROMISED, stored, forgotten }, stored
  end
  if token == promised and proposer == promised_to then
    return { PROMISED, raw, forgotten }
  end
  return { CONFLICT, promised, promised_to }
end

prepare = function(slot)
  local token, proposer, soft
  at, token, proposer, soft = unpack_limit(payload, 3, at)
  if shut and slot ~= MEMBERS_SLOT then
    return shut
  end
  local answer, stored = promise(slot, load(slot), token, proposer, soft)
  if stored then
    store(slot, stored)
  end
  return answer
end
