-- Records: what a batch reads and writes. All records of its operations are read in one command, and what has changed is
-- written in one, after the operations; what the index and the listeners are told follows then.

-- A batch: the vid of the list that the daemon goes by, how many keys and operations, and which parts of the script they
-- want, as bits. Then the keys; the code and the slot of each operation, one after the other; and of each what it needs.
local payload = ARGV[1]
local at, list_vid, key_count, operation_count, wanted = unpack_limit(payload, 4, 0)

-- Making functions is a good part of what a small batch costs, so those that not every batch wants are made only for those
-- that do: operations of upkeep, those about a queue as a whole, reads and promises, the places of items, hints, and stamps.
local UPKEEP_BIT, QUEUES_BIT, PROMISES_BIT, PLACES_BIT, HINTS_BIT, STAMPS_BIT = 1, 2, 4, 8, 16, 32

-- What is read has a slot: the node record, the list's record, the floor, and then the keys of the batch.
local NODE_SLOT, MEMBERS_SLOT, FLOOR_SLOT, FIRST_SLOT = 1, 2, 3, 4
-- Keys in full, two places before their slots.
local names = {}
if key_count > 0 then
  names = { unpack_limit(payload, key_count, at) }
  at = names[1]
end
names[0] = RECORDS .. MEMBERS
local raws = redis.call('MGET', NODE_KEY, names[0], FLOOR_KEY, unpack(names, 2))

-- Whether the batch has changed anything: such batches are counted, so that a recovery can tell who has lost some.
local wrote = false
local answers = {}
-- What is to be written, each record after its key; slots that are in it, with the place of their key; operations that went by
-- it; sets of the index with what is to be removed, what is to be added, and who leaves that set or another; channels with
-- what is to be published; and what has been announced.
local words, is_changed, touched = {}, {}, {}
local removals, additions, displaced, hints, announced = {}, {}, {}, {}, {}
local remove_displaced
-- Whether anybody listens for changes; asked at most once a batch, and nil until then.
local is_watched

-- Whether some key of which the first look saw nothing is there: something that is no record. Not known yet while nil.
local some_hidden

-- What is no record is an error.
local function load(slot)
  local raw = raws[slot]
  if raw == false and slot >= FIRST_SLOT and some_hidden == nil then
    local unseen = {}
    for other = FIRST_SLOT, FIRST_SLOT + key_count - 1 do
      if raws[other] == false then
        unseen[#unseen + 1] = names[other - 2]
      end
    end
    some_hidden = redis.call('EXISTS', unpack(unseen)) > 0
  end
  if raw == nil or raw == false and (slot < FIRST_SLOT or some_hidden) then
    raw = redis.call('GET', names[slot - 2])
    raws[slot] = raw
  end
  return raw
end

local function store(slot, raw)
  local place = is_changed[slot]
  if not place then
    place = #words + 1
    is_changed[slot] = place
    words[place] = names[slot - 2]
  end
  words[place + 1] = raw
  raws[slot] = raw
end

local function message_of(raised)
  if type(raised) == 'table' then
    return tostring(raised.err)
  end
  return tostring(raised)
end

local function write_index()
  if next(displaced) then
    remove_displaced()
  end
  for set, members in pairs(removals) do
    redis.call('ZREM', set, unpack(members))
  end
  for set, members in pairs(additions) do
    redis.call('ZADD', set, unpack(members))
  end
  removals, additions = {}, {}
end

local function write_out()
  redis.call('MSET', unpack(words))
  wrote = true
  write_index()
  -- After the value is stored, and what goes wrong with them is nobody's failure.
  for i = 1, #hints, 2 do
    redis.pcall('PUBLISH', hints[i], hints[i + 1])
  end
end

-- Writes what has changed. If that fails, it is the failure of all that wrote or went by it.
local function flush(is_last)
  if #words == 0 then
    return
  end
  local done, raised = pcall(write_out)
  if not done then
    for _, i in ipairs(touched) do
      answers[i] = { FAILED, message_of(raised) }
    end
    raws = {}
  end
  if is_last then
    return
  end
  words, is_changed, touched, removals, additions, displaced, hints, announced = {}, {}, {}, {}, {}, {}, {}, {}
end
