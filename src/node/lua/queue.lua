-- Queue: what is about a queue and not about one of its items. Run only in batches that have such an operation.

local now_ms = math.floor(now_us / 1000)
-- So many due items at most are moved by one operation.
local ADVANCE_MAX = 1000

-- Items whose delay, lease or mark is over stand among the ready.
local function advance(queue, most)
  local before = string.format('(%.0f', now_ms)
  for _, set in ipairs({ 'w', 'l', 'm' }) do
    local timed = queue_set(set, queue)
    for _, member in ipairs(redis.call('ZRANGEBYSCORE', timed, '-inf', before, 'LIMIT', 0, most)) do
      append(removals, timed, member)
      append(additions, queue_set('r', queue), '0', member)
    end
  end
  write_index()
end

-- Milliseconds until the next item is due, or -1.
local function next_due(queue)
  local first = -1
  for _, set in ipairs({ 'w', 'l', 'm' }) do
    local head = redis.call('ZRANGE', queue_set(set, queue), 0, 0, 'WITHSCORES')
    if head[2] then
      local left = math.max(tonumber(head[2]) - now_ms, 0)
      first = first < 0 and left or math.min(first, left)
    end
  end
  return first
end

-- Sets of items that are not done yet, by their letters r, w and l.
local READY_SET, DELAYED_SET, LEASED_SET = 114, 119, 108

-- The sets may be behind: a record that says otherwise is no longer there, whatever they say.
local function is_open(raw, member)
  if not raw then
    return false
  end
  local place = select(1 + PLACE, unpack_limit(raw, PLACE, 0))
  local set = string.byte(place, 1)
  return (set == READY_SET or set == DELAYED_SET or set == LEASED_SET) and string.sub(place, 2) == member
end

-- So many records are read at once: a claim ends with the first that is past its bytes.
local CLAIM_READS = 16

-- claim {CLAIM, queue, count, bytes, mark ms, token, proposer}: prepares the first ready items under one ballot, so many at
-- most, and no more once their records have so many bytes (protocol, section 4). What was looked at is marked, so that for
-- a moment nobody else is given it. Whether an item may be leased is decided by agreement and not here.
-- Answers {CLAIMED, [member, raw record, …], floor, milliseconds until the next is due or -1, whether others' marks were
-- met}, or TOO_FAR_AHEAD. A repeat claims other items.
QUEUES[CLAIM] = function(operation)
  local queue, count, bytes, mark_ms = operation[2], operation[3], operation[4], operation[5]
  local token, proposer = operation[6], operation[7]
  if token > last_token then
    return TOO_FAR_AHEAD
  end
  advance(queue, ADVANCE_MAX)
  local ready, marked = queue_set('r', queue), queue_set('m', queue)
  local contended = redis.call('ZCARD', marked) > 0 and 1 or 0
  local rows, size, words = {}, 0, {}

  -- Some may be no longer there, or promised to somebody else.
  local function look_at(member, key, raw)
    append(removals, ready, member)
    if is_open(raw, member) then
      append(additions, marked, now_ms + mark_ms, member)
      local answer, stored = promise(nil, raw, token, proposer, 0)
      if stored then
        words[#words + 1], words[#words + 2] = key, stored
      end
      if answer[1] == PROMISED then
        rows[#rows + 1], rows[#rows + 2] = member, answer[2]
        size = size + #answer[2]
      end
    end
  end

  local members, first = redis.call('ZRANGE', ready, 0, 2 * count - 1), 1
  local function is_over()
    return #rows == 2 * count or size >= bytes
  end
  while first <= #members and not is_over() do
    local keys = {}
    for i = first, math.min(first + CLAIM_READS - 1, #members) do
      keys[#keys + 1] = RECORDS .. 'q:' .. queue .. SEPARATOR .. string.sub(members[i], ORDER_LENGTH + 1)
    end
    for i, raw in ipairs(redis.call('MGET', unpack(keys))) do
      if is_over() then
        break
      end
      look_at(members[first + i - 1], keys[i], raw)
    end
    first = first + CLAIM_READS
  end
  if #words > 0 then
    redis.call('MSET', unpack(words))
    wrote = true
  end
  write_index()
  local _, _, forgotten = floor()
  return { CLAIMED, rows, forgotten, next_due(queue), contended }
end

-- census {CENSUS, queue, set, limit}: how many items stand where, by this node alone, and the first so many of one set.
-- Answers {CENSUS_OF, ready, delayed, leased, dead, done, first ready member or '', [member, …]}.
QUEUES[CENSUS] = function(operation)
  local queue, set, limit = operation[2], operation[3], operation[4]
  advance(queue, ADVANCE_MAX)
  local function card(letter)
    return redis.call('ZCARD', queue_set(letter, queue))
  end
  local first = redis.call('ZRANGE', queue_set('r', queue), 0, 0)[1] or ''
  local members = limit > 0 and redis.call('ZRANGE', queue_set(set, queue), 0, limit - 1) or {}
  return { CENSUS_OF, card('r') + card('m'), card('w'), card('l'), card('d'), card('x'), first, members }
end
