-- accept {ACCEPT, slot}, token, proposer, next token, head, stamp names, tail, listed, place, due ms, announce, daemon to
-- wake: store a value under a ballot (protocol, section 1). The record is the head, its stamps, and the tail; in the head
-- stands the higher of both tokens as the promise. Stamp names are one string, and so are the daemons.
-- Answers ACCEPTED, {CONFLICT, token, proposer} or TOO_FAR_AHEAD. A stamp that the record had keeps its time, a new one
-- gets this node's. The same accept again is ACCEPTED and changes nothing.
--
-- Most operations are this one: where a condition stands before a call, it is there to spare the call.
local function accept(slot)
  local token, proposer, next_token, head, stamp_names, tail, listed, place, due, announce, wake
  at, token, proposer, next_token, head, stamp_names, tail, listed, place, due, announce, wake =
    unpack_limit(payload, 11, at)
  if shut and slot ~= MEMBERS_SLOT then
    return shut
  end
  if token > last_token or next_token > last_token then
    return TOO_FAR_AHEAD
  end
  if is_changed[slot] then
    -- The index is told of one change of a record at a time.
    flush()
  end
  local raw, was_listed, was_place, held = raws[slot] or load(slot), 0, '', ''
  if raw then
    local _, promise_token, promise_proposer, ballot_token, ballot_proposer, copied
    _, promise_token, promise_proposer, ballot_token, ballot_proposer, copied, was_listed, was_place, _, _, held =
      unpack_limit(raw, STAMPS, 0)
    if copied == 0 and ballot_token == token and ballot_proposer == proposer then
      return ACCEPTED
    end
    -- Equal is allowed: the promise was given to this very ballot, or as this proposer's next.
    local is_promised = token == promise_token and proposer == promise_proposer
    if not is_promised and below(token, proposer, promise_token, promise_proposer) then
      return { CONFLICT, promise_token, promise_proposer }
    end
  elseif under_floor(slot, token) then
    local forgotten_token, forgotten_proposer = floor()
    return { CONFLICT, forgotten_token, forgotten_proposer }
  end
  -- With what comes before them in MessagePack.
  local header, stamps = '\160', ''
  if stamp_names ~= '' then
    header, stamps = stamps_of(stamp_names, held)
  end
  store(slot, head .. header .. stamps .. tail)
  if was_listed ~= listed or was_place ~= '' or place ~= '' then
    reindex(names[slot - 2], was_listed, was_place, listed, place, due, stamps)
  end
  if wake ~= '' or announce == 1 and is_watched ~= false then
    publish(names[slot - 2], announce, wake)
  end
  return ACCEPTED
end
