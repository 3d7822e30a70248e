-- Index: which registers of a kind there are, and where the items of a queue stand. All of it hints, kept by whatever
-- stores or removes a record; what is answered by them is read by quorum.

-- The key of an item is 'q:', the queue, this, and the item's id. Names have no control characters.
local SEPARATOR = '\31'
-- A member of a queue's sets is an item's order (priority and time of its put, in so many hexadecimal digits) and its id,
-- so that byte order is the order of the queue.
local ORDER_LENGTH = 22

-- Sets of a queue: r ready, w delayed, l leased, d dead, x done, and m for those that somebody has claimed a moment ago. The
-- score is when a delay, lease or mark is over, in milliseconds of this node's clock, and otherwise 0.
local function queue_set(set, queue)
  return 'majorityd:i:q' .. set .. ':' .. queue
end

-- What is due stands among the ready, and what is claimed among the marked, whatever the record says of its place. What the
-- record says is ready has most likely been claimed, or it would not be written.
local function unplace(queue, place)
  local first, second, third = place[1], 'm', 'r'
  if first == 'r' then
    first, second, third = 'm', 'r', nil
  end
  for _, set in ipairs({ first, second, third }) do
    if redis.call('ZREM', queue_set(set, queue), place[2]) == 1 then
      return
    end
  end
end

local function reindex_item(key, was, now)
  local queue = string.sub(key, 3, string.find(key, SEPARATOR, 3, true) - 1)
  if was and was[PLACE] then
    unplace(queue, was[PLACE])
  end
  local place = now and now[PLACE]
  if place then
    local due = 0
    if place[3] > 0 then
      -- Past the next whole millisecond, so that what is due here has aged here.
      due = math.floor(now[STAMPS][2] / 1000) + 1 + place[3]
    end
    redis.call('ZADD', queue_set(place[1], queue), due, place[2])
  end
end

-- What a record was, or nil, and what it is, or nil.
local function reindex(key, was, now)
  if string.sub(key, 1, 1) == 'q' then
    return reindex_item(key, was, now)
  end
  local was_listed, listed = was and was[LISTED] or 0, now and now[LISTED] or 0
  if was_listed ~= listed then
    local set, name = 'majorityd:i:' .. string.sub(key, 1, 1), string.sub(key, 3)
    if listed == 1 then
      redis.call('ZADD', set, 0, name)
    else
      redis.call('ZREM', set, name)
    end
  end
end
