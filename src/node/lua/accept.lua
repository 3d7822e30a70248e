-- accept {ACCEPT, key, token, proposer, value, vid, recent, stamp names, guard ms, listed, next token, announce,
-- daemons to wake, place}: store a value under a ballot (protocol, section 1).
-- Answers ACCEPTED, {CONFLICT, token, proposer} or TOO_FAR_AHEAD. A stamp that the record had keeps its time, a new one
-- gets this node's. The same accept again is ACCEPTED and changes nothing.

local watched
-- Whether anybody listens for changes; asked at most once a batch.
local function is_watched()
  if watched == nil then
    local reply = redis.pcall('PUBSUB', 'NUMSUB', CHANGES)
    watched = type(reply) == 'table' and (tonumber(reply[2]) or 0) > 0
  end
  return watched
end

local function stamps_of(names, record)
  local since = {}
  if record then
    local held = record[STAMPS]
    for i = 1, #held, 2 do
      since[held[i]] = not_ahead(held[i + 1])
    end
  end
  local stamps = {}
  for i, name in ipairs(names) do
    stamps[2 * i - 1] = name
    stamps[2 * i] = since[name] or now_us
  end
  return stamps
end

-- Hints go out after the value is stored, and what goes wrong with them is nobody's failure.
local function publish(key, announce, wake)
  for _, daemon in ipairs(wake) do
    redis.pcall('PUBLISH', DAEMONS .. daemon, key)
  end
  if announce == 1 and is_watched() then
    redis.pcall('PUBLISH', CHANGES, key)
  end
end

local function accept(operation)
  local key, token, proposer = operation[2], operation[3], operation[4]
  local listed, next_token = operation[10], operation[11]
  if too_far_ahead(token) or too_far_ahead(next_token) then
    return TOO_FAR_AHEAD
  end
  local record = load(key)
  if record then
    if record[COPIED] == 0 and record[BALLOT_TOKEN] == token and record[BALLOT_PROPOSER] == proposer then
      return ACCEPTED
    end
    -- Equal is allowed: the promise was given to this very ballot, or as this proposer's next.
    if below(token, proposer, record[PROMISE_TOKEN], record[PROMISE_PROPOSER]) then
      return { CONFLICT, record[PROMISE_TOKEN], record[PROMISE_PROPOSER] }
    end
  elseif under_floor(key, token) then
    local forgotten_token, forgotten_proposer = floor()
    return { CONFLICT, forgotten_token, forgotten_proposer }
  end
  local promise = token
  if next_token > token then
    promise = next_token
  end
  local stored = {
    promise, proposer, token, proposer, operation[6], operation[7], operation[5],
    stamps_of(operation[8], record), operation[9], 0, listed, operation[14],
  }
  store(key, stored)
  reindex(key, record, stored)
  publish(key, operation[12], operation[13])
  return ACCEPTED
end
