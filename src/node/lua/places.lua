-- Places: where the items of a queue stand, as the index has it.

-- A member of a queue's sets is an item's order (priority and time of its put, in so many hexadecimal digits) and its id,
-- so that byte order is the order of the queue.
local ORDER_LENGTH = 22

-- Sets of a queue: r ready, w delayed, l leased, d dead, x done, and m for those that somebody has claimed a moment ago. The
-- score is when a delay, lease or mark is over, in milliseconds of this node's clock, and otherwise 0.
queue_set = function(set, queue)
  return 'majorityd:i:q' .. set .. ':' .. queue
end

-- Where the queue stands in the name of such a set.
local QUEUE_AT = 16

-- The queue of an item, by its key in full.
local function queue_of(name)
  return string.sub(name, NAME_AT, string.find(name, SEPARATOR, NAME_AT, true) - 1)
end

-- Where a member is looked for first. What the record calls ready was claimed before it is leased, as a rule, and is marked.
local FIRST = { r = 'm' }

local function unplace(queue, place)
  local set = string.sub(place, 1, 1)
  append(displaced, queue_set(FIRST[set] or set, queue), string.sub(place, 2))
end

-- What is due stands among the ready, and what is claimed among the marked, whatever the record says of its place. In one
-- set at a time: who is found in the first is nowhere else.
remove_displaced = function()
  for set, members in pairs(displaced) do
    if redis.call('ZREM', set, unpack(members)) < #members then
      local queue = string.sub(set, QUEUE_AT)
      redis.call('ZREM', queue_set('m', queue), unpack(members))
      redis.call('ZREM', queue_set('r', queue), unpack(members))
    end
  end
  displaced = {}
end

-- Past the next whole millisecond, so that what is due here has aged here.
-- As text, since many items of a batch have one score, and a number is turned to text in each command that it is given to.
local scores = {}
local function score_of(due, stamps)
  if due == 0 then
    return '0'
  end
  local at = math.floor(tonumber(string.sub(stamps, STAMP_NAME + 1, STAMP_LENGTH)) / 1000) + 1 + due
  local text = scores[at]
  if not text then
    text = string.format('%.0f', at)
    scores[at] = text
  end
  return text
end

replace = function(name, was_place, place, due, stamps)
  local queue = queue_of(name)
  if was_place ~= '' then
    unplace(queue, was_place)
  end
  if place ~= '' then
    local set = queue_set(string.sub(place, 1, 1), queue)
    append(additions, set, score_of(due, stamps), string.sub(place, 2))
  end
end
