-- What the operations of upkeep share.

local node = cmsgpack.unpack(raws[NODE_SLOT])

-- The memory and the phase count from the next operation on.
local function store_node()
  redis.call('SET', NODE_KEY, cmsgpack.pack(node))
  memory, phase = node[NODE_MEMORY], node[NODE_PHASE]
end

-- One record by its key, as a table and as it is stored.
local function load_record(key)
  local raw = redis.call('GET', RECORDS .. key)
  if raw then
    return { cmsgpack.unpack(raw) }, raw
  end
end

local function store_record(key, record)
  wrote = true
  redis.call('SET', RECORDS .. key, cmsgpack.pack(unpack(record)))
end

-- Whether a recovery ({token, proposer}) is still the last that was promised anything on the list.
local function is_current(recovery)
  local list = load_record(MEMBERS)
  return list and list[PROMISE_TOKEN] == recovery[1] and list[PROMISE_PROPOSER] == recovery[2]
end

-- What has a gate of its own.
local function is_ungated(code)
  return code == FOUND or code == BEGIN_JOIN or code == MERGE or code == END_JOIN or code == REPORT
end

-- nil lets an operation pass.
gate = function(operation)
  if is_ungated(operation[1]) then
    return nil
  end
  if operation[1] == PAGE and operation[5] then
    return not is_current(operation[5]) and GATED or nil
  end
  return closed()
end

-- The floor goes with what was under it, also where this batch has already read it.
local function drop_floor()
  floor_token, floor_proposer, floor_raw = 0, NO_PROPOSER, ''
  redis.call('UNLINK', FLOOR_KEY)
end

local function raise_floor(token, proposer)
  local forgotten_token, forgotten_proposer = floor()
  if not below(forgotten_token, forgotten_proposer, token, proposer) then
    return
  end
  local bytes, rest = {}, token
  for i = 8, 1, -1 do
    bytes[i] = string.char(rest % 256)
    rest = math.floor(rest / 256)
  end
  floor_token, floor_proposer, floor_raw = token, proposer, table.concat(bytes) .. proposer
  redis.call('SET', FLOOR_KEY, floor_raw)
end

-- What a record was, or nil, and what it is, or nil, as tables.
local function reindex_record(key, was, now)
  local was_listed, was_place, listed, place, due, stamps = 0, '', 0, '', 0, ''
  if was then
    was_listed, was_place = was[LISTED], was[PLACE]
  end
  if now then
    listed, place, due, stamps = now[LISTED], now[PLACE], now[DUE], now[STAMPS]
  end
  reindex(RECORDS .. key, was_listed, was_place, listed, place, due, stamps)
  write_index()
end
