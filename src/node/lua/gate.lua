-- Gate: before a batch may touch anything, the node record must be this cluster's and the batch must go by the node's
-- own member list (protocol, section 2). The member list itself is not gated: it is how a daemon finds the right one.

-- How the batch as a whole went.
local BATCH_DONE, BATCH_NO_RECORD, BATCH_FOREIGN = 0, 1, 2

local memory, phase
do
  if not raws[NODE_SLOT] then
    -- FLUSHALL since the handshake: the memory is gone with the record.
    return cmsgpack.pack({ BATCH_NO_RECORD })
  end
  local _, format, cluster, index
  -- Past the byte that begins an array: a table is made of it only where there is upkeep.
  _, format, cluster, _, index, _, memory, _, _, phase = unpack_limit(raws[NODE_SLOT], NODE_PHASE, 1)
  if format ~= FORMAT or cluster ~= CLUSTER or index ~= INDEX then
    return cmsgpack.pack({ BATCH_FOREIGN })
  end
end

local own_list = ''
if raws[MEMBERS_SLOT] then
  own_list = select(1 + VID, unpack_limit(raws[MEMBERS_SLOT], VID, 0))
end

-- nil where operations on records pass.
local function closed()
  -- A list that was never agreed on (vid '') opens nothing.
  if own_list == '' or list_vid ~= own_list then
    return GATED
  end
  if memory == '' then
    return NOT_SERVING
  end
  if phase ~= SERVING then
    return NOT_SERVING
  end
end

-- What operations on records are answered while the gate is shut.
local shut = closed()
