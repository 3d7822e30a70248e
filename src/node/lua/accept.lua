-- accept {ACCEPT, slot}, token, proposer, next token, head, stamp names, tail, listed, place, due ms, announce, daemon to
-- wake: store a value under a ballot (protocol, section 1). The record is the head, its stamps, and the tail; in the head
-- stands the higher of both tokens as the promise. Stamp names are one string, and so are the daemons.
-- Answers ACCEPTED, {CONFLICT, token, proposer} or TOO_FAR_AHEAD. A stamp that the record had keeps its time, a new one
-- gets this node's. The same accept again is ACCEPTED and changes nothing.

-- Since when a stamp is held, as digits; nil if it is not.
local function since(name, held)
  local at = string.find(held, name, 1, true)
  while at and at % STAMP_LENGTH ~= 1 do
    at = string.find(held, name, at + 1, true)
  end
  if at then
    local digits = string.sub(held, at + STAMP_NAME, at + STAMP_LENGTH - 1)
    return not_ahead(tonumber(digits)) == now_us and digits_of_now() or digits
  end
end

local function stamp(name, held)
  return name .. (since(name, held) or digits_of_now())
end

local function stamps_of(stamp_names, held)
  if #stamp_names <= STAMP_NAME then
    -- As most are.
    return stamp_names ~= '' and stamp(stamp_names, held) or ''
  end
  local stamps = {}
  for i = 1, #stamp_names, STAMP_NAME do
    stamps[#stamps + 1] = stamp(string.sub(stamp_names, i, i + STAMP_NAME - 1), held)
  end
  return table.concat(stamps)
end

-- What comes before a string in MessagePack.
local function string_header(text)
  if text == '' then
    return '\160'
  elseif #text == STAMP_LENGTH then
    return '\217\33'
  end
  return string.sub(cmsgpack.pack(text), 1, -1 - #text)
end

local function accept(slot, token, proposer, next_token, head, stamp_names, tail, listed, place, due, announce, wake)
  if too_far_ahead(token) or too_far_ahead(next_token) then
    return TOO_FAR_AHEAD
  end
  if is_changed[slot] then
    -- The index is told of one change of a record at a time.
    flush()
  end
  local raw, was_listed, was_place, held = load(slot), 0, '', ''
  if raw then
    local _, promise_token, promise_proposer, ballot_token, ballot_proposer, copied
    _, promise_token, promise_proposer, ballot_token, ballot_proposer, copied, was_listed, was_place, _, _, held =
      unpack_limit(raw, STAMPS, 0)
    if copied == 0 and ballot_token == token and ballot_proposer == proposer then
      return ACCEPTED
    end
    -- Equal is allowed: the promise was given to this very ballot, or as this proposer's next.
    if below(token, proposer, promise_token, promise_proposer) then
      return { CONFLICT, promise_token, promise_proposer }
    end
  elseif under_floor(slot, token) then
    local forgotten_token, forgotten_proposer = floor()
    return { CONFLICT, forgotten_token, forgotten_proposer }
  end
  local stamps = stamps_of(stamp_names, held)
  store(slot, head .. string_header(stamps) .. stamps .. tail)
  local name = names[slot - 2]
  reindex(name, was_listed, was_place, listed, place, due, stamps)
  if announce == 1 or wake ~= '' then
    publish(name, announce, wake)
  end
  return ACCEPTED
end
