-- What daemons tell a node about the others, so that it outlives the daemons. All of it hints.

local SEEN_KEY = 'majorityd:seen'
-- So many notes are kept for each node; what is not noted is found by comparison.
local NOTES_MAX = 100000

-- Per node: since when (this node's clock) no daemon has reached it, the memory it had, and how many writes it counted.
local function load_seen()
  local raw = redis.call('GET', SEEN_KEY)
  local seen = raw and cmsgpack.unpack(raw) or {}
  for i = 1, NODES do
    seen[i] = seen[i] or { now_us, '', 0 }
    if seen[i][1] > now_us then
      seen[i][1] = now_us
    end
  end
  return seen
end

-- report {REPORT, [reached 0 or 1, memory, writes, …] one for each node or none at all, [node, [key, …], …] of what
-- nodes missed}
-- Answers {REPORTED, [microseconds since a daemon reached it, memory, writes, notes, …], memory kept aside, own writes,
-- phase of its own join, records merged, microseconds since that moved}.
UPKEEP[REPORT] = function(operation)
  local news, missed, seen = operation[2], operation[3], load_seen()
  for i = 1, NODES do
    local reached, memory, writes = news[3 * i - 2], news[3 * i - 1], news[3 * i]
    if reached == 1 then
      seen[i][1] = now_us
    end
    if memory and memory ~= '' and (memory ~= seen[i][2] or writes > seen[i][3]) then
      seen[i][2], seen[i][3] = memory, writes
    end
  end
  redis.call('SET', SEEN_KEY, cmsgpack.pack(seen))
  for i = 1, #missed, 2 do
    local notes = 'majorityd:n:' .. missed[i]
    local room = NOTES_MAX - redis.call('ZCARD', notes)
    for j, key in ipairs(missed[i + 1]) do
      if j <= room then
        redis.call('ZADD', notes, 0, key)
      end
    end
  end
  local answer = {}
  for i = 1, NODES do
    local at = 4 * i
    answer[at - 3], answer[at - 2], answer[at - 1] = now_us - seen[i][1], seen[i][2], seen[i][3]
    answer[at] = redis.call('ZCARD', 'majorityd:n:' .. (i - 1))
  end
  -- Ahead of the clock, which was set back since: the time starts anew, or a join that stands still would seem to have
  -- just moved until the clock has caught up.
  if node[NODE_MOVED] > now_us then
    store_moved_node()
  end
  local writes, moved = tonumber(redis.call('GET', WRITES_KEY) or 0), now_us - node[NODE_MOVED]
  return { REPORTED, answer, node[NODE_ASIDE], writes, node[NODE_PHASE], node[NODE_MERGED], moved }
end

-- missed {MISSED, node, [key, …] that have been brought to it, limit}: some of what is noted for a node.
-- Answers {NAMES, [key, …]}.
UPKEEP[MISSED] = function(operation)
  local notes = 'majorityd:n:' .. operation[2]
  for _, key in ipairs(operation[3]) do
    redis.call('ZREM', notes, key)
  end
  return { NAMES, redis.call('ZRANGEBYLEX', notes, '-', '+', 'LIMIT', 0, operation[4]) }
end
