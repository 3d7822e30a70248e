-- Gate: before a batch may touch anything, the node record must be this cluster's and the batch must go by the node's
-- own member list (protocol, section 2). The member list itself is not gated: it is how a daemon finds the right one.

-- How the batch as a whole went.
local BATCH_DONE, BATCH_NO_RECORD, BATCH_FOREIGN = 0, 1, 2

local node
do
  local raw = redis.call('GET', NODE_KEY)
  if not raw then
    -- FLUSHALL since the handshake: the memory is gone with the record.
    return cmsgpack.pack({ BATCH_NO_RECORD })
  end
  node = cmsgpack.unpack(raw)
  if node[NODE_FORMAT] ~= FORMAT or node[NODE_CLUSTER] ~= CLUSTER or node[NODE_INDEX] ~= INDEX then
    return cmsgpack.pack({ BATCH_FOREIGN })
  end
end

local own_list = ''
do
  local record = load(MEMBERS)
  if record then
    own_list = record[VID]
  end
end

local batch = cmsgpack.unpack(ARGV[1])
-- Whether any operation is one of upkeep, and whether any is about a queue as a whole.
local upkeep_wanted, queues_wanted = false, false
for _, operation in ipairs(batch[2]) do
  queues_wanted = queues_wanted or operation[1] >= CLAIM
  upkeep_wanted = upkeep_wanted or operation[1] > FOUND and operation[1] < CLAIM
end

-- Whether a recovery ({token, proposer}) is still the last that was promised anything on the list.
local function is_current(recovery)
  local list = load(MEMBERS)
  return list and list[PROMISE_TOKEN] == recovery[1] and list[PROMISE_PROPOSER] == recovery[2]
end

-- What has a gate of its own.
local function is_ungated(code)
  return code == FOUND or code == BEGIN_JOIN or code == MERGE or code == END_JOIN or code == REPORT
end

-- nil lets the operation pass.
local function gate(list, operation)
  -- Beyond accept, what stands second is no key.
  if is_ungated(operation[1]) or operation[1] <= ACCEPT and operation[2] == MEMBERS then
    return nil
  end
  if operation[1] == PAGE and operation[5] then
    return not is_current(operation[5]) and GATED or nil
  end
  -- A list that was never agreed on (vid '') opens nothing.
  if own_list == '' or list ~= own_list then
    return GATED
  end
  if node[NODE_MEMORY] == '' then
    return NOT_SERVING
  end
  if node[NODE_PHASE] ~= SERVING then
    return NOT_SERVING
  end
end
