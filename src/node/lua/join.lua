-- Joining: begin_join, merge, end_join (protocol, section 2). None of them is gated: a node that joins serves nothing.

-- How many keys one call looks at while the old data is removed: a fraction of a millisecond.
local WIPE_COUNT = 500

local function refused()
  local list = load_record(MEMBERS)
  if list then
    return { CONFLICT, list[PROMISE_TOKEN], list[PROMISE_PROPOSER] }
  end
  return { CONFLICT, 0, NO_PROPOSER }
end

-- The join has moved.
local function store_moved_node()
  node[NODE_MOVED] = now_us
  store_node()
end

-- A recovery's merges are over as soon as anything else is promised on the list.
local function is_over()
  local recovery = node[NODE_RECOVERY]
  return recovery and not is_current(recovery)
end

-- begin_join {BEGIN_JOIN, vid of the list that made the id, memory, recovery}: a new memory begins.
-- Acts only on a node whose own list is that very list, and once for each id. All data of this cluster but the member
-- list, and but what this node was told of the others' reach and writes, is removed, by the merges that follow, in
-- slices; the floor and the count of writes go at once. A recovery ({token, proposer}, else false) keeps the data, and
-- acts only while the node's promise on the list is still the recovery's; a memory that the node has is kept aside.
-- Answers ACCEPTED, or {CONFLICT, token, proposer} of the list.
UPKEEP[BEGIN_JOIN] = function(operation)
  local vid, memory, recovery = operation[2], operation[3], operation[4]
  if own_list ~= vid or node[NODE_BEGUN] == memory then
    return refused()
  end
  if recovery and not is_current(recovery) then
    return refused()
  end
  if recovery and node[NODE_MEMORY] ~= '' and node[NODE_PHASE] == SERVING then
    -- This node remembers. Should it restart before the end, that is what it had.
    node[NODE_ASIDE] = node[NODE_MEMORY]
  end
  node[NODE_MEMORY], node[NODE_BEGUN], node[NODE_RECOVERY], node[NODE_MERGED] = memory, memory, recovery, 0
  if recovery then
    node[NODE_PHASE] = MERGING
  else
    node[NODE_PHASE], node[NODE_CURSOR], node[NODE_ASIDE] = WIPING, '0', ''
    drop_floor()
    redis.call('UNLINK', WRITES_KEY)
  end
  store_moved_node()
  return ACCEPTED
end

local function wipe()
  local page = redis.call('SCAN', node[NODE_CURSOR], 'MATCH', 'majorityd:*', 'COUNT', WIPE_COUNT)
  for _, key in ipairs(page[2]) do
    local kind = string.sub(key, 11, 12)
    if (kind == 'r:' or kind == 'i:' or kind == 'n:') and key ~= RECORDS .. MEMBERS then
      redis.call('UNLINK', key)
    end
  end
  node[NODE_CURSOR] = page[1]
  if page[1] == '0' then
    node[NODE_PHASE] = MERGING
  end
  store_moved_node()
end

local function started_anew(stamps)
  local anew = {}
  for i = 1, #stamps, STAMP_LENGTH do
    anew[#anew + 1] = string.sub(stamps, i, i + STAMP_NAME - 1)
    anew[#anew + 1] = digits_of_now()
  end
  return table.concat(anew)
end

-- The highest ballot wins, and of promises the highest. Stamps start anew: how long the source has held them proves
-- nothing here.
local function merge_record(key, raw)
  local theirs, own = { cmsgpack.unpack(raw) }, load_record(key)
  local record = own
  if not own or below(own[BALLOT_TOKEN], own[BALLOT_PROPOSER], theirs[BALLOT_TOKEN], theirs[BALLOT_PROPOSER]) then
    record = { cmsgpack.unpack(raw) }
    record[COPIED] = 1
    record[STAMPS] = started_anew(record[STAMPS])
  end
  for _, other in ipairs({ own or theirs, theirs }) do
    if below(record[PROMISE_TOKEN], record[PROMISE_PROPOSER], other[PROMISE_TOKEN], other[PROMISE_PROPOSER]) then
      record[PROMISE_TOKEN], record[PROMISE_PROPOSER] = other[PROMISE_TOKEN], other[PROMISE_PROPOSER]
    end
  end
  store_record(key, record)
  reindex_record(key, own, record)
end

-- merge {MERGE, memory, floor token, floor proposer, [key, raw record, …]}: what another node holds.
-- Refused for any other memory and after end_join; in a recovery also once anything else was promised on the list.
-- Answers ACCEPTED, WIPING where the old data is not all removed yet (nothing was merged, send it again), or
-- {CONFLICT, token, proposer} of the list.
UPKEEP[MERGE] = function(operation)
  local memory, rows = operation[2], operation[5]
  if node[NODE_MEMORY] ~= memory or node[NODE_PHASE] == SERVING or is_over() then
    return refused()
  end
  if node[NODE_PHASE] == WIPING then
    wipe()
    return WIPING_YET
  end
  raise_floor(operation[3], operation[4])
  for i = 1, #rows, 2 do
    merge_record(rows[i], rows[i + 1])
  end
  node[NODE_MERGED] = node[NODE_MERGED] + #rows / 2
  store_moved_node()
  return ACCEPTED
end

-- end_join {END_JOIN, memory}: the copy is complete; no more merges, and no use for what was kept aside. A repeat is
-- ACCEPTED again.
-- Answers ACCEPTED or {CONFLICT, token, proposer} of the list.
UPKEEP[END_JOIN] = function(operation)
  local memory = operation[2]
  if node[NODE_MEMORY] ~= memory or node[NODE_PHASE] == WIPING or is_over() then
    return refused()
  end
  node[NODE_PHASE], node[NODE_RECOVERY], node[NODE_ASIDE] = SERVING, false, ''
  store_moved_node()
  return ACCEPTED
end
